//! Room for the one update of a site that is arriving, however many connections the site has.
//!
//! A site that comes anew, from another address or after a restart, does not wait until its old connection is found dead, and both
//! would write into one folder of the spool. So the newest connection that asks has the room: what an older one has in it is
//! let go of before, and an older one that still asks is refused. An artifact that the site returns has room beside it: neither waits
//! for the other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::ids::{AttemptId, SiteId};
use common::wire::{Refusal, RefusalCode};
use tokio::sync::MutexGuard;

use super::upload::Upload;

/// The slots of all sites that were connected; of one that is not, nothing but its name.
#[derive(Default)]
pub struct UploadSlots {
    by_site: Mutex<BTreeMap<SiteId, Arc<Slot>>>,
    sessions: AtomicU64,
}

type Slot = tokio::sync::Mutex<Arriving>;

/// What is in a slot.
#[derive(Default)]
pub(super) struct Arriving {
    /// The newest session that used it.
    session: u64,
    pub(super) update: Option<Arc<Upload>>,
    /// One that the disk had lost.
    pub(super) artifact: Option<Arc<Upload>>,
}

/// One session's way to the slot of its site.
pub(super) struct UploadSlot {
    slot: Arc<Slot>,
    session: u64,
}

impl UploadSlots {
    /// The slot of `site`, for a session that begins now.
    pub(super) fn session(&self, site: &SiteId) -> UploadSlot {
        // Poisoned or not, a site has its entry or gets it.
        let mut by_site = self.by_site.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = by_site.entry(site.clone()).or_default().clone();
        UploadSlot { slot, session: 1 + self.sessions.fetch_add(1, Ordering::Relaxed) }
    }
}

impl UploadSlot {
    /// The slot, for as long as nobody else is to change it. What an older session has in it is let go of first.
    ///
    /// # Errors
    /// A refusal when a newer session has used it.
    pub(super) async fn lock(&self) -> Result<MutexGuard<'_, Arriving>, Refusal> {
        let mut arriving = self.slot.lock().await;
        if arriving.session > self.session {
            let words = "a newer connection of this site sends its updates";
            return Err(Refusal::new(RefusalCode::TooBusy, words));
        }
        if arriving.session < self.session {
            arriving.let_go().await?;
            arriving.session = self.session;
        }
        Ok(arriving)
    }

    /// The session is over: its files are closed, unless a newer one has the slot.
    pub(super) async fn leave(&self) {
        let mut arriving = self.slot.lock().await;
        if arriving.session == self.session {
            // Nobody is left to tell; the log has it.
            let _ = arriving.let_go().await;
        }
    }
}

impl Arriving {
    /// What arrives under this attempt.
    pub(super) fn of(&self, attempt: AttemptId) -> Option<&Arc<Upload>> {
        [&self.update, &self.artifact].into_iter().flatten().find(|upload| upload.attempt() == attempt)
    }

    /// Takes it out; with its place, where it may have to go back to.
    pub(super) fn take(&mut self, attempt: AttemptId) -> Option<(Arc<Upload>, &mut Option<Arc<Upload>>)> {
        let mut places = [&mut self.update, &mut self.artifact].into_iter();
        places.find_map(|place| {
            let upload = place.take_if(|upload| upload.attempt() == attempt)?;
            Some((upload, place))
        })
    }

    /// Empties the slot. Once this returns, what was in it changes no file any more.
    ///
    /// # Errors
    /// A refusal when a thread of ours failed.
    pub(super) async fn let_go(&mut self) -> Result<(), Refusal> {
        let update = let_go(&mut self.update).await;
        let_go(&mut self.artifact).await?;
        update
    }
}

/// Empties one place of a slot, as [`Arriving::let_go`] does both.
pub(super) async fn let_go(place: &mut Option<Arc<Upload>>) -> Result<(), Refusal> {
    match place.take() {
        Some(upload) => upload.let_go().await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_newer_connection_waits_until_an_older_has_committed() {
        let slots = UploadSlots::default();
        let site: SiteId = "north".parse().unwrap();
        let (older, newer) = (slots.session(&site), slots.session(&site));
        let committing = older.lock().await.unwrap();
        let mut waits = pin!(newer.lock());
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let other: SiteId = "south".parse().unwrap();
        let other = slots.session(&other);
        assert!(other.lock().await.is_ok(), "another site has its own");
        drop(committing);
        assert!(waits.await.is_ok());
    }
}
