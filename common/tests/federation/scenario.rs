//! What happens to a federation: a list of operations, made from a seed or written out.

use std::collections::BTreeMap;

use common::aggregate::weights::{SiteCounts, Weighting};
use common::ids::{ClassId, SiteId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A federation and its troubles.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) trainers: usize,
    pub(crate) evaluators: usize,
    pub(crate) quorum: u32,
    pub(crate) rounds: u32,
    pub(crate) deadline_s: u64,
    pub(crate) weighting: Weighting,
    pub(crate) gated: bool,
    /// In order; time passes by [`Op::Advance`] alone.
    pub(crate) ops: Vec<Op>,
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Advance {
        ms: u64,
    },
    /// Percent of messages that are lost or doubled from now on, and the longest delay.
    Weather {
        lose: u8,
        double: u8,
        delay_ms: u64,
    },
    Disconnect {
        site: usize,
    },
    CrashSiteAfter {
        site: usize,
        actions: u32,
    },
    CrashCoordinatorAfter {
        actions: u32,
    },
    /// The next trainings of a site fail.
    FailTraining {
        site: usize,
        times: u32,
    },
    /// The next commits fail for want of space.
    FillStorage {
        times: u32,
    },
    /// The next aggregations fail.
    FailAggregation {
        times: u32,
    },
    Pause,
    Resume,
    /// The site registers another manifest from now on.
    ChangeManifest {
        site: usize,
    },
    /// The site offers, and pushes, an update that nobody asked it for.
    Hostile {
        site: usize,
        lie: Lie,
    },
}

/// What is wrong with a hostile update.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lie {
    Study,
    Round,
    Base,
    Steps,
    /// Another update under the attempt id that was counted.
    Content,
    /// A second update under a new attempt id.
    Second,
}

impl Scenario {
    pub(crate) fn from_seed(seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let trainers = rng.random_range(1..=5);
        let quorum = rng.random_range(1..=u32::try_from(trainers).expect("few"));
        let weightings =
            [Weighting::Uniform, Weighting::Samples, Weighting::Annotations, Weighting::ClassBalanced];
        let evaluators = rng.random_range(0..=2);
        Self {
            seed,
            trainers,
            evaluators,
            quorum,
            rounds: rng.random_range(1..=5),
            deadline_s: rng.random_range(60..=900),
            weighting: weightings[rng.random_range(0..4)],
            gated: evaluators > 0 && rng.random_bool(0.5),
            ops: (0..rng.random_range(0..60)).map(|_| op(rng, trainers + evaluators)).collect(),
        }
    }

    /// Without troubles.
    pub(crate) fn calm(trainers: usize, evaluators: usize, rounds: u32) -> Self {
        let (quorum, weighting) = (2, Weighting::Samples);
        let (deadline_s, gated) = (600, evaluators > 0);
        Self { seed: 0, trainers, evaluators, quorum, rounds, deadline_s, weighting, gated, ops: vec![] }
    }

    pub(crate) fn sites(&self) -> usize {
        self.trainers + self.evaluators
    }
}

fn op(rng: &mut ChaCha8Rng, sites: usize) -> Op {
    let site = rng.random_range(0..sites);
    let lies = [Lie::Study, Lie::Round, Lie::Base, Lie::Steps, Lie::Content, Lie::Second];
    match rng.random_range(0..20) {
        0..=5 => Op::Advance { ms: rng.random_range(0..300_000) },
        6 => Op::Advance { ms: rng.random_range(0..2_000) },
        7 | 8 => Op::Weather {
            lose: rng.random_range(0..40),
            double: rng.random_range(0..40),
            delay_ms: rng.random_range(1..60_000),
        },
        9 => Op::Disconnect { site },
        10 | 11 => Op::CrashSiteAfter { site, actions: rng.random_range(0..12) },
        12 | 13 => Op::CrashCoordinatorAfter { actions: rng.random_range(0..20) },
        14 => Op::FailTraining { site, times: rng.random_range(1..5) },
        15 => Op::FillStorage { times: rng.random_range(1..4) },
        16 => Op::FailAggregation { times: 1 },
        17 if rng.random_bool(0.5) => Op::Pause,
        17 => Op::Resume,
        18 => Op::ChangeManifest { site },
        _ => Op::Hostile { site, lie: lies[rng.random_range(0..lies.len())] },
    }
}

pub(crate) fn site_id(site: usize) -> SiteId {
    format!("site-{site}").parse().expect("a site name")
}

/// The manifest that a site registers in its `version`th edition.
pub(crate) fn counts(site: usize, version: u32) -> SiteCounts {
    let n = u32::try_from(site).expect("few") + 1;
    let class = |id: u32| ClassId::new(u8::try_from(id).expect("small")).expect("not 0");
    let annotated = BTreeMap::from([(class(n), 10 * n + version), (class(9), 3 + 7 * version)]);
    SiteCounts { volumes: 20 * n + 3 * version, annotated }
}
