//! The coordinator's endpoint: one port, two protocols, and the door between them.
//!
//! A stranger can cost a handshake at most: those are bounded in time and number and, once there are many, for each address, which
//! must then be proved.

use std::net::SocketAddr;
use std::sync::Arc;

use common::wire;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, VarInt};
use rustls_pki_types::CertificateDer;

use super::reset::ResetKey;
use super::settings::{QuicSettings, SocketBuffers, with_large_packets};
use crate::callers::{Caller, Callers};
use crate::close::CloseCode;
use crate::connection::{Admitted, Connection, Lane};
use crate::error::{Alert, LinkError};
use crate::framing::within;
use crate::identity::PeerIdentity;
use crate::noise::{Noise, is_noise};
use crate::tls;

/// Takes connections from sites.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    settings: QuicSettings,
    buffers: SocketBuffers,
    /// Shared by all handshakes under way: its count is theirs, and one.
    handshakes: Arc<()>,
    callers: Arc<Callers>,
    noise: Arc<Noise>,
}

/// Handshakes under way from which on a new address must prove itself. Below, that would cost every honest site a round
/// trip; above, somebody may be filling us with forged addresses, which costs them a packet and us a handshake each.
pub(crate) const RETRY_FROM: usize = 32;

/// Whether somebody must first answer from its address.
const fn must_prove_address(handshakes: usize, validated: bool, may_retry: bool) -> bool {
    handshakes >= RETRY_FROM && !validated && may_retry
}

/// Somebody at the door; under load its address is proved, and nothing else is known. Admit it in a task of its own.
#[derive(Debug)]
pub struct Knock {
    incoming: Incoming,
    settings: QuicSettings,
    noise: Arc<Noise>,
    _place: Place,
}

/// A place among the handshakes under way.
#[derive(Debug)]
struct Place {
    _handshake: Arc<()>,
    _caller: Option<Caller>,
}

impl Listener {
    /// Binds `local` (port 0: any) and listens with `tls`, a configuration of [`tls::server_config`].
    ///
    /// # Errors
    /// [`LinkError::Io`] when the socket cannot be bound, [`LinkError::Setting`] for a setting out of range.
    pub fn bind(
        local: SocketAddr,
        tls: rustls::ServerConfig,
        settings: QuicSettings,
    ) -> Result<Self, LinkError> {
        Self::with_endpoint(local, tls, settings, EndpointConfig::default())
    }

    /// As [`Listener::bind`], and the successor of every listener with the same key: sites that speak to one of those
    /// learn at their next packet that it is gone.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_with(
        local: SocketAddr,
        tls: rustls::ServerConfig,
        settings: QuicSettings,
        key: &ResetKey,
    ) -> Result<Self, LinkError> {
        Self::with_endpoint(local, tls, settings, key.endpoint())
    }

    fn with_endpoint(
        local: SocketAddr,
        tls: rustls::ServerConfig,
        settings: QuicSettings,
        endpoint: EndpointConfig,
    ) -> Result<Self, LinkError> {
        let endpoint = with_large_packets(endpoint)?;
        let mut config = ServerConfig::with_crypto(tls::quic_server(tls)?);
        config.transport_config(settings.transport()?);
        let (socket, buffers) = settings.bind(local)?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(endpoint, Some(config), socket, runtime)?;
        let callers = Arc::new(Callers::new(settings.handshakes_per_address));
        let noise = Arc::new(Noise::new(Lane::Quic));
        Ok(Self { endpoint, settings, buffers, handshakes: Arc::default(), callers, noise })
    }

    /// The bound address.
    ///
    /// # Errors
    /// What the socket says.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        Ok(self.endpoint.local_addr()?)
    }

    /// The UDP buffers that the operating system granted.
    pub fn socket_buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// The next one at the door, or `None` once the listener is closed. Cancel-safe.
    pub async fn next(&self) -> Option<Knock> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let under_way = Arc::strong_count(&self.handshakes) - 1;
            if must_prove_address(under_way, incoming.remote_address_validated(), incoming.may_retry()) {
                // It fails only when a retry is not allowed, which was just asked.
                let _ = incoming.retry();
                continue;
            }
            match self.enter(under_way, &incoming) {
                Ok(_place) => {
                    let (settings, noise) = (self.settings.clone(), self.noise.clone());
                    return Some(Knock { incoming, settings, noise, _place });
                }
                Err(words) => {
                    let why = LinkError::Closed { code: CloseCode::TooBusy, words: words.into() };
                    self.noise.heard(incoming.remote_address(), &why);
                    incoming.refuse();
                }
            }
        }
    }

    /// One more handshake, or why there is no place for it. An address that was not proved may be forged: it does not count against
    /// whoever has it, and there are at most [`RETRY_FROM`] of those.
    fn enter(&self, under_way: usize, incoming: &Incoming) -> Result<Place, &'static str> {
        if under_way >= self.settings.handshakes {
            return Err("too many handshakes at once");
        }
        let _caller = match incoming.remote_address_validated() {
            true => {
                let caller = Callers::enter(&self.callers, incoming.remote_address().ip());
                Some(caller.ok_or("too many handshakes from this address")?)
            }
            false => None,
        };
        Ok(Place { _handshake: self.handshakes.clone(), _caller })
    }

    /// Closes all connections and waits until the other sides were told.
    pub async fn close(&self, code: CloseCode) {
        self.endpoint.close(VarInt::from_u32(code.number()), code.words().as_bytes());
        self.endpoint.wait_idle().await;
    }
}

impl Knock {
    /// Its address.
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Completes the handshake, and closes what may not come in. Of callers that are no sites ([`is_noise`]) there is a line a
    /// minute; of a refusal whoever admits tells.
    ///
    /// # Errors
    /// [`LinkError::RefusedPeer`] when the certificate is not of this consortium or out of date,
    /// [`LinkError::Closed`] when there is none where one is required, [`LinkError::Identity`] when it names no site.
    pub async fn admit(self) -> Result<Admitted, LinkError> {
        let remote = self.remote_address();
        let limit = self.settings.handshake_timeout;
        let connecting = self.incoming.accept()?;
        let handshake = async { Ok(connecting.await?) };
        let admitted = match within(limit, "handshake", handshake).await {
            Ok(connection) => sort(connection),
            Err(error) => Err(error),
        };
        match &admitted {
            Ok(_) => {}
            Err(error) if is_noise(error) => self.noise.heard(remote, error),
            Err(error) => tracing::debug!(%remote, code = error.code(), "refused a connection: {error}"),
        }
        admitted
    }
}

/// Tells sites from strangers, by protocol and certificate.
fn sort(connection: quinn::Connection) -> Result<Admitted, LinkError> {
    let certificate = peer_certificate(&connection);
    let link = Connection::quic(connection.clone());
    match protocol(&connection).as_deref() {
        Some(wire::ALPN_ENROLL) => Ok(Admitted::Stranger(link)),
        Some(wire::ALPN) => {
            let Some(certificate) = certificate else {
                return Err(turn_away(&link, CloseCode::NoCertificate));
            };
            let identity = PeerIdentity::from_certificate(&certificate).inspect_err(|error| {
                link.close(CloseCode::BadIdentity, &error.to_string().into());
            })?;
            Ok(Admitted::Site(link, identity))
        }
        // Not reached: the server offers these two alone, and TLS refuses a client that wants neither.
        _ => Err(LinkError::RefusedPeer { alert: Alert::NoProtocol, detail: "".into() }),
    }
}

fn turn_away(connection: &Connection, code: CloseCode) -> LinkError {
    let words = code.words().into();
    connection.close(code, &words);
    LinkError::Closed { code, words: Default::default() }
}

fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn peer_certificate(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_proved_under_load_alone() {
        assert!(!must_prove_address(0, false, true));
        assert!(!must_prove_address(RETRY_FROM - 1, false, true));
        assert!(must_prove_address(RETRY_FROM, false, true));
        // It has, or quinn does not allow it.
        assert!(!must_prove_address(RETRY_FROM, true, true) && !must_prove_address(RETRY_FROM, false, false));
    }
}
