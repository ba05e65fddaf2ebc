//! What sees every chunk, and alone makes an update that can be believed.

use super::{CheckedChunk, Rejection, UpdateOffer, Verification};
use crate::artifact::{ArtifactManifest, TensorLayout};
use crate::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, SiteId, StudyDigest};
use crate::wire::ChunkError;

/// What the content of an update must be, for one whose offer [`crate::round`] wants.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateExpectation {
    /// The site, from its certificate.
    pub site: SiteId,
    /// The study.
    pub study: StudyDigest,
    /// The open round.
    pub round: RoundId,
    /// The round's global model.
    pub base: ModelHash,
    /// The model's trainable tensors: the layout of the global model's artifact, in the format that the study's updates have.
    pub layout: TensorLayout,
    /// Largest Euclidean norm of the whole delta, if the study limits it.
    pub max_norm: Option<f64>,
}

/// Checks an update chunk by chunk, in any order.
#[derive(Debug)]
pub struct UpdateVerifier {
    expectation: UpdateExpectation,
    offer: UpdateOffer,
    /// Squared norm of each chunk that came: summed in order of index at the end, so that the order of arrival cannot
    /// change the norm by a bit.
    squares: Vec<Option<f64>>,
    /// The norm, where this content was verified before.
    recalled: Option<f64>,
}

impl UpdateVerifier {
    /// Compares the offer with what is expected.
    ///
    /// # Errors
    /// [`Rejection`] names the first difference.
    pub fn new(expectation: UpdateExpectation, offer: UpdateOffer) -> Result<Self, Rejection> {
        let UpdateExpectation { study, round, base, .. } = expectation;
        if offer.study != study {
            return Err(Rejection::WrongStudy { expected: study, got: offer.study });
        }
        if offer.round != round {
            return Err(Rejection::WrongRound { expected: round, got: offer.round });
        }
        if offer.base != base {
            return Err(Rejection::WrongBase { expected: base, got: offer.base });
        }
        check_layout(&expectation.layout, offer.manifest.layout())?;
        let squares = vec![None; offer.manifest.chunks().len()];
        Ok(Self { expectation, offer, squares, recalled: None })
    }

    /// Takes what was found of this content before: then no chunk is missing. Whether it is of this content; if not,
    /// nothing changes.
    pub fn recall(&mut self, verification: &Verification) -> bool {
        let same = verification.update == self.offer.hash();
        if same {
            self.recalled = Some(verification.norm);
        }
        same
    }

    /// The offer under verification.
    pub fn offer(&self) -> &UpdateOffer {
        &self.offer
    }

    /// Indices of the chunks that have not come yet, ascending.
    pub fn missing(&self) -> Vec<u32> {
        if self.recalled.is_some() {
            return Vec::new();
        }
        let indices = (0u32..).zip(&self.squares);
        indices.filter(|(_, square)| square.is_none()).map(|(index, _)| index).collect()
    }

    /// Checks one chunk: known, as long as the layout says, the content that the manifest names, every number finite.
    /// A chunk that came before is checked again and counts once.
    ///
    /// # Errors
    /// [`Rejection`]; the verifier is as it was, so the chunk may be sent again.
    pub fn push_chunk(&mut self, index: u32, bytes: &[u8]) -> Result<(), Rejection> {
        let checked = CheckedChunk::check(&self.offer.manifest, index, bytes)?;
        self.count(&checked).map(drop)
    }

    /// Counts a chunk that was checked; whether it was still missing.
    ///
    /// # Errors
    /// [`Rejection::Chunk`] when it was checked against another update's manifest.
    pub fn count(&mut self, chunk: &CheckedChunk<'_>) -> Result<bool, Rejection> {
        let index = chunk.index();
        let slot = usize::try_from(index).ok().and_then(|i| self.squares.get_mut(i));
        match slot.filter(|_| chunk.is_of(&self.offer.manifest)) {
            Some(slot) => Ok(slot.replace(chunk.square).is_none()),
            None => Err(ChunkError::Hash { index }.into()),
        }
    }

    /// Completes the verification.
    ///
    /// # Errors
    /// [`Rejection::Incomplete`] or [`Rejection::NormExceeded`].
    pub fn finish(self) -> Result<VerifiedUpdate, Rejection> {
        let missing = self.missing().len();
        if missing > 0 {
            return Err(Rejection::Incomplete { missing, chunks: self.squares.len() });
        }
        let summed = || self.squares.iter().flatten().sum::<f64>().sqrt();
        let norm = self.recalled.unwrap_or_else(summed);
        if let Some(limit) = self.expectation.max_norm.filter(|&limit| norm > limit) {
            return Err(Rejection::NormExceeded { limit, got: norm });
        }
        Ok(VerifiedUpdate { site: self.expectation.site, offer: self.offer, norm })
    }
}

fn check_layout(expected: &TensorLayout, got: &TensorLayout) -> Result<(), Rejection> {
    if expected == got {
        return Ok(());
    }
    let (ours, theirs) = (expected.tensors(), got.tensors());
    let difference = match ours.iter().zip(theirs).find(|(a, b)| a != b) {
        Some((a, b)) if a.name == b.name && a.dtype != b.dtype => {
            format!("{}: in {}, the study's updates are in {}", a.name, b.dtype.name(), a.dtype.name())
        }
        Some((a, b)) if a.name == b.name => {
            format!("{}: shape {:?}, expected {:?}", a.name, b.shape, a.shape)
        }
        Some((a, b)) => format!("{}, expected {}", b.name, a.name),
        None => format!("{} tensors, expected {}", theirs.len(), ours.len()),
    };
    Err(Rejection::WrongLayout { difference })
}

/// An update of which all that aggregation relies on is true: it is of this site, round and base model, has the model's
/// layout, every chunk has the manifest's hash, every number is finite, and the norm is within the study's limit.
#[derive(Clone, Debug)]
pub struct VerifiedUpdate {
    site: SiteId,
    offer: UpdateOffer,
    norm: f64,
}

impl VerifiedUpdate {
    /// The site that made it.
    pub fn site(&self) -> &SiteId {
        &self.site
    }

    /// Its study.
    pub fn study(&self) -> StudyDigest {
        self.offer.study
    }

    /// Its round.
    pub fn round(&self) -> RoundId {
        self.offer.round
    }

    /// The global model that it starts from.
    pub fn base(&self) -> ModelHash {
        self.offer.base
    }

    /// Its idempotency key.
    pub fn attempt(&self) -> AttemptId {
        self.offer.attempt
    }

    /// Optimiser steps done.
    pub fn steps(&self) -> u32 {
        self.offer.steps
    }

    /// Its tensors and chunk hashes.
    pub fn manifest(&self) -> &ArtifactManifest {
        &self.offer.manifest
    }

    /// Its name.
    pub fn hash(&self) -> ArtifactHash {
        self.offer.manifest.hash()
    }

    /// Euclidean norm of the whole delta.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// What was found of its content, to be kept beside it.
    pub fn verification(&self) -> Verification {
        Verification { update: self.hash(), norm: self.norm }
    }
}
