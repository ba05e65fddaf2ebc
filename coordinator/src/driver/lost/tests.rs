use common::ids::Digest;
use common::round::Answer;
use common::wire::{Refusal, RefusalCode};
use link::LinkError;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::super::Parts;
use super::super::handle::Command;
use super::*;
use crate::fixture::{Fixture, NOW, attempt, change_a_byte, keep_update, site};
use crate::pki::Authority;
use crate::progress::{Line, Progress};
use crate::store::{JournalEntry, QUARANTINE, RoundRecord};

/// A driver that does not run.
pub(in crate::driver) async fn driver(fixture: &Fixture, store: Store) -> Driver {
    let authority = Authority::open(&fixture.config.certs, "thorax").unwrap();
    let parts = Parts {
        store,
        authority: std::sync::Arc::new(authority),
        address: None,
        progress: Progress::Silent,
        stop: CancellationToken::new(),
    };
    Driver::open(parts).await.unwrap()
}

fn wanted(fixture: &Fixture) -> Wanted {
    let (study, update) = (fixture.digest(), fixture.update);
    Wanted { study, round: RoundId(1), site: site(), attempt: attempt(), update }
}

#[tokio::test]
async fn an_update_that_is_gone_is_asked_for_again_at_the_start_and_the_journal_knows() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    let study = fixture.digest();
    std::fs::remove_dir_all(store.spool().folder(&study, RoundId(1), &site(), &fixture.update)).unwrap();
    let mut first = driver(&fixture, store.clone()).await;
    assert_eq!(first.studies[&study].rounds.status().phase, "aggregating");
    first.miss_updates().await;
    assert_eq!(first.studies[&study].rounds.status().phase, "collecting");
    drop(first);

    let again = driver(&fixture, store).await;
    let status = again.studies[&study].rounds.status();
    assert_eq!((status.phase, &status.answers[&site()]), ("collecting", &Answer::Accepted));
}

#[tokio::test]
async fn an_update_that_is_there_is_not_asked_for_again() {
    let fixture = Fixture::new().await;
    let mut driver = driver(&fixture, fixture.store().await).await;
    driver.miss_updates().await;
    driver.sweep_spool().await;
    assert_eq!(driver.studies[&fixture.digest()].rounds.status().phase, "aggregating");
    assert!(missing(&driver.store, vec![wanted(&fixture)], Look::Whole).is_empty());
}

#[tokio::test]
async fn a_changed_byte_is_found_by_looking_at_the_whole_and_moved_away() {
    let fixture = Fixture::new().await;
    let store = fixture.store().await;
    change_a_byte(&store.spool().folder(&fixture.digest(), RoundId(1), &site(), &fixture.update));
    assert!(missing(&store, vec![wanted(&fixture)], Look::Name).is_empty(), "of the right size");
    assert_eq!(missing(&store, vec![wanted(&fixture)], Look::Whole).len(), 1);
    assert_eq!(std::fs::read_dir(store.dir().join(QUARANTINE)).unwrap().count(), 1);
    assert_eq!(missing(&store, vec![wanted(&fixture)], Look::Name).len(), 1, "gone now");
}

#[tokio::test]
async fn what_a_kill_left_of_an_ended_round_is_removed_and_nothing_else() {
    let fixture = Fixture::new().await;
    let (store, study) = (fixture.store().await, fixture.digest());
    let base = store.artifacts().read(&fixture.study.study().initial_model).unwrap().unwrap();
    for round in [7, 8] {
        keep_update(&store, study, RoundId(round), base.manifest().clone());
    }
    let ended = RoundRecord {
        round: RoundId(7),
        opened_at: NOW,
        closed_at: Some(NOW),
        outcome: Some("aborted".to_owned()),
        model: None,
        sites: Vec::new(),
    };
    store.close_round(&study, &ended).await.unwrap();
    let mut driver = driver(&fixture, store.clone()).await;
    driver.sweep_spool().await;
    assert_eq!(store.spool().rounds().unwrap(), [(study, RoundId(1)), (study, RoundId(8))]);
}

#[tokio::test]
async fn of_a_study_that_cannot_be_read_nothing_is_removed() {
    let fixture = Fixture::new().await;
    let (store, study) = (fixture.store().await, fixture.digest());
    let ended = RoundRecord {
        round: RoundId(1),
        opened_at: NOW,
        closed_at: Some(NOW),
        outcome: Some("aborted".to_owned()),
        model: None,
        sites: Vec::new(),
    };
    store.close_round(&study, &ended).await.unwrap();
    let torn = JournalEntry { at: NOW, event: "{".to_owned() };
    store.append_event(&study, &torn).await.unwrap();
    let mut driver = driver(&fixture, store.clone()).await;
    assert!(driver.studies.is_empty());
    driver.sweep_spool().await;
    assert_eq!(store.spool().rounds().unwrap(), [(study, RoundId(1))]);
}

#[tokio::test]
async fn with_what_it_has_for_a_study_that_cannot_be_read_a_site_is_told_to_come_again() {
    let fixture = Fixture::new().await;
    let (store, study) = (fixture.store().await, fixture.digest());
    let torn = JournalEntry { at: NOW, event: "{".to_owned() };
    store.append_event(&study, &torn).await.unwrap();
    let mut driver = driver(&fixture, store).await;
    assert!(driver.unreadable.contains_key(&study));

    let base = fixture.study.study().initial_model;
    let (round, attempt, update) = (RoundId(1), attempt(), fixture.update);
    let offer = round::UpdateOffer { study, round, base, attempt, steps: 1, update };
    let refused = expect_update(&mut driver, offer.clone()).await;
    assert!(LinkError::Refused(refused.clone()).is_transient(), "the update was dropped: {refused:?}");
    let (reply, answer) = oneshot::channel();
    let report = Digest::of(b"a report");
    driver.obey(Command::ExpectReport { study, site: site(), model: base, report, reply }).await;
    assert_eq!(answer.await.unwrap().unwrap_err(), refused);
    let told = Line::Refused {
        site: Some(site()),
        code: refused.code.code().to_owned(),
        detail: format!("offer-update: {}", refused.detail),
    };
    assert!(driver.is_echo(&told), "the operator heard of it at the start");

    let nowhere = round::UpdateOffer { study: StudyDigest(Digest::of(b"another")), ..offer };
    assert_eq!(expect_update(&mut driver, nowhere).await.code, RefusalCode::UnknownStudy);
}

async fn expect_update(driver: &mut Driver, offer: round::UpdateOffer) -> Refusal {
    let (reply, answer) = oneshot::channel();
    driver.obey(Command::ExpectUpdate { site: site(), offer, reply }).await;
    answer.await.unwrap().unwrap_err()
}

#[tokio::test]
async fn what_an_earlier_aggregation_made_does_not_count() {
    let fixture = Fixture::new().await;
    let mut driver = driver(&fixture, fixture.store().await).await;
    let (study, round, model) = (fixture.digest(), RoundId(1), fixture.study.study().initial_model);
    // One of before an update was lost, and the one that is under way.
    let (earlier, last) = (CancellationToken::new(), CancellationToken::new());
    earlier.cancel();
    let aggregated = |job| {
        let events = vec![round::Event::Aggregated { round, model }];
        Command::Aggregated { study, job, lines: Vec::new(), events }
    };
    driver.obey(aggregated(earlier)).await;
    assert_eq!(driver.studies[&study].rounds.status().phase, "aggregating");
    driver.obey(aggregated(last)).await;
    assert_eq!(driver.studies[&study].rounds.status().model_round, round);
}

#[tokio::test]
async fn an_abort_ends_the_aggregation_under_way() {
    let fixture = Fixture::new().await;
    let mut driver = driver(&fixture, fixture.store().await).await;
    let (study, job) = (fixture.digest(), CancellationToken::new());
    driver.jobs.insert(study, job.clone());
    driver.take(study, Happening::Round(round::Event::Abort)).await;
    assert_eq!(driver.studies[&study].rounds.status().phase, "aborted");
    assert!(job.is_cancelled());
}

#[tokio::test]
async fn no_aggregation_outlives_the_driver() {
    let fixture = Fixture::new().await;
    let mut driver = driver(&fixture, fixture.store().await).await;
    let job = CancellationToken::new();
    driver.jobs.insert(fixture.digest(), job.clone());
    drop(driver);
    assert!(job.is_cancelled(), "the process would wait for it, and hold the lock");
}

#[tokio::test]
async fn an_aggregation_takes_the_place_of_the_one_before() {
    let fixture = Fixture::new().await;
    let mut driver = driver(&fixture, fixture.store().await).await;
    let (study, earlier) = (fixture.digest(), CancellationToken::new());
    driver.jobs.insert(study, earlier.clone());
    driver.take(study, Happening::Round(round::Event::Restarted)).await;
    assert!(earlier.is_cancelled() && !driver.jobs[&study].is_cancelled());
    driver.work.close();
    driver.work.wait().await;
}
