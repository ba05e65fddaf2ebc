//! Collecting: sites train and send their updates. Ends when every site that takes part has answered, or at the deadline,
//! if a quorum of updates is there. Without one the round is *quorum-missing*: it asks its sites again and again, and ends
//! by itself when enough updates arrive, however late; nothing below quorum is ever aggregated.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::aggregating::Aggregating;
use super::event::Timer;
use super::fact::Fact;
use super::opened::{Answer, OpenedRound};
use super::phase::{Context, Phase};
use crate::time::Timestamp;

/// Shortest wait before sites are asked again, whatever the study says.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Collecting {
    pub(super) opened: OpenedRound,
    /// When the sites are asked again; set while a quorum is missing.
    ask_again_at: Option<Timestamp>,
}

impl Collecting {
    pub(super) const fn new(opened: OpenedRound) -> Self {
        Self { opened, ask_again_at: None }
    }

    /// Whether the round would have ended, had it enough updates.
    pub(super) const fn quorum_missing(&self) -> bool {
        self.ask_again_at.is_some()
    }

    pub(super) fn advance(&mut self, cx: &mut Context<'_>) -> Option<Phase> {
        if self.opened.any(&Answer::Accepted) && cx.now < self.opened.deadline {
            self.ask_again_at = None;
            return None;
        }
        if self.opened.has_quorum(cx.plan) {
            return Some(Phase::Aggregating(Aggregating::begin(self.opened.clone(), cx)));
        }
        self.miss_quorum(cx);
        None
    }

    fn miss_quorum(&mut self, cx: &mut Context<'_>) {
        match self.ask_again_at {
            Some(at) if cx.now < at => return,
            Some(_) => self.ask_again(cx),
            None => {
                let have = u32::try_from(self.opened.counted().len()).unwrap_or(u32::MAX);
                let (need, classes) = (cx.plan.quorum.sites, self.opened.classes_short(cx.plan));
                cx.report(Fact::QuorumMissing { round: self.opened.round, have, need, classes });
            }
        }
        self.ask_again_at = Some(cx.now.after(cx.plan.quorum.accept().max(SHORTEST_RETRY)));
    }

    /// Asks those at hand whose update is missing.
    fn ask_again(&self, cx: &mut Context<'_>) {
        let to = self.opened.unanswered(&cx.roster.ready);
        cx.open_round(&self.opened, to);
    }

    /// The operator's way out of a missing quorum: sites that were not there when the round opened are asked too, and what
    /// is annotated by absent ones alone is waited for no more.
    pub(super) fn widen(&mut self, cx: &mut Context<'_>) {
        self.opened.invite(&cx.roster.ready);
        self.opened.give_up_absent(&cx.roster.ready);
        self.ask_again(cx);
    }

    pub(super) fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        match self.ask_again_at {
            Some(at) => [(Timer::Retry, at)].into(),
            None => [(Timer::Deadline, self.opened.deadline)].into(),
        }
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        self.ask_again_at = self.ask_again_at.map(|at| at.after(by));
        self.opened.deadline = self.opened.deadline.after(by);
    }
}
