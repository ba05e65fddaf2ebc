//! From files on disk to patches ready for training, and back to the file's own grid.
//!
//! Axis order everywhere is `[x (R), y (A), z (S)]` in C order (z fastest); NIfTI's Fortran order ends in [`nifti`].
//! Look at [`volume`] for the types, [`nifti`] for reading, [`preprocess`] for the road to the network's grid.

pub mod augment;
pub mod cache;
pub mod dataset;
#[cfg(test)]
mod fixtures;
pub mod geometry;
pub mod intensity;
pub mod labels;
pub mod nifti;
pub mod orientation;
pub mod preprocess;
pub mod resample;
pub mod sampler;
pub mod volume;
