//! From a scan to labels and metrics: sliding windows over the network's grid, and back to the scan's own grid.
//!
//! Nothing here knows the network: it is a [`Predictor`], a patch in and logits out, so that every test of geometry,
//! blending and metrics runs with a predictor written in a line. Nothing here sends anything either; what an evaluation
//! finds leaves the site through `egress`.

//pub mod masks;
pub mod sliding_window;

/// A network as inference sees it.
pub trait Predictor {
    /// Number of channels of the logits; class `k` is channel `k - 1`.
    fn classes(&self) -> usize;

    /// Logits `[classes, x, y, z]` of one patch `[1, x, y, z]` of windowed intensities (0 to 1), C order.
    ///
    /// # Errors
    /// [`InferError::Cancelled`] when the caller asked to stop.
    fn logits(&self, patch: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError>;
}

/// Why inference ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The agent is shutting down or the request was withdrawn.
    #[error("stopped on request")]
    Cancelled,
    /// The predictor gave another number of logits than its classes and the patch demand.
    #[error("the network returned {got} numbers: expected {expected}")]
    Logits {
        /// Numbers that classes × voxels demand.
        expected: usize,
        /// Numbers returned.
        got: usize,
    },
}
