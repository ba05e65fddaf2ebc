//! The TCP lane: the same as over QUIC, with other means.

use std::sync::Arc;
use std::time::Duration;

use common::ids::{Digest, Role, StudyDigest};
use common::wire::{GoodbyeCode, Notice, Refusal, RefusalCode};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::pki::{PATIENCE, SiteCertificate};
use super::*;
use crate::tcp::{Route, TcpSettings};
use crate::tls::{Credentials, RootFingerprint};
use crate::transfer::read_reply;
use crate::{CloseCode, Exchange, IdentityError, Lane, tcp};

pub(super) fn listen_over_tcp(pki: &Pki, settings: TcpSettings) -> (Arc<tcp::Listener>, SocketAddr) {
    let config = tls::server_config(pki.coordinator(), &pki.root()).unwrap();
    let listener = tcp::Listener::bind(any_port(), config, settings).unwrap();
    let address = listener.local_address().unwrap();
    (Arc::new(listener), address)
}

pub(super) fn tcp_dialer(config: rustls::ClientConfig) -> tcp::Dialer {
    tcp::Dialer::new(config, TcpSettings::site())
}

pub(super) async fn dial(dialer: &tcp::Dialer, address: SocketAddr) -> Result<Connection, LinkError> {
    dialer.dial(Route::Direct(address), "localhost", address.port()).await
}

pub(super) async fn admit_over_tcp(listener: &tcp::Listener) -> Result<Admitted, LinkError> {
    listener.next().await.expect("the listener is open").admit().await
}

/// Both ends of a connection over TCP, and a door that lets further exchanges in.
struct TcpPair {
    site: Connection,
    coordinator: Connection,
    listener: Arc<tcp::Listener>,
    door: AbortHandle,
}

impl Drop for TcpPair {
    fn drop(&mut self) {
        self.door.abort();
    }
}

async fn tcp_pair(coordinator: TcpSettings) -> TcpPair {
    tcp_pair_of(TcpSettings::site(), coordinator).await
}

async fn tcp_pair_of(site: TcpSettings, coordinator: TcpSettings) -> TcpPair {
    let pki = Pki::new();
    let (listener, address) = listen_over_tcp(&pki, coordinator);
    let dialer = tcp::Dialer::new(tls::site_config(pki.site("north"), &pki.root()).unwrap(), site);
    let (site, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
    let Ok(Admitted::Site(coordinator, _)) = admitted else { panic!("{admitted:?}") };
    let behind = listener.clone();
    let door = tokio::spawn(async move {
        while let Some(knock) = behind.next().await {
            let admitted = knock.admit().await;
            assert!(matches!(admitted, Ok(Admitted::Joined)), "{admitted:?}");
        }
    });
    TcpPair { site: site.unwrap(), coordinator, listener, door: door.abort_handle() }
}

fn request(byte: u8) -> Request {
    Request::GetStudy { study: StudyDigest(Digest::from_bytes([byte; 32])) }
}

/// Site: opens an exchange and asks; whole, or to go on.
async fn ask(site: &Connection, byte: u8, whole: bool) -> Exchange {
    let mut exchange = site.open().await.unwrap();
    exchange.writer.write(&request(byte)).await.unwrap();
    if whole {
        exchange.writer.finish().await.unwrap();
    }
    exchange
}

/// Coordinator: the next exchange, with its request read.
async fn take(coordinator: &Connection, byte: u8) -> Exchange {
    let mut exchange = coordinator.accept().await.unwrap();
    assert_eq!(exchange.reader.read::<Request>().await.unwrap(), request(byte));
    exchange
}

/// One question and its answer, each to the end of the stream.
async fn talk(site: &Connection, coordinator: &Connection) {
    let asked = async {
        let mut exchange = ask(site, 7, true).await;
        assert_eq!(exchange.reader.read::<Reply>().await.unwrap(), Reply::Stored { chunks: 3 });
        assert!(exchange.reader.read_or_end::<Reply>().await.unwrap().is_none());
    };
    let answered = async {
        let mut exchange = take(coordinator, 7).await;
        assert!(exchange.reader.read_or_end::<Request>().await.unwrap().is_none());
        exchange.writer.write(&Reply::Stored { chunks: 3 }).await.unwrap();
        exchange.writer.finish().await.unwrap();
    };
    tokio::join!(asked, answered);
}

#[tokio::test]
async fn a_question_is_answered_over_either_lane() {
    let quic = pair().await;
    let tcp = tcp_pair(TcpSettings::coordinator()).await;
    let lanes = [(Lane::Quic, &quic.site, &quic.coordinator), (Lane::Tcp, &tcp.site, &tcp.coordinator)];
    for (lane, site, coordinator) in lanes {
        assert_eq!((site.lane(), coordinator.lane()), (lane, lane));
        talk(site, coordinator).await;
        assert!(coordinator.traffic().sent > 0 && coordinator.traffic().received > 32);
        assert!(site.close_reason().is_none());
    }
}

#[tokio::test]
async fn the_exchanges_of_a_site_are_one_connection_and_end_with_it() {
    let pair = tcp_pair(TcpSettings::coordinator()).await;
    let mut watch = ask(&pair.site, 1, true).await;
    let mut watched = take(&pair.coordinator, 1).await;
    watched.writer.write(&Reply::Done).await.unwrap();
    watched.hears_goodbye();
    let mut unanswered = ask(&pair.site, 2, true).await;
    let _unanswered = take(&pair.coordinator, 2).await;
    let mut halfway = ask(&pair.site, 3, true).await;
    let mut half_said = take(&pair.coordinator, 3).await;
    half_said.writer.write(&Reply::Done).await.unwrap();
    assert_eq!((pair.site.open_exchanges(), pair.coordinator.open_exchanges()), (Some(3), Some(3)));

    pair.coordinator.close(CloseCode::Revoked, &"key was lost".into());

    assert_eq!(watch.reader.read::<Reply>().await.unwrap(), Reply::Done);
    let said = watch.reader.read::<Notice>().await.unwrap();
    assert_eq!(said, Notice::Goodbye { code: GoodbyeCode::Revoked });
    assert!(watch.reader.read_or_end::<Notice>().await.unwrap().is_none());
    let refused = read_reply(&mut unanswered.reader, PATIENCE).await.unwrap_err();
    assert_eq!((refused.code(), refused.is_transient()), ("site-revoked", false));
    assert!(refused.to_string().contains("key was lost"), "{refused}");
    // What was being said is seen to be incomplete.
    assert_eq!(halfway.reader.read::<Reply>().await.unwrap(), Reply::Done);
    let cut = halfway.reader.read_or_end::<Reply>().await.unwrap_err();
    assert!(cut.is_transient(), "{cut:?}");
    assert_eq!(pair.coordinator.close_reason().unwrap().code(), "closed-here");
    assert_eq!(half_said.writer.write(&Reply::Done).await.unwrap_err().code(), "closed-here");
}

#[tokio::test]
async fn a_connection_ends_with_its_last_exchange_and_the_next_is_a_new_one() {
    let pki = Pki::new();
    let (listener, address) = listen_over_tcp(&pki, TcpSettings::coordinator());
    let dialer = tcp_dialer(tls::site_config(pki.site("north"), &pki.root()).unwrap());
    let (site, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
    let Ok(Admitted::Site(coordinator, _)) = admitted else { panic!("{admitted:?}") };
    let site = site.unwrap();
    talk(&site, &coordinator).await;
    let gone = timeout(PATIENCE, coordinator.closed()).await.unwrap();
    assert!(matches!(gone, LinkError::Closed { code: CloseCode::Done, .. }), "{gone:?}");

    let (again, admitted) = tokio::join!(ask(&site, 1, true), admit_over_tcp(&listener));
    let Ok(Admitted::Site(second, _)) = admitted else { panic!("{admitted:?}") };
    assert!(!second.is_same(&coordinator));
    drop(again);
}

#[tokio::test]
async fn the_coordinator_notices_that_a_watching_site_has_gone() {
    let pair = tcp_pair(TcpSettings::coordinator()).await;
    let watch = ask(&pair.site, 1, true).await;
    let watched = take(&pair.coordinator, 1).await;
    // That the site has said all is not that it has gone.
    assert!(timeout(Duration::from_millis(50), watched.hung_up()).await.is_err());
    drop(watch);
    timeout(PATIENCE, watched.hung_up()).await.expect("an end is noticed");
}

#[tokio::test]
async fn who_waits_to_read_an_exchange_notices_that_the_site_gave_it_up() {
    let pair = tcp_pair(TcpSettings::coordinator()).await;
    let _watch = ask(&pair.site, 1, true).await;
    let _watched = take(&pair.coordinator, 1).await;
    let mut upload = ask(&pair.site, 2, false).await;
    upload.writer.write(&request(3)).await.unwrap();
    let mut waiting = take(&pair.coordinator, 2).await;
    // That something is there to be read is not that the site has gone.
    assert!(timeout(Duration::from_millis(50), waiting.gone()).await.is_err());
    drop(upload);
    timeout(PATIENCE, waiting.gone()).await.expect("an end is noticed");
    assert_eq!(waiting.reader.read::<Request>().await.unwrap(), request(3), "nothing of it was taken");
    assert_eq!(pair.coordinator.close_reason().map(|why| why.code()), None, "the others go on");
}

/// The operating system keeps this time: the test waits for three times the longest that a silent peer is taken for alive.
#[tokio::test]
async fn an_upload_that_waits_for_its_turn_is_not_taken_for_dead() {
    const BYTES: usize = 64 << 20;
    let second = Duration::from_secs(1);
    let site = TcpSettings { keep_alive: second, idle_timeout: second, ..TcpSettings::site() };
    let pair = tcp_pair_of(site, TcpSettings::coordinator()).await;
    let _watch = ask(&pair.site, 1, true).await;
    let _watched = take(&pair.coordinator, 1).await;
    let mut upload = ask(&pair.site, 2, false).await;
    let mut taken = take(&pair.coordinator, 2).await;
    let sending = async {
        upload.writer.write_raw(&vec![7; BYTES]).await?;
        upload.writer.finish().await
    };
    tokio::pin!(sending);
    let early = timeout(3 * second, &mut sending).await;
    assert!(early.is_err(), "nobody reads, and it does not end: {early:?}");
    let mut buffer = Vec::new();
    let (sent, read) = tokio::join!(sending, taken.reader.read_raw(BYTES, &mut buffer, "upload"));
    sent.unwrap();
    read.unwrap();
    assert!(buffer.iter().all(|&byte| byte == 7));
}

#[tokio::test]
async fn one_exchange_too_many_is_refused_for_now() {
    let settings = TcpSettings { max_exchanges: 1, ..TcpSettings::coordinator() };
    let pair = tcp_pair(settings).await;
    let _first = ask(&pair.site, 1, true).await;
    let mut second = ask(&pair.site, 2, true).await;
    let refused = read_reply(&mut second.reader, PATIENCE).await.unwrap_err();
    assert_eq!((refused.code(), refused.is_transient()), ("too-busy", true));
}

#[tokio::test]
async fn a_refusal_ends_an_upload_that_nobody_reads() {
    let pair = tcp_pair(TcpSettings::coordinator()).await;
    let refuse = async {
        let mut exchange = take(&pair.coordinator, 1).await;
        let refusal = Refusal::new(RefusalCode::NotFinite, "tensor a");
        exchange.writer.write(&Reply::Refused(refusal)).await.unwrap();
        exchange.writer.finish().await.unwrap();
    };
    let upload = async {
        let mut exchange = ask(&pair.site, 1, false).await;
        let chunk = vec![0; 1 << 20];
        let mut sent = Ok(());
        // Far more than any buffer between the two holds.
        for _ in 0..1024 {
            sent = exchange.writer.write_raw(&chunk).await;
            if sent.is_err() {
                break;
            }
        }
        (sent, read_reply(&mut exchange.reader, PATIENCE).await)
    };
    let ((), (sent, reply)) = tokio::join!(refuse, upload);
    assert_eq!(sent.unwrap_err().code(), "reset");
    assert_eq!(reply.unwrap_err().code(), "not-finite");
}

#[tokio::test]
async fn a_listener_that_closes_says_so_to_those_who_watch() {
    let pair = tcp_pair(TcpSettings::coordinator()).await;
    let mut watch = ask(&pair.site, 1, true).await;
    let watched = take(&pair.coordinator, 1).await;
    watched.hears_goodbye();
    let read = async move {
        let said = watch.reader.read::<Notice>().await.unwrap();
        // A site closes then, and the listener need not wait any longer.
        drop(watch);
        said
    };
    let (said, ()) = tokio::join!(read, pair.listener.close(CloseCode::Stopping));
    assert_eq!(said, Notice::Goodbye { code: GoodbyeCode::Stopping });
    assert!(pair.listener.next().await.is_none());
}

#[tokio::test]
async fn a_handshake_that_ends_after_the_listener_closed_comes_to_nothing() {
    let pki = Pki::new();
    let site = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    let stranger = tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap();
    for config in [site, stranger] {
        let (listener, address) = listen_over_tcp(&pki, TcpSettings::coordinator());
        let dialer = tcp_dialer(config);
        let late = async {
            // It has knocked, and shakes hands when all others are gone.
            let knock = listener.next().await.unwrap();
            listener.close(CloseCode::Stopping).await;
            knock.admit().await
        };
        let (_dialled, admitted) = tokio::join!(dial(&dialer, address), late);
        assert!(matches!(admitted, Err(LinkError::ClosedHere)), "{admitted:?}");
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_refused_with_a_code_that_is_no_sites() {
    use tokio::io::AsyncWriteExt;
    let (listener, address) = listen_over_tcp(&Pki::new(), TcpSettings::coordinator());
    for said in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0x5a; 64]] {
        let call = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        let (_stream, admitted) = tokio::join!(call, admit_over_tcp(&listener));
        let error = admitted.unwrap_err();
        assert!(crate::is_noise(&error), "{error:?}");
    }
    let pki = Pki::new();
    let visit = visit_as(&pki, Pki::named("other").site("north")).await;
    assert!(
        !crate::is_noise(&visit.admitted.unwrap_err()),
        "a site with a certificate of another consortium"
    );
}

#[tokio::test]
async fn who_was_refused_and_stays_keeps_its_place_at_the_door() {
    use tokio::io::AsyncWriteExt;
    let (listener, address) = listen_over_tcp(&Pki::new(), TcpSettings::coordinator());
    let free = listener.free_handshakes();
    let call = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[0x5a; 64]).await.unwrap();
        stream
    };
    let (stream, admitted) = tokio::join!(call, admit_over_tcp(&listener));
    assert!(admitted.is_err(), "{admitted:?}");
    assert_eq!(listener.free_handshakes(), free - 1, "its socket is open still");
    drop(stream);
    listener.close(CloseCode::Stopping).await;
    assert_eq!(listener.free_handshakes(), free);
}

#[tokio::test]
async fn who_is_turned_away_after_the_handshake_and_stays_keeps_its_place_at_the_door() {
    let pki = Pki::new();
    let site = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    let stranger = tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap();
    for config in [site, stranger] {
        let (listener, address) = listen_over_tcp(&pki, TcpSettings::coordinator());
        let free = listener.free_handshakes();
        let dialer = tcp_dialer(config);
        let (dialled, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
        let Ok(Admitted::Site(connection, _) | Admitted::Stranger(connection)) = admitted else {
            panic!("{admitted:?}")
        };
        connection.close(CloseCode::TooBusy, &CloseCode::TooBusy.words().into());
        drop(connection);
        assert_eq!(listener.free_handshakes(), free - 1, "its socket is open still");
        drop(dialled);
        listener.close(CloseCode::Stopping).await;
        assert_eq!(listener.free_handshakes(), free);
    }
}

#[tokio::test]
async fn who_comes_to_enrol_keeps_its_place_at_the_door_until_it_has_gone() {
    let pki = Pki::new();
    let (listener, address) = listen_over_tcp(&pki, TcpSettings::coordinator());
    let free = listener.free_handshakes();
    let dialer = tcp_dialer(tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap());
    let (dialled, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
    let Ok(Admitted::Stranger(connection)) = admitted else { panic!("{admitted:?}") };
    let exchange = connection.accept().await.unwrap();
    assert_eq!(listener.free_handshakes(), free - 1, "nothing was said yet");
    drop((exchange, connection));
    assert_eq!(listener.free_handshakes(), free - 1, "its socket is open still");
    drop(dialled);
    listener.close(CloseCode::Stopping).await;
    assert_eq!(listener.free_handshakes(), free);
}

#[tokio::test]
async fn one_exchange_too_many_keeps_its_place_at_the_door() {
    let pki = Pki::new();
    let settings = TcpSettings { max_exchanges: 1, ..TcpSettings::coordinator() };
    let (listener, address) = listen_over_tcp(&pki, settings);
    let free = listener.free_handshakes();
    let dialer = tcp_dialer(tls::site_config(pki.site("north"), &pki.root()).unwrap());
    let (first, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
    let Ok(Admitted::Site(coordinator, _)) = admitted else { panic!("{admitted:?}") };
    let _asked = ask(first.as_ref().unwrap(), 1, true).await;
    let _taken = take(&coordinator, 1).await;
    assert_eq!(listener.free_handshakes(), free, "an exchange needs no place at the door");
    let (second, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
    assert!(matches!(admitted, Ok(Admitted::Joined)), "{admitted:?}");
    assert_eq!(listener.free_handshakes(), free - 1, "its socket is open still");
    drop(second);
}

/// What both sides have of a visit with these credentials.
async fn visit_over_tcp(pki: &Pki, config: rustls::ClientConfig) -> Visit {
    let (listener, address) = listen_over_tcp(pki, TcpSettings::coordinator());
    let come = async {
        let connection = dial(&tcp_dialer(config), address).await?;
        let mut exchange = connection.open().await?;
        exchange.writer.write(&request(1)).await?;
        exchange.writer.finish().await?;
        read_reply(&mut exchange.reader, PATIENCE).await
    };
    let (admitted, reply) = tokio::join!(admit_over_tcp(&listener), come);
    Visit { admitted, reply }
}

async fn visit_as(pki: &Pki, credentials: Credentials) -> Visit {
    visit_over_tcp(pki, tls::site_config(credentials, &pki.root()).unwrap()).await
}

#[tokio::test]
async fn a_bad_certificate_is_refused_as_over_quic() {
    let pki = Pki::new();
    let expired = SiteCertificate { expired: true, ..SiteCertificate::of("north", Role::Trainer) };
    for (credentials, code) in [
        (pki.site_saying(&expired), "certificate-expired"),
        (Pki::named("root").site("north"), "bad-certificate"),
        (Pki::named("other").site("north"), "unknown-issuer"),
    ] {
        let visit = visit_as(&pki, credentials).await;
        let (coordinator, site) = (visit.admitted.unwrap_err(), visit.reply.unwrap_err());
        assert_eq!((coordinator.code(), site.code()), (code, code));
        assert!(matches!(site, LinkError::RefusedByPeer { .. }) && site.hint().is_some(), "{site:?}");
    }
}

#[tokio::test]
async fn who_shows_no_name_is_told_why_it_does_not_come_in() {
    let pki = Pki::new();
    let mut nobody = tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap();
    nobody.alpn_protocols = vec![common::wire::ALPN.to_vec()];
    let visit = visit_over_tcp(&pki, nobody).await;
    assert_eq!(visit.admitted.unwrap_err().code(), "no-certificate");
    let told = visit.reply.unwrap_err();
    assert_eq!(told.code(), "unknown-site");
    assert!(told.to_string().contains("requires a site certificate"), "{told}");

    let unnamed = SiteCertificate { uris: vec![], expired: false };
    let visit = visit_as(&pki, pki.site_saying(&unnamed)).await;
    assert!(matches!(visit.admitted, Err(LinkError::Identity(IdentityError::UriCount { got: 0 }))));
    assert_eq!(visit.reply.unwrap_err().code(), "unknown-site");
}

#[tokio::test]
async fn another_protocol_is_refused_over_tcp() {
    let pki = Pki::new();
    let mut config = tls::site_config(pki.site("north"), &pki.root()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let visit = visit_over_tcp(&pki, config).await;
    assert_eq!(visit.admitted.unwrap_err().code(), "no-common-protocol");
    assert_eq!(visit.reply.unwrap_err().code(), "no-common-protocol");
}

#[tokio::test]
async fn an_enrolling_site_comes_in_as_a_stranger_and_is_refused_in_its_own_words() {
    use common::wire::EnrollReply;
    let pki = Pki::new();
    let (listener, address) = listen_over_tcp(&pki, TcpSettings::coordinator());
    let dialer = tcp_dialer(tls::enroll_config(RootFingerprint::of(&pki.root())).unwrap());
    let (site, admitted) = tokio::join!(dial(&dialer, address), admit_over_tcp(&listener));
    let Ok(Admitted::Stranger(stranger)) = admitted else { panic!("{admitted:?}") };
    stranger.close(CloseCode::TooBusy, &"too many enrolments in this minute".into());
    let mut exchange = site.unwrap().open().await.unwrap();
    let reply = exchange.reader.read::<EnrollReply>().await.unwrap();
    let EnrollReply::Refused(refusal) = reply else { panic!("{reply:?}") };
    assert_eq!(refusal.code, RefusalCode::TooBusy);
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_dropped() {
    let handshake_timeout = Duration::from_millis(50);
    let settings = TcpSettings { handshake_timeout, ..TcpSettings::coordinator() };
    let (listener, address) = listen_over_tcp(&Pki::new(), settings);
    let (_silent, admitted) = tokio::join!(TcpStream::connect(address), admit_over_tcp(&listener));
    let error = admitted.unwrap_err();
    assert!(matches!(error, LinkError::TooSlow { what: "handshake", .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_at_the_port_is_told_with_the_address() {
    let closed = std::net::TcpListener::bind(any_port()).unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let pki = Pki::new();
    let dialer = tcp_dialer(tls::site_config(pki.site("north"), &pki.root()).unwrap());
    let error = dial(&dialer, address).await.unwrap_err();
    assert_eq!((error.code(), error.is_transient()), ("unreachable", true));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_named_on_both_lanes() {
    let (pki, proxy) = (Pki::new(), Pki::named("Hospital Proxy CA"));
    let site = || tls::site_config(pki.site("north"), &pki.root()).unwrap();
    let (listener, address) = listen_over_tcp(&proxy, TcpSettings::coordinator());
    let tcp_dialer = tcp_dialer(site());
    let (over_tcp, _) = tokio::join!(dial(&tcp_dialer, address), admit_over_tcp(&listener));
    let (listener, address) = listen(&proxy);
    let quic_dialer = dialer(site());
    let (over_quic, _) = tokio::join!(quic_dialer.dial(address, "localhost"), admit(&listener));
    for error in [over_tcp.unwrap_err(), over_quic.unwrap_err()] {
        assert_eq!((error.code(), error.is_transient()), ("tls-inspection", false));
        assert!(error.to_string().contains("CN=Hospital Proxy CA"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("network team")));
    }
}
