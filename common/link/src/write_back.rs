//! Has the disk write what came while more arrives, so that the sync at the end is short: of a transfer ([`WriteBack`]), or
//! of a file that a thread writes ([`BlockingWriteBack`]).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes after which a sync begins.
const EVERY: u64 = 16 << 20;

/// Syncs of one file that is being received, one at a time, on a blocking thread.
///
/// A disk tells of a failed write once, to whoever syncs first: so what each sync said is told to the caller, and
/// [`WriteBack::settle`] must be asked before the last sync is believed.
#[derive(Debug, Default)]
pub struct WriteBack {
    unsynced: u64,
    under_way: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBack {
    /// Notes that so many bytes were written to `data`; begins a sync when it is time and none is under way.
    ///
    /// # Errors
    /// What the sync before said.
    pub async fn wrote(&mut self, bytes: u64, data: &Arc<File>) -> io::Result<()> {
        self.unsynced += bytes;
        let busy = self.under_way.as_ref().is_some_and(|under_way| !under_way.is_finished());
        if self.unsynced < EVERY || busy {
            return Ok(());
        }
        self.settle().await?;
        self.unsynced = 0;
        let data = data.clone();
        self.under_way = Some(spawn_blocking(move || data.sync_data()));
        Ok(())
    }

    /// Waits for the sync under way.
    ///
    /// # Errors
    /// What it said: then the file must not be believed.
    pub async fn settle(&mut self) -> io::Result<()> {
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        // It stays until it was heard: who stops waiting loses nothing of it.
        let said = under_way.await;
        self.under_way = None;
        said?
    }
}

/// As [`WriteBack`], for a file that is written where blocking is allowed: a thread syncs while the caller writes on.
#[derive(Debug, Default)]
pub struct BlockingWriteBack {
    unsynced: u64,
    under_way: Option<thread::JoinHandle<io::Result<()>>>,
}

impl BlockingWriteBack {
    /// Notes that so many bytes were written to `data`; begins a sync when it is time and none is under way.
    ///
    /// # Errors
    /// What the sync before said, or that there is no thread for one.
    pub fn wrote(&mut self, bytes: u64, data: &File) -> io::Result<()> {
        self.unsynced += bytes;
        let busy = self.under_way.as_ref().is_some_and(|under_way| !under_way.is_finished());
        if self.unsynced < EVERY || busy {
            return Ok(());
        }
        self.settle()?;
        self.unsynced = 0;
        let data = data.try_clone()?;
        self.under_way =
            Some(thread::Builder::new().name("sync".to_owned()).spawn(move || data.sync_data())?);
        Ok(())
    }

    /// Waits for the sync under way.
    ///
    /// # Errors
    /// What it said: then the file must not be believed.
    pub fn settle(&mut self) -> io::Result<()> {
        match self.under_way.take() {
            Some(under_way) => under_way.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_sync_begins_after_enough_bytes() {
        let data = Arc::new(tempfile::tempfile().unwrap());
        let mut write_back = WriteBack::default();
        write_back.wrote(EVERY - 1, &data).await.unwrap();
        assert!(write_back.under_way.is_none());
        write_back.wrote(1, &data).await.unwrap();
        assert!(write_back.under_way.is_some());
        write_back.settle().await.unwrap();
        write_back.wrote(1, &data).await.unwrap();
        assert!(write_back.under_way.is_none(), "counted anew");
    }

    #[test]
    fn a_thread_that_writes_has_another_that_syncs() {
        let data = Arc::new(tempfile::tempfile().unwrap());
        let mut write_back = BlockingWriteBack::default();
        write_back.wrote(EVERY - 1, &data).unwrap();
        assert!(write_back.under_way.is_none());
        write_back.wrote(1, &data).unwrap();
        assert!(write_back.under_way.is_some());
        write_back.settle().unwrap();
        write_back.wrote(1, &data).unwrap();
        assert!(write_back.under_way.is_none(), "counted anew");
        write_back.wrote(EVERY, &no_disk()).unwrap();
        assert!(write_back.settle().is_err());
    }

    /// A pipe cannot be synced.
    fn no_disk() -> Arc<File> {
        let (_reader, writer) = io::pipe().unwrap();
        Arc::new(File::from(OwnedFd::from(writer)))
    }

    #[tokio::test]
    async fn what_a_sync_said_is_not_lost() {
        let data = no_disk();
        let mut write_back = WriteBack::default();
        write_back.wrote(EVERY, &data).await.unwrap();
        assert!(write_back.settle().await.is_err());
    }

    #[tokio::test]
    async fn who_stops_waiting_for_a_sync_hears_of_it_the_next_time() {
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let under_way = spawn_blocking(move || {
            let _ = held.recv();
            Err(io::Error::other("the disk lost it"))
        });
        let mut write_back = WriteBack { unsynced: 0, under_way: Some(under_way) };
        let mut settling = Box::pin(write_back.settle());
        assert!(settling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(settling);
        let_go.send(()).unwrap();
        assert!(write_back.settle().await.is_err());
    }
}
