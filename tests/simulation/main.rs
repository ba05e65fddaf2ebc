//! Simulated federations: a thousand of them, some written out, and broken ones that must be caught. Any other seed, and
//! the twenty thousand: `cargo run --release -p tests --bin simulate -- --from A --seeds N`.

use std::num::NonZeroUsize;
use std::thread;

use tests::simulation::{Moment, Op, Outcome, Sabotage, Scenario, Transition, run, run_seeds, shrink};

const SEEDS: std::ops::Range<u64> = 0..1_000;
/// Federations in which a broken driver must be caught.
const MOST_TO_CATCH: usize = 400;

fn assert_holds(scenario: &Scenario, name: &str) -> Outcome {
    run(scenario, Sabotage::None).unwrap_or_else(|violation| {
        let (shrunk, last) = shrink(scenario.clone(), violation.clone());
        panic!("{name}: {violation}\nshrunk to {shrunk:#?}\nwhich fails with: {last}");
    })
}

#[test]
fn every_federation_finishes_and_keeps_its_promises() {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let batch = run_seeds(SEEDS, cores, |_| {}).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{}\n{:?}", batch.coverage, batch.tally);
    // The faults did happen: a harness that is too kind proves nothing.
    let tally = batch.tally;
    assert!(tally.crashes > 2_000 && tally.at_writes > 500 && tally.torn > 50, "{tally:?}");
    assert!(tally.lost > 3_000 && tally.duplicated > 3_000 && tally.partitioned > 500, "{tally:?}");
    assert!(tally.refused > 300 && tally.answered_again > 200 && tally.lies > 500, "{tally:?}");
    assert!(tally.faults > 500 && tally.corrupt > 20, "{tally:?}");
    assert!(tally.late > 20 && tally.left > 50 && tally.full > 100, "{tally:?}");
    assert!(tally.resumed > 100 && tally.stepped > 100 && tally.excluded > 50, "{tally:?}");
    assert!(
        tally.other > 20 && tally.stopped > 100 && tally.given_up > 10 && tally.misread > 100,
        "{tally:?}"
    );
}

#[test]
fn the_same_seed_gives_the_same_steps_whatever_the_number_of_threads() {
    for seed in [3, 14, 15] {
        let scenario = Scenario::from_seed(seed);
        assert_eq!(run(&scenario, Sabotage::None), run(&scenario, Sabotage::None));
    }
    let batch = |jobs| run_seeds(100..120, jobs, |_| {}).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(batch(1), batch(3));
}

/// The promise about bits: as long as every trainer took part, crashes and losses leave no trace in the model.
#[test]
fn a_federation_that_lost_no_participant_ends_with_the_model_of_an_undisturbed_one() {
    let mut compared = 0;
    for seed in 0..200 {
        let scenario = Scenario::from_seed(seed);
        let disturbed = assert_holds(&scenario, &format!("seed {seed}"));
        if disturbed.whole {
            let calm = assert_holds(&scenario.undisturbed(), &format!("seed {seed} without its troubles"));
            assert!(calm.whole, "seed {seed}");
            assert_eq!(disturbed.model, calm.model, "seed {seed}");
            compared += 1;
        }
    }
    assert!(compared > 20, "only {compared} federations could be compared");
}

/// Each broken driver or machine must be caught, or the invariants are words.
#[test]
fn a_broken_federation_is_caught() {
    for sabotage in Sabotage::BROKEN {
        let caught = SEEDS.take(MOST_TO_CATCH).any(|seed| run(&Scenario::from_seed(seed), sabotage).is_err());
        assert!(caught, "{sabotage:?} went unnoticed in {MOST_TO_CATCH} federations");
    }
}

#[test]
fn a_calm_federation_needs_no_second_try() {
    let Outcome { tally, .. } = assert_holds(&Scenario::calm(3, 1, 4), "calm");
    assert_eq!((tally.rounds, tally.refused, tally.answered_again), (4, 0, 0), "{tally:?}");
}

/// Round 1 closes at its deadline without site 0; round 2 then waits for site 1 long enough for its update.
#[test]
fn a_slow_sites_update_counts_in_the_next_round_where_the_study_says_so() {
    let mut scenario = Scenario::calm(3, 1, 3);
    scenario.ops.extend([
        Op::SlowSite { site: 0, ms: 620_000 },
        Op::SlowSite { site: 1, ms: 300_000 },
        Op::Advance { ms: 2_000_000 },
    ]);
    assert_eq!(assert_holds(&scenario, "late updates refused").tally.late, 0);
    let Outcome { tally, .. } = assert_holds(&scenario.taking_late(0.5), "late updates taken");
    assert!(tally.late >= 1, "{tally:?}");
}

#[test]
fn a_coordinator_killed_after_each_of_its_actions_finishes() {
    for actions in 0..60 {
        let mut scenario = Scenario::calm(3, 1, 2);
        scenario.ops.push(Op::CrashCoordinatorAfter { actions });
        assert_holds(&scenario, &format!("coordinator killed after {actions} actions"));
    }
}

#[test]
fn a_trainer_killed_after_each_of_its_actions_finishes() {
    for actions in 0..30 {
        let mut scenario = Scenario::calm(3, 1, 2);
        scenario.ops.push(Op::CrashSiteAfter { site: 0, actions });
        assert_holds(&scenario, &format!("trainer killed after {actions} actions"));
    }
}

#[test]
fn a_coordinator_killed_at_each_of_its_durable_writes_finishes() {
    for (writes, moment) in writes(30) {
        let mut scenario = Scenario::calm(3, 1, 2);
        scenario.ops.push(Op::CrashCoordinatorAtWrite { writes, moment });
        let Outcome { tally, .. } =
            assert_holds(&scenario, &format!("coordinator killed {moment:?} write {writes}"));
        assert_eq!(tally.at_writes, 1, "write {writes} did not come");
    }
}

#[test]
fn a_site_killed_at_each_of_its_durable_writes_finishes() {
    let mut resumed = 0;
    // A trainer and the evaluator.
    for site in [0, 3] {
        for (writes, moment) in writes(12) {
            let mut scenario = Scenario::calm(3, 1, 2);
            scenario.ops.push(Op::CrashSiteAtWrite { site, writes, moment });
            let Outcome { tally, .. } =
                assert_holds(&scenario, &format!("site {site} killed {moment:?} write {writes}"));
            assert_eq!(tally.at_writes, 1, "write {writes} did not come");
            resumed += tally.resumed;
        }
    }
    assert!(resumed > 0, "no training was killed after a step that it had kept");
}

/// While the coordinator runs its deadlines stay where they are; a later process starts no earlier than its journal ends.
#[test]
fn a_coordinator_whose_clock_is_set_finishes_as_if_it_were_not() {
    let calm = assert_holds(&Scenario::calm(3, 1, 2), "calm");
    for ms in [-600_000, 3_600_000] {
        let mut scenario = Scenario::calm(3, 1, 2);
        let stepped = [Op::Advance { ms: 90_000 }, Op::StepCoordinatorClock { ms }, Op::Advance { ms: 1 }];
        scenario.ops.extend(stepped);
        let Outcome { tally, model, .. } = assert_holds(&scenario, &format!("clock set by {ms} ms"));
        assert_eq!((tally.stepped, model), (1, calm.model), "{ms} ms");
        scenario.ops.push(Op::CrashCoordinatorAfter { actions: 0 });
        assert_holds(&scenario, &format!("clock set by {ms} ms, and the coordinator killed"));
    }
}

/// A site comes upon it at its next training.
#[test]
fn models_that_rot_at_the_sites_are_fetched_again_and_all_rounds_are_made() {
    let mut scenario = Scenario::calm(3, 1, 4);
    scenario.ops.push(Op::Advance { ms: 100_000 });
    scenario.ops.extend((0..3).map(|site| Op::RotArtifacts { site }));
    scenario.ops.push(Op::Advance { ms: 3_000_000 });
    let Outcome { tally, coverage, .. } = assert_holds(&scenario, "rotten models");
    let (machine, from, event, to) = ("trainer", "training", "artifact-lost", "downloading");
    assert!(coverage.count(&Transition { machine, from, event, to }) > 0, "{coverage}");
    assert_eq!((tally.rounds, tally.crashes), (4, 0), "{tally:?}");
}

/// The rounds are those of the other two; the operator is told once.
#[test]
fn a_trainer_that_lost_its_scans_is_excluded_and_nobody_waits_for_it() {
    let lost = [0, 19].map(|left| Op::LoseScans { site: 0, left });
    for op in lost.into_iter().chain([Op::SpoilScans { site: 0 }]) {
        let name = format!("{op:?}");
        let mut scenario = Scenario::calm(3, 1, 2);
        scenario.ops.extend([op, Op::Advance { ms: 3_000_000 }]);
        let Outcome { tally, whole, .. } = assert_holds(&scenario, &name);
        assert_eq!((tally.excluded, tally.rounds, whole), (1, 2, false), "{name}");
    }
}

/// Whatever round the site is in then, the other one waits for its end, and nobody for the site.
#[test]
fn rounds_of_another_study_are_done_in_between_and_all_rounds_are_made() {
    for ms in [10_000, 60_000, 110_000, 160_000] {
        let mut scenario = Scenario::calm(3, 1, 4);
        let asked = [Op::Advance { ms }, Op::AskForOther { site: 0 }, Op::Advance { ms: 3_000_000 }];
        scenario.ops.extend(asked);
        let Outcome { tally, .. } = assert_holds(&scenario, &format!("another study after {ms} ms"));
        assert_eq!((tally.rounds, tally.other), (4, 1), "after {ms} ms");
    }
}

/// Sites keep what they have for it. Pausing it and resuming it comes to nothing; what comes too late counts in the next round.
#[test]
fn a_study_that_the_coordinator_cannot_read_goes_on_where_it_stood_once_it_can() {
    let mut scenario = Scenario::calm(3, 1, 3).taking_late(0.5);
    let minute = || Op::Advance { ms: 60_000 };
    let slow = Op::SlowSite { site: 0, ms: 600_000 };
    scenario.ops.extend([
        slow,
        minute(),
        Op::MisreadStudy { ms: 900_000 },
        minute(),
        minute(),
        Op::Pause,
        Op::Resume,
    ]);
    scenario.ops.push(Op::Advance { ms: 3_000_000 });
    let Outcome { tally, coverage, .. } = assert_holds(&scenario, "unreadable");
    assert_eq!((tally.rounds, tally.crashes), (3, 0), "{tally:?}");
    assert!(tally.late > 0, "{tally:?}");
    for event in ["offer", "pause", "resume"] {
        let (machine, from, to) = ("study", "unreadable", "unreadable");
        assert!(coverage.count(&Transition { machine, from, event, to }) > 0, "{event}");
    }
}

/// Site 0 cannot be done without; site 2 is the evaluator. Each is asked again later, when nothing ends its process any more.
#[test]
fn work_that_ends_its_process_twelve_times_in_more_than_an_hour_is_given_up_and_nothing_else_is() {
    for site in [0, 2] {
        for (times, back_ms, given_up) in [(12, 360_000, 1), (11, 360_000, 0), (30, 20_000, 0)] {
            let name = format!("site {site} dies {times} times and is back after {back_ms} ms");
            let mut scenario = Scenario::calm(2, 1, 2);
            let deadly = Op::DieInWork { site, times, step: 1, further: 0, back_ms };
            scenario.ops.extend([deadly, Op::Advance { ms: 8_000_000 }]);
            let Outcome { tally, .. } = assert_holds(&scenario, &name);
            assert_eq!((tally.given_up, tally.rounds, tally.crashes), (given_up, 2, times.into()), "{name}");
        }
    }
}

/// It gets a step further each time, and keeps the fourth and the eighth.
#[test]
fn deaths_before_and_after_what_is_kept_of_a_round_are_not_added_up() {
    let mut scenario = Scenario::calm(2, 1, 2);
    let deadly = Op::DieInWork { site: 0, times: 14, step: 1, further: 1, back_ms: 360_000 };
    scenario.ops.extend([deadly, Op::Advance { ms: 7_000_000 }]);
    let Outcome { tally, .. } = assert_holds(&scenario, "a step further each time");
    assert_eq!((tally.given_up, tally.rounds, tally.crashes), (0, 2, 14), "{tally:?}");
}

/// Its two rounds are those of the other two, whatever it does.
#[test]
fn a_trainer_that_is_left_out_makes_no_quorum_and_nobody_waits_for_it() {
    let scenario = Scenario::calm(3, 1, 2).leaving_one_out();
    let Outcome { tally, whole, .. } = assert_holds(&scenario, "one left out");
    assert_eq!((tally.rounds, tally.refused, whole), (2, 0, false), "{tally:?}");
}

fn writes(most: u32) -> impl Iterator<Item = (u32, Moment)> {
    let moments = [Moment::Before, Moment::Torn, Moment::After];
    (0..most).flat_map(move |writes| moments.map(|moment| (writes, moment)))
}
