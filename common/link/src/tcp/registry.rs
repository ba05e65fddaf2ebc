//! The connections of sites that are open over TCP: exchanges of one certificate belong together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::ids::SiteId;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::farewell::Farewell;
use super::line::Tls;
use super::session::{self, Session};
use crate::close::CloseCode;
use crate::connection::{Admitted, Connection};
use crate::identity::PeerIdentity;

/// Site and serial number of its certificate.
type Key = (SiteId, String);

pub(super) struct Registry {
    sessions: Mutex<BTreeMap<Key, Weak<Session>>>,
    max_exchanges: usize,
    partings: TaskTracker,
}

impl Registry {
    pub(super) fn new(max_exchanges: usize) -> Self {
        Self { sessions: Mutex::default(), max_exchanges, partings: TaskTracker::new() }
    }

    /// An exchange of a site: one more of its connection, or the first of a new one.
    pub(super) fn join(&self, identity: PeerIdentity, tls: Tls, remote: SocketAddr) -> Admitted {
        let key = (identity.site.clone(), identity.serial.clone());
        // Each change below the lock is one step.
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.strong_count() > 0);
        let tls = match sessions.get(&key).and_then(Weak::upgrade) {
            None => tls,
            Some(session) => match session.join(tls) {
                None => return Admitted::Joined,
                Some(tls) => tls,
            },
        };
        let session = self.session(tls, remote, Farewell::Refusal);
        sessions.insert(key, Arc::downgrade(&session));
        Admitted::Site(Connection::tcp(session), identity)
    }

    /// An exchange of somebody who wants to enrol.
    pub(super) fn stranger(&self, tls: Tls, remote: SocketAddr) -> Admitted {
        Admitted::Stranger(Connection::tcp(self.session(tls, remote, Farewell::Enrolment)))
    }

    /// Tells a site why it does not come in.
    pub(super) fn turn_away(&self, tls: Tls, code: CloseCode, words: &str) {
        let told = Farewell::Refusal.frame(code, &words.into());
        session::see_off(&self.partings, tls, told, true);
    }

    /// Lets the other side read TLS's alert.
    pub(super) fn turn_away_unknown(&self, stream: TcpStream) {
        session::see_off_unknown(&self.partings, stream);
    }

    /// Ends all connections.
    pub(super) fn close_all(&self, code: CloseCode) {
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        for session in sessions.values().filter_map(Weak::upgrade) {
            session.close(code, &code.words().into());
        }
    }

    /// Waits until all who left have read their last words, or had the time for it.
    pub(super) async fn all_gone(&self) {
        self.partings.close();
        self.partings.wait().await;
    }

    fn session(&self, tls: Tls, remote: SocketAddr, farewell: Farewell) -> Arc<Session> {
        Session::coordinator(tls, remote, farewell, self.max_exchanges, self.partings.clone())
    }
}
