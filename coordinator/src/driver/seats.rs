//! Every connection of a site, from before its first exchange: a site has few at once, and all of them end when its certificate counts
//! no more.
//!
//! `peers` knows who has said Hello. Who never does is here all the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::SiteId;
use link::{CloseCode, Connection, PeerIdentity};

use crate::pki::Serial;

/// Connections that a site may have at once. It needs one; a second is there while it comes from another address or asks whether QUIC
/// gets through, and dead ones until that is noticed.
pub(crate) const SEATS: usize = 4;

/// The connections of all sites. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Seats {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// Of each site the oldest first.
    by_site: BTreeMap<SiteId, VecDeque<Seated>>,
    next: u64,
}

#[derive(Debug)]
struct Seated {
    number: u64,
    serial: String,
    connection: Connection,
    /// The site may speak: only then does it count among its connections. Who holds a certificate that was revoked drives nobody out.
    admitted: bool,
}

/// One connection's entry, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Seats,
    site: SiteId,
    number: u64,
}

impl Seats {
    /// Enters a connection. To be done before the store is asked whether its site may speak: whoever is revoked after that answer is
    /// found here.
    pub(crate) fn enter(&self, identity: &PeerIdentity, connection: &Connection) -> Seat {
        let mut table = self.lock();
        table.next += 1;
        let (number, site) = (table.next, identity.site.clone());
        let (serial, connection) = (identity.serial.clone(), connection.clone());
        let seated = Seated { number, serial, connection, admitted: false };
        table.by_site.entry(site.clone()).or_default().push_back(seated);
        Seat { seats: self.clone(), site, number }
    }

    /// Ends all connections of a site that was revoked.
    pub(crate) fn end_all(&self, site: &SiteId) {
        self.end(site, CloseCode::Revoked.words(), |_| true);
    }

    /// Ends the connections of a site that other certificates than its newest opened.
    pub(crate) fn end_older(&self, site: &SiteId, newest: Serial) {
        let newest = newest.to_string();
        self.end(site, "this certificate was replaced by a newer one", |seated| seated.serial != newest);
    }

    fn end(&self, site: &SiteId, words: &str, which: impl Fn(&Seated) -> bool) {
        let table = self.lock();
        for seated in table.by_site.get(site).into_iter().flatten().filter(|seated| which(seated)) {
            seated.connection.close(CloseCode::Revoked, &words.into());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change below the lock is one step.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The site may speak. Where it has more connections than a site may, the oldest of them, which is to be closed.
    pub(crate) fn admit(&self) -> Option<Connection> {
        let mut table = self.seats.lock();
        let seated = table.by_site.get_mut(&self.site)?;
        if let Some(own) = seated.iter_mut().find(|seated| seated.number == self.number) {
            own.admitted = true;
        }
        if seated.iter().filter(|seated| seated.admitted).count() <= SEATS {
            return None;
        }
        let oldest = seated.iter().position(|seated| seated.admitted)?;
        seated.remove(oldest).map(|seated| seated.connection)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.seats.lock();
        let Some(seated) = table.by_site.get_mut(&self.site) else { return };
        seated.retain(|seated| seated.number != self.number);
        if seated.is_empty() {
            table.by_site.remove(&self.site);
        }
    }
}
