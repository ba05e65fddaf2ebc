//! A federation, its study, and the list of operations that happen to it: made from a seed or written out.

use std::collections::BTreeMap;

use common::aggregate::weights::{SiteCounts, Weighting};
use common::ids::{ClassId, SiteId};
use common::rng::{ChaCha8Rng, Rng, SeedableRng};

use super::operation::{Op, last_operation, later_operation, operation};

/// Share of the federations that are crowds: up to fifty sites, with fewer rounds and operations, so that all stay quick.
const CROWDS: f64 = 0.03;
/// Share of the studies that the operator ends before their time.
const ABORTED: f64 = 0.07;
/// Share of the studies that may have sealed evaluators.
const SEALED: f64 = 0.5;
/// Share of the studies with evaluators that validate in which these hold a gate.
const GATED: f64 = 0.7;
/// Share of the studies that take late updates into the next round.
const TAKE_LATE: f64 = 0.5;
/// What a late update weighs there.
const LATE_WEIGHTS: [f64; 2] = [0.5, 0.25];
/// Share of the federations that some trainers join in mid-study.
const LATECOMERS: f64 = 0.1;
/// Share of the federations with troubles of the kinds that came later, and most of these.
const LATER_KINDS: f64 = 0.3;
const MOST_LATER: usize = 5;
/// The same of the kinds that came last.
const LAST_KINDS: f64 = 0.3;
const MOST_LAST: usize = 5;
/// Share of the studies that may leave a trainer out.
const LEAVE_OUT: f64 = 0.3;
/// How long a round waits for its sites' answers. In the longest a fast site trains before a slow one answers.
const ACCEPT_S: [u64; 3] = [30, 30, 240];
/// Updates of each class that a round may need.
const PER_CLASS: [u32; 5] = [0, 0, 0, 1, 2];
/// Most classes that are spread over the trainers.
const SPREAD: u32 = 8;
/// Fewest volumes of a trainer, in every simulated study.
pub(super) const MIN_VOLUMES: u32 = 20;

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
    /// Trainers that the study leaves out, the first ones.
    pub(super) left_out: usize,
    pub(super) quorum: u32,
    /// Updates that a round needs of each class that its sites annotate.
    pub(super) sites_per_class: u32,
    /// What a late update weighs in the next round, of what it would have weighed in time; none where it is refused.
    pub(super) late: Option<f64>,
    pub(super) rounds: u32,
    pub(super) deadline_s: u64,
    /// How long a round waits for its sites' answers.
    pub(super) accept_s: u64,
    pub(super) weighting: Weighting,
    pub(super) gated: bool,
    /// In order; time passes by [`Op::Advance`] alone.
    pub ops: Vec<Op>,
}

impl Scenario {
    /// The federation, and the troubles, of this seed.
    pub fn from_seed(seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let crowd = rng.random_bool(CROWDS);
        let trainers: usize = if crowd { rng.random_range(10..=48) } else { rng.random_range(1..=5) };
        // Two sites at least.
        let evaluators: usize = rng.random_range(usize::from(trainers == 1)..=2);
        let sealed: usize = if rng.random_bool(SEALED) { rng.random_range(0..=evaluators) } else { 0 };
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
            left_out: 0,
            quorum: rng.random_range(1..=all),
            sites_per_class: PER_CLASS[rng.random_range(0..PER_CLASS.len())].min(all),
            late: rng.random_bool(TAKE_LATE).then(|| LATE_WEIGHTS[rng.random_range(0..LATE_WEIGHTS.len())]),
            rounds: rng.random_range(1..=most_rounds),
            deadline_s: rng.random_range(60..=900),
            accept_s: ACCEPT_S[rng.random_range(0..ACCEPT_S.len())],
            weighting: weightings[rng.random_range(0..weightings.len())],
            gated: evaluators > sealed && rng.random_bool(GATED),
            ops: (0..ops).map(|_| operation(rng, trainers + evaluators)).collect(),
        };
        if rng.random_bool(ABORTED) {
            let at = rng.random_range(0..=scenario.ops.len());
            scenario.ops.insert(at, Op::Abort);
        }
        scenario.trouble_later();
        scenario.trouble_last();
        scenario
    }

    fn trouble_later(&mut self) {
        let rng = &mut ChaCha8Rng::seed_from_u64(self.seed ^ 0x1a7e);
        if rng.random_bool(LATER_KINDS) {
            for _ in 0..rng.random_range(1..=MOST_LATER) {
                let (at, op) = (rng.random_range(0..=self.ops.len()), later_operation(rng, self.sites()));
                self.ops.insert(at, op);
            }
        }
        // The others alone must be able to make a quorum, of each class too.
        let spare = self.quorum < u32::try_from(self.trainers).expect("few") && self.sites_per_class == 0;
        if rng.random_bool(LEAVE_OUT) && spare {
            self.left_out = 1;
        }
    }

    fn trouble_last(&mut self) {
        let rng = &mut ChaCha8Rng::seed_from_u64(self.seed ^ 0x1a57);
        if rng.random_bool(LAST_KINDS) {
            for _ in 0..rng.random_range(1..=MOST_LAST) {
                let (at, op) = (rng.random_range(0..=self.ops.len()), last_operation(rng, self.sites()));
                self.ops.insert(at, op);
            }
        }
    }

    /// Without troubles.
    pub fn calm(trainers: usize, evaluators: usize, rounds: u32) -> Self {
        let (quorum, weighting) = (2, Weighting::Samples);
        let (deadline_s, accept_s, gated) = (600, 30, evaluators > 0);
        let (seed, sealed, latecomers, left_out, sites_per_class, late, ops) = (0, 0, 0, 0, 0, None, vec![]);
        Self {
            seed,
            trainers,
            evaluators,
            sealed,
            latecomers,
            left_out,
            quorum,
            sites_per_class,
            late,
            rounds,
            deadline_s,
            accept_s,
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

    /// The same, where the study leaves the first trainer out.
    #[must_use]
    pub fn leaving_one_out(self) -> Self {
        Self { left_out: 1, ..self }
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
        SiteCounts { volumes: MIN_VOLUMES * n + 3 * version, annotated }
    }

    /// Trainers that are never asked.
    pub(super) fn left_out_ids(&self) -> impl Iterator<Item = SiteId> + use<> {
        (0..self.left_out).map(site_id)
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

pub(super) fn site_id(site: usize) -> SiteId {
    format!("site-{site}").parse().expect("a site name")
}
