//! Local training with masked back-propagation.
//!
//! [`trainer`] is the seam: a global model in, the change of one round out. [`burn_trainer`] computes it with [`loss`],
//! [`optimizer`] and [`schedule`]; [`fake_trainer`] stands in for it wherever the network does not matter. [`tensors`] turns
//! named tensors into updates and artifacts, [`error_feedback`] halves an update and loses nothing, [`state`] keeps what the
//! optimiser remembers, [`checkpoint`] where a round stands; both are written from where the tensors are, without a copy of them.

pub mod burn_trainer;
pub mod checkpoint;
pub mod error_feedback;
pub mod fake_trainer;
pub mod loss;
pub mod optimizer;
mod proximal;
pub mod schedule;
mod sealed;
pub mod state;
pub mod tensors;
pub mod trainer;
