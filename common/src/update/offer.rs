//! What a site says it has.

use super::Rejection;
use crate::artifact::ArtifactManifest;
use crate::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, StudyDigest};
use crate::wire::{Manifest, OfferedUpdate};

/// What a site says it has for a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateOffer {
    /// The study.
    pub study: StudyDigest,
    /// The round.
    pub round: RoundId,
    /// The global model that the delta starts from.
    pub base: ModelHash,
    /// Idempotency key.
    pub attempt: AttemptId,
    /// Optimiser steps done.
    pub steps: u32,
    /// The delta's tensors and chunk hashes.
    pub manifest: ArtifactManifest,
}

impl UpdateOffer {
    /// The update's name.
    pub fn hash(&self) -> ArtifactHash {
        self.manifest.hash()
    }
}

impl From<&UpdateOffer> for OfferedUpdate {
    fn from(offer: &UpdateOffer) -> Self {
        Self {
            study: offer.study,
            round: offer.round,
            base: offer.base,
            attempt: offer.attempt,
            steps: offer.steps,
            manifest: Manifest::from(&offer.manifest),
        }
    }
}

impl TryFrom<OfferedUpdate> for UpdateOffer {
    type Error = Rejection;

    fn try_from(wire: OfferedUpdate) -> Result<Self, Rejection> {
        let OfferedUpdate { study, round, base, attempt, steps, manifest } = wire;
        let manifest = ArtifactManifest::try_from(manifest).map_err(Rejection::Manifest)?;
        Ok(Self { study, round, base, attempt, steps, manifest })
    }
}
