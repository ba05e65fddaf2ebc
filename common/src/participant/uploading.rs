//! Uploading: the update is durable in the outbox and offered, at each connection and after each failure, until the
//! coordinator gives a receipt or refuses it. Also after a restart: the answer says whether its round is still open. One that
//! the disk has changed is trained again, but not for ever.

use serde::{Deserialize, Serialize};

use super::evaluating::is_zero;
use super::event::{Action, Step};
use super::phase::Context;
use super::retry::Retry;
use crate::round::UpdateOffer;

/// Refusals after which the update is kept and offered again: its round may open yet, the coordinator forgot the offer or lacks
/// chunks, or the site waits for a new certificate.
pub(super) const KEEP_CODES: [&str; 4] =
    ["round-not-open", "unknown-attempt", "incomplete", "certificate-expired"];

/// Refusal of an update by this site's own policy: this time it did not leave.
pub const WITHHELD_CODE: &str = "withheld";

/// Refusal of an update that is not what it was when it was offered: the site's disk changed it.
pub(super) const DAMAGED_CODE: &str = "bad-chunk";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uploading {
    pub(super) offer: UpdateOffer,
    pub(super) retry: Retry,
    /// An offer is under way.
    pub(super) offered: bool,
    /// Failures of the training that made it: that it is lost is one more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) failures: u32,
}

impl Uploading {
    pub(super) fn begin(offer: UpdateOffer, failures: u32, cx: &mut Context<'_>) -> Self {
        let mut phase = Self { offer, retry: Retry::default(), offered: false, failures };
        phase.ask(cx);
        phase
    }

    pub(super) fn ask(&mut self, cx: &mut Context<'_>) {
        if cx.connected && !self.offered {
            (self.offered, self.retry.at) = (true, None);
            cx.act(Action::OfferUpdate { offer: self.offer.clone() });
        }
    }

    /// The offer came to nothing, but may be made again.
    pub(super) fn failed(&mut self, cx: &mut Context<'_>) {
        self.offered = false;
        if cx.connected {
            self.retry.fail(Step::Upload, cx.now, cx.actions);
        }
    }
}
