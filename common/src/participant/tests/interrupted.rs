//! A process that ends in the midst of its work, without having been told to: the same work goes on at the next start, but what ends
//! it each time is given up.

use super::*;

fn train(site: &Site) -> Action {
    Action::Train { task: task(1), attempt: site.attempt() }
}

fn declined() -> Action {
    Action::DeclineRound { study: study(), round: RoundId(1), reason: DeclineReason::TrainingFailed }
}

/// Starts the site again and again, until it gives up what it was at; how often it began that again.
fn begun_again(site: &mut Site, is_given_up: impl Fn(&Action) -> bool) -> u32 {
    let mut times = 0;
    while !site.tick(Event::Restarted).iter().any(&is_given_up) {
        times += 1;
        assert!(times < 20, "it is begun again for ever");
    }
    times
}

fn evaluation_dropped(action: &Action) -> bool {
    matches!(action, Action::Report(Fact::EvaluationDropped { .. }))
}

#[test]
fn training_that_ends_its_process_again_and_again_declines_the_round_and_does_the_next() {
    let mut site = Site::training();
    let attempt = site.attempt();
    assert_eq!(begun_again(&mut site, |action| *action == declined()), 11);
    assert_eq!(site.phase(), "idle");
    // Nobody heard that: it is said when the coordinator asks, and nothing is begun.
    site.tick(Event::Connected);
    let said =
        Action::Report(Fact::RoundDeclined { round: RoundId(1), reason: DeclineReason::TrainingFailed });
    assert_eq!(site.tick(Event::RoundOpened { task: task(1) }), [said, declined()]);
    assert_eq!(site.phase(), "idle");
    // What was under way when it was given up is not wanted any more.
    let late = site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    assert!(late.iter().any(|action| matches!(action, Action::DropUpdate { .. })), "{late:?}");
    // Asked once more, by the operator who resumes the round, it is tried once more.
    assert!(site.tick(Event::RoundOpened { task: task(1) }).contains(&Action::AcceptRound { task: task(1) }));
    assert!(site.tick(Event::RoundOpened { task: task(2) }).contains(&Action::AcceptRound { task: task(2) }));
}

#[test]
fn a_round_that_was_given_up_holds_up_no_other() {
    let mut site = Site::training();
    begun_again(&mut site, |action| *action == declined());
    site.tick(Event::Connected);
    assert!(site.tick(Event::RoundOpened { task: task(2) }).contains(&Action::AcceptRound { task: task(2) }));
}

#[test]
fn what_is_kept_of_the_round_makes_the_count_begin_anew() {
    let mut site = Site::training();
    let (attempt, train) = (site.attempt(), train(&site));
    for step in 1..=9 {
        for _ in 0..11 {
            assert!(site.tick(Event::Restarted).contains(&train), "before step {step}");
        }
        assert_eq!(site.tick(Event::RoundKept { attempt, step }), []);
    }
    // What a process finds and says again is no news.
    let mut times = 0;
    while !site.tick(Event::Restarted).contains(&declined()) {
        site.tick(Event::RoundKept { attempt, step: 9 });
        times += 1;
        assert!(times < 20, "it is begun again for ever");
    }
    assert_eq!(times, 11);
}

#[test]
fn a_process_that_is_told_to_stop_is_held_against_nothing() {
    let mut site = Site::training();
    let train = train(&site);
    for _ in 0..20 {
        assert_eq!(site.tick(Event::Stopped), []);
        assert!(site.tick(Event::Restarted).contains(&train));
    }
    // Whoever stops it may have given it more memory: what was given up is tried again.
    begun_again(&mut site, |action| *action == declined());
    site = site.all([Event::Stopped, Event::Restarted, Event::Connected]);
    assert!(site.tick(Event::RoundOpened { task: task(1) }).contains(&Action::AcceptRound { task: task(1) }));
}

#[test]
fn what_was_not_under_way_did_not_end_the_process() {
    // Waiting to be tried again.
    let mut site = Site::training();
    let attempt = site.attempt();
    site.tick(Event::TrainingFailed { attempt });
    for _ in 0..20 {
        assert!(!site.tick(Event::Restarted).contains(&declined()));
    }
    // Waiting for a model that was lost.
    let mut site = Site::training();
    site.tick(Event::ArtifactLost { artifact: hash("model 0") });
    for _ in 0..20 {
        assert!(!site.tick(Event::Restarted).contains(&declined()));
    }
    for mut site in [Site::downloading(), Site::uploading()] {
        let phase = site.phase();
        for _ in 0..20 {
            site.tick(Event::Restarted);
        }
        assert_eq!(site.phase(), phase);
    }
}

#[test]
fn a_model_that_ends_the_evaluators_process_gives_way_to_the_next() {
    let mut site = Site::evaluator();
    site.tick(Event::ModelStored { artifact: hash("model 1") });
    assert_eq!(site.machine.status().evaluation, "evaluating");
    assert_eq!(begun_again(&mut site, evaluation_dropped), 11);
    // Of the two that wait the newer one, once there is a connection.
    let fetched = site.tick(Event::Connected);
    assert_eq!(fetched, [Action::FetchArtifact { artifact: hash("model 3") }]);
    // The coordinator asks about all three again: that one would end the process before the others had their turn.
    for round in 1..=3 {
        site.tick(requested(round));
    }
    let waiting =
        |site: &Site| site.machine.status().evaluations.into_keys().map(|round| round.0).collect::<Vec<_>>();
    assert_eq!(waiting(&site), [2, 3]);
    // When a connection has ended and the process has not, it may be tried again; so it may when somebody stopped it.
    for again in [vec![Event::Disconnected], vec![Event::Stopped, Event::Restarted]] {
        let mut site = site.clone().all(again).all([Event::Connected]);
        site.tick(requested(1));
        assert_eq!(waiting(&site), [1, 2, 3]);
    }
}
