//! What can be wrong with a site's data. For the eyes of the site alone: these errors name files.

use std::io;
use std::path::{Path, PathBuf};

use common::config::Diagnostics;
use common::label_map::AnnotationError;

use super::folds::FoldError;
use super::geometry::GeometryMismatch;
use super::intensity::NotHounsfield;
use super::labels::LabelError;
use super::nifti::NiftiError;
use super::orientation::NoOrientation;
use super::resample::ResampleError;

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A label map or case table with mistakes.
    #[error(transparent)]
    Config(#[from] Diagnostics),
    /// Folders that are not a data set, or contradict its table: every mistake.
    #[error("data set `{dataset}`:\n  {}", .mistakes.join("\n  "))]
    Dataset {
        /// The data set.
        dataset: String,
        /// Its mistakes.
        mistakes: Vec<String>,
    },
    /// One patient's scans are divided between training and validation.
    #[error("patient `{patient}` is in training and in validation: splits are by patient")]
    PatientInTwoSplits {
        /// The patient, by the name in the case table.
        patient: String,
    },
    /// Scans that are trained on and held out.
    #[error(
        "the same scan is trained on and held out under two names: exclude one in cases.toml, or give both the same `patient` and \
         the same `split` there (with folds, then deal anew):\n  {}",
        .pairs.join("\n  ")
    )]
    Copies {
        /// The names of each two, with what they are used for.
        pairs: Vec<String>,
    },
    /// Folds that do not fit the scans.
    #[error(transparent)]
    Folds(#[from] FoldError),
    /// Labels that a model made, where the study wants those of annotators alone.
    #[error(
        "data set `{dataset}` is labelled by a model, and the study does not allow that: take it out of site.toml, or \
         take part in a study with `pseudo_labels = true`"
    )]
    PseudoLabels {
        /// The data set.
        dataset: String,
    },
    /// A file that is no usable NIfTI.
    #[error(transparent)]
    Nifti(#[from] NiftiError),
    /// A case that was read and makes no sense.
    #[error("case `{case}`: {fault}")]
    Case {
        /// `dataset/case`.
        case: String,
        /// What is wrong with it.
        fault: Box<CaseFault>,
    },
    /// Cases of which all were to be read: what is wrong with each.
    #[error("{} of {of} scans cannot be read:\n  {}", .faults.len(), .faults.join("\n  "))]
    Unreadable {
        /// How many were looked at.
        of: usize,
        /// What is wrong, by case.
        faults: Vec<String>,
    },
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing to train on.
    #[error("no training case")]
    NoCases,
    /// Whoever prepares the batches ended before all were there.
    #[error("a batch that a step needs never came: what prepares them has ended, and its message is above")]
    NoBatch,
}

/// What is wrong with one case.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is the error that it wraps")]
pub enum CaseFault {
    #[error(transparent)]
    NotHounsfield(#[from] NotHounsfield),
    #[error(transparent)]
    NoOrientation(#[from] NoOrientation),
    #[error(transparent)]
    Labels(#[from] LabelError),
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error(transparent)]
    Resample(#[from] ResampleError),
    #[error(transparent)]
    Geometry(#[from] GeometryMismatch),
}

impl DataError {
    /// Names the case that a fault was found in.
    pub(crate) fn of_case<F: Into<CaseFault>>(case: &str) -> impl Fn(F) -> Self + '_ {
        move |fault| Self::Case { case: case.to_owned(), fault: Box::new(fault.into()) }
    }

    /// Names the file or folder that the system complained about.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
