//! The consortium's server: invites sites, runs rounds, aggregates updates, reports generalisation.

pub mod admission;
pub mod clock;
pub mod config;
pub mod driver;
pub mod files;
pub mod import;
pub mod operator;
pub mod pki;
pub mod progress;
pub mod report;
pub mod store;
