//! Who is to score which model, and who has: keyed by model hash, beside the rounds.
//!
//! Each model that is asked for is asked of every evaluator once, and again at each of its connections until its report is
//! stored. Rounds do not wait for it, unless the study has a gate: then [`Action::OpenGate`] says when the next may open.
//! A `test` evaluator is sealed: it is asked about promoted models alone. Reports themselves are the driver's to keep.
//!
//! ```text
//! EvaluationMachine::new(study, gate) | restore(study, gate, snapshot) | replay(study, gate, snapshot, entries)
//!   .tick(event, now) -> Vec<Action>
//!   .expect_report(site, model) -> Result<ReportExpectation, Rejection>   asked before a report is accepted
//!   .outstanding(now) -> Vec<Action>
//!   .snapshot()
//! ```

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, ModelHash, RoundId, SiteId};
use crate::time::Timestamp;

/// Something that happened. Serialisable because the coordinator's journal is a list of these, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A durable model is to be evaluated ([`crate::round::Action::Evaluate`]).
    Requested {
        /// The round that made it.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// The operator promoted a model: sealed test sites are asked about it too.
    Promoted {
        /// The model.
        model: ModelHash,
    },
    /// A connected evaluator has approved the study. Sent at every connection.
    EvaluatorReady {
        /// The site.
        site: SiteId,
        /// What it is for.
        kind: EvaluatorKind,
    },
    /// The connection to an evaluator ended, or its certificate was revoked.
    EvaluatorGone {
        /// The site.
        site: SiteId,
    },
    /// A report was verified and is durable.
    ReportStored {
        /// The site.
        site: SiteId,
        /// The model.
        model: ModelHash,
        /// Digest of the signed bytes.
        report: Digest,
    },
    /// A timer set by [`Action::SetTimer`] is due.
    TimerFired(Timer),
}

/// What an evaluator is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvaluatorKind {
    /// Model selection and gates.
    Validation,
    /// Sealed: scores promoted models alone.
    Test,
}

/// A wake-up of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// The gate opens though reports are missing.
    Gate,
}

/// Something to do; idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a connected evaluator for its report.
    RequestEvaluation {
        /// The site.
        to: SiteId,
        /// The round that made the model.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// Feed [`crate::round::Event::GateOpened`] to the round machine.
    OpenGate {
        /// The model.
        model: ModelHash,
        /// Evaluators whose reports did not come in time.
        missing: Vec<SiteId>,
    },
    /// Give `site` its receipt: the report is journalled. Also the answer to a duplicate.
    Acknowledge {
        /// The site.
        site: SiteId,
        /// The model.
        model: ModelHash,
        /// Digest of the report that is kept.
        report: Digest,
    },
    /// Tell `site` that its stored report is not kept.
    Refuse {
        /// The site.
        site: SiteId,
        /// The model.
        model: ModelHash,
        /// Why not.
        rejection: Rejection,
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

/// Something worth a line to the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A report is kept.
    ReportKept {
        /// The site.
        site: SiteId,
        /// The model.
        model: ModelHash,
    },
    /// The oldest model made room for a newer one; reports on it are not asked for any more.
    ModelForgotten {
        /// The model.
        model: ModelHash,
    },
    /// The gate opened though these reports are missing.
    GateTimedOut {
        /// The model.
        model: ModelHash,
        /// Evaluators.
        missing: Vec<SiteId>,
    },
}

/// Why a report is not wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No report on this model was asked for.
    #[error("no report on model {model:?} was asked for")]
    UnknownModel {
        /// The model.
        model: ModelHash,
    },
    /// A sealed test site may score promoted models alone.
    #[error("model {model:?} is not promoted; test sites score promoted models alone")]
    Sealed {
        /// The model.
        model: ModelHash,
    },
    /// The site is not known as an evaluator of this study.
    #[error("the site is no evaluator of this study")]
    NotEvaluator,
    /// Another report of this site on this model is kept.
    #[error("another report on model {model:?} is kept already")]
    AlreadyReported {
        /// The model.
        model: ModelHash,
        /// Digest of the report that is kept.
        kept: Digest,
    },
}

impl Rejection {
    /// A stable short name, for the wire and for metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "unknown-model",
            Self::Sealed { .. } => "sealed",
            Self::NotEvaluator => "not-evaluator",
            Self::AlreadyReported { .. } => "already-reported",
        }
    }
}

/// What the coordinator wants of an offered report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportExpectation {
    /// Verify and store it.
    Wanted,
    /// This very report is kept already: give the receipt again.
    AlreadyKept,
}
