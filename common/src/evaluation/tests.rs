//! The promises of evaluation one by one. Whole federations: `tests/src/simulation`.

use super::*;
use crate::ids::ArtifactHash;

const T0: Timestamp = Timestamp(1_000_000);

fn model(round: u32) -> ModelHash {
    ArtifactHash(Digest::of(&round.to_le_bytes()))
}

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn study() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

fn requested(round: u32) -> Event {
    Event::Requested { round: RoundId(round), model: model(round) }
}

fn ready(name: &str, kind: EvaluatorKind) -> Event {
    Event::EvaluatorReady { site: site(name), kind }
}

fn stored(name: &str, round: u32) -> Event {
    Event::ReportStored { site: site(name), model: model(round), report: Digest::of(name.as_bytes()) }
}

fn ungated() -> EvaluationMachine {
    EvaluationMachine::new(study(), None)
}

fn gated() -> EvaluationMachine {
    let evaluators = ["v", "w"].map(site).into();
    EvaluationMachine::new(study(), Some(Gate { evaluators, timeout_s: 60 }))
}

/// Rounds whose models `name` is asked about.
fn asked(actions: &[Action], name: &str) -> Vec<u32> {
    let round = |action: &Action| match action {
        Action::RequestEvaluation { to, round, .. } if *to == site(name) => Some(round.0),
        _ => None,
    };
    let mut rounds: Vec<_> = actions.iter().filter_map(round).collect();
    rounds.sort_unstable();
    rounds
}

#[test]
fn a_model_is_asked_once_and_again_at_each_connection_until_it_is_reported() {
    let mut machine = ungated();
    machine.tick(ready("v", EvaluatorKind::Validation), T0);
    assert_eq!(asked(&machine.tick(requested(1), T0), "v"), [1]);
    assert_eq!(asked(&machine.tick(requested(1), T0), "v"), [0u32; 0]);
    machine.tick(requested(2), T0);
    machine.tick(stored("v", 1), T0);
    assert_eq!(machine.reported(&model(1)), BTreeSet::from([site("v")]));
    assert!(machine.reported(&model(2)).is_empty());
    machine.tick(Event::EvaluatorGone { site: site("v") }, T0);
    assert_eq!(asked(&machine.tick(requested(3), T0), "v"), [0u32; 0]);
    assert_eq!(asked(&machine.tick(ready("v", EvaluatorKind::Validation), T0), "v"), [2, 3]);
}

#[test]
fn a_report_sent_again_is_answered_again_and_another_one_is_refused() {
    let mut machine = ungated();
    machine.tick(ready("v", EvaluatorKind::Validation), T0);
    machine.tick(requested(1), T0);
    machine.tick(stored("v", 1), T0);
    let kept = machine.clone();
    let again = machine.tick(stored("v", 1), T0);
    assert!(matches!(again.as_slice(), [Action::Acknowledge { .. }]), "{again:?}");
    assert_eq!(machine, kept);
    let other = machine.expect_report(&site("v"), &model(1), &Digest::of(b"other"));
    assert_eq!(other.map_err(|rejection| rejection.code()), Err("already-reported"));
}

#[test]
fn reports_that_nobody_asked_for_are_refused_with_a_stable_code() {
    let mut machine = ungated();
    machine.tick(ready("v", EvaluatorKind::Validation), T0);
    machine.tick(ready("t", EvaluatorKind::Test), T0);
    machine.tick(requested(1), T0);
    let code = |name, round| {
        let verdict = machine.expect_report(&site(name), &model(round), &Digest::of(b"r"));
        verdict.map_err(|rejection| rejection.code())
    };
    assert_eq!(code("v", 1), Ok(ReportExpectation::Wanted { round: RoundId(1) }));
    assert_eq!(code("v", 2), Err("unknown-model"));
    assert_eq!(code("t", 1), Err("sealed"));
    assert_eq!(code("z", 1), Err("not-evaluator"));
}

#[test]
fn a_test_site_is_asked_about_promoted_models_alone() {
    let mut machine = ungated();
    machine.tick(ready("t", EvaluatorKind::Test), T0);
    assert_eq!(asked(&machine.tick(requested(1), T0), "t"), [0u32; 0]);
    let promoted = Event::Promoted { round: RoundId(1), model: model(1) };
    assert_eq!(asked(&machine.tick(promoted, T0), "t"), [1]);
}

#[test]
fn a_gate_opens_when_all_its_reports_are_there() {
    let mut machine = gated();
    for name in ["v", "w"] {
        machine.tick(ready(name, EvaluatorKind::Validation), T0);
    }
    machine.tick(requested(1), T0);
    let opens = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::OpenGate { .. }));
    assert!(!opens(&machine.tick(stored("v", 1), T0)));
    assert!(opens(&machine.tick(stored("w", 1), T0)));
    assert!(opens(&machine.tick(requested(1), T0)), "asked again after a crash, it answers again");
}

#[test]
fn a_gate_opens_when_its_time_is_up_and_names_who_is_missing() {
    let mut machine = gated();
    machine.tick(ready("v", EvaluatorKind::Validation), T0);
    let at = Timestamp(T0.0 + 60_000);
    assert!(machine.tick(requested(1), T0).contains(&Action::SetTimer { timer: Timer::Gate, at }));
    machine.tick(stored("v", 1), T0);
    let early = machine.tick(Event::TimerFired(Timer::Gate), T0);
    assert_eq!(early, [Action::SetTimer { timer: Timer::Gate, at }]);
    let actions = machine.tick(Event::TimerFired(Timer::Gate), at);
    assert!(actions.contains(&Action::OpenGate { model: model(1), missing: vec![site("w")] }), "{actions:?}");
}

#[test]
fn a_gate_does_not_wait_for_who_has_left_until_it_is_ready_again() {
    let left = |name: &str| Event::EvaluatorLeft { site: site(name) };
    let opens = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::OpenGate { .. }));
    let mut machine = gated();
    machine.tick(ready("v", EvaluatorKind::Validation), T0);
    machine.tick(requested(1), T0);
    assert_eq!(machine.gate_waits_for(), BTreeSet::from(["v", "w"].map(site)));
    assert_eq!(machine.counts_on(), BTreeSet::from(["v", "w"].map(site)), "one of them was never here");
    assert!(!opens(&machine.tick(stored("v", 1), T0)));
    let opened = Action::OpenGate { model: model(1), missing: vec![] };
    assert!(machine.tick(left("w"), T0).contains(&opened));
    assert_eq!(machine.counts_on(), BTreeSet::from([site("v")]));

    // The next gate waits for the other alone, and for nobody once that has left too.
    machine.tick(requested(2), T0);
    assert_eq!(machine.gate_waits_for(), BTreeSet::from([site("v")]));
    assert!(opens(&machine.tick(left("v"), T0)));
    assert!(machine.pending(&model(2)).is_empty());
    let refused = machine.expect_report(&site("v"), &model(2), &Digest::of(b"r"));
    assert_eq!(refused.map_err(|rejection| rejection.code()), Err("not-evaluator"));

    assert_eq!(asked(&machine.tick(ready("v", EvaluatorKind::Validation), T0), "v"), [2]);
    machine.tick(requested(3), T0);
    assert_eq!(machine.gate_waits_for(), BTreeSet::from([site("v")]), "it is back");
    let restored = EvaluationMachine::restore(study(), machine.gate.clone(), machine.snapshot());
    assert_eq!(restored, Ok(machine));
}

#[test]
fn the_models_waited_for_are_bounded_and_promoted_ones_stay() {
    let mut machine = ungated();
    machine.tick(Event::Promoted { round: RoundId(0), model: model(0) }, T0);
    let most = u32::try_from(MAX_MODELS).unwrap();
    let actions: Vec<_> = (1..=most).flat_map(|round| machine.tick(requested(round), T0)).collect();
    assert_eq!(actions, [Action::Report(Fact::ModelForgotten { model: model(1) })]);
    assert!(machine.state.models.contains_key(&model(0)));
}

#[test]
fn nobody_is_connected_after_a_restart_and_replay_gives_the_same_state() {
    let events = [
        requested(1),
        ready("v", EvaluatorKind::Validation),
        ready("t", EvaluatorKind::Test),
        stored("v", 1),
        requested(2),
        Event::Promoted { round: RoundId(2), model: model(2) },
        Event::EvaluatorGone { site: site("t") },
        Event::EvaluatorLeft { site: site("t") },
        Event::TimerFired(Timer::Gate),
        Event::Restarted,
    ];
    let mut machine = gated();
    let mut journal = vec![];
    for event in events {
        journal.push(serde_json::to_string(&Entry { at: T0, event: event.clone() }).unwrap());
        machine.tick(event, T0);
        let entries: Vec<_> = journal.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let replayed = EvaluationMachine::replay(study(), machine.gate.clone(), None, entries);
        assert_eq!(replayed.as_ref(), Ok(&machine));
        let text = serde_json::to_string(&machine.snapshot()).unwrap();
        let restored =
            EvaluationMachine::restore(study(), machine.gate.clone(), serde_json::from_str(&text).unwrap());
        assert_eq!(restored.as_ref(), Ok(&machine));
    }
    assert_eq!(asked(&machine.outstanding(), "v"), [0u32; 0]);
}

/// The format on disk. A change here needs a new `SNAPSHOT_VERSION`, unless older text still reads back.
#[test]
fn the_snapshot_format_is_frozen() {
    let mut machine = gated();
    for event in [requested(1), ready("v", EvaluatorKind::Validation), stored("v", 1)] {
        machine.tick(event, T0);
    }
    insta::assert_json_snapshot!(machine.snapshot());
}

#[test]
fn a_refusal_names_a_model_by_its_first_digits() {
    let (model, kept) = (model(1), Digest::of(b"report"));
    let short = model.short();
    let words = |rejection: Rejection| rejection.to_string();
    assert_eq!(words(Rejection::UnknownModel { model }), format!("no report on model {short} was asked for"));
    let sealed = format!("model {short} is not promoted; test sites score promoted models alone");
    assert_eq!(words(Rejection::Sealed { model }), sealed);
    let reported = format!("another report on model {short} is kept already");
    assert_eq!(words(Rejection::AlreadyReported { model, kept }), reported);
}
