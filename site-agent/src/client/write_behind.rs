//! Has the disk write a large file while more of it is computed, so that the sync at its end is short.
//!
//! What [`link::write_back`] is to a transfer, for a thread that may block; and for what nobody else has: a download is not synced
//! at all.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};

/// Bytes after which a sync begins.
const EVERY: u64 = 16 << 20;

/// Syncs of one file that is being written, one at a time, on a thread of their own.
///
/// A disk tells of a failed write once, to whoever syncs first: so [`WriteBehind::settle`] must be asked before the last sync
/// is believed.
#[derive(Debug, Default)]
pub(super) struct WriteBehind {
    unsynced: u64,
    under_way: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBehind {
    /// Notes that so many bytes were written to `file`; begins a sync when it is time and none is under way.
    ///
    /// # Errors
    /// What the sync before said, or that none could begin.
    pub(super) fn wrote(&mut self, bytes: u64, file: &File) -> io::Result<()> {
        self.unsynced += bytes;
        let busy = self.under_way.as_ref().is_some_and(|under_way| !under_way.is_finished());
        if self.unsynced < EVERY || busy {
            return Ok(());
        }
        self.settle()?;
        self.unsynced = 0;
        let file = file.try_clone()?;
        let sync = thread::Builder::new().name("sync".to_owned()).spawn(move || file.sync_data());
        self.under_way = Some(sync?);
        Ok(())
    }

    /// Waits for the sync under way.
    ///
    /// # Errors
    /// What it said: then the file must not be believed.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match self.under_way.take() {
            Some(under_way) => {
                under_way.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs panicked")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_sync_begins_after_enough_bytes() {
        let file = tempfile::tempfile().unwrap();
        let mut behind = WriteBehind::default();
        behind.wrote(EVERY - 1, &file).unwrap();
        assert!(behind.under_way.is_none());
        behind.wrote(1, &file).unwrap();
        assert!(behind.under_way.is_some());
        behind.settle().unwrap();
        behind.wrote(1, &file).unwrap();
        assert!(behind.under_way.is_none(), "counted anew");
    }

    #[test]
    fn what_a_sync_said_is_not_lost() {
        // A pipe cannot be synced.
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(OwnedFd::from(writer));
        let mut behind = WriteBehind::default();
        behind.wrote(EVERY, &file).unwrap();
        assert!(behind.settle().is_err());
    }
}
