//! A site's promises one by one, and what every event does in every phase. Whole federations: `tests/src/simulation`.

mod aside;
mod interrupted;
mod late;
mod lost;
mod several;

use std::fmt::Write as _;
use std::time::Duration;

use super::*;
use crate::ids::{ArtifactHash, AttemptId, Digest};
use crate::round::DeclineReason;

const T0: Timestamp = Timestamp(1_000_000);

fn hash(text: &str) -> ArtifactHash {
    ArtifactHash(Digest::of(text.as_bytes()))
}

fn study() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

fn identity(role: Role) -> Identity {
    Identity { site: "st-mary".parse().unwrap(), role, installation: [7; 16] }
}

fn task(round: u32) -> RoundTask {
    let base = hash(&format!("model {}", round - 1));
    RoundTask { study: study(), round: RoundId(round), base, steps: 10, remaining_ms: 60_000 }
}

fn requested(round: u32) -> Event {
    let model = hash(&format!("model {round}"));
    Event::EvaluationRequested { study: study(), round: RoundId(round), model }
}

/// A machine with its clock.
#[derive(Clone)]
struct Site {
    machine: ParticipantMachine,
    now: Timestamp,
}

impl Site {
    fn new(role: Role) -> Self {
        Self { machine: ParticipantMachine::new(identity(role)), now: T0 }
    }

    fn tick(&mut self, event: Event) -> Vec<Action> {
        self.machine.tick(event, self.now)
    }

    fn all(mut self, events: impl IntoIterator<Item = Event>) -> Self {
        for event in events {
            self.tick(event);
        }
        self
    }

    fn phase(&self) -> &'static str {
        self.machine.status().phase
    }

    fn idle() -> Self {
        let needs = [hash("embeddings")].into();
        let events = [Event::Connected, Event::StudyOffered { study: study() }];
        let approved = Event::StudyApproved { study: study(), needs, takes_late: false };
        Self::new(Role::Trainer).all(events).all([approved])
    }

    fn downloading() -> Self {
        Self::idle().all([Event::RoundOpened { task: task(1) }])
    }

    fn training() -> Self {
        let stored = ["embeddings", "model 0"].map(|text| Event::ModelStored { artifact: hash(text) });
        Self::downloading().all(stored)
    }

    fn uploading() -> Self {
        let site = Self::training();
        let attempt = site.attempt();
        site.all([Event::Trained { attempt, update: hash("update"), steps: 10 }])
    }

    /// Approved and asked about rounds 1 to 3.
    fn evaluator() -> Self {
        let needs = BTreeSet::new();
        let approved = Event::StudyApproved { study: study(), needs, takes_late: false };
        Self::new(Role::Evaluator).all([Event::Connected, approved, requested(1), requested(2), requested(3)])
    }

    fn attempt(&self) -> AttemptId {
        self.machine.state.phase.attempt().unwrap()
    }
}

#[test]
fn an_unknown_study_asks_for_approval_and_does_nothing_else() {
    let mut site = Site::new(Role::Trainer).all([Event::Connected]);
    let actions = site.tick(Event::StudyOffered { study: study() });
    let asked = Action::AskApproval { study: study() };
    assert_eq!(actions, [Action::Report(Fact::ApprovalNeeded { study: study() }), asked]);
    let actions = site.tick(Event::RoundOpened { task: task(1) });
    let (round, reason) = (RoundId(1), DeclineReason::NotApproved);
    let declined = Action::DeclineRound { study: study(), round, reason };
    assert_eq!(actions, [Action::Report(Fact::RoundDeclined { round, reason }), declined]);
    assert_eq!(site.phase(), "idle");
}

#[test]
fn training_begins_when_everything_is_here_and_offers_what_comes_of_it() {
    let mut site = Site::downloading();
    assert_eq!(site.tick(Event::ModelStored { artifact: hash("model 0") }), []);
    let actions = site.tick(Event::ModelStored { artifact: hash("embeddings") });
    assert_eq!(actions, [Action::Train { task: task(1), attempt: site.attempt() }]);
    let attempt = site.attempt();
    let actions = site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    let offers =
        |action: &Action| matches!(action, Action::OfferUpdate { offer } if offer.attempt == attempt);
    assert!(actions.iter().any(offers), "{actions:?}");
}

#[test]
fn a_restart_while_uploading_offers_the_same_attempt_at_the_next_connection() {
    let mut site = Site::uploading();
    let attempt = site.attempt();
    let actions = site.tick(Event::Started);
    assert_eq!(actions, [Action::PruneOutbox { keep: [attempt].into() }]);
    let actions = site.tick(Event::Connected);
    assert!(
        matches!(actions.as_slice(), [Action::OfferUpdate { offer }] if offer.attempt == attempt),
        "{actions:?}"
    );
}

#[test]
fn an_update_for_a_closed_round_is_dropped_and_that_is_said() {
    let mut site = Site::uploading();
    let (attempt, round) = (site.attempt(), RoundId(1));
    let reason = DropReason::Refused("round-closed".to_owned());
    let actions = site.tick(Event::Refused { attempt, code: "round-closed".to_owned() });
    let said = Action::Report(Fact::UpdateDropped { study: study(), round, reason: reason.clone() });
    let forgotten = Action::ForgetLearnt { study: study(), round };
    assert_eq!(actions, [said, Action::DropUpdate { attempt, reason }, forgotten]);
    assert_eq!(site.phase(), "idle");
}

#[test]
fn what_was_learnt_with_a_refused_update_is_forgotten_also_when_a_crash_came_before() {
    let mut site = Site::uploading();
    let attempt = site.attempt();
    let forgotten = Action::ForgetLearnt { study: study(), round: RoundId(1) };
    let actions = site.tick(Event::Refused { attempt, code: "norm-exceeded".to_owned() });
    assert!(actions.contains(&forgotten), "{actions:?}");
    // The journal has the refusal, and nothing was done about it; nor after the first restart.
    for _ in 0..2 {
        let actions = site.tick(Event::Started);
        assert!(actions.contains(&forgotten), "{actions:?}");
    }
    // Once something else happened it was done, and the round may have been trained anew.
    site.tick(Event::Connected);
    let actions = site.tick(Event::Started);
    assert!(!actions.contains(&forgotten), "{actions:?}");
    // An update that counts is remembered.
    let mut site = Site::uploading().all([Event::Receipt { attempt }]);
    let actions = site.tick(Event::Started);
    assert!(!actions.contains(&forgotten), "{actions:?}");
}

#[test]
fn an_update_that_may_not_leave_is_dropped_and_nobody_waits_for_it() {
    let mut site = Site::uploading();
    let (attempt, round, reason) = (site.attempt(), RoundId(1), DropReason::Withheld);
    let actions = site.tick(Event::Refused { attempt, code: WITHHELD_CODE.to_owned() });
    let policy = DeclineReason::Policy;
    assert_eq!(
        actions,
        [
            Action::Report(Fact::RoundDeclined { round, reason: policy }),
            Action::DeclineRound { study: study(), round, reason: policy },
            Action::Report(Fact::UpdateDropped { study: study(), round, reason: reason.clone() }),
            Action::DropUpdate { attempt, reason },
        ]
    );
    assert_eq!(site.phase(), "idle");
}

#[test]
fn what_the_round_under_way_and_the_study_need_stays() {
    assert_eq!(Site::new(Role::Trainer).machine.needed(), BTreeSet::new());
    let embeddings = hash("embeddings");
    assert_eq!(Site::idle().machine.needed(), BTreeSet::from([embeddings]));
    for site in [Site::downloading(), Site::training(), Site::uploading()] {
        assert_eq!(site.machine.needed(), BTreeSet::from([embeddings, hash("model 0")]), "{}", site.phase());
    }
    // An update is dropped because the next round begins: the model of that must not go with it.
    let mut site = Site::uploading();
    let actions = site.tick(Event::RoundOpened { task: task(2) });
    assert!(actions.iter().any(|action| matches!(action, Action::DropUpdate { .. })), "{actions:?}");
    assert_eq!(site.machine.needed(), BTreeSet::from([embeddings, hash("model 1")]));
    let to_score = [1, 2, 3].map(|round| hash(&format!("model {round}")));
    assert_eq!(Site::evaluator().machine.needed(), BTreeSet::from(to_score));
}

#[test]
fn an_update_for_a_round_that_is_not_open_is_kept_and_offered_when_it_opens() {
    let mut site = Site::uploading();
    let attempt = site.attempt();
    site.tick(Event::Refused { attempt, code: "round-not-open".to_owned() });
    assert_eq!(site.phase(), "uploading");
    let actions = site.tick(Event::RoundOpened { task: task(1) });
    assert!(actions.iter().any(|action| matches!(action, Action::OfferUpdate { .. })), "{actions:?}");
}

#[test]
fn an_update_that_the_disk_changed_is_trained_again_in_the_same_attempt() {
    let mut site = Site::uploading();
    let attempt = site.attempt();
    let actions = site.tick(Event::Refused { attempt, code: "bad-chunk".to_owned() });
    assert_eq!(actions, [Action::Train { task: RoundTask { remaining_ms: 0, ..task(1) }, attempt }]);
    let actions = site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    let offers =
        |action: &Action| matches!(action, Action::OfferUpdate { offer } if offer.attempt == attempt);
    assert!(actions.iter().any(offers), "{actions:?}");
}

#[test]
fn a_closed_round_cancels_training() {
    let mut site = Site::training();
    let attempt = site.attempt();
    let actions = site.tick(Event::RoundClosed { study: study(), round: RoundId(1) });
    assert!(actions.contains(&Action::CancelTraining { attempt }), "{actions:?}");
    assert_eq!(site.phase(), "idle");
}

#[test]
fn what_was_trained_while_it_was_being_cancelled_leaves_the_outbox() {
    let mut site = Site::training();
    let attempt = site.attempt();
    site.tick(Event::RoundClosed { study: study(), round: RoundId(1) });
    let actions = site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    let reason = DropReason::RoundClosed;
    assert!(actions.contains(&Action::DropUpdate { attempt, reason }), "{actions:?}");
}

#[test]
fn a_newer_round_replaces_the_one_under_way_and_an_older_one_does_not() {
    let mut site = Site::training();
    site.tick(Event::RoundOpened { task: task(2) });
    assert_eq!(site.machine.status().work, Some((study(), RoundId(2))));
    site.tick(Event::RoundOpened { task: task(1) });
    assert_eq!(site.machine.status().work, Some((study(), RoundId(2))));
}

#[test]
fn training_goes_on_without_a_connection_and_the_same_notice_changes_nothing() {
    let mut site = Site::training();
    assert_eq!(site.tick(Event::Disconnected), []);
    assert_eq!(site.tick(Event::Connected), []);
    assert_eq!(site.tick(Event::RoundOpened { task: task(1) }), [Action::AcceptRound { task: task(1) }]);
}

#[test]
fn each_training_has_an_attempt_id_of_its_own() {
    let mut site = Site::training();
    let first = site.attempt();
    site.tick(Event::RoundClosed { study: study(), round: RoundId(1) });
    let stored = ["embeddings", "model 0"].map(|text| Event::ModelStored { artifact: hash(text) });
    let site = site.all([Event::RoundOpened { task: task(1) }]).all(stored);
    assert_ne!(site.attempt(), first);
    let lost_memory = Identity { installation: [8; 16], ..identity(Role::Trainer) };
    assert_ne!(lost_memory.attempt(&task(1), 1), identity(Role::Trainer).attempt(&task(1), 1));
}

#[test]
fn training_that_fails_three_times_declines_the_round() {
    let mut site = Site::training();
    let attempt = site.attempt();
    for _ in 0..2 {
        site.tick(Event::TrainingFailed { attempt });
        site.now = site.machine.timers()[&Timer::Round];
        let again = site.tick(Event::TimerFired(Timer::Round));
        assert_eq!(again, [Action::Train { task: task(1), attempt }]);
    }
    let actions = site.tick(Event::TrainingFailed { attempt });
    let reason = DeclineReason::TrainingFailed;
    let declined = Action::DeclineRound { study: study(), round: RoundId(1), reason };
    assert!(actions.contains(&declined), "{actions:?}");
}

#[test]
fn a_failed_download_is_tried_again_later_and_later() {
    let mut site = Site::downloading();
    let mut waits = vec![];
    for _ in 0..7 {
        site.tick(Event::FetchFailed { artifact: hash("model 0") });
        let at = site.machine.timers()[&Timer::Round];
        waits.push(at.since(site.now).as_secs());
        site.now = at;
        let again = site.tick(Event::TimerFired(Timer::Round));
        assert!(again.contains(&Action::FetchArtifact { artifact: hash("model 0") }), "{again:?}");
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 120, 120]);
}

#[test]
fn a_timer_of_a_step_that_failed_survives_a_restart() {
    let mut site = Site::training();
    let attempt = site.attempt();
    site.tick(Event::TrainingFailed { attempt });
    let at = T0.after(Duration::from_secs(5));
    let actions = site.tick(Event::Started);
    assert!(actions.contains(&Action::SetTimer { timer: Timer::Round, at }), "{actions:?}");
}

#[test]
fn a_clock_that_steps_back_holds_up_no_step() {
    let mut site = Site::training();
    let attempt = site.attempt();
    site.tick(Event::TrainingFailed { attempt });
    let at = site.machine.timers()[&Timer::Round];
    assert!(!timer_is_due(at, site.now) && timer_is_due(at, at));
    site.now = Timestamp(site.now.0 - 900_000);
    assert!(timer_is_due(at, site.now));
    let again = site.tick(Event::TimerFired(Timer::Round));
    assert_eq!(again, [Action::Train { task: task(1), attempt }]);
}

#[test]
fn a_study_that_is_refused_after_all_ends_its_work() {
    let mut site = Site::training();
    let actions = site.tick(Event::StudyRefused { study: study() });
    let reason = DeclineReason::Policy;
    assert!(
        actions.contains(&Action::DeclineRound { study: study(), round: RoundId(1), reason }),
        "{actions:?}"
    );
    assert_eq!(site.phase(), "idle");
    assert_eq!(site.tick(Event::StudyOffered { study: study() }).len(), 1);
    // It has the same word for every later round.
    let actions = site.tick(Event::RoundOpened { task: task(2) });
    assert!(
        actions.contains(&Action::DeclineRound { study: study(), round: RoundId(2), reason }),
        "{actions:?}"
    );
}

#[test]
fn a_study_that_is_over_leaves_nothing_also_when_a_crash_came_before() {
    let forgotten = Action::ForgetStudy { study: study() };
    for over in [Event::StudyFinished { study: study() }, Event::StudyRefused { study: study() }] {
        let mut site = Site::uploading();
        let attempt = site.attempt();
        let actions = site.tick(over.clone());
        let at = |wanted: &Action| actions.iter().position(|action| action == wanted);
        let dropped = at(&Action::DropUpdate { attempt, reason: DropReason::StudyOver });
        assert!(dropped.is_some() && dropped < at(&forgotten), "{actions:?}");
        // The coordinator says it again at each connection, the driver what was decided at each start.
        let actions = site.tick(over);
        assert!(actions.contains(&forgotten), "{actions:?}");
    }
    let actions = Site::new(Role::Trainer).tick(Event::StudyFinished { study: study() });
    assert!(actions.contains(&forgotten), "it was never heard of: {actions:?}");
}

#[test]
fn a_site_without_data_says_so_at_once_and_again_when_it_is_connected() {
    let mut site = Site::idle();
    let reason = DeclineReason::NoData;
    let actions = site.tick(Event::DataUnusable { study: study(), reason });
    let declined = Action::DeclineRound { study: study(), round: RoundId(0), reason };
    assert_eq!(actions, [Action::Report(Fact::DataUnusable { study: study(), reason }), declined]);
    site.tick(Event::Disconnected);
    let reason = DeclineReason::DataError;
    let actions = site.tick(Event::DataUnusable { study: study(), reason });
    assert_eq!(actions, [Action::Report(Fact::DataUnusable { study: study(), reason })]);
    // Each connection offers the study anew, and the labels are counted again.
    site.tick(Event::Connected);
    assert_eq!(
        site.tick(Event::StudyOffered { study: study() }),
        [Action::RegisterManifest { study: study() }]
    );
}

#[test]
fn an_evaluator_never_trains() {
    let mut site = Site::evaluator();
    let actions = site.tick(Event::RoundOpened { task: task(1) });
    let reason = DeclineReason::Evaluator;
    assert!(
        actions.contains(&Action::DeclineRound { study: study(), round: RoundId(1), reason }),
        "{actions:?}"
    );
}

#[test]
fn an_evaluator_scores_one_model_at_a_time_and_the_newest_next() {
    let mut site = Site::evaluator();
    let mut scored = vec![];
    for round in [1, 3, 2] {
        let model = hash(&format!("model {round}"));
        let actions = site.tick(Event::ModelStored { artifact: model });
        assert_eq!(actions, [Action::Evaluate { study: study(), round: RoundId(round), model }]);
        let report = Digest::of(b"report");
        assert_eq!(site.tick(Event::Evaluated { model, report }), [Action::SendReport { model, report }]);
        site.tick(Event::ReportReceipt { model });
        scored.push(round);
    }
    assert_eq!(site.machine.status().evaluation, "idle", "{scored:?}");
}

#[test]
fn a_full_queue_gives_up_the_oldest_round_and_says_so() {
    let mut site = Site::evaluator();
    let beyond = u32::try_from(evaluating::MAX_PENDING).unwrap() + 2;
    let actions: Vec<Action> = (4..=beyond).flat_map(|round| site.tick(requested(round))).collect();
    let dropped = |action: &Action| match action {
        Action::Report(Fact::EvaluationDropped { round, .. }) => Some(round.0),
        _ => None,
    };
    assert_eq!(actions.iter().filter_map(dropped).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_snapshot_of_another_site_is_refused() {
    let snapshot = Site::training().machine.snapshot();
    let other = Identity { site: "st-john".parse().unwrap(), ..identity(Role::Trainer) };
    let refused = ParticipantMachine::restore(&other, snapshot);
    assert!(matches!(refused, Err(RestoreError::Identity { .. })));
}

#[test]
fn a_coordinator_that_was_restored_is_followed_back_to_the_round_that_it_knows() {
    let ahead = || {
        let events =
            [Event::RoundOpened { task: task(3) }, Event::ModelStored { artifact: hash("embeddings") }];
        Site::idle().all(events).all([Event::ModelStored { artifact: hash("model 2") }])
    };
    // On the connection that brought the work, an older notice was overtaken.
    let mut site = ahead();
    site.tick(Event::RoundOpened { task: task(2) });
    assert_eq!(site.machine.status().work, Some((study(), RoundId(3))));

    // On a new one it is the coordinator's first word.
    let mut site = ahead().all([Event::Disconnected, Event::Connected]);
    let trained = site.attempt();
    let actions = site.tick(Event::RoundOpened { task: task(2) });
    assert!(actions.contains(&Action::CancelTraining { attempt: trained }), "{actions:?}");
    assert!(actions.contains(&Action::AcceptRound { task: task(2) }), "{actions:?}");
    assert_eq!(site.machine.status().work, Some((study(), RoundId(2))));

    // Unless it has named the later round since.
    let back = [Event::Disconnected, Event::Connected, Event::RoundOpened { task: task(3) }];
    let mut site = ahead().all(back);
    site.tick(Event::RoundOpened { task: task(2) });
    assert_eq!(site.machine.status().work, Some((study(), RoundId(3))));
}

/// The format on disk. A change here needs a new `SNAPSHOT_VERSION`, unless older text still reads back.
#[test]
fn the_snapshot_formats_are_frozen() {
    insta::assert_json_snapshot!("trainer", Site::uploading().machine.snapshot());
    insta::assert_json_snapshot!("evaluator", Site::evaluator().machine.snapshot());
}

fn phases() -> [(&'static str, Site); 7] {
    let scored = Event::ModelStored { artifact: hash("model 1") };
    let evaluated = Event::Evaluated { model: hash("model 1"), report: Digest::of(b"report") };
    [
        ("unknown study", Site::new(Role::Trainer).all([Event::Connected])),
        ("idle", Site::idle()),
        ("downloading", Site::downloading()),
        ("training", Site::training()),
        ("uploading", Site::uploading()),
        ("evaluating", Site::evaluator().all([scored.clone()])),
        ("reporting", Site::evaluator().all([scored, evaluated])),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    let (study, round, model) = (study(), RoundId(1), hash("model 1"));
    let attempt = Site::training().attempt();
    let other = AttemptId::from_bytes([9; 16]);
    let (report, update, artifact) = (Digest::of(b"report"), hash("update"), hash("model 0"));
    let code = || "round-closed".to_owned();
    vec![
        ("started", Event::Started),
        ("restarted", Event::Restarted),
        ("stopped", Event::Stopped),
        ("connected", Event::Connected),
        ("disconnected", Event::Disconnected),
        ("study offered", Event::StudyOffered { study }),
        (
            "study approved",
            Event::StudyApproved { study, needs: [hash("embeddings")].into(), takes_late: false },
        ),
        ("study refused", Event::StudyRefused { study }),
        ("data unusable", Event::DataUnusable { study, reason: DeclineReason::NoData }),
        ("round opened", Event::RoundOpened { task: task(1) }),
        ("round opened: next", Event::RoundOpened { task: task(2) }),
        ("round closed", Event::RoundClosed { study, round }),
        ("round closed: earlier", Event::RoundClosed { study, round: RoundId(0) }),
        ("evaluation requested", Event::EvaluationRequested { study, round, model }),
        ("evaluation requested: new", requested(9)),
        ("study paused", Event::StudyPaused { study }),
        ("study finished", Event::StudyFinished { study }),
        ("model stored", Event::ModelStored { artifact }),
        ("model stored: unasked", Event::ModelStored { artifact: hash("else") }),
        ("fetch failed", Event::FetchFailed { artifact }),
        ("artifact lost", Event::ArtifactLost { artifact }),
        ("trained", Event::Trained { attempt, update, steps: 10 }),
        ("trained: other attempt", Event::Trained { attempt: other, update, steps: 10 }),
        ("round kept", Event::RoundKept { attempt, step: 4 }),
        ("training failed", Event::TrainingFailed { attempt }),
        ("training failed: other attempt", Event::TrainingFailed { attempt: other }),
        ("receipt", Event::Receipt { attempt }),
        ("receipt: other attempt", Event::Receipt { attempt: other }),
        ("refused", Event::Refused { attempt, code: code() }),
        ("refused: not open", Event::Refused { attempt, code: "round-not-open".to_owned() }),
        ("upload failed", Event::UploadFailed { attempt }),
        ("evaluated", Event::Evaluated { model, report }),
        ("evaluation failed", Event::EvaluationFailed { model }),
        ("report receipt", Event::ReportReceipt { model }),
        ("report refused", Event::ReportRefused { model, code: code() }),
        ("report failed", Event::ReportFailed { model }),
        ("report lost", Event::ReportLost { model }),
        ("timer: round", Event::TimerFired(Timer::Round)),
        ("timer: evaluation", Event::TimerFired(Timer::Evaluation)),
    ]
}

/// `Report(RoundLeft { .. })` as `RoundLeft`, other actions as their names.
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
    for (phase, site) in phases() {
        writeln!(table, "{phase}").unwrap();
        for (label, event) in events() {
            let mut site = site.clone();
            seen.insert(event.name());
            let actions: Vec<_> = site.tick(event).iter().map(brief).collect();
            let actions = if actions.is_empty() { "nothing".to_owned() } else { actions.join(" ") };
            let status = site.machine.status();
            let at = if status.evaluation == "idle" { status.phase } else { status.evaluation };
            writeln!(table, "  {label:<30} → {at}: {actions}").unwrap();
        }
    }
    // A new event belongs into the table.
    assert_eq!(seen.len(), 30);
    insta::assert_snapshot!(table);
}

#[test]
fn replay_of_every_event_in_every_phase_gives_the_same_state() {
    for (phase, site) in phases() {
        for (label, event) in events() {
            let mut direct = site.machine.clone();
            direct.tick(event.clone(), site.now);
            let text = serde_json::to_string(&site.machine.snapshot()).unwrap();
            let entry = serde_json::to_string(&Entry { at: site.now, event }).unwrap();
            let snapshot = serde_json::from_str(&text).unwrap();
            let identity = &site.machine.state.identity;
            let replayed =
                ParticipantMachine::replay(identity, Some(snapshot), [serde_json::from_str(&entry).unwrap()]);
            assert_eq!(replayed, Ok(direct), "{label} in {phase}");
        }
    }
}
