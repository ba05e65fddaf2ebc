//! From files on disk to patches ready for training, and back to the file's own grid.
//!
//! Axis order everywhere is `[x (R), y (A), z (S)]` in C order (z fastest); NIfTI's Fortran order ends in [`nifti`].
//! Look at [`volume`] for the types, [`nifti`] for reading, [`preprocess`] for the road to the network's grid; at
//! [`dataset`] for what a site has, [`folds`] for cross-validation, [`copies`] for what must not be held out, [`labels`] for what
//! its numbers mean, [`prepared`] and [`sampler`] for what is trained on.

pub mod augment;
pub mod batch;
pub mod cache;
pub mod components;
pub mod copies;
pub mod dataset;
pub mod error;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod folds;
pub mod geometry;
pub mod intensity;
pub mod labels;
pub mod nifti;
pub mod orientation;
pub mod pooled;
pub mod prefetch;
pub mod prepared;
pub mod preprocess;
pub mod resample;
pub mod sampler;
pub mod volume;
pub mod window;

pub use error::DataError;
