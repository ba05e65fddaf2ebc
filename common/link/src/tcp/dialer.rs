//! The site's end of the TCP lane: dials out, directly or through a proxy, once for each exchange.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::ending::translate;
use super::line::Tls;
use super::proxy::{Proxy, ProxyError};
use super::session::Session;
use super::settings::TcpSettings;
use crate::connection::Connection;
use crate::error::{Alert, LinkError};

/// The way to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To its address.
    Direct(SocketAddr),
    /// Through an HTTP proxy, which looks the coordinator up.
    Proxy(Proxy),
}

/// Makes connections to one coordinator.
#[derive(Clone)]
pub struct Dialer {
    connector: TlsConnector,
    protocols: Vec<Vec<u8>>,
    settings: TcpSettings,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Dialer {
    /// Dials with `tls`, a configuration of [`crate::tls`].
    pub fn new(tls: rustls::ClientConfig, settings: TcpSettings) -> Self {
        let protocols = tls.alpn_protocols.clone();
        Self { connector: TlsConnector::from(Arc::new(tls)), protocols, settings }
    }

    /// Connects to the coordinator `host`, which its certificate must cover, at `port`. Success means that we trust the
    /// coordinator, not yet that it takes us: that is its Welcome.
    ///
    /// # Errors
    /// [`LinkError::RefusedPeer`] or [`LinkError::Inspected`] when its certificate is not what it must be,
    /// [`LinkError::Proxy`] when the proxy does not let us through, [`LinkError::Unreachable`] or
    /// [`LinkError::TimedOut`] when nobody answers.
    pub async fn dial(&self, route: Route, host: &str, port: u16) -> Result<Connection, LinkError> {
        let wrong = || LinkError::Dial(quinn::ConnectError::InvalidServerName(host.to_owned()));
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        let call = Call { dialer: self.clone(), route, server_name, target: target(host, port) };
        let (first, remote) = call.connect().await?;
        // The first exchange is the watch stream, and never waits for a turn. It tells for the others that nobody is there:
        // with it the site ends them all.
        self.settings.bound_silence(first.get_ref().0)?;
        Ok(Connection::tcp(Session::site(call, first, remote, self.settings.max_exchanges)))
    }
}

/// `host:port` as HTTP writes it: IPv6 addresses in brackets.
fn target(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// All that is needed to dial once more.
pub(super) struct Call {
    dialer: Dialer,
    route: Route,
    server_name: ServerName<'static>,
    target: String,
}

impl Call {
    /// Dials; and the address of whoever took the call.
    pub(super) async fn connect(&self) -> Result<(Tls, SocketAddr), LinkError> {
        let deadline = Instant::now() + self.dialer.settings.handshake_timeout;
        let (stream, silent) = match &self.route {
            Route::Direct(remote) => {
                let unreachable =
                    |source| LinkError::Unreachable { address: remote.to_string().into(), source };
                let connected = timeout_at(deadline, TcpStream::connect(remote)).await;
                (connected.map_err(|_| LinkError::TimedOut)?.map_err(unreachable)?, LinkError::TimedOut)
            }
            Route::Proxy(proxy) => {
                let stream = proxy.tunnel(&self.target, deadline).await?;
                let silent = ProxyError::Silent { target: self.target.as_str().into(), opened: true };
                (stream, proxy.fails(silent))
            }
        };
        timeout_at(deadline, self.shake_hands(stream)).await.unwrap_or(Err(silent))
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<(Tls, SocketAddr), LinkError> {
        self.dialer.settings.apply(&stream)?;
        let remote = stream.peer_addr()?;
        let tls = self.dialer.connector.connect(self.server_name.clone(), stream).await;
        let tls = tls.map_err(handshake_error)?;
        let agreed = tls.get_ref().1.alpn_protocol();
        if !self.dialer.protocols.iter().any(|offered| agreed == Some(offered.as_slice())) {
            return Err(LinkError::RefusedPeer { alert: Alert::NoProtocol, detail: "".into() });
        }
        Ok((tls.into(), remote))
    }
}

pub(super) fn handshake_error(error: io::Error) -> LinkError {
    match error.kind() {
        // A firewall ends what it does not like either way.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            LinkError::CutOff { what: "TLS handshake" }
        }
        _ => translate(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_that_is_closed_or_reset_was_cut() {
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            assert_eq!(handshake_error(kind.into()).code(), "cut-off", "{kind}");
        }
    }

    #[test]
    fn an_ipv6_address_is_bracketed_for_the_proxy() {
        assert_eq!(target("c.example.org", 443), "c.example.org:443");
        assert_eq!(target("2001:db8::1", 8443), "[2001:db8::1]:8443");
    }
}
