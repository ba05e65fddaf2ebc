use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::evaluation::{EvaluatorKind, Event};
use common::ids::{ArtifactHash, ClassId, Digest, Role, RoundId};
use common::manifest::LabelManifest;
use common::report::{CaseOutcome, CaseScore, EvaluationReport, ReportSubject};
use common::signed::{Signed, SignedDocument, SigningKey};
use common::study::sections::Strategy;
use common::testing::example_study_with;
use common::time::Timestamp;

use super::*;
use crate::fixture::{Fixture, NOW, change_a_byte, forbid_log, keep_update, site, write};
use crate::pki::{Serial, Token};
use crate::store::{InviteTerms, JournalEntry, QUARANTINE, StoredManifest, StoredReport};

/// Examines; what was found but is not well, and the summary.
async fn examined(fixture: &Fixture, repair: bool) -> (Vec<Finding>, Summary) {
    let mut found = Vec::new();
    let mut tell = |told: Told<'_>| {
        if let Told::Finding(finding) = told {
            found.push(finding.clone());
        }
    };
    let stop = CancellationToken::new();
    let summary = examine(&fixture.config, repair, &stop, &mut tell).await.unwrap();
    // The root's key of a fresh consortium is still beside the server.
    found.retain(|finding| finding.level != Level::Ok && !finding.subject.ends_with("root.key"));
    (found, summary)
}

fn update_folder(fixture: &Fixture) -> std::path::PathBuf {
    let round = format!("{}-1", fixture.digest());
    fixture.config.state.join("spool").join(round).join(format!("{}.{}", site(), fixture.update))
}

fn model_folder(fixture: &Fixture) -> std::path::PathBuf {
    fixture.config.state.join("artifacts").join(fixture.study.study().initial_model.to_string())
}

fn quarantined(fixture: &Fixture) -> usize {
    fs::read_dir(fixture.config.state.join(QUARANTINE)).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_store_that_is_well_has_nothing_to_repair() {
    let fixture = Fixture::new().await;
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!(found, []);
    assert_eq!((summary.bad, summary.repaired, summary.warnings), (0, 0, 1));
    let (found, _) = examined(&fixture, true).await;
    assert_eq!(found, []);
    assert_eq!(quarantined(&fixture), 0);
}

#[tokio::test]
async fn a_corrupt_initial_model_is_moved_away_and_put_back_by_its_file() {
    let fixture = Fixture::new().await;
    let folder = model_folder(&fixture);
    let manifest = {
        let store = fixture.store().await;
        let file = store.artifacts().read(&fixture.study.study().initial_model).unwrap().unwrap();
        let manifest = file.manifest().clone();
        store.close().await;
        manifest
    };
    change_a_byte(&folder);
    let (found, _) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.level, finding.subject.as_str()), (Level::Bad, folder.to_str().unwrap()));
    assert!(finding.detail.contains("chunk 0"), "{finding}");
    assert!(finding.remedy.as_ref().unwrap().contains("coordinator study add"), "{finding}");
    assert!(folder.exists(), "without --repair nothing is changed");

    let (found, _) = examined(&fixture, true).await;
    assert!(found[0].detail.contains("moved to"), "{}", found[0]);
    assert_eq!((folder.exists(), quarantined(&fixture)), (false, 1));
    let (found, _) = examined(&fixture, false).await;
    assert!(found[0].detail.contains("is not there"), "{}", found[0]);

    let store = fixture.store().await;
    write(&store, &manifest);
    store.close().await;
    assert_eq!(examined(&fixture, false).await.0, []);
}

#[tokio::test]
async fn a_corrupt_update_is_moved_away_and_its_site_is_asked_again() {
    let fixture = Fixture::new().await;
    let folder = update_folder(&fixture);
    change_a_byte(&folder);
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!((summary.bad, found[0].subject.as_str()), (1, folder.to_str().unwrap()));
    let (found, summary) = examined(&fixture, true).await;
    assert_eq!((summary.bad, found[0].level), (0, Level::Repaired));
    assert!(found[0].remedy.as_ref().unwrap().contains("asks north again"), "{}", found[0]);
    assert_eq!((folder.exists(), quarantined(&fixture)), (false, 1));
    let (found, _) = examined(&fixture, false).await;
    assert!(found[0].detail.contains("counts in round 1 and is not there"), "{}", found[0]);
}

#[tokio::test]
async fn a_torn_journal_is_told_by_its_entry() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let torn = JournalEntry { at: NOW, event: "{\"round\":{\"accept".to_owned() };
    store.append_event(&fixture.digest(), &torn).await.unwrap();
    store.close().await;
    let (found, _) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert!(finding.detail.contains("entry 4 of 4 since the snapshot"), "{finding}");
    assert!(finding.remedy.as_ref().unwrap().contains("coordinator restore"), "{finding}");
}

#[tokio::test]
async fn beside_a_running_coordinator_it_looks_and_repairs_nothing() {
    let fixture = Fixture::new().await;
    let running = fixture.store().await;
    assert_eq!(examined(&fixture, false).await.0, []);
    let stop = CancellationToken::new();
    // It waits for the lock first.
    tokio::time::pause();
    let refused = examine(&fixture.config, true, &stop, &mut |_| {}).await;
    tokio::time::resume();
    assert_eq!(refused.err().map(|error| error.code()), Some("store-locked"));
    running.close().await;
}

#[tokio::test]
async fn a_database_that_is_none_is_a_finding() {
    let fixture = Fixture::new().await;
    fs::write(fixture.config.state.join(DATABASE), vec![0x5a; 8192]).unwrap();
    let (found, summary) = examined(&fixture, true).await;
    assert_eq!(summary.bad, 1);
    assert!(found[0].detail.contains("store-corrupt"), "{}", found[0]);
}

#[tokio::test]
async fn a_database_on_a_disk_that_takes_nothing_is_looked_at_and_never_to_be_restored() {
    let fixture = Fixture::new().await;
    let database = fixture.config.state.join(DATABASE);
    forbid_log(&fixture.config.state);
    assert_eq!(examined(&fixture, false).await.0, []);
    // A log that cannot be read without what cannot be made.
    fs::write(database.with_extension("db-wal"), "of a killed one").unwrap();
    let (found, summary) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((summary.bad, finding.subject.as_str()), (1, database.to_str().unwrap()));
    assert!(finding.remedy.as_ref().unwrap().starts_with("see to the disk"), "{finding}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_listed_is_no_fault_of_the_database() {
    let fixture = Fixture::new().await;
    let spool = fixture.config.state.join("spool");
    fs::remove_dir_all(&spool).unwrap();
    fs::write(&spool, "in its place").unwrap();
    let (found, summary) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((summary.bad, finding.subject.as_str()), (1, spool.to_str().unwrap()));
    assert!(!finding.remedy.as_ref().unwrap().contains("restore"), "{finding}");
}

#[tokio::test]
async fn keys_that_others_may_read_are_told_and_closed() {
    let fixture = Fixture::new().await;
    let key = fixture.config.certs.join("issuing.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!(summary.bad, 1);
    assert!(found[0].detail.contains("mode 644"), "{}", found[0]);
    let (_, summary) = examined(&fixture, true).await;
    assert_eq!((summary.bad, summary.repaired), (0, 1));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_not_ours_is_told_and_left() {
    let fixture = Fixture::new().await;
    let stranger = fixture.config.state.join("artifacts/notes.txt");
    fs::write(&stranger, "mine").unwrap();
    let (found, summary) = examined(&fixture, true).await;
    assert_eq!((summary.bad, found.len()), (0, 1));
    assert!(stranger.exists());
}

#[tokio::test]
async fn an_update_of_a_round_that_has_ended_is_no_loss() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let base = store.artifacts().read(&fixture.study.study().initial_model).unwrap().unwrap();
    let update = keep_update(&store, fixture.digest(), RoundId(9), base.manifest().clone());
    let folder = store.spool().folder(&fixture.digest(), RoundId(9), &site(), &update);
    change_a_byte(&folder);
    store.close().await;
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!((summary.bad, found[0].level), (0, Level::Warn));
}

/// Moments of zeros, beside the fixture's initial model as if `round` had made it; their folder.
fn write_moments(fixture: &Fixture, store: &Store, round: u32) -> std::path::PathBuf {
    let model = fixture.study.study().initial_model;
    let base = store.artifacts().read(&model).unwrap().unwrap();
    let layout = base.manifest().layout();
    let mut writer = store.server_states().write(fixture.digest(), layout, &["velocity"]).unwrap();
    for span in layout.spans() {
        writer.push_chunk(&[vec![0; span.len as usize]]).unwrap();
    }
    writer.finish(RoundId(round), &model).unwrap();
    store.server_states().folder(&fixture.digest(), RoundId(round), &model)
}

/// Changes a byte of the one moment in `folder`.
fn change_a_moment(folder: &Path) {
    let moment = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    change_a_byte(&moment.unwrap());
}

#[tokio::test]
async fn a_late_update_that_counts_is_known_by_the_round_that_it_was_trained_for() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let stored = store.studies().await.unwrap().remove(0);
    let mut study = crate::driver::rehearse(&store, stored.clone()).await.unwrap();
    study.status.round = RoundId(2);
    let mut known = records::Known::default();
    known.add(&stored, &study, Vec::new());
    let rounds: Vec<_> = known.counted.iter().map(|name| (name.round, name.update)).collect();
    assert_eq!(rounds, [(RoundId(1), fixture.update)]);
}

#[tokio::test]
async fn moments_that_no_round_starts_from_are_read_and_moved_away_when_corrupt() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let folder = write_moments(&fixture, &store, 1);
    store.close().await;
    assert_eq!(examined(&fixture, false).await.0, []);
    change_a_moment(&folder);
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!((summary.bad, found[0].level), (0, Level::Warn), "{found:#?}");
    assert_eq!(found[0].subject, folder.display().to_string());
    let (found, _) = examined(&fixture, true).await;
    assert_eq!(found[0].level, Level::Repaired, "{found:#?}");
    assert_eq!((folder.exists(), quarantined(&fixture)), (false, 1));
}

#[tokio::test]
async fn moments_that_the_next_round_starts_from_are_missed_and_it_is_said_what_happens() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let stored = store.studies().await.unwrap().remove(0);
    let mut study = crate::driver::rehearse(&store, stored.clone()).await.unwrap();
    study.document = example_study_with(|draft| draft.aggregation.strategy = Strategy::ServerMomentum);
    let moments_known = |study: &crate::driver::Rehearsal| {
        let mut known = records::Known::default();
        known.add(&stored, study, Vec::new());
        known
    };
    assert_eq!(moments_known(&study).moments.len(), 0, "the first round starts from zeros");
    study.status.model_round = RoundId(1);
    let known = moments_known(&study);
    let look = |repair| {
        let mut found = Vec::new();
        let mut tell = |told: Told<'_>| {
            if let Told::Finding(finding) = told {
                found.push(finding.clone());
            }
        };
        let (summary, stop) = (Summary::default(), CancellationToken::new());
        let mut examination = Examination { tell: &mut tell, summary, repair, running: false, stop: &stop };
        moments::examine(&store, &known, &mut examination).unwrap();
        found.retain(|finding| finding.level != Level::Ok);
        found
    };
    let found = look(false);
    assert_eq!((found.len(), found[0].level), (1, Level::Bad));
    assert!(found[0].detail.starts_with("is not there"), "{}", found[0]);

    let folder = write_moments(&fixture, &store, 1);
    assert_eq!(look(false), []);
    change_a_moment(&folder);
    let found = look(true);
    assert_eq!((found.len(), found[0].level, folder.exists()), (1, Level::Bad, false));
    let remedy = found[0].remedy.as_ref().unwrap();
    assert!(remedy.contains("pauses the study") && remedy.contains("study resume"), "{}", found[0]);
}

#[tokio::test]
async fn a_damaged_mark_is_no_fault_of_the_database() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let mark = store.mark_file();
    store.close().await;
    fs::write(&mark, "{").unwrap();
    let (found, summary) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.level, summary.bad), (Level::Warn, 0));
    assert_eq!(finding.subject, mark.display().to_string());
    let (found, _) = examined(&fixture, true).await;
    assert_eq!((found[0].level, mark.exists(), quarantined(&fixture)), (Level::Repaired, false, 1));
    assert_eq!(examined(&fixture, false).await.0, []);
}

/// Enrols [`site`] with a key made of this byte.
async fn enrol(store: &Store, key: u8, at: Timestamp) -> SigningKey {
    let (token, until) = (Token::random(), Timestamp(at.0 + 1000));
    let terms = InviteTerms { site: site(), role: Role::Evaluator };
    store.add_invite(token.hash(), &terms, at, until).await.unwrap();
    let key = SigningKey::from_bytes(&[key; 32]);
    let public = key.verifying_key().to_bytes();
    store.enrol(token.hash(), &public, Serial::random(), until, at).await.unwrap().unwrap();
    key
}

/// The model of a round, of which there is nothing but the name.
fn model(round: u32) -> ArtifactHash {
    ArtifactHash(Digest::of(&round.to_le_bytes()))
}

/// A report of [`site`] on the [`model`] of a round.
fn report(fixture: &Fixture, round: u32, key: &SigningKey) -> Signed<EvaluationReport> {
    let subject = ReportSubject {
        site: site(),
        model: model(round),
        round: RoundId(round),
        study: fixture.digest(),
        taxonomy: fixture.study.study().taxonomy.digest(),
    };
    let outcome = CaseOutcome::Absent { false_positive_volume_ml: 1.25 };
    let score = CaseScore { class: ClassId::new(6).unwrap(), scan: 0, patient: 0, outcome };
    Signed::sign(&EvaluationReport::summarise(subject, &[score], |_| 2.0, 1, 7), key)
}

/// The document of a report with another digit in a number, which is a report still.
fn with_another_digit(report: &Signed<EvaluationReport>) -> Vec<u8> {
    let text = str::from_utf8(report.bytes()).unwrap().replace("1.25", "1.35");
    assert_ne!(text.as_bytes(), report.bytes());
    text.into_bytes()
}

#[tokio::test]
async fn a_report_that_its_site_did_not_sign_so_is_told() {
    let fixture = Fixture::new().await;
    let (store, digest) = (fixture.store().await, fixture.digest());
    let key = enrol(&store, 7, NOW).await;
    let keep = async |round: u32, document: Vec<u8>, signature: &[u8; 64]| {
        let signature = signature.to_vec();
        let stored = StoredReport { site: site(), model: model(round), document, signature };
        assert!(store.put_report(&digest, &stored, NOW).await.unwrap());
    };
    let (first, second) = (report(&fixture, 1, &key), report(&fixture, 2, &key));
    keep(1, first.bytes().to_vec(), first.signature()).await;
    assert_eq!(examined(&fixture, false).await.0, []);

    // A digit of a number, in a document that is one still, and a report under another model's name.
    keep(2, with_another_digit(&second), second.signature()).await;
    keep(3, first.bytes().to_vec(), first.signature()).await;
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!((summary.bad, found.len()), (2, 2), "{found:#?}");
    let told = |detail: &str| found.iter().any(|finding| finding.detail.contains(detail));
    assert!(told("the signature does not match") && told("about another site, model or study"), "{found:#?}");
    assert!(found.iter().all(|finding| finding.subject.contains("report of north on model")), "{found:#?}");

    enrol(&store, 8, Timestamp(NOW.0 + 1)).await;
    assert_eq!(examined(&fixture, false).await.0, [], "its key of then is gone");

    // The clock was a day ahead when this came, and the journal has nothing of it.
    let (early, ahead) = (report(&fixture, 4, &key), Timestamp(NOW.0 + 24 * 3_600_000));
    let (document, signature) = (early.bytes().to_vec(), early.signature().to_vec());
    let stored = StoredReport { site: site(), model: model(4), document, signature };
    assert!(store.put_report(&digest, &stored, ahead).await.unwrap());
    let (found, summary) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.level, summary.bad), (Level::Warn, 0), "{finding}");
    store.close().await;
}

#[tokio::test]
async fn after_a_second_enrolment_the_journal_tells_a_changed_report_from_one_of_a_former_key() {
    let fixture = Fixture::new().await;
    let (store, digest) = (fixture.store().await, fixture.digest());
    let note = async |event: Event| {
        let event = serde_json::json!({ "evaluation": event }).to_string();
        store.append_event(&digest, &JournalEntry { at: NOW, event }).await.unwrap();
    };
    note(Event::EvaluatorReady { site: site(), kind: EvaluatorKind::Validation }).await;
    let keep = async |round: u32, signed: &Signed<EvaluationReport>, document: Vec<u8>, at: Timestamp| {
        let (model, signature) = (model(round), signed.signature().to_vec());
        let stored = StoredReport { site: site(), model, document, signature };
        assert!(store.put_report(&digest, &stored, at).await.unwrap());
        note(Event::Requested { round: RoundId(round), model }).await;
        note(Event::ReportStored { site: site(), model, report: signed.digest() }).await;
    };
    let former = enrol(&store, 7, NOW).await;
    let now = enrol(&store, 8, Timestamp(NOW.0 + 1)).await;
    let later = Timestamp(NOW.0 + 2);

    let [before, early] = [1, 2].map(|round| report(&fixture, round, &former));
    keep(1, &before, before.bytes().to_vec(), NOW).await;
    // The clock was ahead when this came.
    keep(2, &early, early.bytes().to_vec(), later).await;
    assert_eq!(examined(&fixture, false).await.0, []);

    let changed = [(3, &former, NOW), (4, &now, later)];
    for (round, key, at) in changed {
        let signed = report(&fixture, round, key);
        keep(round, &signed, with_another_digit(&signed), at).await;
    }
    let (found, summary) = examined(&fixture, false).await;
    assert_eq!((summary.bad, found.len()), (2, 2), "{found:#?}");
    for (finding, round) in found.iter().zip([3, 4]) {
        assert!(finding.subject.ends_with(&model(round).short()), "{finding}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_label_manifest_that_does_not_count_is_told_and_no_fault_of_its_study() {
    let fixture = Fixture::new().await;
    let (store, digest) = (fixture.store().await, fixture.digest());
    let key = enrol(&store, 7, NOW).await;
    let taxonomy = &fixture.study.study().taxonomy;
    let manifest = serde_json::json!({
        "format": "consilium label manifest 1",
        "site": site(),
        "taxonomy": taxonomy.digest(),
        "volumes": 5,
        "classes": [{ "class": taxonomy.len() + 1, "annotated": 5, "present": null }],
        "datasets": [{ "name": "mine", "volumes": 5 }],
    });
    let manifest = LabelManifest::from_bytes(manifest.to_string().as_bytes()).unwrap();
    let signed = Signed::sign(&manifest, &key);
    let keep = async |document: &[u8]| {
        let (document, signature) = (document.to_vec(), signed.signature().to_vec());
        let stored = StoredManifest { site: site(), document, signature };
        store.put_manifest(&digest, &stored, NOW).await.unwrap();
    };
    keep(signed.bytes()).await;
    let (found, summary) = examined(&fixture, false).await;
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.level, summary.bad), (Level::Warn, 0), "{finding}");
    assert!(finding.subject.ends_with(", label manifest of north"), "{finding}");
    assert!(finding.detail.ends_with("class 33, which the study does not have"), "{finding}");

    keep(b"{}").await;
    let (found, summary) = examined(&fixture, false).await;
    let told = |detail: &str| found.iter().any(|finding| finding.detail.contains(detail));
    assert_eq!((summary.bad, found.len()), (1, 2), "{found:#?}");
    assert!(told("does not count") && told("is not what the site signed"), "{found:#?}");
    store.close().await;
}

#[test]
fn certificates_are_told_in_time() {
    let days = |n: u64| Timestamp(NOW.0 + n * 86_400_000);
    let level = |until| place::lasts(until, NOW, 30).0;
    assert_eq!([days(31), days(29), NOW].map(level), [Level::Ok, Level::Warn, Level::Bad]);
}

#[test]
fn a_finding_is_a_line_with_what_to_do_below() {
    let remedy = Some("do this".to_owned());
    let (subject, detail) = ("/srv/state".to_owned(), "is so".to_owned());
    let finding = Finding { level: Level::Bad, subject, detail, remedy };
    assert_eq!(finding.to_string(), "bad       /srv/state: is so\n          to do: do this");
    let json = serde_json::to_string(&finding).unwrap();
    assert_eq!(json, r#"{"level":"bad","subject":"/srv/state","detail":"is so","remedy":"do this"}"#);
}
