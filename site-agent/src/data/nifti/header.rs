//! The headers of NIfTI-1 (348 bytes) and NIfTI-2 (540 bytes), in either byte order, checked before anyone relies on them.
//!
//! Field offsets are those of `nifti1.h` and `nifti2.h`. Names, descriptions and extensions are not looked at.

use nalgebra::{Matrix3, Quaternion, UnitQuaternion, Vector3};

use super::dtype::Dtype;
use super::error::Fault;
use crate::data::geometry::Affine;

/// Length of the longest header.
pub(super) const LONGEST: usize = 540;

/// The two layouts of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 348 bytes.
    One,
    /// 540 bytes.
    Two,
}

impl Version {
    /// Length of the header in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::One => 348,
            Self::Two => LONGEST,
        }
    }

    /// The first byte at which voxels can stand in a file of their own: after the header and the extension flags.
    pub(super) fn least_vox_offset(self) -> u64 {
        self.len() as u64 + 4
    }
}

/// Where the place of the voxels in the world was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacedBy {
    /// The affine rows (`sform`), preferred when both are given.
    Sform,
    /// The rotation and offset (`qform`).
    Qform,
    /// Neither was given: voxel sizes alone, centred, x from right to left, as nibabel assumes. Left and right may be
    /// exchanged: `check_orientation` refuses such a file.
    Assumed,
}

/// What a reader needs to know, each field checked.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) shape: [usize; 3],
    pub(super) dtype: Dtype,
    pub(super) big_endian: bool,
    /// First byte of the voxels, in the file that holds them.
    pub(super) vox_offset: u64,
    /// Slope and intercept of the stored values; 1 and 0 when the header asks for no scaling.
    pub(super) scaling: (f64, f64),
    pub(super) affine: Affine,
    pub(super) placed_by: PlacedBy,
    /// The voxels are in an `.img` file.
    pub(super) is_pair: bool,
}

impl Header {
    /// Number of voxels, and the bytes that they take in the file.
    pub(super) fn voxels_and_bytes(&self) -> Result<(u64, u64), Fault> {
        let sizes = self.shape.map(|size| size as u64);
        let voxels = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let bytes = voxels.and_then(|n| n.checked_mul(self.dtype.size() as u64));
        let overflow =
            || Fault::BadDims { dim: [3, sizes[0] as i64, sizes[1] as i64, sizes[2] as i64, 1, 1, 1, 1] };
        voxels.zip(bytes).ok_or_else(overflow)
    }

    /// Reads the start of a file: a whole header of the version that [`sniff`] found.
    pub(super) fn parse(bytes: &[u8; LONGEST], version: Version, big_endian: bool) -> Result<Self, Fault> {
        let is_pair = check_magic(bytes, version)?;
        let raw = Raw::read(Fields { bytes, big_endian }, version);
        let (affine, placed_by) = raw.place()?;
        let dtype = Dtype::from_code(raw.datatype).ok_or(Fault::UnsupportedDtype { code: raw.datatype })?;
        Ok(Self {
            shape: raw.shape()?,
            dtype,
            big_endian,
            vox_offset: raw.first_voxel(version, is_pair)?,
            scaling: raw.scaling()?,
            affine,
            placed_by,
            is_pair,
        })
    }
}

/// Finds version and byte order from the size of the header, which every NIfTI file starts with.
///
/// `bytes` is the start of the file, `found` of them read.
pub(super) fn sniff(bytes: &[u8; LONGEST], found: usize) -> Result<(Version, bool), Fault> {
    let [a, b, c, d, ..] = *bytes;
    let first = [a, b, c, d];
    let version = |size| match size {
        348 => Some(Version::One),
        540 => Some(Version::Two),
        _ => None,
    };
    let little = version(u32::from_le_bytes(first)).map(|v| (v, false));
    let big = version(u32::from_be_bytes(first)).map(|v| (v, true));
    match little.or(big) {
        Some((version, _)) if found < version.len() => {
            Err(Fault::Truncated { part: "the header", found: found as u64 })
        }
        Some(known) => Ok(known),
        None if found < first.len() => Err(Fault::Truncated { part: "the header", found: found as u64 }),
        None if matches!(&bytes[344..348], b"n+1\0" | b"ni1\0") => Err(Fault::BadHeader {
            field: "sizeof_hdr",
            expected: "348 or 540",
            found: u32::from_le_bytes(first).to_string(),
        }),
        None => Err(Fault::NotNifti { found: first }),
    }
}

/// Whether the magic word says that the voxels are in another file.
fn check_magic(bytes: &[u8; LONGEST], version: Version) -> Result<bool, Fault> {
    let (found, single, pair, expected) = match version {
        Version::One => (&bytes[344..348], b"n+1\0".as_slice(), b"ni1\0".as_slice(), "n+1 or ni1"),
        // The four bytes after the word expose a transfer as text, as in PNG.
        Version::Two => {
            (&bytes[4..12], b"n+2\0\r\n\x1a\n".as_slice(), b"ni2\0\r\n\x1a\n".as_slice(), "n+2 or ni2")
        }
    };
    if found != single && found != pair {
        return Err(Fault::BadMagic { expected, found: found.escape_ascii().to_string() });
    }
    Ok(found == pair)
}

/// Numbers at fixed places of a header.
#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8; LONGEST],
    big_endian: bool,
}

impl Fields<'_> {
    /// `N` bytes from the field at `at`, least significant first.
    fn little<const N: usize>(self, at: usize) -> [u8; N] {
        let field = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
        let mut field = *field.expect("the offsets in this file lie inside the longest header");
        if self.big_endian {
            field.reverse();
        }
        field
    }

    fn i16(self, at: usize) -> i16 {
        i16::from_le_bytes(self.little(at))
    }

    fn i32(self, at: usize) -> i32 {
        i32::from_le_bytes(self.little(at))
    }

    fn i64(self, at: usize) -> i64 {
        i64::from_le_bytes(self.little(at))
    }

    fn f32(self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.little(at)))
    }

    fn f64(self, at: usize) -> f64 {
        f64::from_le_bytes(self.little(at))
    }
}

/// The fields used, as the file has them.
struct Raw {
    dim: [i64; 8],
    datatype: i16,
    pixdim: [f64; 8],
    vox_offset: f64,
    slope: f64,
    inter: f64,
    units: u8,
    qform_code: i32,
    sform_code: i32,
    quaternion: [f64; 3],
    qoffset: [f64; 3],
    srow: [[f64; 4]; 3],
}

impl Raw {
    fn read(f: Fields<'_>, version: Version) -> Self {
        match version {
            Version::One => Self::read_1(f),
            Version::Two => Self::read_2(f),
        }
    }

    fn read_1(f: Fields<'_>) -> Self {
        Self {
            dim: std::array::from_fn(|i| i64::from(f.i16(40 + 2 * i))),
            datatype: f.i16(70),
            pixdim: std::array::from_fn(|i| f.f32(76 + 4 * i)),
            vox_offset: f.f32(108),
            slope: f.f32(112),
            inter: f.f32(116),
            units: f.bytes[123],
            qform_code: i32::from(f.i16(252)),
            sform_code: i32::from(f.i16(254)),
            quaternion: std::array::from_fn(|i| f.f32(256 + 4 * i)),
            qoffset: std::array::from_fn(|i| f.f32(268 + 4 * i)),
            srow: std::array::from_fn(|row| std::array::from_fn(|i| f.f32(280 + 16 * row + 4 * i))),
        }
    }

    fn read_2(f: Fields<'_>) -> Self {
        Self {
            dim: std::array::from_fn(|i| f.i64(16 + 8 * i)),
            datatype: f.i16(12),
            pixdim: std::array::from_fn(|i| f.f64(104 + 8 * i)),
            vox_offset: f.i64(168) as f64,
            slope: f.f64(176),
            inter: f.f64(184),
            // One byte of meaning in a field of four.
            units: (f.i32(500) & 0xff) as u8,
            qform_code: f.i32(344),
            sform_code: f.i32(348),
            quaternion: std::array::from_fn(|i| f.f64(352 + 8 * i)),
            qoffset: std::array::from_fn(|i| f.f64(376 + 8 * i)),
            srow: std::array::from_fn(|row| std::array::from_fn(|i| f.f64(400 + 32 * row + 8 * i))),
        }
    }

    /// Three sizes; further axes are allowed when they have one entry (a series of one frame).
    fn shape(&self) -> Result<[usize; 3], Fault> {
        let bad = || Fault::BadDims { dim: self.dim };
        let axes = usize::try_from(self.dim[0]).ok().filter(|n| (1..=7).contains(n)).ok_or_else(bad)?;
        let sizes = self.dim.get(1..=axes).ok_or_else(bad)?;
        if sizes.iter().any(|&size| size < 1) {
            return Err(bad());
        }
        let &[x, y, z, ref further @ ..] = sizes else { return Err(Fault::Not3d { sizes: sizes.to_vec() }) };
        if further.iter().any(|&size| size != 1) {
            return Err(Fault::Not3d { sizes: sizes.to_vec() });
        }
        let size = |n: i64| usize::try_from(n).map_err(|_| bad());
        Ok([size(x)?, size(y)?, size(z)?])
    }

    /// Zero stands for "right after the header", which some writers leave to the reader.
    fn first_voxel(&self, version: Version, is_pair: bool) -> Result<u64, Fault> {
        let least = if is_pair { 0 } else { version.least_vox_offset() };
        let found = self.vox_offset;
        if found == 0.0 {
            return Ok(least);
        }
        // 2^53: whole numbers above it are no longer exact, and no file is that long.
        let whole = found.fract() == 0.0 && (least as f64..9.0e15).contains(&found);
        if whole { Ok(found as u64) } else { Err(Fault::BadVoxOffset { found, least }) }
    }

    /// A slope of zero or NaN means that stored values are the values, whatever the intercept.
    fn scaling(&self) -> Result<(f64, f64), Fault> {
        if self.slope == 0.0 || !self.slope.is_finite() {
            return Ok((1.0, 0.0));
        }
        let found = || self.inter.to_string();
        let bad = || Fault::BadHeader { field: "scl_inter", expected: "a finite number", found: found() };
        if self.inter.is_finite() { Ok((self.slope, self.inter)) } else { Err(bad()) }
    }

    /// The affine in millimetres, and where it comes from.
    fn place(&self) -> Result<(Affine, PlacedBy), Fault> {
        let (placed_by, linear, origin) = if self.sform_code > 0 {
            let linear = Matrix3::from_fn(|row, column| self.srow[row][column]);
            (PlacedBy::Sform, linear, Vector3::from_fn(|row, _| self.srow[row][3]))
        } else if self.qform_code > 0 {
            (PlacedBy::Qform, self.qform_linear()?, Vector3::from(self.qoffset))
        } else {
            let (linear, origin) = self.assumed()?;
            (PlacedBy::Assumed, linear, origin)
        };
        let mm = self.millimetres()?;
        let why = || format!("its {placed_by:?} matrix is singular or not finite");
        let affine = Affine::from_parts(linear * mm, origin * mm);
        let affine = affine.ok_or_else(|| Fault::BadAffine { why: why() })?;
        check_spacing(&affine)?;
        Ok((affine, placed_by))
    }

    /// The voxel sizes, which must be given where no affine is.
    fn sizes(&self) -> Result<Vector3<f64>, Fault> {
        let sizes = Vector3::from_fn(|i, _| self.pixdim[i + 1]);
        let why = || format!("its voxel sizes are {:?}", sizes.as_slice());
        let usable = sizes.iter().all(|size| size.is_finite() && *size > 0.0);
        if usable { Ok(sizes) } else { Err(Fault::BadAffine { why: why() }) }
    }

    fn qform_linear(&self) -> Result<Matrix3<f64>, Fault> {
        let [b, c, d] = self.quaternion;
        let square = b * b + c * c + d * d;
        // Stored in f32, a half turn can come out a little longer than one.
        if !square.is_finite() || square > 1.0 + 1e-5 {
            return Err(Fault::BadAffine {
                why: format!("its quaternion has b² + c² + d² = {square}, above 1"),
            });
        }
        let a = (1.0 - square).max(0.0).sqrt();
        let rotation = UnitQuaternion::new_normalize(Quaternion::new(a, b, c, d)).to_rotation_matrix();
        let mut sizes = self.sizes()?;
        if self.pixdim[0] < 0.0 {
            sizes.z = -sizes.z;
        }
        Ok(rotation.matrix() * Matrix3::from_diagonal(&sizes))
    }

    fn assumed(&self) -> Result<(Matrix3<f64>, Vector3<f64>), Fault> {
        let mut sizes = self.sizes()?;
        sizes.x = -sizes.x;
        let last = Vector3::from(self.shape()?.map(|n| n as f64 - 1.0));
        Ok((Matrix3::from_diagonal(&sizes), -0.5 * last.component_mul(&sizes)))
    }

    /// Millimetres in the unit of length that the header names; none named is taken for millimetres, as everywhere.
    fn millimetres(&self) -> Result<f64, Fault> {
        match self.units & 0b111 {
            0 | 2 => Ok(1.0),
            1 => Ok(1e3),
            3 => Ok(1e-3),
            other => Err(Fault::BadHeader {
                field: "xyzt_units",
                expected: "metre, millimetre or micrometre (1, 2, 3)",
                found: other.to_string(),
            }),
        }
    }
}

/// Voxels of a tenth of a micrometre up to a decimetre: all that a scanner makes. Anything else is a wrong unit, and
/// would make a grid of absurd size when resampled.
fn check_spacing(affine: &Affine) -> Result<(), Fault> {
    let spacing = affine.spacing();
    if spacing.iter().all(|size| (1e-4..=100.0).contains(size)) {
        return Ok(());
    }
    Err(Fault::BadAffine {
        why: format!("voxels of {spacing:?} mm, expected 0.0001 to 100; is the unit of length wrong?"),
    })
}
