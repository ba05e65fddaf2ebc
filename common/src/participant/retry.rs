//! When a step that failed is tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{Action, Fact, Step};
use crate::time::Timestamp;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);

/// Failures of one step in a row and when it is tried again: after 5 s, doubling up to 2 minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) failures: u32,
    pub(super) at: Option<Timestamp>,
}

impl Retry {
    /// Records a failure and schedules the next try.
    pub(super) fn fail(&mut self, step: Step, now: Timestamp, actions: &mut Vec<Action>) {
        self.failures = self.failures.saturating_add(1);
        let at = now.after(FIRST.saturating_mul(1 << (self.failures - 1).min(8)).min(LONGEST));
        self.at = Some(at);
        actions.push(Action::Report(Fact::RetryScheduled { step, failures: self.failures, at }));
    }

    /// Whether the time has come; then it is not scheduled any more.
    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        self.at.take_if(|at| timer_is_due(*at, now)).is_some()
    }
}

/// Whether a timer that was set to `at` is due. One that lies further ahead than any wait was set by a clock that has stepped
/// back since, by a day perhaps: nothing waits for so long.
pub fn timer_is_due(at: Timestamp, now: Timestamp) -> bool {
    at <= now || at.since(now) > LONGEST
}
