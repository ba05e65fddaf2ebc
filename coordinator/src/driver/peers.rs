//! The sites that are connected now: where their notices go, and how their connections end.

use std::collections::BTreeMap;

use common::evaluation::MAX_MODELS;
use common::ids::{Role, SiteId};
use common::wire::{GoodbyeCode, Notice};
use link::{CloseCode, Connection, Traffic};
use tokio::sync::mpsc;

/// Notices that may wait for a site; beyond, its connection is closed, and it hears all again at the next. Much comes at once,
/// before any of it can be written: of every study where a site connects, of up to [`MAX_MODELS`] models where an evaluator
/// approves. This many take 2 MB.
pub(crate) const NOTICES: usize = 64 * MAX_MODELS;

/// One connection of a site.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) role: Role,
    pub(crate) connection: Connection,
    pub(crate) notices: mpsc::Sender<Notice>,
    /// Whether it may be asked for artifacts.
    pub(crate) returns_artifacts: bool,
}

/// All connections, one for each site.
#[derive(Debug, Default)]
pub(super) struct Peers {
    by_site: BTreeMap<SiteId, Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    peer: Peer,
    /// What of the connection's traffic is in the store already.
    counted: Traffic,
}

impl Peers {
    /// Adds a connection and gives its number; an older one of the same site ends. Over TCP it may be the same, with a
    /// new watch stream: then only the older watch stream ends, as its sender of notices goes.
    pub(super) fn add(&mut self, site: SiteId, peer: Peer) -> (u64, Option<Traffic>) {
        self.next += 1;
        let connection = peer.connection.clone();
        let entry = Entry { id: self.next, peer, counted: Traffic::default() };
        let before = self.by_site.insert(site.clone(), entry);
        let uncounted = before.as_ref().map(Entry::uncounted);
        match before {
            Some(before) if before.peer.connection.is_same(&connection) => {
                if let Some(entry) = self.by_site.get_mut(&site) {
                    entry.counted = connection.traffic();
                }
            }
            Some(before) => before.close(GoodbyeCode::Replaced),
            None => {}
        }
        (self.next, uncounted)
    }

    /// Forgets connection `id` of `site`; `None` when a newer one has taken its place.
    pub(super) fn remove(&mut self, site: &SiteId, id: u64) -> Option<(Role, Traffic)> {
        if self.by_site.get(site)?.id != id {
            return None;
        }
        let entry = self.by_site.remove(site)?;
        Some((entry.peer.role, entry.uncounted()))
    }

    /// Whether `site` is connected.
    pub(super) fn has(&self, site: &SiteId) -> bool {
        self.by_site.contains_key(site)
    }

    /// Whether `site` is connected as a trainer that may return artifacts.
    pub(super) fn returns_artifacts(&self, site: &SiteId) -> bool {
        let peer = self.by_site.get(site).map(|entry| &entry.peer);
        peer.is_some_and(|peer| peer.returns_artifacts && peer.role == Role::Trainer)
    }

    /// Ends all connections.
    pub(super) fn close_all(&mut self, code: GoodbyeCode) {
        self.by_site.values().for_each(|entry| entry.close(code));
    }

    /// Tells `site`, if it is connected.
    pub(super) fn tell(&self, site: &SiteId, notice: Notice) {
        let Some(entry) = self.by_site.get(site) else { return };
        if entry.peer.notices.try_send(notice).is_err() {
            tracing::warn!(%site, "does not take its notices: closing the connection");
            entry.peer.connection.close(CloseCode::TooSlow, &CloseCode::TooSlow.words().into());
        }
    }

    /// Tells everybody.
    pub(super) fn tell_all(&self, notice: &Notice) {
        self.by_site.keys().for_each(|site| self.tell(site, notice.clone()));
    }

    /// Tells everybody of the roles that it concerns.
    pub(super) fn tell_roles(&self, concerns: impl Fn(Role) -> bool, notice: &Notice) {
        let concerned = self.by_site.iter().filter(|(_, entry)| concerns(entry.peer.role));
        concerned.for_each(|(site, _)| self.tell(site, notice.clone()));
    }

    /// Who is connected, with the address.
    pub(super) fn addresses(&self) -> BTreeMap<SiteId, String> {
        let address = |entry: &Entry| entry.peer.connection.remote_address().to_string();
        self.by_site.iter().map(|(site, entry)| (site.clone(), address(entry))).collect()
    }

    /// Traffic of each site since the last call.
    pub(super) fn take_traffic(&mut self) -> Vec<(SiteId, Traffic)> {
        let take = |(site, entry): (&SiteId, &mut Entry)| {
            let uncounted = entry.uncounted();
            entry.counted = entry.peer.connection.traffic();
            (site.clone(), uncounted)
        };
        self.by_site.iter_mut().map(take).collect()
    }
}

impl Entry {
    fn uncounted(&self) -> Traffic {
        let now = self.peer.connection.traffic();
        Traffic {
            sent: now.sent.saturating_sub(self.counted.sent),
            received: now.received.saturating_sub(self.counted.received),
        }
    }

    fn close(&self, code: GoodbyeCode) {
        let close = match code {
            GoodbyeCode::Stopping => CloseCode::Stopping,
            GoodbyeCode::Replaced => CloseCode::Replaced,
            GoodbyeCode::Revoked => CloseCode::Revoked,
            GoodbyeCode::CertificateExpired => CloseCode::CertificateExpired,
        };
        // The close itself carries code and words; a notice sent before it may be lost with the connection.
        self.peer.connection.close(close, &close.words().into());
    }
}
