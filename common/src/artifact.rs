//! Sets of named tensors as they travel and as they are kept: a manifest and content-addressed chunks.
//!
//! A global model, an embedding table and an update are all artifacts. The manifest lists the tensors in ascending
//! order of name and, tensor by tensor, the hashes of their chunks; the artifact's name is the digest of its manifest.
//! The data of an artifact is the concatenation of its tensors, little-endian, C order: chunk `i` has one fixed span in
//! it, so a partly received artifact is a file with holes and nothing else.
//!
//! A full chunk has so many numbers, in whatever format ([`CHUNK_NUMBERS`]): chunk `i` of an update is about the same numbers as
//! chunk `i` of its model, though it may have half the bytes.

use serde::{Deserialize, Serialize};

use crate::bfloat16;
use crate::ids::{ArtifactHash, ChunkHash, Digest};

/// Size of a full chunk of f32 in bytes: no chunk is larger. The last chunk of each tensor may be shorter; a chunk never spans
/// two tensors, so that an unchanged tensor keeps all its chunks.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Numbers of a full chunk, in whatever format.
pub const CHUNK_NUMBERS: u64 = CHUNK_BYTES / 4;

/// Most tensors that an artifact may have.
pub const MAX_TENSORS: usize = 4096;
/// Longest tensor name in bytes.
pub const MAX_NAME_BYTES: usize = 200;
/// Most axes of a tensor.
pub const MAX_AXES: usize = 6;
/// Largest artifact in bytes (a model of 2.1 milliard numbers).
pub const MAX_ARTIFACT_BYTES: u64 = 8 << 30;

/// Number format of a tensor. Append-only: the order is part of the wire format.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// The upper half of that: of updates, in studies that say so.
    BF16,
}

impl Dtype {
    /// Bytes of one number.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
        }
    }

    /// As a study has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
        }
    }

    /// Whether it is single precision.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Appends the numbers that `bytes` hold, little-endian: exact from either format.
    pub fn read(self, bytes: &[u8], numbers: &mut Vec<f32>) {
        match self {
            Self::F32 => numbers.extend(bytes.as_chunks::<4>().0.iter().map(|&le| f32::from_le_bytes(le))),
            Self::BF16 => numbers.extend(bytes.as_chunks::<2>().0.iter().map(|&le| bfloat16::widen(le))),
        }
    }
}

/// Name, format and shape of one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
pub struct TensorSpec {
    /// The reference's parameter path, such as `backbone.down_tr64.ops.0.conv1.weight`.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Length of each axis, outermost first.
    pub shape: Vec<u32>,
}

impl TensorSpec {
    /// Number of elements, unless it exceeds 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &axis| n.checked_mul(u64::from(axis)))
    }

    /// Size in bytes, unless it exceeds 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        self.elements()?.checked_mul(self.dtype.bytes())
    }
}

/// Why a list of tensors is not a layout, or a manifest not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More tensors than [`MAX_TENSORS`], or none.
    #[error("{got} tensors: expected 1 to {MAX_TENSORS}")]
    Count {
        /// Number of tensors.
        got: usize,
    },
    /// A name that is empty, too long or not printable ASCII.
    #[error("tensor {index}: its name must be 1 to {MAX_NAME_BYTES} printable ASCII characters")]
    Name {
        /// Position of the tensor.
        index: usize,
    },
    /// Names are not in strictly ascending order.
    #[error("tensor {index}: names must be in strictly ascending order")]
    Order {
        /// Position of the tensor.
        index: usize,
    },
    /// A shape with too many axes, an empty axis, or a size beyond the limit.
    #[error(
        "tensor {index}: expected at most {MAX_AXES} non-empty axes and {MAX_ARTIFACT_BYTES} bytes in all"
    )]
    Shape {
        /// Position of the tensor.
        index: usize,
    },
    /// The number of chunk hashes does not follow from the layout.
    #[error("{got} chunk hashes: the layout has {expected} chunks")]
    Chunks {
        /// Chunks that the layout has.
        expected: usize,
        /// Chunk hashes in the manifest.
        got: usize,
    },
}

/// Tensors in ascending order of name, all sizes checked: arithmetic over a layout cannot overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    tensors: Vec<TensorSpec>,
    spans: Vec<ChunkSpan>,
}

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Index of the tensor in the layout.
    pub tensor: usize,
    /// Offset in the artifact's data, bytes.
    pub offset: u64,
    /// Length in bytes, 1 to [`CHUNK_BYTES`].
    pub len: u32,
}

impl TensorLayout {
    /// Checks names, order, shapes and total size.
    ///
    /// # Errors
    /// [`LayoutError`] names the first tensor that breaks a rule.
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, LayoutError> {
        if tensors.is_empty() || tensors.len() > MAX_TENSORS {
            return Err(LayoutError::Count { got: tensors.len() });
        }
        let mut total = 0u64;
        let mut spans = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let printable = tensor.name.bytes().all(|b| b.is_ascii_graphic());
            if tensor.name.is_empty() || tensor.name.len() > MAX_NAME_BYTES || !printable {
                return Err(LayoutError::Name { index });
            }
            if index > 0 && tensors[index - 1].name >= tensor.name {
                return Err(LayoutError::Order { index });
            }
            let bytes = tensor.bytes().filter(|&b| b > 0 && tensor.shape.len() <= MAX_AXES);
            let end = bytes.and_then(|b| total.checked_add(b)).filter(|&end| end <= MAX_ARTIFACT_BYTES);
            let end = end.ok_or(LayoutError::Shape { index })?;
            while total < end {
                let len = (CHUNK_NUMBERS * tensor.dtype.bytes()).min(end - total);
                spans.push(ChunkSpan { tensor: index, offset: total, len: len as u32 });
                total += len;
            }
        }
        Ok(Self { tensors, spans })
    }

    /// The same tensors in another number format; chunk `i` is about the same numbers.
    #[must_use]
    pub fn in_dtype(&self, dtype: Dtype) -> Self {
        let tensors = self.tensors.iter().map(|tensor| TensorSpec { dtype, ..tensor.clone() }).collect();
        let mut end = 0;
        let spans = self.spans.iter().map(|span| {
            let numbers = u64::from(span.len) / self.tensors[span.tensor].dtype.bytes();
            let (offset, len) = (end, numbers * dtype.bytes());
            end += len;
            // At most CHUNK_NUMBERS of them.
            ChunkSpan { tensor: span.tensor, offset, len: len as u32 }
        });
        Self { tensors, spans: spans.collect() }
    }

    /// The tensors, ascending by name.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Where each chunk lies, in order of index.
    pub fn spans(&self) -> &[ChunkSpan] {
        &self.spans
    }

    /// Size of the data in bytes.
    pub fn bytes(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.offset + u64::from(span.len))
    }
}

/// What an artifact consists of: its layout and the hash of each chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactManifest {
    layout: TensorLayout,
    chunks: Vec<ChunkHash>,
}

impl ArtifactManifest {
    /// Joins a layout and the hashes of its chunks, in order of index.
    ///
    /// # Errors
    /// [`LayoutError::Chunks`] when their numbers differ.
    pub fn new(layout: TensorLayout, chunks: Vec<ChunkHash>) -> Result<Self, LayoutError> {
        let expected = layout.spans.len();
        if chunks.len() != expected {
            return Err(LayoutError::Chunks { expected, got: chunks.len() });
        }
        Ok(Self { layout, chunks })
    }

    /// Manifest of `data` (the tensors' bytes, concatenated) under `layout`.
    ///
    /// # Panics
    /// When `data` is not as long as the layout says: a mistake of the caller.
    pub fn of(layout: TensorLayout, data: &[u8]) -> Self {
        assert_eq!(layout.bytes(), data.len() as u64, "data must fill the layout");
        let hash = |span: &ChunkSpan| {
            let start = span.offset as usize;
            ChunkHash(Digest::of(&data[start..start + span.len as usize]))
        };
        let chunks = layout.spans.iter().map(hash).collect();
        Self { layout, chunks }
    }

    /// The tensors.
    pub fn layout(&self) -> &TensorLayout {
        &self.layout
    }

    /// Hash of each chunk, in order of index.
    pub fn chunks(&self) -> &[ChunkHash] {
        &self.chunks
    }

    /// The artifact's name. Hashes a fixed binary form, not a serialisation format that may change.
    pub fn hash(&self) -> ArtifactHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"consilium artifact 1\0");
        hasher.update(&(self.layout.tensors.len() as u64).to_le_bytes());
        for tensor in &self.layout.tensors {
            hasher.update(&(tensor.name.len() as u64).to_le_bytes());
            hasher.update(tensor.name.as_bytes());
            hasher.update(&[match tensor.dtype {
                Dtype::F32 => 0,
                Dtype::BF16 => 1,
            }]);
            hasher.update(&(tensor.shape.len() as u64).to_le_bytes());
            for axis in &tensor.shape {
                hasher.update(&axis.to_le_bytes());
            }
        }
        for chunk in &self.chunks {
            hasher.update(chunk.0.as_bytes());
        }
        ArtifactHash(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[u32]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec() }
    }

    #[test]
    fn chunks_tile_the_data_and_never_span_two_tensors() {
        let layout = TensorLayout::new(vec![spec("a", &[3]), spec("b", &[300_000]), spec("c", &[])]).unwrap();
        let mut next = 0;
        for span in layout.spans() {
            assert_eq!(span.offset, next);
            next += u64::from(span.len);
        }
        assert_eq!(next, layout.bytes());
        assert_eq!(layout.spans().iter().map(|s| s.tensor).collect::<Vec<_>>(), [0, 1, 1, 2]);
    }

    #[test]
    fn in_bfloat16_every_chunk_has_the_same_numbers_in_half_the_bytes() {
        let wide = TensorLayout::new(vec![spec("a", &[3]), spec("b", &[300, 2000]), spec("c", &[])]).unwrap();
        let narrow = wide.in_dtype(Dtype::BF16);
        assert_eq!(narrow.spans().len(), wide.spans().len());
        for (narrow, wide) in narrow.spans().iter().zip(wide.spans()) {
            assert_eq!(
                (narrow.tensor, 2 * narrow.offset, 2 * narrow.len),
                (wide.tensor, wide.offset, wide.len)
            );
        }
        assert_eq!((narrow.bytes(), wide.bytes()), (1_200_008, 2_400_016));
        assert_eq!(
            TensorLayout::new(narrow.tensors().to_vec()),
            Ok(narrow.clone()),
            "as anybody would cut it"
        );
        assert_eq!(narrow.in_dtype(Dtype::F32), wide);
    }

    #[test]
    fn numbers_are_read_in_either_format() {
        let mut numbers = Vec::new();
        Dtype::F32.read(&[0, 0, 0xc0, 0x3f], &mut numbers);
        Dtype::BF16.read(&[0xc0, 0x3f, 0x20, 0xc0], &mut numbers);
        assert_eq!(numbers, [1.5, 1.5, -2.5]);
    }

    #[test]
    fn sizes_that_would_overflow_are_refused() {
        let huge = spec("a", &[u32::MAX; 3]);
        assert_eq!(TensorLayout::new(vec![huge]), Err(LayoutError::Shape { index: 0 }));
        assert_eq!(TensorLayout::new(vec![spec("a", &[0])]), Err(LayoutError::Shape { index: 0 }));
        assert_eq!(TensorLayout::new(vec![]), Err(LayoutError::Count { got: 0 }));
    }

    #[test]
    fn the_same_name_twice_is_refused() {
        let twice = vec![spec("a", &[1]), spec("a", &[1])];
        assert_eq!(TensorLayout::new(twice), Err(LayoutError::Order { index: 1 }));
    }

    #[test]
    fn the_hash_depends_on_name_shape_and_data() {
        let hash = |name, shape: &[u32], data: &[u8]| {
            ArtifactManifest::of(TensorLayout::new(vec![spec(name, shape)]).unwrap(), data).hash()
        };
        let base = hash("a", &[2, 1], &[0; 8]);
        assert_ne!(base, hash("b", &[2, 1], &[0; 8]));
        assert_ne!(base, hash("a", &[1, 2], &[0; 8]));
        assert_ne!(base, hash("a", &[2, 1], &[0, 0, 0, 0, 0, 0, 0, 1]));
        // Four numbers of two bytes, and two of four: the same bytes are not the same tensor.
        let narrow = TensorSpec { dtype: Dtype::BF16, ..spec("a", &[4]) };
        let narrow = ArtifactManifest::of(TensorLayout::new(vec![narrow]).unwrap(), &[0; 8]);
        assert_ne!(hash("a", &[2], &[0; 8]), narrow.hash());
    }
}
