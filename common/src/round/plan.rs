//! What the round machine needs to know of a study.

use std::collections::BTreeSet;
use std::time::Duration;

use super::exclusion::Exclusion;
use crate::aggregate::weights::{SiteCounts, Weighting};
use crate::ids::{ModelHash, RoundId, SiteId, StudyDigest};

/// The part of a study that decides how its rounds run. Not in snapshots: the study pins it.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundPlan {
    /// The study.
    pub study: StudyDigest,
    /// The model of round 0, base of round 1.
    pub initial_model: ModelHash,
    /// Training rounds, 1..=rounds.
    pub rounds: u32,
    /// Optimiser steps of a round, the same at every site.
    pub steps: u32,
    /// How many sites a round needs, and how long it waits.
    pub quorum: Quorum,
    /// What becomes of an update of a round that has closed.
    pub late: Late,
    /// What a site's share is proportional to.
    pub weighting: Weighting,
    /// Cap of one site's share, for [`Weighting::ClassBalanced`].
    pub max_site_weight: f64,
    /// Server learning rate η.
    pub server_lr: f64,
    /// Each so many rounds the new model is evaluated; the last round's always is. 0: the last alone.
    pub evaluate_every: u32,
    /// Evaluators whose reports the next round waits for, if any.
    pub gate: Option<Gate>,
    /// Trainers that the study leaves out: whatever they say, they are not at hand.
    pub leave_out: BTreeSet<SiteId>,
    /// Fewest annotated training volumes of a trainer. 0 takes everybody.
    pub min_volumes: u32,
}

/// How many sites a round needs, and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Fewest sites to open a round with, and fewest updates to commit one.
    pub sites: u32,
    /// The same for each class that a site of the round annotates, of sites that annotate it. 0: none in particular.
    pub sites_per_class: u32,
    /// Fewest updates of a class that are averaged at all, whoever is revoked or given up meanwhile: a rule that leaves sites out
    /// would leave out the few that annotate it. 0 where the rule counts every site.
    pub class_floor: u32,
    /// Longest time from opening to aggregation, seconds, if a quorum of updates is there by then.
    pub deadline_s: u64,
    /// Time that sites have to turn up once a quorum is ready, and again to accept a round, seconds.
    pub accept_s: u64,
}

impl Quorum {
    /// `sites`, at least 1: an aggregate of nothing is none.
    pub fn fewest(&self) -> usize {
        usize::try_from(self.sites.max(1)).unwrap_or(usize::MAX)
    }

    /// `accept_s` as a duration.
    pub fn accept(&self) -> Duration {
        Duration::from_secs(self.accept_s)
    }

    /// `deadline_s` as a duration.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_s)
    }
}

/// What becomes of an update of a round that has closed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Late {
    /// It is refused.
    Refuse,
    /// It counts in the next round, unless the site has sent one of that round by then.
    NextRound {
        /// What it weighs, of what it would have weighed in time: above 0, at most 1.
        weight: f64,
    },
}

impl Late {
    /// The weight of an update that comes late, of what it would have been.
    pub(super) const fn weight(self) -> f64 {
        match self {
            Self::Refuse => 0.0,
            Self::NextRound { weight } => weight,
        }
    }
}

/// Reports that the next round waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The evaluators, all of them.
    pub evaluators: BTreeSet<SiteId>,
    /// Longest wait, seconds.
    pub timeout_s: u64,
}

impl RoundPlan {
    /// Why a site with these counts is not asked; `None` when it is.
    pub(super) fn exclusion(&self, counts: &SiteCounts) -> Option<Exclusion> {
        Exclusion::of(counts, self.min_volumes)
    }

    /// Whether the model of `round` is to be evaluated.
    pub fn evaluates(&self, round: RoundId) -> bool {
        let due = self.evaluate_every > 0 && round.0.is_multiple_of(self.evaluate_every);
        due || round.0 >= self.rounds
    }
}
