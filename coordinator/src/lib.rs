//! The consortium's server: invites sites, runs rounds, aggregates updates, reports generalisation.

pub mod clock;
pub mod files;
pub mod pki;
pub mod report;
pub mod store;
