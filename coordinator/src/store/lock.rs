//! One process at a time: an advisory lock that the kernel releases with the process, however it ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{StoreError, pause_name};

/// The locked file, in the state folder.
const FILE: &str = "lock";
/// How long another process may have the lock before the store is said to be in use. While no coordinator runs, a command
/// such as `status` opens the store itself, for an instant: a coordinator that starts just then is not to end over it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);
/// How often [`StoreLock::displaced`] looks.
const LOOK: Duration = Duration::from_secs(1);

/// Held while the store is open.
#[derive(Debug)]
pub struct StoreLock {
    path: PathBuf,
    file: File,
}

impl StoreLock {
    /// Takes the lock of `dir`. Waits about a second for a process that has it for an instant.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process keeps it.
    pub async fn take(dir: &Path) -> Result<Self, StoreError> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match Self::try_take(dir) {
                Err(StoreError::Locked { .. }) if Instant::now() < give_up => sleep(RETRY).await,
                taken => return taken,
            }
        }
    }

    /// Takes the lock of `dir` without waiting.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it.
    pub fn try_take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let file = File::create(&path).map_err(StoreError::file(&path))?;
        Self::lock(dir, path, file)
    }

    /// As [`StoreLock::try_take`], for who only looks: also on a disk that takes nothing, where the file of an earlier lock is enough.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it; the disk.
    pub fn try_take_to_look(dir: &Path) -> Result<Self, StoreError> {
        let refused = match Self::try_take(dir) {
            Err(refused) if pause_name(refused.code()).is_some() => refused,
            taken => return taken,
        };
        let path = dir.join(FILE);
        let Ok(file) = File::open(&path) else { return Err(refused) };
        match Self::lock(dir, path, file) {
            // Some network disks lock no file that was opened to be read.
            Err(StoreError::File { .. }) => Err(refused),
            locked => locked,
        }
    }

    fn lock(dir: &Path, path: PathBuf, file: File) -> Result<Self, StoreError> {
        match file.try_lock() {
            Ok(()) => Ok(Self { path, file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(StoreError::File { path, source }),
        }
    }

    /// Whether a process has the lock of `dir`, as far as that can be known. Makes nothing.
    pub fn is_held(dir: &Path) -> bool {
        let opened = File::options().write(true).open(dir.join(FILE));
        opened.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Waits until another file, or none, lies where this one was: the folder was moved away under us, and whoever opens what is in
    /// its place is not kept out.
    pub async fn displaced(&self) {
        while self.is_in_place() {
            sleep(LOOK).await;
        }
    }

    fn is_in_place(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
            (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
            (Err(_), Ok(_)) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_is_let_go_within_a_second_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let held = StoreLock::try_take(dir.path()).unwrap();
        let let_go = async {
            sleep(PATIENCE / 2).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(StoreLock::take(dir.path()), let_go);
        assert!(taken.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_whose_folder_is_moved_away_or_replaced_is_displaced() {
        let dir = tempfile::tempdir().unwrap();
        let [state, away] = ["state", "away"].map(|name| dir.path().join(name));
        fs::create_dir(&state).unwrap();
        let held = StoreLock::try_take(&state).unwrap();
        assert!(timeout(10 * LOOK, held.displaced()).await.is_err(), "nobody touched it");
        fs::rename(&state, &away).unwrap();
        held.displaced().await;
        fs::create_dir(&state).unwrap();
        let _another = StoreLock::try_take(&state).unwrap();
        held.displaced().await;
        fs::remove_dir_all(&state).unwrap();
        fs::rename(&away, &state).unwrap();
        assert!(timeout(10 * LOOK, held.displaced()).await.is_err(), "put back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_stays_is_refused_after_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let _held = StoreLock::try_take(dir.path()).unwrap();
        let begun = Instant::now();
        let refused = StoreLock::take(dir.path()).await.unwrap_err();
        assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()));
        assert_eq!(refused.code(), "store-locked");
        assert_eq!(refused.to_string(), format!("{} is in use by another process", dir.path().display()));
    }
}
