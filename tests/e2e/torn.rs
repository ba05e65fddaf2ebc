//! Journals that a loss of power cut short, or the disk changed, while their process was down: it goes on from what is whole,
//! or refuses by name and says what to do. Followed, that ends with the model of a study that was not disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use coordinator::progress::Line;

use crate::harness::federation::Federation;
use crate::harness::process::Process;

/// Files of the coordinator's database, its write-ahead log last.
const DATABASE: [&str; 3] = ["coordinator.db", "coordinator.db-shm", "coordinator.db-wal"];
/// What keeps an older database from being taken for the newest.
const MARK: &str = "journal-mark.json";

impl Federation {
    /// A file of the coordinator's state.
    fn kept(&self, name: &str) -> PathBuf {
        self.consortium.path("state").join(name)
    }

    /// Starts the coordinator, which is dead; what it says instead of starting.
    fn start_coordinator(&mut self) -> Result<(), String> {
        self.consortium.crash_coordinator();
        let process = &mut self.consortium.coordinator.0;
        let listens = process.until("its address, or why not", |text| {
            let listening = matches!(serde_json::from_str(text), Ok(Line::Listening { .. }));
            (listening || text.starts_with("error: ")).then_some(listening)
        });
        if listens { Ok(()) } else { Err(process.until_dead().join("\n")) }
    }
}

/// Leaves so many bytes of a file.
fn cut(path: &Path, length: usize) {
    let bytes = fs::read(path).expect("it is there");
    fs::write(path, &bytes[..length]).expect("the folder is ours");
}

#[test]
fn a_coordinator_whose_log_is_torn_goes_on_or_says_how_to() {
    let mut federation = Federation::set_up();
    let mut south = federation.run_held(&federation.south);
    let mut north = federation.north.run();
    north.until_says("round 1: the coordinator counts the update");
    // The mark is made when a round commits. The second one cannot: north is held.
    north.pause();
    south.resume();
    south.until_says("round 2: the coordinator counts the update");
    federation.consortium.coordinator.0.kill();
    let whole: BTreeMap<PathBuf, Vec<u8>> = DATABASE
        .map(|name| federation.kept(name))
        .map(|path| (path.clone(), fs::read(path).expect("it ran")))
        .into();
    let log = federation.kept(DATABASE[2]);

    // Without its log, the database is a whole one of long ago: sites, study and round are not in it.
    cut(&log, 0);
    let refused = federation.start_coordinator().expect_err("rounds that are not in it were acknowledged");
    assert!(refused.contains("write-ahead log is torn") && refused.contains(MARK), "{refused}");
    assert!(refused.contains("coordinator restore BACKUP"), "{refused}");
    for (path, bytes) in &whole {
        fs::write(path, bytes).expect("the folder is ours");
    }

    // Cut in the midst of its last record. Where that is one that the mark knows, the way on is the one that it names.
    cut(&log, whole[&log].len() - 1000);
    if let Err(refused) = federation.start_coordinator() {
        assert!(refused.contains("write-ahead log is torn") && refused.contains(MARK), "{refused}");
        fs::remove_file(federation.kept(MARK)).expect("it was named");
        federation.start_coordinator().expect("it was told to go on");
    }
    north.resume();
    federation.assert_ends_undisturbed();
}

/// Waits until a step is kept, or the round is over.
fn until_kept(agent: &mut Process) {
    agent.until("a kept step", |line| {
        (line.contains(": kept after step ") || line.contains("the coordinator counts")).then_some(())
    });
}

#[test]
#[ignore = "slow: it starts a site five times"]
fn a_site_whose_journal_is_torn_goes_on_or_says_what_it_cannot_read() {
    let mut federation = Federation::set_up();
    federation.south.keep_every_step();
    // However slow this test is, south is not done with more than a round.
    let north = federation.run_held(&federation.north);
    let folder = federation.south.path("state/journal");
    let journal = folder.join("events-0.jsonl");
    // All of the last line but its end, half of it, and all of some lines and half of another.
    let cuts: [fn(usize, usize) -> usize; 3] =
        [|whole, _| whole - 1, |whole, last| whole - last / 2, |whole, _| whole * 2 / 3];
    for length in cuts {
        let mut south = federation.south.run_to(None);
        until_kept(&mut south);
        south.kill();
        let bytes = fs::read(&journal).expect("it ran");
        let last = bytes.split_inclusive(|&b| b == b'\n').next_back().map_or(0, <[u8]>::len);
        cut(&journal, length(bytes.len(), last));
    }

    let mut south = federation.south.run_to(None);
    until_kept(&mut south);
    south.kill();
    let mut bytes = fs::read(&journal).expect("it ran");
    bytes[0] ^= 0x10;
    fs::write(&journal, bytes).expect("the folder is ours");
    let said = federation.south.run_to(None).until_dead().join("\n");
    assert!(said.contains("cannot understand") && said.contains("events-0.jsonl"), "{said}");
    fs::rename(&folder, folder.with_extension("damaged")).expect("the folder is ours");

    let _south = federation.south.run();
    north.resume();
    federation.assert_ends_undisturbed();
}
