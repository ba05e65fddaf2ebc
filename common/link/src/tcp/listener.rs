//! The coordinator's end of the TCP lane: the same port number and the same two protocols as over QUIC.
//!
//! A stranger can cost at most a socket and a handshake: handshakes are bounded in time and number, for each address and
//! over all of them; one that failed, or that was turned away before its first exchange, counts until the other side has
//! gone, or had the time to read why, and so does who came to enrol, whatever was said. A stream without a request is for
//! the session to drop.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::wire;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::dialer::handshake_error;
use super::line::Tls;
use super::registry::Registry;
use super::settings::TcpSettings;
use crate::callers::{Caller, Callers};
use crate::close::CloseCode;
use crate::connection::{Admitted, Lane};
use crate::error::{Alert, LinkError};
use crate::identity::PeerIdentity;
use crate::noise::{Noise, Tally, is_noise};

/// How long to wait when the operating system has no socket for us.
const NO_SOCKET: Duration = Duration::from_millis(100);

/// Takes connections from sites.
pub struct Listener {
    socket: TcpListener,
    door: Arc<Door>,
    handshakes: Arc<Semaphore>,
    callers: Arc<Callers>,
    /// How often the operating system had no socket for us: it is asked ten times a second.
    failures: Mutex<Tally>,
    closed: CancellationToken,
}

/// What each one at the door needs.
struct Door {
    acceptor: TlsAcceptor,
    settings: TcpSettings,
    registry: Registry,
    noise: Noise,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Somebody at the door. Admit it in a task of its own.
pub struct Knock {
    stream: TcpStream,
    remote: SocketAddr,
    door: Arc<Door>,
    place: Arc<Place>,
}

/// A place among the handshakes under way, kept until there is an exchange of a site or the socket is closed.
pub(super) struct Place {
    _handshake: OwnedSemaphorePermit,
    _caller: Caller,
}

impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Knock({})", self.remote)
    }
}

impl Listener {
    /// Binds `local` (port 0: any) and listens with `tls`, a configuration of [`crate::tls::server_config`].
    ///
    /// # Errors
    /// [`LinkError::Io`] when the socket cannot be bound.
    pub fn bind(
        local: SocketAddr,
        tls: rustls::ServerConfig,
        settings: TcpSettings,
    ) -> Result<Self, LinkError> {
        let socket = std::net::TcpListener::bind(local)?;
        socket.set_nonblocking(true)?;
        let handshakes = Arc::new(Semaphore::new(settings.handshakes));
        let callers = Arc::new(Callers::new(settings.handshakes_per_address));
        let registry = Registry::new(settings.max_exchanges);
        let door = Arc::new(Door {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            settings,
            registry,
            noise: Noise::new(Lane::Tcp),
        });
        let (socket, closed) = (TcpListener::from_std(socket)?, CancellationToken::new());
        Ok(Self { socket, door, handshakes, callers, failures: Mutex::default(), closed })
    }

    /// The bound address.
    ///
    /// # Errors
    /// What the socket says.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        Ok(self.socket.local_addr()?)
    }

    /// The next one at the door, or `None` once the listener is closed. Cancel-safe.
    pub async fn next(&self) -> Option<Knock> {
        self.closed.run_until_cancelled(self.next_caller()).await
    }

    async fn next_caller(&self) -> Knock {
        loop {
            // Invariant: the semaphore is ours, and nobody closes it.
            let handshake = self.handshakes.clone().acquire_owned().await.expect("it is never closed");
            match self.socket.accept().await {
                Ok((stream, remote)) => {
                    if let Some(caller) = Callers::enter(&self.callers, remote.ip()) {
                        let door = self.door.clone();
                        let place = Arc::new(Place { _handshake: handshake, _caller: caller });
                        return Knock { stream, remote, door, place };
                    }
                    let words = "too many handshakes from this address".into();
                    self.door.noise.heard(remote, &LinkError::Closed { code: CloseCode::TooBusy, words });
                }
                Err(error) => {
                    let failures =
                        self.failures.lock().unwrap_or_else(PoisonError::into_inner).count(Instant::now());
                    if let Some(failures) = failures {
                        tracing::warn!(failures, "cannot accept a TCP connection: {error}");
                    }
                    tokio::time::sleep(NO_SOCKET).await;
                }
            }
        }
    }

    /// How many handshakes could begin now.
    #[cfg(test)]
    pub(crate) fn free_handshakes(&self) -> usize {
        self.handshakes.available_permits()
    }

    /// Closes all connections and waits until the other sides were told.
    pub async fn close(&self, code: CloseCode) {
        self.closed.cancel();
        self.door.registry.close_all(code);
        self.door.registry.all_gone().await;
    }
}

impl Knock {
    /// Its address.
    pub fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// Completes the handshake, and closes what may not come in. Of callers that are no sites ([`is_noise`]) there is a line a
    /// minute; of a refusal whoever admits tells.
    ///
    /// # Errors
    /// [`LinkError::RefusedPeer`] when the certificate is not of this consortium or out of date,
    /// [`LinkError::Closed`] when there is none where one is required, [`LinkError::Identity`] when it names no site,
    /// [`LinkError::ClosedHere`] when the listener has closed meanwhile.
    pub async fn admit(self) -> Result<Admitted, LinkError> {
        let Self { stream, remote, door, place } = self;
        let tls = match door.handshake(stream, &place).await {
            Err(error) if is_noise(&error) => {
                door.noise.heard(remote, &error);
                return Err(error);
            }
            shaken => shaken,
        };
        let admitted = tls.and_then(|tls| door.sort(tls, remote, &place));
        if let Err(error) = &admitted {
            tracing::debug!(%remote, code = error.code(), "refused a connection over TCP: {error}");
        }
        admitted
    }
}

impl Door {
    async fn handshake(&self, stream: TcpStream, place: &Arc<Place>) -> Result<Tls, LinkError> {
        self.settings.apply(&stream)?;
        // On every exchange: a site reads what it has asked for.
        self.settings.bound_silence(&stream)?;
        let limit = self.settings.handshake_timeout;
        let accepting = self.acceptor.accept(stream).into_fallible();
        match tokio::time::timeout(limit, accepting).await {
            Ok(Ok(tls)) => Ok(tls.into()),
            Ok(Err((error, stream))) => {
                self.registry.turn_away_unknown(stream, place.clone());
                Err(handshake_error(error))
            }
            Err(_) => Err(LinkError::TooSlow { what: "handshake", limit }),
        }
    }

    /// Tells sites from strangers, by protocol and certificate.
    fn sort(&self, tls: Tls, remote: SocketAddr, place: &Arc<Place>) -> Result<Admitted, LinkError> {
        let (_, state) = tls.get_ref();
        let protocol = state.alpn_protocol().map(<[u8]>::to_vec);
        let certificate = state.peer_certificates().and_then(<[_]>::first).cloned();
        match protocol.as_deref() {
            Some(wire::ALPN_ENROLL) => self.registry.stranger(tls, remote, place.clone()),
            Some(wire::ALPN) => {
                let Some(certificate) = certificate else {
                    let code = CloseCode::NoCertificate;
                    self.registry.turn_away(tls, code, code.words(), place.clone());
                    return Err(LinkError::Closed { code, words: Default::default() });
                };
                match PeerIdentity::from_certificate(&certificate) {
                    Ok(identity) => self.registry.join(identity, tls, remote, place.clone()),
                    Err(error) => {
                        let words = error.to_string();
                        self.registry.turn_away(tls, CloseCode::BadIdentity, &words, place.clone());
                        Err(error.into())
                    }
                }
            }
            // A client that names no protocol: over TCP that is for us to refuse.
            _ => Err(LinkError::RefusedPeer { alert: Alert::NoProtocol, detail: "".into() }),
        }
    }
}
