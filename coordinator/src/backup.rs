//! A copy of everything that the coordinator keeps, and the way back: `coordinator backup TO`, `coordinator restore FROM`.
//!
//! A backup is a folder: settings, certificates and state as they lie in place, and `backup.json` with the digest of each
//! file. It is made beside a running coordinator too: files are named by their content and never change, and SQLite
//! copies the database as of one instant. Files are copied before the database and those that are new after it, so that
//! whatever the database speaks of is there. A backup appears under its name only when it is whole and synced, and is
//! restored (`restore`) only when every byte of it is what it was, into a state folder that is empty (`landing`).

mod landing;
mod restore;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::ids::Digest;
use serde::{Deserialize, Serialize};

pub use self::restore::restore;
use crate::clock;
use crate::config::Config;
use crate::files::{self, Access};
use crate::store::{ARTIFACTS, DATABASE, Entry, Kind, SPOOL, Store, StoreError};

/// The list of files, written last.
const MANIFEST: &str = "backup.json";
const FORMAT: &str = "consilium coordinator backup 1";
const SETTINGS: &str = "coordinator.toml";
const CERTS: &str = "certs";
const STATE: &str = "state";
/// Belongs in a safe; nothing after `init` reads it.
const ROOT_KEY: &str = "root.key";

/// Why there is no backup, or no way back from one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The target is there.
    #[error("{} exists", .path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The state folder to restore into has something in it.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The state folder.
        path: PathBuf,
    },
    /// A restore into it was killed while it moved its files up.
    #[error("{} has a part of what an interrupted restore was to bring", .path.display())]
    Interrupted {
        /// The state folder.
        path: PathBuf,
    },
    /// A file of the backup is in the way, with other content.
    #[error("{} exists and differs from the backup's", .path.display())]
    Differs {
        /// The file.
        path: PathBuf,
    },
    /// The folder is no backup, or not all of one.
    #[error("{}: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The settings in place are another consortium's.
    #[error("the backup is of the consortium `{found}`, the settings of `{expected}`")]
    OtherConsortium {
        /// By the settings.
        expected: String,
        /// By the backup.
        found: String,
    },
    /// The settings.
    #[error(transparent)]
    Settings(#[from] common::config::Diagnostics),
    /// The state folder, or a disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    /// What to do.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Exists { .. } => {
                "name a folder that does not exist: a backup is never written over another"
            }
            Self::NotEmpty { .. } => {
                "make sure that no coordinator runs, then move the folder away and keep it, or, if it is a mount point, what \
                 lies in it: a backup is restored into an empty one"
            }
            Self::Interrupted { .. } => {
                "remove what lies in it, `restoring` too, and restore again: all of it is of the backup"
            }
            Self::Differs { .. } => "move the file away: it is not the one that the backup was made with",
            Self::Damaged { .. } => "nothing was changed; take another backup, or copy this one again",
            Self::OtherConsortium { .. } => "name the right settings with `--config`",
            Self::Settings(_) | Self::Store(_) => return None,
        })
    }
}

/// What a backup consists of.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    made_at: String,
    consortium: String,
    schema: usize,
    files: Vec<Copied>,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copied {
    /// Below the backup's folder.
    path: String,
    bytes: u64,
    blake3: Digest,
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// When the backup was made, RFC 3339.
    pub made_at: String,
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Copies settings, certificates and state of the coordinator whose settings lie at `settings` into the new folder `to`.
///
/// # Errors
/// [`BackupError::Exists`]; the disk. Nothing is left then.
pub async fn back_up(settings: &Path, to: &Path) -> Result<Summary, BackupError> {
    if to.exists() {
        return Err(BackupError::Exists { path: to.to_owned() });
    }
    let unfinished = beside(to);
    remove_leftovers(to);
    let made = fill(settings, &unfinished).await;
    let made = made.and_then(|summary| {
        on_disk(to, fs::rename(&unfinished, to).and_then(|()| files::sync_dir(files::parent(to))))?;
        Ok(summary)
    });
    if made.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_dir_all(&unfinished);
    }
    made
}

async fn fill(settings: &Path, folder: &Path) -> Result<Summary, BackupError> {
    let config = Config::read(settings)?;
    let store = Store::inspect(&config.state).await?;
    let mut copy = Unfinished { folder, files: Vec::new(), done: BTreeSet::new() };
    on_disk(folder, files::create_private_dir(folder))?;
    let _held = hold(folder);
    copy.file(settings, Path::new(SETTINGS))?;
    copy.certificates(&config.certs)?;
    copy.contents(&store)?;
    let database = Path::new(STATE).join(DATABASE);
    store.copy_database(&folder.join(&database)).await?;
    copy.record(&database)?;
    // What has come since the first look, and may be in the database.
    copy.contents(&store)?;
    let (schema, _) = store.schema().await?;
    store.close().await;
    copy.finish(&config, schema)
}

/// A backup that is being made.
struct Unfinished<'a> {
    folder: &'a Path,
    files: Vec<Copied>,
    /// Folders that are copied.
    done: BTreeSet<PathBuf>,
}

impl Unfinished<'_> {
    fn certificates(&mut self, certs: &Path) -> Result<(), BackupError> {
        for entry in on_disk(certs, fs::read_dir(certs))? {
            let entry = on_disk(certs, entry)?;
            if entry.file_name() != ROOT_KEY && entry.path().is_file() {
                self.file(&entry.path(), &Path::new(CERTS).join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Artifacts, whole updates and moments that are not copied yet.
    fn contents(&mut self, store: &Store) -> Result<(), BackupError> {
        let state = self.folder.join(STATE);
        for part in [ARTIFACTS, SPOOL] {
            on_disk(&state, files::create_private_dir(&state.join(part)))?;
        }
        let entries = store.artifacts().entries()?.into_iter().chain(store.spool().entries()?);
        for Entry { path, kind } in entries {
            if matches!(kind, Kind::Artifact(_) | Kind::Update(_)) && !self.done.contains(&path) {
                self.folder_of_state(store.dir(), &path)?;
                self.done.insert(path);
            }
        }
        for path in store.server_states().files()? {
            if self.done.insert(path.clone()) {
                self.moment(store.dir(), &path)?;
            }
        }
        Ok(())
    }

    /// A file of what a strategy keeps between rounds.
    fn moment(&mut self, state: &Path, from: &Path) -> Result<(), BackupError> {
        let inside = from.strip_prefix(state).unwrap_or(from);
        match self.file(from, &Path::new(STATE).join(inside)) {
            // Two rounds have ended meanwhile: nothing needs it any more.
            Err(BackupError::Store(StoreError::File { source, .. }))
                if source.kind() == io::ErrorKind::NotFound && !from.exists() =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn folder_of_state(&mut self, state: &Path, from: &Path) -> Result<(), BackupError> {
        let inside = from.strip_prefix(state).unwrap_or(from);
        let (to, before) = (Path::new(STATE).join(inside), self.files.len());
        let copied =
            ["manifest.json", "data"].iter().try_for_each(|name| self.file(&from.join(name), &to.join(name)));
        // An update whose round has ended meanwhile, so that its file may be another's by now: its model is copied in its place.
        if !from.exists() {
            self.files.truncate(before);
            return on_disk(&to, fs::remove_dir_all(self.folder.join(&to)));
        }
        copied
    }

    fn file(&mut self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let target = self.folder.join(to);
        let parent = files::parent(&target);
        on_disk(parent, files::create_private_dir(parent))?;
        let (bytes, blake3) = copy_file(from, &target)?;
        self.files.push(Copied { path: text(to), bytes, blake3 });
        Ok(())
    }

    /// Notes a file that somebody else wrote.
    fn record(&mut self, at: &Path) -> Result<(), BackupError> {
        let path = self.folder.join(at);
        let (bytes, blake3) = on_disk(&path, digest(&path))?;
        on_disk(&path, fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))?;
        on_disk(&path, File::open(&path).and_then(|file| file.sync_all()))?;
        self.files.push(Copied { path: text(at), bytes, blake3 });
        Ok(())
    }

    fn finish(self, config: &Config, schema: usize) -> Result<Summary, BackupError> {
        let made_at = clock::rfc3339(clock::now());
        let bytes = self.files.iter().map(|file| file.bytes).sum();
        let summary = Summary { made_at: made_at.clone(), files: self.files.len(), bytes };
        let consortium = config.consortium.clone();
        let manifest = Manifest { format: FORMAT.to_owned(), made_at, consortium, schema, files: self.files };
        let path = self.folder.join(MANIFEST);
        let json = serde_json::to_vec_pretty(&manifest).map_err(|error| damaged(&path, error))?;
        on_disk(&path, files::write_atomic(&path, &json, Access::Private))?;
        on_disk(self.folder, sync_folders(self.folder))?;
        Ok(summary)
    }
}

/// Copies a file, synced and for its owner alone; its size and digest.
fn copy_file(from: &Path, to: &Path) -> Result<(u64, Digest), BackupError> {
    let mut source = on_disk(from, File::open(from))?;
    let mut target = on_disk(to, OpenOptions::new().write(true).create_new(true).mode(0o600).open(to))?;
    let copied = pass(&mut source, |bytes| target.write_all(bytes));
    let copied = on_disk(to, copied)?;
    on_disk(to, target.sync_all())?;
    Ok(copied)
}

/// Size and digest of a file.
fn digest(path: &Path) -> io::Result<(u64, Digest)> {
    pass(&mut File::open(path)?, |_| Ok(()))
}

/// Reads to the end, handing on each piece; size and digest.
fn pass(source: &mut File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(u64, Digest)> {
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, Digest::from_bytes(*hasher.finalize().as_bytes())));
        }
        let piece = &buffer[..read];
        hasher.update(piece);
        take(piece)?;
        bytes += read as u64;
    }
}

/// Makes a folder and all in it durable, from the inside out.
fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    files::sync_dir(folder)
}

/// Where what is to be `path` is filled.
fn beside(path: &Path) -> PathBuf {
    let mut name = unfinished(path);
    name.push(std::process::id().to_string());
    path.with_file_name(name)
}

/// How the names begin of what is to be `path`, whichever process fills it.
fn unfinished(path: &Path) -> OsString {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".unfinished-");
    name
}

/// Locks a folder that is being filled. The kernel releases it with the process, however that ends: what nobody holds is
/// left over.
fn hold(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    folder.try_lock().ok()?;
    Some(folder)
}

/// Removes what killed tries to make `path` have left beside it, which holds keys. Best effort: it is in nobody's way.
fn remove_leftovers(path: &Path) {
    let Ok(entries) = fs::read_dir(files::parent(path)) else { return };
    let begin = unfinished(path);
    for entry in entries.flatten() {
        let is_unfinished = entry.file_name().as_encoded_bytes().starts_with(begin.as_encoded_bytes());
        if is_unfinished && hold(&entry.path()).is_some() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn damaged(path: &Path, reason: impl ToString) -> BackupError {
    BackupError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

fn on_disk<T>(path: &Path, result: io::Result<T>) -> Result<T, BackupError> {
    result.map_err(|source| StoreError::File { path: path.to_owned(), source }.into())
}

#[cfg(test)]
mod tests;
