//! Tests of the whole: processes over real QUIC, simulation, parity with the reference, benchmarks.

pub mod simulation;
pub mod small_study;
