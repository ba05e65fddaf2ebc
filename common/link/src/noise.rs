//! Callers that show nothing of who they are: whoever looks which ports are open, and load balancers that ask whether we live.
//! An open port meets them all day, so each is a line at debug alone, and all of a minute are one at warn: it may be a site
//! behind a broken middlebox.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::Lane;
use crate::error::LinkError;

/// Shortest time between two lines.
const QUIET: Duration = Duration::from_secs(60);

/// Counts what strangers can make happen as often as they like, so that there is a line of it a minute.
#[derive(Debug, Default)]
pub struct Tally {
    /// Since the last line.
    counted: u64,
    said_at: Option<Instant>,
}

impl Tally {
    /// One more; how many to tell of, this one among them, when it is time.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        self.counted = self.counted.saturating_add(1);
        if self.said_at.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.counted))
    }
}

/// Counts such callers on one lane.
#[derive(Debug)]
pub(crate) struct Noise {
    lane: Lane,
    tally: Mutex<Tally>,
}

impl Noise {
    pub(crate) fn new(lane: Lane) -> Self {
        Self { lane, tally: Mutex::default() }
    }

    /// Tells of one more, now or with the next ones.
    pub(crate) fn heard(&self, remote: SocketAddr, why: &LinkError) {
        let (lane, code) = (self.lane.name(), why.code());
        tracing::debug!(%remote, code, "a caller over {lane} is dropped: {why}");
        if let Some(callers) = self.count(Instant::now()) {
            tracing::warn!(callers, last = %remote, code, "callers over {lane} were dropped before they showed who they are");
        }
    }

    /// One more; how many to tell of, when it is time.
    fn count(&self, now: Instant) -> Option<u64> {
        // Whole before and after each change.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).count(now)
    }
}

/// Whether a handshake failed as it does with who is no site: nothing was said, or nothing that is TLS. A certificate that we
/// refuse, or that refuses us, is a site's.
pub fn is_noise(error: &LinkError) -> bool {
    matches!(
        error,
        LinkError::CutOff { .. }
            | LinkError::TooSlow { .. }
            | LinkError::Transport(_)
            | LinkError::Io(_)
            | LinkError::Reset
            | LinkError::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_scan_is_a_line_a_minute_that_says_how_many() {
        let noise = Noise::new(Lane::Tcp);
        let start = Instant::now();
        let at = |seconds| noise.count(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(1), "the first at once");
        assert_eq!([1, 2, 59].map(at), [None; 3]);
        assert_eq!(at(60), Some(4));
        assert_eq!(at(61), None);
        assert_eq!(at(500), Some(2));
    }
}
