//! The connections of sites that are open over TCP: exchanges of one certificate belong together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use common::ids::SiteId;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::farewell::Farewell;
use super::line::Tls;
use super::listener::Place;
use super::session::{self, Session};
use crate::close::CloseCode;
use crate::connection::{Admitted, Connection};
use crate::error::LinkError;
use crate::identity::PeerIdentity;

/// Site and serial number of its certificate.
type Key = (SiteId, String);

pub(super) struct Registry {
    sessions: Mutex<Sessions>,
    max_exchanges: usize,
    partings: TaskTracker,
}

#[derive(Default)]
struct Sessions {
    open: BTreeMap<Key, Weak<Session>>,
    /// Why all were closed. A handshake that was under way then comes to nothing.
    closed: Option<CloseCode>,
}

impl Registry {
    pub(super) fn new(max_exchanges: usize) -> Self {
        Self { sessions: Mutex::default(), max_exchanges, partings: TaskTracker::new() }
    }

    /// An exchange of a site: one more of its connection, or the first of a new one.
    ///
    /// # Errors
    /// [`LinkError::ClosedHere`] after [`Registry::close_all`]: the site is told so.
    pub(super) fn join(
        &self,
        identity: PeerIdentity,
        tls: Tls,
        remote: SocketAddr,
        place: Arc<Place>,
    ) -> Result<Admitted, LinkError> {
        let key = (identity.site.clone(), identity.serial.clone());
        let mut sessions = self.lock();
        if let Some(code) = sessions.closed {
            self.see_off(tls, Farewell::Refusal, code, code.words(), place);
            return Err(LinkError::ClosedHere);
        }
        sessions.open.retain(|_, session| session.strong_count() > 0);
        let tls = match sessions.open.get(&key).and_then(Weak::upgrade) {
            None => tls,
            Some(session) => match session.join(tls, &place) {
                None => return Ok(Admitted::Joined),
                Some(tls) => tls,
            },
        };
        let session = self.session(tls, remote, Farewell::Refusal, place);
        sessions.open.insert(key, Arc::downgrade(&session));
        Ok(Admitted::Site(Connection::tcp(session), identity))
    }

    /// An exchange of somebody who wants to enrol.
    ///
    /// # Errors
    /// As [`Registry::join`].
    pub(super) fn stranger(
        &self,
        tls: Tls,
        remote: SocketAddr,
        place: Arc<Place>,
    ) -> Result<Admitted, LinkError> {
        if let Some(code) = self.lock().closed {
            self.see_off(tls, Farewell::Enrolment, code, code.words(), place);
            return Err(LinkError::ClosedHere);
        }
        Ok(Admitted::Stranger(Connection::tcp(self.session(tls, remote, Farewell::Enrolment, place))))
    }

    /// Tells a site why it does not come in; it keeps its place at the door meanwhile.
    pub(super) fn turn_away(&self, tls: Tls, code: CloseCode, words: &str, place: Arc<Place>) {
        self.see_off(tls, Farewell::Refusal, code, words, place);
    }

    fn see_off(&self, tls: Tls, farewell: Farewell, code: CloseCode, words: &str, place: Arc<Place>) {
        session::turn_away(&self.partings, tls, farewell.frame(code, &words.into()), Some(place));
    }

    /// Lets the other side read TLS's alert; it keeps its place at the door meanwhile.
    pub(super) fn turn_away_unknown(&self, mut stream: TcpStream, place: Arc<Place>) {
        session::see_off(&self.partings, async move {
            let _place = place;
            session::drain(&mut stream).await
        });
    }

    /// Ends all connections, and lets no further ones begin.
    pub(super) fn close_all(&self, code: CloseCode) {
        let open = {
            let mut sessions = self.lock();
            sessions.closed = Some(code);
            std::mem::take(&mut sessions.open)
        };
        for session in open.values().filter_map(Weak::upgrade) {
            session.close(code, &code.words().into());
        }
    }

    /// Waits until all who left have read their last words, or had the time for it.
    pub(super) async fn all_gone(&self) {
        self.partings.close();
        self.partings.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        // Each change below the lock is one step.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, tls: Tls, remote: SocketAddr, farewell: Farewell, place: Arc<Place>) -> Arc<Session> {
        Session::coordinator(tls, place, remote, farewell, self.max_exchanges, self.partings.clone())
    }
}
