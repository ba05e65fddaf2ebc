//! One process at a time: an advisory lock that the kernel releases with the process, however it ends.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::StoreError;

/// Held while the store is open.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock of `dir` without waiting.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let file = File::create(&path).map_err(StoreError::file(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(StoreError::File { path, source }),
        }
    }
}
