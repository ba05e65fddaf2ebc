//! Why an update is not wanted: the peer's mistake or misfortune, answered with a stable code.

use crate::ids::{AttemptId, ModelHash, RoundId, StudyDigest};
use crate::study::LeftOut;

/// Why an update is not wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Of another study.
    #[error("update is of study {}; this is {}", .got.short(), .expected.short())]
    WrongStudy {
        /// The study here.
        expected: StudyDigest,
        /// The study of the update.
        got: StudyDigest,
    },
    /// Of a site that the study leaves out.
    #[error(transparent)]
    LeftOut(#[from] LeftOut),
    /// The round takes no more updates.
    #[error("round {round} is closed; the study is at round {current}")]
    RoundClosed {
        /// The round of the update.
        round: RoundId,
        /// The round that the study is at.
        current: RoundId,
    },
    /// The round is not open yet, or not any more at this moment: keep the update and offer it when the round opens.
    #[error("round {round} is not open")]
    RoundNotOpen {
        /// The round of the update.
        round: RoundId,
    },
    /// A delta from another model.
    #[error("update is a delta from model {}; round {round} starts from {}", .got.short(), .expected.short())]
    WrongBase {
        /// The round.
        round: RoundId,
        /// The base of the round.
        expected: ModelHash,
        /// The base of the update.
        got: ModelHash,
    },
    /// Not as many optimiser steps as the study says.
    #[error("update has {got} steps; the study says {expected}")]
    WrongSteps {
        /// Steps of a round.
        expected: u32,
        /// Steps of the update.
        got: u32,
    },
    /// The site was not there when the round opened.
    #[error("the site takes no part in round {round}")]
    NotParticipant {
        /// The round.
        round: RoundId,
    },
    /// Another update of this site counts already.
    #[error("attempt {counted} of this site counts for round {round} already")]
    AlreadyCounted {
        /// The round.
        round: RoundId,
        /// The attempt that counts.
        counted: AttemptId,
    },
    /// The same attempt, with other content.
    #[error("attempt {attempt} was stored with other content")]
    AttemptReused {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The study is over.
    #[error("the study is over")]
    StudyOver,
}

impl Rejection {
    /// A stable short name, for the wire and for metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::WrongStudy { .. } => "wrong-study",
            Self::LeftOut(_) => "left-out",
            Self::RoundClosed { .. } => "round-closed",
            Self::RoundNotOpen { .. } => "round-not-open",
            Self::WrongBase { .. } => "wrong-base",
            Self::WrongSteps { .. } => "wrong-steps",
            Self::NotParticipant { .. } => "not-participant",
            Self::AlreadyCounted { .. } => "already-counted",
            Self::AttemptReused { .. } => "attempt-reused",
            Self::StudyOver => "study-over",
        }
    }
}

/// What the coordinator wants of an offered update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateExpectation {
    /// Send it: it will be checked against this base and, once stored, counted if the round is still open.
    Wanted {
        /// The model whose trainable layout it must have.
        base: ModelHash,
    },
    /// This very update counts already: give the receipt again.
    AlreadyCounted,
}
