//! What the machine has to say to the operator ([`Fact`]). Nothing follows from one: words for it are the driver's.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::coverage::ClassShortage;
use super::event::{DeclineReason, PauseReason, Term};
use super::exclusion::Exclusion;
use crate::ids::{AttemptId, ClassId, ModelHash, RoundId, SiteId};
use crate::time::Timestamp;

/// Something worth a line to the operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A round was opened.
    RoundOpened {
        /// The round.
        round: RoundId,
        /// The sites that were asked.
        sites: BTreeSet<SiteId>,
    },
    /// A site takes part.
    SiteAccepted {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
    },
    /// A site does not take part.
    SiteDeclined {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// A site is not asked: it has too little to train on. Said once for each reason.
    SiteExcluded {
        /// The site.
        site: SiteId,
        /// Why.
        reason: Exclusion,
    },
    /// A site did not answer in time; its update would still count.
    SiteSilent {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
    },
    /// A participant was revoked before it sent its update: the round goes on without it.
    SiteRevoked {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
    },
    /// An update counts.
    UpdateCounted {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// An update of the round before, which closed without it, counts in this one for less.
    LateUpdateTaken {
        /// The site.
        site: SiteId,
        /// The round that it counts in.
        round: RoundId,
        /// The round that it was trained for.
        trained_for: RoundId,
    },
    /// An update was sent again: answered, not counted.
    UpdateDuplicated {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
    },
    /// An update that counted is lost here; its site is asked again.
    UpdateLost {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
    },
    /// A late update that counted is gone from the store: the round goes on without it, for its own is long over.
    LateUpdateLost {
        /// The site.
        site: SiteId,
        /// The round that it was trained for.
        trained_for: RoundId,
    },
    /// An update does not count.
    UpdateRefused {
        /// The site.
        site: SiteId,
        /// [`Rejection::code`](super::Rejection::code).
        code: &'static str,
    },
    /// The round cannot end for want of updates; it ends by itself when they arrive.
    QuorumMissing {
        /// The round.
        round: RoundId,
        /// Updates there.
        have: u32,
        /// Updates needed.
        need: u32,
        /// Classes of which there are too few, however many there are in all.
        classes: BTreeMap<ClassId, ClassShortage>,
    },
    /// Aggregation began.
    RoundAggregating {
        /// The round.
        round: RoundId,
        /// The summands.
        terms: Vec<Term>,
    },
    /// The share of a site was lowered to the cap.
    ShareCapped {
        /// The site.
        site: SiteId,
        /// The cap.
        max_site_weight: f64,
    },
    /// No responder has weight under the study's weighting: all count the same this round.
    FellBackToUniform {
        /// The round.
        round: RoundId,
    },
    /// The model of a round is durable.
    RoundCommitted {
        /// The round.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// The study is paused.
    Paused {
        /// Why.
        reason: PauseReason,
        /// The operator's own words, if he gave any.
        words: Option<String>,
        /// When it is tried again without the operator.
        retry_at: Option<Timestamp>,
    },
    /// The study goes on.
    Resumed,
    /// All rounds are committed.
    StudyFinished {
        /// The last model.
        model: ModelHash,
    },
    /// The operator ended the study.
    StudyAborted {
        /// The last durable model.
        model: ModelHash,
    },
    /// An event that changes nothing here: late, duplicate or of an unknown site.
    EventIgnored {
        /// [`Event::name`](super::Event::name).
        event: &'static str,
        /// Name of the phase.
        phase: &'static str,
    },
}
