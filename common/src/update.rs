//! An update: the f32 delta of the trainable tensors from one global model, offered, checked and believed.
//!
//! [`UpdateOffer`] is what a site says it has. Bytes that came become a [`CheckedChunk`], the proof that they were looked
//! at: what writes them and what counts them take the proof, so each chunk is hashed once. [`UpdateVerifier`] sees every
//! proof, does no I/O, and alone makes a [`VerifiedUpdate`]; so what aggregation takes has been checked. What was found is
//! kept as a [`Verification`] beside the update: a new verifier believes it of the content that it names and of no other,
//! and aggregation compares every chunk that it reads with that name.

use std::collections::BTreeMap;

use crate::artifact::{ArtifactManifest, CHUNK_BYTES, LayoutError, TensorLayout};
use crate::ids::{ArtifactHash, AttemptId, ChunkHash, Digest, ModelHash, RoundId, SiteId, StudyDigest};
use crate::wire::{ChunkError, Manifest, OfferedUpdate, Refusal, RefusalCode, chunk};

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
    /// The model's trainable tensors: the layout of the global model's artifact.
    pub layout: TensorLayout,
    /// Largest Euclidean norm of the whole delta, if the study limits it.
    pub max_norm: Option<f64>,
}

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

/// Bytes that have the length and the hash that a manifest names for a chunk, and of which every number is finite.
///
/// It needs no verifier, so several chunks of one update can be checked at once.
#[derive(Clone, Copy, Debug)]
pub struct CheckedChunk<'a> {
    index: u32,
    hash: ChunkHash,
    bytes: &'a [u8],
    /// Sum of the squares of its numbers.
    square: f64,
}

impl<'a> CheckedChunk<'a> {
    /// Looks at `bytes`, which should be chunk `index` of the update with this manifest.
    ///
    /// # Errors
    /// [`Rejection::Chunk`] or [`Rejection::NotFinite`].
    pub fn check(manifest: &ArtifactManifest, index: u32, bytes: &'a [u8]) -> Result<Self, Rejection> {
        chunk::check_length(manifest, index, bytes.len() as u64)?;
        let hash = ChunkHash(Digest::of(bytes));
        // First: of bytes that were damaged on their way, no number means anything.
        if named(manifest, index) != Some(hash) {
            return Err(ChunkError::Hash { index }.into());
        }
        Ok(Self { index, hash, bytes, square: sum_squares(manifest, index, bytes)? })
    }

    /// Whether it is the chunk that this manifest names at its index: compares two hashes, no bytes.
    pub fn is_of(&self, manifest: &ArtifactManifest) -> bool {
        named(manifest, self.index) == Some(self.hash)
    }

    /// Its index in the update.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its content.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The hash that a manifest names for a chunk.
fn named(manifest: &ArtifactManifest, index: u32) -> Option<ChunkHash> {
    usize::try_from(index).ok().and_then(|i| manifest.chunks().get(i)).copied()
}

/// Tells by their hash which chunks of updates hold nothing but zeros: those of tensors that training left alone. Nobody
/// needs to send them.
#[derive(Clone, Debug, Default)]
pub struct ZeroChunks {
    /// By length: layouts repeat theirs.
    hashes: BTreeMap<u32, ChunkHash>,
}

/// A chunk of zeros.
static ZEROS: [u8; CHUNK_BYTES as usize] = [0; CHUNK_BYTES as usize];

impl ZeroChunks {
    /// The content of chunk `index`, if its hash is that of zeros.
    pub fn content(&mut self, manifest: &ArtifactManifest, index: u32) -> Option<&'static [u8]> {
        let span = usize::try_from(index).ok().and_then(|i| manifest.layout().spans().get(i))?;
        let zeros = ZEROS.get(..usize::try_from(span.len).ok()?)?;
        let hash = self.hashes.entry(span.len).or_insert_with(|| ChunkHash(Digest::of(zeros)));
        (named(manifest, index) == Some(*hash)).then_some(zeros)
    }
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
        let index = chunk.index;
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

fn sum_squares(manifest: &ArtifactManifest, index: u32, bytes: &[u8]) -> Result<f64, Rejection> {
    let (numbers, _) = bytes.as_chunks::<4>();
    // Lanes of their own, in a fixed order: one chain of additions would take its whole latency for each number.
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for (lane, &le) in lanes.iter_mut().zip(block) {
            *lane += f64::from(f32::from_le_bytes(le)).powi(2);
        }
    }
    let rest = rest.iter().map(|&le| f64::from(f32::from_le_bytes(le)).powi(2));
    let square = lanes.iter().sum::<f64>() + rest.sum::<f64>();
    // A sum of squares of f32 numbers cannot overflow f64: it is finite exactly when every number is.
    if square.is_finite() {
        return Ok(square);
    }
    let bad = numbers.iter().position(|&le| !f32::from_le_bytes(le).is_finite());
    Err(not_finite(manifest, index, bad.unwrap_or_default() as u64))
}

/// Sums that run beside each other.
const LANES: usize = 16;

fn not_finite(manifest: &ArtifactManifest, index: u32, element_of_chunk: u64) -> Rejection {
    let layout = manifest.layout();
    let span = usize::try_from(index).ok().and_then(|i| layout.spans().get(i));
    let tensor = span.and_then(|span| layout.tensors().get(span.tensor));
    let before = span.map_or(0, |span| {
        let start = layout.spans().iter().find(|other| other.tensor == span.tensor);
        span.offset - start.map_or(span.offset, |start| start.offset)
    });
    let tensor = tensor.map_or(String::new(), |tensor| tensor.name.clone());
    Rejection::NotFinite { tensor, element: before / 4 + element_of_chunk }
}

fn check_layout(expected: &TensorLayout, got: &TensorLayout) -> Result<(), Rejection> {
    if expected == got {
        return Ok(());
    }
    let (ours, theirs) = (expected.tensors(), got.tensors());
    let difference = match ours.iter().zip(theirs).find(|(a, b)| a != b) {
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

/// That the content of an update was verified, and what was found: to be kept beside the update before its receipt is given.
///
/// An update's name covers every byte of it, so what was found holds for whatever has that name, and a reader need only
/// compare the chunks with the manifest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verification {
    update: ArtifactHash,
    norm: f64,
}

impl Verification {
    /// As kept on disk: name, norm, and a digest of both, because disks err. Frozen by golden bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.update.0.as_bytes().to_vec();
        bytes.extend(self.norm.to_le_bytes());
        let guard = guard(&bytes);
        bytes.extend(guard.as_bytes());
        bytes
    }

    /// Reads it back; `None` when these are not the bytes that [`Verification::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (found, guarded) = bytes.split_at_checked(40)?;
        let (update, norm) = found.split_at_checked(32)?;
        if guarded != guard(found).as_bytes() {
            return None;
        }
        let update = ArtifactHash(Digest::from_bytes(update.try_into().ok()?));
        Some(Self { update, norm: f64::from_le_bytes(norm.try_into().ok()?) })
    }
}

fn guard(found: &[u8]) -> Digest {
    Digest::of(&[b"consilium verification 1\0".as_slice(), found].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::artifact::{Dtype, TensorSpec};

    /// Numbers of a full chunk.
    const CHUNK: usize = CHUNK_BYTES as usize / 4;

    fn layout(tensors: &[(&str, usize)]) -> TensorLayout {
        let spec = |&(name, len): &(&str, usize)| TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: vec![len as u32],
        };
        TensorLayout::new(tensors.iter().map(spec).collect()).unwrap()
    }

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn expectation(layout: &TensorLayout) -> UpdateExpectation {
        UpdateExpectation {
            site: "north".parse().unwrap(),
            study: StudyDigest(Digest::of(b"study")),
            round: RoundId(3),
            base: ArtifactHash(Digest::of(b"base")),
            layout: layout.clone(),
            max_norm: None,
        }
    }

    fn offer(layout: &TensorLayout, data: &[u8]) -> UpdateOffer {
        let UpdateExpectation { study, round, base, .. } = expectation(layout);
        let manifest = ArtifactManifest::of(layout.clone(), data);
        UpdateOffer { study, round, base, attempt: AttemptId::from_bytes([7; 16]), steps: 10, manifest }
    }

    fn chunk<'a>(layout: &TensorLayout, data: &'a [u8], index: u32) -> &'a [u8] {
        let span = layout.spans()[index as usize];
        &data[span.offset as usize..span.offset as usize + span.len as usize]
    }

    fn verify(
        layout: &TensorLayout,
        numbers: &[f32],
        order: &[u32],
        max_norm: Option<f64>,
    ) -> Result<VerifiedUpdate, Rejection> {
        let data = bytes(numbers);
        let expectation = UpdateExpectation { max_norm, ..expectation(layout) };
        let mut verifier = UpdateVerifier::new(expectation, offer(layout, &data))?;
        for &index in order {
            verifier.push_chunk(index, chunk(layout, &data, index))?;
        }
        verifier.finish()
    }

    #[test]
    fn a_good_update_is_believed_with_its_norm() {
        let update = verify(&layout(&[("a", 2), ("b", 1)]), &[3.0, 0.0, -4.0], &[1, 0], None).unwrap();
        assert_eq!((update.norm(), update.steps(), update.round()), (5.0, 10, RoundId(3)));
        assert_eq!(update.site().as_str(), "north");
    }

    #[test]
    fn a_chunk_that_came_twice_counts_once() {
        let update = verify(&layout(&[("a", 2)]), &[3.0, 4.0], &[0, 0], Some(5.0)).unwrap();
        assert_eq!(update.norm(), 5.0);
    }

    #[test]
    fn a_missing_chunk_is_named_and_may_still_come() {
        let layout = layout(&[("a", 1), ("b", 1)]);
        let data = bytes(&[1.0, 2.0]);
        let mut verifier = UpdateVerifier::new(expectation(&layout), offer(&layout, &data)).unwrap();
        verifier.push_chunk(1, chunk(&layout, &data, 1)).unwrap();
        assert_eq!(verifier.missing(), [0]);
        assert_eq!(verifier.finish().unwrap_err(), Rejection::Incomplete { missing: 1, chunks: 2 });
    }

    #[test]
    fn other_bytes_than_the_manifest_names_are_rejected() {
        let layout = layout(&[("a", 2)]);
        let data = bytes(&[1.0, 2.0]);
        let mut verifier = UpdateVerifier::new(expectation(&layout), offer(&layout, &data)).unwrap();
        let wrong = [
            (0, bytes(&[1.0, 3.0]), ChunkError::Hash { index: 0 }),
            (0, bytes(&[1.0]), ChunkError::Length { index: 0, expected: 8, got: 4 }),
            (1, data.clone(), ChunkError::Unknown { index: 1, chunks: 1 }),
        ];
        for (index, bytes, error) in wrong {
            assert_eq!(verifier.push_chunk(index, &bytes), Err(Rejection::Chunk(error)));
        }
        assert_eq!(verifier.missing(), [0]);
        verifier.push_chunk(0, &data).unwrap();
        assert!(verifier.finish().is_ok());
    }

    #[test]
    fn a_chunk_that_was_checked_for_another_update_does_not_count() {
        let layout = layout(&[("a", 1), ("b", 1)]);
        let (ours, theirs) = (bytes(&[1.0, 2.0]), bytes(&[3.0, 2.0]));
        let other = ArtifactManifest::of(layout.clone(), &theirs);
        let mut verifier = UpdateVerifier::new(expectation(&layout), offer(&layout, &ours)).unwrap();
        let foreign = CheckedChunk::check(&other, 0, chunk(&layout, &theirs, 0)).unwrap();
        assert_eq!(verifier.count(&foreign), Err(Rejection::Chunk(ChunkError::Hash { index: 0 })));
        // The second is the same in both: that is all that content-addressing asks.
        let shared = CheckedChunk::check(&other, 1, chunk(&layout, &theirs, 1)).unwrap();
        assert_eq!((verifier.count(&shared), verifier.count(&shared)), (Ok(true), Ok(false)));
        assert_eq!(verifier.missing(), [0]);
    }

    #[test]
    fn chunks_of_zeros_are_known_by_their_hash() {
        let layout = layout(&[("a", CHUNK + 3), ("b", 2), ("c", 2)]);
        let mut numbers = vec![0.0; CHUNK + 7];
        numbers[CHUNK + 5] = 1.0;
        let manifest = offer(&layout, &bytes(&numbers)).manifest;
        let mut zeros = ZeroChunks::default();
        let lengths: Vec<_> = (0..5).map(|i| zeros.content(&manifest, i).map(<[u8]>::len)).collect();
        assert_eq!(lengths, [Some(4 * CHUNK), Some(12), Some(8), None, None]);
        // Minus zero is another number to a hash, and travels.
        let minus = offer(&layout, &bytes(&vec![-0.0; CHUNK + 7])).manifest;
        assert_eq!(zeros.content(&minus, 0), None);
    }

    #[test]
    fn a_number_that_is_not_finite_is_named() {
        let layout = layout(&[("a", 3), ("b", CHUNK + 4)]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = vec![0.0; 3 + CHUNK + 4];
            numbers[3 + CHUNK + 2] = bad;
            let error = verify(&layout, &numbers, &[0, 1, 2], None).unwrap_err();
            assert_eq!(error, Rejection::NotFinite { tensor: "b".to_owned(), element: CHUNK as u64 + 2 });
            assert_eq!(error.code(), "not-finite");
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow_the_norm() {
        let update = verify(&layout(&[("a", 2)]), &[f32::MAX, f32::MIN], &[0], None).unwrap();
        assert!(update.norm().is_finite());
    }

    #[test]
    fn a_norm_above_the_limit_is_rejected() {
        let error = verify(&layout(&[("a", 2)]), &[3.0, 4.0], &[0], Some(4.9)).unwrap_err();
        assert_eq!(error, Rejection::NormExceeded { limit: 4.9, got: 5.0 });
    }

    #[test]
    fn an_offer_of_something_else_is_rejected_before_any_byte() {
        let layout_ = layout(&[("a", 2)]);
        let good = offer(&layout_, &[0; 8]);
        let code = |offer: UpdateOffer| UpdateVerifier::new(expectation(&layout_), offer).unwrap_err().code();
        assert_eq!(code(UpdateOffer { round: RoundId(2), ..good.clone() }), "round-closed");
        let other = Digest::of(b"other");
        assert_eq!(code(UpdateOffer { base: ArtifactHash(other), ..good.clone() }), "wrong-base");
        assert_eq!(code(UpdateOffer { study: StudyDigest(other), ..good.clone() }), "wrong-study");
        for tensors in [&[("a", 3)][..], &[("b", 2)], &[("a", 2), ("b", 2)]] {
            let layout = layout(tensors);
            let manifest = ArtifactManifest::of(layout.clone(), &vec![0; layout.bytes() as usize]);
            assert_eq!(code(UpdateOffer { manifest, ..good.clone() }), "wrong-layout");
        }
    }

    #[test]
    fn an_offer_travels_and_comes_back() {
        let offer = offer(&layout(&[("a", 2)]), &[0; 8]);
        assert_eq!(UpdateOffer::try_from(OfferedUpdate::from(&offer)), Ok(offer.clone()));
        let mut broken = OfferedUpdate::from(&offer);
        broken.manifest.chunks.clear();
        assert!(matches!(UpdateOffer::try_from(broken), Err(Rejection::Manifest(_))));
    }

    #[test]
    fn what_was_found_is_believed_of_the_same_content_alone() {
        let layout = layout(&[("a", 2)]);
        let (data, other) = (bytes(&[3.0, 4.0]), bytes(&[3.0, 5.0]));
        let found = verify(&layout, &[3.0, 4.0], &[0], None).unwrap().verification();
        let verifier = |data: &[u8], max_norm| {
            let expectation = UpdateExpectation { max_norm, ..expectation(&layout) };
            UpdateVerifier::new(expectation, offer(&layout, data)).unwrap()
        };
        let mut same = verifier(&data, None);
        assert!(same.recall(&found));
        assert_eq!(same.missing(), [0u32; 0]);
        assert_eq!(same.finish().unwrap().norm(), 5.0);

        let mut changed = verifier(&other, None);
        assert!(!changed.recall(&found));
        assert_eq!(changed.finish().unwrap_err(), Rejection::Incomplete { missing: 1, chunks: 1 });

        let mut bounded = verifier(&data, Some(4.0));
        assert!(bounded.recall(&found));
        assert_eq!(bounded.finish().unwrap_err(), Rejection::NormExceeded { limit: 4.0, got: 5.0 });
    }

    #[test]
    fn a_kept_verification_reads_back_and_a_changed_one_does_not() {
        let found = Verification { update: ArtifactHash(Digest::from_bytes([1; 32])), norm: 5.0 };
        let kept = found.to_bytes();
        assert_eq!(kept[..32], [1; 32]);
        assert_eq!(kept[32..40], [0, 0, 0, 0, 0, 0, 0x14, 0x40]);
        assert_eq!(Verification::from_bytes(&kept), Some(found));
        for at in 0..kept.len() {
            let mut changed = kept.clone();
            changed[at] ^= 1;
            assert_eq!(Verification::from_bytes(&changed), None, "byte {at}");
        }
        assert_eq!(Verification::from_bytes(&kept[..71]), None);
        assert_eq!(Verification::from_bytes(&[]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_order_of_chunks_does_not_change_the_norm(
            values in proptest::collection::vec(-1e20f32..1e20, 8),
            order in Just((0u32..8).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
            let layout = layout(&names.map(|name| (name, 1)));
            let sorted: Vec<u32> = (0..8).collect();
            let one = verify(&layout, &values, &sorted, None).unwrap().norm();
            let other = verify(&layout, &values, &order, None).unwrap().norm();
            prop_assert_eq!(one.to_bits(), other.to_bits());
        }
    }
}
