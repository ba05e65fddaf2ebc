//! Local training with masked back-propagation.

pub mod loss;
pub mod optimizer;
pub mod schedule;
