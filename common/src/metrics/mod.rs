//! Numbers on label masks: overlap, surface distance, detection, and intervals of means and of differences.
//!
//! Masks are flat slices in C order over `[x, y, z]` (last axis fastest), spacing is in millimetres along the same axes.
//! What is undefined (no truth, no prediction) is `None`, never a convention hidden in a number.

mod detection;
mod interval;
mod overlap;
mod surface;

pub use detection::Detection;
pub use interval::{bootstrap_interval, paired_interval};
pub use overlap::Overlap;
pub use surface::{Grid, normalised_surface_distance};

#[cfg(test)]
mod golden;
