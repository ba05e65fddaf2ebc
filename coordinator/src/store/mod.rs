//! What the coordinator keeps: a SQLite database for facts and files for tensors.
//!
//! Everything here returns only once it is durable (WAL with `synchronous = FULL`; files synced with their folder), so
//! that the driver may announce what a call returned. One process at a time: the folder is locked while it is open.
//! Nothing here decides anything about rounds; the journal's content is opaque text.

mod artifacts;
mod health;
mod lock;
mod mark;
mod results;
mod returned;
mod schema;
mod scrub;
mod server_state;
mod sites;
mod spool;
mod studies;

use std::io;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub use artifacts::{ArtifactFile, ArtifactWriter, Artifacts};
pub use health::{Failing, Health, name_failure};
pub use lock::StoreLock;
pub use results::{LossMean, LossPoint, Receipt, RoundRecord, SignedRecord, StoredReport, Traffic};
pub use returned::ReturnedArtifact;
pub use scrub::{Entry, Kind, MomentsName, QUARANTINE, UpdateName};
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
    /// What lies there is not what was opened.
    #[error("{} was moved away or replaced while it was in use", .path.display())]
    Displaced {
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
            Self::Displaced { .. } => "store-displaced",
            Self::Newer { .. } => "store-newer",
            Self::Missing { .. } => "store-missing",
            Self::Corrupt { .. } => CORRUPT,
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DISK_FULL,
                io::ErrorKind::ReadOnlyFilesystem => DISK_READ_ONLY,
                _ => DISK_ERROR,
            },
            Self::Database(error) => sqlite_name(sqlite_code(error)),
        }
    }

    /// Whether the database could not be read, and says nothing of what is in it.
    pub fn is_out_of_reach(&self) -> bool {
        const PERMISSION: i32 = 3;
        const BUSY: i32 = 5;
        const LOCKED: i32 = 6;
        const NO_MEMORY: i32 = 7;
        const IO_ERROR: i32 = 10;
        const CANNOT_OPEN: i32 = 14;
        let Self::Database(error) = self else { return false };
        let kind = sqlite_code(error).map(|code| code & 0xff);
        matches!(kind, Some(PERMISSION | BUSY | LOCKED | NO_MEMORY | IO_ERROR | CANNOT_OPEN))
    }

    /// Whether the bytes are gone or changed, and not only out of reach for now.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } => true,
            Self::File { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
            }
            _ => false,
        }
    }

    /// What a site may know of it: nothing of ours, but whether it is worth waiting for.
    pub fn words_for_sites(&self) -> &'static str {
        words_for_sites(self.code())
    }

    pub(crate) fn corrupt(what: &'static str, reason: impl ToString) -> Self {
        Self::Corrupt { what, reason: reason.to_string() }
    }

    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Nothing more fits.
pub const DISK_FULL: &str = "disk-full";
/// Nothing can be written.
pub const DISK_READ_ONLY: &str = "disk-read-only";
/// The disk fails otherwise.
const DISK_ERROR: &str = "disk-error";
/// What is stored is not what was stored.
pub const CORRUPT: &str = "store-corrupt";

/// The state in which a coordinator with this failure waits, and which passes by itself: `paused: disk full`.
pub fn pause_name(code: &str) -> Option<&'static str> {
    match code {
        DISK_FULL => Some("disk full"),
        DISK_READ_ONLY => Some("disk read-only"),
        _ => None,
    }
}

/// Words for a site that is refused because of this failure.
pub fn words_for_sites(code: &str) -> &'static str {
    match code {
        DISK_FULL => "the coordinator's disk is full: try again later",
        DISK_READ_ONLY => "the coordinator's disk is read-only: try again later",
        _ => "the coordinator's store fails: try again later",
    }
}

/// An error and all that caused it, in a line.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // A transparent error says the same as its cause.
        if !text.contains(&words) {
            text.push_str(&format!(": {words}"));
        }
        source = cause.source();
    }
    text
}

fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let sqlx::Error::Database(error) = error else { return None };
    error.code().and_then(|code| code.parse().ok())
}

/// SQLite's result codes, as the C interface numbers them. The low byte is the kind, the rest says where it was met.
fn sqlite_name(code: Option<i32>) -> &'static str {
    /// No room for the memory that readers and writers of a write-ahead log share.
    const IOERR_SHMSIZE: i32 = 10 | (19 << 8);
    const READ_ONLY: i32 = 8;
    const CORRUPT_DATABASE: i32 = 11;
    const FULL: i32 = 13;
    const NOT_A_DATABASE: i32 = 26;
    match (code, code.map(|code| code & 0xff)) {
        (Some(IOERR_SHMSIZE), _) | (_, Some(FULL)) => DISK_FULL,
        (_, Some(READ_ONLY)) => DISK_READ_ONLY,
        (_, Some(CORRUPT_DATABASE | NOT_A_DATABASE)) => CORRUPT,
        _ => DISK_ERROR,
    }
}

/// The state folder, open and locked. Cheap to clone; the lock goes with the last clone.
#[derive(Clone)]
pub struct Store {
    dir: PathBuf,
    pool: sqlx::SqlitePool,
    artifacts: Artifacts,
    spool: Spool,
    server_states: ServerStates,
    health: Health,
    /// `None` where it is looked at while another may write.
    lock: Option<std::sync::Arc<StoreLock>>,
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
    /// [`StoreError::Missing`] before `init`; [`StoreError::Locked`], [`StoreError::Newer`], [`StoreError::Corrupt`] when
    /// the database is older than what was here; or the disk.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::must_be_in(dir)?;
        Self::open_database(dir, false).await
    }

    /// Whether `dir` holds the state of a coordinator.
    ///
    /// # Errors
    /// [`StoreError::File`] when it cannot be looked at, as by another user than the coordinator's.
    pub fn is_in(dir: &Path) -> Result<bool, StoreError> {
        dir.join(DATABASE).try_exists().map_err(StoreError::file(dir))
    }

    /// # Errors
    /// [`StoreError::Missing`], or that `dir` cannot be looked at.
    pub(crate) fn must_be_in(dir: &Path) -> Result<(), StoreError> {
        if Self::is_in(dir)? { Ok(()) } else { Err(StoreError::Missing { path: dir.to_owned() }) }
    }

    async fn open_database(dir: &Path, create: bool) -> Result<Self, StoreError> {
        let lock = StoreLock::take(dir).await?;
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
        let health = Health::new();
        let store = Self {
            dir: dir.to_owned(),
            pool,
            artifacts: Artifacts::open(&dir.join(ARTIFACTS), health.clone())?,
            spool: Spool::open(&dir.join(SPOOL), health.clone())?,
            server_states: ServerStates::open(&dir.join(SERVER_STATE), health.clone())?,
            health,
            lock: Some(std::sync::Arc::new(lock)),
        };
        store.heed_mark().await?;
        Ok(store)
    }

    /// Opens the store to look at it, also beside a coordinator that runs, and on a disk that takes nothing: nothing of ours is made,
    /// brought up or removed.
    ///
    /// # Errors
    /// [`StoreError::Missing`] before `init`; the database.
    pub async fn inspect(dir: &Path) -> Result<Self, StoreError> {
        Self::must_be_in(dir)?;
        let refused = match Self::look(dir, None).await {
            Err(refused) if !has_log(dir) => refused,
            looked => return looked,
        };
        match StoreLock::try_take_to_look(dir) {
            Ok(lock) => Self::look(dir, Some(lock)).await,
            Err(_) => Err(refused),
        }
    }

    /// As [`Store::inspect`], for who keeps all others out.
    ///
    /// # Errors
    /// The same.
    pub async fn inspect_alone(dir: &Path, lock: StoreLock) -> Result<Self, StoreError> {
        Self::must_be_in(dir)?;
        Self::look(dir, Some(lock)).await
    }

    async fn look(dir: &Path, lock: Option<StoreLock>) -> Result<Self, StoreError> {
        // Whoever stopped in order left no log. To read its database, SQLite would make one, which a disk that is full or read-only
        // does not take; but where nobody writes, all of it is in the one file.
        let is_one_file = lock.is_some() && !has_log(dir);
        let options =
            SqliteConnectOptions::new().filename(dir.join(DATABASE)).read_only(true).immutable(is_one_file);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        // It reads nothing before it is asked.
        schema::version(&mut *pool.acquire().await?).await?;
        let health = Health::new();
        Ok(Self {
            dir: dir.to_owned(),
            pool,
            artifacts: Artifacts::at(&dir.join(ARTIFACTS), health.clone()),
            spool: Spool::at(&dir.join(SPOOL), health.clone()),
            server_states: ServerStates::at(&dir.join(SERVER_STATE), health.clone()),
            health,
            lock: lock.map(std::sync::Arc::new),
        })
    }

    /// Writes the database, as it is at this instant, into a new file.
    ///
    /// # Errors
    /// The database; also when the file is there.
    pub async fn copy_database(&self, to: &Path) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        schema::back_up(&mut connection, to).await
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

    /// Waits until the state folder is not the one that was opened. To go on would be to write into what took its place.
    pub async fn displaced(&self) -> StoreError {
        match &self.lock {
            Some(lock) => lock.displaced().await,
            None => std::future::pending().await,
        }
        StoreError::Displaced { path: self.dir.clone() }
    }

    /// Closes the database, so that its write-ahead log is folded in.
    pub async fn close(self) {
        // The pool's `close` misses a connection that is on its way back to the pool: it would be folded in by a thread that
        // nobody waits for, and cut short where the process ends first.
        while self.pool.size() > 0 {
            self.pool.close().await;
            tokio::task::yield_now().await;
        }
    }
}

/// File of the database in the state folder.
pub const DATABASE: &str = "coordinator.db";
/// Folder of models and embeddings in the state folder.
pub const ARTIFACTS: &str = "artifacts";
/// Folder of updates in the state folder.
pub const SPOOL: &str = "spool";
/// Folder of what strategies keep between rounds, below the state folder.
pub const SERVER_STATE: &str = "server-state";

/// Whether the database has a write-ahead log beside it with something in it, as far as that can be known.
fn has_log(dir: &Path) -> bool {
    match std::fs::metadata(dir.join(format!("{DATABASE}-wal"))) {
        Ok(log) => log.len() > 0,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The last schema version that this program knows.
pub fn newest_schema() -> usize {
    schema::STEPS.len()
}

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
