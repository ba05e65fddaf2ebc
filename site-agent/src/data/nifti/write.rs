//! NIfTI-1 files out: little-endian, `.nii` or `.nii.gz` by name, both orientation fields set, whole or not at all.
//!
//! The affine goes into the file as f32 rows, so that a file read and written again keeps its rows bit for bit.

use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use nalgebra::{Matrix3, Rotation3, UnitQuaternion};

use super::dtype::Dtype;
use super::error::{Fault, NiftiError};
use crate::data::geometry::Affine;
use crate::data::orientation::closest_orthogonal;
use crate::data::volume::{Grid, Volume};

/// Header, and four zero bytes: no extension.
const VOX_OFFSET: usize = 352;
/// `NIFTI_INTENT_LABEL`: voxels are indices of something, not to be interpolated.
const INTENT_LABEL: i16 = 1002;
/// `NIFTI_INTENT_NONE`.
const INTENT_NONE: i16 = 0;
/// `NIFTI_XFORM_SCANNER_ANAT`: the world is the scanner's.
const SCANNER: i16 = 1;
/// `NIFTI_UNITS_MM`.
const MILLIMETRES: u8 = 2;

/// Writes label numbers as 8-bit integers.
///
/// # Errors
/// A name that does not end in `.nii` or `.nii.gz`, an axis longer than NIfTI-1 can say (32,767), or the disk's refusal.
pub fn write_labels(path: &Path, labels: &Volume<u8>) -> Result<(), NiftiError> {
    write(path, labels, Dtype::U8, INTENT_LABEL, u8::to_le_bytes)
}

/// Writes an image as 16-bit integers, which hold Hounsfield units exactly.
///
/// # Errors
/// As [`write_labels`].
pub fn write_image_i16(path: &Path, image: &Volume<i16>) -> Result<(), NiftiError> {
    write(path, image, Dtype::I16, INTENT_NONE, i16::to_le_bytes)
}

/// Writes an image as 32-bit floats.
///
/// # Errors
/// As [`write_labels`].
pub fn write_image_f32(path: &Path, image: &Volume<f32>) -> Result<(), NiftiError> {
    write(path, image, Dtype::F32, INTENT_NONE, f32::to_le_bytes)
}

fn write<T: Copy, const N: usize>(
    path: &Path,
    volume: &Volume<T>,
    dtype: Dtype,
    intent: i16,
    bytes_of: fn(T) -> [u8; N],
) -> Result<(), NiftiError> {
    let done = header(volume.grid(), dtype, intent).and_then(|header| {
        replace(path, |out| {
            out.write_all(&header)?;
            write_voxels(out, volume, bytes_of)
        })
    });
    done.map_err(NiftiError::of(path))
}

/// Puts what `content` writes under `path`, in one step: nobody ever sees half of a file there.
fn replace(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Fault> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(Fault::BadName)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The user's umask says who else may read results, as for any other file that the user writes.
    let readable = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().prefix(".writing-").permissions(readable).tempfile_in(folder)?;
    let mut out = BufWriter::new(file.as_file_mut());
    if name.ends_with(".nii.gz") {
        let mut gzip = GzEncoder::new(&mut out, Compression::default());
        content(&mut gzip)?;
        gzip.finish()?;
    } else if name.ends_with(".nii") {
        content(&mut out)?;
    } else {
        return Err(Fault::BadName);
    }
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|refused| refused.error)?;
    Ok(())
}

/// From C order (z fastest) to the file's (x fastest), a plane at a time.
fn write_voxels<T: Copy, const N: usize>(
    out: &mut dyn Write,
    volume: &Volume<T>,
    bytes_of: fn(T) -> [u8; N],
) -> io::Result<()> {
    let [nx, ny, nz] = volume.shape();
    let mut plane = Vec::with_capacity(nx * ny * N);
    for z in 0..nz {
        plane.clear();
        for y in 0..ny {
            (0..nx).for_each(|x| plane.extend(bytes_of(volume.at([x, y, z]))));
        }
        out.write_all(&plane)?;
    }
    Ok(())
}

/// The header in the layout of `nifti1.h`; fields not named stay zero.
fn header(grid: &Grid, dtype: Dtype, intent: i16) -> Result<[u8; VOX_OFFSET], Fault> {
    let qform = Qform::closest(&grid.affine);
    let mut pixdim = [1.0; 8];
    pixdim[0] = qform.handedness;
    let mut dim = [3i16, 1, 1, 1, 1, 1, 1, 1];
    for axis in 0..3 {
        let too_long = || Fault::TooLarge {
            what: "an axis in voxels",
            found: grid.shape[axis] as u64,
            limit: i16::MAX as u64,
        };
        dim[axis + 1] = i16::try_from(grid.shape[axis]).map_err(|_| too_long())?;
        pixdim[axis + 1] = grid.affine.spacing()[axis] as f32;
    }

    let mut bytes = [0; VOX_OFFSET];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &348i32.to_le_bytes());
    put(38, b"r");
    put(40, dim.map(i16::to_le_bytes).as_flattened());
    put(68, &intent.to_le_bytes());
    put(70, &dtype.code().to_le_bytes());
    put(72, &(8 * dtype.size() as i16).to_le_bytes());
    put(76, pixdim.map(f32::to_le_bytes).as_flattened());
    put(108, &(VOX_OFFSET as f32).to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(123, &[MILLIMETRES]);
    put(252, &qform.code.to_le_bytes());
    put(254, &SCANNER.to_le_bytes());
    put(256, qform.quaternion.map(f32::to_le_bytes).as_flattened());
    for row in 0..3 {
        let srow: [f32; 4] = std::array::from_fn(|column| grid.affine.matrix()[(row, column)] as f32);
        put(268 + 4 * row, &srow[3].to_le_bytes());
        put(280 + 16 * row, srow.map(f32::to_le_bytes).as_flattened());
    }
    put(344, b"n+1\0");
    Ok(bytes)
}

/// The rotation that comes closest to an affine.
struct Qform {
    code: i16,
    /// b, c, d; the first part follows from them.
    quaternion: [f32; 3],
    /// −1 when the voxel axes are left-handed (`pixdim[0]`).
    handedness: f32,
}

impl Qform {
    /// A sheared affine is no rotation: then the code says that only the sform holds.
    fn closest(affine: &Affine) -> Self {
        let mut rotation = closest_orthogonal(&affine.linear());
        let spacing = affine.spacing();
        let steps = rotation * Matrix3::from_diagonal(&spacing.into());
        let sheared =
            (steps - affine.linear()).amax() > 1e-3 * spacing.into_iter().fold(f64::INFINITY, f64::min);
        let handedness = if rotation.determinant() < 0.0 { -1.0 } else { 1.0 };
        let turned = -rotation.column(2);
        if handedness < 0.0 {
            rotation.set_column(2, &turned);
        }
        let quaternion = UnitQuaternion::from_rotation_matrix(&Rotation3::from_matrix_unchecked(rotation));
        // The file has no room for the real part: it is taken as not negative.
        let sign = if quaternion.w < 0.0 { -1.0 } else { 1.0 };
        Self {
            code: if sheared { 0 } else { SCANNER },
            quaternion: [quaternion.i, quaternion.j, quaternion.k].map(|part| (sign * part) as f32),
            handedness,
        }
    }
}
