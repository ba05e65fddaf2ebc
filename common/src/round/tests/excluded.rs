//! A trainer with too little to train on is not asked, and that is said.

use super::*;
use crate::ids::ClassId;

fn from_20() -> RoundPlan {
    RoundPlan { min_volumes: 20, ..plan() }
}

/// A site with so many volumes, of which so many annotate a class.
fn has(name: &str, volumes: u32, annotated: u32) -> Event {
    let annotated = [(ClassId::new(6).unwrap(), annotated)].into();
    Event::SiteReady { site: site(name), counts: SiteCounts { volumes, annotated } }
}

fn no_data(name: &str) -> Event {
    Event::RoundDeclined { site: site(name), round: RoundId(0), reason: DeclineReason::NoData }
}

#[test]
fn a_site_with_too_few_volumes_is_not_asked_and_that_is_said_once() {
    let sites = ["a", "b", "c"].map(site).into();
    let mut study = Study::new(from_20()).all([Event::TrainersExpected { sites }, Event::Start]);
    let reason = Exclusion::TooFewVolumes { have: 19, need: 20 };
    let said = Fact::SiteExcluded { site: site("c"), reason };
    assert_eq!(facts(&study.tick(has("c", 19, 19))), [&said]);
    // It comes again with each connection.
    study.tick(Event::SiteGone { site: site("c") });
    assert_eq!(study.tick(has("c", 19, 19)), []);
    study.tick(has("a", 20, 20));
    let actions = study.tick(has("b", 20, 1));
    let opened = |action: &Action| matches!(action, Action::OpenRound { to, .. } if to.len() == 2);
    assert!(actions.iter().any(opened), "nobody waits for it: {actions:?}");
    assert_eq!(study.machine.status().excluded, [(site("c"), reason)].into());
    let refused = study.machine.expect_update(&site("c"), &offer(1, hash("initial"), 3));
    assert_eq!(refused, Err(Rejection::NotParticipant { round: RoundId(1) }));
}

#[test]
fn a_site_whose_volumes_annotate_no_class_has_no_data() {
    let mut study = Study::new(from_20());
    let said = Fact::SiteExcluded { site: site("a"), reason: Exclusion::NoData };
    assert_eq!(facts(&study.tick(has("a", 500, 0))), [&said]);
    assert_eq!(
        facts(&study.tick(has("b", 0, 0)))[0],
        &Fact::SiteExcluded { site: site("b"), reason: Exclusion::NoData }
    );
}

#[test]
fn an_excluded_site_makes_no_quorum_and_joins_with_a_better_manifest() {
    let mut study = Study::new(from_20()).all([has("a", 20, 20), has("b", 3, 3), Event::Start]);
    study.wait(3600);
    assert_eq!(study.phase(), "waiting");
    study.tick(has("b", 20, 20));
    let status = study.machine.status();
    assert_eq!((status.phase, status.excluded), ("distributing", BTreeMap::new()));
}

#[test]
fn a_site_that_says_that_it_has_no_data_is_not_waited_for() {
    let sites = ["a", "b", "c"].map(site).into();
    let mut study = Study::new(plan()).all([Event::TrainersExpected { sites }, Event::Start]);
    study = study.all([ready("a", 1), ready("b", 1)]);
    assert_eq!(study.phase(), "waiting");
    let actions = study.tick(no_data("c"));
    let said = Fact::SiteExcluded { site: site("c"), reason: Exclusion::NoData };
    assert!(facts(&actions).contains(&&said), "{actions:?}");
    assert_eq!(study.phase(), "distributing");
    // Still so when the list of trainers comes again, and over when it has found its scans.
    study.tick(Event::TrainersExpected { sites: ["a", "b", "c"].map(site).into() });
    study.tick(ready("c", 1));
    assert_eq!(study.machine.status().excluded, BTreeMap::new());
}

#[test]
fn a_manifest_that_got_worse_leaves_the_round_under_way_as_it_is() {
    let mut study = Study::new(from_20()).all([has("a", 20, 20), has("b", 20, 20), Event::Start]);
    study = study.all([accepted("a", 1), accepted("b", 1), has("b", 5, 5)]);
    assert_eq!(study.machine.status().ready, [site("a")].into());
    study = study.all([stored("b", 1, hash("initial"), 2), stored("a", 1, hash("initial"), 1)]);
    assert_eq!(study.phase(), "aggregating");
}
