//! One connection to the coordinator, kept up: dial, Hello, Welcome, notices; after a break, again.
//!
//! "Connected" is said after Welcome only: in TLS 1.3 the coordinator looks at our certificate after we are through.
//! A task of its own reads the notices, because a half-read frame is lost when a read is dropped.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use common::wire::{GoodbyeCode, Notice, Welcome, Words};
use link::{CloseCode, Connection, Lane, LinkError, tls};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dial::{Dialled, Network};
use super::identity::Identity;
use super::lane::{LaneChooser, Plan};
use crate::egress::ask;

/// What the connection task tells the agent.
#[derive(Debug)]
pub enum LinkEvent {
    /// The coordinator welcomed us.
    Up {
        /// The connection.
        connection: Connection,
        /// Who it takes us for.
        welcome: Welcome,
        /// The lane and why, in words for the operator.
        lane: String,
    },
    /// The coordinator has news.
    Notice(Notice),
    /// The connection ended, or could not be made.
    Down {
        /// Why, in words for the operator.
        problem: String,
        /// What the operator can do about it.
        hint: Option<&'static str>,
        /// Whether trying again can help while nobody does anything.
        passes: bool,
        /// When it is tried again.
        retry_in: Duration,
    },
}

/// Where to dial, and as whom.
pub struct Dial {
    /// The way.
    pub network: Network,
    /// Keys and certificates.
    pub credentials: tls::Credentials,
    /// The pinned root.
    pub root: rustls_pki_types::CertificateDer<'static>,
}

/// A connection on which the coordinator has welcomed us.
pub(crate) struct Connected {
    pub(crate) dialled: Dialled,
    pub(crate) welcome: Welcome,
    watch: ask::WatchStream,
}

impl Dial {
    /// Of an enrolled site.
    pub fn new(network: Network, identity: &Identity) -> Self {
        let (credentials, root) = (identity.credentials.clone(), identity.root.clone());
        Self { network, credentials, root }
    }

    /// Dials once and says Hello; with it the lane and why, in words.
    ///
    /// # Errors
    /// Why there is no Welcome.
    pub(crate) async fn try_once(&self) -> Result<(Connected, String), LinkError> {
        let chooser = LaneChooser::new(self.network.lane);
        let plan = chooser.plan(Instant::now());
        let connected = hello(self.dial(plan).await?).await?;
        let lane = self.words(&chooser, connected.dialled.connection.lane());
        Ok((connected, lane))
    }

    async fn dial(&self, plan: Plan) -> Result<Dialled, LinkError> {
        self.network.dial(&self.tls()?, plan).await
    }

    fn tls(&self) -> Result<rustls::ClientConfig, LinkError> {
        tls::site_config(self.credentials.clone(), &self.root)
    }

    fn words(&self, chooser: &LaneChooser, lane: Lane) -> String {
        let proxy = self.network.proxy.as_ref().map(ToString::to_string);
        chooser.words(lane, &self.network.coordinator, proxy.as_deref(), Instant::now())
    }

    /// Keeps a connection up until `stop`; ends when the agent is gone.
    pub async fn keep_connected(self, out: mpsc::Sender<LinkEvent>, stop: CancellationToken) {
        let mut waits = back_off();
        let mut chooser = LaneChooser::new(self.network.lane);
        while !stop.is_cancelled() {
            let outcome = tokio::select! {
                outcome = self.session(&mut chooser, &out, &stop) => outcome,
                () = stop.cancelled() => return,
            };
            let (down, wait) = match outcome {
                Session::Stopped => return,
                Session::Moved => (moving(), Duration::ZERO),
                Session::Ended { welcomed, error } => {
                    if welcomed {
                        waits = back_off();
                    }
                    let wait = waits.next().unwrap_or(LONGEST_WAIT);
                    (down(&error, wait), wait)
                }
            };
            if out.send(down).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection from dial to end.
    async fn session(
        &self,
        chooser: &mut LaneChooser,
        out: &mpsc::Sender<LinkEvent>,
        stop: &CancellationToken,
    ) -> Session {
        let plan = chooser.plan(Instant::now());
        let dialled = match self.dial(plan).await {
            Ok(dialled) => dialled,
            Err(error) => {
                chooser.failed();
                return Session::Ended { welcomed: false, error };
            }
        };
        let (over, since) = (dialled.connection.lane(), Instant::now());
        let Connected { dialled, welcome, mut watch } = match hello(dialled).await {
            Ok(connected) => connected,
            Err(error) => {
                match (over, timed_out(&error)) {
                    (Lane::Quic, true) => chooser.lost(over, true, since.elapsed(), Instant::now()),
                    _ => chooser.failed(),
                }
                return Session::Ended { welcomed: false, error };
            }
        };
        let connection = dialled.connection.clone();
        chooser.connected(plan, over, Instant::now());
        let lane = self.words(chooser, over);
        if out.send(LinkEvent::Up { connection: connection.clone(), welcome, lane }).await.is_err() {
            return Session::Stopped;
        }
        let reading = async {
            let mut goodbye = None;
            loop {
                let notice = match watch.next().await {
                    Ok(Some(notice)) => notice,
                    Ok(None) => return ended(&connection, goodbye, None).await,
                    Err(error) => return ended(&connection, goodbye, Some(error)).await,
                };
                if let Notice::Goodbye { code } = &notice {
                    goodbye = Some(*code);
                }
                if out.send(LinkEvent::Notice(notice)).await.is_err() {
                    return LinkError::ClosedHere;
                }
            }
        };
        let outcome = tokio::select! {
            error = reading => Session::Ended { welcomed: true, error },
            () = self.quic_is_back(&connection, chooser) => Session::Moved,
            () = stop.cancelled() => Session::Stopped,
        };
        if let Session::Ended { error, .. } = &outcome {
            chooser.lost(over, timed_out(error), since.elapsed(), Instant::now());
        }
        dialled.close().await;
        outcome
    }

    /// While on TCP because QUIC got no answer: waits until it does, and nothing is under way on TCP.
    async fn quic_is_back(&self, connection: &Connection, chooser: &mut LaneChooser) {
        loop {
            let wait = chooser.next_probe(Instant::now()).filter(|_| connection.lane() == Lane::Tcp);
            let Some(wait) = wait else { return std::future::pending().await };
            tokio::time::sleep(wait).await;
            let answered = match self.tls() {
                Ok(tls) => self.network.quic_answers(&tls).await,
                Err(_) => false,
            };
            chooser.probed(answered, Instant::now());
            if answered {
                break;
            }
        }
        // The watch stream is one of them.
        while connection.open_exchanges().is_some_and(|open| open > 1) {
            tokio::time::sleep(LOOK_FOR_QUIET).await;
        }
    }
}

/// Says Hello.
async fn hello(dialled: Dialled) -> Result<Connected, LinkError> {
    match ask::watch(&dialled.connection).await {
        Ok((welcome, watch)) => Ok(Connected { dialled, welcome, watch }),
        // The connection's own end says more than the broken stream.
        Err(error) => {
            Err(dialled.connection.close_reason().filter(|_| error.is_transient()).unwrap_or(error))
        }
    }
}

/// Whether nothing was heard any more: what a flow that a firewall drops looks like.
const fn timed_out(error: &LinkError) -> bool {
    matches!(error, LinkError::TimedOut | LinkError::TooSlow { .. })
}

/// Why a connection ended whose notices did. QUIC says it itself; over TCP the last notice does.
async fn ended(connection: &Connection, goodbye: Option<GoodbyeCode>, error: Option<LinkError>) -> LinkError {
    match (connection.lane(), error) {
        (Lane::Quic, None) => connection.closed().await,
        (Lane::Quic, Some(error)) => connection.close_reason().unwrap_or(error),
        (Lane::Tcp, error) => {
            let agreed = |code| LinkError::Closed { code, words: Words::default() };
            let said = goodbye.map(|code| agreed(code.into()));
            said.or(error).unwrap_or_else(|| agreed(CloseCode::Done))
        }
    }
}

fn down(error: &LinkError, retry_in: Duration) -> LinkEvent {
    let (problem, hint, passes) = (error.to_string(), error.hint(), error.is_transient());
    LinkEvent::Down { problem, hint, passes, retry_in }
}

fn moving() -> LinkEvent {
    let problem = "QUIC gets an answer again: changing over from TCP".to_owned();
    LinkEvent::Down { problem, hint: None, passes: true, retry_in: Duration::ZERO }
}

/// How often to look whether a connection over TCP is idle.
const LOOK_FOR_QUIET: Duration = Duration::from_secs(1);

enum Session {
    Stopped,
    /// Dial again at once: QUIC is back.
    Moved,
    Ended {
        welcomed: bool,
        error: LinkError,
    },
}

const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One second, doubled up to a minute, with jitter: a coordinator that comes back is not stormed.
fn back_off() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(LONGEST_WAIT)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute_and_never_end() {
        let waits: Vec<_> = back_off().take(30).collect();
        assert_eq!(waits.len(), 30);
        assert!(waits[0] >= Duration::from_secs(1) && waits[0] < Duration::from_secs(3));
        assert!(waits[29] >= LONGEST_WAIT && waits[29] <= 2 * LONGEST_WAIT);
    }
}
