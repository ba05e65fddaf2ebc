//! A coordinator in this process, over QUIC on loopback, and sites that do what no program of ours would.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use common::artifact::ArtifactManifest;
use common::evaluation;
use common::ids::{ArtifactHash, AttemptId, ClassId, Digest, Role, RoundId, SiteId};
use common::manifest::LabelManifest;
use common::report::{CaseOutcome, CaseScore, EvaluationReport, ReportSubject};
use common::signed::{Signed, SignedDocument};
use common::study::StudyDocument;
use common::testing::example_study_with;
use common::wire::{
    EnrollReply, EnrollRequest, EnrollToken, Enrolled, Hello, Manifest, Notice, Reply, Request, SignedBytes,
    Words,
};
use link::framing::FrameWriter;
use link::quic::{Dialer, Exchange, QuicSettings};
use link::tls::{self, Credentials, RootFingerprint};
use link::transfer::{ChunkSource, Patience, put_chunks, read_reply};
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::credit::{Bulk, Direction};
use super::*;
use crate::clock;
use crate::config::Config;
use crate::fixture::{Fixture, NOW};
use crate::operator;
use crate::pki::Token;
use crate::progress::Progress;
use crate::service::Service;
use crate::store::{InviteTerms, JournalEntry, StoredReport, StoredStudy};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator that serves the fixture's consortium.
struct Served {
    context: Arc<Context>,
    address: SocketAddr,
    fixture: Fixture,
}

/// Serves while `visit` lasts.
async fn serve_while<F: Future<Output = ()>>(
    settings: impl FnOnce(&mut Config),
    visit: impl FnOnce(Served) -> F,
) {
    let mut fixture = Fixture::new().await;
    settings(&mut fixture.config);
    serve_fixture(fixture, visit).await;
}

/// As [`serve_while`], of a store that already holds what the test needs.
async fn serve_fixture<F: Future<Output = ()>>(fixture: Fixture, visit: impl FnOnce(Served) -> F) {
    let stop = CancellationToken::new();
    let service = Service::open(&fixture.config, Progress::Silent, stop.clone()).await.unwrap();
    let (context, address) = (service.context(), service.local_address().unwrap());
    let visit = visit(Served { context, address, fixture });
    let visit = async {
        visit.await;
        stop.cancel();
    };
    // The fixture went with the visit, and its folder with it.
    let (_, ()) = tokio::join!(service.run(), visit);
}

impl Served {
    /// Enrols a trainer as its program does; what dials with its certificate.
    async fn enrol(&self, name: &str) -> Dialer {
        self.enrol_as(name, Role::Trainer).await
    }

    async fn enrol_as(&self, name: &str, role: Role) -> Dialer {
        let token = self.invite(name, role).await;
        let key = KeyPair::generate().unwrap();
        let reply = self.request_enrolment(token, &key).await;
        let EnrollReply::Enrolled(enrolled) = reply else { panic!("the invite counts: {reply:?}") };
        self.dialer_of(enrolled, &key)
    }

    async fn invite(&self, name: &str, role: Role) -> EnrollToken {
        let (now, token) = (clock::now(), Token::random());
        let terms = InviteTerms { site: name.parse().unwrap(), role };
        let until = now.after(Duration::from_secs(3600));
        self.context.store.add_invite(token.hash(), &terms, now, until).await.unwrap();
        let token = data_encoding::BASE32_NOPAD.decode(token.to_text().as_bytes()).unwrap();
        EnrollToken(token.try_into().unwrap())
    }

    async fn request_enrolment(&self, token: EnrollToken, key: &KeyPair) -> EnrollReply {
        let csr_der = CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
        let signing_key = signing_key().verifying_key().to_bytes();

        let root = self.context.authority.root();
        let stranger = dialer(tls::enroll_config(RootFingerprint::of(root)).unwrap());
        let connection = self.dial(&stranger).await;
        let mut exchange = connection.open().await.unwrap();
        let request = EnrollRequest { token, csr_der, signing_key };
        exchange.writer.write(&request).await.unwrap();
        exchange.writer.finish().await.unwrap();
        let reply = exchange.reader.read_within(PATIENCE).await.unwrap();
        connection.close(CloseCode::Done, &"".into());
        reply
    }

    fn dialer_of(&self, enrolled: Enrolled, key: &KeyPair) -> Dialer {
        let root = self.context.authority.root();
        let chain = enrolled.chain_der.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        dialer(tls::site_config(Credentials { chain, key }, root).unwrap())
    }

    async fn dial(&self, dialer: &Dialer) -> Connection {
        dialer.dial(self.address, "127.0.0.1").await.unwrap()
    }

    /// A connection that is served, and says no Hello.
    async fn lurk(&self, dialer: &Dialer) -> Connection {
        let connection = self.dial(dialer).await;
        let study = self.fixture.digest();
        assert!(matches!(ask(&connection, &Request::GetStudy { study }).await, Ok(Reply::Study { .. })));
        connection
    }

    /// Registers a manifest of five volumes, all of which annotate `class`.
    async fn register(&self, connection: &Connection, site: &str, class: usize) -> Result<Reply, LinkError> {
        let manifest = serde_json::json!({
            "format": "consilium label manifest 1",
            "site": site,
            "taxonomy": self.fixture.study.study().taxonomy.digest(),
            "volumes": 5,
            "classes": [{ "class": class, "annotated": 5, "present": null }],
            "datasets": [{ "name": "mine", "volumes": 5 }],
        });
        let manifest = LabelManifest::from_bytes(manifest.to_string().as_bytes()).unwrap();
        let signed = Signed::sign(&manifest, &signing_key());
        let manifest = SignedBytes { bytes: signed.bytes().to_vec(), signature: *signed.signature() };
        ask(connection, &Request::RegisterManifest { study: self.fixture.digest(), manifest }).await
    }

    async fn approve(&self, connection: &Connection) {
        let approved = ask(connection, &Request::ApproveStudy { study: self.fixture.digest() }).await;
        assert!(matches!(approved, Ok(Reply::Done)), "{approved:?}");
    }

    /// The trainers that the fixture's study may ask.
    async fn ready(&self) -> Vec<SiteId> {
        let reply = self.context.driver.operate(operator::Request::Status).await;
        let operator::Reply::Status(status) = reply else { panic!("{reply:?}") };
        status.studies[0].ready.clone()
    }

    /// What the status says is wrong with the store.
    async fn fault(&self) -> Option<String> {
        let reply = self.context.driver.operate(operator::Request::Status).await;
        let operator::Reply::Status(status) = reply else { panic!("{reply:?}") };
        status.fault
    }

    async fn revoke(&self, name: &str) {
        let site: SiteId = name.parse().unwrap();
        let reply = self.context.driver.operate(operator::Request::Revoke { site }).await;
        assert!(matches!(reply, operator::Reply::Done { .. }), "{reply:?}");
    }
}

/// The same of all sites.
fn signing_key() -> common::signed::SigningKey {
    common::signed::SigningKey::from_bytes(&[7; 32])
}

fn dialer(config: ClientConfig) -> Dialer {
    Dialer::bind((Ipv4Addr::LOCALHOST, 0).into(), config, QuicSettings::site()).unwrap()
}

async fn ask(connection: &Connection, request: &Request) -> Result<Reply, LinkError> {
    let mut exchange = connection.open().await?;
    exchange.writer.write(request).await?;
    exchange.writer.finish().await?;
    read_reply(&mut exchange.reader, PATIENCE).await
}

/// Says hello; the watch stream, once welcome.
async fn greet(connection: &Connection) -> Exchange {
    greet_as_one_that_can(connection, &[]).await
}

async fn greet_as_one_that_can(connection: &Connection, capabilities: &[&str]) -> Exchange {
    let mut exchange = connection.open().await.unwrap();
    let capabilities = capabilities.iter().map(Words::from).collect();
    let hello = Hello { minor_min: 0, minor_max: 0, agent_version: "test".into(), capabilities };
    exchange.writer.write(&Request::Hello(hello)).await.unwrap();
    let reply = read_reply(&mut exchange.reader, PATIENCE).await.unwrap();
    assert!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
    exchange
}

/// What a site hears next.
async fn hear(watch: &mut Exchange) -> Notice {
    watch.reader.read_within(PATIENCE).await.expect("the coordinator goes on telling")
}

/// Waits until a site is told of a study: the coordinator counts it as connected by then.
async fn until_offered(watch: &mut Exchange) {
    while !matches!(hear(watch).await, Notice::StudyOffered { .. }) {}
}

/// Why the coordinator ended a connection.
async fn ended(connection: &Connection) -> &'static str {
    let ended = tokio::time::timeout(PATIENCE, connection.closed()).await;
    ended.expect("the coordinator ends it").code()
}

#[tokio::test]
async fn a_site_takes_nobodys_place_and_goes_with_all_its_connections() {
    let settings = |config: &mut Config| config.connections = 8;
    serve_while(settings, |served| async move {
        let (north, south) = (served.enrol("north").await, served.enrol("south").await);
        let mut lurking = Vec::new();
        for _ in 0..10 {
            lurking.push(served.lurk(&north).await);
        }
        let newest = lurking.split_off(6);
        for connection in &lurking {
            assert_eq!(ended(connection).await, "replaced");
        }
        let other = served.dial(&south).await;
        let _watch = greet(&other).await;
        assert!(newest.iter().all(|connection| connection.close_reason().is_none()));

        served.revoke("north").await;
        for connection in &newest {
            assert_eq!(ended(connection).await, "site-revoked");
        }
        assert!(other.close_reason().is_none());
    })
    .await;
}

#[tokio::test]
async fn strangers_who_are_silent_or_wrong_keep_nobody_with_an_invite_from_enrolling() {
    let settings = |config: &mut Config| (config.connections, config.enrolments_per_minute) = (1, 1);
    serve_while(settings, |served| async move {
        let root = RootFingerprint::of(served.context.authority.root());
        let stranger = dialer(tls::enroll_config(root).unwrap());
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(served.dial(&stranger).await);
        }
        let key = KeyPair::generate().unwrap();
        for code in [RefusalCode::InviteUnknown, RefusalCode::TooBusy] {
            let reply = served.request_enrolment(EnrollToken([9; 32]), &key).await;
            let EnrollReply::Refused(refusal) = reply else { panic!("nobody was invited so: {reply:?}") };
            assert_eq!(refusal.code, code);
        }
        let _connection = served.lurk(&served.enrol("north").await).await;
        drop(silent);
    })
    .await;
}

#[tokio::test]
async fn an_enrolment_whose_answer_was_lost_is_answered_again_to_the_same_keys_alone() {
    serve_while(
        |_| {},
        |served| async move {
            let token = served.invite("north", Role::Trainer).await;
            let key = KeyPair::generate().unwrap();
            let lost = served.request_enrolment(token, &key).await;
            assert!(matches!(lost, EnrollReply::Enrolled(_)), "{lost:?}");

            let other = KeyPair::generate().unwrap();
            let reply = served.request_enrolment(token, &other).await;
            let EnrollReply::Refused(refusal) = reply else { panic!("the invite is used: {reply:?}") };
            assert_eq!(refusal.code, common::wire::RefusalCode::InviteUsed);

            let reply = served.request_enrolment(token, &key).await;
            let EnrollReply::Enrolled(enrolled) = reply else { panic!("the same site: {reply:?}") };
            let _connection = served.lurk(&served.dialer_of(enrolled, &key)).await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_newer_certificate_ends_the_connections_of_the_older_which_drives_nobody_out() {
    serve_while(
        |_| {},
        |served| async move {
            let older = served.enrol("north").await;
            let lurking = served.lurk(&older).await;
            let newer = served.enrol("north").await;
            assert_eq!(ended(&lurking).await, "site-revoked");
            let connection = served.lurk(&newer).await;
            for _ in 0..6 {
                let refused = served.dial(&older).await;
                assert_eq!(ended(&refused).await, "site-revoked");
            }
            let _watch = greet(&connection).await;
        },
    )
    .await;
}

#[tokio::test]
async fn chunks_that_an_artifact_does_not_have_are_refused_before_their_turn() {
    let settings = |config: &mut Config| config.transfer_bytes = 0;
    serve_while(settings, |served| async move {
        let north = served.enrol("north").await;
        let connection = served.lurk(&north).await;
        let Served { context, fixture, .. } = &served;
        let bulk = Bulk::new(Direction::Send, &context.budget);
        let _the_only_turn = bulk.join(&context.budget, &connection, 1).await.unwrap();
        let (artifact, indices) = (fixture.study.study().initial_model, (0..800_000).collect());
        let refused = ask(&connection, &Request::GetChunks { artifact, indices }).await;
        let Err(LinkError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert_eq!(refusal.code, RefusalCode::UnknownChunk);
    })
    .await;
}

#[tokio::test]
async fn an_artifact_that_came_back_and_is_lost_again_is_told_again() {
    serve_while(
        |_| {},
        |served| async move {
            let north = served.enrol("north").await;
            let connection = served.lurk(&north).await;
            let artifact = served.fixture.study.study().initial_model;
            let (folder, backup) =
                (served.context.store.artifacts().folder(&artifact), tempfile::tempdir().unwrap());
            let copy = backup.path().join("copy");
            let told = async || {
                let asked = ask(&connection, &Request::GetArtifact { artifact }).await;
                assert!(matches!(asked, Err(LinkError::Refused(_))), "{asked:?}");
                served.fault().await
            };
            std::fs::rename(&folder, &copy).unwrap();
            assert_eq!(told().await.as_deref(), Some("store-corrupt"));
            let back = operator::Request::AddArtifact { copy };
            let back = served.context.driver.operate(back).await;
            assert!(matches!(back, operator::Reply::Done { .. }), "{back:?}");
            assert_eq!(served.fault().await, None);
            std::fs::remove_dir_all(&folder).unwrap();
            assert_eq!(told().await.as_deref(), Some("store-corrupt"));
        },
    )
    .await;
}

/// The one chunk of an artifact.
#[derive(Clone)]
struct Chunk(Vec<u8>);

impl ChunkSource for Chunk {
    async fn read_chunk(&mut self, _: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clone_from(&self.0);
        Ok(())
    }
}

/// A key for what a site returns.
const ATTEMPT: AttemptId = AttemptId::from_bytes([9; 16]);

async fn put(connection: &Connection, manifest: &ArtifactManifest, chunk: &Chunk) -> Result<u32, LinkError> {
    let mut exchange = connection.open().await.unwrap();
    let Exchange { reader, writer } = &mut exchange;
    let patience = Patience { turn: PATIENCE, chunk: PATIENCE };
    put_chunks(reader, writer, ATTEMPT, manifest, &[0], &mut chunk.clone(), patience).await
}

#[tokio::test]
async fn a_lost_artifact_is_asked_of_a_site_that_can_return_it_and_taken_when_every_byte_is_right() {
    serve_while(
        |_| {},
        |served| async move {
            let (north, south) = (served.enrol("north").await, served.enrol("south").await);
            let (connection, older) = (served.dial(&north).await, served.dial(&south).await);
            let mut watch = greet_as_one_that_can(&connection, &[Hello::RETURNS_ARTIFACTS]).await;
            let _watch = greet(&older).await;
            served.approve(&connection).await;
            served.approve(&older).await;

            let (artifacts, study) = (served.context.store.artifacts(), served.fixture.study.study());
            let artifact = study.embeddings.artifact;
            let (manifest, chunk) = {
                let file = artifacts.read(&artifact).unwrap().unwrap();
                (file.manifest().clone(), Chunk(file.read_chunk(0).unwrap()))
            };
            let returns = async |manifest: &ArtifactManifest| {
                let manifest = Manifest::from(manifest);
                ask(&connection, &Request::ReturnArtifact { attempt: ATTEMPT, manifest }).await.unwrap()
            };
            assert_eq!(returns(&manifest).await, Reply::Done, "it is here");
            std::fs::remove_dir_all(artifacts.folder(&artifact)).unwrap();
            let refused = ask(&older, &Request::GetArtifact { artifact }).await;
            assert!(matches!(refused, Err(LinkError::Refused(_))), "{refused:?}");
            assert_eq!(served.fault().await.as_deref(), Some("store-corrupt"));
            while hear(&mut watch).await != (Notice::ArtifactWanted { artifact }) {}

            let other = ArtifactManifest::of(manifest.layout().clone(), &vec![1; chunk.0.len()]);
            assert_eq!(returns(&other).await, Reply::Done, "nobody misses it");
            assert_eq!(returns(&manifest).await, Reply::UpdateWanted { missing: vec![0] });
            let mut changed = chunk.clone();
            changed.0[7] ^= 1;
            let refused = put(&connection, &manifest, &changed).await;
            assert!(
                matches!(&refused, Err(LinkError::Refused(refusal)) if refusal.code == RefusalCode::BadChunk),
                "{refused:?}"
            );
            let commit = async || ask(&connection, &Request::CommitUpdate { attempt: ATTEMPT }).await;
            let early = commit().await;
            assert!(
                matches!(&early, Err(LinkError::Refused(refusal)) if refusal.code == RefusalCode::Incomplete),
                "{early:?}"
            );
            assert_eq!(put(&connection, &manifest, &chunk).await.unwrap(), 1);
            assert_eq!(commit().await.unwrap(), Reply::Done);
            assert_eq!(served.fault().await, None);
            artifacts.read(&artifact).unwrap().unwrap().verify(|_| {}).unwrap();
            let served_again = ask(&older, &Request::GetArtifact { artifact }).await.unwrap();
            assert_eq!(served_again, Reply::Artifact { manifest: Manifest::from(&manifest) });
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_site_that_takes_no_reply_is_given_up() {
    let (_takes_nothing, stream) = tokio::io::duplex(64);
    let reply = Reply::Study { bytes: vec![7; 1 << 10] };
    let said = requests::say(&reply, &mut FrameWriter::new(stream)).await;
    assert!(matches!(said, Err(LinkError::TooSlow { .. })), "{said:?}");
}

#[tokio::test]
async fn the_loss_of_a_round_that_is_not_open_is_not_kept() {
    serve_while(
        |_| {},
        |served| async move {
            let south = served.enrol("south").await;
            let (connection, study) = (served.dial(&south).await, served.fixture.digest());
            let steps = served.fixture.study.study().training.steps_per_round;
            for (round, steps) in [(7, steps), (1, steps), (1, u32::MAX)] {
                let round = RoundId(round);
                let told =
                    ask(&connection, &Request::Progress { study, round, step: 1, steps, loss: 0.5 }).await;
                assert!(matches!(told, Ok(Reply::Done)), "{told:?}");
            }
            assert!(served.context.store.losses(&study).await.unwrap().is_empty());
        },
    )
    .await;
}

#[tokio::test]
async fn an_invite_names_no_address_that_stands_for_all_of_the_machines() {
    let invited = async |listen: &str| {
        let listen: SocketAddr = listen.parse().unwrap();
        let mut told = None;
        let visit = async |served: Served| {
            let invite =
                operator::Request::Invite { site: "east".parse().unwrap(), role: Role::Trainer, hours: 1 };
            told = Some(served.context.driver.operate(invite).await);
        };
        serve_while(|config| config.listen = listen, visit).await;
        told.unwrap()
    };
    let operator::Reply::Failed { hint, .. } = invited("0.0.0.0:0").await else {
        panic!("nobody can dial that")
    };
    assert!(hint.unwrap().contains("set `address` in coordinator.toml"));
    assert!(matches!(invited("127.0.0.1:0").await, operator::Reply::Invite { .. }));
}

#[tokio::test]
async fn a_site_hears_of_all_studies_however_many_there_are() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let mut unheard = BTreeSet::from([fixture.digest()]);
    for seed in 1..100 {
        let study = example_study_with(|draft| draft.seed = seed);
        let (digest, name, document) = (study.digest(), study.study().name.clone(), study.bytes().to_vec());
        store.add_study(&StoredStudy { digest, name, document, added_at: NOW }).await.unwrap();
        unheard.insert(digest);
    }
    assert_eq!(unheard.len(), 100);
    store.close().await;
    serve_fixture(fixture, |served| async move {
        let north = served.enrol("north").await;
        let connection = served.dial(&north).await;
        let mut watch = greet(&connection).await;
        while !unheard.is_empty() {
            if let Notice::StudyOffered { study, .. } = hear(&mut watch).await {
                unheard.remove(&study);
            }
        }
    })
    .await;
}

/// Who is asked for nothing hears no round open, and would go on telling of the pause.
#[tokio::test]
async fn a_study_that_is_resumed_is_offered_anew() {
    serve_while(
        |_| {},
        |served| async move {
            let north = served.enrol("north").await;
            let connection = served.dial(&north).await;
            let mut watch = greet(&connection).await;
            until_offered(&mut watch).await;
            for order in [operator::Order::Pause, operator::Order::Resume] {
                let study = served.fixture.digest().to_string();
                let control = operator::Request::Control { study, order };
                let reply = served.context.driver.operate(control).await;
                assert!(matches!(reply, operator::Reply::Done { .. }), "{reply:?}");
            }
            until_offered(&mut watch).await;
        },
    )
    .await;
}

#[tokio::test]
async fn an_evaluator_hears_of_all_models_that_wait_for_its_report() {
    let fixture = Fixture::new().await;
    let (store, study) = (fixture.store().await, fixture.digest());
    let mut unheard = BTreeSet::new();
    for round in (1..=200).map(RoundId) {
        let model = ArtifactHash(Digest::of(&round.0.to_le_bytes()));
        let event = serde_json::json!({ "evaluation": evaluation::Event::Requested { round, model } });
        store.append_event(&study, &JournalEntry { at: NOW, event: event.to_string() }).await.unwrap();
        unheard.insert(model);
    }
    store.close().await;
    serve_fixture(fixture, |served| async move {
        let held_out = served.enrol_as("held-out", Role::Evaluator).await;
        let connection = served.dial(&held_out).await;
        let mut watch = greet(&connection).await;
        until_offered(&mut watch).await;
        served.approve(&connection).await;
        while !unheard.is_empty() {
            if let Notice::EvaluationRequested { model, .. } = hear(&mut watch).await {
                unheard.remove(&model);
            }
        }
    })
    .await;
}

/// A report of `held-out` on the fixture's first model, on so many scans.
fn report_on(study: &StudyDocument, scans: u32) -> Signed<EvaluationReport> {
    let liver = ClassId::new(6).unwrap();
    let tau_mm = study.study().evaluation.nsd_tolerance_mm.of(liver);
    let subject = ReportSubject {
        site: "held-out".parse().unwrap(),
        model: study.study().initial_model,
        round: RoundId(1),
        study: study.digest(),
        taxonomy: study.study().taxonomy.digest(),
    };
    let outcome = CaseOutcome::Absent { false_positive_volume_ml: 0.5 };
    let scores: Vec<_> =
        (0..scans).map(|scan| CaseScore { class: liver, scan, patient: scan, outcome }).collect();
    Signed::sign(&EvaluationReport::summarise(subject, &scores, |_| tau_mm, 1, 7), &signing_key())
}

#[tokio::test]
async fn a_report_that_a_crash_kept_from_the_machine_counts_and_no_other_does() {
    let fixture = Fixture::new().await;
    let (store, study) = (fixture.store().await, fixture.digest());
    let (round, model) = (RoundId(1), fixture.study.study().initial_model);
    let event = serde_json::json!({ "evaluation": evaluation::Event::Requested { round, model } });
    store.append_event(&study, &JournalEntry { at: NOW, event: event.to_string() }).await.unwrap();
    store.close().await;
    serve_fixture(fixture, |served| async move {
        let held_out = served.enrol_as("held-out", Role::Evaluator).await;
        let connection = served.dial(&held_out).await;
        let mut watch = greet(&connection).await;
        until_offered(&mut watch).await;
        served.approve(&connection).await;
        while !matches!(hear(&mut watch).await, Notice::EvaluationRequested { .. }) {}
        let [kept, other] = [1, 2].map(|scans| report_on(&served.fixture.study, scans));
        let (document, signature) = (kept.bytes().to_vec(), kept.signature().to_vec());
        let stored = StoredReport { site: "held-out".parse().unwrap(), model, document, signature };
        assert!(served.context.store.put_report(&study, &stored, NOW).await.unwrap());

        let put = |signed: &Signed<EvaluationReport>| {
            let report = SignedBytes { bytes: signed.bytes().to_vec(), signature: *signed.signature() };
            Request::PutReport { study, report }
        };
        let refused = ask(&connection, &put(&other)).await;
        let Err(LinkError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert_eq!(refusal.code, RefusalCode::AlreadyReported);
        let taken = ask(&connection, &put(&kept)).await;
        let Ok(Reply::ReportReceipt { report }) = taken else { panic!("{taken:?}") };
        assert_eq!(report, kept.digest());
    })
    .await;
}

#[tokio::test]
async fn a_manifest_with_a_class_that_the_study_does_not_have_is_refused() {
    serve_while(
        |_| {},
        |served| async move {
            let north = served.enrol("north").await;
            let connection = served.dial(&north).await;
            let classes = served.fixture.study.study().taxonomy.len();
            let taken = served.register(&connection, "north", classes).await;
            assert!(matches!(taken, Ok(Reply::Done)), "{taken:?}");
            let refused = served.register(&connection, "north", classes + 1).await;
            let Err(LinkError::Refused(refusal)) = refused else { panic!("{refused:?}") };
            assert_eq!(refusal.code, RefusalCode::BadManifest);
            assert_eq!(
                refusal.detail.as_str(),
                "the manifest counts class 33, which the study does not have"
            );
        },
    )
    .await;
}

#[tokio::test]
async fn a_site_that_is_not_connected_is_not_ready_whatever_it_said() {
    serve_while(
        |_| {},
        |served| async move {
            let south = served.enrol("south").await;
            let connection = served.dial(&south).await;
            // As of a connection that ended while the store took this: the driver does not have it.
            served.approve(&connection).await;
            let registered = served.register(&connection, "south", 1).await;
            assert!(matches!(registered, Ok(Reply::Done)), "{registered:?}");
            assert!(served.ready().await.is_empty());

            let mut watch = greet(&connection).await;
            until_offered(&mut watch).await;
            served.approve(&connection).await;
            let ready = served.ready().await;
            assert_eq!(ready.iter().map(SiteId::as_str).collect::<Vec<_>>(), ["south"]);
        },
    )
    .await;
}
