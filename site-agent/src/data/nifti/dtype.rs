//! Voxels between the bytes of a file (x fastest, any number type) and our arrays (z fastest, one number type).

use rayon::prelude::*;

/// Number types of voxels that we read: all real scalars of the standard but the 128-bit float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Dtype {
    const CODES: [(i16, Self); 10] = [
        (2, Self::U8),
        (4, Self::I16),
        (8, Self::I32),
        (16, Self::F32),
        (64, Self::F64),
        (256, Self::I8),
        (512, Self::U16),
        (768, Self::U32),
        (1024, Self::I64),
        (1280, Self::U64),
    ];

    /// The type that a header's `datatype` names.
    pub(super) fn from_code(code: i16) -> Option<Self> {
        Self::CODES.into_iter().find(|(known, _)| *known == code).map(|(_, dtype)| dtype)
    }

    /// The header's `datatype`.
    pub(super) fn code(self) -> i16 {
        let known = Self::CODES.into_iter().find(|(_, dtype)| *dtype == self);
        known.expect("the table lists every variant").0
    }

    /// Bytes of one voxel.
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// The voxels in C order, each through `value` from what is stored.
///
/// `bytes` holds `shape` voxels of type `dtype`. 64-bit integers above 2⁵³ lose their last digits.
pub(super) fn decode<T: Copy + Default + Send>(
    bytes: &[u8],
    shape: [usize; 3],
    dtype: Dtype,
    big_endian: bool,
    value: impl Fn(f64) -> T + Sync,
) -> Vec<T> {
    match dtype {
        Dtype::U8 => to_c_order(bytes, shape, |b| value(f64::from(u8::from_le_bytes(b)))),
        Dtype::I8 => to_c_order(bytes, shape, |b| value(f64::from(i8::from_le_bytes(b)))),
        Dtype::U16 => {
            to_c_order(bytes, shape, |b| value(f64::from(u16::from_le_bytes(little(b, big_endian)))))
        }
        Dtype::I16 => {
            to_c_order(bytes, shape, |b| value(f64::from(i16::from_le_bytes(little(b, big_endian)))))
        }
        Dtype::U32 => {
            to_c_order(bytes, shape, |b| value(f64::from(u32::from_le_bytes(little(b, big_endian)))))
        }
        Dtype::I32 => {
            to_c_order(bytes, shape, |b| value(f64::from(i32::from_le_bytes(little(b, big_endian)))))
        }
        Dtype::U64 => to_c_order(bytes, shape, |b| value(u64::from_le_bytes(little(b, big_endian)) as f64)),
        Dtype::I64 => to_c_order(bytes, shape, |b| value(i64::from_le_bytes(little(b, big_endian)) as f64)),
        Dtype::F32 => {
            to_c_order(bytes, shape, |b| value(f64::from(f32::from_le_bytes(little(b, big_endian)))))
        }
        Dtype::F64 => to_c_order(bytes, shape, |b| value(f64::from_le_bytes(little(b, big_endian)))),
    }
}

fn little<const N: usize>(mut bytes: [u8; N], big_endian: bool) -> [u8; N] {
    if big_endian {
        bytes.reverse();
    }
    bytes
}

/// Voxels along x that are moved together: a run of bytes for each reader, and few enough writers for the cache.
const BLOCK: usize = 16;

fn to_c_order<const N: usize, T: Copy + Default + Send>(
    bytes: &[u8],
    [nx, ny, nz]: [usize; 3],
    value: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let (stored, _) = bytes.as_chunks::<N>();
    let slab = ny * nz;
    let mut voxels = vec![T::default(); stored.len()];
    voxels.par_chunks_mut(BLOCK * slab).enumerate().for_each(|(block, chunk)| {
        let width = chunk.len() / slab;
        for (y, z) in (0..ny).flat_map(|y| (0..nz).map(move |z| (y, z))) {
            let start = (z * ny + y) * nx + block * BLOCK;
            for (x, &raw) in stored[start..start + width].iter().enumerate() {
                chunk[x * slab + y * nz + z] = value(raw);
            }
        }
    });
    voxels
}
