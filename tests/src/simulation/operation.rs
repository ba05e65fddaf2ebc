//! What can happen to a federation, operation by operation.

use common::rng::{ChaCha8Rng, Rng};
use common::round::Fault;

use super::coordinator::STEPS;
use super::fuse::Moment;
use super::scenario::MIN_VOLUMES;

/// One operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// Time passes.
    Advance {
        /// Milliseconds.
        ms: u64,
    },
    /// How the network is from now on. What is delayed by more than what was sent later arrives after it.
    Weather {
        /// Percent of the messages that are lost.
        lose: u8,
        /// Percent of the messages that arrive twice.
        double: u8,
        /// Longest delay of a message.
        delay_ms: u64,
    },
    /// A connection ends.
    Disconnect {
        /// Whose.
        site: usize,
    },
    /// Nothing passes between some sites and the coordinator, either way, and nobody is told.
    Partition {
        /// The sites that are cut off.
        sites: Vec<usize>,
        /// For how long.
        ms: u64,
    },
    /// A site's process is killed.
    CrashSiteAfter {
        /// The site.
        site: usize,
        /// After so many more events and actions.
        actions: u32,
    },
    /// The coordinator's process is killed.
    CrashCoordinatorAfter {
        /// After so many more events and actions.
        actions: u32,
    },
    /// A site's process is killed at a durable write.
    CrashSiteAtWrite {
        /// The site.
        site: usize,
        /// Writes that it still completes.
        writes: u32,
        /// Where in the write.
        moment: Moment,
    },
    /// The coordinator's process is killed at a durable write.
    CrashCoordinatorAtWrite {
        /// Writes that it still completes.
        writes: u32,
        /// Where in the write.
        moment: Moment,
    },
    /// The trainings of a site take longer from now on.
    SlowSite {
        /// The site.
        site: usize,
        /// By how much.
        ms: u64,
    },
    /// The next trainings, or evaluations, of a site fail.
    FailWork {
        /// The site.
        site: usize,
        /// How many.
        times: u32,
    },
    /// A site's process dies in its next trainings or evaluations, for want of memory say; also where the other faults have stopped.
    DieInWork {
        /// The site.
        site: usize,
        /// How often.
        times: u32,
        /// In which step of a training the first time; where that is done already, in the next one.
        step: u32,
        /// How many steps further each time.
        further: u32,
        /// How long it takes until the process is back.
        back_ms: u64,
    },
    /// A site's agent is told to stop, and started again.
    StopSiteAfter {
        /// The site.
        site: usize,
        /// After so many more events.
        events: u32,
    },
    /// The coordinator is started anew, and cannot read the study for a while.
    MisreadStudy {
        /// For how long.
        ms: u64,
    },
    /// The next commits fail for want of space.
    FillStorage {
        /// How many.
        times: u32,
    },
    /// The coordinator's disk takes nothing for a while.
    FillDisk {
        /// How long.
        ms: u64,
    },
    /// A site's disk takes nothing for a while.
    FillSiteDisk {
        /// The site.
        site: usize,
        /// How long.
        ms: u64,
    },
    /// The next aggregation fails.
    FailAggregation {
        /// Of what.
        fault: Fault,
    },
    /// A stored update of the open round turns into something else on the coordinator's disk, after its receipt.
    CorruptUpdate {
        /// Which of them, counted round.
        pick: usize,
    },
    /// What lies in a site's outbox turns into something else; of an evaluator, its next report.
    CorruptOutbox {
        /// The site.
        site: usize,
    },
    /// Whatever a site has fetched so far turns into something else on its disk.
    RotArtifacts {
        /// The site.
        site: usize,
    },
    /// What updates, reports and models take longer to become durable from now on.
    SlowDisk {
        /// At most so much longer.
        ms: u64,
    },
    /// A site's clock is set to another time.
    StepClock {
        /// The site.
        site: usize,
        /// By how much.
        ms: i64,
    },
    /// The clock of the coordinator's machine is set to another time.
    StepCoordinatorClock {
        /// By how much.
        ms: i64,
    },
    /// The operator pauses the study.
    Pause,
    /// He does, and says why.
    PauseFor,
    /// The operator resumes it.
    Resume,
    /// The operator ends it.
    Abort,
    /// The operator promotes the last model.
    Promote,
    /// The site registers another manifest from now on.
    ChangeManifest {
        /// The site.
        site: usize,
    },
    /// Scans of a trainer are lost: at its next registration it has so many, until the faults stop.
    LoseScans {
        /// The site.
        site: usize,
        /// What is left.
        left: u32,
    },
    /// No scan of a trainer can be used: so it says at its next registration, until the faults stop.
    SpoilScans {
        /// The site.
        site: usize,
    },
    /// A trainer is asked for a round of another study, which it approved.
    AskForOther {
        /// The site.
        site: usize,
    },
    /// The site's operator takes the approval of the study back.
    Withdraw {
        /// The site.
        site: usize,
    },
    /// The site's operator approves the study.
    Approve {
        /// The site.
        site: usize,
    },
    /// A site leaves the federation: its certificate is revoked, and it is let in no more.
    Leave {
        /// The site.
        site: usize,
    },
    /// A site joins, or comes back.
    Join {
        /// The site.
        site: usize,
    },
    /// The site sends what nobody asked it for.
    Hostile {
        /// The site.
        site: usize,
        /// What.
        lie: Lie,
    },
}

/// What a hostile site sends, past its own machine.
#[derive(Clone, Copy, Debug)]
pub enum Lie {
    /// An update of another study.
    Study,
    /// An update of a round that is not open yet.
    Round,
    /// An update of the round that has just closed, which it never trained for.
    Late,
    /// A delta from another model.
    Base,
    /// One step too few.
    Steps,
    /// As many steps as can be written down.
    HugeSteps,
    /// Another update under the attempt id that was counted.
    Content,
    /// A second update under a new attempt id.
    Second,
    /// The attempt, and the update, of another site.
    Stolen,
    /// What it sent for an earlier round, to the bit.
    Replay,
    /// That it takes part, though it may not.
    Accept,
    /// That it takes no part, though it may.
    Decline,
    /// Many answers about rounds that are not open.
    Spam,
    /// A report, though it is no evaluator, or on a model that is sealed from it.
    Report,
}

const LIES: [Lie; 14] = [
    Lie::Study,
    Lie::Round,
    Lie::Late,
    Lie::Base,
    Lie::Steps,
    Lie::HugeSteps,
    Lie::Content,
    Lie::Second,
    Lie::Stolen,
    Lie::Replay,
    Lie::Accept,
    Lie::Decline,
    Lie::Spam,
    Lie::Report,
];

/// Any operation, in a federation of so many sites.
pub(super) fn operation(rng: &mut ChaCha8Rng, sites: usize) -> Op {
    let site = rng.random_range(0..sites);
    match rng.random_range(0..110) {
        0..=20 => Op::Advance { ms: rng.random_range(0..300_000) },
        25..=28 => Op::Advance { ms: rng.random_range(0..2_000) },
        21..=24 | 29 => Op::ChangeManifest { site },
        30 => Op::LoseScans { site, left: 0 },
        31 => Op::LoseScans { site, left: MIN_VOLUMES - 1 },
        32..=41 => Op::Weather {
            lose: rng.random_range(0..40),
            double: rng.random_range(0..40),
            delay_ms: rng.random_range(1..60_000),
        },
        42..=45 => Op::Disconnect { site },
        46..=51 => Op::CrashSiteAfter { site, actions: rng.random_range(0..12) },
        52..=57 => Op::CrashCoordinatorAfter { actions: rng.random_range(0..20) },
        58..=62 => Op::CrashSiteAtWrite { site, writes: rng.random_range(0..10), moment: moment(rng) },
        63..=67 => Op::CrashCoordinatorAtWrite { writes: rng.random_range(0..20), moment: moment(rng) },
        68..=70 => Op::Partition {
            sites: (0..sites).filter(|_| rng.random_bool(0.5)).collect(),
            ms: rng.random_range(1_000..400_000),
        },
        71..=73 => Op::FailWork { site, times: rng.random_range(1..5) },
        74..=76 => Op::FillStorage { times: rng.random_range(1..4) },
        77..=78 => {
            let faults = [Fault::Numbers, Fault::Storage, Fault::StorageFull, Fault::StorageReadOnly];
            Op::FailAggregation { fault: faults[rng.random_range(0..faults.len())] }
        }
        79..=82 => Op::CorruptUpdate { pick: rng.random_range(0..sites) },
        83..=84 => Op::CorruptOutbox { site },
        85..=86 => Op::SlowDisk { ms: rng.random_range(0..60_000) },
        87 => Op::StepClock { site, ms: rng.random_range(-600_000..600_000) },
        88 => Op::StepCoordinatorClock { ms: rng.random_range(-600_000..6_000_000) },
        89 if rng.random_bool(0.3) => Op::PauseFor,
        89 => Op::Pause,
        90 => Op::Resume,
        91 => Op::Promote,
        92..=93 => Op::Withdraw { site },
        94 if rng.random_bool(0.5) => Op::Withdraw { site },
        94 => Op::Approve { site },
        100..=103 => Op::SlowSite { site, ms: rng.random_range(0..1_200_000) },
        104 => Op::Leave { site },
        105..=106 => Op::Join { site },
        107 => Op::FillDisk { ms: rng.random_range(1..120_000) },
        108 => Op::FillSiteDisk { site, ms: rng.random_range(1..300_000) },
        _ => Op::Hostile { site, lie: LIES[rng.random_range(0..LIES.len())] },
    }
}

/// Any operation of a kind that came later. These are drawn apart: without them each seed does what it always did.
pub(super) fn later_operation(rng: &mut ChaCha8Rng, sites: usize) -> Op {
    let site = rng.random_range(0..sites);
    match rng.random_range(0..3) {
        0 => Op::SpoilScans { site },
        1 => Op::AskForOther { site },
        _ => Op::RotArtifacts { site },
    }
}

/// Any operation of the kinds that came last, drawn apart once more.
pub(super) fn last_operation(rng: &mut ChaCha8Rng, sites: usize) -> Op {
    let site = rng.random_range(0..sites);
    match rng.random_range(0..6) {
        0..=1 => {
            let is_loop = rng.random_bool(0.5);
            let times = if is_loop { 12..=16 } else { 1..=5 };
            let back_ms = if rng.random_bool(0.3) { 1..=60_000 } else { 340_000..=400_000 };
            Op::DieInWork {
                site,
                times: rng.random_range(times),
                step: rng.random_range(1..=STEPS),
                further: u32::from(!is_loop),
                back_ms: rng.random_range(back_ms),
            }
        }
        2..=3 => Op::StopSiteAfter { site, events: rng.random_range(0..16) },
        _ => Op::MisreadStudy { ms: rng.random_range(30_000..900_000) },
    }
}

fn moment(rng: &mut ChaCha8Rng) -> Moment {
    [Moment::Before, Moment::Torn, Moment::After][rng.random_range(0..3)]
}
