//! From a scan to labels and metrics: sliding windows over the network's grid, and back to the scan's own grid.
//!
//! Nothing here knows the network: it is a [`Predictor`], patches in and logits out, so that every test of geometry,
//! blending and metrics runs with a predictor written in a line. Nothing here sends anything either; what an evaluation
//! finds leaves the site through `egress`.
//!
//! [`predict`] makes masks and [`probabilities`], [`postprocess`] cleans them, [`merge`] makes one label per voxel of them,
//! with [`colours`] and a [`preview`]; [`pseudo_labels`] makes a data set of them; [`evaluate`] compares them with the
//! truth, [`overlay`] draws both; [`location`] is the baseline that looks at no organ. [`features`] reads what the network
//! holds for voxels of each class, and [`tsne`] lays that out in a plane.

pub mod colours;
pub(crate) mod distinct;
pub mod evaluate;
pub mod features;
pub mod location;
pub mod masks;
pub mod merge;
pub mod morphology;
pub mod network;
pub mod overlay;
pub mod picture;
pub mod postprocess;
pub mod predict;
pub mod preview;
pub mod probabilities;
pub mod pseudo_labels;
mod slices;
pub mod sliding_window;
#[cfg(test)]
pub(crate) mod testing;
pub mod tsne;
mod upsample;

use self::masks::ClassMasks;
use crate::data::DataError;
use crate::data::nifti::Image;
use crate::data::resample::ResampleError;

/// Whatever labels a scan.
pub trait Segmenter {
    /// The masks of all classes on the grid of the image's file.
    ///
    /// # Errors
    /// Why the scan cannot be labelled.
    fn segment(&self, image: Image) -> Result<ClassMasks, InferError>;
}

/// A network as inference sees it.
pub trait Predictor {
    /// Number of channels of the logits; class `k` is channel `k - 1`.
    fn classes(&self) -> usize;

    /// Logits `[classes, x, y, z]` of one patch `[1, x, y, z]` of windowed intensities (0 to 1), C order.
    ///
    /// # Errors
    /// [`InferError::Cancelled`] when the caller asked to stop, [`InferError::Network`] when the network cannot.
    fn logits(&self, patch: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError>;

    /// Logits `[n, classes, x, y, z]` of `n` patches `[n, 1, x, y, z]` of one shape: those of [`Self::logits`], to the bit, for a
    /// network on the CPU.
    ///
    /// # Errors
    /// As [`Self::logits`].
    fn batch_logits(&self, patches: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        let mut each = patches.chunks_exact(shape.iter().product()).map(|patch| self.logits(patch, shape));
        let mut all = each.next().transpose()?.unwrap_or_default();
        for logits in each {
            all.extend(logits?);
        }
        Ok(all)
    }

    /// Hears, before the first patch of a scan, how many patches there will be.
    fn begin(&self, _windows: usize) {}
}

/// Why inference ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The agent is shutting down or the request was withdrawn.
    #[error("stopped on request")]
    Cancelled,
    /// The predictor gave another number of logits than its classes and the patches demand.
    #[error("the network returned {got} numbers: expected {expected}")]
    Logits {
        /// Numbers that classes × voxels demand.
        expected: usize,
        /// Numbers returned.
        got: usize,
    },
    /// The predictor gave logits that are no numbers: thresholded, they would pass for a scan that shows nothing.
    #[error(
        "{count} logits of the network are not finite numbers: the model is damaged, or its training diverged"
    )]
    NotFinite {
        /// How many, of the patches that were asked for together.
        count: usize,
    },
    /// The network refused the patch.
    #[error("the network")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A scan or its labels cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A scan too large for the study's grid.
    #[error(transparent)]
    Resample(#[from] ResampleError),
    /// A result could not be written.
    #[error(transparent)]
    File(#[from] crate::client::files::FileError),
}
