//! Sites that are not asked: what they have is nothing, or too little, to train on.
//!
//! An excluded site is not at hand, makes no quorum and is waited for by nobody. It takes part again as soon as it registers
//! a better manifest.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::DeclineReason;
use crate::aggregate::weights::SiteCounts;

/// Why a site is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Exclusion {
    /// No training volume of it annotates a class of the study.
    NoData,
    /// It has fewer annotated training volumes than the study wants.
    TooFewVolumes {
        /// Its volumes.
        have: u32,
        /// What the study wants.
        need: u32,
    },
    /// It cannot use its training scans, and knows why.
    DataError,
}

impl Exclusion {
    /// What the manifest with these counts deserves in a study that wants so many volumes; `None` when it is enough.
    pub fn of(counts: &SiteCounts, min_volumes: u32) -> Option<Self> {
        let annotates = counts.annotated.values().any(|&volumes| volumes > 0);
        match if annotates { counts.volumes } else { 0 } {
            have if have >= min_volumes => None,
            0 => Some(Self::NoData),
            have => Some(Self::TooFewVolumes { have, need: min_volumes }),
        }
    }

    /// What a site means that declines for this reason; `None` when it says nothing about its data.
    pub(super) const fn declared(reason: DeclineReason) -> Option<Self> {
        match reason {
            DeclineReason::NoData => Some(Self::NoData),
            DeclineReason::DataError => Some(Self::DataError),
            DeclineReason::NotApproved
            | DeclineReason::Policy
            | DeclineReason::TrainingFailed
            | DeclineReason::Evaluator
            | DeclineReason::Busy => None,
        }
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoData => f.write_str("no training scan annotates a class of the study"),
            Self::TooFewVolumes { have, need } => {
                write!(f, "{have} annotated training scans; the study takes sites with at least {need}")
            }
            Self::DataError => f.write_str("its training scans cannot be used; its log says why"),
        }
    }
}
