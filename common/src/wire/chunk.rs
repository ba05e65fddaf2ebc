//! Tensors on the wire: a manifest, and chunks announced by a header and followed by their raw bytes.

use bincode::{Decode, Encode};

use super::codec::{Message, SizeClass};
use crate::artifact::{ArtifactManifest, LayoutError, TensorLayout, TensorSpec};
use crate::ids::{ChunkHash, Digest};

/// A manifest as received: nothing about it is checked until it becomes an [`ArtifactManifest`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// The tensors.
    pub tensors: Vec<TensorSpec>,
    /// Hash of each chunk, in order of index.
    pub chunks: Vec<ChunkHash>,
}

impl From<&ArtifactManifest> for Manifest {
    fn from(manifest: &ArtifactManifest) -> Self {
        Self { tensors: manifest.layout().tensors().to_vec(), chunks: manifest.chunks().to_vec() }
    }
}

impl TryFrom<Manifest> for ArtifactManifest {
    type Error = LayoutError;

    fn try_from(wire: Manifest) -> Result<Self, LayoutError> {
        ArtifactManifest::new(TensorLayout::new(wire.tensors)?, wire.chunks)
    }
}

/// Announces one chunk; exactly `len` raw bytes follow the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkHeader {
    /// Which chunk of the artifact.
    pub index: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl Message for ChunkHeader {
    const SIZE: SizeClass = SizeClass::Control;
    const NAME: &'static str = "chunk header";
}

/// Why bytes are not the chunk that a manifest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The artifact has no such chunk.
    #[error("chunk {index}: the artifact has {chunks}")]
    Unknown {
        /// The index given.
        index: u32,
        /// Chunks of the artifact.
        chunks: usize,
    },
    /// The length does not follow from the layout.
    #[error("chunk {index}: {got} bytes, expected {expected}")]
    Length {
        /// The chunk.
        index: u32,
        /// Its length by the layout.
        expected: u32,
        /// The length given.
        got: u64,
    },
    /// The content is not what the manifest names.
    #[error("chunk {index}: its content does not have the hash that the manifest names")]
    Hash {
        /// The chunk.
        index: u32,
    },
}

/// Whether chunk `index` of the artifact may have `len` bytes: asked before the first of them is read.
///
/// # Errors
/// [`ChunkError::Unknown`] or [`ChunkError::Length`].
pub fn check_length(manifest: &ArtifactManifest, index: u32, len: u64) -> Result<(), ChunkError> {
    let spans = manifest.layout().spans();
    let span = usize::try_from(index).ok().and_then(|i| spans.get(i));
    let span = span.ok_or(ChunkError::Unknown { index, chunks: spans.len() })?;
    if u64::from(span.len) != len {
        return Err(ChunkError::Length { index, expected: span.len, got: len });
    }
    Ok(())
}

/// Whether `bytes` are chunk `index` of the artifact.
///
/// # Errors
/// [`ChunkError`] says what differs.
pub fn check_chunk(manifest: &ArtifactManifest, index: u32, bytes: &[u8]) -> Result<(), ChunkError> {
    check_length(manifest, index, bytes.len() as u64)?;
    let named = usize::try_from(index).ok().and_then(|i| manifest.chunks().get(i));
    if named != Some(&ChunkHash(Digest::of(bytes))) {
        return Err(ChunkError::Hash { index });
    }
    Ok(())
}
