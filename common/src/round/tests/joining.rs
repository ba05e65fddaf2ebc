//! Sites join and leave while a study is under way.

use super::*;

fn enrolled<const N: usize>(sites: [&str; N]) -> Event {
    Event::TrainersExpected { sites: sites.map(site).into() }
}

fn aggregated_sites(actions: &[Action]) -> Option<Vec<SiteId>> {
    actions.iter().find_map(|action| match action {
        Action::Aggregate { terms, .. } => Some(terms.iter().map(|term| term.site.clone()).collect()),
        _ => None,
    })
}

#[test]
fn a_trainer_that_enrols_in_mid_round_is_asked_at_the_next() {
    let mut study = Study::collecting().all([enrolled(["a", "b", "c"])]);
    assert_eq!(study.tick(ready("c", 5)), []);
    let refused = study.machine.expect_update(&site("c"), &offer(1, hash("initial"), 3));
    assert_eq!(refused, Err(Rejection::NotParticipant { round: RoundId(1) }));
    let one = hash("one");
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    study.tick(Event::Aggregated { round: RoundId(1), model: one });
    let actions = study.tick(Event::Committed { round: RoundId(1), model: one });
    let asked = |action: &Action| match action {
        Action::OpenRound { task, to } => Some((task.round, to.clone())),
        _ => None,
    };
    assert_eq!(actions.iter().find_map(asked), Some((RoundId(2), ["a", "b", "c"].map(site).into())));
}

#[test]
fn a_trainer_that_is_revoked_in_mid_round_is_not_waited_for() {
    let mut study = Study::new(plan()).all(["a", "b", "c"].map(|name| ready(name, 10)));
    study = study.all([Event::Start]).all(["a", "b", "c"].map(|name| accepted(name, 1)));
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    assert_eq!(study.phase(), "collecting");
    let actions = study.tick(enrolled(["a", "b"]));
    assert!(facts(&actions).contains(&&Fact::SiteRevoked { site: site("c"), round: RoundId(1) }));
    assert_eq!(aggregated_sites(&actions), Some(["a", "b"].map(site).into()));
    assert_eq!(study.machine.status().ready, ["a", "b"].map(site).into());
}

#[test]
fn an_update_of_a_revoked_site_that_counts_already_stays() {
    let mut study = Study::collecting().all([stored("a", 1, hash("initial"), 1)]);
    assert_eq!(facts(&study.tick(enrolled(["b"]))), Vec::<&Fact>::new());
    let actions = study.tick(stored("b", 1, hash("initial"), 2));
    assert_eq!(aggregated_sites(&actions), Some(["a", "b"].map(site).into()));
}

#[test]
fn a_revoked_site_that_comes_back_takes_part_when_it_is_asked_again() {
    let mut study = Study::collecting().all([enrolled(["a"]), enrolled(["a", "b"])]);
    assert_eq!(study.tick(ready("b", 10)), [], "the round went on without it");
    let refused = study.machine.expect_update(&site("b"), &offer(1, hash("initial"), 2));
    assert_eq!(refused, Err(Rejection::NotParticipant { round: RoundId(1) }));
    let ignored = study.tick(accepted("b", 1));
    assert_eq!(facts(&ignored), [&Fact::EventIgnored { event: "round-accepted", phase: "collecting" }]);
    study.tick(stored("a", 1, hash("initial"), 1));
    assert_eq!(study.phase(), "quorum-missing");
    study.tick(Event::Resume);
    study.tick(stored("b", 1, hash("initial"), 2));
    assert_eq!(study.phase(), "aggregating");
}
