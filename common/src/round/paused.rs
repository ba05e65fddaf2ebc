//! Paused: an overlay of any phase. What is under way ends and is recorded; nothing new begins and deadlines stand still.
//! Ends when the operator resumes, or by itself when the storage failed: then after 30 s, doubling up to 10 minutes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{Fault, PauseReason, Timer};
use crate::time::Timestamp;

const FIRST_RETRY: Duration = Duration::from_secs(30);
const LONGEST_RETRY: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pause {
    pub(super) reason: PauseReason,
    pub(super) since: Timestamp,
    /// When it ends without the operator.
    pub(super) retry_at: Option<Timestamp>,
    /// The operator's own words: sites that connect later are told them too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) words: Option<String>,
}

impl Pause {
    pub(super) fn by_operator(now: Timestamp, words: Option<String>) -> Self {
        Self { reason: PauseReason::Operator, since: now, retry_at: None, words }
    }

    /// A pause for a fault that occurred `failures` times in a row.
    pub(super) fn by_fault(reason: PauseReason, failures: u32, now: Timestamp) -> Self {
        let passes = |fault| match fault {
            Fault::StorageFull | Fault::StorageReadOnly | Fault::Storage => true,
            Fault::Numbers => false,
        };
        let patient = match reason {
            PauseReason::Aggregation(fault) | PauseReason::Commit(fault) => passes(fault),
            PauseReason::Operator => false,
        };
        let wait = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST_RETRY);
        Self { reason, since: now, retry_at: patient.then(|| now.after(wait)), words: None }
    }

    pub(super) fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        self.retry_at.map(|at| (Timer::Retry, at)).into_iter().collect()
    }
}
