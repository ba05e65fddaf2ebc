//! TLS 1.3 over TCP, for networks that let no UDP out: the same frames and certificates, each exchange a connection of
//! its own.
//!
//! A site's [`Dialer`] makes the first of them, directly or through a [`Proxy`]; the others are dialled as exchanges are
//! opened. The coordinator's [`Listener`] puts those of one certificate together again, so that both sides see one
//! [`Connection`](crate::Connection). The end of what one side says is TLS's own (`close_notify`), never half a TCP
//! connection: firewalls and proxies drop those.

mod dialer;
mod ending;
mod farewell;
mod line;
mod listener;
mod proxy;
mod registry;
mod session;
mod settings;

pub use dialer::{Dialer, Route};
pub use listener::{Knock, Listener};
pub use proxy::{ParseProxyError, Proxy, ProxyError};
pub use settings::TcpSettings;

pub(crate) use ending::Ending;
pub(crate) use line::Line;
pub(crate) use session::Session;
