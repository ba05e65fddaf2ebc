//! A connection over TCP: what its exchanges have in common, at either side.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use common::wire::Words;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dialer::Call;
use super::ending::Ending;
use super::farewell::Farewell;
use super::line::{Line, Tls};
use super::listener::Place;
use crate::close::CloseCode;
use crate::connection::Traffic;
use crate::error::LinkError;

/// How long the other side may take to read our last words. What it sends meanwhile is thrown away: closing before it
/// was read would make TCP throw away what we said.
const LINGER: Duration = Duration::from_secs(3);

/// A connection.
pub(crate) struct Session {
    side: Side,
    remote: SocketAddr,
    sent: AtomicU64,
    received: AtomicU64,
    members: Mutex<Members>,
    arrived: Notify,
    ended: CancellationToken,
}

enum Side {
    Site { call: Box<Call>, places: Arc<Semaphore> },
    Coordinator { farewell: Farewell, max_exchanges: usize, partings: TaskTracker },
}

#[derive(Default)]
struct Members {
    /// Those with an owner; ended ones are let go as new ones come.
    lines: Vec<Weak<Line>>,
    open: usize,
    /// Connected already; they wait for [`Session::accept`], or at a site for [`Session::open`].
    waiting: VecDeque<Waiting>,
    ending: Option<Ending>,
}

/// A stream without an exchange yet. At the coordinator it keeps its place at the door until then, and one that is turned
/// away instead keeps it until its socket is closed.
struct Waiting {
    tls: Tls,
    place: Option<Arc<Place>>,
}

/// What a line keeps as long as it lives.
pub(super) enum Held {
    /// At a site: its turn among the exchanges that may be open at once.
    Turn { _permit: OwnedSemaphorePermit },
    /// At the coordinator, of a stranger: its place at the door, until its socket is closed. There are few sites, and any number of
    /// strangers.
    Door { _place: Arc<Place> },
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Session {
    /// At a site: `first` serves the first exchange, `call` the others.
    pub(super) fn site(call: Call, first: Tls, remote: SocketAddr, max_exchanges: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(max_exchanges));
        let first = Waiting { tls: first, place: None };
        Arc::new(Self::new(Side::Site { call: Box::new(call), places }, first, remote))
    }

    /// At the coordinator: `first` waits to be accepted.
    pub(super) fn coordinator(
        first: Tls,
        place: Arc<Place>,
        remote: SocketAddr,
        farewell: Farewell,
        max_exchanges: usize,
        partings: TaskTracker,
    ) -> Arc<Self> {
        let first = Waiting { tls: first, place: Some(place) };
        Arc::new(Self::new(Side::Coordinator { farewell, max_exchanges, partings }, first, remote))
    }

    fn new(side: Side, first: Waiting, remote: SocketAddr) -> Self {
        let members = Members { waiting: VecDeque::from([first]), ..Members::default() };
        Self {
            side,
            remote,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            members: Mutex::new(members),
            arrived: Notify::new(),
            ended: CancellationToken::new(),
        }
    }

    pub(crate) async fn open(self: &Arc<Self>) -> Result<Arc<Line>, LinkError> {
        let Side::Site { call, places } = &self.side else {
            return Err(LinkError::Unexpected { expected: "exchanges that the site opens", got: "another" });
        };
        let opening = async {
            // Invariant: nobody closes the semaphore.
            let _permit = places.clone().acquire_owned().await.map_err(|_| LinkError::ClosedHere)?;
            let first = self.lock().waiting.pop_front();
            let tls = match first {
                Some(first) => first.tls,
                None => call.connect().await?.0,
            };
            self.begin(&mut self.lock(), tls, Farewell::None, Some(Held::Turn { _permit }))
        };
        tokio::select! {
            opened = opening => opened,
            reason = self.closed() => Err(reason),
        }
    }

    pub(crate) async fn accept(self: &Arc<Self>) -> Result<Arc<Line>, LinkError> {
        let farewell = self.farewell();
        loop {
            let arrived = self.arrived.notified();
            {
                let mut members = self.lock();
                if let Some(Waiting { tls, place }) = members.waiting.pop_front() {
                    let place = place.filter(|_| farewell == Farewell::Enrolment);
                    let held = place.map(|_place| Held::Door { _place });
                    return self.begin(&mut members, tls, farewell, held);
                }
            }
            tokio::select! {
                () = arrived => {}
                reason = self.closed() => return Err(reason),
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        members: &mut Members,
        tls: Tls,
        farewell: Farewell,
        held: Option<Held>,
    ) -> Result<Arc<Line>, LinkError> {
        if let Some(ending) = &members.ending {
            return Err(ending.into());
        }
        let line = Arc::new(Line::new(self.clone(), tls, farewell, held));
        members.lines.retain(|line| line.strong_count() > 0);
        members.lines.push(Arc::downgrade(&line));
        members.open += 1;
        Ok(line)
    }

    /// Coordinator: one more exchange; given back when the connection has ended meanwhile.
    pub(super) fn join(&self, tls: Tls, place: &Arc<Place>) -> Option<Tls> {
        let mut members = self.lock();
        if members.ending.is_some() {
            return Some(tls);
        }
        let full = matches!(&self.side, Side::Coordinator { max_exchanges, .. }
            if members.open + members.waiting.len() >= *max_exchanges);
        let waiting = Waiting { tls, place: Some(place.clone()) };
        if full {
            drop(members);
            self.turn_away(waiting, CloseCode::TooBusy, &"too many exchanges at once".into());
            return None;
        }
        members.waiting.push_back(waiting);
        drop(members);
        self.arrived.notify_one();
        None
    }

    pub(crate) fn close(&self, code: CloseCode, words: &Words) {
        let (lines, waiting) = {
            let mut members = self.lock();
            if members.ending.is_some() {
                return;
            }
            members.ending = Some(Ending::Here);
            let lines: Vec<Arc<Line>> = members.lines.drain(..).filter_map(|line| line.upgrade()).collect();
            (lines, std::mem::take(&mut members.waiting))
        };
        self.ended.cancel();
        for line in lines {
            line.part(code, words);
        }
        for waiting in waiting {
            self.turn_away(waiting, code, words);
        }
    }

    fn turn_away(&self, Waiting { tls, place }: Waiting, code: CloseCode, words: &Words) {
        if let Side::Coordinator { farewell, partings, .. } = &self.side {
            turn_away(partings, tls, farewell.frame(code, words), place);
        }
    }

    pub(crate) async fn closed(&self) -> LinkError {
        self.ended.cancelled().await;
        self.close_reason().unwrap_or(LinkError::ClosedHere)
    }

    pub(crate) fn close_reason(&self) -> Option<LinkError> {
        self.lock().ending.as_ref().map(LinkError::from)
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.lock().ending.clone()
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }

    pub(crate) fn open_exchanges(&self) -> usize {
        let members = self.lock();
        members.open + members.waiting.len()
    }

    pub(super) fn is_site(&self) -> bool {
        matches!(self.side, Side::Site { .. })
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// An exchange is over. At the coordinator the connection ends with the last one: nothing else tells that a site has
    /// gone.
    pub(super) fn line_ended(&self) {
        let mut members = self.lock();
        members.open = members.open.saturating_sub(1);
        let last = members.open == 0 && members.waiting.is_empty() && members.ending.is_none();
        if last && !self.is_site() {
            members.ending = Some(Ending::done());
            drop(members);
            self.ended.cancel();
        }
    }

    /// Ends a stream. A site has nothing to say at the end that it has not said in a message.
    pub(super) fn see_off(&self, tls: Tls, told: Option<Vec<u8>>, orderly: bool, held: Option<Held>) {
        if let Side::Coordinator { partings, .. } = &self.side {
            see_off(partings, async move {
                let _held = held;
                part(tls, told, orderly).await
            });
        }
    }

    fn farewell(&self) -> Farewell {
        match &self.side {
            Side::Site { .. } => Farewell::None,
            Side::Coordinator { farewell, .. } => *farewell,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        // Each change below the lock is one step: there is nothing half-done to find.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the last of a stream take a little while, beside whatever else is to be done.
pub(super) fn see_off(
    partings: &TaskTracker,
    parting: impl Future<Output = std::io::Result<()>> + Send + 'static,
) {
    // Without a runtime the process is ending.
    if tokio::runtime::Handle::try_current().is_ok() {
        partings.spawn(async move {
            // Nobody is left to tell.
            let _ = tokio::time::timeout(LINGER, parting).await;
        });
    }
}

/// Tells one that does not come in why; it keeps its place at the door meanwhile.
pub(super) fn turn_away(partings: &TaskTracker, tls: Tls, told: Option<Vec<u8>>, place: Option<Arc<Place>>) {
    see_off(partings, async move {
        let _place = place;
        part(tls, told, true).await
    });
}

/// Says `told`, and waits until the other side has read it. Without `orderly` the other side is to notice that something is
/// missing.
pub(super) async fn part(mut tls: Tls, told: Option<Vec<u8>>, orderly: bool) -> std::io::Result<()> {
    if let Some(told) = told {
        tls.write_all(&told).await?;
    }
    tls.flush().await?;
    if orderly {
        tls.shutdown().await?;
    }
    drain(tls.get_mut().0).await
}

/// Waits until the other side has read what is under way to it.
pub(super) async fn drain(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut rest = vec![0; 16 << 10];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
