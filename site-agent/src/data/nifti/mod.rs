//! NIfTI files in and out: `.nii`, `.nii.gz` and `.hdr`/`.img` pairs, versions 1 and 2, both byte orders.
//!
//! A file is a claim, not a fact. Every size in a header is compared with the length of the file (for gzip: with what
//! deflate can expand it to) and with [`Limits`] before memory is asked for; nothing here panics on a file's content.
//! What the numbers mean (Hounsfield units, label numbers) is for [`super::intensity`] and [`super::labels`].
//!
//! The `nifti` crate is not used for reading: it knows NIfTI-1 alone, allocates on the header's word, and scales labels by a
//! cast that truncates. Writing with it needs its own array type and gives no say in the two orientation fields.
//! It serves our tests as a second opinion on both.
//!
//! Read on in `header` (what is believed), `source` (bytes), `dtype` (voxels), `write`.

mod dtype;
mod error;
mod header;
mod source;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path;

use rayon::prelude::*;

pub use self::error::{Fault, NiftiError};
pub use self::header::PlacedBy;
use self::header::{Header, LONGEST};
use self::source::Source;
pub use self::source::files_of;
pub use self::write::{write_image_f32, write_image_i16, write_labels};
use super::volume::{Grid, Volume};

/// How much a file may ask of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most voxels in a volume.
    pub voxels: u64,
    /// Most bytes held while reading: the stored voxels, and up to eight for each decoded one.
    pub bytes: u64,
}

/// A whole-body CT of 512 × 512 × 2,048 voxels fits, stored as 16-bit integers or 32-bit floats.
impl Default for Limits {
    fn default() -> Self {
        Self { voxels: 1 << 29, bytes: 6 << 30 }
    }
}

/// Bytes tolerated after the voxels: some tools fill the last block of a disk.
const PADDING: u64 = 4096;

/// A label must be this close to a whole number: float files round, interpolated labels do not.
const LABEL_TOLERANCE: f64 = 1e-3;

/// An image as its file has it.
#[derive(Clone, Debug)]
pub struct Image {
    /// slope · stored + intercept, on the file's own grid.
    pub volume: Volume<f32>,
    /// Where the grid's affine was read from.
    pub placed_by: PlacedBy,
}

/// Reads an image: slope · stored + intercept for each voxel, in the file's own axes.
///
/// # Errors
/// Whatever [`Fault`] names. Voxels that are not finite are an error: nobody but the owner of the scan knows what was there.
pub fn read_image(path: &Path, limits: &Limits) -> Result<Image, NiftiError> {
    let file = Stored::read(path, limits).map_err(NiftiError::of(path))?;
    let voxels: Vec<f32> = file.decode(|value| value as f32);
    let count = voxels.par_iter().filter(|value| !value.is_finite()).count();
    if count > 0 {
        return Err(NiftiError::of(path)(Fault::NonFinite { count, total: voxels.len() }));
    }
    Ok(Image { placed_by: file.header.placed_by, volume: Volume::new(file.grid(), voxels) })
}

/// Where the voxels of a file lie, by its header alone.
///
/// # Errors
/// Whatever [`Fault`] names of a header.
pub fn read_grid(path: &Path) -> Result<Grid, NiftiError> {
    let read = || -> Result<Grid, Fault> {
        let header = read_header(&mut Source::open(&source::header_path(path)?)?)?;
        Ok(Grid { shape: header.shape, affine: header.affine })
    };
    read().map_err(NiftiError::of(path))
}

/// Reads labels: slope · stored + intercept in `f64`, within 1e-3 of a whole number, rounded; in the file's own axes.
///
/// Which numbers are allowed, and what they mean, is the label map's to say.
///
/// # Errors
/// Whatever [`Fault`] names; [`Fault::NotALabel`] gives the first value that is no whole number of 32 bits, and how many are.
pub fn read_labels(path: &Path, limits: &Limits) -> Result<Volume<i32>, NiftiError> {
    let file = Stored::read(path, limits).map_err(NiftiError::of(path))?;
    let labels: Vec<Option<i32>> = file.decode(as_label);
    let count = labels.par_iter().filter(|label| label.is_none()).count();
    if count > 0 {
        let values: Vec<f64> = file.decode(|value| value);
        let odd = values.into_iter().find(|value| as_label(*value).is_none());
        let fault = Fault::NotALabel { value: odd.unwrap_or(f64::NAN), count, total: labels.len() };
        return Err(NiftiError::of(path)(fault));
    }
    Ok(Volume::new(file.grid(), labels.into_iter().flatten().collect()))
}

fn as_label(value: f64) -> Option<i32> {
    let whole = value.round();
    let close = (value - whole).abs() <= LABEL_TOLERANCE;
    // Within the range of i32 (which excludes NaN), the cast keeps a whole number.
    let fits = (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&whole);
    (close && fits).then_some(whole as i32)
}

/// A file's header and the bytes of its voxels, exactly as many as the header declares.
struct Stored {
    header: Header,
    bytes: Vec<u8>,
}

impl Stored {
    fn read(path: &Path, limits: &Limits) -> Result<Self, Fault> {
        let header_path = source::header_path(path)?;
        let mut source = Source::open(&header_path)?;
        let header = read_header(&mut source)?;
        if header.is_pair {
            source = Source::open(&source::image_path(&header_path)?)?;
        }
        let bytes = read_voxels(&mut source, &header, limits)?;
        Ok(Self { header, bytes })
    }

    fn grid(&self) -> Grid {
        Grid { shape: self.header.shape, affine: self.header.affine }
    }

    /// The scaled values in C order, each through `value`.
    fn decode<T: Copy + Default + Send>(&self, value: impl Fn(f64) -> T + Sync) -> Vec<T> {
        let Header { shape, dtype, big_endian, scaling: (slope, inter), .. } = self.header;
        dtype::decode(&self.bytes, shape, dtype, big_endian, |stored| value(slope * stored + inter))
    }
}

fn read_header(source: &mut Source) -> Result<Header, Fault> {
    let mut bytes = [0; LONGEST];
    // The shorter header first: in a pair, nothing follows it.
    let mut start = source.take(header::Version::One.len() as u64, "the header")?;
    if start.starts_with(&540u32.to_le_bytes()) || start.starts_with(&540u32.to_be_bytes()) {
        start.extend(source.take((LONGEST - start.len()) as u64, "the header")?);
    }
    bytes.iter_mut().zip(&start).for_each(|(to, from)| *to = *from);
    let (version, big_endian) = header::sniff(&bytes, start.len())?;
    Header::parse(&bytes, version, big_endian)
}

fn read_voxels(source: &mut Source, header: &Header, limits: &Limits) -> Result<Vec<u8>, Fault> {
    let (voxels, declared) = header.voxels_and_bytes()?;
    let misplaced = || Fault::BadVoxOffset { found: header.vox_offset as f64, least: 0 };
    let possible = source.at_most.checked_sub(header.vox_offset).ok_or_else(misplaced)?;
    if declared > possible {
        return Err(Fault::DimsExceedData { declared, possible });
    }
    check_limits(voxels, declared, limits)?;
    if !source.skip_to(header.vox_offset)? {
        return Err(misplaced());
    }
    let mut bytes = source.take(declared.saturating_add(PADDING + 1), "the voxels")?;
    let found = bytes.len() as u64;
    if found < declared {
        return Err(Fault::DimsExceedData { declared, possible: found });
    }
    if found - declared > PADDING {
        return Err(Fault::TrailingData { declared, tolerated: PADDING });
    }
    bytes.truncate(bytes.len() - (found - declared) as usize);
    Ok(bytes)
}

fn check_limits(voxels: u64, declared: u64, limits: &Limits) -> Result<(), Fault> {
    let held = declared.saturating_add(voxels.saturating_mul(8));
    let within =
        |what, found, limit| if found > limit { Err(Fault::TooLarge { what, found, limit }) } else { Ok(()) };
    within("a volume in voxels", voxels, limits.voxels)?;
    within("a volume in bytes of memory", held, limits.bytes)
}
