//! The lock that keeps a second process out of a folder.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::files::FileError;

/// The file's name.
const LOCK: &str = "lock";
/// How long another process may have the lock before the folder is said to be in use. `site-agent status` has it for an
/// instant, to see whether an agent runs: one that starts just then is not to end over it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// Another agent works with this state folder.
#[derive(Debug, thiserror::Error)]
#[error("another site-agent runs with the state folder {0}")]
pub struct InUse(String);

/// Keeps a second process out of a folder as long as the returned file is open. Does not wait: for a folder whose lock nobody
/// takes for an instant.
///
/// # Errors
/// [`InUse`], or [`FileError`].
pub(super) fn lock_folder(folder: &Path) -> anyhow::Result<Flock<File>> {
    try_lock(folder, FlockArg::LockExclusiveNonblock)
}

/// As [`lock_folder`], and again after each `pause` until patience is at its end: for a folder that others look at.
///
/// # Errors
/// [`InUse`], or [`FileError`].
pub(super) fn lock_patiently(folder: &Path, mut pause: impl FnMut(Duration)) -> anyhow::Result<Flock<File>> {
    let mut waited = Duration::ZERO;
    loop {
        match lock_folder(folder) {
            Err(error) if error.is::<InUse>() && waited < PATIENCE => {
                pause(RETRY);
                waited += RETRY;
            }
            taken => return taken,
        }
    }
}

/// Whether a process keeps others out; also where that cannot be told. Who looks shares the lock for that instant with others
/// who look, is not taken for one that keeps them out, and leaves nothing behind.
pub(super) fn is_locked(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(file) => Flock::lock(file, FlockArg::LockSharedNonblock).is_err(),
        // Whoever keeps others out makes it first.
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

fn try_lock(folder: &Path, how: FlockArg) -> anyhow::Result<Flock<File>> {
    let path = folder.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|source| FileError::new("write", &path, source))?;
    let locked = Flock::lock(file, how);
    locked.map_err(|_| InUse(folder.display().to_string()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_starts_while_its_status_is_asked_for_waits_for_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let mut looks = Some(try_lock(folder.path(), FlockArg::LockSharedNonblock).unwrap());
        let taken = lock_patiently(folder.path(), |_| drop(looks.take()));
        assert!(taken.is_ok());
        assert!(looks.is_none(), "it was let go while the agent waited");
    }

    #[test]
    fn a_second_agent_is_refused_after_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let _first = lock_folder(folder.path()).unwrap();
        let mut waited = Duration::ZERO;
        let refused = lock_patiently(folder.path(), |pause| waited += pause).unwrap_err();
        assert_eq!(waited, PATIENCE);
        assert!(refused.is::<InUse>());
        let words = format!("another site-agent runs with the state folder {}", folder.path().display());
        assert_eq!(refused.to_string(), words);
    }

    #[test]
    fn who_asks_for_the_status_is_not_taken_for_an_agent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_locked(folder.path()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing behind");
        let looks = try_lock(folder.path(), FlockArg::LockSharedNonblock).unwrap();
        assert!(!is_locked(folder.path()));
        drop(looks);
        let _agent = lock_folder(folder.path()).unwrap();
        assert!(is_locked(folder.path()));
    }
}
