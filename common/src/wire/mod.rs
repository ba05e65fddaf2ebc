//! What sites and coordinator say to each other: messages, their frozen binary form, and their limits.
//!
//! Every exchange is opened by the site on a bidirectional stream of its own: one [`Request`] frame, then what the
//! request's documentation says. A frame is a `u32` little-endian length and a body in [`codec`]'s form; tensor bytes
//! travel raw, announced by a [`ChunkHeader`]. Wire types are apart from domain types: a message that decodes is well
//! formed, not yet believed. Enum variants are append-only and frozen by golden bytes in the tests.
//!
//! No message carries voxels. I/O is in the crate `link`; what an answer means is in [`crate::round`] and its siblings.

pub mod chunk;
pub mod codec;
mod enroll;
mod notice;
mod refusal;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod words;

pub use chunk::{ChunkError, ChunkHeader, Manifest};
pub use codec::{CodecError, Message};
pub use enroll::{EnrollReply, EnrollRequest, EnrollToken, Enrolled};
pub use notice::{GoodbyeCode, Notice, RoundOutcome, RoundTask};
pub use refusal::{Refusal, RefusalCode};
pub use reply::{Receipt, Reply, Welcome};
pub use request::{DeclineReason, Hello, OfferedUpdate, Request, SignedBytes};
pub use words::Words;

/// ALPN of the protocol between enrolled sites and coordinator: a client certificate is required. The digit is the
/// major version.
pub const ALPN: &[u8] = b"consilium/1";
/// ALPN of enrolment: no client certificate, one stream, one [`EnrollRequest`].
pub const ALPN_ENROLL: &[u8] = b"consilium-enroll/1";

/// Lowest minor version that this build speaks.
pub const MINOR_MIN: u16 = 0;
/// Highest minor version that this build speaks.
pub const MINOR_MAX: u16 = 1;

/// The minor version that two ranges share: the highest; `None` when they do not overlap.
pub fn agree_minor(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let highest = ours.1.min(theirs.1);
    (highest >= ours.0.max(theirs.0)).then_some(highest)
}
