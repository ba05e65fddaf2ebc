//! Waiting: before a round. The operator has not started the study, or too few sites are ready (in all, or of those that
//! annotate a class), or the quorum is there and further expected sites get a little time to turn up. A site that did not use it is not waited for again until it returns.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::coverage;
use super::distributing::Distributing;
use super::event::Timer;
use super::phase::{Context, Phase};
use crate::ids::{ModelHash, RoundId};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Waiting {
    /// The round to open.
    pub(super) round: RoundId,
    pub(super) base: ModelHash,
    pub(super) started: bool,
    /// Until when further expected sites are waited for; set while a quorum is ready.
    gather_by: Option<Timestamp>,
}

impl Waiting {
    pub(super) const fn new(round: RoundId, base: ModelHash, started: bool) -> Self {
        Self { round, base, started, gather_by: None }
    }

    pub(super) fn advance(&mut self, cx: &mut Context<'_>) -> Option<Phase> {
        let (ready, quorum) = (&cx.roster.ready, &cx.plan.quorum);
        let enough = ready.len() >= quorum.fewest() && coverage::short_at_hand(ready, quorum).is_empty();
        if !self.started || !enough {
            self.gather_by = None;
            return None;
        }
        let complete = cx.roster.expected.iter().all(|site| ready.contains_key(site));
        let gather_by = *self.gather_by.get_or_insert(cx.now.after(quorum.accept()));
        if !complete && cx.now < gather_by {
            return None;
        }
        cx.roster.expected.retain(|site| ready.contains_key(site));
        Some(Phase::Distributing(Distributing::open(self.round, self.base, cx)))
    }

    pub(super) fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        self.gather_by.map(|at| (Timer::Gather, at)).into_iter().collect()
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        self.gather_by = self.gather_by.map(|at| at.after(by));
    }
}
