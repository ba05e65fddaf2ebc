//! What a site does for the open round, and what its phases share.

use serde::{Deserialize, Serialize};

use super::downloading::Downloading;
use super::event::{Action, DropReason, Fact};
use super::training::Training;
use super::uploading::Uploading;
use crate::ids::{AttemptId, ModelHash, RoundId, StudyDigest};
use crate::round::UpdateOffer;
use crate::time::Timestamp;

/// What a site does for the open round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    #[default]
    Idle,
    Downloading(Downloading),
    Training(Training),
    Uploading(Uploading),
}

/// What a phase decides with.
pub(super) struct Context<'a> {
    pub(super) connected: bool,
    pub(super) now: Timestamp,
    pub(super) actions: &'a mut Vec<Action>,
}

impl Context<'_> {
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn report(&mut self, fact: Fact) {
        self.actions.push(Action::Report(fact));
    }
}

impl Phase {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Downloading(_) | Self::Training(Training { fetch: Some(_), .. }) => "downloading",
            Self::Training(_) => "training",
            Self::Uploading(_) => "uploading",
        }
    }

    /// Study, round and base of the work under way.
    pub(super) const fn work(&self) -> Option<(StudyDigest, RoundId, ModelHash)> {
        match self {
            Self::Idle => None,
            Self::Downloading(Downloading { task, .. }) | Self::Training(Training { task, .. }) => {
                Some((task.study, task.round, task.base))
            }
            Self::Uploading(Uploading { offer, .. }) => Some((offer.study, offer.round, offer.base)),
        }
    }

    /// The attempt whose update is in the outbox, or may get there.
    pub(super) const fn attempt(&self) -> Option<AttemptId> {
        match self {
            Self::Idle | Self::Downloading(_) => None,
            Self::Training(phase) => Some(phase.attempt),
            Self::Uploading(phase) => Some(phase.offer.attempt),
        }
    }

    /// Asks for the step at hand, for the first time or again. An update is offered when it is its turn.
    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        match self {
            Self::Idle | Self::Uploading(_) => {}
            Self::Downloading(phase) => phase.fetch.ask(cx),
            Self::Training(phase) => phase.ask(cx),
        }
    }

    /// Takes up a step that waits for the coordinator.
    pub(super) fn connected(&self, cx: &mut Context<'_>) {
        if !matches!(self, Self::Training(Training { fetch: None, .. })) {
            self.ask(cx);
        }
    }

    /// The coordinator says again that the round is open: an update that it would not take before may be welcome now.
    pub(super) fn reopened(&mut self) {
        if let Self::Uploading(phase) = self {
            phase.hurry();
        }
    }

    /// Stops whatever is under way; nothing of it is wanted any more.
    pub(super) fn leave(&mut self, reason: DropReason, cx: &mut Context<'_>) {
        if let Some((_, round, _)) = self.work() {
            cx.report(Fact::RoundLeft { round });
        }
        match std::mem::take(self) {
            Self::Idle => {}
            Self::Downloading(phase) => phase.fetch.cancel(cx),
            Self::Training(phase) => phase.leave(cx),
            Self::Uploading(phase) => phase.drop_update(reason, cx),
        }
    }

    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        match self {
            Self::Idle => None,
            Self::Downloading(phase) => phase.fetch.retry.at,
            Self::Training(phase) => phase.retry_at(),
            Self::Uploading(phase) => phase.retry.at,
        }
    }

    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        match self {
            Self::Idle => false,
            Self::Downloading(phase) => phase.fetch.retry.take_due(now),
            Self::Training(phase) => phase.take_due(now),
            Self::Uploading(phase) => phase.retry.take_due(now),
        }
    }

    /// The steps that need the coordinator wait for the next connection.
    pub(super) fn disconnected(&mut self) {
        match self {
            Self::Idle | Self::Training(Training { fetch: None, .. }) => {}
            Self::Downloading(Downloading { fetch, .. })
            | Self::Training(Training { fetch: Some(fetch), .. }) => {
                fetch.retry.at = None;
            }
            Self::Uploading(phase) => phase.disconnected(),
        }
    }
}

impl Uploading {
    /// Empties the outbox and says what became of the update.
    pub(super) fn drop_update(self, reason: DropReason, cx: &mut Context<'_>) {
        let UpdateOffer { study, round, .. } = self.offer;
        cx.report(match &reason {
            DropReason::Counted => Fact::UpdateCounted { round },
            _ => Fact::UpdateDropped { study, round, reason: reason.clone() },
        });
        cx.act(Action::DropUpdate { attempt: self.offer.attempt, reason });
    }
}
