//! Why an update's content is not taken.

use crate::artifact::LayoutError;
use crate::ids::{ModelHash, RoundId, StudyDigest};
use crate::wire::{ChunkError, Refusal, RefusalCode};

/// Why an update's content is not taken; whether an offer is wanted at all is for [`crate::round`] to say. The peer's fault or bad luck, never ours: counted, answered, life goes on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// Of another study.
    #[error("the update is of study {}, expected {}", .got.short(), .expected.short())]
    WrongStudy {
        /// The study here.
        expected: StudyDigest,
        /// The study named.
        got: StudyDigest,
    },
    /// Of another round.
    #[error("the update is of round {got}, expected {expected}")]
    WrongRound {
        /// The open round.
        expected: RoundId,
        /// The round named.
        got: RoundId,
    },
    /// The delta starts from another model.
    #[error("the update starts from model {}, the round from {}", .got.short(), .expected.short())]
    WrongBase {
        /// The round's global model.
        expected: ModelHash,
        /// The base named.
        got: ModelHash,
    },
    /// The manifest is no manifest.
    #[error("the update's manifest: {0}")]
    Manifest(#[source] LayoutError),
    /// The tensors are not the model's trainable ones.
    #[error("the update's tensors differ from the model's: {difference}")]
    WrongLayout {
        /// The first difference.
        difference: String,
    },
    /// Bytes that are not the chunk announced.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A number that is not finite.
    #[error("tensor {tensor}: element {element} is not finite")]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Its position in the tensor, C order.
        element: u64,
    },
    /// The delta is too large.
    #[error("the update's norm is {got:.6}, the study allows {limit:.6}")]
    NormExceeded {
        /// The study's limit.
        limit: f64,
        /// The norm.
        got: f64,
    },
    /// Chunks are missing.
    #[error("{missing} of {chunks} chunks are missing")]
    Incomplete {
        /// How many.
        missing: usize,
        /// Chunks of the update.
        chunks: usize,
    },
}

impl Rejection {
    /// The kind, as the site is told.
    pub const fn refusal_code(&self) -> RefusalCode {
        match self {
            Self::WrongStudy { .. } => RefusalCode::WrongStudy,
            Self::WrongRound { .. } => RefusalCode::RoundClosed,
            Self::WrongBase { .. } => RefusalCode::WrongBase,
            Self::Manifest(_) | Self::WrongLayout { .. } => RefusalCode::WrongLayout,
            Self::Chunk(_) => RefusalCode::BadChunk,
            Self::NotFinite { .. } => RefusalCode::NotFinite,
            Self::NormExceeded { .. } => RefusalCode::NormExceeded,
            Self::Incomplete { .. } => RefusalCode::Incomplete,
        }
    }

    /// Short stable name for logs and metrics.
    pub const fn code(&self) -> &'static str {
        self.refusal_code().code()
    }

    /// What the site is told: all that a rejection says came from the site itself or from the study.
    pub fn refusal(&self) -> Refusal {
        Refusal::new(self.refusal_code(), self.to_string())
    }
}
