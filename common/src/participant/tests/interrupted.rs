//! A process that dies in the midst of its work: the same work goes on at the next start, but what ends it each time is given up.

use super::*;

/// Of the deaths within this time one counts.
const APART: Duration = Duration::from_secs(360);

fn train(site: &Site) -> Action {
    Action::Train { task: task(1), attempt: site.attempt() }
}

fn declined() -> Action {
    Action::DeclineRound { study: study(), round: RoundId(1), reason: DeclineReason::TrainingFailed }
}

/// What the site does after it died, longer after it had died last than what counts.
fn die(site: &mut Site) -> Vec<Action> {
    site.now = site.now.after(APART);
    site.tick(Event::Started)
}

/// Has the site die again and again, until it gives up what it was at; how often it began that again.
fn begun_again(site: &mut Site, is_given_up: impl Fn(&Action) -> bool) -> u32 {
    let mut times = 0;
    while !die(site).iter().any(&is_given_up) {
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
            assert!(die(&mut site).contains(&train), "before step {step}");
        }
        assert_eq!(site.tick(Event::RoundKept { attempt, step }), []);
    }
    // What was kept was damaged: training began at 0, and is kept anew.
    (0..11).for_each(|_| drop(die(&mut site)));
    site.tick(Event::RoundKept { attempt, step: 4 });
    // What a process finds and says again is no news.
    let mut times = 0;
    while !die(&mut site).contains(&declined()) {
        site.tick(Event::RoundKept { attempt, step: 4 });
        times += 1;
        assert!(times < 20, "it is begun again for ever");
    }
    assert_eq!(times, 11);
}

#[test]
fn deaths_within_minutes_are_held_against_nothing_more_than_one_is() {
    let mut site = Site::training();
    let train = train(&site);
    let mut scoring = Site::evaluator().all([Event::ModelStored { artifact: hash("model 1") }]);
    for _ in 0..60 {
        for site in [&mut site, &mut scoring] {
            site.now = site.now.after(Duration::from_secs(60));
            site.tick(Event::Started);
        }
    }
    assert_eq!((site.phase(), scoring.machine.status().evaluation), ("training", "evaluating"));
    // Sixty in an hour count ten times.
    assert!(die(&mut site).contains(&train));
    assert!(die(&mut site).contains(&declined()));
    // A clock that stepped back keeps none from being counted.
    let mut site = Site::training();
    die(&mut site);
    site.now = Timestamp(0);
    assert_eq!(begun_again(&mut site, |action| *action == declined()), 10);
}

#[test]
fn a_process_that_ends_in_order_is_held_against_nothing_and_nothing_of_before_is() {
    let mut site = Site::training();
    let train = train(&site);
    for _ in 0..20 {
        assert_eq!(site.tick(Event::Stopped), []);
        assert!(die(&mut site).contains(&train));
    }
    // Whoever stops it may have given it more memory: the count begins anew.
    let mut scoring = Site::evaluator().all([Event::ModelStored { artifact: hash("model 1") }]);
    for site in [&mut site, &mut scoring] {
        (0..11).for_each(|_| drop(die(site)));
        site.tick(Event::Stopped);
        site.tick(Event::Started);
    }
    assert_eq!(begun_again(&mut scoring, evaluation_dropped), 11);
    assert_eq!(begun_again(&mut site, |action| *action == declined()), 11);
    // And what was given up is tried again.
    site = site.all([Event::Stopped, Event::Started, Event::Connected]);
    assert!(site.tick(Event::RoundOpened { task: task(1) }).contains(&Action::AcceptRound { task: task(1) }));
}

/// They have the same event after each stop and each death.
#[test]
fn journals_of_earlier_programs_give_nothing_up() {
    let mut site = Site::training();
    let mut scoring = Site::evaluator().all([Event::ModelStored { artifact: hash("model 1") }]);
    for _ in 0..30 {
        for site in [&mut site, &mut scoring] {
            site.now = site.now.after(APART);
            site.tick(Event::Restarted);
        }
    }
    assert_eq!((site.phase(), scoring.machine.status().evaluation), ("training", "evaluating"));
    // What was trained after that is still the round's update.
    let attempt = site.attempt();
    site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    assert!(die(&mut site).contains(&Action::PruneOutbox { keep: [attempt].into() }));
    assert_eq!(site.phase(), "uploading");
}

#[test]
fn what_was_not_under_way_did_not_end_the_process() {
    // Waiting to be tried again.
    let mut site = Site::training();
    let attempt = site.attempt();
    site.tick(Event::TrainingFailed { attempt });
    for _ in 0..20 {
        assert!(!die(&mut site).contains(&declined()));
    }
    // Waiting for a model that was lost.
    let mut site = Site::training();
    site.tick(Event::ArtifactLost { artifact: hash("model 0") });
    for _ in 0..20 {
        assert!(!die(&mut site).contains(&declined()));
    }
    for mut site in [Site::downloading(), Site::uploading()] {
        let phase = site.phase();
        for _ in 0..20 {
            die(&mut site);
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
    for again in [vec![Event::Disconnected], vec![Event::Stopped, Event::Started]] {
        let mut site = site.clone().all(again).all([Event::Connected]);
        site.tick(requested(1));
        assert_eq!(waiting(&site), [1, 2, 3]);
    }
}
