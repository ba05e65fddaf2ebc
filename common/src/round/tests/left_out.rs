//! A trainer that the study leaves out is never at hand.

use super::*;

/// [`plan`], with `c` left out.
fn without_c() -> RoundPlan {
    RoundPlan { leave_out: [site("c")].into(), ..plan() }
}

#[test]
fn a_site_that_is_left_out_is_not_waited_for() {
    let sites = ["a", "b", "c"].map(site).into();
    let mut study = Study::new(without_c()).all([Event::TrainersExpected { sites }, Event::Start]);
    study.tick(ready("a", 1));
    let actions = study.tick(ready("b", 1));
    let opened = |action: &Action| matches!(action, Action::OpenRound { to, .. } if to.len() == 2);
    assert!(actions.iter().any(opened), "{actions:?}");
}

#[test]
fn a_site_that_is_left_out_makes_no_quorum() {
    let mut study = Study::new(without_c()).all([Event::Start, ready("a", 1)]);
    let actions = study.tick(ready("c", 1));
    assert_eq!(facts(&actions), [&Fact::EventIgnored { event: "site-ready", phase: "waiting" }]);
    study.wait(3600);
    assert_eq!((study.phase(), study.machine.status().ready), ("waiting", BTreeSet::from([site("a")])));
    study.tick(ready("b", 1));
    assert_eq!(study.phase(), "distributing");
}

#[test]
fn an_update_of_a_site_that_is_left_out_is_refused_and_not_counted() {
    let mut study = Study::new(without_c());
    study = study.all([ready("a", 30), ready("b", 10), ready("c", 5), Event::Start, accepted("c", 1)]);
    assert_eq!(study.machine.status().answers.keys().collect::<Vec<_>>(), [&site("a"), &site("b")]);
    let refused = study.machine.expect_update(&site("c"), &offer(1, hash("initial"), 3)).unwrap_err();
    assert_eq!(refused.to_string(), "this study leaves c out: it is scored there, not trained");
    // Pushed all the same, it is stored for nothing.
    let actions = study.tick(stored("c", 1, hash("initial"), 3));
    let told = |action: &Action| matches!(action, Action::Refuse { rejection, .. } if *rejection == refused);
    assert!(actions.iter().any(told) && refused.code() == "left-out", "{actions:?}");
    study.tick(stored("a", 1, hash("initial"), 1));
    let actions = study.tick(stored("b", 1, hash("initial"), 2));
    let sites = |action: &Action| match action {
        Action::Aggregate { terms, .. } => {
            Some(terms.iter().map(|term| term.site.clone()).collect::<Vec<_>>())
        }
        _ => None,
    };
    assert_eq!(actions.iter().find_map(sites), Some(vec![site("a"), site("b")]));
}

#[test]
fn a_missing_quorum_does_not_ask_a_site_that_is_left_out() {
    let mut study = Study::new(without_c()).all([ready("a", 30), ready("b", 10), Event::Start]);
    study = study.all([accepted("a", 1), accepted("b", 1), stored("a", 1, hash("initial"), 1)]);
    study.wait(600);
    study = study.all([ready("c", 5), Event::Resume, stored("c", 1, hash("initial"), 3)]);
    assert_eq!(study.phase(), "quorum-missing");
}
