//! Strangers who begin handshakes and never finish them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig,
    Event, TransportErrorCode,
};
use tokio::net::UdpSocket;

use super::*;
use crate::quic::{Knock, RETRY_FROM};

/// Answers from its address when it is asked to, and says nothing more.
struct Stranger {
    socket: UdpSocket,
    coordinator: SocketAddr,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
}

impl Stranger {
    async fn new(pki: &Pki, from: Ipv4Addr, coordinator: SocketAddr) -> Self {
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        let tls = tls::site_config(pki.site("north"), &pki.root()).unwrap();
        let config = ClientConfig::new(tls::quic_client(tls).unwrap());
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let (handle, connection) =
            endpoint.connect(Instant::now(), config, coordinator, "localhost").unwrap();
        Self { socket, coordinator, endpoint, handle, connection }
    }

    /// Knocks, and goes on until it is sent away; why.
    async fn stay(&mut self) -> ConnectionError {
        loop {
            self.speak().await;
            if let Some(why) = self.listen().await {
                return why;
            }
        }
    }

    async fn speak(&mut self) {
        let mut packet = Vec::new();
        while self.connection.poll_transmit(Instant::now(), 1, &mut packet).is_some() {
            self.socket.send_to(&packet, self.coordinator).await.unwrap();
            packet.clear();
        }
    }

    async fn listen(&mut self) -> Option<ConnectionError> {
        let mut packet = BytesMut::zeroed(2048);
        let (len, from) = self.socket.recv_from(&mut packet).await.unwrap();
        packet.truncate(len);
        let heard = self.endpoint.handle(Instant::now(), from, None, None, packet, &mut Vec::new());
        if let Some(DatagramEvent::ConnectionEvent(handle, event)) = heard {
            assert_eq!(handle, self.handle);
            self.connection.handle_event(event);
        }
        std::iter::from_fn(|| self.connection.poll()).find_map(|event| match event {
            Event::ConnectionLost { reason } => Some(reason),
            _ => None,
        })
    }
}

/// The coordinator of these tests.
struct Coordinator {
    pki: Pki,
    listener: Listener,
    address: SocketAddr,
}

impl Coordinator {
    fn new(settings: QuicSettings) -> Self {
        let pki = Pki::new();
        let config = tls::server_config(pki.coordinator(), &pki.root()).unwrap();
        let listener = Listener::bind(any_port(), config, settings).unwrap();
        let address = listener.local_address().unwrap();
        Self { pki, listener, address }
    }

    /// A stranger from this address: it has a place at the door for as long as its knock is kept, or is told why not.
    async fn meet(&self, from: Ipv4Addr) -> Result<Knock, ConnectionError> {
        let mut stranger = Stranger::new(&self.pki, from, self.address).await;
        tokio::select! {
            knock = self.listener.next() => Ok(knock.expect("the listener is open")),
            why = stranger.stay() => Err(why),
        }
    }

    /// A site from this address.
    async fn let_in(&self, from: Ipv4Addr) -> Result<Admitted, LinkError> {
        let config = tls::site_config(self.pki.site("north"), &self.pki.root()).unwrap();
        let dialer = Dialer::bind((from, 0).into(), config, QuicSettings::site()).unwrap();
        let dialling = dialer.dial(self.address, "localhost");
        let (_site, admitted) = tokio::try_join!(dialling, admit(&self.listener))?;
        Ok(admitted)
    }
}

#[tokio::test]
async fn strangers_who_never_finish_keep_nobody_out_but_those_of_their_address() {
    let [crowd, other, third] = [1, 2, 3].map(|host| Ipv4Addr::new(127, 0, 0, host));
    let settings =
        QuicSettings { handshakes: RETRY_FROM + 3, handshakes_per_address: 2, ..QuicSettings::coordinator() };
    let coordinator = Coordinator::new(settings);
    let mut knocks = Vec::new();
    // The first may have forged their address; the last two have proved it.
    for _ in 0..RETRY_FROM + 2 {
        knocks.push(coordinator.meet(crowd).await.unwrap());
    }
    assert_refused(&coordinator.meet(crowd).await.unwrap_err());
    let admitted = coordinator.let_in(other).await;
    assert!(matches!(admitted, Ok(Admitted::Site(..))), "{admitted:?}");

    knocks.push(coordinator.meet(other).await.unwrap());
    assert_refused(&coordinator.meet(third).await.unwrap_err());
    // None of them takes a place for longer than its handshake.
    drop(knocks);
    let admitted = coordinator.let_in(crowd).await;
    assert!(matches!(admitted, Ok(Admitted::Site(..))), "{admitted:?}");
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_is_noise_and_gives_its_place_back() {
    let handshake_timeout = Duration::from_millis(50);
    let settings = QuicSettings { handshakes: 1, handshake_timeout, ..QuicSettings::coordinator() };
    let coordinator = Coordinator::new(settings);
    let knock = coordinator.meet(Ipv4Addr::LOCALHOST).await.unwrap();
    assert_refused(&coordinator.meet(Ipv4Addr::LOCALHOST).await.unwrap_err());
    let error = knock.admit().await.unwrap_err();
    assert!(matches!(error, LinkError::TooSlow { .. }) && crate::is_noise(&error), "{error:?}");
    assert!(coordinator.meet(Ipv4Addr::LOCALHOST).await.is_ok());
}

fn assert_refused(why: &ConnectionError) {
    let ConnectionError::ConnectionClosed(close) = why else { panic!("{why:?}") };
    assert_eq!(close.error_code, TransportErrorCode::CONNECTION_REFUSED);
}
