//! Who comes in, who does not, and what each side is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::ids::Role;
use common::time::Timestamp;
use common::wire;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls13ClientSessionValue};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

use super::pki::{PATIENCE, Pki, SiteCertificate};
use super::*;
use crate::quic::ResetKey;
use crate::tls::{Credentials, RootFingerprint};
use crate::{Alert, CloseCode, IdentityError};

/// A visit with these credentials to a coordinator of `pki`.
async fn visit_as(pki: &Pki, credentials: Credentials) -> Visit {
    let (listener, address) = listen(pki);
    visit(&listener, address, &dialer(tls::site_config(credentials, &pki.root()).unwrap())).await
}

/// The coordinator and the site, each by code, and that the site is told what to do.
fn assert_refused(visit: Visit, coordinator: &str, site: &str) -> LinkError {
    let at_site = visit.reply.expect_err("the site must not be welcome");
    assert_eq!((visit.admitted.expect_err("nobody may come in").code(), at_site.code()), (coordinator, site));
    assert!(at_site.hint().is_some(), "words for the site's operator: {at_site}");
    assert!(!at_site.is_transient(), "trying again cannot help: {at_site}");
    at_site
}

#[tokio::test]
async fn a_site_is_admitted_under_the_name_in_its_certificate() {
    let pki = Pki::new();
    let credentials = pki.site_saying(&SiteCertificate::of("north", Role::Evaluator));
    let visit = visit_as(&pki, credentials).await;
    let Ok(Admitted::Site(_, peer)) = visit.admitted else { panic!("{:?}", visit.admitted) };
    assert_eq!(
        (peer.site.as_str(), peer.role, peer.consortium.as_str()),
        ("north", Role::Evaluator, "thorax")
    );
    assert!(peer.is_valid_at(Timestamp(1_700_000_000_000)) && !peer.is_valid_at(Timestamp(0)));
    assert!(!peer.serial.is_empty());
    assert!(matches!(visit.reply, Ok(Reply::Welcome(_))));
}

#[tokio::test]
async fn without_certificate_nobody_comes_in() {
    let pki = Pki::new();
    let (listener, address) = listen(&pki);
    let mut config = tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap();
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    let visit = visit(&listener, address, &dialer(config)).await;
    let error = assert_refused(visit, "no-certificate", "no-certificate");
    assert!(error.to_string().contains("requires a site certificate"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_consortium_is_refused() {
    let pki = Pki::new();
    // Under the name of our root the signature is wrong; under another name the issuer is unknown.
    for (name, code) in [("root", "bad-certificate"), ("other", "unknown-issuer")] {
        let visit = visit_as(&pki, Pki::named(name).site("north")).await;
        let error = assert_refused(visit, code, code);
        assert!(error.to_string().contains("this consortium"), "{error}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_the_site_learns_why() {
    let pki = Pki::new();
    let expired = SiteCertificate { expired: true, ..SiteCertificate::of("north", Role::Trainer) };
    let visit = visit_as(&pki, pki.site_saying(&expired)).await;
    let error = assert_refused(visit, "certificate-expired", "certificate-expired");
    assert!(error.to_string().contains("expired"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("enroll")));
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let visit = visit_as(&Pki::new(), Pki::self_signed("north")).await;
    let at_coordinator = visit.admitted.expect_err("nobody may come in");
    assert!(matches!(at_coordinator, LinkError::RefusedPeer { .. }), "{at_coordinator}");
    let at_site = visit.reply.expect_err("the site must not be welcome");
    assert!(matches!(at_site, LinkError::RefusedByPeer { .. }) && at_site.hint().is_some(), "{at_site}");
}

#[tokio::test]
async fn a_site_cannot_issue_certificates() {
    let pki = Pki::new();
    let visit = visit_as(&pki, pki.issued_by_a_site("south")).await;
    assert!(matches!(visit.admitted, Err(LinkError::RefusedPeer { .. })), "{:?}", visit.admitted);
    assert!(matches!(visit.reply, Err(LinkError::RefusedByPeer { .. })), "{:?}", visit.reply);
}

#[tokio::test]
async fn a_certificate_that_names_no_site_or_two_is_refused() {
    let pki = Pki::new();
    let uri = |site: &str| identity(site);
    for (uris, expected) in [
        (vec![], IdentityError::UriCount { got: 0 }),
        (vec![uri("north"), uri("south")], IdentityError::UriCount { got: 2 }),
        (vec!["consilium://thorax/site/north".to_owned()], IdentityError::Form),
    ] {
        let certificate = SiteCertificate { uris, expired: false };
        let visit = visit_as(&pki, pki.site_saying(&certificate)).await;
        assert!(matches!(&visit.admitted, Err(LinkError::Identity(error)) if *error == expected));
        assert_refused(visit, "bad-identity", "bad-identity");
    }
}

fn identity(site: &str) -> String {
    crate::identity_uri("thorax", &site.parse().unwrap(), Role::Trainer)
}

#[tokio::test]
async fn another_major_version_is_refused() {
    let pki = Pki::new();
    let (listener, address) = listen(&pki);
    let mut config = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    config.alpn_protocols = vec![b"consilium/2".to_vec()];
    let error = assert_refused(
        visit(&listener, address, &dialer(config)).await,
        "no-common-protocol",
        "no-common-protocol",
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("version")));
}

#[tokio::test]
async fn a_client_that_names_no_protocol_is_refused() {
    let pki = Pki::new();
    let (listener, address) = listen(&pki);
    let mut config = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    config.alpn_protocols.clear();
    let visit = visit(&listener, address, &dialer(config)).await;
    assert!(visit.admitted.is_err() && visit.reply.is_err());
}

#[tokio::test]
async fn an_enrolling_site_needs_the_fingerprint_alone() {
    let pki = Pki::new();
    let (listener, address) = listen(&pki);
    let dialer = dialer(tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap());
    let (connection, admitted) = tokio::join!(dialer.dial(address, "localhost"), admit(&listener));
    assert!(matches!(admitted, Ok(Admitted::Stranger(_))), "{admitted:?}");
    assert!(connection.is_ok(), "{connection:?}");
}

#[tokio::test]
async fn an_enrolling_site_does_not_talk_to_another_coordinator() {
    let (pki, other) = (Pki::new(), Pki::new());
    let (listener, address) = listen(&other);
    let dialer = dialer(tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap());
    let (connection, admitted) = tokio::join!(dialer.dial(address, "localhost"), admit(&listener));
    let error = connection.expect_err("another root is not the pinned one");
    assert!(
        matches!(&error, LinkError::Inspected { issuer } if issuer.as_str().contains("CN=root")),
        "{error:?}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("TLS inspection")) && !error.is_transient());
    assert!(admitted.is_err());
}

#[tokio::test]
async fn a_pinned_root_beside_a_foreign_chain_convinces_nobody() {
    // The root is public: a false coordinator can send it along with a chain of its own.
    let (pki, false_one) = (Pki::new(), Pki::named("false"));
    let mut credentials = false_one.coordinator();
    credentials.chain.push(pki.root());
    let config = tls::server_config(credentials, &false_one.root()).unwrap();
    let listener = Listener::bind(any_port(), config, QuicSettings::coordinator()).unwrap();
    let address = listener.local_address().unwrap();
    let dialer = dialer(tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap());
    let (connection, _) = tokio::join!(dialer.dial(address, "localhost"), admit(&listener));
    assert!(
        matches!(connection, Err(LinkError::RefusedPeer { alert: Alert::UnknownIssuer, .. })),
        "{connection:?}"
    );
}

/// What a site has of a coordinator with these credentials and this name.
async fn dial_coordinator(pki: &Pki, credentials: Credentials, name: &str) -> LinkError {
    let config = tls::server_config(credentials, &pki.root()).unwrap();
    let listener = Listener::bind(any_port(), config, QuicSettings::coordinator()).unwrap();
    let (dialer, address) = (site_dialer(pki), listener.local_address().unwrap());
    let (connection, _) = tokio::join!(dialer.dial(address, name), admit(&listener));
    connection.expect_err("a site must not trust it")
}

#[tokio::test]
async fn a_site_trusts_only_the_coordinator_of_its_consortium() {
    let pki = Pki::new();
    let cases = [
        (Pki::new().coordinator(), "localhost", "bad-certificate"),
        (Pki::named("other").coordinator(), "localhost", "tls-inspection"),
        (pki.coordinator_until(2001), "localhost", "certificate-expired"),
        (pki.coordinator(), "elsewhere", "bad-certificate"),
        // Another member of the consortium is no coordinator.
        (pki.site("south"), "localhost", "bad-certificate"),
    ];
    for (credentials, name, code) in cases {
        let error = dial_coordinator(&pki, credentials, name).await;
        assert!(matches!(error, LinkError::RefusedPeer { .. } | LinkError::Inspected { .. }), "{error:?}");
        assert_eq!(error.code(), code);
        assert!(error.hint().is_some());
    }
}

#[tokio::test]
async fn the_words_of_a_close_reach_the_site() {
    let pair = pair().await;
    pair.coordinator.close(CloseCode::Revoked, &"key was lost".into());
    let error = tokio::time::timeout(PATIENCE, pair.site.closed()).await.unwrap();
    assert!(matches!(error, LinkError::Closed { code: CloseCode::Revoked, .. }), "{error:?}");
    assert_eq!(error.to_string(), "the coordinator has revoked this site: key was lost");
    assert_eq!(pair.site.open().await.unwrap_err().code(), "site-revoked");
    assert_eq!(pair.coordinator.close_reason().unwrap().code(), "closed-here");
}

#[test]
fn a_coordinator_that_was_killed_and_started_again_says_so_at_the_next_packet() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (pki, key) = (Pki::new(), ResetKey::new([7; 32]));
    let listen = |address| {
        let config = tls::server_config(pki.coordinator(), &pki.root()).unwrap();
        Listener::bind_with(address, config, QuicSettings::coordinator(), &key).unwrap()
    };
    let killed = runtime();
    let listener = killed.block_on(async { listen(any_port()) });
    let address = listener.local_address().unwrap();
    killed.spawn(async move {
        let _admitted = admit(&listener).await;
        std::future::pending::<()>().await;
    });

    let site = runtime();
    let error = site.block_on(async {
        let dialer = site_dialer(&pki);
        let connection = dialer.dial(address, "localhost").await.unwrap();
        // With its runtime goes everything that could say goodbye.
        tokio::task::spawn_blocking(move || drop(killed)).await.unwrap();
        let _started_again = listen(address);
        let mut exchange = connection.open().await.unwrap();
        exchange.writer.write(&Reply::Done).await.unwrap();
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("no idle timeout is waited for")
    });
    assert!(matches!(error, LinkError::Restarted) && error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_with_a_hint() {
    // Bound and silent: no answer, whatever the operating system says about closed ports.
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    let pki = Pki::new();
    let config = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    let handshake_timeout = std::time::Duration::from_millis(50);
    let settings = QuicSettings { handshake_timeout, ..QuicSettings::site() };
    let dialer = Dialer::bind(any_port(), config, settings).unwrap();
    let error = dialer.dial(silent.local_addr().unwrap(), "localhost").await.unwrap_err();
    assert_eq!(error.code(), "timed-out");
    assert!(error.is_transient() && error.hint().is_some_and(|hint| hint.contains("firewall")));
}

#[test]
fn a_keep_alive_slower_than_the_idle_timeout_is_refused() {
    let settings = QuicSettings { keep_alive: std::time::Duration::from_secs(60), ..QuicSettings::site() };
    assert!(matches!(settings.transport(), Err(LinkError::Setting { name: "keep_alive" })));
}

#[test]
fn a_fingerprint_is_read_back_with_and_without_colons() {
    let fingerprint = RootFingerprint::of(&Pki::new().root());
    let text = fingerprint.to_string();
    assert_eq!(text.parse(), Ok(fingerprint));
    let pairs: Vec<&str> = text.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect();
    assert_eq!(pairs.join(":").to_uppercase().parse(), Ok(fingerprint));
    assert!("ab".parse::<RootFingerprint>().is_err());
}

/// Counts the tickets that a server gave.
#[derive(Debug)]
struct Tickets {
    cache: ClientSessionMemoryCache,
    given: AtomicUsize,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: rustls::client::Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.given.fetch_add(1, Ordering::Relaxed);
        self.cache.insert_tls13_ticket(name, ticket);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.cache.take_tls13_ticket(name)
    }
}

/// Whether the handshake, done in memory, was a full one.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> HandshakeKind {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    // A few flights suffice; the last carries the tickets.
    for _ in 0..4 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets().unwrap();
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets().unwrap();
    }
    assert!(server.peer_certificates().is_some());
    client.handshake_kind().unwrap()
}

#[test]
fn a_kept_session_does_not_skip_verification() {
    let pki = Pki::new();
    let tickets = Arc::new(Tickets { cache: ClientSessionMemoryCache::new(8), given: AtomicUsize::new(0) });
    // A client of its own make, which keeps what sessions it gets.
    let mut client = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    client.resumption = Resumption::store(tickets.clone());
    let client = Arc::new(client);
    let ours = tls::server_config(pki.coordinator(), &pki.root()).unwrap();
    let server = Arc::new(ours.clone());
    assert_eq!(handshake(&client, &server), HandshakeKind::Full);
    assert_eq!(handshake(&client, &server), HandshakeKind::Full);
    assert_eq!(tickets.given.load(Ordering::Relaxed), 0);

    // The same client resumes at a server that allows it: the test can fail.
    let mut lax = ours;
    lax.send_tls13_tickets = 1;
    lax.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let lax = Arc::new(lax);
    handshake(&client, &lax);
    assert_eq!(handshake(&client, &lax), HandshakeKind::Resumed);
}
