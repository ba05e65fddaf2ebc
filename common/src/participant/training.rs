//! Training: runs whether connected or not. Ends with the update in the outbox, or with the round. A restart goes on with
//! the same attempt; after three failures in a row the site declines the round.

use serde::{Deserialize, Serialize};

use super::event::{Action, Step};
use super::phase::Context;
use super::retry::Retry;
use crate::ids::AttemptId;
use crate::round::RoundTask;

/// Failures after which the round is declined.
const MOST_FAILURES: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Training {
    pub(super) task: RoundTask,
    pub(super) attempt: AttemptId,
    pub(super) retry: Retry,
}

impl Training {
    pub(super) fn begin(task: RoundTask, attempt: AttemptId, cx: &mut Context<'_>) -> Self {
        let phase = Self { task, attempt, retry: Retry::default() };
        phase.ask(cx);
        phase
    }

    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        cx.act(Action::Train { task: self.task.clone(), attempt: self.attempt });
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
