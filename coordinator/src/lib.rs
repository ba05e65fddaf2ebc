//! The consortium's server: invites sites, runs rounds, aggregates updates, reports generalisation.
//!
//! [`service`] is the running coordinator: [`network`] speaks with sites, [`driver`] runs the studies' machines over the
//! journal in [`store`], [`operator`] answers whoever runs it. [`pki`] makes the consortium's certificates, [`report`]
//! its report; [`doctor`] looks after the store, [`backup`] copies it. What is decided about rounds is in `common`; tensors
//! are names, shapes and bytes here.

pub mod admission;
pub mod backup;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod driver;
pub mod error_report;
pub mod export;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod import;
pub mod network;
mod open_files;
pub mod operator;
pub mod pki;
pub mod progress;
pub mod report;
pub mod service;
pub mod store;
