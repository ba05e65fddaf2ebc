//! Uploading: the update is durable in the outbox and offered, at each connection and after each failure, until the
//! coordinator gives a receipt or refuses it. Also after a restart: the answer says whether its round is still open. One that
//! the disk has changed is trained again, but not for ever.
//!
//! An update that is not taken time and again, because the coordinator cannot read its study, say, or pauses it between two rounds, makes
//! way for the rounds of other studies ([`Aside`]). Sending needs no device: it is offered all the same, one update at a time.

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

/// An update that made way for the rounds of other studies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Aside {
    pub(super) update: Uploading,
    /// It is older than the connection, on which the coordinator has not named its round yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unconfirmed: bool,
}

impl Uploading {
    pub(super) fn new(offer: UpdateOffer, failures: u32) -> Self {
        Self { offer, retry: Retry::default(), offered: false, failures }
    }

    pub(super) fn offer(&mut self, cx: &mut Context<'_>) {
        self.offered = true;
        cx.act(Action::OfferUpdate { offer: self.offer.clone() });
    }

    /// Whatever it waited for: it is to be offered as soon as it can be.
    pub(super) fn hurry(&mut self) {
        self.retry.at = None;
    }

    /// What is under way ends with the connection.
    pub(super) fn disconnected(&mut self) {
        (self.offered, self.retry.at) = (false, None);
    }

    /// The offer came to nothing, but may be made again.
    pub(super) fn failed(&mut self, cx: &mut Context<'_>) {
        self.offered = false;
        if cx.connected {
            self.retry.fail(Step::Upload, cx.now, cx.actions);
        }
    }
}
