//! Room for large requests: how long a frame is, is the site's word, and 32 exchanges of each connection would be read at once.
//!
//! Most requests are small ([`link::framing::SMALL_BODY`]) and need no room. Of the large ones a site has one under way, and all sites
//! together `AT_ONCE`, from before they are read until they are answered: 16 MiB of bodies, and once more as much while they are
//! decoded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use common::ids::SiteId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Large requests under way, over all sites.
const AT_ONCE: usize = 4;

/// Who has room.
pub struct LargeRequests {
    all: Arc<Semaphore>,
    by_site: Mutex<BTreeMap<SiteId, Arc<Semaphore>>>,
}

/// Room for one, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    _of_site: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for LargeRequests {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), by_site: Mutex::default() }
    }
}

impl LargeRequests {
    /// Waits for room: first come, first served.
    pub(super) async fn room(&self, site: &SiteId) -> Room {
        let of_site = self.of(site);
        // Invariant: nobody closes either. Its own first: who waits for that takes nothing from others.
        let of_site = of_site.acquire_owned().await.expect("never closed");
        let of_all = self.all.clone().acquire_owned().await.expect("never closed");
        Room { _of_site: of_site, _of_all: of_all }
    }

    fn of(&self, site: &SiteId) -> Arc<Semaphore> {
        // Poisoned or not, a site has its entry or gets it.
        let mut by_site = self.by_site.lock().unwrap_or_else(PoisonError::into_inner);
        by_site.entry(site.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_site_has_room_for_one_and_all_together_for_four() {
        let large = LargeRequests::default();
        let sites = ["a", "b", "c", "d", "e"].map(|name| name.parse::<SiteId>().unwrap());
        let room = |site| match poll(pin!(large.room(site))) {
            Poll::Ready(room) => Some(room),
            Poll::Pending => None,
        };
        let own: Vec<_> = (0..32).filter_map(|_| room(&sites[0])).collect();
        assert_eq!(own.len(), 1);
        let mut others: Vec<_> = sites[1..].iter().filter_map(room).collect();
        assert_eq!(others.len(), 3, "the fifth waits");
        others.pop();
        assert!(room(&sites[4]).is_some());
        drop(own);
        assert!(room(&sites[0]).is_some());
    }
}
