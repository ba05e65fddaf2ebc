//! (aggregate)

pub mod weights;
