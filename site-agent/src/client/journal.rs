//! The memory of the participant machine on disk: a snapshot and the events since.
//!
//! `snapshot-N.json` belongs to `events-N.jsonl`; a new snapshot has a new number, so that a crash between the two can
//! never replay events onto a state that has seen them. The newest snapshot is what a start begins with, so events go beside
//! it as soon as it has its name; those of before are removed once that name is durable, and whenever it can be done. An
//! event is on the disk before its actions are executed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use common::journal::{Entry, RestoreError};
use common::participant::{Event, Identity, ParticipantMachine, Snapshot};
use common::time::Timestamp;

use super::files::{self, FileError};

/// Events after which a snapshot is worth its writing.
const EVENTS_PER_SNAPSHOT: usize = 200;

/// Why the machine's memory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// A snapshot that is not this site's, or of another version.
    #[error("the journal in the state folder")]
    Restore(#[from] RestoreError),
}

impl JournalError {
    /// Whether what lies there is not what this program wrote: the next start will not read it either.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::File(error) => error.is_damage(),
            Self::Restore(_) => true,
        }
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    number: u64,
    events: File,
    /// Of the events that are written whole, bytes.
    length: u64,
    /// A write failed: there may be part of a line behind them.
    torn: bool,
    /// The names of the snapshot and its events are durable, and those of before are removed as far as that could be.
    is_settled: bool,
    since_snapshot: usize,
}

impl Journal {
    /// Opens the journal in `folder` and rebuilds the machine from it.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(folder: &Path, identity: &Identity) -> Result<(Self, ParticipantMachine), JournalError> {
        files::make_private_folder(folder)?;
        let number = latest(folder)?;
        let snapshot: Option<Snapshot> = files::read_json(&snapshot_path(folder, number))?;
        let path = events_path(folder, number);
        let entries = read_events(&path)?;
        let since_snapshot = entries.len();
        let machine = ParticipantMachine::replay(identity, snapshot, entries)?;
        let (events, length) = append(&path)?;
        let folder = folder.to_owned();
        let journal = Self { folder, number, events, length, torn: false, is_settled: false, since_snapshot };
        Ok((journal, machine))
    }

    /// Writes an event down; on return it is on the disk.
    ///
    /// # Errors
    /// [`FileError`]: then the event must not be acted on, and may be recorded again.
    pub fn record(&mut self, event: &Event, at: Timestamp) -> Result<(), FileError> {
        let path = events_path(&self.folder, self.number);
        let fail = |source| FileError::new("write", &path, source);
        let entry = Entry { at, event: event.clone() };
        let mut line = serde_json::to_vec(&entry).map_err(|error| fail(error.into()))?;
        line.push(b'\n');
        self.settle()?;
        if self.torn {
            self.events.set_len(self.length).map_err(fail)?;
        }
        self.torn = true;
        self.events.write_all(&line).and_then(|()| self.events.sync_data()).map_err(fail)?;
        (self.torn, self.length) = (false, self.length + line.len() as u64);
        self.since_snapshot += 1;
        Ok(())
    }

    /// Replaces the events so far by a snapshot, when there are many.
    ///
    /// # Errors
    /// [`FileError`]; the journal goes on, with the new snapshot if that is there, else as it was.
    pub fn compact(&mut self, machine: &ParticipantMachine) -> Result<(), FileError> {
        if self.since_snapshot < EVENTS_PER_SNAPSHOT {
            return Ok(());
        }
        let next = self.number + 1;
        let (events, length) = append(&events_path(&self.folder, next))?;
        let snapshot = snapshot_path(&self.folder, next);
        let written = files::write_json(&snapshot, &machine.snapshot());
        // Where only its folder could not be synced, it is there all the same, and the next start takes it.
        if written.is_ok() || snapshot.exists() {
            let folder = std::mem::take(&mut self.folder);
            let (number, torn, is_settled, since_snapshot) = (next, false, false, 0);
            *self = Self { folder, number, events, length, torn, is_settled, since_snapshot };
        }
        written
    }

    /// Makes the names of the snapshot and its events durable, and then removes those of before: what cannot be removed takes
    /// room, and nobody reads it.
    fn settle(&mut self) -> Result<(), FileError> {
        if self.is_settled {
            return Ok(());
        }
        let synced = files::sync_folder(&self.folder);
        synced.map_err(|source| FileError::new("write in", &self.folder, source))?;
        let spent =
            names(&self.folder).unwrap_or_default().into_iter().filter(|name| is_before(name, self.number));
        for path in spent.map(|name| self.folder.join(name)) {
            if let Err(error) = files::remove(&path) {
                tracing::warn!("the journal keeps what it does not need: {:#}", anyhow::Error::from(error));
            }
        }
        self.is_settled = true;
        Ok(())
    }
}

/// The number of the newest snapshot; 0 before the first.
fn latest(folder: &Path) -> Result<u64, FileError> {
    Ok(names(folder)?.iter().filter_map(|name| snapshot_number(name)).max().unwrap_or(0))
}

/// Whether a file is of an earlier snapshot.
fn is_before(name: &str, number: u64) -> bool {
    snapshot_number(name).or_else(|| events_number(name)).is_some_and(|of| of < number)
}

fn snapshot_number(name: &str) -> Option<u64> {
    name.strip_prefix("snapshot-")?.strip_suffix(".json")?.parse().ok()
}

fn events_number(name: &str) -> Option<u64> {
    name.strip_prefix("events-")?.strip_suffix(".jsonl")?.parse().ok()
}

fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let listed = std::fs::read_dir(folder).map_err(|source| FileError::new("read", folder, source))?;
    Ok(listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn snapshot_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("snapshot-{number}.json"))
}

fn events_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("events-{number}.jsonl"))
}

/// Reads the events and cuts off a last line that a crash tore: nothing was done about it.
fn read_events(path: &Path) -> Result<Vec<Entry<Event>>, FileError> {
    let bytes = match files::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        files::write(path, &bytes[..whole])?;
    }
    let lines = bytes[..whole].split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let read = lines.map(serde_json::from_slice).collect::<Result<_, _>>();
    read.map_err(|error| FileError::new("understand", path, error.into()))
}

/// A file to append to, and its length.
fn append(path: &Path) -> Result<(File, u64), FileError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    let measured = opened.and_then(|file| file.metadata().map(|about| (file, about.len())));
    measured.map_err(|source| FileError::new("write", path, source))
}

#[cfg(test)]
mod tests {
    use common::ids::{Digest, Role, StudyDigest};

    use super::*;

    fn identity() -> Identity {
        Identity { site: "north".parse().unwrap(), role: Role::Trainer, installation: [3; 16] }
    }

    fn offered(n: u64) -> Event {
        Event::StudyOffered { study: StudyDigest(Digest::of(&n.to_le_bytes())) }
    }

    fn feed(journal: &mut Journal, machine: &mut ParticipantMachine, event: Event, at: u64) {
        journal.record(&event, Timestamp(at)).unwrap();
        machine.tick(event, Timestamp(at));
        journal.compact(machine).unwrap();
    }

    #[test]
    fn the_machine_is_the_same_after_a_restart_whatever_was_compacted() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut machine) = Journal::open(folder.path(), &identity()).unwrap();
        feed(&mut journal, &mut machine, Event::Connected, 0);
        for n in 0..EVENTS_PER_SNAPSHOT as u64 + 20 {
            feed(&mut journal, &mut machine, offered(n % 7), n);
            if n % 50 == 3 {
                let (_, again) = Journal::open(folder.path(), &identity()).unwrap();
                assert_eq!(again, machine);
            }
        }
        assert!(folder.path().join("snapshot-1.json").exists());
        assert!(!folder.path().join("events-0.jsonl").exists());
        let (_, again) = Journal::open(folder.path(), &identity()).unwrap();
        assert_eq!(again, machine);
    }

    #[test]
    fn a_line_torn_by_a_crash_is_as_if_it_had_not_happened() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut machine) = Journal::open(folder.path(), &identity()).unwrap();
        feed(&mut journal, &mut machine, offered(1), 5);
        let path = events_path(folder.path(), 0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"at\":6,\"ev");
        std::fs::write(&path, bytes).unwrap();
        let (mut journal, again) = Journal::open(folder.path(), &identity()).unwrap();
        assert_eq!(again, machine);
        feed(&mut journal, &mut machine, offered(2), 7);
        assert_eq!(Journal::open(folder.path(), &identity()).unwrap().1, machine);
    }

    #[test]
    fn an_event_that_found_no_room_is_recorded_when_there_is_some() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut machine) = Journal::open(folder.path(), &identity()).unwrap();
        feed(&mut journal, &mut machine, offered(1), 5);
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut journal.events, full);
        let refused = journal.record(&offered(2), Timestamp(6)).unwrap_err();
        assert_eq!(files::disk_trouble(&refused.into()), Some(files::DISK_FULL));
        journal.events = file;
        // What had room of the line.
        journal.events.write_all(b"{\"at\":6,\"ev").unwrap();
        feed(&mut journal, &mut machine, offered(2), 7);
        feed(&mut journal, &mut machine, offered(3), 8);
        assert_eq!(Journal::open(folder.path(), &identity()).unwrap().1, machine);
    }

    /// So many events that the journal is compacted after the next.
    fn long() -> (tempfile::TempDir, Journal, ParticipantMachine) {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut machine) = Journal::open(folder.path(), &identity()).unwrap();
        for n in 1..EVENTS_PER_SNAPSHOT as u64 {
            feed(&mut journal, &mut machine, offered(n % 7), n);
        }
        (folder, journal, machine)
    }

    /// The names of the files of the first snapshot.
    const FIRST: [&str; 2] = ["events-1.jsonl", "snapshot-1.json"];

    fn sorted_names(folder: &Path) -> Vec<String> {
        let mut names = names(folder).unwrap();
        names.sort();
        names
    }

    #[test]
    fn a_snapshot_that_has_its_name_is_gone_on_with_although_the_disk_had_no_room_to_sync_it() {
        let (folder, mut journal, mut machine) = long();
        journal.record(&offered(7), Timestamp(300)).unwrap();
        machine.tick(offered(7), Timestamp(300));
        files::IS_FULL.set(true);
        let refused = journal.compact(&machine).unwrap_err();
        assert_eq!(files::disk_trouble(&refused.into()), Some(files::DISK_FULL));
        let refused = journal.record(&offered(8), Timestamp(301)).unwrap_err();
        assert_eq!(files::disk_trouble(&refused.into()), Some(files::DISK_FULL), "it may lose its name yet");
        files::IS_FULL.set(false);
        feed(&mut journal, &mut machine, offered(8), 302);
        assert_eq!(Journal::open(folder.path(), &identity()).unwrap().1, machine);
        assert_eq!(sorted_names(folder.path()), FIRST);
    }

    #[test]
    fn what_a_kill_left_of_before_a_snapshot_is_not_read_and_goes() {
        let (folder, mut journal, mut machine) = long();
        feed(&mut journal, &mut machine, offered(7), 300);
        drop(journal);
        assert_eq!(sorted_names(folder.path()), ["events-0.jsonl", FIRST[0], FIRST[1]]);
        let (mut journal, again) = Journal::open(folder.path(), &identity()).unwrap();
        assert_eq!(again, machine);
        feed(&mut journal, &mut machine, offered(8), 301);
        assert_eq!(sorted_names(folder.path()), FIRST);
        assert_eq!(Journal::open(folder.path(), &identity()).unwrap().1, machine);
    }

    #[test]
    fn what_cannot_be_removed_holds_nothing_up() {
        let (folder, mut journal, mut machine) = long();
        let events = events_path(folder.path(), 0);
        std::fs::remove_file(&events).unwrap();
        // As a file that may not be removed.
        std::fs::create_dir(&events).unwrap();
        for n in 7..9 {
            feed(&mut journal, &mut machine, offered(n), 300 + n);
        }
        assert_eq!(Journal::open(folder.path(), &identity()).unwrap().1, machine);
    }

    #[test]
    fn another_sites_state_is_not_continued() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut machine) = Journal::open(folder.path(), &identity()).unwrap();
        for n in 0..EVENTS_PER_SNAPSHOT as u64 {
            feed(&mut journal, &mut machine, offered(n), n);
        }
        let other = Identity { site: "south".parse().unwrap(), ..identity() };
        assert!(matches!(Journal::open(folder.path(), &other), Err(JournalError::Restore(_))));
    }
}
