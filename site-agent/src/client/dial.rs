//! Dialling the coordinator, over QUIC or TCP as [`super::lane`] plans it. Nothing is said here.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use common::wire::Words;
use link::quic::QuicSettings;
use link::tcp::{Proxy, Route, TcpSettings};
use link::{CloseCode, Connection, Lane, LinkError, quic, tcp};
use rustls::ClientConfig;

use super::address::{Address, Remote};
use super::lane::{LaneSetting, Plan};

/// How long QUIC may take before TCP is dialled beside it.
const HEAD_START: Duration = Duration::from_secs(4);
/// How long the other side may take to hear that we close.
const GOODBYE: Duration = Duration::from_secs(2);

/// The way to the coordinator.
#[derive(Clone, Debug)]
pub struct Network {
    /// Where it answers.
    pub coordinator: Address,
    /// Which lanes may be used.
    pub lane: LaneSetting,
    /// What TCP goes through. QUIC goes straight out or not at all.
    pub proxy: Option<Proxy>,
    /// Congestion control and windows of QUIC.
    pub quic: QuicSettings,
}

/// A connection, and what must live as long.
pub(crate) struct Dialled {
    pub(crate) connection: Connection,
    endpoint: Option<quic::Dialer>,
}

impl Dialled {
    /// Closes the connection and lets the other side hear of it.
    pub(crate) async fn close(self) {
        self.connection.close(CloseCode::Done, &Words::default());
        if let Some(endpoint) = self.endpoint {
            // The other side is told, or forgets us when nothing is heard.
            let _ = tokio::time::timeout(GOODBYE, endpoint.close()).await;
        }
    }
}

impl Network {
    /// Dials the address that has its turn, as planned.
    pub(super) async fn dial(
        &self,
        tls: &ClientConfig,
        plan: Plan,
        remote: &Remote,
    ) -> Result<Dialled, LinkError> {
        match plan {
            Plan::Quic => self.over_quic(tls.clone(), remote).await,
            Plan::Tcp => self.over_tcp(tls.clone(), remote).await,
            Plan::Both => self.race(tls, remote).await,
        }
    }

    /// Dials one address after the other, until one connects. Of several failures, the first that stays the same however often one
    /// asks is told.
    pub(super) async fn dial_each(
        &self,
        tls: &ClientConfig,
        plan: Plan,
        remote: &mut Remote,
    ) -> Result<Dialled, LinkError> {
        let mut telling: Option<LinkError> = None;
        loop {
            let error = match self.dial(tls, plan, remote).await {
                Ok(dialled) => return Ok(dialled),
                Err(error) => telling.filter(|told| !told.is_transient()).unwrap_or(error),
            };
            // A proxy says the same whatever address has its turn.
            if matches!(error, LinkError::Proxy { .. }) || !remote.failed() {
                return Err(error);
            }
            telling = Some(error);
        }
    }

    /// Whether QUIC gets an answer now. The coordinator hears no Hello and forgets the connection.
    pub(super) async fn quic_answers(&self, tls: &ClientConfig, remote: &Remote) -> bool {
        match self.over_quic(tls.clone(), remote).await {
            Ok(dialled) => {
                dialled.close().await;
                true
            }
            Err(_) => false,
        }
    }

    /// Who connects first is taken, having shown a certificate of the pinned root. Whoever else answers over QUIC, such as an
    /// inspecting firewall or a web server at the same port, may not be there over TCP: no answer of theirs is final.
    async fn race(&self, tls: &ClientConfig, remote: &Remote) -> Result<Dialled, LinkError> {
        let mut over_quic = pin!(self.over_quic(tls.clone(), remote));
        let mut over_tcp = pin!(self.over_tcp(tls.clone(), remote));
        match tokio::time::timeout(HEAD_START, &mut over_quic).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            Ok(Err(quic)) => return over_tcp.await.map_err(|tcp| more_telling(quic, tcp)),
            Err(_) => {}
        }
        tokio::select! {
            dialled = &mut over_quic => match dialled {
                Ok(dialled) => Ok(dialled),
                Err(quic) => over_tcp.await.map_err(|tcp| more_telling(quic, tcp)),
            },
            dialled = &mut over_tcp => match dialled {
                Ok(dialled) => Ok(dialled),
                Err(tcp) => over_quic.await.map_err(|quic| more_telling(quic, tcp)),
            },
        }
    }

    async fn over_quic(&self, tls: ClientConfig, remote: &Remote) -> Result<Dialled, LinkError> {
        let remote = remote.address(&self.coordinator).await.map_err(LinkError::Io)?;
        let endpoint = quic::Dialer::bind(any_port(remote), tls, self.quic.clone())?;
        let connection = endpoint.dial(remote, self.coordinator.host()).await?;
        Ok(Dialled { connection, endpoint: Some(endpoint) })
    }

    async fn over_tcp(&self, tls: ClientConfig, remote: &Remote) -> Result<Dialled, LinkError> {
        let route = match &self.proxy {
            Some(proxy) => Route::Proxy(proxy.clone()),
            None => Route::Direct(remote.address(&self.coordinator).await.map_err(LinkError::Io)?),
        };
        let dialer =
            tcp::Dialer::new(tls, TcpSettings { congestion: self.quic.congestion, ..TcpSettings::site() });
        let connection = dialer.dial(route, self.coordinator.host(), self.coordinator.port()).await?;
        Ok(Dialled { connection, endpoint: None })
    }
}

/// Of two lanes that failed, the error that tells the operator more: what came back over one says more than silence over the
/// other. What came back over that one too is in the log.
fn more_telling(quic: LinkError, tcp: LinkError) -> LinkError {
    let is_silence = |error: &LinkError| {
        matches!(error, LinkError::TimedOut | LinkError::Unreachable { .. } | LinkError::Io(_))
    };
    let tcp_is_final = !tcp.is_transient() || matches!(tcp, LinkError::Proxy { .. });
    let tcp_tells = tcp_is_final || (is_silence(&quic) && !is_silence(&tcp));
    let (telling, lane, other) = if tcp_tells { (tcp, Lane::Quic, quic) } else { (quic, Lane::Tcp, tcp) };
    if !is_silence(&other) {
        tracing::info!("over {}: {other}", lane.name());
    }
    telling
}

/// Any local port, of the same address family as `remote`.
fn any_port(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use link::tls::{self, Credentials, RootFingerprint};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpSocket;

    use super::*;

    /// An address that refuses connections for as long as the socket lives: nobody listens.
    pub(in crate::client) fn refusing() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn each_address_is_dialled_when_those_before_it_fail() {
        let ((_one, first), (_other, second)) = (refusing(), refusing());
        let coordinator = "c.example.org:443".parse().unwrap();
        let network =
            Network { coordinator, lane: LaneSetting::Tcp, proxy: None, quic: QuicSettings::site() };
        let tls = tls::enroll_config("ab".repeat(32).parse().unwrap()).unwrap();
        let mut remote = Remote::known(vec![first, second]);
        let error = network.dial_each(&tls, Plan::Tcp, &mut remote).await.err().unwrap();
        let LinkError::Unreachable { address, .. } = &error else { panic!("{error}") };
        assert_eq!(address.as_str(), second.to_string());
    }

    /// What a coordinator of an authority of its own shows, and that authority.
    fn coordinator() -> (Credentials, CertificateDer<'static>) {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.self_signed(&root_key).unwrap().der().clone();
        let own = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let own = own.signed_by(&key, &Issuer::new(authority, root_key)).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (Credentials { chain: vec![own, root.clone()], key }, root)
    }

    /// One port at which somebody else answers over QUIC, and the coordinator of the root that is given back over TCP.
    fn doors() -> (quic::Listener, tcp::Listener, CertificateDer<'static>) {
        let ((others, other_root), (credentials, root)) = (coordinator(), coordinator());
        let open = |_| {
            let server = |credentials: &Credentials, root| tls::server_config(credentials.clone(), root);
            let (local, settings) = ((Ipv4Addr::LOCALHOST, 0).into(), QuicSettings::coordinator());
            let over_quic = quic::Listener::bind(local, server(&others, &other_root)?, settings)?;
            let local = over_quic.local_address()?;
            let over_tcp =
                tcp::Listener::bind(local, server(&credentials, &root)?, TcpSettings::coordinator())?;
            Ok::<_, LinkError>((over_quic, over_tcp))
        };
        let (over_quic, over_tcp) = (0..16).find_map(|n| open(n).ok()).expect("a port that both can have");
        (over_quic, over_tcp, root)
    }

    #[tokio::test]
    async fn a_no_over_quic_of_somebody_else_does_not_keep_the_site_from_tcp() {
        let (over_quic, over_tcp, root) = doors();
        let address = over_quic.local_address().unwrap();
        let coordinator = format!("localhost:{}", address.port()).parse().unwrap();
        let network =
            Network { coordinator, lane: LaneSetting::Auto, proxy: None, quic: QuicSettings::site() };
        let tls = tls::enroll_config(RootFingerprint::of(&root)).unwrap();
        let remote = Remote::known(vec![address]);
        let alone = async { over_quic.next().await.unwrap().admit().await };
        let (refused, _) = tokio::join!(network.dial(&tls, Plan::Quic, &remote), alone);
        assert!(!refused.err().unwrap().is_transient(), "over QUIC it is refused for good");

        let answer = async {
            loop {
                tokio::select! {
                    Some(knock) = over_quic.next() => drop(knock.admit().await),
                    Some(knock) = over_tcp.next() => drop(knock.admit().await),
                    else => break,
                }
            }
        };
        let dialled = tokio::select! {
            dialled = network.dial(&tls, Plan::Both, &remote) => dialled.unwrap(),
            () = answer => panic!("the doors are open"),
        };
        assert_eq!(dialled.connection.lane(), Lane::Tcp);
    }

    #[test]
    fn of_two_failures_the_operator_hears_the_one_that_says_more() {
        let inspected = || LinkError::Inspected { issuer: "CN=Hospital Proxy CA".into() };
        assert_eq!(more_telling(LinkError::TimedOut, inspected()).code(), "tls-inspection");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let unreachable = LinkError::Unreachable { address: "192.0.2.1:443".into(), source: refused };
        assert_eq!(more_telling(LinkError::TimedOut, unreachable).code(), "timed-out");
        let garbage = LinkError::Proxy { proxy: "http://p:1".into(), error: tcp::ProxyError::Garbage };
        assert_eq!(more_telling(LinkError::TimedOut, garbage).code(), "proxy-garbage");
        // A firewall that drops UDP, and lets TCP out but spoils TLS.
        let cut = || LinkError::CutOff { what: "TLS handshake" };
        assert_eq!(more_telling(LinkError::TimedOut, cut()).code(), cut().code());
        let older_tls = || LinkError::Transport("peer is incompatible".to_owned());
        assert_eq!(more_telling(LinkError::TimedOut, older_tls()).code(), older_tls().code());
        // Whoever answered over QUIC was not asked in vain, unless somebody answers over TCP as well.
        assert_eq!(more_telling(inspected(), LinkError::TimedOut).code(), "tls-inspection");
        assert_eq!(more_telling(older_tls(), inspected()).code(), "tls-inspection");
        // The coordinator itself was heard over QUIC.
        let stopping = || LinkError::Closed { code: CloseCode::Stopping, words: "".into() };
        assert_eq!(more_telling(stopping(), cut()).code(), stopping().code());
    }
}
