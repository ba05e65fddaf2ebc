//! What the parity tests share: the golden files, the model under test, and when two numbers agree.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

pub(crate) mod compare;
pub(crate) mod golden;
pub(crate) mod golden_tensors;
pub(crate) mod hash_fill;
pub(crate) mod stages;
pub(crate) mod swin;
pub(crate) mod under_test;
