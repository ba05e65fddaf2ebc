//! When a step that failed is tried again, and when what ends its process is not begun any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::evaluating::is_zero;
use super::event::{Action, Fact, Step};
use super::phase::Context;
use crate::ids::RoundId;
use crate::time::Timestamp;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// Failures of a step that needs the coordinator, in more than half a minute, after which it holds up no other study: what ends by itself
/// in so short a time is not worth a change of turns.
const FAILURES_IN_THE_WAY: u32 = 3;
/// Ends of its process in the midst of a step after which the step is given up. More than failures: power cuts and kills are not
/// the step's own fault.
pub const MOST_INTERRUPTIONS: u32 = 12;
/// Of the ends that follow each other within this time one counts: something else that takes the machine's memory for a while ends the
/// process each minute. So nothing is given up that did not end it for more than an hour.
pub const BETWEEN_INTERRUPTIONS: Duration = Duration::from_secs(360);

/// Failures of one step in a row and when it is tried again: after 5 s, doubling up to 2 minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) failures: u32,
    pub(super) at: Option<Timestamp>,
    /// How often the process died in the midst of the step, with nothing newer kept, as far as that counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) interruptions: u32,
    /// When that was counted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) interrupted_at: Option<Timestamp>,
}

impl Retry {
    /// Records that the process died in the midst of the step, unless it waited to be tried again; false when that was often
    /// enough: for want of memory, perhaps, it would end there each time.
    pub(super) fn interrupted(&mut self, step: Step, round: RoundId, cx: &mut Context<'_>) -> bool {
        if self.at.is_some() {
            return true;
        }
        // One that is still to come was noted by a clock that has stepped back since.
        let is_apart = |last| last > cx.now || cx.now.since(last) >= BETWEEN_INTERRUPTIONS;
        if self.interrupted_at.is_none_or(is_apart) {
            self.interruptions = self.interruptions.saturating_add(1);
            self.interrupted_at = Some(cx.now);
        }
        cx.report(Fact::Interrupted { step, round, times: self.interruptions });
        self.interruptions < MOST_INTERRUPTIONS
    }

    /// No death of before is held against the step any more.
    pub(super) fn forgive(&mut self) {
        (self.interruptions, self.interrupted_at) = (0, None);
    }

    /// Records a failure and schedules the next try.
    pub(super) fn fail(&mut self, step: Step, now: Timestamp, actions: &mut Vec<Action>) {
        self.failures = self.failures.saturating_add(1);
        let at = now.after(FIRST.saturating_mul(1 << (self.failures - 1).min(8)).min(LONGEST));
        self.at = Some(at);
        actions.push(Action::Report(Fact::RetryScheduled { step, failures: self.failures, at }));
    }

    /// Whether it failed so often that others go before it while it waits for the next try.
    pub(super) const fn makes_way(&self) -> bool {
        self.at.is_some() && self.failures >= FAILURES_IN_THE_WAY
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
