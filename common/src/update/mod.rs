//! An update: the delta of the trainable tensors from one global model, offered, checked and believed. Its numbers are f32, or
//! bfloat16 where the study says so; norm and finiteness are those of the numbers as f32.
//!
//! [`UpdateOffer`] is what a site says it has. Bytes that came become a [`CheckedChunk`], the proof that they were looked
//! at: what writes them and what counts them take the proof, so each chunk is hashed once. [`UpdateVerifier`] sees every
//! proof, does no I/O, and alone makes a [`VerifiedUpdate`]; so what aggregation takes has been checked. What was found is
//! kept as a [`Verification`] beside the update: a new verifier believes it of the content that it names and of no other,
//! and aggregation compares every chunk that it reads with that name.

mod chunk;
mod offer;
mod rejection;
#[cfg(test)]
mod tests;
mod verification;
mod verifier;

pub use chunk::{CheckedChunk, ZeroChunks};
pub use offer::UpdateOffer;
pub use rejection::Rejection;
pub use verification::Verification;
pub use verifier::{UpdateExpectation, UpdateVerifier, VerifiedUpdate};
