//! The coordinator's doors: QUIC, and TCP on the same port number for sites whose networks let no UDP out.

use std::net::SocketAddr;

use link::quic::QuicSettings;
use link::tcp::TcpSettings;
use link::tls::{self, Credentials};
use link::{Admitted, CloseCode, LinkError, quic, tcp};
use rustls_pki_types::CertificateDer;

/// How often a free port is looked for that both doors can have; only where the operating system chooses it.
const TRIES: usize = 8;

/// What is listened with.
pub struct Doors {
    quic: quic::Listener,
    tcp: Option<tcp::Listener>,
}

/// What the doors are made of.
pub struct Frame<'a> {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether over TCP as well.
    pub tcp: bool,
    /// QUIC's settings.
    pub quic: &'a QuicSettings,
    /// The server's certificate and key.
    pub credentials: Credentials,
    /// The consortium's root.
    pub root: &'a CertificateDer<'static>,
    /// The same at each start.
    pub reset_key: &'a quic::ResetKey,
}

/// Somebody at one of them.
pub(super) enum Knock {
    Quic(Box<quic::Knock>),
    Tcp(tcp::Knock),
}

impl Doors {
    /// Binds them.
    ///
    /// # Errors
    /// The sockets, or TLS.
    pub fn open(frame: &Frame<'_>) -> Result<Self, LinkError> {
        let tries = if frame.listen.port() == 0 { TRIES } else { 1 };
        let mut opened = frame.open();
        for _ in 1..tries {
            if opened.is_ok() {
                break;
            }
            opened = frame.open();
        }
        opened
    }

    /// The bound address, the same of both.
    ///
    /// # Errors
    /// The socket.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        self.quic.local_address()
    }

    /// Whether TCP is listened on.
    pub fn has_tcp(&self) -> bool {
        self.tcp.is_some()
    }

    /// The next one at the doors, or `None` once they are closed. Cancel-safe.
    pub(super) async fn next(&self) -> Option<Knock> {
        tokio::select! {
            knock = self.quic.next() => knock.map(|knock| Knock::Quic(Box::new(knock))),
            knock = self.next_over_tcp() => knock.map(Knock::Tcp),
        }
    }

    async fn next_over_tcp(&self) -> Option<tcp::Knock> {
        match &self.tcp {
            Some(listener) => listener.next().await,
            None => std::future::pending().await,
        }
    }

    /// Closes all connections and waits until the other sides were told.
    pub(super) async fn close(&self, code: CloseCode) {
        let over_tcp = async {
            if let Some(listener) = &self.tcp {
                listener.close(code).await;
            }
        };
        tokio::join!(self.quic.close(code), over_tcp);
    }
}

impl Frame<'_> {
    fn open(&self) -> Result<Doors, LinkError> {
        let tls = || tls::server_config(self.credentials.clone(), self.root);
        let quic = quic::Listener::bind_with(self.listen, tls()?, self.quic.clone(), self.reset_key)?;
        let settings = TcpSettings { congestion: self.quic.congestion, ..TcpSettings::coordinator() };
        let tcp = match self.tcp {
            true => Some(tcp::Listener::bind(quic.local_address()?, tls()?, settings)?),
            false => None,
        };
        Ok(Doors { quic, tcp })
    }
}

impl Knock {
    pub(super) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(knock) => knock.remote_address(),
            Self::Tcp(knock) => knock.remote_address(),
        }
    }

    pub(super) async fn admit(self) -> Result<Admitted, LinkError> {
        match self {
            Self::Quic(knock) => knock.admit().await,
            Self::Tcp(knock) => knock.admit().await,
        }
    }
}
