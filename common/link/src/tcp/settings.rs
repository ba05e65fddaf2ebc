//! Times and limits of the TCP lane, and what the operating system is asked for.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::quic::Congestion;

/// Most that Linux takes.
const MOST_PROBES: u32 = 127;

/// Settings of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Congestion control, where the operating system has it and lets us choose.
    pub congestion: Congestion,
    /// How often a silent connection is kept alive, so that no middlebox forgets it.
    pub keep_alive: Duration,
    /// How long a silent peer is taken for alive.
    pub idle_timeout: Duration,
    /// How long TCP, proxy and TLS may take together until an exchange is open.
    pub handshake_timeout: Duration,
    /// Exchanges of one connection that may be open at once.
    pub max_exchanges: usize,
    /// Coordinator: handshakes under way at once, over all addresses. More wait in the operating system's queue.
    pub handshakes: usize,
    /// Coordinator: handshakes under way at once from one address. More are dropped. A hospital is one address.
    pub handshakes_per_address: usize,
}

impl TcpSettings {
    /// For a site.
    pub const fn site() -> Self {
        Self {
            congestion: Congestion::Bbr,
            keep_alive: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            max_exchanges: 8,
            handshakes: 0,
            handshakes_per_address: 0,
        }
    }

    /// For a coordinator.
    pub const fn coordinator() -> Self {
        Self { max_exchanges: 32, handshakes: 128, handshakes_per_address: 32, ..Self::site() }
    }

    /// Asks the operating system for keep-alive, and for small frames at once.
    pub(super) fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        let keep_alive = TcpKeepalive::new()
            .with_time(self.keep_alive)
            .with_interval(self.keep_alive)
            .with_retries(self.unanswered_probes());
        socket.set_tcp_keepalive(&keep_alive)?;
        let congestion: &[u8] = match self.congestion {
            Congestion::Bbr => b"bbr",
            Congestion::Cubic => b"cubic",
        };
        // The kernel may lack it, or keep it for itself: then its default serves.
        let _ = socket.set_tcp_congestion(congestion);
        Ok(())
    }

    /// Asks it for an end to what nobody acknowledges or takes for `idle_timeout`. Linux counts the time in which the other
    /// side acknowledges each probe but reads nothing: not for a line whose bytes may wait for their turn.
    pub(super) fn bound_silence(&self, stream: &TcpStream) -> io::Result<()> {
        SockRef::from(stream).set_tcp_user_timeout(Some(self.idle_timeout))
    }

    /// Probes that go unanswered before a line on which nothing is said is given up, after about `idle_timeout`.
    fn unanswered_probes(&self) -> u32 {
        let probes = self.idle_timeout.as_secs() / self.keep_alive.as_secs().max(1);
        u32::try_from(probes).unwrap_or(MOST_PROBES).clamp(1, MOST_PROBES)
    }
}
