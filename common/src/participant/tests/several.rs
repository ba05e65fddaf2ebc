//! Studies that run at once have a site by turns: what is under way for one is finished before a round of another begins.

use super::*;

fn other(text: &str) -> StudyDigest {
    StudyDigest(Digest::of(text.as_bytes()))
}

fn task_of(study: StudyDigest, round: u32) -> RoundTask {
    RoundTask { study, ..task(round) }
}

fn opened(study: StudyDigest, round: u32) -> Event {
    Event::RoundOpened { task: task_of(study, round) }
}

fn busy(study: StudyDigest, round: u32) -> Action {
    Action::DeclineRound { study, round: RoundId(round), reason: DeclineReason::Busy }
}

/// The site, which has approved two more studies.
fn with_others(site: Site) -> Site {
    let approved =
        |text| Event::StudyApproved { study: other(text), needs: BTreeSet::new(), takes_late: false };
    site.all(["b", "c"].map(approved))
}

fn work(site: &Site) -> Option<(StudyDigest, u32)> {
    site.machine.status().work.map(|(study, round)| (study, round.0))
}

fn gives_up(action: &Action) -> bool {
    matches!(action, Action::CancelFetch { .. } | Action::CancelTraining { .. } | Action::DropUpdate { .. })
}

#[test]
fn a_round_of_another_study_waits_until_the_one_under_way_has_its_answer() {
    for site in [Site::downloading(), Site::training(), Site::uploading()] {
        let phase = site.phase();
        let mut site = with_others(site);
        let actions = site.tick(opened(other("b"), 4));
        assert!(actions.contains(&busy(other("b"), 4)), "{phase}: nobody need wait for it: {actions:?}");
        assert!(!actions.iter().any(gives_up), "{phase}: {actions:?}");
        assert!(!site.tick(opened(other("b"), 4)).contains(&busy(other("b"), 4)), "said once");
        assert_eq!((site.phase(), work(&site)), (phase, Some((study(), 1))));
    }
    let mut site = with_others(Site::training());
    site.tick(opened(other("b"), 4));
    let attempt = site.attempt();
    site.tick(Event::Trained { attempt, update: hash("update"), steps: 10 });
    let actions = site.tick(Event::Receipt { attempt });
    assert!(actions.contains(&Action::DropUpdate { attempt, reason: DropReason::Counted }), "{actions:?}");
    assert!(actions.contains(&Action::AcceptRound { task: task_of(other("b"), 4) }), "{actions:?}");
    assert_eq!(work(&site), Some((other("b"), 4)));
}

#[test]
fn rounds_of_several_studies_are_taken_up_in_the_order_in_which_they_opened() {
    let mut site = with_others(Site::uploading());
    for text in ["c", "b"] {
        let actions = site.tick(opened(other(text), 2));
        assert!(actions.contains(&busy(other(text), 2)), "{actions:?}");
    }
    // The next round of one that waits, which keeps its place, and a notice that was overtaken.
    assert!(site.tick(opened(other("c"), 3)).contains(&busy(other("c"), 3)));
    assert!(!site.tick(opened(other("c"), 2)).contains(&busy(other("c"), 2)));
    let attempt = site.attempt();
    site.tick(Event::Receipt { attempt });
    assert_eq!(work(&site), Some((other("c"), 3)));
    assert!(site.tick(opened(study(), 2)).contains(&busy(study(), 2)));
    let closed = |text, round| Event::RoundClosed { study: other(text), round: RoundId(round) };
    site.tick(closed("c", 3));
    assert_eq!(work(&site), Some((other("b"), 2)));
    site.tick(closed("b", 2));
    assert_eq!(work(&site), Some((study(), 2)));
}

#[test]
fn whatever_ends_the_work_under_way_makes_way_for_the_other_study() {
    let begun = with_others(Site::training()).all([opened(other("b"), 4)]);
    let attempt = begun.attempt();
    let failed = || Event::TrainingFailed { attempt };
    let refused = |code: &str| Event::Refused { attempt, code: code.to_owned() };
    let trained = || Event::Trained { attempt, update: hash("update"), steps: 10 };
    for ends in [
        vec![Event::RoundClosed { study: study(), round: RoundId(1) }],
        vec![Event::StudyFinished { study: study() }],
        vec![Event::StudyRefused { study: study() }],
        vec![failed(), failed(), failed()],
        vec![trained(), refused("norm-exceeded")],
        vec![trained(), refused(WITHHELD_CODE)],
    ] {
        let site = begun.clone().all(ends.clone());
        assert_eq!(work(&site), Some((other("b"), 4)), "{ends:?}");
    }
}

#[test]
fn a_round_that_closed_while_it_waited_is_not_taken_up() {
    let over = [
        Event::RoundClosed { study: other("b"), round: RoundId(4) },
        Event::StudyFinished { study: other("b") },
        Event::StudyRefused { study: other("b") },
        // It is heard of anew at the next connection.
        Event::Disconnected,
        Event::Started,
    ];
    for event in over {
        let mut site = with_others(Site::training()).all([opened(other("b"), 4), event.clone()]);
        assert_eq!(work(&site), Some((study(), 1)), "{event:?}");
        site.tick(Event::Connected);
        let attempt = site.attempt();
        let update = hash("update");
        site = site.all([Event::Trained { attempt, update, steps: 10 }, Event::Receipt { attempt }]);
        assert_eq!(work(&site), None, "{event:?}");
    }
}

#[test]
fn at_a_new_connection_the_work_under_way_goes_on_whichever_study_is_heard_of_first() {
    let (ours, its) = (opened(study(), 1), opened(other("b"), 4));
    for order in [[ours.clone(), its.clone()], [its, ours]] {
        let mut site = with_others(Site::uploading()).all([opened(other("b"), 4), Event::Disconnected]);
        site.tick(Event::Connected);
        let actions: Vec<Action> = order.into_iter().flat_map(|notice| site.tick(notice)).collect();
        assert!(actions.contains(&busy(other("b"), 4)), "{actions:?}");
        assert!(actions.contains(&Action::AcceptRound { task: task(1) }), "{actions:?}");
        assert!(!actions.iter().any(gives_up), "{actions:?}");
        assert_eq!((site.phase(), work(&site)), ("uploading", Some((study(), 1))));
    }
}

#[test]
fn a_download_of_which_a_new_connection_has_not_heard_holds_nothing_up() {
    let mut site = with_others(Site::downloading()).all([Event::Disconnected, Event::Connected]);
    site.tick(opened(other("b"), 4));
    assert_eq!(work(&site), Some((other("b"), 4)), "the coordinator may not have the first study any more");
    assert!(site.tick(opened(study(), 1)).contains(&busy(study(), 1)), "it has");
    assert_eq!(work(&site), Some((other("b"), 4)));
}

#[test]
fn rounds_that_wait_survive_a_snapshot_and_so_does_the_one_of_an_older_program() {
    let site = with_others(Site::training()).all([opened(other("b"), 4), opened(other("c"), 5)]);
    let mut kept = serde_json::to_value(site.machine.snapshot()).unwrap();
    let restore = |kept: &serde_json::Value| {
        let snapshot = serde_json::from_value(kept.clone()).unwrap();
        ParticipantMachine::restore(&identity(Role::Trainer), snapshot).unwrap()
    };
    assert_eq!(restore(&kept), site.machine);
    // One task could wait then, and it was no list.
    kept["state"]["next"] = serde_json::to_value(task_of(other("b"), 4)).unwrap();
    let older = with_others(Site::training()).all([opened(other("b"), 4)]);
    assert_eq!(restore(&kept), older.machine);
}

#[test]
fn an_evaluator_scores_every_study_that_it_approved_however_many_it_was_offered() {
    let studies: Vec<StudyDigest> = (0..40).map(|number| other(&format!("study {number}"))).collect();
    let mut site = Site::new(Role::Evaluator).all([Event::Connected]);
    // Twice: each connection begins with what is offered.
    for _ in 0..2 {
        for &study in &studies {
            site.tick(Event::StudyOffered { study });
            site.tick(Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false });
        }
    }
    // Offers that nobody decides about make no room at the cost of those.
    for number in 0..300 {
        site.tick(Event::StudyOffered { study: other(&format!("undecided {number}")) });
    }
    assert_eq!(site.machine.status().undecided.len(), 256);
    for (round, &study) in (1..).zip(&studies) {
        let model = hash(&format!("model {round}"));
        site.tick(Event::EvaluationRequested { study, round: RoundId(round), model });
    }
    assert_eq!(site.machine.status().evaluations.len(), 40);
}
