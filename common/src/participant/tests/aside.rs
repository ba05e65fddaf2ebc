//! What the coordinator does not take or give, time and again, holds up no other study: it stays, and goes on being tried.

use super::*;

fn other() -> StudyDigest {
    StudyDigest(Digest::of(b"another study"))
}

fn its(round: u32) -> RoundTask {
    RoundTask { study: other(), ..task(round) }
}

fn opened(task: RoundTask) -> Event {
    Event::RoundOpened { task }
}

fn closed(round: u32) -> Event {
    Event::RoundClosed { study: study(), round: RoundId(round) }
}

fn approved(study: StudyDigest, takes_late: bool) -> Event {
    Event::StudyApproved { study, needs: [hash("embeddings")].into(), takes_late }
}

fn work(site: &Site) -> Option<(StudyDigest, u32)> {
    site.machine.status().work.map(|(study, round)| (study, round.0))
}

fn is_aside(site: &Site) -> bool {
    site.machine.status().set_aside.contains(&(study(), RoundId(1)))
}

fn offers(actions: &[Action], attempt: AttemptId) -> bool {
    actions.iter().any(|action| matches!(action, Action::OfferUpdate { offer } if offer.attempt == attempt))
}

/// Lets the timer fire.
fn wake(site: &mut Site, timer: Timer) -> Vec<Action> {
    site.now = site.machine.timers()[&timer];
    site.tick(Event::TimerFired(timer))
}

/// An update of round 1 that the coordinator has not taken so many times, in a study that takes late ones or not.
fn not_taken(times: u32, takes_late: bool) -> (Site, AttemptId) {
    let mut site = Site::uploading().all([approved(study(), takes_late), approved(other(), false)]);
    let attempt = site.attempt();
    for time in 1..=times {
        site.tick(Event::UploadFailed { attempt });
        if time < times {
            assert!(offers(&wake(&mut site, Timer::Round), attempt));
        }
    }
    (site, attempt)
}

/// The same, set aside for a round of the other study.
fn aside(takes_late: bool) -> (Site, AttemptId) {
    let (mut site, attempt) = not_taken(3, takes_late);
    site.tick(opened(its(4)));
    assert!(is_aside(&site));
    (site, attempt)
}

#[test]
fn an_update_that_is_not_taken_makes_way_for_another_study_and_is_offered_all_the_same() {
    let (mut site, attempt) = not_taken(3, false);
    assert_eq!(site.phase(), "uploading", "nobody else wants the site");
    let actions = site.tick(opened(its(4)));
    let said = Fact::SetAside { study: study(), round: RoundId(1), step: Step::Upload };
    assert!(actions.contains(&Action::Report(said)), "{actions:?}");
    assert!(actions.contains(&Action::AcceptRound { task: its(4) }), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::DropUpdate { .. })), "{actions:?}");
    assert_eq!(work(&site), Some((other(), 4)));

    assert!(offers(&wake(&mut site, Timer::Outbox), attempt));
    site.tick(Event::UploadFailed { attempt });
    assert!(offers(&wake(&mut site, Timer::Outbox), attempt), "again and again");
    let actions = site.tick(Event::Receipt { attempt });
    assert!(actions.contains(&Action::DropUpdate { attempt, reason: DropReason::Counted }), "{actions:?}");
    assert_eq!((is_aside(&site), work(&site)), (false, Some((other(), 4))));
}

#[test]
fn it_makes_way_for_a_round_that_waits_already_but_not_after_one_failure() {
    let (mut site, attempt) = not_taken(1, false);
    site.tick(opened(its(4)));
    for _ in 0..2 {
        assert_eq!(work(&site), Some((study(), 1)), "that may pass by itself");
        assert!(offers(&wake(&mut site, Timer::Round), attempt));
        site.tick(Event::UploadFailed { attempt });
    }
    assert_eq!((is_aside(&site), work(&site)), (true, Some((other(), 4))));
}

#[test]
fn one_update_is_offered_at_a_time() {
    let (mut site, first) = aside(false);
    site.tick(Event::ModelStored { artifact: hash("embeddings") });
    site.tick(Event::ModelStored { artifact: hash("model 3") });
    let second = site.attempt();
    assert!(offers(&wake(&mut site, Timer::Outbox), first));
    let update = hash("another update");
    let actions = site.tick(Event::Trained { attempt: second, update, steps: 10 });
    assert!(!offers(&actions, second), "the other is on its way: {actions:?}");
    assert!(offers(&site.tick(Event::UploadFailed { attempt: first }), second));
    let actions = wake(&mut site, Timer::Outbox);
    assert!(!offers(&actions, first), "{actions:?}");
    assert!(offers(&site.tick(Event::Receipt { attempt: second }), first));
}

#[test]
fn it_survives_a_restart_and_is_offered_at_the_next_connection() {
    let (mut site, attempt) = aside(false);
    let text = serde_json::to_string(&site.machine.snapshot()).unwrap();
    let restored =
        ParticipantMachine::restore(&identity(Role::Trainer), serde_json::from_str(&text).unwrap());
    assert_eq!(restored.as_ref(), Ok(&site.machine));
    let actions = site.tick(Event::Started);
    assert!(actions.contains(&Action::PruneOutbox { keep: [attempt].into() }), "{actions:?}");
    assert!(offers(&site.tick(Event::Connected), attempt));
    // Its round is open still.
    site.tick(Event::UploadFailed { attempt });
    let actions = site.tick(opened(task(1)));
    assert!(actions.contains(&Action::AcceptRound { task: task(1) }), "{actions:?}");
    assert!(offers(&actions, attempt), "{actions:?}");
}

#[test]
fn it_ends_with_its_round_and_with_its_study() {
    for over in [
        closed(1),
        opened(task(2)),
        Event::StudyFinished { study: study() },
        Event::StudyRefused { study: study() },
    ] {
        let (mut site, attempt) = aside(false);
        let actions = site.tick(over.clone());
        let dropped =
            |action: &Action| matches!(action, Action::DropUpdate { attempt: of, .. } if *of == attempt);
        assert!(actions.iter().any(dropped), "{over:?}: {actions:?}");
        assert_eq!((is_aside(&site), work(&site)), (false, Some((other(), 4))), "{over:?}");
    }
    // What is refused for good, too.
    let (mut site, attempt) = aside(false);
    let actions = site.tick(Event::Refused { attempt, code: "norm-exceeded".to_owned() });
    assert!(actions.contains(&Action::ForgetLearnt { study: study(), round: RoundId(1) }), "{actions:?}");
    assert!(!is_aside(&site));
}

#[test]
fn a_late_one_is_offered_when_the_next_round_opens_which_waits_for_its_answer() {
    let (mut site, attempt) = aside(true);
    assert_eq!(site.tick(closed(1)), [Action::Report(Fact::RoundMissed { round: RoundId(1) })]);
    let actions = site.tick(opened(task(2)));
    let reason = DeclineReason::Busy;
    let busy = Action::DeclineRound { study: study(), round: RoundId(2), reason };
    assert!(actions.contains(&busy) && offers(&actions, attempt), "{actions:?}");
    site.tick(Event::RoundClosed { study: other(), round: RoundId(4) });
    assert_eq!((is_aside(&site), work(&site)), (true, None), "what it learnt depends on the answer");
    site.tick(Event::Receipt { attempt });
    assert_eq!(work(&site), Some((study(), 2)));
}

#[test]
fn a_coordinator_that_was_restored_has_no_use_for_it() {
    let ahead = || {
        let (site, attempt) = aside(false);
        let back = RoundTask { round: RoundId(0), base: hash("model before"), ..task(1) };
        (site, attempt, back)
    };
    // On the connection that knew its round, an older notice was overtaken.
    let (mut site, _, back) = ahead();
    site.tick(opened(back));
    assert!(is_aside(&site));
    let (site, attempt, back) = ahead();
    let mut site = site.all([Event::Disconnected, Event::Connected]);
    let actions = site.tick(opened(back));
    assert!(
        actions.contains(&Action::DropUpdate { attempt, reason: DropReason::RoundClosed }),
        "{actions:?}"
    );
}

#[test]
fn one_that_the_disk_lost_meanwhile_is_given_up_and_said_to_be() {
    let (mut site, attempt) = aside(false);
    let actions = site.tick(Event::Refused { attempt, code: "bad-chunk".to_owned() });
    let reason = DeclineReason::TrainingFailed;
    assert!(
        actions.contains(&Action::DeclineRound { study: study(), round: RoundId(1), reason }),
        "{actions:?}"
    );
    assert!(actions.contains(&Action::CancelTraining { attempt }), "{actions:?}");
    assert_eq!((is_aside(&site), work(&site)), (false, Some((other(), 4))));
}

/// Asked about round 1 of one study, and then about round 9 of the other.
fn judge() -> Site {
    let none = |study| Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false };
    Site::new(Role::Evaluator).all([Event::Connected, none(study()), none(other()), requested(1)])
}

fn asked_for_other() -> Event {
    Event::EvaluationRequested { study: other(), round: RoundId(9), model: hash("model 9") }
}

#[test]
fn a_report_that_is_not_taken_makes_way_for_the_model_of_another_study() {
    let (model, report) = (hash("model 1"), Digest::of(b"report"));
    let scored = [Event::ModelStored { artifact: model }, Event::Evaluated { model, report }];
    let mut site = judge().all(scored).all([asked_for_other()]);
    let sent = Action::SendReport { model, report };
    for _ in 0..2 {
        site.tick(Event::ReportFailed { model });
        assert!(wake(&mut site, Timer::Evaluation).contains(&sent));
    }
    let actions = site.tick(Event::ReportFailed { model });
    let said = Fact::SetAside { study: study(), round: RoundId(1), step: Step::Report };
    assert!(actions.contains(&Action::Report(said)), "{actions:?}");
    assert!(actions.contains(&Action::FetchArtifact { artifact: hash("model 9") }), "{actions:?}");
    let text = serde_json::to_string(&site.machine.snapshot()).unwrap();
    let restored =
        ParticipantMachine::restore(&identity(Role::Evaluator), serde_json::from_str(&text).unwrap());
    assert_eq!(restored.as_ref(), Ok(&site.machine));

    let score = Action::Evaluate { study: other(), round: RoundId(9), model: hash("model 9") };
    assert_eq!(site.tick(Event::ModelStored { artifact: hash("model 9") }), [score]);
    let again = wake(&mut site, Timer::Evaluation);
    assert_eq!(again[0], sent, "while the other is scored");
    site.tick(Event::ReportReceipt { model });
    assert_eq!(site.machine.status().evaluations.into_keys().collect::<Vec<_>>(), [RoundId(9)]);
    assert_eq!(site.machine.status().evaluation, "evaluating");
}

#[test]
fn a_model_that_cannot_be_fetched_is_scored_when_it_can_be() {
    let artifact = hash("model 1");
    let mut site = judge().all([asked_for_other()]);
    for _ in 0..2 {
        site.tick(Event::FetchFailed { artifact });
        wake(&mut site, Timer::Evaluation);
    }
    let actions = site.tick(Event::FetchFailed { artifact });
    assert!(actions.contains(&Action::FetchArtifact { artifact: hash("model 9") }), "{actions:?}");
    // Nobody else waits for the fetch of the other one, and both go on.
    site.tick(Event::ModelStored { artifact: hash("model 9") });
    assert!(wake(&mut site, Timer::Evaluation).contains(&Action::FetchArtifact { artifact }));
    site.tick(Event::ModelStored { artifact });
    assert_eq!((site.machine.status().evaluation, is_aside(&site)), ("evaluating", false));
    site.tick(Event::Evaluated { model: hash("model 9"), report: Digest::of(b"nine") });
    site.tick(Event::ReportReceipt { model: hash("model 9") });
    let actions = site.tick(Event::ModelStored { artifact });
    assert_eq!(actions, [Action::Evaluate { study: study(), round: RoundId(1), model: artifact }]);
}

#[test]
fn a_study_that_is_given_up_leaves_nothing_aside() {
    let (model, report) = (hash("model 1"), Digest::of(b"report"));
    let scored = [Event::ModelStored { artifact: model }, Event::Evaluated { model, report }];
    let mut site = judge().all(scored).all([asked_for_other()]);
    for _ in 0..3 {
        site.tick(Event::ReportFailed { model });
    }
    assert!(is_aside(&site));
    let actions = site.tick(Event::StudyRefused { study: study() });
    assert!(actions.contains(&Action::CancelEvaluation { model }), "{actions:?}");
    assert!(!is_aside(&site));
}
