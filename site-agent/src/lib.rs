//! The hospital's binary: reads partially labelled CT, trains locally, evaluates, and is the one way out.
//!
//! Data flows one way: `data` (disk → patches) → `train` (patches → weights, through `model`) → `egress` (weights →
//! coordinator, driven by `client`). `infer` goes from a scan to labels and metrics. Nothing here listens on a port.

pub mod cli;
pub mod client;
pub mod data;
pub mod egress;
#[cfg(test)]
#[path = "../tests/support/golden.rs"]
mod golden;
pub mod infer;
pub mod kernels;
pub mod model;
pub mod phantom;
pub mod train;
