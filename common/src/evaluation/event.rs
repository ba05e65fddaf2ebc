//! What happens to the evaluations of a study ([`Event`]) and what is to be done about it ([`Action`]).

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, ModelHash, RoundId, SiteId};
use crate::time::Timestamp;

/// Something that happened. Serialisable because the coordinator's journal is a list of these, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The coordinator started again from its journal: nobody is connected.
    Restarted,
    /// A durable model is to be evaluated ([`crate::round::Action::Evaluate`]).
    Requested {
        /// The round that made it.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// The operator promoted a model: sealed test sites are asked about it too.
    Promoted {
        /// The round that made it.
        round: RoundId,
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
    /// The connection to an evaluator ended.
    EvaluatorGone {
        /// The site.
        site: SiteId,
    },
    /// The site is no evaluator of the study, or not any more: its membership was ended, or updates of it are in the models.
    /// Nobody waits for its reports until it is ready again.
    EvaluatorLeft {
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
    /// Nobody waits for reports of this site any more.
    EvaluatorLeft {
        /// The site.
        site: SiteId,
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
    /// A report is not kept.
    ReportRefused {
        /// The site.
        site: SiteId,
        /// [`Rejection::code`].
        code: &'static str,
    },
}

/// Why a report is not wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No report on this model was asked for.
    #[error("no report on model {} was asked for", .model.short())]
    UnknownModel {
        /// The model.
        model: ModelHash,
    },
    /// A sealed test site may score promoted models alone.
    #[error("model {} is not promoted; test sites score promoted models alone", .model.short())]
    Sealed {
        /// The model.
        model: ModelHash,
    },
    /// The site is not known as an evaluator of this study.
    #[error("the site is no evaluator of this study")]
    NotEvaluator,
    /// Another report of this site on this model is kept.
    #[error("another report on model {} is kept already", .model.short())]
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
    /// Verify and store it, if it says that the model is of this round.
    Wanted {
        /// The round that made the model.
        round: RoundId,
    },
    /// This very report is kept already: give the receipt again.
    AlreadyKept,
}
