//! Over real QUIC and TCP on loopback, with certificate authorities made on the spot.

mod carry;
mod cuts;
mod door;
mod line;
mod migration;
mod pki;
mod proxy;
mod store;
mod strangers;
mod tcp_lane;

use std::net::{Ipv4Addr, SocketAddr};

use common::wire::{Hello, Reply, Request, Welcome};

use crate::quic::{Admitted, Connection, Dialer, Listener, QuicSettings};
use crate::{LinkError, tls};
use pki::Pki;

/// A port that the operating system chooses.
fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn listen(pki: &Pki) -> (Listener, SocketAddr) {
    let config = tls::server_config(pki.coordinator(), &pki.root()).unwrap();
    let listener = Listener::bind(any_port(), config, QuicSettings::coordinator()).unwrap();
    let address = listener.local_address().unwrap();
    (listener, address)
}

fn dialer(config: rustls::ClientConfig) -> Dialer {
    Dialer::bind(any_port(), config, QuicSettings::site()).unwrap()
}

fn site_dialer(pki: &Pki) -> Dialer {
    dialer(tls::site_config(pki.site("north"), &pki.root()).unwrap())
}

/// A connection between a site and its coordinator: both ends, and what keeps them alive.
struct Pair {
    site: Connection,
    coordinator: Connection,
    _endpoints: (Dialer, Listener),
}

async fn pair() -> Pair {
    let pki = Pki::new();
    let (listener, address) = listen(&pki);
    let dialer = site_dialer(&pki);
    let (site, admitted) = tokio::join!(dialer.dial(address, "localhost"), admit(&listener));
    let Ok(Admitted::Site(coordinator, _)) = admitted else { panic!("{admitted:?}") };
    Pair { site: site.unwrap(), coordinator, _endpoints: (dialer, listener) }
}

async fn admit(listener: &Listener) -> Result<Admitted, LinkError> {
    listener.next().await.expect("the listener is open").admit().await
}

/// Site: dials and says hello; what comes back.
async fn greet(dialer: &Dialer, address: SocketAddr) -> Result<Reply, LinkError> {
    let connection = dialer.dial(address, "localhost").await?;
    let mut exchange = connection.open().await?;
    let hello = Hello { minor_min: 0, minor_max: 0, agent_version: "test".into(), capabilities: vec![] };
    exchange.writer.write(&Request::Hello(hello)).await?;
    exchange.writer.finish().await?;
    exchange.reader.read().await
}

/// Coordinator: admits one and, if it is a site, answers its hello.
async fn welcome(listener: &Listener) -> Result<Admitted, LinkError> {
    let admitted = admit(listener).await?;
    if let Admitted::Site(connection, peer) = &admitted {
        let mut exchange = connection.accept().await?;
        let Request::Hello(_) = exchange.reader.read().await? else { panic!("expected hello") };
        let (site, role, consortium) = (peer.site.clone(), peer.role, peer.consortium.as_str().into());
        exchange.writer.write(&Reply::Welcome(Welcome { site, role, consortium, minor: 0 })).await?;
        exchange.writer.finish().await?;
    }
    Ok(admitted)
}

/// One visit of a site: what each side has of it.
async fn visit(listener: &Listener, address: SocketAddr, dialer: &Dialer) -> Visit {
    let (admitted, reply) = tokio::join!(welcome(listener), greet(dialer, address));
    Visit { admitted, reply }
}

/// What the coordinator and the site have of a visit.
struct Visit {
    admitted: Result<Admitted, LinkError>,
    reply: Result<Reply, LinkError>,
}
