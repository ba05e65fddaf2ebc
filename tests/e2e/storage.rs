//! Disks that fill up and lose bytes: the coordinator says what it is, nothing that it acknowledged is lost, and the study
//! ends with the model of one that was not disturbed, bit for bit.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use coordinator::progress::Line;

use crate::harness::federation::Federation;

/// Says to the test in the namespace that it is there.
const INSIDE: &str = "CONSILIUM_TEST_INSIDE";

impl Federation {
    fn state(&self) -> PathBuf {
        self.consortium.path("state")
    }
}

/// The first folder below whose name has this beginning.
fn find(folder: &Path, beginning: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
    let here = folders.iter().find(|path| named(path)).cloned();
    here.or_else(|| folders.iter().find_map(|path| find(path, beginning)))
}

#[test]
fn an_update_that_the_disk_changed_is_found_by_the_doctor_and_asked_for_again() {
    let mut federation = Federation::set_up();
    let mut north = federation.north.run();
    let mut south = federation.south.run();
    south.until_says("round 1: taking part");
    south.pause();
    north.until_says("round 1: the coordinator counts the update");
    let refused = federation.consortium.operate(["doctor", "--repair"]);
    assert_eq!(refused.code, Some(75), "a running coordinator repairs nothing: {refused:#?}");
    federation.consortium.operate(["doctor"]).ok();
    federation.consortium.coordinator.0.kill();

    let update = find(&federation.state().join("spool"), "north.").expect("the counted update is kept");
    let data = update.join("data");
    let mut bytes = fs::read(&data).expect("it is ours");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&data, bytes).expect("the folder is ours");
    let found = federation.consortium.operate(["doctor"]);
    assert_eq!(found.code, Some(1), "{found:#?}");
    assert!(found.out.contains("has changed"), "{found:#?}");
    let told = federation.consortium.operate(["doctor", "--repair"]).ok();
    assert!(told.contains("asks north again"), "{told}");
    assert!(!update.exists() && federation.state().join("quarantine").is_dir());

    federation.consortium.crash_coordinator();
    federation.consortium.coordinator.until_study("update-lost", "north");
    south.resume();
    let model = federation.finished();
    federation.assert_made_of_both();
    assert_eq!(model, Federation::undisturbed());
}

#[test]
fn sites_follow_a_coordinator_that_was_restored_from_an_earlier_round() {
    let mut federation = Federation::set_up();
    let _agents = [federation.north.run(), federation.south.run()];
    federation.consortium.coordinator.until_study("round-opened", "round 1");
    let backup = federation.consortium.path("backup");
    let to = backup.to_str().expect("a plain name");
    federation.consortium.operate(["backup", to]).ok();
    federation.consortium.coordinator.until_study("round-opened", "round 2");
    federation.consortium.coordinator.0.kill();

    let occupied = federation.consortium.operate(["restore", to]);
    assert!(occupied.err.contains("is not empty"), "{occupied:#?}");
    fs::rename(federation.state(), federation.consortium.path("lost")).expect("the folder is ours");
    federation.consortium.operate(["restore", to]).ok();
    federation.consortium.crash_coordinator();
    let model = federation.finished();
    federation.assert_made_of_both();
    assert_eq!(model, Federation::undisturbed());
}

#[test]
fn a_full_disk_is_a_pause_with_a_name_and_nothing_is_lost() {
    let Some(flags) = namespace_flags() else { return skipped() };
    let own = std::env::current_exe().expect("a test knows its executable");
    let mut inside = Command::new("unshare");
    inside.args(flags).arg("--").arg(own);
    inside.args(["storage::on_a_small_disk", "--exact", "--ignored", "--nocapture"]).env(INSIDE, "1");
    let told = inside.output().expect("unshare was there a moment ago");
    let words = String::from_utf8_lossy(&told.stdout);
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success() && words.contains("1 passed"), "{words}\n{errors}");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_small_disk() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let mut federation = Federation::set_up();
    federation.consortium.coordinator.0.kill();
    put_on_a_small_disk(&federation.state());
    federation.consortium.crash_coordinator();

    let mut north = federation.north.run();
    let _south = federation.south.run();
    north.until_says("round 1: step ");
    let ballast = fill(&federation.state());
    federation.consortium.coordinator.until("the fault", |line| match line {
        Line::Fault { code, .. } => (code == "disk-full").then_some(()),
        _ => None,
    });
    let status = federation.consortium.operate(["status"]).ok();
    assert!(status.contains("paused: disk full"), "{status}");

    fs::remove_file(ballast).expect("it was written here");
    federation.consortium.coordinator.until("the end of it", |line| match line {
        Line::Recovered { code } => (code == "disk-full").then_some(()),
        _ => None,
    });
    let model = federation.finished();
    federation.assert_made_of_both();
    assert_eq!(model, Federation::undisturbed());
}

/// How `unshare` makes a namespace here in which a disk can be mounted; `None` where that is not permitted.
fn namespace_flags() -> Option<&'static [&'static str]> {
    const KINDS: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let folder = tempfile::tempdir().expect("a folder");
    let works = |flags: &&&[&str]| {
        let mut mount = Command::new("unshare");
        mount.args(flags.iter()).args(["--", "mount", "-t", "tmpfs", "none"]).arg(folder.path());
        mount.output().is_ok_and(|told| told.status.success())
    };
    KINDS.iter().find(works).copied()
}

#[expect(clippy::print_stderr, reason = "a skipped check must not look like a passed one")]
fn skipped() {
    eprintln!("SKIPPED: no disk may be mounted here, so none can be filled");
}

/// Moves a folder onto a file system of its own with room for a small study and little else.
fn put_on_a_small_disk(folder: &Path) {
    let aside = folder.with_extension("aside");
    fs::rename(folder, &aside).expect("the folder is ours");
    fs::create_dir(folder).expect("the folder is ours");
    let run = |command: &mut Command| {
        let told = command.output().expect("a program of every system");
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    };
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m,mode=0700", "none"]).arg(folder));
    run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(folder));
}

/// Fills the disk to its last page; the file that does.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("ballast");
    let mut file = File::create(&path).expect("there is room yet");
    for size in [1 << 20, 4096] {
        let piece = vec![0xa5; size];
        while file.write_all(&piece).is_ok() {}
    }
    path
}
