//! QUIC: endpoints, the door, and the transport's settings.
//!
//! A site dials ([`Dialer`]) and opens exchanges; the coordinator listens ([`Listener`]) and accepts them, and opens
//! none. [`Knock::admit`] lets a `consilium/1` connection through only with a verified certificate that names a
//! site. "Connected" is what a site may say after the coordinator's Welcome, not after [`Dialer::dial`]: in TLS 1.3 a
//! client is through before the server has looked at its certificate.

mod congestion;
mod dialer;
mod listener;
mod reset;
mod settings;

pub use crate::connection::{Admitted, Connection, Exchange, Reader, RecvEnd, SendEnd, Traffic, Writer};
pub use dialer::Dialer;
#[cfg(test)]
pub(crate) use listener::RETRY_FROM;
pub use listener::{Knock, Listener};
pub use reset::ResetKey;
#[cfg(test)]
pub(crate) use settings::with_large_packets;
pub use settings::{Congestion, QuicSettings, SocketBuffers};
