//! What the coordinator keeps: a SQLite database for facts and files for tensors.
//!
//! Everything here returns only once it is durable (WAL with `synchronous = FULL`; files synced with their folder), so
//! that the driver may announce what a call returned. One process at a time: the folder is locked while it is open.
//! Nothing here decides anything about rounds; the journal's content is opaque text.

mod artifacts;
mod lock;
mod results;
mod schema;
mod server_state;
mod sites;
mod spool;
mod studies;

use std::io;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub use artifacts::{ArtifactFile, ArtifactWriter, Artifacts};
pub use results::{LossPoint, Receipt, RoundRecord, StoredReport, Traffic};
pub use server_state::{ServerState, ServerStateWriter, ServerStates};
pub use sites::{CertificateRecord, InviteRefusal, InviteTerms, SiteRecord, SiteStatus};
pub use spool::{Spool, SpooledUpdate};
pub use studies::{Journal, JournalEntry, StoredManifest, StoredStudy};

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another process", .path.display())]
    Locked {
        /// The state folder.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error("{} has schema version {found}; this program knows up to {known}", .path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// Our last version.
        known: usize,
    },
    /// `init` was not run.
    #[error("{} holds no coordinator's state", .path.display())]
    Missing {
        /// The state folder.
        path: PathBuf,
    },
    /// SQLite says no.
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// The file system says no.
    #[error("{}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// What is stored is not what was stored.
    #[error("{what} in the store: {reason}")]
    Corrupt {
        /// Which kind of record.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl StoreError {
    /// Stable short name of the state that this error puts the coordinator in.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "store-locked",
            Self::Newer { .. } => "store-newer",
            Self::Missing { .. } => "store-missing",
            Self::Corrupt { .. } => "store-corrupt",
            Self::File { source, .. } if disk_is_full(source) => "disk-full",
            Self::Database(sqlx::Error::Database(e)) if e.code().as_deref() == Some(SQLITE_FULL) => {
                "disk-full"
            }
            Self::File { .. } | Self::Database(_) => "disk-error",
        }
    }

    pub(crate) fn corrupt(what: &'static str, reason: impl ToString) -> Self {
        Self::Corrupt { what, reason: reason.to_string() }
    }

    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

const SQLITE_FULL: &str = "13";

fn disk_is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The state folder, open and locked. Cheap to clone; the lock goes with the last clone.
#[derive(Clone)]
pub struct Store {
    pool: sqlx::SqlitePool,
    artifacts: Artifacts,
    spool: Spool,
    server_states: ServerStates,
    _lock: std::sync::Arc<lock::StoreLock>,
}

impl Store {
    /// Makes a store in `dir`, or opens the one that is there.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`], or the disk.
    pub async fn create(dir: &Path) -> Result<Self, StoreError> {
        crate::files::create_private_dir(dir).map_err(StoreError::file(dir))?;
        Self::open_database(dir, true).await
    }

    /// Opens the store that [`Store::create`] made.
    ///
    /// # Errors
    /// [`StoreError::Missing`] before `init`; [`StoreError::Locked`], [`StoreError::Newer`], or the disk.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        if !dir.join(DATABASE).exists() {
            return Err(StoreError::Missing { path: dir.to_owned() });
        }
        Self::open_database(dir, false).await
    }

    async fn open_database(dir: &Path, create: bool) -> Result<Self, StoreError> {
        let lock = lock::StoreLock::take(dir)?;
        let path = dir.join(DATABASE);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true);
        // One connection: writers would wait for each other in any case, and so no read sees half a change.
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        schema::migrate(&mut *pool.acquire().await?, &path, schema::STEPS).await?;
        crate::files::sync_dir(dir).map_err(StoreError::file(dir))?;
        Ok(Self {
            pool,
            artifacts: Artifacts::open(&dir.join("artifacts"))?,
            spool: Spool::open(&dir.join("spool"))?,
            server_states: ServerStates::open(&dir.join("server-state"))?,
            _lock: std::sync::Arc::new(lock),
        })
    }

    /// Models, embeddings: what is published.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Updates on their way in.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// What the server keeps beside a model from round to round.
    pub fn server_states(&self) -> &ServerStates {
        &self.server_states
    }

    /// Closes the database, so that its write-ahead log is folded in.
    pub async fn close(self) {
        self.pool.close().await;
    }
}

const DATABASE: &str = "coordinator.db";

/// Reads `N` bytes out of a blob column.
fn array<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(what, format!("{} bytes instead of {N}", bytes.len())))
}

/// Reads a name that was checked when it was written.
fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|e| StoreError::corrupt(what, e))
}

/// Reads a count or time that was not negative when it was written.
fn unsigned<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| StoreError::corrupt(what, format!("{value} is out of range")))
}

/// SQLite's integers are signed: times and sizes beyond 2^63 saturate.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
