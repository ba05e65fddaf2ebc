//! Committed: the round's model is durable, and only now announced. The next round follows at once, or when the study's gate
//! opens; after the last round the study is finished. An aborted study ends here too, with its last durable model.

use serde::{Deserialize, Serialize};

use super::event::{Action, RoundOutcome};
use super::fact::Fact;
use super::phase::{Context, Phase};
use super::plan::RoundPlan;
use super::waiting::Waiting;
use crate::ids::{ModelHash, RoundId};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Committed {
    pub(super) round: RoundId,
    pub(super) model: ModelHash,
    /// The study has no gate here, or it opened.
    pub(super) gate_open: bool,
}

/// A study that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Over {
    /// The last committed round.
    pub(super) round: RoundId,
    /// Its model.
    pub(super) model: ModelHash,
}

impl Committed {
    /// Announces what has just become durable.
    pub(super) fn announce(round: RoundId, model: ModelHash, cx: &mut Context<'_>) -> Self {
        cx.report(Fact::RoundCommitted { round, model });
        cx.act(Action::CloseRound { round, model: Some(model), outcome: RoundOutcome::Committed });
        if cx.plan.evaluates(round) {
            cx.act(Action::Evaluate { round, model });
        }
        Self { round, model, gate_open: !has_gate(cx.plan, round) }
    }

    pub(super) fn advance(&self, cx: &mut Context<'_>) -> Option<Phase> {
        let Self { round, model, gate_open } = *self;
        if round.0 >= cx.plan.rounds {
            return Some(Phase::Finished(Over::finish(round, model, cx)));
        }
        gate_open.then(|| Phase::Waiting(Waiting::new(round.next(), model, true)))
    }
}

impl Over {
    fn finish(round: RoundId, model: ModelHash, cx: &mut Context<'_>) -> Self {
        cx.report(Fact::StudyFinished { model });
        cx.act(Action::AnnounceFinished { model });
        Self { round, model }
    }

    pub(super) fn abort(phase: &Phase, cx: &mut Context<'_>) -> Self {
        if let Some(opened) = phase.opened() {
            let (round, outcome) = (opened.round, RoundOutcome::Aborted);
            cx.act(Action::CloseRound { round, model: None, outcome });
        }
        let (round, model) = phase.durable();
        cx.report(Fact::StudyAborted { model });
        cx.act(Action::AnnounceFinished { model });
        Self { round, model }
    }
}

fn has_gate(plan: &RoundPlan, round: RoundId) -> bool {
    plan.gate.is_some() && plan.evaluates(round)
}
