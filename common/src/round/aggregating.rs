//! Aggregating, then committing: the new model is computed from the counted updates, then made durable. Both take no further
//! update. A failure pauses the study with its reason; the same action is asked again when it resumes. What is under way while the
//! operator pauses the study goes on, and is not begun a second time.

use serde::{Deserialize, Serialize};

use super::event::Action;
use super::fact::Fact;
use super::opened::OpenedRound;
use super::phase::Context;
use crate::ids::ModelHash;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Aggregating {
    pub(super) opened: OpenedRound,
    /// Nobody computes it: that failed, or the coordinator was started again while the study was paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) idle: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Committing {
    pub(super) opened: OpenedRound,
    /// The aggregated model, not durable yet.
    pub(super) model: ModelHash,
    /// As [`Aggregating::idle`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) idle: bool,
}

impl Aggregating {
    pub(super) fn begin(opened: OpenedRound, cx: &mut Context<'_>) -> Self {
        let phase = Self { opened, idle: false };
        let weights = phase.opened.weights(cx.plan);
        for site in weights.capped {
            cx.report(Fact::ShareCapped { site, max_site_weight: cx.plan.max_site_weight });
        }
        let round = phase.opened.round;
        if weights.fell_back_to_uniform {
            cx.report(Fact::FellBackToUniform { round });
        }
        cx.report(Fact::RoundAggregating { round, terms: phase.opened.terms(cx.plan) });
        phase.ask(cx);
        phase
    }

    /// Asks for the aggregate, for the first time or again.
    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        let OpenedRound { round, base, .. } = self.opened;
        let terms = self.opened.terms(cx.plan);
        cx.act(Action::Aggregate { round, base, terms, server_lr: cx.plan.server_lr });
    }
}

impl Committing {
    pub(super) fn begin(opened: OpenedRound, model: ModelHash, cx: &mut Context<'_>) -> Self {
        let phase = Self { opened, model, idle: false };
        phase.ask(cx);
        phase
    }

    /// Asks for the commit, for the first time or again.
    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        cx.act(Action::Commit { round: self.opened.round, model: self.model });
    }
}
