//! What happens to a study's rounds ([`Event`]) and what is to be done about it ([`Action`]). What is worth a line to the operator is in
//! `fact`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::fact::Fact;
use super::rejection::Rejection;
use crate::aggregate::weights::SiteCounts;
use crate::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, SiteId, StudyDigest};
use crate::time::Timestamp;

/// Something that happened. Serialisable because the coordinator's journal is a list of these, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The coordinator started again from its journal: nobody is connected. The answer is whatever was under way.
    Restarted,
    /// The operator starts the study.
    Start,
    /// The operator pauses the study: what is under way ends and is taken, nothing new begins, deadlines stand still.
    Pause,
    /// The same, with the operator's reason: the sites are told.
    PauseFor {
        /// Why, in words.
        words: String,
    },
    /// The operator resumes a paused study, or retries what failed; when a quorum is missing, asks the sites that are
    /// ready now, those too that were not there when the round opened, and counts on the absent ones no more.
    Resume,
    /// The operator ends the study; its last committed model stands.
    Abort,
    /// The trainers that are enrolled and not revoked. A round that has its quorum still waits a little for these; one that
    /// is open lets go of all others.
    TrainersExpected {
        /// All of them.
        sites: BTreeSet<SiteId>,
    },
    /// A connected trainer has approved the study and registered its manifest. Sent at every connection: the machine
    /// answers with whatever concerns that site.
    SiteReady {
        /// The site.
        site: SiteId,
        /// What its manifest says; a round under way keeps the counts that it opened with.
        counts: SiteCounts,
    },
    /// The connection to a trainer ended, or its certificate was revoked.
    SiteGone {
        /// The site.
        site: SiteId,
    },
    /// A site takes part.
    RoundAccepted {
        /// The site.
        site: SiteId,
        /// The round it means.
        round: RoundId,
    },
    /// A site does not take part, or cannot go on.
    RoundDeclined {
        /// The site.
        site: SiteId,
        /// The round it means; 0 when it speaks of its data before it was asked.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// An update was verified and is durable.
    UpdateStored {
        /// The site, as its certificate says.
        site: SiteId,
        /// What it offered.
        offer: UpdateOffer,
    },
    /// An update that counts is gone from the store, or is not what was stored any more: its site is asked again.
    UpdateLost {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
        /// The attempt that counted.
        attempt: AttemptId,
    },
    /// The aggregated model of `round` is computed (and not yet durable).
    Aggregated {
        /// The round.
        round: RoundId,
        /// The new model.
        model: ModelHash,
    },
    /// The model of `round` could not be computed.
    AggregationFailed {
        /// The round.
        round: RoundId,
        /// Why.
        fault: Fault,
    },
    /// The model of `round` is durable.
    Committed {
        /// The round.
        round: RoundId,
        /// The new model.
        model: ModelHash,
    },
    /// The model of `round` could not be made durable.
    CommitFailed {
        /// The round.
        round: RoundId,
        /// Why.
        fault: Fault,
    },
    /// The evaluation machine lets the round after `model` open ([`crate::evaluation::Action::OpenGate`]).
    GateOpened {
        /// The model.
        model: ModelHash,
    },
    /// A timer set by [`Action::SetTimer`] is due.
    TimerFired(Timer),
}

/// What a site says of the update that it has: the same in an offer and in what is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateOffer {
    /// The study.
    pub study: StudyDigest,
    /// The round that it was trained for.
    pub round: RoundId,
    /// The model that it is a delta from.
    pub base: ModelHash,
    /// Idempotency key.
    pub attempt: AttemptId,
    /// Optimiser steps done.
    pub steps: u32,
    /// Digest of its manifest.
    pub update: ArtifactHash,
}

/// Why a site does not take part. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclineReason {
    /// The site has not approved this study.
    NotApproved,
    /// The site's policy forbids it, or its operator has refused the study.
    Policy,
    /// Training failed more than once.
    TrainingFailed,
    /// The site evaluates and never trains.
    Evaluator,
    /// No training scan of the site annotates a class of the study. Of all rounds, until it registers a manifest.
    NoData,
    /// The site cannot use its training scans. Of all rounds, until it registers a manifest.
    DataError,
    /// The site is still at the round before, whose update counts late, or at a round of another study. It takes part if it is
    /// done in time.
    Busy,
}

impl DeclineReason {
    /// A stable short name, for the wire and for metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotApproved => "not-approved",
            Self::Policy => "policy",
            Self::TrainingFailed => "training-failed",
            Self::Evaluator => "evaluator",
            Self::NoData => "no-data",
            Self::DataError => "data-error",
            Self::Busy => "busy",
        }
    }
}

/// Why the coordinator could not do what it set out to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// No space left: worth trying again without anybody's help.
    StorageFull,
    /// The storage takes nothing: worth trying again too.
    StorageReadOnly,
    /// The storage failed otherwise: that may pass, or somebody puts back what is missing.
    Storage,
    /// The numbers cannot be aggregated (not finite): trying again would give the same.
    Numbers,
}

/// Why a study is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseReason {
    /// The operator said so.
    Operator,
    /// Aggregation failed.
    Aggregation(Fault),
    /// The commit failed.
    Commit(Fault),
}

/// A wake-up of the machine; at most one of each is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// End of the wait for further expected sites before a round opens.
    Gather,
    /// End of the time to accept a round.
    Accept,
    /// End of the time to answer a round.
    Deadline,
    /// Time to ask again: the sites when a quorum is missing, the storage when it failed.
    Retry,
}

/// What a site is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundTask {
    /// The study.
    pub study: StudyDigest,
    /// The round.
    pub round: RoundId,
    /// The model to train from.
    pub base: ModelHash,
    /// Optimiser steps to do.
    pub steps: u32,
    /// Time left until the deadline when this was said, milliseconds.
    pub remaining_ms: u64,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundOutcome {
    /// Its model is durable.
    Committed,
    /// The study was aborted.
    Aborted,
}

/// One summand of an aggregate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    /// The site.
    pub site: SiteId,
    /// The round that its update was trained for: the one that is aggregated, or, of a late one, the one before.
    pub round: RoundId,
    /// The model that its update is a delta from.
    pub base: ModelHash,
    /// The attempt that counted.
    pub attempt: AttemptId,
    /// The stored update.
    pub update: ArtifactHash,
    /// The site's share, 0 to 1; the shares of a round sum to 1.
    pub share: f64,
}

/// Something to do. All are idempotent: after a crash `outstanding` may ask for one that was already done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell these sites about the round.
    OpenRound {
        /// What they are asked.
        task: RoundTask,
        /// Whom to tell, if connected.
        to: BTreeSet<SiteId>,
    },
    /// Tell every connected site that a round ended.
    CloseRound {
        /// The round.
        round: RoundId,
        /// Its model, when it has one: durable.
        model: Option<ModelHash>,
        /// How it ended.
        outcome: RoundOutcome,
    },
    /// Give `site` its receipt: the update is counted and journalled. Also the answer to a duplicate.
    Acknowledge {
        /// The site.
        site: SiteId,
        /// The round.
        round: RoundId,
        /// The attempt.
        attempt: AttemptId,
        /// The update.
        update: ArtifactHash,
    },
    /// Tell `site` that its stored update does not count; the stored bytes can go.
    Refuse {
        /// The site.
        site: SiteId,
        /// The attempt.
        attempt: AttemptId,
        /// Why not.
        rejection: Rejection,
    },
    /// Compute the new model; comes back as `Aggregated` or `AggregationFailed`.
    Aggregate {
        /// The round.
        round: RoundId,
        /// The model that the updates are deltas from.
        base: ModelHash,
        /// The summands, ascending by site.
        terms: Vec<Term>,
        /// Server learning rate η.
        server_lr: f64,
    },
    /// Make the new model durable; comes back as `Committed` or `CommitFailed`.
    Commit {
        /// The round.
        round: RoundId,
        /// The new model.
        model: ModelHash,
    },
    /// Have the evaluation machine ask for reports on this durable model.
    Evaluate {
        /// The round that made it.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// Tell these sites that the study is paused.
    AnnouncePaused {
        /// Why.
        reason: PauseReason,
        /// The operator's own words, if he gave any.
        words: Option<String>,
        /// Whom to tell.
        to: BTreeSet<SiteId>,
    },
    /// Tell every connected site that the study is over, if it [`is_over_for`](super::RoundMachine::is_over_for) its role:
    /// those too that have not approved it, for whom it waits no more. Who connects later is told then.
    AnnounceFinished {
        /// Its last durable model.
        model: ModelHash,
    },
    /// Send `TimerFired(timer)` at `at`; replaces an earlier setting.
    SetTimer {
        /// Which.
        timer: Timer,
        /// When.
        at: Timestamp,
    },
    /// Forget a timer.
    ClearTimer(Timer),
    /// Say it to the operator.
    Report(Fact),
}

impl Event {
    /// A stable short name, for logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::PauseFor { .. } => "pause-for",
            Self::Resume => "resume",
            Self::Abort => "abort",
            Self::TrainersExpected { .. } => "trainers-expected",
            Self::SiteReady { .. } => "site-ready",
            Self::SiteGone { .. } => "site-gone",
            Self::RoundAccepted { .. } => "round-accepted",
            Self::RoundDeclined { .. } => "round-declined",
            Self::UpdateStored { .. } => "update-stored",
            Self::UpdateLost { .. } => "update-lost",
            Self::Aggregated { .. } => "aggregated",
            Self::AggregationFailed { .. } => "aggregation-failed",
            Self::Committed { .. } => "committed",
            Self::CommitFailed { .. } => "commit-failed",
            Self::GateOpened { .. } => "gate-opened",
            Self::TimerFired(_) => "timer-fired",
        }
    }
}
