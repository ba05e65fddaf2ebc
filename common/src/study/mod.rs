//! A study: everything that sites must agree on before they train together, in one JSON document.
//!
//! The document's digest covers its exact bytes, and a site approves that digest. The operator writes a [`StudyDraft`]
//! (TOML, `configs/examples/study.toml`); with the taxonomy and the artifacts of initial model and embeddings it becomes a
//! [`StudyDocument`]. Sections are in [`sections`], their ranges in `check`, aggregation in `strategy`, the learning rate in [`schedule`];
//! `settings` says all of it in words.

mod check;
mod draft;
pub mod schedule;
pub mod sections;
pub mod settings;
mod strategy;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::config::Diagnostics;
use crate::ids::{Digest, ModelHash, Role, RoundId, SiteId, StudyDigest};
use crate::taxonomy::Taxonomy;
pub use draft::{CLASS_TABLE_TENSOR, EMBEDDING_TENSOR, EmbeddingsDraft, StudyDraft};
use sections::{
    Aggregation, Embeddings, Evaluation, ModelConfig, Participants, Preprocessing, Quorum, Sampling, Training,
};

/// Largest study document in bytes.
pub const MAX_STUDY_BYTES: usize = 4 << 20;

/// What is trained, on what terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    format: String,
    /// Name, as shown.
    pub name: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// Training rounds are 1 to `rounds`; the model of round 0 is the initial one.
    pub rounds: u32,
    /// The network.
    pub model: ModelConfig,
    /// The model that round 1 starts from.
    pub initial_model: ModelHash,
    /// The class embeddings.
    pub embeddings: Embeddings,
    /// From scan to network input.
    pub preprocessing: Preprocessing,
    /// From case to patch.
    pub sampling: Sampling,
    /// Local work of one round.
    pub training: Training,
    /// From updates to the next global model.
    pub aggregation: Aggregation,
    /// When a round may close.
    pub quorum: Quorum,
    /// Who takes part. Not written where everybody does: such a study keeps the digest that it always had.
    #[serde(default, skip_serializing_if = "Participants::is_everyone")]
    pub participants: Participants,
    /// How models are scored.
    pub evaluation: Evaluation,
    /// The classes.
    pub taxonomy: Taxonomy,
}

/// A trainer that a study leaves out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this study leaves {site} out: it is scored there, not trained")]
pub struct LeftOut {
    /// Which.
    pub site: SiteId,
}

impl Study {
    /// Whether a site of this role may take part. An evaluator may always: it never trains.
    ///
    /// # Errors
    /// [`LeftOut`] for a trainer that the study names.
    pub fn admit(&self, site: &SiteId, role: Role) -> Result<(), LeftOut> {
        match role {
            Role::Trainer if self.participants.leave_out.contains(site) => {
                Err(LeftOut { site: site.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Learning rate of `round` (1 to [`Study::rounds`]), the same at every site.
    ///
    /// The schedule's end, where the rate is 0, lies one round after the last: the published schedule spends its last epoch
    /// at rate 0, which in a short study would be a wasted round.
    pub fn learning_rate(&self, round: RoundId) -> f64 {
        let end = self.rounds.saturating_add(1);
        schedule::warmup_cosine(self.training.optimizer.base_lr, self.training.warmup_rounds, end, round.0)
    }
}

/// A valid study, its exact bytes and their digest.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyDocument {
    bytes: Vec<u8>,
    digest: StudyDigest,
    study: Study,
}

impl StudyDocument {
    /// Reads foreign bytes. They must be in canonical form, the one that [`StudyDocument::of`] writes: every setting is
    /// stated (none falls back to a default that another version may have changed), and one study has one digest.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Diagnostics> {
        let file = "study";
        if bytes.len() > MAX_STUDY_BYTES {
            return Err(Diagnostics::whole_file(file, format!("longer than {MAX_STUDY_BYTES} bytes")));
        }
        let study: Study = serde_json::from_slice(&bytes)
            .map_err(|error| Diagnostics::whole_file(file, error.to_string()))?;
        check::study(&study).into_result(file)?;
        let document = Self::of_checked(study);
        if document.bytes != bytes {
            return Err(Diagnostics::whole_file(file, "is not in canonical form"));
        }
        Ok(document)
    }

    /// The document of a study built from parts.
    ///
    /// # Errors
    /// What is wrong with the study.
    pub fn of(study: Study) -> Result<Self, Diagnostics> {
        check::study(&study).into_result("study")?;
        Ok(Self::of_checked(study))
    }

    fn of_checked(study: Study) -> Self {
        // Invariant: every field has a JSON form (numbers are finite, checked).
        let bytes = serde_json::to_vec_pretty(&study).expect("a study has a JSON form");
        Self { digest: StudyDigest(Digest::of(&bytes)), bytes, study }
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What sites approve.
    pub fn digest(&self) -> StudyDigest {
        self.digest
    }

    /// The study.
    pub fn study(&self) -> &Study {
        &self.study
    }
}
