//! Whether the disk takes what it is given.
//!
//! Whoever writes tells here that it failed; the driver hears of it, tells the operator once, and tries the disk until it
//! works again. Nothing is decided here, and nothing is lost: what was not written was not acknowledged.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Store, StoreError};
use crate::files;

/// Size of the trial: a few chunks of an update, so that a disk with room for a line alone is not called well.
const TRIAL_BYTES: usize = 4 << 20;

/// Tells whoever listens of writes that the disk refused. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<Option<Failing>>>);

/// A write that the disk refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// [`StoreError::code`].
    pub code: &'static str,
    /// In words.
    pub words: String,
}

impl Health {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Passes `result` on; a disk that is full or read-only is told about.
    pub(super) fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && super::pause_name(error.code()).is_some()
        {
            let failing = Failing { code: error.code(), words: super::causes(error) };
            self.0.send_replace(Some(failing));
        }
        result
    }

    /// To hear of the next failure.
    pub fn listen(&self) -> watch::Receiver<Option<Failing>> {
        self.0.subscribe()
    }
}

impl Store {
    /// To hear of writes that fail elsewhere.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether the disk takes a file of some size again. Blocks; leaves nothing behind.
    ///
    /// # Errors
    /// What the disk says.
    pub fn try_disk(&self) -> Result<(), StoreError> {
        let path = self.dir.join("trial");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&path)?;
            file.write_all(&vec![0x5a; TRIAL_BYTES])?;
            file.sync_all()
        };
        let written = write().map_err(StoreError::file(&path));
        // Best effort, also when it is half there: it would take the space that is wanted.
        let _ = std::fs::remove_file(&path);
        written
    }

    /// As [`name_failure`], of this store.
    pub fn name_failure(&self, error: &StoreError) -> &'static str {
        name_failure(&self.dir, error)
    }
}

/// What a failure in the state folder `dir` is called: by its own word, or, where the database does not know, by what the disk says.
pub fn name_failure(dir: &Path, error: &StoreError) -> &'static str {
    let code = error.code();
    if code != super::DISK_ERROR {
        return code;
    }
    match files::space(dir) {
        Ok(space) if space.read_only => super::DISK_READ_ONLY,
        Ok(space) if space.available == 0 => super::DISK_FULL,
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_told_to_who_listens_and_other_failures_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        let heard = store.health().listen();
        let refuse = |kind| Err::<(), _>(StoreError::file(Path::new("x"))(io::Error::from(kind)));
        assert!(store.health().note(refuse(io::ErrorKind::PermissionDenied)).is_err());
        assert_eq!(*heard.borrow(), None);
        assert!(store.health().note(refuse(io::ErrorKind::StorageFull)).is_err());
        assert_eq!(heard.borrow().as_ref().map(|failing| failing.code), Some("disk-full"));
    }

    #[tokio::test]
    async fn a_disk_that_works_is_tried_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        store.try_disk().unwrap();
        assert!(!dir.path().join("trial").exists());
    }
}
