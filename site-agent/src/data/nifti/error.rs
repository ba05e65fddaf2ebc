//! Why a NIfTI file was refused, in words for the person who has the file.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A NIfTI file that was not read or written, and why.
#[derive(Debug, Error)]
#[error("{}: {fault}\n\nhint: {}", file.display(), fault.hint())]
pub struct NiftiError {
    /// The file as it was named to us. For the eyes of the site alone.
    pub file: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

impl NiftiError {
    /// Names the file that a fault was found in.
    pub(super) fn of(file: &Path) -> impl Fn(Fault) -> Self + '_ {
        move |fault| Self { file: file.to_owned(), fault }
    }

    /// A stable short name of the fault.
    pub fn code(&self) -> &'static str {
        self.fault.code()
    }
}

/// What can be wrong with a NIfTI file: what was expected, what was found.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the text of each variant says it; the fields are the numbers in the text")]
pub enum Fault {
    #[error("cannot be opened or read: {0}")]
    Io(#[from] io::Error),
    #[error("the file ends after {found} bytes, inside {part}")]
    Truncated { part: &'static str, found: u64 },
    #[error("the gzip stream is damaged: {0}")]
    CorruptGzip(io::Error),
    #[error("not a NIfTI file: it starts with {found:?}, not with the size of a header (348 or 540)")]
    NotNifti { found: [u8; 4] },
    #[error("not a NIfTI file: the magic word is `{found}`, expected {expected}")]
    BadMagic { expected: &'static str, found: String },
    #[error("the header is damaged: {field} is {found}, expected {expected}")]
    BadHeader { field: &'static str, expected: &'static str, found: String },
    #[error(
        "the sizes in the header are impossible: dim is {dim:?}, expected a number of axes and that many sizes of 1 or more"
    )]
    BadDims { dim: [i64; 8] },
    #[error("expected one volume with three axes, found axes of {sizes:?} voxels")]
    Not3d { sizes: Vec<i64> },
    #[error("the header declares {declared} bytes of voxels, the file can hold at most {possible}")]
    DimsExceedData { declared: u64, possible: u64 },
    #[error("{what} of {found} is above the limit of {limit}")]
    TooLarge { what: &'static str, found: u64, limit: u64 },
    #[error("more than {tolerated} bytes follow the {declared} bytes of voxels that the header declares")]
    TrailingData { declared: u64, tolerated: u64 },
    #[error("the header places the voxels at byte {found}, expected at least {least} and inside the file")]
    BadVoxOffset { found: f64, least: u64 },
    #[error(
        "voxels of NIfTI data type {code} are not supported, expected integers of 8 to 64 bits or floats of 32 or 64"
    )]
    UnsupportedDtype { code: i16 },
    #[error("the file does not say where the voxels lie: {why}")]
    BadAffine { why: String },
    #[error("{count} of {total} voxels are not finite numbers (NaN or infinite)")]
    NonFinite { count: usize, total: usize },
    #[error("{count} of {total} voxels hold no label number, the first of them {value}")]
    NotALabel { value: f64, count: usize, total: usize },
    #[error("the {missing} of the .hdr/.img pair is missing, looked for {}", looked_for.display())]
    MissingHalf { missing: &'static str, looked_for: PathBuf },
    #[error("the name of a NIfTI file to be written ends in .nii or .nii.gz")]
    BadName,
}

impl Fault {
    /// A stable short name, for tables and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Truncated { .. } => "truncated",
            Self::CorruptGzip(_) => "corrupt_gzip",
            Self::NotNifti { .. } => "not_nifti",
            Self::BadMagic { .. } => "bad_magic",
            Self::BadHeader { .. } => "bad_header",
            Self::BadDims { .. } => "bad_dims",
            Self::Not3d { .. } => "not_3d",
            Self::DimsExceedData { .. } => "dims_exceed_data",
            Self::TooLarge { .. } => "too_large",
            Self::TrailingData { .. } => "trailing_data",
            Self::BadVoxOffset { .. } => "bad_vox_offset",
            Self::UnsupportedDtype { .. } => "unsupported_dtype",
            Self::BadAffine { .. } => "bad_affine",
            Self::NonFinite { .. } => "non_finite",
            Self::NotALabel { .. } => "not_a_label",
            Self::MissingHalf { .. } => "missing_half",
            Self::BadName => "bad_name",
        }
    }

    /// What the person who has the file can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io(_) => "check that the file is there and that this user may read it",
            Self::Truncated { .. } | Self::CorruptGzip(_) | Self::DimsExceedData { .. } => {
                "the copy is probably incomplete: copy or export the file again"
            }
            Self::NotNifti { .. } | Self::BadMagic { .. } => {
                "export the scan as NIfTI, for example with dcm2niix; DICOM, NRRD and ANALYZE are not read"
            }
            Self::BadHeader { .. }
            | Self::BadDims { .. }
            | Self::BadVoxOffset { .. }
            | Self::TrailingData { .. } => {
                "the header does not describe the file: export it again from the original"
            }
            Self::Not3d { .. } => "split a series into one file for each volume",
            Self::TooLarge { .. } => {
                "a scan of this size is not read, to protect the memory of this machine: crop it"
            }
            Self::UnsupportedDtype { .. } => {
                "colour and complex images are not CT: export the original grey values"
            }
            Self::BadAffine { .. } => "export the file again with its orientation (sform or qform)",
            Self::NonFinite { .. } => {
                "replace these voxels in the original, for example by -1024 outside of the scan"
            }
            Self::NotALabel { .. } => {
                "label files hold whole numbers (within 0.001, after scaling): export without interpolation"
            }
            Self::MissingHalf { .. } => "keep both files of a pair in one folder, under one name",
            Self::BadName => "choose another name",
        }
    }
}
