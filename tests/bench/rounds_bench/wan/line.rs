//! One direction of an emulated path: its rate, its delay, what it drops.

use std::time::{Duration, Instant};

use common::rng::{ChaCha8Rng, KeyedRng, Rng};

/// Bytes of a packet's headers below UDP.
const HEADERS: usize = 28;

/// What a path is like, both ways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) mbit_s: u32,
    /// One way.
    pub(crate) delay: Duration,
    /// Share of packets that are lost, each for itself.
    pub(crate) loss: f64,
    /// A packet that would wait longer for its turn is dropped.
    pub(crate) queue: Duration,
    pub(crate) seed: u64,
}

/// One direction of it.
#[derive(Debug)]
pub(crate) struct Line {
    path: Path,
    /// When the last packet so far is through.
    free_at: Option<Instant>,
    draws: ChaCha8Rng,
}

impl Line {
    /// `name` tells the two directions' losses apart.
    pub(crate) fn new(path: Path, name: &str) -> Self {
        Self { path, free_at: None, draws: KeyedRng::new(path.seed).purpose(name).rng() }
    }

    /// When a packet that comes now comes out at the other end; `None`: never.
    pub(crate) fn carry(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        if self.waits(now) > self.path.queue {
            return None;
        }
        let out = self.pass(now, bytes + HEADERS);
        // It took its turn all the same: what is lost is lost behind the bottleneck.
        (self.draws.random::<f64>() >= self.path.loss).then_some(out)
    }

    /// When bytes of a stream come out; nothing of a stream is dropped.
    pub(crate) fn carry_stream(&mut self, now: Instant, bytes: usize) -> Instant {
        self.pass(now, bytes)
    }

    /// How long what comes now waits longer than the queue holds.
    pub(crate) fn overfull(&self, now: Instant) -> Duration {
        self.waits(now).saturating_sub(self.path.queue)
    }

    fn waits(&self, now: Instant) -> Duration {
        self.free_at.map_or(Duration::ZERO, |free_at| free_at.saturating_duration_since(now))
    }

    fn pass(&mut self, now: Instant, bytes: usize) -> Instant {
        let takes = Duration::from_nanos(bytes as u64 * 8000 / u64::from(self.path.mbit_s));
        let through = now + self.waits(now) + takes;
        self.free_at = Some(through);
        through + self.path.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: Path = Path {
        mbit_s: 100,
        delay: Duration::from_millis(25),
        loss: 0.0,
        queue: Duration::from_millis(50),
        seed: 1,
    };

    #[test]
    fn packets_take_their_turn_and_those_beyond_the_queue_are_dropped() {
        let mut line = Line::new(PATH, "up");
        let now = Instant::now();
        // 1222 bytes and their headers are 100 µs of 100 Mbit/s.
        let out: Vec<_> = (0..1000).filter_map(|_| line.carry(now, 1222)).collect();
        assert_eq!(out[0], now + Duration::from_micros(25_100));
        assert_eq!(out[9], now + Duration::from_micros(26_000));
        assert_eq!(out.len(), 501);
        assert!(line.overfull(now) > Duration::ZERO && line.carry(now, 1222).is_none());
        let later = now + Duration::from_secs(1);
        assert_eq!(line.carry(later, 1222), Some(later + Duration::from_micros(25_100)));
    }

    #[test]
    fn losses_are_the_seeds() {
        let lost = |seed, name| -> Vec<usize> {
            let mut line = Line::new(Path { loss: 0.01, seed, queue: Duration::MAX, ..PATH }, name);
            let now = Instant::now();
            (0..10_000).filter(|_| line.carry(now, 1222).is_none()).collect()
        };
        assert_eq!(lost(1, "up"), lost(1, "up"));
        assert!(lost(1, "up") != lost(2, "up") && lost(1, "up") != lost(1, "down"));
        assert!((50..200).contains(&lost(1, "up").len()));
    }

    #[test]
    fn a_stream_waits_and_loses_nothing() {
        let mut line = Line::new(Path { loss: 1.0, ..PATH }, "up");
        let now = Instant::now();
        // 1.25 MB are 100 ms, of which the queue holds 50.
        assert_eq!(line.carry_stream(now, 1_250_000), now + Duration::from_millis(125));
        assert_eq!(line.overfull(now), Duration::from_millis(50));
    }
}
