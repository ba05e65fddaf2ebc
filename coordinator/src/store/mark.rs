//! How far each journal had come, in a file beside the database.
//!
//! SQLite drops what it cannot read of a torn write-ahead log, and a database without its log is a valid older one: either
//! would start as if the last rounds had never been. The mark is written after each snapshot; a database that is behind it
//! is refused. A restored backup has no mark: there, being behind is what was asked for. A mark that the disk changed says
//! nothing of the database: it is moved away, and the next snapshot writes another, from the database alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use common::ids::{Digest, StudyDigest};
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::{Store, StoreError, array};
use crate::clock;
use crate::files::{self, Access};

const FILE: &str = "journal-mark.json";

/// The last entry of each study's journal.
type Marks = BTreeMap<StudyDigest, i64>;

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkFile {
    marks: Marks,
    /// Of the marks in JSON: one digit that is another would refuse a database that is whole.
    digest: Digest,
}

impl Store {
    /// Notes how far the journals have come. What was there before does not matter: whoever writes here has opened the store,
    /// and is ahead of it.
    pub(super) async fn mark(&self) -> Result<(), StoreError> {
        let (path, json) = (self.mark_file(), to_json(self.journal_ends().await?)?);
        let written = tokio::task::spawn_blocking(move || {
            files::write_atomic(&path, &json, Access::Private).map_err(StoreError::file(&path))
        });
        written.await.map_err(|e| StoreError::corrupt("mark", e))?
    }

    /// Refuses a database that is behind its mark.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is; the database; the disk.
    pub(super) async fn heed_mark(&self) -> Result<(), StoreError> {
        match self.marks() {
            Ok(marks) => self.check_marks(&marks).await,
            Err(error) => {
                let to = self.quarantine(&self.mark_file(), clock::now())?;
                tracing::warn!(%error, to = %to.display(), "a damaged mark is moved away, and written anew");
                Ok(())
            }
        }
    }

    /// How far the journals had come when that was last noted; nothing where it never was.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the file cannot be read, or is not as it was written.
    pub(crate) fn marks(&self) -> Result<Marks, StoreError> {
        match fs::read(self.mark_file()) {
            Ok(json) => from_json(&json),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Marks::new()),
            Err(error) => Err(StoreError::corrupt("mark", error)),
        }
    }

    /// Whether every journal has come as far as it once had.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when one has not; the database.
    pub(crate) async fn check_marks(&self, marks: &Marks) -> Result<(), StoreError> {
        let ends = self.journal_ends().await?;
        for (study, &marked) in marks {
            let found = ends.get(study).copied().unwrap_or(0);
            if found < marked {
                let reason = format!(
                    "the journal of study {} ends at entry {found} and had come to {marked}: the database is older \
                     than what was here, or its write-ahead log is torn. To go on from the older state all the same, \
                     remove {}",
                    study.short(),
                    self.mark_file().display()
                );
                return Err(StoreError::corrupt("journal", reason));
            }
        }
        Ok(())
    }

    /// Where the mark lies.
    pub(crate) fn mark_file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    async fn journal_ends(&self) -> Result<Marks, StoreError> {
        let query = "SELECT study, max(seq) AS seq
                     FROM (SELECT study, seq FROM events UNION ALL SELECT study, seq FROM snapshots)
                     GROUP BY study";
        let rows = sqlx::query(query).fetch_all(&self.pool).await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let study: &[u8] = row.try_get("study")?;
            let seq: i64 = row.try_get("seq")?;
            Ok((StudyDigest(Digest::from_bytes(array("journal", study)?)), seq))
        };
        rows.iter().map(read).collect()
    }
}

fn to_json(marks: Marks) -> Result<Vec<u8>, StoreError> {
    let digest = digest(&marks)?;
    serde_json::to_vec(&MarkFile { marks, digest }).map_err(|e| StoreError::corrupt("mark", e))
}

fn from_json(json: &[u8]) -> Result<Marks, StoreError> {
    // Earlier versions wrote the marks alone.
    if let Ok(marks) = serde_json::from_slice(json) {
        return Ok(marks);
    }
    let MarkFile { marks, digest: written } =
        serde_json::from_slice(json).map_err(|e| StoreError::corrupt("mark", e))?;
    match digest(&marks)? == written {
        true => Ok(marks),
        false => Err(StoreError::corrupt("mark", "it is not what was written: its digest is another")),
    }
}

fn digest(marks: &Marks) -> Result<Digest, StoreError> {
    let json = serde_json::to_vec(marks).map_err(|e| StoreError::corrupt("mark", e))?;
    Ok(Digest::of(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_or_is_damaged() {
        let study = |name: &[u8]| StudyDigest(Digest::of(name));
        let marks = Marks::from([(study(b"one"), 7), (study(b"two"), 500)]);
        let json = to_json(marks.clone()).unwrap();
        assert_eq!(from_json(&json).unwrap(), marks);
        for length in 0..json.len() {
            assert!(matches!(from_json(&json[..length]), Err(StoreError::Corrupt { .. })), "{length} bytes");
        }
        for (byte, bit) in (0..json.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let mut changed = json.clone();
            changed[byte] ^= 1 << bit;
            // A digit that became a capital reads as the same.
            if let Ok(read) = from_json(&changed) {
                assert_eq!(read, marks, "byte {byte}, bit {bit}");
            }
        }
        assert_eq!(from_json(&serde_json::to_vec(&marks).unwrap()).unwrap(), marks, "of an earlier version");
    }
}
