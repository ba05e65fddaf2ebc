//! The egress ledger: what left this hospital, written before it leaves.
//!
//! One JSON line per event, appended and synced: `{"entry":{…},"chain":"…"}`. `chain` is BLAKE3 over the previous
//! line's chain and the exact bytes of `entry`, so a line that was changed, removed or inserted breaks every later one.
//! What a chain alone cannot show is that the *last* lines were cut off; the coordinator's receipts can.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use common::ids::{Digest, RoundId, StudyDigest};
use serde::{Deserialize, Serialize};

use super::outbound::{Kind, Summary};

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// 1 for the first line.
    pub seq: u64,
    /// When, RFC 3339, UTC.
    pub at: jiff::Timestamp,
    /// What kind of message.
    pub kind: Kind,
    /// What happened to it.
    pub event: LedgerEvent,
    /// The study it belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub study: Option<StudyDigest>,
    /// The round it belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round: Option<RoundId>,
    /// Digest of the content.
    pub content: Digest,
    /// Bytes of content.
    pub bytes: u64,
}

/// What happened to a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LedgerEvent {
    /// Policy and limits let it pass; the next thing is the first byte on the wire.
    Sending,
    /// The coordinator has it: its receipt names this content, or says done.
    Received {
        /// Digest named by the coordinator's receipt, when the message is one that gets a receipt.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        receipt: Option<Digest>,
    },
    /// It did not leave: the rule of the policy that said no.
    Withheld {
        /// The rule, with file and line.
        rule: String,
    },
    /// The coordinator refused it.
    Refused {
        /// The refusal's stable name.
        code: String,
    },
    /// The link broke before an answer: it may have arrived.
    Unanswered,
}

/// Why the ledger cannot be trusted or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system said no.
    #[error("egress ledger {path}")]
    File {
        /// The ledger.
        path: String,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// A line is not what was written.
    #[error("egress ledger line {line}: {problem}")]
    Broken {
        /// 1-based line.
        line: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl LedgerError {
    /// The folder of a ledger that cannot be read or written.
    pub fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::File { path, .. } => Path::new(path).parent().map(Path::to_owned),
            Self::Broken { .. } => None,
        }
    }
}

/// What a read of the whole ledger found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// Number of lines.
    pub lines: u64,
    /// Chain value of the last line.
    pub head: Option<Digest>,
    /// Bytes of an unfinished last line (a crash while writing; nothing was sent under it).
    pub torn_bytes: u64,
}

/// The open ledger; there is one per state folder, guarded by the agent's lock.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    /// Of the lines that are written whole, bytes.
    len: u64,
    /// A write failed: there may be part of a line behind them.
    torn: bool,
    next: u64,
    head: Digest,
}

const OPENING: &[u8] = b"{\"entry\":";
const MIDDLE: &[u8] = b",\"chain\":\"";
const CLOSING: &[u8] = b"\"}";

impl Ledger {
    /// Opens the ledger, verifies all of it, passes each entry to `seen`, and cuts off an unfinished last line.
    ///
    /// # Errors
    /// [`LedgerError`]; a broken chain is never continued.
    pub fn open(path: &Path, seen: impl FnMut(&Entry)) -> Result<Self, LedgerError> {
        let fail = |source| file_error(path, source);
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).map_err(fail)?;
        let verified = read(path, &file, seen)?;
        if verified.torn_bytes > 0 {
            let len = file.metadata().map_err(fail)?.len();
            file.set_len(len.saturating_sub(verified.torn_bytes)).map_err(fail)?;
        }
        file.flush().map_err(fail)?;
        file.sync_all().map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let head = verified.head.unwrap_or_else(genesis);
        Ok(Self { path: path.to_owned(), file, len, torn: false, next: verified.lines + 1, head })
    }

    /// Appends one entry and returns when it is on the disk.
    ///
    /// # Errors
    /// [`LedgerError::File`]: then nothing may be sent.
    pub fn append(
        &mut self,
        at: jiff::Timestamp,
        message: &Summary,
        event: LedgerEvent,
    ) -> Result<Entry, LedgerError> {
        let Summary { kind, study, round, content, bytes } = *message;
        let entry = Entry { seq: self.next, at, kind, event, study, round, content, bytes };
        let fail = |source| file_error(&self.path, source);
        let json = serde_json::to_vec(&entry).map_err(|error| fail(error.into()))?;
        let chain = chain(&self.head, &json);
        let line = [OPENING, &json, MIDDLE, chain.to_string().as_bytes(), CLOSING, b"\n"].concat();
        if self.torn {
            self.file.set_len(self.len).map_err(fail)?;
        }
        self.torn = true;
        self.file.write_all(&line).map_err(fail)?;
        self.file.sync_data().map_err(fail)?;
        (self.torn, self.len) = (false, self.len + line.len() as u64);
        self.head = chain;
        self.next += 1;
        Ok(entry)
    }

    /// Appends to `file` from here on: in a test, a full disk, or the ledger again.
    #[cfg(test)]
    pub(super) fn append_to(&mut self, file: File) {
        self.file = file;
    }
}

/// Reads a ledger from end to end without changing it, and passes each entry to `seen`.
///
/// # Errors
/// [`LedgerError::Broken`] at the first line that is not what was written.
pub fn verify(path: &Path, seen: impl FnMut(&Entry)) -> Result<Verified, LedgerError> {
    let file = File::open(path).map_err(|source| file_error(path, source))?;
    read(path, &file, seen)
}

fn read(path: &Path, file: &File, mut seen: impl FnMut(&Entry)) -> Result<Verified, LedgerError> {
    let mut reader = BufReader::new(file);
    let mut found = Verified::default();
    let mut head = genesis();
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(|source| file_error(path, source))?;
        let Some((b'\n', body)) = line.split_last().map(|(last, body)| (*last, body)) else {
            found.torn_bytes = line.len() as u64;
            return Ok(found);
        };
        let number = found.lines + 1;
        let broken = |problem| LedgerError::Broken { line: number, problem };
        let (entry, stated) = split(body).ok_or_else(|| broken("not a ledger line"))?;
        head = chain(&head, entry);
        if stated != head.to_string().as_bytes() {
            return Err(broken("it does not continue the line before: changed, removed or inserted"));
        }
        let entry: Entry = serde_json::from_slice(entry).map_err(|_| broken("not a ledger entry"))?;
        if entry.seq != number {
            return Err(broken("its number is not its place"));
        }
        seen(&entry);
        found.lines = number;
        found.head = Some(head);
    }
}

/// The exact bytes of the entry and the chain's hexadecimal text.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = line.strip_prefix(OPENING)?.strip_suffix(CLOSING)?;
    let (rest, chain) = inner.split_at_checked(inner.len().checked_sub(64)?)?;
    Some((rest.strip_suffix(MIDDLE)?, chain))
}

fn genesis() -> Digest {
    Digest::of(b"consilium egress ledger 1")
}

fn chain(head: &Digest, entry: &[u8]) -> Digest {
    Digest::of(&[head.as_bytes().as_slice(), entry].concat())
}

fn file_error(path: &Path, source: std::io::Error) -> LedgerError {
    LedgerError::File { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: u64) -> Summary {
        let content = Digest::of(&bytes.to_le_bytes());
        Summary { kind: Kind::Progress, study: None, round: Some(RoundId(3)), content, bytes }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn written() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("egress.jsonl");
        let mut ledger = Ledger::open(&path, |_| ()).unwrap();
        for n in 0..3 {
            ledger.append(at(n), &message(n as u64), LedgerEvent::Sending).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn a_ledger_continues_its_chain_after_a_restart() {
        let (_folder, path) = written();
        let mut bytes = 0;
        let mut ledger = Ledger::open(&path, |entry| bytes += entry.bytes).unwrap();
        assert_eq!(bytes, 3);
        let received = LedgerEvent::Received { receipt: Some(Digest::of(b"x")) };
        assert_eq!(ledger.append(at(9), &message(7), received).unwrap().seq, 4);
        assert_eq!(verify(&path, |_| ()).unwrap().lines, 4);
    }

    #[test]
    fn a_changed_removed_or_moved_line_breaks_the_chain() {
        let (_folder, path) = written();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let changed = text.replacen("\"bytes\":1", "\"bytes\":9", 1);
        let removed = format!("{}\n{}\n", lines[0], lines[2]);
        let moved = format!("{}\n{}\n{}\n", lines[1], lines[0], lines[2]);
        for (bad, at_line) in [(changed, 2), (removed, 2), (moved, 1)] {
            std::fs::write(&path, bad).unwrap();
            let error = verify(&path, |_| ()).unwrap_err();
            assert!(matches!(error, LedgerError::Broken { line, .. } if line == at_line), "{error}");
            assert!(Ledger::open(&path, |_| ()).is_err(), "a broken chain is never continued");
        }
    }

    #[test]
    fn a_line_that_a_full_disk_cut_short_does_not_break_the_chain() {
        let (_folder, path) = written();
        let mut ledger = Ledger::open(&path, |_| ()).unwrap();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut ledger.file, full);
        assert!(ledger.append(at(8), &message(7), LedgerEvent::Sending).is_err());
        ledger.file = file;
        // What had room of the line.
        ledger.file.write_all(b"{\"entry\":{\"seq\":4").unwrap();
        ledger.append(at(9), &message(7), LedgerEvent::Sending).unwrap();
        assert_eq!(verify(&path, |_| ()).unwrap().lines, 4);
    }

    #[test]
    fn a_line_torn_by_a_crash_is_cut_off_and_the_rest_kept() {
        let (_folder, path) = written();
        let mut bytes = std::fs::read(&path).unwrap();
        let whole = bytes.len();
        bytes.extend_from_slice(b"{\"entry\":{\"seq\":4");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(verify(&path, |_| ()).unwrap().torn_bytes, 17);
        Ledger::open(&path, |_| ()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), whole);
    }
}
