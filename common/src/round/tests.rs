//! The rounds' promises one by one, and what every event does in every phase. Whole federations: `tests/src/simulation`.

mod classes;
mod excluded;
mod joining;
mod late;
mod left_out;

use std::fmt::Write as _;
use std::time::Duration;

use super::*;
use crate::aggregate::weights::{SiteCounts, Weighting};
use crate::ids::{ArtifactHash, AttemptId, Digest, Role};

const STEPS: u32 = 10;
const T0: Timestamp = Timestamp(1_000_000);

fn hash(text: &str) -> ArtifactHash {
    ArtifactHash(Digest::of(text.as_bytes()))
}

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn plan() -> RoundPlan {
    RoundPlan {
        study: StudyDigest(Digest::of(b"study")),
        initial_model: hash("initial"),
        rounds: 2,
        steps: STEPS,
        quorum: Quorum { sites: 2, sites_per_class: 0, class_floor: 0, deadline_s: 600, accept_s: 30 },
        late: Late::Refuse,
        weighting: Weighting::Samples,
        max_site_weight: 0.5,
        server_lr: 1.0,
        evaluate_every: 1,
        gate: None,
        leave_out: BTreeSet::new(),
        // Most of these tests tell nothing of classes.
        min_volumes: 0,
    }
}

fn ready(name: &str, volumes: u32) -> Event {
    Event::SiteReady { site: site(name), counts: SiteCounts { volumes, ..SiteCounts::default() } }
}

fn accepted(name: &str, round: u32) -> Event {
    Event::RoundAccepted { site: site(name), round: RoundId(round) }
}

fn offer(round: u32, base: ArtifactHash, attempt: u8) -> UpdateOffer {
    let update = hash(&format!("update {attempt}"));
    let attempt = AttemptId::from_bytes([attempt; 16]);
    UpdateOffer { study: plan().study, round: RoundId(round), base, attempt, steps: STEPS, update }
}

fn stored(name: &str, round: u32, base: ArtifactHash, attempt: u8) -> Event {
    Event::UpdateStored { site: site(name), offer: offer(round, base, attempt) }
}

fn lost(name: &str, attempt: u8) -> Event {
    Event::UpdateLost { site: site(name), round: RoundId(1), attempt: AttemptId::from_bytes([attempt; 16]) }
}

/// A machine with its clock.
struct Study {
    machine: RoundMachine,
    now: Timestamp,
}

impl Study {
    fn new(plan: RoundPlan) -> Self {
        Self { machine: RoundMachine::new(plan), now: T0 }
    }

    fn tick(&mut self, event: Event) -> Vec<Action> {
        self.machine.tick(event, self.now).unwrap()
    }

    fn all(mut self, events: impl IntoIterator<Item = Event>) -> Self {
        for event in events {
            self.tick(event);
        }
        self
    }

    fn wait(&mut self, seconds: u64) -> Vec<Action> {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.tick(Event::TimerFired(Timer::Deadline))
    }

    fn phase(&self) -> &'static str {
        self.machine.status().phase
    }

    /// `a` and `b` were asked for round 1.
    fn distributing() -> Self {
        Self::new(plan()).all([ready("a", 30), ready("b", 10), Event::Start])
    }

    fn collecting() -> Self {
        Self::distributing().all([accepted("a", 1), accepted("b", 1)])
    }

    fn quorum_missing() -> Self {
        let mut study = Self::collecting().all([stored("a", 1, hash("initial"), 1)]);
        study.wait(600);
        study
    }

    fn aggregating() -> Self {
        Self::collecting().all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)])
    }

    fn committing() -> Self {
        Self::aggregating().all([Event::Aggregated { round: RoundId(1), model: hash("one") }])
    }

    /// Behind a closed gate.
    fn committed() -> Self {
        let gate = Some(Gate { evaluators: [site("v")].into(), timeout_s: 60 });
        let mut study = Self::committing();
        study.machine.plan.gate = gate;
        study.all([Event::Committed { round: RoundId(1), model: hash("one") }])
    }

    fn paused() -> Self {
        Self::collecting().all([Event::Pause])
    }

    fn finished() -> Self {
        let mut study = Self::committing();
        study.machine.plan.rounds = 1;
        study.all([Event::Committed { round: RoundId(1), model: hash("one") }])
    }

    fn aborted() -> Self {
        Self::collecting().all([Event::Abort])
    }
}

fn facts<'a>(actions: &'a [Action]) -> Vec<&'a Fact> {
    let fact = |action: &'a Action| match action {
        Action::Report(fact) => Some(fact),
        _ => None,
    };
    actions.iter().filter_map(fact).collect()
}

#[test]
fn a_round_waits_a_little_for_expected_sites_and_then_goes_without_them() {
    let sites = ["a", "b", "c"].map(site).into();
    let mut study = Study::new(plan()).all([Event::TrainersExpected { sites }, Event::Start]);
    study.tick(ready("a", 1));
    let actions = study.tick(ready("b", 1));
    let at = study.now.after(Duration::from_secs(30));
    assert!(actions.contains(&Action::SetTimer { timer: Timer::Gather, at }));
    assert_eq!(study.phase(), "waiting");
    study.wait(30);
    assert_eq!(study.phase(), "distributing");
}

#[test]
fn a_study_says_how_many_sites_and_updates_it_is_short_of() {
    let short = |study: &Study| study.machine.status().sites_short.map(|short| (short.have, short.need));
    let study = Study::new(plan()).all([ready("a", 1), Event::Start]);
    assert_eq!(short(&study), Some((1, 2)));
    assert_eq!(short(&Study::collecting()), None, "it may get them in time");
    assert_eq!(short(&Study::quorum_missing()), Some((1, 2)));
    assert_eq!([short(&Study::aggregating()), short(&Study::finished())], [None, None]);
}

#[test]
fn a_round_opens_at_once_when_all_expected_sites_are_there() {
    let sites = ["a", "b", "c"].map(site).into();
    let mut study = Study::new(plan()).all([Event::TrainersExpected { sites }, Event::Start]);
    let actions = ["a", "b", "c"].map(|name| study.tick(ready(name, 1)));
    let opened = |action: &Action| matches!(action, Action::OpenRound { to, .. } if to.len() == 3);
    assert!(actions[2].iter().any(opened), "{actions:?}");
}

#[test]
fn silent_sites_are_not_waited_for_but_their_updates_count() {
    let mut study = Study::new(plan()).all([ready("a", 1), ready("b", 1), ready("c", 1), Event::Start]);
    study.tick(accepted("a", 1));
    study.tick(accepted("b", 1));
    let actions = study.wait(30);
    assert!(facts(&actions).contains(&&Fact::SiteSilent { site: site("c"), round: RoundId(1) }));
    study.tick(stored("c", 1, hash("initial"), 3));
    study.tick(stored("a", 1, hash("initial"), 1));
    assert_eq!(study.phase(), "collecting");
    study.tick(stored("b", 1, hash("initial"), 2));
    assert_eq!(study.phase(), "aggregating");
    assert_eq!(study.machine.status().answers.len(), 3);
}

#[test]
fn a_deadline_without_quorum_waits_for_updates_and_ends_by_itself() {
    let mut study = Study::quorum_missing();
    assert_eq!(study.phase(), "quorum-missing");
    let again = study.wait(30);
    let asked = |action: &Action| matches!(action, Action::OpenRound { to, .. } if *to == [site("b")].into());
    assert!(again.iter().any(asked), "{again:?}");
    study.tick(stored("b", 1, hash("initial"), 2));
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn resume_lets_new_sites_help_out_when_a_quorum_is_missing() {
    let mut study = Study::quorum_missing().all([Event::SiteGone { site: site("b") }, ready("d", 5)]);
    let refused = study.machine.expect_update(&site("d"), &offer(1, hash("initial"), 9));
    assert_eq!(refused, Err(Rejection::NotParticipant { round: RoundId(1) }));
    study.tick(Event::Resume);
    study.tick(stored("d", 1, hash("initial"), 9));
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn weights_follow_from_the_manifests_of_the_rounds_opening() {
    let mut study = Study::distributing().all([ready("a", 7777)]);
    study.tick(stored("a", 1, hash("initial"), 1));
    let actions = study.tick(stored("b", 1, hash("initial"), 2));
    let terms = |action: &Action| match action {
        Action::Aggregate { terms, .. } => Some(terms.iter().map(|term| term.share).collect::<Vec<_>>()),
        _ => None,
    };
    assert_eq!(actions.iter().find_map(terms), Some(vec![0.75, 0.25]));
}

#[test]
fn a_duplicate_update_is_answered_and_not_counted() {
    let mut study = Study::collecting().all([stored("a", 1, hash("initial"), 1)]);
    let before = study.machine.clone();
    let actions = study.tick(stored("a", 1, hash("initial"), 1));
    assert!(matches!(actions.as_slice(), [Action::Report(_), Action::Acknowledge { .. }]), "{actions:?}");
    assert_eq!(study.machine, before);
}

#[test]
fn a_receipt_that_was_lost_is_given_again_after_the_round() {
    let study = Study::committing().all([Event::Committed { round: RoundId(1), model: hash("one") }]);
    let answer = study.machine.expect_update(&site("a"), &offer(1, hash("initial"), 1));
    assert_eq!(answer, Ok(UpdateExpectation::AlreadyCounted));
}

#[test]
fn updates_that_do_not_fit_are_refused_with_a_stable_code() {
    let initial = hash("initial");
    let code = |study: &Study, offer: UpdateOffer| {
        study.machine.expect_update(&site("a"), &offer).map_err(|rejection| rejection.code())
    };
    let collecting = Study::collecting().all([stored("b", 1, initial, 2)]);
    let other = StudyDigest(Digest::of(b"other"));
    let cases = [
        ("wrong-study", &collecting, UpdateOffer { study: other, ..offer(1, initial, 1) }),
        ("wrong-base", &collecting, offer(1, hash("else"), 1)),
        ("wrong-steps", &collecting, UpdateOffer { steps: 9, ..offer(1, initial, 1) }),
        ("round-not-open", &collecting, offer(2, initial, 1)),
        ("round-not-open", &Study::new(plan()), offer(1, initial, 1)),
        ("round-closed", &collecting, offer(0, initial, 1)),
        ("round-closed", &Study::committed(), UpdateOffer { round: RoundId(0), ..offer(1, initial, 1) }),
        ("already-counted", &Study::aggregating(), offer(1, initial, 7)),
        ("attempt-reused", &Study::aggregating(), UpdateOffer { update: hash("x"), ..offer(1, initial, 1) }),
        ("study-over", &Study::aborted(), offer(1, initial, 1)),
    ];
    for (expected, study, offer) in cases {
        assert_eq!(code(study, offer), Err(expected));
    }
    let stranger = collecting.machine.expect_update(&site("z"), &offer(1, initial, 1));
    assert_eq!(stranger.map_err(|rejection| rejection.code()), Err("not-participant"));
}

#[test]
fn nothing_is_announced_before_it_is_durable() {
    let mut study = Study::aggregating();
    let actions = study.tick(Event::Aggregated { round: RoundId(1), model: hash("one") });
    assert_eq!(actions, [Action::Commit { round: RoundId(1), model: hash("one") }]);
    let actions = study.tick(Event::Committed { round: RoundId(1), model: hash("one") });
    let closes = |action: &Action| matches!(action, Action::CloseRound { model: Some(_), .. });
    assert!(actions.iter().any(closes), "{actions:?}");
}

#[test]
fn a_storage_that_fails_is_tried_again_later_and_later() {
    let round = RoundId(1);
    for fault in [Fault::StorageFull, Fault::StorageReadOnly, Fault::Storage] {
        let failed = [Event::AggregationFailed { round, fault }, Event::CommitFailed { round, fault }];
        for (mut study, failed) in [Study::aggregating(), Study::committing()].into_iter().zip(failed) {
            let mut waits = vec![];
            for _ in 0..7 {
                study.tick(failed.clone());
                let at = study.machine.status().timers[&Timer::Retry];
                waits.push(at.since(study.now).as_secs());
                study.now = at;
                let actions = study.tick(Event::TimerFired(Timer::Retry));
                assert!(asks_for_a_model(&actions), "{fault:?}: {actions:?}");
            }
            assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600], "{fault:?}");
        }
    }
}

#[test]
fn numbers_that_do_not_aggregate_wait_for_the_operator() {
    let mut study = Study::aggregating();
    study.tick(Event::AggregationFailed { round: RoundId(1), fault: Fault::Numbers });
    assert_eq!(study.machine.status().timers, BTreeMap::new());
    assert_eq!(study.machine.status().paused, Some(PauseReason::Aggregation(Fault::Numbers)));
    let actions = study.tick(Event::Resume);
    assert!(actions.iter().any(|action| matches!(action, Action::Aggregate { .. })), "{actions:?}");
}

/// Whether a model is asked for, to be computed or to be committed.
fn asks_for_a_model(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Aggregate { .. } | Action::Commit { .. }))
}

#[test]
fn a_model_in_the_making_goes_on_through_a_pause_and_is_not_made_twice() {
    for mut study in [Study::aggregating(), Study::committing()] {
        study.tick(Event::Pause);
        let actions = study.tick(Event::Resume);
        assert!(!asks_for_a_model(&actions), "{actions:?}");
        // What comes of it counts, also in the middle of another pause.
        study = study.all([Event::Pause, Event::Aggregated { round: RoundId(1), model: hash("one") }]);
        study = study.all([Event::Committed { round: RoundId(1), model: hash("one") }]);
        assert_eq!(study.phase(), "committed");
    }
}

#[test]
fn a_model_that_failed_or_was_dropped_in_a_pause_is_made_when_it_ends() {
    let (round, fault) = (RoundId(1), Fault::Storage);
    let failed = [Event::AggregationFailed { round, fault }, Event::CommitFailed { round, fault }];
    for (build, failed) in [Study::aggregating, Study::committing].into_iter().zip(failed) {
        for ended in [failed, Event::Restarted] {
            let mut study = build().all([Event::Pause, ended]);
            let actions = study.tick(Event::Resume);
            assert!(asks_for_a_model(&actions), "{actions:?}");
            // Once.
            study.tick(Event::Pause);
            assert!(!asks_for_a_model(&study.tick(Event::Resume)));
        }
        // Started again without a pause, it is under way at once.
        let mut study = build();
        assert!(asks_for_a_model(&study.tick(Event::Restarted)));
        study.tick(Event::Pause);
        assert!(!asks_for_a_model(&study.tick(Event::Resume)));
    }
}

#[test]
fn a_lost_update_is_taken_back_and_its_site_asked_again() {
    let mut study = Study::aggregating();
    study.tick(Event::AggregationFailed { round: RoundId(1), fault: Fault::Storage });
    let actions = study.tick(lost("a", 1));
    let asked = |action: &Action| matches!(action, Action::OpenRound { to, .. } if *to == [site("a")].into());
    assert!(actions.iter().any(asked), "{actions:?}");
    assert!(facts(&actions).contains(&&Fact::UpdateLost { site: site("a"), round: RoundId(1) }));
    assert_eq!((study.phase(), study.machine.status().paused), ("collecting", None));
    assert_eq!(study.machine.counted().into_keys().collect::<Vec<_>>(), [site("b")]);

    // Trained again under another attempt, and counted once.
    let again = study.tick(stored("a", 1, hash("initial"), 3));
    let terms = |action: &Action| match action {
        Action::Aggregate { terms, .. } => Some(terms.iter().map(|term| term.attempt).collect::<Vec<_>>()),
        _ => None,
    };
    let attempts = [3, 2].map(|attempt| AttemptId::from_bytes([attempt; 16]));
    assert_eq!(again.iter().find_map(terms), Some(attempts.to_vec()));
}

#[test]
fn a_site_whose_update_is_lost_gets_the_whole_time_again() {
    let mut study = Study::quorum_missing();
    study.tick(lost("a", 1));
    assert_eq!(study.phase(), "collecting");
    study.wait(599);
    assert_eq!(study.phase(), "collecting");
    study.wait(1);
    assert_eq!(study.phase(), "quorum-missing");
}

#[test]
fn a_pause_of_the_operator_outlives_a_lost_update() {
    let mut study = Study::aggregating().all([Event::Pause]);
    let actions = study.tick(lost("b", 2));
    assert!(!actions.iter().any(|action| matches!(action, Action::OpenRound { .. })), "{actions:?}");
    assert_eq!(study.machine.status().paused, Some(PauseReason::Operator));
    let actions = study.tick(Event::Resume);
    let asked = |action: &Action| matches!(action, Action::OpenRound { to, .. } if *to == [site("b")].into());
    assert!(actions.iter().any(asked), "{actions:?}");
}

#[test]
fn an_update_of_another_attempt_or_of_a_committed_round_is_not_taken_back() {
    let mut study = Study::aggregating();
    study.tick(lost("a", 9));
    assert_eq!(study.phase(), "aggregating");
    let mut study = Study::committing();
    study.tick(lost("a", 1));
    assert_eq!((study.phase(), study.machine.counted().len()), ("committing", 0));
}

#[test]
fn deadlines_stand_still_in_a_pause_and_updates_are_taken() {
    let mut study = Study::paused();
    study.wait(3600);
    study.tick(stored("a", 1, hash("initial"), 1));
    assert_eq!(study.phase(), "collecting");
    study.tick(Event::Resume);
    study.wait(599);
    assert_eq!(study.phase(), "collecting");
    study.wait(1);
    assert_eq!(study.phase(), "quorum-missing");
}

#[test]
fn the_words_of_a_pause_reach_sites_that_connect_later_too() {
    let words = "the hospital moves its servers".to_owned();
    let mut study = Study::collecting();
    let told = |actions: &[Action], expected: &BTreeSet<SiteId>| {
        actions.iter().any(|action| match action {
            Action::AnnouncePaused { words: Some(told), to, .. } => *told == words && to == expected,
            _ => false,
        })
    };
    let actions = study.tick(Event::PauseFor { words: words.clone() });
    assert!(told(&actions, &["a", "b"].map(site).into()), "{actions:?}");
    assert_eq!(study.machine.status().pause_words, Some(words.clone()));
    let actions = study.tick(ready("c", 1));
    assert!(told(&actions, &[site("c")].into()), "{actions:?}");
    study.tick(Event::Resume);
    assert_eq!(study.machine.status().pause_words, None);
}

#[test]
fn a_site_that_returns_in_mid_round_gets_its_task_again() {
    let mut study = Study::collecting().all([Event::SiteGone { site: site("a") }]);
    let actions = study.tick(ready("a", 30));
    let asked = |action: &Action| matches!(action, Action::OpenRound { to, .. } if *to == [site("a")].into());
    assert!(actions.iter().any(asked), "{actions:?}");
}

#[test]
fn a_timer_that_fires_early_is_set_again() {
    let mut study = Study::collecting();
    let deadline = study.machine.status().timers[&Timer::Deadline];
    let actions = study.wait(10);
    assert_eq!(actions, [Action::SetTimer { timer: Timer::Deadline, at: deadline }]);
}

#[test]
fn the_last_round_finishes_the_study() {
    let mut study = Study::finished();
    assert_eq!(study.phase(), "finished");
    assert_eq!(study.machine.tick(Event::Resume, study.now), Err(CommandError::StudyOver));
    assert!(study.machine.is_over_for(Role::Trainer) && !study.machine.is_over_for(Role::Evaluator));
    assert_eq!(study.tick(ready("late", 1)), []);
}

#[test]
fn a_snapshot_of_another_study_or_format_is_refused() {
    let snapshot = Study::collecting().machine.snapshot();
    let other = RoundPlan { study: StudyDigest(Digest::of(b"other")), ..plan() };
    assert!(matches!(RoundMachine::restore(other, snapshot.clone()), Err(RestoreError::Identity { .. })));
    let newer = Snapshot { version: 2, ..snapshot };
    let refused = RoundMachine::restore(plan(), newer);
    assert_eq!(refused.err(), Some(RestoreError::Version { expected: 1, got: 2 }));
}

/// The format on disk. A change here needs a new `SNAPSHOT_VERSION`, unless older text still reads back.
#[test]
fn the_snapshot_format_is_frozen() {
    let study = Study::quorum_missing();
    insta::assert_json_snapshot!(study.machine.snapshot());
}

/// A phase by name, and how a study gets there.
type Stage = (&'static str, fn() -> Study);

fn phases() -> [Stage; 11] {
    [
        ("not started", || Study::new(plan()).all([ready("a", 30), ready("b", 10)])),
        ("waiting", || Study::new(plan()).all([Event::Start, ready("a", 30)])),
        ("distributing", Study::distributing),
        ("collecting", Study::collecting),
        ("quorum-missing", Study::quorum_missing),
        ("aggregating", Study::aggregating),
        ("committing", Study::committing),
        ("committed", Study::committed),
        ("paused", Study::paused),
        ("finished", Study::finished),
        ("aborted", Study::aborted),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    let (initial, one, round) = (hash("initial"), hash("one"), RoundId(1));
    let reason = DeclineReason::Policy;
    vec![
        ("restarted", Event::Restarted),
        ("start", Event::Start),
        ("pause", Event::Pause),
        ("pause with words", Event::PauseFor { words: "maintenance".to_owned() }),
        ("resume", Event::Resume),
        ("abort", Event::Abort),
        ("trainers expected", Event::TrainersExpected { sites: ["a", "b", "c"].map(site).into() }),
        ("site ready: new", ready("c", 5)),
        ("site ready: again", ready("a", 31)),
        ("site gone", Event::SiteGone { site: site("a") }),
        ("site gone: unknown", Event::SiteGone { site: site("z") }),
        ("accepted", accepted("a", 1)),
        ("accepted: unknown site", accepted("z", 1)),
        ("accepted: late round", accepted("a", 0)),
        ("declined", Event::RoundDeclined { site: site("a"), round, reason }),
        ("declined: late round", Event::RoundDeclined { site: site("a"), round: RoundId(0), reason }),
        ("update stored", stored("b", 1, initial, 2)),
        ("update stored: of a, maybe again", stored("a", 1, initial, 1)),
        ("update stored: unknown site", stored("z", 1, initial, 3)),
        ("update stored: late round", stored("a", 0, initial, 4)),
        ("update lost: of a", lost("a", 1)),
        ("aggregated", Event::Aggregated { round, model: one }),
        ("aggregated: other round", Event::Aggregated { round: RoundId(9), model: one }),
        ("aggregation failed", Event::AggregationFailed { round, fault: Fault::Storage }),
        ("committed", Event::Committed { round, model: one }),
        ("committed: other model", Event::Committed { round, model: initial }),
        ("commit failed", Event::CommitFailed { round, fault: Fault::StorageFull }),
        ("gate opened", Event::GateOpened { model: one }),
        ("gate opened: other model", Event::GateOpened { model: initial }),
        ("timer: gather", Event::TimerFired(Timer::Gather)),
        ("timer: accept", Event::TimerFired(Timer::Accept)),
        ("timer: deadline", Event::TimerFired(Timer::Deadline)),
        ("timer: retry", Event::TimerFired(Timer::Retry)),
    ]
}

/// `Report(RoundOpened { .. })` as `RoundOpened`, other actions as their names.
fn brief(action: &Action) -> String {
    let text = format!("{action:?}");
    let text = text.strip_prefix("Report(").unwrap_or(&text);
    text.split([' ', '(', ')', '{']).next().unwrap_or_default().to_owned()
}

/// What every event does in every phase: read it as the specification.
#[test]
fn every_event_has_an_outcome_in_every_phase() {
    let mut table = String::new();
    let mut seen = BTreeSet::new();
    for (phase, build) in phases() {
        writeln!(table, "{phase}").unwrap();
        for (label, event) in events() {
            let mut study = build();
            seen.insert(event.name());
            let outcome = match study.machine.tick(event, study.now) {
                Err(error) => format!("refused: {error}"),
                Ok(actions) => {
                    let actions: Vec<_> = actions.iter().map(brief).collect();
                    let actions = if actions.is_empty() { "nothing".to_owned() } else { actions.join(" ") };
                    let paused = if study.machine.status().paused.is_some() { ", paused" } else { "" };
                    format!("{}{paused}: {actions}", study.phase())
                }
            };
            writeln!(table, "  {label:<33} → {outcome}").unwrap();
        }
    }
    // A new event belongs into the table.
    assert_eq!(seen.len(), 19);
    insta::assert_snapshot!(table);
}

#[test]
fn replay_of_every_event_in_every_phase_gives_the_same_state() {
    for (phase, build) in phases() {
        for (label, event) in events() {
            let study = build();
            let mut direct = study.machine.clone();
            let _ = direct.tick(event.clone(), study.now);
            let text = serde_json::to_string(&study.machine.snapshot()).unwrap();
            let entry = serde_json::to_string(&Entry { at: study.now, event }).unwrap();
            let snapshot = serde_json::from_str(&text).unwrap();
            let plan = study.machine.plan().clone();
            let replayed =
                RoundMachine::replay(plan, Some(snapshot), [serde_json::from_str(&entry).unwrap()]);
            assert_eq!(replayed, Ok(direct), "{label} in {phase}");
        }
    }
}
