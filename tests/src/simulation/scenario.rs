//! What happens to a federation: a list of operations, made from a seed or written out.

use std::collections::BTreeMap;

use common::aggregate::weights::{SiteCounts, Weighting};
use common::ids::{ClassId, SiteId};
use common::rng::{ChaCha8Rng, Rng, SeedableRng};
use common::round::Fault;

use super::fuse::Moment;

/// Share of the federations that are crowds: up to fifty sites, with fewer rounds and operations, so that all stay quick.
const CROWDS: f64 = 0.03;
/// Share of the studies that the operator ends before their time.
const ABORTED: f64 = 0.05;
/// Share of the studies that take late updates into the next round.
const TAKE_LATE: f64 = 0.5;
/// What a late update weighs there.
const LATE_WEIGHTS: [f64; 2] = [0.5, 0.25];
/// Share of the federations that some trainers join in mid-study.
const LATECOMERS: f64 = 0.1;
/// Updates of each class that a round may need.
const PER_CLASS: [u32; 5] = [0, 0, 0, 1, 2];
/// Most classes that are spread over the trainers.
const SPREAD: u32 = 8;

/// A federation and its troubles.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub(super) seed: u64,
    pub(super) trainers: usize,
    pub(super) evaluators: usize,
    /// How many of these are sealed, the last ones: they score promoted models alone.
    pub(super) sealed: usize,
    /// Trainers that are not enrolled when the study begins, the last ones.
    pub(super) latecomers: usize,
    pub(super) quorum: u32,
    /// Updates that a round needs of each class that its sites annotate.
    pub(super) sites_per_class: u32,
    /// What a late update weighs in the next round, of what it would have weighed in time; none where it is refused.
    pub(super) late: Option<f64>,
    pub(super) rounds: u32,
    pub(super) deadline_s: u64,
    pub(super) weighting: Weighting,
    pub(super) gated: bool,
    /// In order; time passes by [`Op::Advance`] alone.
    pub ops: Vec<Op>,
}

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
    /// What lies in a site's outbox turns into something else.
    CorruptOutbox {
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
    /// The operator pauses the study.
    Pause,
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

impl Scenario {
    /// The federation, and the troubles, of this seed.
    pub fn from_seed(seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let crowd = rng.random_bool(CROWDS);
        let trainers: usize = if crowd { rng.random_range(10..=48) } else { rng.random_range(1..=5) };
        // Two sites at least.
        let evaluators: usize = rng.random_range(usize::from(trainers == 1)..=2);
        let sealed: usize = rng.random_range(0..=evaluators);
        let (most_rounds, most_ops) = if crowd { (2, 13) } else { (5, 66) };
        let weightings =
            [Weighting::Uniform, Weighting::Samples, Weighting::Annotations, Weighting::ClassBalanced];
        let ops: usize = rng.random_range(0..most_ops);
        let all = u32::try_from(trainers).expect("few");
        let mut scenario = Self {
            seed,
            trainers,
            evaluators,
            sealed,
            latecomers: if rng.random_bool(LATECOMERS) { rng.random_range(0..trainers) } else { 0 },
            quorum: rng.random_range(1..=all),
            sites_per_class: PER_CLASS[rng.random_range(0..PER_CLASS.len())].min(all),
            late: rng.random_bool(TAKE_LATE).then(|| LATE_WEIGHTS[rng.random_range(0..LATE_WEIGHTS.len())]),
            rounds: rng.random_range(1..=most_rounds),
            deadline_s: rng.random_range(60..=900),
            weighting: weightings[rng.random_range(0..weightings.len())],
            gated: evaluators > sealed && rng.random_bool(0.5),
            ops: (0..ops).map(|_| op(rng, trainers + evaluators)).collect(),
        };
        if rng.random_bool(ABORTED) {
            let at = rng.random_range(0..=scenario.ops.len());
            scenario.ops.insert(at, Op::Abort);
        }
        scenario
    }

    /// Without troubles.
    pub fn calm(trainers: usize, evaluators: usize, rounds: u32) -> Self {
        let (quorum, weighting) = (2, Weighting::Samples);
        let (deadline_s, gated) = (600, evaluators > 0);
        let (seed, sealed, latecomers, sites_per_class, late, ops) = (0, 0, 0, 0, None, vec![]);
        Self {
            seed,
            trainers,
            evaluators,
            sealed,
            latecomers,
            quorum,
            sites_per_class,
            late,
            rounds,
            deadline_s,
            weighting,
            gated,
            ops,
        }
    }

    /// The same, where late updates count in the next round for so much less.
    #[must_use]
    pub fn taking_late(self, weight: f64) -> Self {
        Self { late: Some(weight), ..self }
    }

    /// The same federation without troubles, in which every round waits for every trainer.
    #[must_use]
    pub fn undisturbed(&self) -> Self {
        let quorum = u32::try_from(self.trainers).expect("few");
        Self { latecomers: 0, quorum, deadline_s: 900, ops: vec![], ..self.clone() }
    }

    pub(super) fn sites(&self) -> usize {
        self.trainers + self.evaluators
    }

    /// The manifest that a site registers in its `version`th edition. Some classes are annotated by one trainer alone, but
    /// where rounds need sites of each class: there it takes two trainers to annotate one.
    pub(super) fn counts(&self, site: usize, version: u32) -> SiteCounts {
        let n = u32::try_from(site).expect("few") + 1;
        let class = |id: u32| ClassId::new(u8::try_from(id).expect("small")).expect("not 0");
        let mut annotated = BTreeMap::from([
            (class(1 + (n - 1) % SPREAD), 10 * n + version),
            (class(SPREAD + 1), 3 + 7 * version),
        ]);
        if self.sites_per_class > 0 {
            let classes = u32::try_from(self.trainers).expect("few").min(SPREAD);
            annotated.insert(class(1 + n % classes), 5 * n);
        }
        SiteCounts { volumes: 20 * n + 3 * version, annotated }
    }

    pub(super) fn evaluator_ids(&self) -> impl Iterator<Item = SiteId> + use<> {
        (self.trainers..self.sites()).map(site_id)
    }

    /// Evaluators whose reports may hold up a round: a sealed one has no say in what is trained.
    pub(super) fn validation_ids(&self) -> impl Iterator<Item = SiteId> + use<> {
        (self.trainers..self.sites() - self.sealed).map(site_id)
    }

    /// Whether a site is a sealed evaluator.
    pub(super) fn is_sealed(&self, site: usize) -> bool {
        site >= self.sites() - self.sealed
    }
}

fn op(rng: &mut ChaCha8Rng, sites: usize) -> Op {
    let site = rng.random_range(0..sites);
    match rng.random_range(0..110) {
        0..=20 => Op::Advance { ms: rng.random_range(0..300_000) },
        25..=28 => Op::Advance { ms: rng.random_range(0..2_000) },
        21..=24 | 29..=31 => Op::ChangeManifest { site },
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
            let faults = [Fault::Numbers, Fault::Storage, Fault::StorageFull];
            Op::FailAggregation { fault: faults[rng.random_range(0..faults.len())] }
        }
        79..=82 => Op::CorruptUpdate { pick: rng.random_range(0..sites) },
        83..=84 => Op::CorruptOutbox { site },
        85..=86 => Op::SlowDisk { ms: rng.random_range(0..60_000) },
        87..=88 => Op::StepClock { site, ms: rng.random_range(-600_000..600_000) },
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

fn moment(rng: &mut ChaCha8Rng) -> Moment {
    [Moment::Before, Moment::Torn, Moment::After][rng.random_range(0..3)]
}

pub(super) fn site_id(site: usize) -> SiteId {
    format!("site-{site}").parse().expect("a site name")
}
