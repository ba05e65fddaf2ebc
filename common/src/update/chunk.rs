//! Bytes that were looked at, once.

use std::collections::BTreeMap;

use super::Rejection;
use crate::artifact::{ArtifactManifest, CHUNK_BYTES, Dtype};
use crate::bfloat16;
use crate::ids::{ChunkHash, Digest};
use crate::wire::{ChunkError, chunk};

/// Bytes that have the length and the hash that a manifest names for a chunk, and of which every number is finite.
///
/// It needs no verifier, so several chunks of one update can be checked at once.
#[derive(Clone, Copy, Debug)]
pub struct CheckedChunk<'a> {
    index: u32,
    hash: ChunkHash,
    bytes: &'a [u8],
    /// Sum of the squares of its numbers.
    pub(super) square: f64,
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

/// Sum of the squares of a chunk's numbers.
fn sum_squares(manifest: &ArtifactManifest, index: u32, bytes: &[u8]) -> Result<f64, Rejection> {
    let summed = match dtype(manifest, index) {
        Dtype::F32 => sum_of(bytes.as_chunks::<4>().0, f32::from_le_bytes),
        Dtype::BF16 => sum_of(bytes.as_chunks::<2>().0, bfloat16::widen),
    };
    summed.map_err(|element| not_finite(manifest, index, element))
}

/// The same of any format, or the first of them that is not finite.
fn sum_of<const N: usize>(numbers: &[[u8; N]], read: impl Fn([u8; N]) -> f32) -> Result<f64, u64> {
    // Lanes of their own, in a fixed order: one chain of additions would take its whole latency for each number.
    let (blocks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for (lane, &le) in lanes.iter_mut().zip(block) {
            *lane += f64::from(read(le)).powi(2);
        }
    }
    let rest = rest.iter().map(|&le| f64::from(read(le)).powi(2));
    let square = lanes.iter().sum::<f64>() + rest.sum::<f64>();
    // A sum of squares of f32 numbers cannot overflow f64: it is finite exactly when every number is.
    if square.is_finite() {
        return Ok(square);
    }
    let bad = numbers.iter().position(|&le| !read(le).is_finite());
    Err(bad.unwrap_or_default() as u64)
}

/// Sums that run beside each other.
const LANES: usize = 16;

/// The number format of a chunk.
fn dtype(manifest: &ArtifactManifest, index: u32) -> Dtype {
    let layout = manifest.layout();
    let span = usize::try_from(index).ok().and_then(|i| layout.spans().get(i));
    span.and_then(|span| layout.tensors().get(span.tensor)).map_or(Dtype::F32, |tensor| tensor.dtype)
}

fn not_finite(manifest: &ArtifactManifest, index: u32, element_of_chunk: u64) -> Rejection {
    let layout = manifest.layout();
    let span = usize::try_from(index).ok().and_then(|i| layout.spans().get(i));
    let tensor = span.and_then(|span| layout.tensors().get(span.tensor));
    let before = span.map_or(0, |span| {
        let start = layout.spans().iter().find(|other| other.tensor == span.tensor);
        span.offset - start.map_or(span.offset, |start| start.offset)
    });
    let before = before / dtype(manifest, index).bytes();
    let tensor = tensor.map_or(String::new(), |tensor| tensor.name.clone());
    Rejection::NotFinite { tensor, element: before + element_of_chunk }
}
