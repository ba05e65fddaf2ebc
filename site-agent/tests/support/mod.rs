//! What the parity tests share: the golden files and the synthetic weights that they were made with.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod golden;
pub(crate) mod hash_fill;
