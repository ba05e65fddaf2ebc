//! Where a study takes late updates, a site whose round closed without it ends its work and then takes up the next round.

use super::*;

/// The site in round 1 of a study that takes late updates.
fn late(mut site: Site) -> Site {
    let needs = [hash("embeddings")].into();
    site.tick(Event::StudyApproved { study: study(), needs, takes_late: true });
    site
}

fn closed(round: u32) -> Event {
    Event::RoundClosed { study: study(), round: RoundId(round) }
}

fn opened(round: u32) -> Event {
    Event::RoundOpened { task: task(round) }
}

fn work(site: &Site) -> (&'static str, Option<u32>) {
    (site.phase(), site.machine.status().work.map(|(_, round)| round.0))
}

fn busy(round: u32) -> Action {
    Action::DeclineRound { study: study(), round: RoundId(round), reason: DeclineReason::Busy }
}

#[test]
fn training_goes_on_when_its_round_has_closed_and_is_offered_late() {
    let mut site = late(Site::training());
    assert_eq!(site.tick(closed(1)), [Action::Report(Fact::RoundMissed { round: RoundId(1) })]);
    let actions = site.tick(opened(2));
    assert!(actions.contains(&busy(2)), "nobody need wait for it: {actions:?}");
    assert_eq!(site.tick(opened(2)), [], "said once");
    assert_eq!(work(&site), ("training", Some(1)));
    let attempt = site.attempt();
    let actions = site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    let offers =
        |action: &Action| matches!(action, Action::OfferUpdate { offer } if offer.round == RoundId(1));
    assert!(actions.iter().any(offers), "{actions:?}");
    let actions = site.tick(Event::Receipt { attempt });
    assert!(actions.contains(&Action::AcceptRound { task: task(2) }), "{actions:?}");
    assert_eq!(work(&site), ("downloading", Some(2)));
}

#[test]
fn an_update_on_its_way_waits_for_its_answer_whatever_it_is() {
    let kept =
        ["round-not-open", "unknown-attempt", "incomplete", "certificate-expired"].map(|code| (code, true));
    for (code, kept) in kept.into_iter().chain([("round-closed", false)]) {
        let mut site = late(Site::uploading()).all([closed(1)]);
        let attempt = site.attempt();
        site.tick(Event::Refused { attempt, code: code.to_owned() });
        let actions = site.tick(opened(2));
        let offered = actions.iter().any(|action| matches!(action, Action::OfferUpdate { .. }));
        assert_eq!((offered, actions.contains(&busy(2))), (kept, kept), "{code}: {actions:?}");
        assert_eq!(work(&site), if kept { ("uploading", Some(1)) } else { ("downloading", Some(2)) });
    }
}

#[test]
fn a_late_update_that_is_refused_makes_way_for_the_next_round() {
    let mut site = late(Site::uploading()).all([closed(1), opened(2)]);
    let attempt = site.attempt();
    site.tick(Event::Refused { attempt, code: "round-closed".to_owned() });
    assert_eq!(work(&site), ("downloading", Some(2)));
}

#[test]
fn what_is_late_by_more_than_a_round_is_given_up() {
    let mut site = late(Site::training()).all([closed(1), opened(2)]);
    let attempt = site.attempt();
    let actions = site.tick(closed(2));
    assert!(actions.contains(&Action::CancelTraining { attempt }), "{actions:?}");
    assert_eq!(work(&site), ("idle", None));
    let mut site = late(Site::training()).all([opened(3)]);
    assert_eq!(work(&site), ("downloading", Some(3)));
    site.tick(closed(3));
    assert_eq!(work(&site), ("idle", None));
}

#[test]
fn what_has_not_begun_to_train_goes_to_the_next_round_at_once() {
    let site = late(Site::downloading()).all([opened(2)]);
    assert_eq!(work(&site), ("downloading", Some(2)));
    assert_eq!(work(&late(Site::downloading()).all([closed(1)])), ("idle", None));
}

#[test]
fn the_round_that_waits_is_heard_of_anew_at_each_connection() {
    let mut site = late(Site::uploading()).all([closed(1), opened(2), Event::Disconnected, Event::Connected]);
    let attempt = site.attempt();
    site.tick(Event::Receipt { attempt });
    assert_eq!(work(&site), ("idle", None), "it may be over by now");
    site.tick(opened(2));
    assert_eq!(work(&site), ("downloading", Some(2)));
}

#[test]
fn training_that_fails_late_makes_way_for_the_next_round() {
    let mut site = late(Site::training()).all([closed(1), opened(2)]);
    let attempt = site.attempt();
    site = site.all([(); 3].map(|()| Event::TrainingFailed { attempt }));
    assert_eq!(work(&site), ("downloading", Some(2)));
}

#[test]
fn the_end_of_the_study_ends_late_work_too() {
    let mut site = late(Site::training()).all([closed(1), opened(2)]);
    site.tick(Event::StudyFinished { study: study() });
    assert_eq!(work(&site), ("idle", None));
}

#[test]
fn a_round_that_waits_survives_a_snapshot() {
    let site = late(Site::training()).all([closed(1), opened(2)]);
    let text = serde_json::to_string(&site.machine.snapshot()).unwrap();
    let restored =
        ParticipantMachine::restore(&identity(Role::Trainer), serde_json::from_str(&text).unwrap());
    assert_eq!(restored, Ok(site.machine));
}
