//! Carriers between sites and coordinator: TLS configuration, QUIC, TCP, framing, chunk transfer. No domain decision.
//!
//! A site makes a [`quic::Dialer`] or, where no UDP gets out, a [`tcp::Dialer`]; the coordinator a listener of each. Both
//! sides get a [`Connection`], on which the site opens [`Exchange`]s and the coordinator accepts them. An exchange is a
//! [`framing::FrameReader`] and a [`framing::FrameWriter`] for the messages of [`common::wire`]; tensors go through
//! [`transfer`].
//!
//! What fails is a [`LinkError`], with a stable code and words for the operator. Who may do what is not decided here:
//! the coordinator looks at the [`PeerIdentity`] of each request.

pub mod buffers;
mod callers;
mod close;
mod connection;
mod error;
pub mod failpoint;
pub mod framing;
mod identity;
mod noise;
pub mod quic;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod transfer;
pub mod write_back;

pub use callers::network_of;
pub use close::CloseCode;
pub use connection::{Admitted, Connection, Exchange, Lane, Reader, RecvEnd, SendEnd, Traffic, Writer};
pub use error::{Alert, LinkError};
pub use identity::{IdentityError, PeerIdentity, identity_uri};
pub use noise::{Tally, is_noise};
