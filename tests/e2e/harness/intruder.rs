//! A client of our own make, for what no program of ours would do: no certificate, kept sessions, another's requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::wire::{Hello, MINOR_MAX, MINOR_MIN, Reply, Request, Words};
use link::LinkError;
use link::quic::{Connection, Dialer, Exchange, QuicSettings};
use link::transfer::read_reply;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::{ClientConfig, NamedGroup};
use rustls_pki_types::ServerName;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);

/// Dials a coordinator with a TLS configuration of the test's choice.
pub(crate) struct Intruder {
    dialer: Dialer,
    coordinator: SocketAddr,
    /// Last: what uses it is dropped before.
    runtime: Runtime,
}

impl Intruder {
    pub(crate) fn new(config: ClientConfig, coordinator: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        // A socket belongs to the runtime that it is bound in.
        let dialer = runtime.block_on(async { Dialer::bind(any, config, QuicSettings::site()) });
        let dialer = dialer.expect("a socket");
        Self { dialer, coordinator: coordinator.parse().expect("IP and port"), runtime }
    }

    /// Connects and says hello: the connection and the stream of notices, once welcome.
    pub(crate) fn greet(&self) -> Result<(Connection, Exchange), LinkError> {
        self.runtime.block_on(async {
            let connection = self.dialer.dial(self.coordinator, "127.0.0.1").await?;
            match hello(&connection).await {
                Ok(watch) => Ok((connection, watch)),
                // The connection's own end says more than the broken stream.
                Err(error) => Err(connection.close_reason().unwrap_or(error)),
            }
        })
    }

    /// Asks something on a connection.
    pub(crate) fn ask(&self, connection: &Connection, request: &Request) -> Result<Reply, LinkError> {
        self.runtime.block_on(async {
            let Exchange { mut reader, mut writer } = connection.open().await?;
            writer.write(request).await?;
            writer.finish().await?;
            read_reply(&mut reader, PATIENCE).await
        })
    }

    /// Waits until the coordinator ends a connection; what it says.
    pub(crate) fn closed(&self, connection: &Connection) -> LinkError {
        let closed =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, connection.closed()).await });
        closed.expect("the coordinator ends the connection")
    }
}

async fn hello(connection: &Connection) -> Result<Exchange, LinkError> {
    let mut exchange = connection.open().await?;
    let agent_version = Words::new("intruder");
    let hello = Hello { minor_min: MINOR_MIN, minor_max: MINOR_MAX, agent_version, capabilities: Vec::new() };
    exchange.writer.write(&Request::Hello(hello)).await?;
    match read_reply(&mut exchange.reader, PATIENCE).await? {
        Reply::Welcome(_) => Ok(exchange),
        other => panic!("expected a welcome, got {other:?}"),
    }
}

/// Keeps every session that a server lets it keep, and counts them.
#[derive(Debug)]
pub(crate) struct KeptSessions {
    cache: ClientSessionMemoryCache,
    tickets: AtomicUsize,
}

impl KeptSessions {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { cache: ClientSessionMemoryCache::new(8), tickets: AtomicUsize::new(0) })
    }

    /// Tickets that servers gave.
    pub(crate) fn tickets(&self) -> usize {
        self.tickets.load(Ordering::Relaxed)
    }
}

impl ClientSessionStore for KeptSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        self.cache.insert_tls13_ticket(name, ticket);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.cache.take_tls13_ticket(name)
    }
}
