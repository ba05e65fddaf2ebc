//! One connection to the coordinator, kept up: dial, Hello, Welcome, notices; after a break, again.
//!
//! "Connected" is said after Welcome only: in TLS 1.3 the coordinator looks at our certificate after we are through.
//! A task of its own reads the notices, because a half-read frame is lost when a read is dropped.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use common::wire::{Notice, Welcome, Words};
use link::quic::{Connection, Dialer, QuicSettings};
use link::{CloseCode, LinkError, tls};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::enroll::any_port;
use super::identity::Identity;
use crate::egress::ask;

/// What the connection task tells the agent.
#[derive(Debug)]
pub enum LinkEvent {
    /// The coordinator welcomed us.
    Up(Connection, Welcome),
    /// The coordinator has news.
    Notice(Notice),
    /// The connection ended, or could not be made.
    Down {
        /// Why, in words for the operator.
        problem: String,
        /// What the operator can do about it.
        hint: Option<&'static str>,
        /// Whether trying again can help while nobody does anything.
        passes: bool,
        /// When it is tried again.
        retry_in: Duration,
    },
}

/// Where to dial, and as whom.
pub struct Dial {
    /// The coordinator.
    pub coordinator: Address,
    /// Congestion control and windows.
    pub settings: QuicSettings,
    /// Keys and certificates.
    pub credentials: tls::Credentials,
    /// The pinned root.
    pub root: rustls_pki_types::CertificateDer<'static>,
}

impl Dial {
    /// Of an enrolled site.
    pub fn new(coordinator: Address, identity: &Identity, settings: QuicSettings) -> Self {
        let (credentials, root) = (identity.credentials.clone(), identity.root.clone());
        Self { coordinator, settings, credentials, root }
    }

    /// Dials once and says Hello.
    ///
    /// # Errors
    /// Why there is no Welcome.
    pub(crate) async fn connect(&self) -> Result<(Dialer, Connection, Welcome, ask::WatchStream), LinkError> {
        let remote = self.coordinator.resolve().await.map_err(LinkError::Io)?;
        let config = tls::site_config(self.credentials.clone(), &self.root)?;
        let dialer = Dialer::bind(any_port(remote), config, self.settings.clone())?;
        let connection = dialer.dial(remote, self.coordinator.host()).await?;
        match ask::watch(&connection).await {
            Ok((welcome, watch)) => Ok((dialer, connection, welcome, watch)),
            // The connection's own end says more than the broken stream.
            Err(error) => Err(connection.close_reason().filter(|_| error.is_transient()).unwrap_or(error)),
        }
    }

    /// Keeps a connection up until `stop`; ends when the agent is gone.
    pub async fn keep_connected(self, out: mpsc::Sender<LinkEvent>, stop: CancellationToken) {
        let mut waits = back_off();
        while !stop.is_cancelled() {
            let outcome = tokio::select! {
                outcome = self.session(&out, &stop) => outcome,
                () = stop.cancelled() => return,
            };
            let (welcomed, error) = match outcome {
                Session::Stopped => return,
                Session::Ended { welcomed, error } => (welcomed, error),
            };
            if welcomed {
                waits = back_off();
            }
            let wait = waits.next().unwrap_or(LONGEST_WAIT);
            let (problem, hint, passes) = (error.to_string(), error.hint(), error.is_transient());
            let down = LinkEvent::Down { problem, hint, passes, retry_in: wait };
            if out.send(down).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection from dial to end.
    async fn session(&self, out: &mpsc::Sender<LinkEvent>, stop: &CancellationToken) -> Session {
        let (dialer, connection, welcome, mut watch) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => return Session::Ended { welcomed: false, error },
        };
        if out.send(LinkEvent::Up(connection.clone(), welcome)).await.is_err() {
            return Session::Stopped;
        }
        let reading = async {
            loop {
                match watch.next().await {
                    Ok(Some(notice)) => {
                        if out.send(LinkEvent::Notice(notice)).await.is_err() {
                            return LinkError::ClosedHere;
                        }
                    }
                    Ok(None) => return connection.closed().await,
                    Err(error) => return connection.close_reason().unwrap_or(error),
                }
            }
        };
        let ended = tokio::select! {
            error = reading => Session::Ended { welcomed: true, error },
            () = stop.cancelled() => Session::Stopped,
        };
        connection.close(CloseCode::Done, &Words::default());
        // The other side is told, or forgets us when nothing is heard.
        let _ = tokio::time::timeout(Duration::from_secs(2), dialer.close()).await;
        ended
    }
}

enum Session {
    Stopped,
    Ended { welcomed: bool, error: LinkError },
}

const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One second, doubled up to a minute, with jitter: a coordinator that comes back is not stormed.
fn back_off() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(LONGEST_WAIT)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute_and_never_end() {
        let waits: Vec<_> = back_off().take(30).collect();
        assert_eq!(waits.len(), 30);
        assert!(waits[0] >= Duration::from_secs(1) && waits[0] < Duration::from_secs(3));
        assert!(waits[29] >= LONGEST_WAIT && waits[29] <= 2 * LONGEST_WAIT);
    }
}
