//! What was fetched can be gone or damaged after a crash: it is fetched again, and the round goes on as if nothing had been.

use super::*;

fn lost(text: &str) -> Event {
    Event::ArtifactLost { artifact: hash(text) }
}

fn stored(text: &str) -> Event {
    Event::ModelStored { artifact: hash(text) }
}

fn fetch(text: &str) -> Action {
    Action::FetchArtifact { artifact: hash(text) }
}

#[test]
fn a_lost_model_is_fetched_again_and_the_same_attempt_goes_on() {
    let mut site = Site::training();
    let attempt = site.attempt();
    let train = Action::Train { task: task(1), attempt };
    // Both that a task needs, one after the other, as the worker comes upon them.
    for text in ["model 0", "embeddings"] {
        assert_eq!(site.tick(lost(text)), [fetch(text)]);
        assert_eq!(site.phase(), "downloading");
        assert_eq!(site.tick(stored(text)), std::slice::from_ref(&train));
    }
    // None of it was a failure of the round: there are still three.
    for _ in 0..2 {
        site.tick(Event::TrainingFailed { attempt });
        site.now = site.machine.timers()[&Timer::Round];
        assert_eq!(site.tick(Event::TimerFired(Timer::Round)), std::slice::from_ref(&train));
    }
    let reason = DeclineReason::TrainingFailed;
    let declined = Action::DeclineRound { study: study(), round: RoundId(1), reason };
    assert!(site.tick(Event::TrainingFailed { attempt }).contains(&declined));
}

#[test]
fn without_a_connection_what_was_lost_waits_for_one_also_over_a_restart() {
    let mut site = Site::training().all([Event::Disconnected]);
    let attempt = site.attempt();
    assert_eq!(site.tick(lost("model 0")), []);
    // The attempt stays wanted: what is kept of the round is not removed.
    assert_eq!(site.tick(Event::Started), [Action::PruneOutbox { keep: [attempt].into() }]);
    assert_eq!(site.tick(Event::Connected), [fetch("model 0")]);
    site.tick(Event::FetchFailed { artifact: hash("model 0") });
    site.now = site.machine.timers()[&Timer::Round];
    assert_eq!(site.tick(Event::TimerFired(Timer::Round)), [fetch("model 0")]);
    assert_eq!(site.tick(stored("model 0")), [Action::Train { task: task(1), attempt }]);
}

#[test]
fn a_disk_that_loses_the_same_model_again_and_again_ends_in_a_declined_round() {
    let mut site = Site::training();
    let reason = DeclineReason::TrainingFailed;
    let declined = Action::DeclineRound { study: study(), round: RoundId(1), reason };
    let mut times = 0;
    while !site.tick(lost("model 0")).contains(&declined) {
        times += 1;
        assert!(times < 10, "it is fetched for ever");
        site.tick(stored("model 0"));
    }
    assert_eq!((times, site.phase()), (3, "idle"));
}

#[test]
fn a_disk_that_loses_update_after_update_ends_in_a_declined_round() {
    let reason = DeclineReason::TrainingFailed;
    let declined = Action::DeclineRound { study: study(), round: RoundId(1), reason };
    // Trainings that failed before count too.
    for (failed, trained_again) in [(0, 2), (1, 1), (2, 0)] {
        let mut site = Site::training();
        let attempt = site.attempt();
        for _ in 0..failed {
            site.tick(Event::TrainingFailed { attempt });
        }
        let mut times = 0;
        loop {
            site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
            let actions = site.tick(Event::Refused { attempt, code: "bad-chunk".to_owned() });
            if actions.contains(&declined) {
                // What is left of it goes.
                assert!(actions.contains(&Action::CancelTraining { attempt }), "{actions:?}");
                break;
            }
            times += 1;
            assert!(times < 10, "it is trained for ever");
            site.tick(Event::Started);
        }
        assert_eq!((times, site.phase()), (trained_again, "idle"), "after {failed} failures");
    }
}

#[test]
fn a_round_that_closes_meanwhile_ends_the_fetch_too() {
    let mut site = Site::training();
    let attempt = site.attempt();
    site.tick(lost("model 0"));
    let actions = site.tick(Event::RoundClosed { study: study(), round: RoundId(1) });
    assert!(actions.contains(&Action::CancelFetch { artifact: hash("model 0") }), "{actions:?}");
    assert!(actions.contains(&Action::CancelTraining { attempt }), "{actions:?}");
}

#[test]
fn what_nobody_needs_is_not_fetched() {
    let mut site = Site::training();
    let fetches = |action: &Action| matches!(action, Action::FetchArtifact { .. });
    assert!(!site.tick(lost("else")).iter().any(fetches));
    assert_eq!(site.phase(), "training");
}

#[test]
fn an_evaluator_fetches_a_lost_model_again_but_not_for_ever() {
    let mut site = Site::evaluator();
    // Asked for first: the other two wait.
    let model = "model 1";
    site = site.all([stored(model)]);
    assert_eq!(site.machine.status().evaluation, "evaluating");
    for _ in 0..3 {
        assert_eq!(site.tick(lost(model)), [fetch(model)]);
        let score = Action::Evaluate { study: study(), round: RoundId(1), model: hash(model) };
        assert_eq!(site.tick(stored(model)), [score]);
    }
    let given_up = |action: &Action| matches!(action, Action::Report(Fact::EvaluationDropped { .. }));
    assert!(site.tick(lost(model)).iter().any(given_up));
}

#[test]
fn a_lost_report_is_made_again_but_not_for_ever() {
    let model = hash("model 1");
    let mut site = Site::evaluator().all([stored("model 1")]);
    let report = Digest::of(b"report");
    for _ in 0..3 {
        assert_eq!(site.tick(Event::Evaluated { model, report }), [Action::SendReport { model, report }]);
        let score = Action::Evaluate { study: study(), round: RoundId(1), model };
        assert_eq!(site.tick(Event::ReportLost { model }), [score]);
    }
    site.tick(Event::Evaluated { model, report });
    let (round, code) = (RoundId(1), "report-damaged".to_owned());
    let given_up = Action::Report(Fact::EvaluationDropped { round, model, code });
    assert_eq!(site.tick(Event::ReportLost { model }), [given_up, fetch("model 3")], "the next model's turn");
}
