//! How far each journal had come, in a file beside the database.
//!
//! SQLite drops what it cannot read of a torn write-ahead log, and a database without its log is a valid older one: either
//! would start as if the last rounds had never been. The mark is written after each snapshot; a database that is behind it
//! is refused. A restored backup has no mark: there, being behind is what was asked for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::ids::StudyDigest;
use sqlx::Row;

use super::studies::bytes;
use super::{Store, StoreError};
use crate::files::{self, Access};

const FILE: &str = "journal-mark.json";

type Marks = BTreeMap<StudyDigest, i64>;

impl Store {
    /// Notes that the journal of `study` has come to `seq`.
    pub(super) async fn mark(&self, study: StudyDigest, seq: i64) -> Result<(), StoreError> {
        let path = path(&self.dir);
        let written = tokio::task::spawn_blocking(move || {
            let mut marks = read(&path)?;
            marks.insert(study, seq);
            let json = serde_json::to_vec(&marks).map_err(|e| StoreError::corrupt("mark", e))?;
            files::write_atomic(&path, &json, Access::Private).map_err(StoreError::file(&path))
        });
        written.await.map_err(|e| StoreError::corrupt("mark", e))?
    }

    /// Whether every journal has come as far as it once had.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when one has not; the database.
    pub async fn check_mark(&self) -> Result<(), StoreError> {
        for (study, marked) in read(&path(&self.dir))? {
            let row = sqlx::query(
                "SELECT max((SELECT coalesce(max(seq), 0) FROM events WHERE study = ?1),
                            (SELECT coalesce(max(seq), 0) FROM snapshots WHERE study = ?1))",
            )
            .bind(bytes(&study))
            .fetch_one(&self.pool)
            .await?;
            let found: i64 = row.try_get(0)?;
            if found < marked {
                let reason = format!(
                    "the journal of study {} ends at entry {found} and had come to {marked}: the database is older \
                     than what was here, or its write-ahead log is torn. To go on from the older state all the same, \
                     remove {}",
                    study.short(),
                    path(&self.dir).display()
                );
                return Err(StoreError::corrupt("journal", reason));
            }
        }
        Ok(())
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn read(path: &Path) -> Result<Marks, StoreError> {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Marks::new()),
        Err(error) => return Err(StoreError::file(path)(error)),
    };
    serde_json::from_slice(&json)
        .map_err(|e| StoreError::corrupt("mark", format!("{}: {e}; remove it", path.display())))
}
