//! The domain and the protocol of Consilium: pure, without clock, socket, runtime or tensor library.
//!
//! Everything that decides is here, driven by events and a supplied time ([`round`], [`participant`], [`evaluation`]);
//! everything that acts is in the binaries. Foreign bytes enter through [`wire`], foreign files through [`config`].

pub mod aggregate;
pub mod artifact;
pub mod bfloat16;
pub mod config;
pub mod coverage;
pub mod csv;
pub mod disclosure;
pub mod evaluation;
pub mod ids;
pub mod journal;
pub mod label_map;
pub mod manifest;
pub mod metrics;
pub mod participant;
pub mod report;
pub mod rng;
pub mod round;
pub mod signed;
pub mod study;
pub mod taxonomy;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod update;
pub mod wire;
