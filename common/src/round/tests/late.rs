//! A study may take late updates into the next round, for less.

use super::*;

/// [`plan`] of three rounds, where late updates weigh half.
fn takes_late() -> RoundPlan {
    RoundPlan { late: Late::NextRound { weight: 0.5 }, rounds: 3, ..plan() }
}

/// Round 1 is committed without `c`, which took part; round 2 is open at all three.
fn second_round(plan: RoundPlan) -> Study {
    let mut study = Study::new(plan).all([ready("a", 30), ready("b", 10), ready("c", 20), Event::Start]);
    study = study.all(["a", "b", "c"].map(|name| accepted(name, 1)));
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    study.wait(600);
    study.all(made(1))
}

/// The model of a round is there.
fn made(round: u32) -> [Event; 2] {
    let (round, model) = (RoundId(round), model(round));
    [Event::Aggregated { round, model }, Event::Committed { round, model }]
}

fn model(round: u32) -> ModelHash {
    hash(&format!("model {round}"))
}

/// What `c` has of round 1.
fn late() -> UpdateOffer {
    offer(1, hash("initial"), 3)
}

fn stored_late() -> Event {
    Event::UpdateStored { site: site("c"), offer: late() }
}

fn terms(actions: &[Action]) -> Vec<(SiteId, RoundId, ModelHash, f64)> {
    let terms = actions.iter().find_map(|action| match action {
        Action::Aggregate { terms, .. } => Some(terms),
        _ => None,
    });
    terms.unwrap().iter().map(|term| (term.site.clone(), term.round, term.base, term.share)).collect()
}

fn code(study: &Study, name: &str, offer: &UpdateOffer) -> Result<UpdateExpectation, &'static str> {
    study.machine.expect_update(&site(name), offer).map_err(|rejection| rejection.code())
}

#[test]
fn a_late_update_counts_in_the_next_round_for_less() {
    let mut study = second_round(takes_late());
    assert_eq!(code(&study, "c", &late()), Ok(UpdateExpectation::Wanted { base: hash("initial") }));
    let actions = study.tick(stored_late());
    let taken = Fact::LateUpdateTaken { site: site("c"), round: RoundId(2), trained_for: RoundId(1) };
    assert_eq!(facts(&actions), [&taken]);
    assert!(actions.iter().any(|action| matches!(action, Action::Acknowledge { .. })), "{actions:?}");
    assert_eq!(study.machine.status().late, [site("c")].into());
    study = study.all([accepted("a", 2), accepted("b", 2), stored("a", 2, model(1), 4)]);
    study.wait(30);
    let actions = study.tick(stored("b", 2, model(1), 5));
    // 30, 10, and half of 20.
    let expected = [
        (site("a"), RoundId(2), model(1), 0.6),
        (site("b"), RoundId(2), model(1), 0.2),
        (site("c"), RoundId(1), hash("initial"), 0.2),
    ];
    assert_eq!(terms(&actions), expected);
}

#[test]
fn a_late_update_is_listed_among_those_that_must_be_in_the_store() {
    let mut study = second_round(takes_late()).all([stored_late(), stored("a", 2, model(1), 4)]);
    let listed = |study: &Study| {
        let counted = study.machine.counted().into_iter();
        counted.map(|(site, (round, counted))| (site, round, counted.update)).collect::<Vec<_>>()
    };
    let update = |attempt: u8| hash(&format!("update {attempt}"));
    let own = (site("a"), RoundId(2), update(4));
    assert_eq!(listed(&study), [own.clone(), (site("c"), RoundId(1), late().update)]);
    study.tick(stored("c", 2, model(1), 6));
    assert_eq!(
        listed(&study),
        [own, (site("c"), RoundId(2), update(6))],
        "its newer one counts in its place"
    );
}

#[test]
fn a_late_update_that_is_lost_counts_no_more_and_the_round_goes_on() {
    let mut study = second_round(takes_late()).all([stored_late(), accepted("a", 2), accepted("b", 2)]);
    study = study.all([stored("a", 2, model(1), 4), stored("b", 2, model(1), 5)]);
    study.wait(30);
    assert_eq!(study.phase(), "aggregating");
    let actions = study.tick(lost("c", 3));
    assert!(facts(&actions).contains(&&Fact::LateUpdateLost { site: site("c"), trained_for: RoundId(1) }));
    assert!(study.machine.status().late.is_empty());
    // 30 and 10.
    let shares: Vec<f64> = terms(&actions).into_iter().map(|(.., share)| share).collect();
    assert_eq!(shares, [0.75, 0.25]);
}

#[test]
fn it_counts_once_and_its_receipt_is_given_again() {
    let mut study = second_round(takes_late()).all([stored_late()]);
    let actions = study.tick(stored_late());
    assert_eq!(facts(&actions), [&Fact::UpdateDuplicated { site: site("c"), round: RoundId(1) }]);
    let other = UpdateOffer { attempt: AttemptId::from_bytes([9; 16]), ..late() };
    assert_eq!(code(&study, "c", &other), Err("already-counted"));
    study = study.all([stored("a", 2, model(1), 4), stored("b", 2, model(1), 5)]);
    study.wait(30);
    assert_eq!(study.phase(), "aggregating");
    assert_eq!(code(&study, "c", &late()), Ok(UpdateExpectation::AlreadyCounted));
    study = study.all(made(2));
    assert_eq!(code(&study, "c", &late()), Ok(UpdateExpectation::AlreadyCounted));
    assert_eq!(code(&study, "c", &other), Err("already-counted"));
    let actions = study.tick(stored("c", 1, hash("initial"), 3));
    assert_eq!(facts(&actions), [&Fact::UpdateDuplicated { site: site("c"), round: RoundId(1) }]);
    assert_eq!(study.machine.status().late, BTreeSet::new(), "round 3 has none");
}

#[test]
fn an_update_of_the_round_itself_takes_the_place_of_a_late_one() {
    let mut study = second_round(takes_late()).all([stored_late()]);
    study = study.all([stored("a", 2, model(1), 4), stored("b", 2, model(1), 5)]);
    let actions = study.tick(stored("c", 2, model(1), 6));
    let shares = [("a", 30.0 / 60.0), ("b", 10.0 / 60.0), ("c", 20.0 / 60.0)];
    assert_eq!(terms(&actions), shares.map(|(name, share)| (site(name), RoundId(2), model(1), share)));
    // And a late one that comes after it is not wanted.
    let mut study = second_round(takes_late()).all([stored("c", 2, model(1), 6)]);
    assert_eq!(code(&study, "c", &late()), Err("round-closed"));
    assert!(
        facts(&study.tick(stored_late()))
            .contains(&&Fact::UpdateRefused { site: site("c"), code: "round-closed" })
    );
}

#[test]
fn a_late_update_makes_no_quorum() {
    let mut study = second_round(takes_late()).all([stored_late(), stored("a", 2, model(1), 4)]);
    study.wait(600);
    assert_eq!(study.phase(), "quorum-missing");
    study.tick(stored("b", 2, model(1), 5));
    assert_eq!(study.phase(), "aggregating");
}

#[test]
fn a_site_keeps_its_update_until_the_next_round_is_open() {
    // Round 1 is being aggregated without it: not lost yet.
    let mut study =
        Study::new(takes_late()).all([ready("a", 30), ready("b", 10), ready("c", 20), Event::Start]);
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    study.wait(30);
    assert_eq!((study.phase(), code(&study, "c", &late())), ("aggregating", Err("round-not-open")));
    // Nobody is there to open round 2.
    study = study.all(["a", "b", "c"].map(|name| Event::SiteGone { site: site(name) })).all(made(1));
    assert_eq!((study.phase(), code(&study, "c", &late())), ("waiting", Err("round-not-open")));
    study = study.all([ready("a", 30), ready("b", 10)]);
    study.wait(30);
    // Not asked in this round, it is welcome all the same.
    assert_eq!(study.phase(), "distributing");
    study.tick(stored_late());
    assert_eq!(study.machine.status().late, [site("c")].into());
}

#[test]
fn what_came_too_late_even_for_the_next_round_is_refused() {
    let mut study = second_round(takes_late());
    study = study.all([stored("a", 2, model(1), 4), stored("b", 2, model(1), 5)]);
    study.wait(30);
    assert_eq!((study.phase(), code(&study, "c", &late())), ("aggregating", Err("round-closed")));
    study = study.all(made(2));
    assert_eq!(code(&study, "c", &late()), Err("round-closed"));
    // The last round has no next one.
    study = study.all([stored("a", 3, model(2), 6), stored("b", 3, model(2), 7)]);
    study.wait(30);
    assert_eq!(
        (study.phase(), code(&study, "c", &offer(3, model(2), 8))),
        ("aggregating", Err("round-closed"))
    );
}

#[test]
fn a_late_update_that_does_not_fit_is_refused() {
    let study = second_round(takes_late());
    assert_eq!(code(&study, "c", &offer(1, model(1), 3)), Err("wrong-base"));
    assert_eq!(code(&study, "c", &UpdateOffer { steps: 9, ..late() }), Err("wrong-steps"));
    assert_eq!(code(&study, "z", &late()), Err("round-closed"), "a stranger");
    assert_eq!(code(&study, "a", &offer(1, hash("initial"), 9)), Err("already-counted"));
    let revoked = study.all([Event::TrainersExpected { sites: ["a", "b"].map(site).into() }]);
    assert_eq!(code(&revoked, "c", &late()), Err("round-closed"));
}

#[test]
fn a_site_that_is_revoked_while_its_round_is_aggregated_without_it_counts_no_more() {
    let mut study =
        Study::new(takes_late()).all([ready("a", 30), ready("b", 10), ready("c", 20), Event::Start]);
    study = study.all([stored("a", 1, hash("initial"), 1), stored("b", 1, hash("initial"), 2)]);
    study.wait(30);
    assert_eq!(study.phase(), "aggregating");
    study.tick(Event::TrainersExpected { sites: ["a", "b"].map(site).into() });
    let study = study.all(made(1));
    assert_eq!((study.phase(), code(&study, "c", &late())), ("distributing", Err("round-closed")));
}

#[test]
fn a_study_that_does_not_say_so_refuses_late_updates() {
    let study = second_round(RoundPlan { rounds: 3, ..plan() });
    assert_eq!(code(&study, "c", &late()), Err("round-closed"));
    assert!(!study.machine.takes_late(RoundId(1)));
}

#[test]
fn what_may_still_count_is_kept_and_no_longer() {
    let study = second_round(takes_late());
    assert!(study.machine.takes_late(RoundId(1)) && !study.machine.takes_late(RoundId(2)));
    let study =
        study.all([stored("a", 2, model(1), 4), stored("b", 2, model(1), 5), stored("c", 2, model(1), 6)]);
    let study = study.all(made(2));
    assert!(!study.machine.takes_late(RoundId(1)) && study.machine.takes_late(RoundId(2)));
    assert!(!study.all([Event::Abort]).machine.takes_late(RoundId(2)));
}

#[test]
fn a_late_update_survives_a_restart() {
    let study = second_round(takes_late()).all([stored_late()]);
    let text = serde_json::to_string(&study.machine.snapshot()).unwrap();
    let restored = RoundMachine::restore(takes_late(), serde_json::from_str(&text).unwrap());
    assert_eq!(restored, Ok(study.machine));
}

#[test]
fn progress_is_expected_of_who_trains_and_of_who_is_late() {
    let expects = |study: &Study, name, round, steps| {
        study.machine.expects_progress(&site(name), RoundId(round), steps)
    };
    let study = Study::new(plan()).all([ready("a", 30), ready("b", 10)]);
    assert!(!expects(&study, "a", 1, STEPS), "no round is open");
    let study = study.all([Event::Start]);
    assert!(expects(&study, "a", 1, STEPS));
    assert!(!expects(&study, "a", 1, STEPS + 1) && !expects(&study, "a", 7, STEPS));
    assert!(!expects(&study, "d", 1, STEPS), "it was not asked");

    let study = second_round(takes_late());
    assert!(expects(&study, "c", 1, STEPS) && expects(&study, "c", 2, STEPS));
    assert!(!expects(&study, "a", 1, STEPS), "its update counts");
    assert!(!expects(&second_round(RoundPlan { rounds: 3, ..plan() }), "c", 1, STEPS), "it is refused");
}
