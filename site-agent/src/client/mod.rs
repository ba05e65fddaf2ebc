//! The site side of the protocol: one loop around [`ParticipantMachine`](common::participant::ParticipantMachine).
//!
//! [`driver`] is the loop; [`connection`] keeps the link up over one of two [`lane`]s, [`work`] is the thread that trains and evaluates (through
//! [`site_work`], which scores through `scoring`), `last_model` fetches what a study ended with, `waiting` holds what has no room or must not leave before tomorrow, `hearing` what must not be heard before a receipt, `approval` has a study decided about, `returning` gives back what the coordinator's disk lost, [`no_part`] why nothing is done in a study, and the other files are this site's state on disk:
//! [`artifacts`] that were fetched (`base_model` is the one that a round begins from), and, synced because nobody else has it,
//! [`outbox`], [`residual`]s, [`journal`] and what [`state`] names. What leaves goes through [`crate::egress`]. No phase is decided
//! here: that is the machine's. [`finetune`] is apart: rounds without a protocol, which train with the same [`training`]. [`owner`] says whose a file is.

mod actions;
pub mod address;
mod approval;
pub mod artifacts;
mod base_model;
pub mod checkpointing;
pub mod config;
pub mod connection;
pub mod dial;
pub mod driver;
pub mod enroll;
mod errands;
pub mod files;
pub mod finetune;
mod hearing;
pub mod identity;
pub mod journal;
pub mod lane;
mod last_model;
pub mod lock;
pub mod no_part;
pub mod outbox;
pub mod owner;
pub mod residual;
mod returning;
mod scoring;
pub mod site_work;
pub mod state;
pub mod studies;
mod traffic;
pub mod training;
pub mod translate;
mod waiting;
mod words;
pub mod work;
