//! The universal model in burn.
pub mod cpu_ops;
