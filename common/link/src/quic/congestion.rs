//! BBR version 2 for quinn, whose own is version 1: it takes the rate of single bursts for the line's and never lowers it, so that a
//! line of 100 Mbit/s may get several times what it carries, until its gaps end the connection (docs/decisions/0026).
//!
//! The algorithm is s2n-quic's; here is what translates. quinn tells of each acknowledged packet and then of the end of the batch;
//! s2n-quic wants a batch at once, with what it knew when the newest packet of it was sent. quinn paces by the window, not by a rate.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use num_rational::Ratio;
use quinn::congestion::{Controller, ControllerFactory};
use s2n_quic_core::event::builder::{BbrState, SlowStartExitCause};
use s2n_quic_core::inet::SocketAddress;
use s2n_quic_core::packet::number::PacketNumberSpace;
use s2n_quic_core::path::Config;
use s2n_quic_core::random::Generator;
use s2n_quic_core::recovery::bandwidth::{Bandwidth, PacketInfo, RateSample};
use s2n_quic_core::recovery::bbr::{BbrCongestionController, builder::Builder};
use s2n_quic_core::recovery::congestion_controller::{Endpoint as _, PathInfo, Publisher};
use s2n_quic_core::recovery::{CongestionController as _, RttEstimator};
use s2n_quic_core::time::{Clock as _, NoopClock, Timestamp};

/// Bytes that may be under way before anything is known of a path: half of what quinn's BBR begins with. Ten packets (RFC 9002, section
/// 7.2) would take six round trips to fill 100 Mbit/s over 50 ms, and an update over a gigabit is through in some twenty.
const INITIAL_WINDOW: u32 = 120_000;
/// Per cent of a round trip's packets that may be lost before BBR takes it for a full queue. Its 2 are less than one packet of a line of
/// 5 Mbit/s over 50 ms, which loses as many at random often enough to be left half empty.
const LOSS_THRESHOLD: u32 = 10;
/// How long it is known what was sent: whatever is acknowledged or given up later counts as sent that long ago.
const REMEMBERED: Duration = Duration::from_secs(2);

/// Makes a controller for each path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bbr2Config;

impl ControllerFactory for Bbr2Config {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Bbr2::new(now, mtu))
    }
}

/// One path's controller.
#[derive(Clone, Debug)]
struct Bbr2 {
    bbr: BbrCongestionController,
    round_trip: RttEstimator,
    began: Instant,
    /// The latest time heard of. quinn stamps a packet when it comes and looks at it later: what it says is not in order.
    now: Instant,
    /// What was known at each sending, oldest first.
    sent: VecDeque<Sent>,
    batch: Batch,
    /// Whether the connection had nothing more to send when acknowledgements last came.
    is_app_limited: bool,
}

/// Packets that were sent together.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// As quinn calls it.
    time: Instant,
    at: Timestamp,
    known: PacketInfo,
}

/// Acknowledgements that came together.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    bytes: u64,
    newest_sent: Option<Instant>,
}

impl Bbr2 {
    fn new(now: Instant, mtu: u16) -> Self {
        let settings = Builder::default()
            .with_initial_congestion_window(INITIAL_WINDOW)
            .with_loss_threshold(LOSS_THRESHOLD);
        let (config, address) = (Config::default(), SocketAddress::default());
        let mut path = PathInfo::new(&config, &address);
        path.max_datagram_size = mtu;
        Self {
            bbr: settings.build().new_congestion_controller(path),
            round_trip: RttEstimator::default(),
            began: now,
            now,
            sent: VecDeque::new(),
            batch: Batch::default(),
            is_app_limited: false,
        }
    }

    fn advance(&mut self, now: Instant) -> Timestamp {
        self.now = self.now.max(now);
        NoopClock.get_time() + self.now.duration_since(self.began)
    }

    /// What was sent then; for what is not remembered, such as a probe of the path's packet size, what was shortly before or after.
    fn sent(&self, time: Instant) -> Option<Sent> {
        let after = self.sent.partition_point(|sent| sent.time <= time);
        self.sent.get(after.saturating_sub(1)).copied()
    }

    fn in_flight(&self) -> u64 {
        self.bbr.bytes_in_flight().into()
    }

    fn acknowledged(&mut self, sent: Instant, bytes: u64) {
        self.batch.bytes += bytes;
        self.batch.newest_sent = self.batch.newest_sent.max(Some(sent));
    }
}

impl Controller for Bbr2 {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        let (at, bytes) = (self.advance(now), usize::try_from(bytes).unwrap_or(usize::MAX));
        let is_app_limited = Some(self.is_app_limited);
        let known = self.bbr.on_packet_sent(at, bytes, is_app_limited, &self.round_trip, &mut Silent);
        if self.sent.back().is_none_or(|last| last.time < now) {
            self.sent.push_back(Sent { time: now, at, known });
        }
        while self.sent.front().is_some_and(|first| self.now.duration_since(first.time) > REMEMBERED) {
            self.sent.pop_front();
        }
    }

    fn on_ack(
        &mut self,
        _now: Instant,
        sent: Instant,
        bytes: u64,
        _is_app_limited: bool,
        _round_trip: &quinn_proto::RttEstimator,
    ) {
        self.acknowledged(sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, is_app_limited: bool, _largest: Option<u64>) {
        self.is_app_limited = is_app_limited;
        let Batch { bytes, newest_sent } = std::mem::take(&mut self.batch);
        let Some(newest) = newest_sent.and_then(|time| self.sent(time)) else { return };
        // quinn's count holds: packets that only acknowledge are told when they are sent, and never after.
        let beyond = self.in_flight().saturating_sub(in_flight + bytes);
        self.bbr.on_packet_discarded(usize::try_from(beyond).unwrap_or(usize::MAX), &mut Silent);
        // Packets of an earlier path were sent under another controller.
        let bytes = usize::try_from(bytes.min(self.in_flight())).unwrap_or(usize::MAX);
        if bytes == 0 {
            return;
        }
        let now = self.advance(now);
        let took = now - newest.at;
        self.round_trip.update_rtt(Duration::ZERO, took, now, true, PacketNumberSpace::ApplicationData);
        self.bbr.on_rtt_update(newest.at, now, &self.round_trip, &mut Silent);
        let known = newest.known;
        self.bbr.on_ack(newest.at, bytes, known, &self.round_trip, &mut Entropy, now, &mut Silent);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        let now = self.advance(now);
        if lost_bytes == 0 {
            self.bbr.on_explicit_congestion(1, now, &mut Silent);
            return;
        }
        let lost = u32::try_from(lost_bytes.min(self.in_flight())).unwrap_or(u32::MAX);
        if let Some(Sent { known, .. }) = self.sent(sent)
            && lost > 0
        {
            self.bbr.on_packet_lost(lost, known, is_persistent, true, &mut Entropy, now, &mut Silent);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.bbr.on_mtu_update(mtu, &mut Silent);
    }

    fn window(&self) -> u64 {
        self.bbr.congestion_window().into()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW.into()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Draws when to probe for more bandwidth, so that connections of one line do not all at once.
struct Entropy;

impl Generator for Entropy {
    fn public_random_fill(&mut self, dest: &mut [u8]) {
        // Refused, all draws are zero: connections may probe together, and nothing else is drawn here.
        let _ = aws_lc_rs::rand::fill(dest);
    }

    fn private_random_fill(&mut self, dest: &mut [u8]) {
        self.public_random_fill(dest);
    }
}

/// Nobody listens to the algorithm's events.
struct Silent;

impl Publisher for Silent {
    fn on_slow_start_exited(&mut self, _cause: SlowStartExitCause, _window: u32) {}
    fn on_delivery_rate_sampled(&mut self, _sample: RateSample) {}
    fn on_pacing_rate_updated(&mut self, _rate: Bandwidth, _burst: u32, _gain: Ratio<u64>) {}
    fn on_bbr_state_changed(&mut self, _state: BbrState) {}
}

#[cfg(test)]
mod tests {
    use common::rng::{KeyedRng, Rng as _};

    use super::*;

    /// What no quinn would say is among it: times that run backwards, acknowledgements of what was never sent, wrong sums.
    #[test]
    fn whatever_it_is_told_a_path_keeps_a_window_and_no_more_than_was_acknowledged() {
        for seed in 0..200 {
            let mut draw = KeyedRng::new(seed).purpose("told").rng();
            let start = Instant::now();
            let mut path = Bbr2::new(start, 1200);
            let (mut now, mut sent, mut acknowledged) = (start, vec![start], 0_u64);
            for _ in 0..2000 {
                now += Duration::from_micros(draw.random_range(0..20_000));
                let heard = now.checked_sub(Duration::from_micros(draw.random_range(0..3000))).unwrap();
                let earlier = sent[draw.random_range(0..sent.len())];
                let bytes = draw.random_range(0..30_000);
                match draw.random_range(0..10) {
                    0..4 => {
                        path.on_sent(now, bytes, 0);
                        sent.push(now);
                    }
                    4..8 => {
                        for _ in 0..draw.random_range(0..4) {
                            path.acknowledged(earlier, bytes);
                            acknowledged += bytes;
                        }
                        path.on_end_acks(heard, draw.random_range(0..1 << 20), draw.random(), None);
                    }
                    8 => path.on_congestion_event(
                        heard,
                        earlier,
                        draw.random(),
                        bytes * draw.random_range(0..2),
                    ),
                    _ => path.on_mtu_update(draw.random_range(1200..6500)),
                }
                assert!(path.window() >= 4 * 1200, "seed {seed}");
                let most = (u64::from(INITIAL_WINDOW) + acknowledged) * 6500 / 1200;
                assert!(path.window() <= most, "seed {seed}: {} of {most}", path.window());
            }
        }
    }

    #[test]
    fn what_was_sent_is_forgotten_in_time() {
        let start = Instant::now();
        let mut path = Bbr2::new(start, 1200);
        for step in 0..10_000 {
            path.on_sent(start + Duration::from_millis(step), 1200, step);
        }
        assert!(path.sent.len() <= 2001);
        let first = path.sent(start).unwrap();
        assert!(first.time > start, "the oldest that is known");
    }
}
