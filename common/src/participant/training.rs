//! Training: runs whether connected or not. Ends with the update in the outbox, or with the round. A restart goes on with
//! the same attempt; after three failures in a row the site declines the round. An update that the disk loses before it was
//! answered is such a failure too.
//!
//! A process that dies in mid-training again and again for more than an hour, with nothing newer kept of the round, does so because of
//! the training, for want of memory perhaps: then the site declines the round too.
//!
//! A model that is damaged or gone after a crash is fetched again, and training waits for it: that is no failure of the round,
//! unless the same happens again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::downloading::Fetch;
use super::evaluating::is_zero;
use super::event::{Action, Step};
use super::phase::Context;
use super::retry::Retry;
use crate::ids::{ArtifactHash, AttemptId};
use crate::round::RoundTask;
use crate::time::Timestamp;

/// Failures after which the round is declined.
const MOST_FAILURES: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Training {
    pub(super) task: RoundTask,
    pub(super) attempt: AttemptId,
    pub(super) retry: Retry,
    /// What is fetched again: training waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fetch: Option<Fetch>,
    /// What was lost so far.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    lost: BTreeSet<ArtifactHash>,
    /// Steps of the round that are durable here, as far as was said.
    #[serde(default, skip_serializing_if = "is_zero")]
    kept: u32,
}

impl Training {
    pub(super) fn begin(task: RoundTask, attempt: AttemptId, cx: &mut Context<'_>) -> Self {
        let phase = Self::after(0, task, attempt);
        phase.ask(cx);
        phase
    }

    /// The same training once more, after so many failures; nothing is asked for yet.
    pub(super) fn after(failures: u32, task: RoundTask, attempt: AttemptId) -> Self {
        let retry = Retry { failures, ..Retry::default() };
        Self { task, attempt, retry, fetch: None, lost: BTreeSet::new(), kept: 0 }
    }

    /// False when it failed so often that it is not tried again.
    pub(super) const fn goes_on(&self) -> bool {
        self.retry.failures < MOST_FAILURES
    }

    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        match &self.fetch {
            Some(fetch) => fetch.ask(cx),
            None => cx.act(Action::Train { task: self.task.clone(), attempt: self.attempt }),
        }
    }

    /// Fetches an artifact again; false when it was lost so often that something else must be wrong.
    pub(super) fn lost(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        // One at a time: another that is lost shows at the next try.
        if self.fetch.is_some() {
            return true;
        }
        if !self.lost.insert(artifact) {
            self.retry.failures = self.retry.failures.saturating_add(1);
            if !self.goes_on() {
                return false;
            }
        }
        self.retry.at = None;
        self.fetch = Some(Fetch::begin([artifact].into(), cx));
        true
    }

    /// True when `artifact` was waited for; once all is here, training goes on.
    pub(super) fn stored(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        let Some(fetch) = &mut self.fetch else { return false };
        let ours = fetch.stored(artifact);
        if fetch.complete() {
            self.fetch = None;
            self.ask(cx);
        }
        ours
    }

    pub(super) fn leave(self, cx: &mut Context<'_>) {
        if let Some(fetch) = &self.fetch {
            fetch.cancel(cx);
        }
        cx.act(Action::CancelTraining { attempt: self.attempt });
    }

    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        self.fetch.as_ref().map_or(self.retry, |fetch| fetch.retry).at
    }

    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        self.fetch.as_mut().map_or(&mut self.retry, |fetch| &mut fetch.retry).take_due(now)
    }

    /// The round is durable up to a step: a process that ends from here on did not do so for what was before. False when that is
    /// no news. An earlier step is: what was kept was damaged, and training has begun anew.
    pub(super) fn kept(&mut self, step: u32) -> bool {
        let is_news = step != self.kept;
        if is_news {
            self.kept = step;
            self.retry.forgive();
        }
        is_news
    }

    /// The process died; false when it did so too often in the midst of this.
    pub(super) fn interrupted(&mut self, cx: &mut Context<'_>) -> bool {
        self.fetch.is_some() || self.retry.interrupted(Step::Training, self.task.round, cx)
    }

    /// Schedules another try; false when there were enough.
    pub(super) fn failed(&mut self, cx: &mut Context<'_>) -> bool {
        if self.retry.failures + 1 >= MOST_FAILURES {
            return false;
        }
        self.retry.fail(Step::Training, cx.now, cx.actions);
        true
    }
}
