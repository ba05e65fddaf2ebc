//! What a machine leaves on disk: a snapshot at a durable point and the events since.
//!
//! Recovery is `restore(snapshot)`, then the journalled events at their recorded times, then `outstanding(now)`. The
//! machines are deterministic, so that gives the state at the moment of the crash. Where the bytes lie is the driver's.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// One event as it was fed to a machine. Serialisable because a journal line is exactly this, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<E> {
    /// The `now` that the event was fed with.
    pub at: Timestamp,
    /// What happened.
    pub event: E,
}

/// A machine's whole memory at one instant, with the version of its format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot<S> {
    /// Format of `state`; a machine reads the versions it names and refuses others.
    pub version: u32,
    /// The memory.
    pub state: S,
}

/// Why a snapshot cannot be continued from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version of this program.
    #[error("snapshot format {got}: this program reads format {expected}")]
    Version {
        /// The format that this program reads.
        expected: u32,
        /// The format of the snapshot.
        got: u32,
    },
    /// Taken of another study, site or role than the machine is to continue.
    #[error("the snapshot is of {got}, not of {expected}")]
    Identity {
        /// What was to be continued.
        expected: String,
        /// What the snapshot is of.
        got: String,
    },
}

impl<S> Snapshot<S> {
    /// The state, if it was written in format `expected`.
    ///
    /// # Errors
    /// [`RestoreError::Version`] otherwise.
    pub fn open(self, expected: u32) -> Result<S, RestoreError> {
        if self.version != expected {
            return Err(RestoreError::Version { expected, got: self.version });
        }
        Ok(self.state)
    }
}
