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

use super::address::Remote;
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
    /// Whether the coordinator may ask for artifacts that it lost.
    pub returns_artifacts: bool,
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
        Self { network, credentials, root, returns_artifacts: false }
    }

    /// Dials each address once, until one answers, and says Hello; with it the lane and why, in words.
    ///
    /// # Errors
    /// Why there is no Welcome.
    pub(crate) async fn try_once(&self) -> anyhow::Result<(Connected, String)> {
        let chooser = LaneChooser::new(self.network.lane);
        let (plan, mut remote) = (chooser.plan(Instant::now()), Remote::default());
        let dialled = self.network.dial_each(&self.tls()?, plan, &mut remote).await;
        let dialled = dialled.map_err(|error| match remote.all_of_several() {
            Some(all) => anyhow::Error::new(error).context(format!("cannot connect to any of {all}")),
            None => error.into(),
        })?;
        let connected = self.hello(dialled).await?;
        let lane = self.words(&chooser, connected.dialled.connection.lane());
        Ok((connected, lane))
    }

    /// Says Hello.
    async fn hello(&self, dialled: Dialled) -> Result<Connected, LinkError> {
        match ask::watch(&dialled.connection, self.returns_artifacts).await {
            Ok((welcome, watch)) => Ok(Connected { dialled, welcome, watch }),
            // The connection's own end says more than the broken stream.
            Err(error) => {
                Err(dialled.connection.close_reason().filter(|_| error.is_transient()).unwrap_or(error))
            }
        }
    }

    async fn dial(&self, plan: Plan, remote: &Remote) -> Result<Dialled, LinkError> {
        self.network.dial(&self.tls()?, plan, remote).await
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
        let mut remote = Remote::default();
        while !stop.is_cancelled() {
            remote.forget();
            let outcome = tokio::select! {
                outcome = self.session(&mut chooser, &mut remote, &out, &stop) => outcome,
                () = stop.cancelled() => return,
            };
            let (down, wait) = match outcome {
                Session::Stopped => return,
                Session::Moved => (moving(), Duration::ZERO),
                Session::NotMade { error, dialled } => {
                    let wait = waits.next().unwrap_or(LONGEST_WAIT);
                    (down(&error, dialled, wait), wait)
                }
                Session::Ended { welcomed, error } => {
                    if welcomed {
                        waits = back_off();
                    }
                    let wait = waits.next().unwrap_or(LONGEST_WAIT);
                    (down(&error, None, wait), wait)
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
        remote: &mut Remote,
        out: &mpsc::Sender<LinkEvent>,
        stop: &CancellationToken,
    ) -> Session {
        let plan = chooser.plan(Instant::now());
        let dialled = match self.dial(plan, remote).await {
            Ok(dialled) => dialled,
            Err(error) => {
                chooser.failed();
                let dialled = remote.one_of_several().filter(|_| !matches!(error, LinkError::Proxy { .. }));
                remote.failed();
                return Session::NotMade { error, dialled };
            }
        };
        let (over, since) = (dialled.connection.lane(), Instant::now());
        let Connected { dialled, welcome, mut watch } = match self.hello(dialled).await {
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
            () = self.quic_is_back(&connection, chooser, remote) => Session::Moved,
            () = stop.cancelled() => Session::Stopped,
        };
        if let Session::Ended { error, .. } = &outcome {
            chooser.lost(over, timed_out(error), since.elapsed(), Instant::now());
        }
        dialled.close().await;
        outcome
    }

    /// While on TCP because QUIC got no answer: waits until it does, and nothing is under way on TCP.
    async fn quic_is_back(&self, connection: &Connection, chooser: &mut LaneChooser, remote: &Remote) {
        loop {
            let wait = chooser.next_probe(Instant::now()).filter(|_| connection.lane() == Lane::Tcp);
            let Some(wait) = wait else { return std::future::pending().await };
            tokio::time::sleep(wait).await;
            let answered = match self.tls() {
                Ok(tls) => self.network.quic_answers(&tls, remote).await,
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

fn down(error: &LinkError, dialled: Option<String>, retry_in: Duration) -> LinkEvent {
    let problem = dialled.map_or(error.to_string(), |dialled| format!("{error} (dialled {dialled})"));
    LinkEvent::Down { problem, hint: error.hint(), passes: error.is_transient(), retry_in }
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
    /// Nobody answered, or not as must be.
    NotMade {
        error: LinkError,
        /// The address dialled, where the name has several.
        dialled: Option<String>,
    },
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
    use link::quic::QuicSettings;
    use rustls_pki_types::PrivateKeyDer;

    use super::super::dial::tests::refusing;
    use super::super::lane::LaneSetting;
    use super::*;

    /// A site that dials over TCP, with a certificate of its own making.
    fn site() -> Dial {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["c.example.org".to_owned()]).unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let credentials = tls::Credentials { chain: vec![root.clone()], key };
        let (coordinator, lane) = ("c.example.org:443".parse().unwrap(), LaneSetting::Tcp);
        let network = Network { coordinator, lane, proxy: None, quic: QuicSettings::site() };
        Dial { network, credentials, root, returns_artifacts: false }
    }

    #[tokio::test]
    async fn a_failed_attempt_names_its_address_and_the_next_dials_the_other() {
        let ((_one, first), (_other, second)) = (refusing(), refusing());
        let (site, stop, (out, _heard)) = (site(), CancellationToken::new(), mpsc::channel(1));
        let mut chooser = LaneChooser::new(LaneSetting::Tcp);
        let mut remote = Remote::known(vec![first, second]);
        for address in [first, second, first] {
            let outcome = site.session(&mut chooser, &mut remote, &out, &stop).await;
            let Session::NotMade { error, dialled } = outcome else { panic!("connected to nobody") };
            let LinkEvent::Down { problem, .. } = down(&error, dialled, Duration::ZERO) else { panic!() };
            assert!(problem.contains(&format!("dialled {address}, one of 2 addresses")), "{problem}");
        }
    }

    #[test]
    fn waits_grow_to_a_minute_and_never_end() {
        let waits: Vec<_> = back_off().take(30).collect();
        assert_eq!(waits.len(), 30);
        assert!(waits[0] >= Duration::from_secs(1) && waits[0] < Duration::from_secs(3));
        assert!(waits[29] >= LONGEST_WAIT && waits[29] <= 2 * LONGEST_WAIT);
    }
}
