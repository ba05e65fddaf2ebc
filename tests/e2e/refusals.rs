//! Who may not come in, and what each side is told: a line with a stable code at the coordinator, words and a hint at
//! the site. What our own programs would not do is done by [`Intruder`].

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use common::ids::{ArtifactHash, AttemptId, Digest, Role, RoundId, StudyDigest};
use common::time::Timestamp;
use common::wire::{ALPN, Manifest, OfferedUpdate, RefusalCode, Request, SignedBytes};
use coordinator::clock;
use coordinator::pki::{Authority, RequestedKey, Serial, Validity};
use coordinator::progress::Line;
use link::tls::{self, RootFingerprint};
use link::{LinkError, PeerIdentity};
use rustls::ClientConfig;
use rustls::client::Resumption;
use site_agent::client::identity::{Identity, IdentityFolder};

use crate::harness::consortium::{Consortium, Site};
use crate::harness::intruder::{Intruder, KeptSessions};
use crate::harness::process::{Process, finish};
use crate::harness::study::NAME;

/// The exit code of `site-agent` for whatever the coordinator refuses.
const REFUSED: Option<i32> = Some(77);

/// Waits for the warning that the agent is not connected, with these words, and for a hint with those.
fn until_told(agent: &mut Process, words: &str, hint: &str) {
    agent.until(words, |line| (line.contains("not connected: ") && line.contains(words)).then_some(()));
    agent.until(hint, |line| (line.contains("hint: ") && line.contains(hint)).then_some(()));
}

fn identity(site: &Site) -> Identity {
    IdentityFolder::new(site.path("identity")).load().expect("an enrolled site")
}

/// The TLS configuration of an enrolled site, for an [`Intruder`] with its certificate.
fn tls_config(site: &Site) -> ClientConfig {
    let Identity { credentials, root, .. } = identity(site);
    tls::site_config(credentials, &root).expect("an enrolled site")
}

/// Puts another value into an invite; its text before.
fn falsify(invite: &Path, key: &str, value: toml::Value) -> String {
    let text = fs::read_to_string(invite).expect("the invite");
    let mut table: toml::Table = text.parse().expect("TOML");
    table.insert(key.to_owned(), value);
    fs::write(invite, table.to_string()).expect("the file is ours");
    text
}

/// Gives a site another certificate for its key, of the same serial, by the consortium's own authority.
fn recertify(consortium: &Consortium, site: &Site, validity: Validity) {
    let folder = IdentityFolder::new(site.path("identity"));
    let Identity { membership, credentials, root, .. } = identity(site);
    let own = PeerIdentity::from_certificate(&credentials.chain[0]).expect("names the site");
    let serial = data_encoding::HEXLOWER.decode(own.serial.as_bytes()).expect("hexadecimal");
    let serial = Serial::from_bytes(&serial).expect("16 bytes");
    let authority = Authority::open(&consortium.path("certs"), &membership.consortium).expect("made by init");
    let request = folder.keys().expect("made at enrolment").certificate_request().expect("a request");
    let key = RequestedKey::of(&request).expect("a request");
    let issued = authority.certify_site(&key, &own.site, own.role, serial, validity);
    let chain = issued.expect("certified").chain;
    folder.complete(&membership, &chain[..2], &root).expect("the folder is ours");
}

#[test]
fn without_certificate_nobody_comes_in() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    let mut config = tls::enroll_config(RootFingerprint::of(&identity(&site).root)).expect("TLS 1.3");
    config.alpn_protocols = vec![ALPN.to_vec()];
    let error = Intruder::new(config, &consortium.address).greet().expect_err("it showed no certificate");
    assert_eq!(error.to_string(), "the coordinator requires a site certificate and none was shown");
    assert!(error.hint().is_some_and(|hint| hint.contains("site-agent enroll")));
    let line = consortium.coordinator.until_refused(None, "no-certificate");
    assert!(line.contains("none was shown"), "{line}");

    // Our own program does not even dial.
    fs::remove_dir_all(site.path("identity")).expect("it was enrolled");
    let told = finish(site.command(["run"]));
    assert_eq!(told.code, Some(64));
    assert!(told.err.contains("this site is not enrolled") && told.err.contains("hint: "), "{}", told.err);
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let mut consortium = Consortium::found("thorax");
    // An authority of the same name differs in its key alone.
    for (name, code) in [("abdomen", "unknown-issuer"), ("thorax", "bad-certificate")] {
        let site = consortium.enrol("north", Role::Trainer);
        let other = Consortium::found(name);
        let others = other.enrol("north", Role::Trainer);
        for file in ["identity/tls.key", "identity/certificate.pem"] {
            fs::copy(others.path(file), site.path(file)).expect("both are enrolled");
        }
        let mut agent = site.run();
        until_told(
            &mut agent,
            "not issued by this consortium",
            "ask the coordinator's operator for a new invite",
        );
        let line = consortium.coordinator.until_refused(None, code);
        assert!(line.contains("not issued by this consortium"), "{line}");
        fs::remove_dir_all(&site.folder).expect("it was enrolled");
    }
}

#[test]
fn an_expired_certificate_is_refused() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    let year_2001 = Timestamp(978_307_200_000);
    recertify(&consortium, &site, Validity::starting(year_2001, Duration::from_secs(86_400)));
    let mut agent = site.run();
    until_told(&mut agent, "the certificate has expired", "site-agent enroll");
    let line = consortium.coordinator.until_refused(None, "certificate-expired");
    assert!(line.contains("expired"), "{line}");
}

#[test]
fn a_certificate_that_expires_while_connected_ends_the_connection() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    // Long enough to start an agent on a machine that stands still for a while; the test waits for the end of it.
    recertify(&consortium, &site, Validity::starting(clock::now(), Duration::from_secs(20)));
    let mut agent = site.run();
    consortium.coordinator.until_connected("north");
    until_told(&mut agent, "the site certificate has expired", "site-agent enroll");
    let line = consortium.coordinator.until_refused(Some("north"), "certificate-expired");
    assert!(line.contains("connection"), "{line}");
}

#[test]
fn a_revoked_site_is_cut_off_and_stays_out() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    let mut agent = site.run();
    consortium.coordinator.until_connected("north");
    consortium.operate(["revoke", "north"]).ok();
    consortium.coordinator.until("north revoked", |line| match line {
        Line::Revoked { site } => (site.as_str() == "north").then_some(()),
        _ => None,
    });
    until_told(&mut agent, "the coordinator has revoked this site", "ask the coordinator's operator why");
    // It dials again by itself.
    let line = consortium.coordinator.until_refused(Some("north"), "site-revoked");
    assert_eq!(line, "connection: this site was revoked");
    until_told(&mut agent, "the coordinator has revoked this site: this site was revoked", "new invite");
}

#[test]
fn a_revoked_site_does_not_come_back_with_a_kept_session() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    let sessions = KeptSessions::new();
    let mut config = tls_config(&site);
    config.resumption = Resumption::store(sessions.clone());
    let intruder = Intruder::new(config, &consortium.address);

    let (connection, _watch) = intruder.greet().expect("not revoked yet");
    consortium.coordinator.until_connected("north");
    consortium.operate(["revoke", "north"]).ok();
    assert_eq!(intruder.closed(&connection).code(), "site-revoked");

    let error = intruder.greet().expect_err("it is revoked");
    assert_eq!(error.to_string(), "the coordinator has revoked this site: this site was revoked");
    assert!(error.hint().is_some());
    assert_eq!(sessions.tickets(), 0, "there is no session to keep");
    consortium.coordinator.until_refused(Some("north"), "site-revoked");
}

#[test]
fn an_evaluator_cannot_send_an_update() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("judge", Role::Evaluator);
    let intruder = Intruder::new(tls_config(&site), &consortium.address);
    let (connection, _watch) = intruder.greet().expect("evaluators are welcome");

    let (study, round) = (StudyDigest(Digest::of(b"any")), RoundId(1));
    let (base, attempt) = (ArtifactHash(Digest::of(b"any")), AttemptId::from_bytes([7; 16]));
    let manifest = Manifest { tensors: Vec::new(), chunks: Vec::new() };
    let steps_of_an_update = [
        Request::AcceptRound { study, round, base },
        Request::OfferUpdate(OfferedUpdate { study, round, base, attempt, steps: 1, manifest }),
        Request::PutChunks { attempt, count: 1 },
        Request::CommitUpdate { attempt },
    ];
    for request in steps_of_an_update {
        let error = intruder.ask(&connection, &request).expect_err("only trainers may");
        let LinkError::Refused(refusal) = error else { panic!("{error:?}") };
        assert_eq!(refusal.code, RefusalCode::WrongRole);
        let words = format!("{} is for trainers, and this site's role is evaluator", request.name());
        assert_eq!(refusal.detail.as_str(), words);
        consortium.coordinator.0.until_says(&words);
    }
    let line = consortium.coordinator.until_refused(Some("judge"), "wrong-role");
    assert!(line.starts_with("accept-round: "), "{line}");
}

#[test]
fn a_trainer_that_a_study_leaves_out_cannot_join_it() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    let added = consortium.add_studies_without("north");
    let digest = added.split_whitespace().next().expect("a line with the digest");
    let intruder = Intruder::new(tls_config(&site), &consortium.address);
    let (connection, _watch) = intruder.greet().expect("trainers are welcome");

    let (study, round): (StudyDigest, _) = (digest.parse().expect("a digest"), RoundId(1));
    let (base, attempt) = (ArtifactHash(Digest::of(b"any")), AttemptId::from_bytes([7; 16]));
    let number = TensorSpec { name: "number".to_owned(), dtype: Dtype::F32, shape: vec![1] };
    let layout = TensorLayout::new(vec![number]).expect("one tensor");
    let manifest = Manifest::from(&ArtifactManifest::of(layout, &[0; 4]));
    let signed = SignedBytes { bytes: Vec::new(), signature: [0; 64] };
    let ways_in = [
        Request::ApproveStudy { study },
        Request::RegisterManifest { study, manifest: signed },
        Request::AcceptRound { study, round, base },
        Request::Progress { study, round, step: 1, steps: 1, loss: 0.5 },
        Request::OfferUpdate(OfferedUpdate { study, round, base, attempt, steps: 1, manifest }),
    ];
    for request in ways_in {
        let error = intruder.ask(&connection, &request).expect_err("it is left out");
        let LinkError::Refused(refusal) = error else { panic!("{error:?}") };
        assert_eq!(refusal.code, RefusalCode::LeftOut, "{}", request.name());
        let words = "this study leaves north out: it is scored there, not trained";
        assert_eq!(refusal.detail.as_str(), words, "{}", request.name());
    }
    let line = consortium.coordinator.until_refused(Some("north"), "left-out");
    assert!(line.starts_with("approve-study: this study leaves north out"), "{line}");
}

#[test]
fn a_manifest_under_another_key_than_the_registered_one_is_refused() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.member("north", Role::Trainer, "site-a");
    consortium.add_study(1, 1);
    fs::write(site.path("identity/signing.key"), "07".repeat(32)).expect("the folder is ours");
    let mut agent = site.run();
    let line = consortium.coordinator.until_refused(Some("north"), "bad-manifest");
    assert!(line.starts_with("register-manifest: ") && line.contains("signature"), "{line}");
    let told = agent.until_says("the coordinator refused: ");
    assert!(told.contains("ERROR") && told.contains("signature"), "{told}");
    assert!(told.contains("(bad-manifest); run `site-agent check`"), "{told}");
}

#[test]
fn an_invite_enrols_once() {
    let mut consortium = Consortium::found("thorax");
    let invite = consortium.invite("north", Role::Trainer, 1);
    let folder = |name| Site { name: "north".to_owned(), folder: consortium.path(name) };
    folder("first").enrol(&invite).ok();
    let told = folder("second").enrol(&invite);
    assert_eq!(told.code, REFUSED);
    assert!(told.err.contains("the invite of `north` was used before"), "{}", told.err);
    assert!(told.err.contains("hint: ask the coordinator's operator for a new invite"), "{}", told.err);
    assert!(!consortium.path("second/identity/certificate.pem").exists());
    let line = consortium.coordinator.until_refused(None, "invite-used");
    assert!(line.contains("`north` was used before"), "{line}");
}

#[test]
fn an_expired_invite_enrols_nobody() {
    let mut consortium = Consortium::found("thorax");
    let invite = consortium.expired_invite("north", Role::Trainer);
    let site = Site { name: "north".to_owned(), folder: consortium.path("north") };
    let told = site.enrol(&invite);
    assert_eq!(told.code, REFUSED);
    assert!(told.err.contains("the invite expired on") && told.err.contains("new invite"), "{}", told.err);
    assert_eq!(consortium.coordinator.0.said("refused"), [""; 0], "an expired token stays at the site");

    // A site that does not look at the date, or whose clock is wrong.
    falsify(&invite, "expires", "2999-01-01T00:00:00Z".into());
    let told = site.enrol(&invite);
    assert_eq!(told.code, REFUSED);
    assert!(told.err.contains("the invite of `north` has expired"), "{}", told.err);
    let line = consortium.coordinator.until_refused(None, "invite-expired");
    assert!(line.contains("`north` has expired"), "{line}");
}

#[test]
fn an_invite_that_pins_another_root_reveals_nothing() {
    let mut consortium = Consortium::found("thorax");
    let other = fs::read_to_string(Consortium::found("abdomen").invite("north", Role::Trainer, 1));
    let other: toml::Table = other.expect("the invite").parse().expect("TOML");
    let invite = consortium.invite("north", Role::Trainer, 1);
    let text = falsify(&invite, "root_sha256", other["root_sha256"].clone());

    let site = Site { name: "north".to_owned(), folder: consortium.path("north") };
    let told = site.enrol(&invite);
    assert_eq!(told.code, REFUSED);
    assert!(told.err.contains("cannot connect to the coordinator"), "{}", told.err);
    assert!(told.err.contains("compare the root fingerprint"), "{}", told.err);
    assert!(told.err.contains("TLS inspection"), "{}", told.err);
    let line = consortium.coordinator.until_refused(None, "bad-certificate");
    assert!(line.contains("the other side refused us"), "{line}");
    // The token has not left: the true invite still counts.
    fs::write(&invite, text).expect("the file is ours");
    site.enrol(&invite).ok();
}

#[test]
fn an_update_larger_than_the_study_allows_is_refused_and_counts_for_nothing() {
    let mut consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    consortium.add_study_with_norm_bound(1e-6);
    consortium.start_study();
    let mut agent = north.run();
    let why = consortium.coordinator.until_refused(Some("north"), "norm-exceeded");
    assert!(why.contains("the study allows 0.000001"), "{why}");
    agent.until_says("norm-exceeded");
    let rounds = consortium.report(NAME).rounds;
    assert!(rounds.iter().all(|round| round.model.is_none()), "{rounds:?}");
}
