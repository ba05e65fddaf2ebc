//! What a study says about aggregation, as the arithmetic wants it.

use super::clipping::Clipping;
use super::fedadam::FedAdam;
use crate::artifact::Dtype;
use crate::study::sections::{Aggregation, Strategy};

/// How the updates of a round become the next model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Method {
    /// The rule.
    pub rule: Rule,
    /// η: how much of the step is taken.
    pub server_lr: f64,
    /// How long an update may be and still count in full.
    pub clipping: Clipping,
    /// Number format of updates. The model, its moments and all sums know nothing of it.
    pub update_dtype: Dtype,
}

/// The rules, each in a file of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The weighted mean; FedProx too.
    FedAvg,
    /// The weighted mean, with momentum β.
    ServerMomentum {
        /// β.
        momentum: f64,
    },
    /// The weighted mean, as the gradient of Adam.
    FedAdam(FedAdam),
    /// Of each number, the mean without the largest and smallest; weights play no part.
    TrimmedMean {
        /// Share left out at each end.
        trim: f64,
    },
    /// Of each number, the median; weights play no part.
    CoordinateMedian,
}

impl Method {
    /// The weighted mean of updates in f32, every one in full.
    pub const fn fedavg(server_lr: f64) -> Self {
        Self { rule: Rule::FedAvg, server_lr, clipping: Clipping::Off, update_dtype: Dtype::F32 }
    }

    /// What the study says.
    pub fn of(aggregation: &Aggregation) -> Self {
        let rule = match aggregation.strategy {
            Strategy::FedAvg | Strategy::FedProx => Rule::FedAvg,
            Strategy::ServerMomentum => Rule::ServerMomentum { momentum: aggregation.momentum() },
            Strategy::FedAdam => Rule::FedAdam(FedAdam {
                beta_1: aggregation.beta_1(),
                beta_2: aggregation.beta_2(),
                tau: aggregation.tau(),
            }),
            Strategy::TrimmedMean => Rule::TrimmedMean { trim: aggregation.trim() },
            Strategy::CoordinateMedian => Rule::CoordinateMedian,
        };
        let Aggregation { server_lr, update_dtype, .. } = *aggregation;
        Self { rule, server_lr, clipping: Clipping::of(aggregation), update_dtype }
    }
}

impl Rule {
    /// The moments that the server keeps from round to round, by name; each is as large as the model.
    pub const fn moments(self) -> &'static [&'static str] {
        match self {
            Self::ServerMomentum { .. } => &["velocity"],
            Self::FedAdam(_) => &["first-moment", "second-moment"],
            Self::FedAvg | Self::TrimmedMean { .. } | Self::CoordinateMedian => &[],
        }
    }

    /// Whether it sorts the sites' values: then weights play no part, and a chunk of every update is held at once.
    pub const fn sorts(self) -> bool {
        matches!(self, Self::TrimmedMean { .. } | Self::CoordinateMedian)
    }
}
