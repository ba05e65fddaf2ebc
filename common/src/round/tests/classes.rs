//! A round needs updates of each class that its sites annotate.

use super::*;
use crate::ids::ClassId;

const LIVER: u8 = 6;
const PANCREAS: u8 = 11;

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

/// [`plan`], with so many sites of each class.
fn by_class(sites_per_class: u32) -> RoundPlan {
    RoundPlan { quorum: Quorum { sites_per_class, ..plan().quorum }, ..plan() }
}

/// The same under a rule that leaves sites out.
fn by_class_with_floor(sites: u32) -> RoundPlan {
    RoundPlan { quorum: Quorum { sites, sites_per_class: 3, class_floor: 3, ..plan().quorum }, ..plan() }
}

/// A site that annotates these classes, in ten volumes each.
fn annotates(name: &str, classes: &[u8]) -> Event {
    let annotated = classes.iter().map(|&id| (class(id), 10)).collect();
    Event::SiteReady { site: site(name), counts: SiteCounts { volumes: 10, annotated } }
}

/// The updates of `a` and `b` are there, the deadline is past, and `c` alone annotates the pancreas.
fn without_the_pancreas() -> (Study, Vec<Action>) {
    let liver = ["a", "b"].map(|name| annotates(name, &[LIVER]));
    let mut study = Study::new(by_class(1)).all(liver).all([annotates("c", &[PANCREAS]), Event::Start]);
    study = study.all(["a", "b", "c"].map(|name| accepted(name, 1)));
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    let actions = study.wait(600);
    (study, actions)
}

#[test]
fn a_round_waits_for_the_only_site_that_annotates_a_class() {
    let (mut study, actions) = without_the_pancreas();
    let classes = BTreeMap::from([(class(PANCREAS), ClassShortage { have: 0, need: 1 })]);
    let missing = Fact::QuorumMissing { round: RoundId(1), have: 2, need: 2, classes: classes.clone() };
    assert_eq!(facts(&actions), [&missing]);
    let status = study.machine.status();
    assert_eq!((status.phase, status.classes_short), ("quorum-missing", classes));
    study.tick(stored("c", 1, hash("initial"), 3));
    assert_eq!((study.phase(), study.machine.status().classes_short), ("aggregating", BTreeMap::new()));
}

#[test]
fn a_site_that_declined_is_asked_again_when_its_class_is_missing() {
    let (mut study, _) = without_the_pancreas();
    let reason = DeclineReason::TrainingFailed;
    study.tick(Event::RoundDeclined { site: site("c"), round: RoundId(1), reason });
    let actions = study.wait(30);
    let asked = |action: &Action| matches!(action, Action::OpenRound { to, .. } if *to == [site("c")].into());
    assert!(actions.iter().any(asked), "{actions:?}");
    assert_eq!(study.phase(), "quorum-missing");
}

#[test]
fn resume_gives_up_the_class_of_a_site_that_is_not_there() {
    let (mut study, _) = without_the_pancreas();
    study.tick(Event::Resume);
    assert_eq!(study.phase(), "quorum-missing", "the site is there, and trains");
    study.tick(Event::SiteGone { site: site("c") });
    assert_eq!(study.phase(), "quorum-missing");
    study.tick(Event::Resume);
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn the_class_of_a_site_that_was_revoked_is_not_waited_for() {
    let (mut study, _) = without_the_pancreas();
    study.tick(Event::TrainersExpected { sites: ["a", "b"].map(site).into() });
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn a_round_opens_when_the_sites_at_hand_could_fulfil_it() {
    let mut study = Study::new(by_class(2)).all([annotates("a", &[LIVER, PANCREAS]), Event::Start]);
    study.tick(annotates("b", &[LIVER]));
    study.wait(3600);
    let status = study.machine.status();
    let classes = BTreeMap::from([(class(PANCREAS), ClassShortage { have: 1, need: 2 })]);
    assert_eq!((status.phase, status.classes_short), ("waiting", classes));
    study.tick(annotates("c", &[PANCREAS]));
    assert_eq!(study.phase(), "distributing");
}

#[test]
fn where_a_revoked_site_leaves_too_few_of_a_class_those_left_are_enough() {
    let mut study = Study::new(by_class(2));
    study = study.all(["a", "b", "c"].map(|name| annotates(name, &[LIVER]))).all([
        annotates("d", &[LIVER, PANCREAS]),
        annotates("e", &[LIVER, PANCREAS]),
        Event::Start,
    ]);
    study = study.all(["a", "b", "c", "d", "e"].map(|name| accepted(name, 1)));
    study.tick(Event::TrainersExpected { sites: ["a", "b", "c", "d"].map(site).into() });
    study = study.all([(1, "a"), (2, "b"), (3, "c")].map(|(n, name)| stored(name, 1, hash("initial"), n)));
    assert_eq!(study.phase(), "collecting");
    study.tick(stored("d", 1, hash("initial"), 4));
    assert_eq!(study.phase(), "aggregating");
}

/// Asked for round 1: `a`, `b` and `c`, which annotate the liver, and `d`, `e` and `f`, which annotate the pancreas.
fn three_of_each(plan: RoundPlan) -> Study {
    let liver = ["a", "b", "c"].map(|name| annotates(name, &[LIVER]));
    let pancreas = ["d", "e", "f"].map(|name| annotates(name, &[PANCREAS]));
    let study = Study::new(plan).all(liver).all(pancreas).all([Event::Start]);
    study.all(["a", "b", "c", "d", "e", "f"].map(|name| accepted(name, 1)))
}

#[test]
fn a_rule_that_leaves_sites_out_is_not_used_on_the_few_that_revocation_leaves() {
    let all = ["a", "b", "c", "d", "e", "f"];
    let mut study = three_of_each(by_class_with_floor(4));
    let own = [(1, "a"), (2, "b"), (3, "c"), (4, "d")];
    study = study.all(own.map(|(n, name)| stored(name, 1, hash("initial"), n)));
    study.tick(Event::TrainersExpected { sites: ["a", "b", "c", "d"].map(site).into() });
    study.tick(Event::Resume);
    let status = study.machine.status();
    let classes = BTreeMap::from([(class(PANCREAS), ClassShortage { have: 1, need: 3 })]);
    assert_eq!((status.phase, status.classes_short), ("quorum-missing", classes));
    // They come back, and are asked again.
    study.tick(Event::TrainersExpected { sites: all.map(site).into() });
    study = study.all([annotates("e", &[PANCREAS]), annotates("f", &[PANCREAS]), Event::Resume]);
    study.tick(stored("e", 1, hash("initial"), 5));
    assert_eq!(study.phase(), "quorum-missing");
    study.tick(stored("f", 1, hash("initial"), 6));
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn a_rule_that_leaves_sites_out_is_not_used_on_one_that_was_given_up_and_has_come_back() {
    let absent = ["d", "e", "f"];
    let mut study = three_of_each(by_class_with_floor(4));
    let own = [(1, "a"), (2, "b"), (3, "c")];
    study = study.all(own.map(|(n, name)| stored(name, 1, hash("initial"), n)));
    study = study.all(absent.map(|name| Event::SiteGone { site: site(name) }));
    study.wait(600);
    study.tick(Event::Resume);
    assert_eq!((study.phase(), study.machine.status().classes_short), ("quorum-missing", BTreeMap::new()));
    for (n, name) in [(4, "d"), (5, "e"), (6, "f")] {
        assert_eq!(study.phase(), "quorum-missing", "before the update of {name}");
        study.tick(stored(name, 1, hash("initial"), n));
    }
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn a_class_that_was_given_up_whole_holds_up_no_rule() {
    let mut study = three_of_each(by_class_with_floor(3));
    let own = [(1, "a"), (2, "b"), (3, "c")];
    study = study.all(own.map(|(n, name)| stored(name, 1, hash("initial"), n)));
    study = study.all(["d", "e", "f"].map(|name| Event::SiteGone { site: site(name) }));
    study.wait(600);
    assert_eq!(study.phase(), "quorum-missing");
    study.tick(Event::Resume);
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn a_class_that_nobody_in_the_round_annotates_is_not_waited_for() {
    let gone = [annotates("c", &[PANCREAS]), Event::SiteGone { site: site("c") }];
    // Annotated in no volume is not annotated.
    let annotated = BTreeMap::from([(class(LIVER), 10), (class(PANCREAS), 0)]);
    let b = Event::SiteReady { site: site("b"), counts: SiteCounts { volumes: 10, annotated } };
    let mut study = Study::new(by_class(1)).all(gone).all([annotates("a", &[LIVER]), b, Event::Start]);
    study.wait(30);
    study = study.all([accepted("a", 1), accepted("b", 1)]);
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn what_a_site_annotates_is_fixed_when_it_is_asked() {
    let both = [annotates("a", &[LIVER]), annotates("b", &[LIVER, PANCREAS]), Event::Start];
    let mut study = Study::new(plan()).all(both).all([accepted("a", 1), accepted("b", 1)]);
    // A new manifest while the round is under way.
    study = study.all([annotates("a", &[PANCREAS]), stored("a", 1, hash("initial"), 1)]);
    assert_eq!(study.machine.annotating(), BTreeMap::from([(class(LIVER), BTreeSet::from([site("a")]))]));
    study.tick(stored("b", 1, hash("initial"), 2));
    assert_eq!(study.phase(), "aggregating");
    let expected =
        [(class(LIVER), ["a", "b"].map(site).into()), (class(PANCREAS), BTreeSet::from([site("b")]))];
    assert_eq!(study.machine.annotating(), BTreeMap::from(expected));
}
