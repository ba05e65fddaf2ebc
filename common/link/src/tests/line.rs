//! QUIC with our settings over emulated lines, in virtual time: what a transfer gets of a line, and what it does to it.
//!
//! quinn's state machines are driven packet by packet, without sockets or threads: seconds of a line take tenths of a second,
//! and a busy machine changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use common::rng::{ChaCha8Rng, KeyedRng, Rng as _};
use quinn_proto::congestion::{Controller, ControllerFactory};
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, ServerConfig, StreamId,
};

use super::*;
use crate::quic::{Congestion, with_large_packets};

/// What an agent opens without a setting.
const STREAMS: usize = 2;
/// Longest that a transfer may take on the line's clock.
const LONGEST: Duration = Duration::from_secs(120);
/// Bytes of a packet's headers below UDP, and most that an Ethernet carries above them.
const HEADERS: usize = 28;
const LARGEST: usize = 1472;
/// Packets that quinn hands over at once.
const SEGMENTS: usize = 10;

/// What a line does to packets, each way.
#[derive(Clone, Copy, Debug)]
struct Path {
    mbit_s: u64,
    round_trip: Duration,
    /// A packet that would wait longer is dropped.
    queue: Duration,
    /// Share of packets lost behind the queue, each for itself.
    loss: f64,
    seed: u64,
}

const LONG: Path = Path {
    mbit_s: 100,
    round_trip: Duration::from_millis(50),
    queue: Duration::from_millis(50),
    loss: 0.01,
    seed: 1,
};

/// One direction of it.
struct Line {
    path: Path,
    free_at: Instant,
    draws: ChaCha8Rng,
    sent: u64,
    overflowed: u64,
}

impl Line {
    fn new(path: Path, name: &str, now: Instant) -> Self {
        let draws = KeyedRng::new(path.seed).purpose(name).rng();
        Self { path, free_at: now, draws, sent: 0, overflowed: 0 }
    }

    /// When a packet that comes now comes out; `None`: never.
    fn carry(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        // Larger ones probe the path.
        if bytes > LARGEST {
            return None;
        }
        self.sent += bytes as u64;
        let waits = self.free_at.saturating_duration_since(now);
        if waits > self.path.queue {
            self.overflowed += bytes as u64;
            return None;
        }
        let takes = Duration::from_nanos((bytes + HEADERS) as u64 * 8000 / self.path.mbit_s);
        self.free_at = now + waits + takes;
        (self.draws.random::<f64>() >= self.path.loss).then(|| self.free_at + self.path.round_trip / 2)
    }
}

/// One end.
struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    address: SocketAddr,
    line: Line,
    /// Of each stream, what is still to be written.
    unwritten: BTreeMap<StreamId, u64>,
    read: u64,
}

impl End {
    fn new(endpoint: Endpoint, port: u16, line: Line) -> Self {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Self { endpoint, connection: None, address, line, unwritten: BTreeMap::new(), read: 0 }
    }

    /// Writes what the windows allow.
    fn write(&mut self) {
        let Some((_, connection)) = &mut self.connection else { return };
        let zeros = [0; 1 << 16];
        for (&id, left) in &mut self.unwritten {
            while *left > 0 {
                let most = usize::try_from(*left).map_or(zeros.len(), |left| left.min(zeros.len()));
                let Ok(written) = connection.send_stream(id).write(&zeros[..most]) else { break };
                *left -= written as u64;
            }
        }
    }

    /// Reads all that is in order.
    fn read(&mut self) {
        let Some((_, connection)) = &mut self.connection else { return };
        while connection.streams().accept(Dir::Bi).is_some() {}
        for index in 0..STREAMS as u64 {
            let mut stream = connection.recv_stream(StreamId::new(quinn_proto::Side::Client, Dir::Bi, index));
            let Ok(mut chunks) = stream.read(true) else { continue };
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                self.read += chunk.bytes.len() as u64;
            }
            let _ = chunks.finalize();
        }
    }

    /// Packets that go out now, and when they are at the other end.
    fn transmit(&mut self, now: Instant) -> Vec<(Instant, BytesMut)> {
        let Some((handle, connection)) = &mut self.connection else { return Vec::new() };
        let (mut packets, mut buffer) = (Vec::new(), Vec::new());
        loop {
            while let Some(transmit) = connection.poll_transmit(now, SEGMENTS, &mut buffer) {
                for packet in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                    let due = self.line.carry(now, packet.len());
                    packets.extend(due.map(|due| (due, BytesMut::from(packet))));
                }
                buffer.clear();
            }
            let Some(event) = connection.poll_endpoint_events() else { return packets };
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
    }

    fn receive(&mut self, now: Instant, from: SocketAddr, packet: BytesMut) {
        let mut buffer = Vec::new();
        match (self.endpoint.handle(now, from, None, None, packet, &mut buffer), &mut self.connection) {
            (Some(DatagramEvent::NewConnection(incoming)), connection) => {
                *connection = self.endpoint.accept(incoming, now, &mut buffer, None).ok();
            }
            (Some(DatagramEvent::ConnectionEvent(_, event)), Some((_, connection))) => {
                connection.handle_event(event);
            }
            _ => {}
        }
    }

    /// Whether it is connected since the last call, or why it is no more.
    fn connected(&mut self) -> Result<bool, ConnectionError> {
        let Some((_, connection)) = &mut self.connection else { return Ok(false) };
        let mut connected = false;
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected => connected = true,
                Event::ConnectionLost { reason } => return Err(reason),
                _ => {}
            }
        }
        Ok(connected)
    }

    fn due(&mut self) -> Option<Instant> {
        self.connection.as_mut()?.1.poll_timeout()
    }

    fn time_out(&mut self, now: Instant) {
        if let Some((_, connection)) = &mut self.connection
            && connection.poll_timeout().is_some_and(|due| due <= now)
        {
            connection.handle_timeout(now);
        }
    }
}

/// What is transferred, and how.
#[derive(Clone, Copy)]
enum Transfer {
    Up,
    Down,
}

/// What a transfer got, and did.
#[derive(Debug)]
struct Outcome {
    mbit_s: f64,
    /// Of what was sent, the share that did not fit into the line's queue.
    overflowed: f64,
}

/// A site and its coordinator on one line.
struct Trial {
    path: Path,
    transfer: Transfer,
    site: QuicSettings,
    coordinator: QuicSettings,
    /// From so many bytes on, the site has another address.
    moves_at: Option<u64>,
    /// The site sends whatever its windows allow.
    floods: bool,
}

/// No congestion control.
#[derive(Clone, Copy)]
struct Flood;

impl ControllerFactory for Flood {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for Flood {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost: u64) {}
    fn on_mtu_update(&mut self, _mtu: u16) {}
    fn window(&self) -> u64 {
        u64::MAX
    }
    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }
    fn initial_window(&self) -> u64 {
        u64::MAX
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

impl Trial {
    /// As a turn of an agent over a long way (`coordinator`'s credit).
    fn new(path: Path, transfer: Transfer) -> Self {
        let settings = QuicSettings::coordinator();
        let granted = settings.granted_window;
        let coordinator = QuicSettings { receive_window: granted, send_window: granted, ..settings };
        Self { path, transfer, site: QuicSettings::site(), coordinator, moves_at: None, floods: false }
    }

    fn ends(&self, now: Instant) -> [End; 2] {
        let pki = Pki::new();
        let config = tls::server_config(pki.coordinator(), &pki.root()).unwrap();
        let mut config = ServerConfig::with_crypto(tls::quic_server(config).unwrap());
        config.transport_config(self.coordinator.transport().unwrap());
        let taken = Arc::new(with_large_packets(EndpointConfig::default()).unwrap());
        let coordinator = Endpoint::new(taken.clone(), Some(Arc::new(config)), true, None);
        let coordinator = End::new(coordinator, 1, Line::new(self.path, "down", now));
        let mut site = End::new(Endpoint::new(taken, None, true, None), 2, Line::new(self.path, "up", now));
        let config = tls::site_config(pki.site("north"), &pki.root()).unwrap();
        let mut config = ClientConfig::new(tls::quic_client(config).unwrap());
        let mut transport = self.site.transport().unwrap();
        if self.floods {
            Arc::get_mut(&mut transport).unwrap().congestion_controller_factory(Arc::new(Flood));
        }
        config.transport_config(transport);
        let connection = site.endpoint.connect(now, config, coordinator.address, "localhost");
        site.connection = Some(connection.unwrap());
        [site, coordinator]
    }

    /// Moves so many bytes.
    fn run(&self, bytes: u64) -> Result<Outcome, ConnectionError> {
        let start = Instant::now();
        let (mut now, mut began) = (start, None);
        let [mut site, mut coordinator] = self.ends(now);
        let mut under_way = BTreeMap::new();
        let mut count = 0_u64;
        loop {
            if site.connected()? {
                began = Some(now);
                let (_, connection) = site.connection.as_mut().expect("it dialled");
                let share = bytes / STREAMS as u64;
                let ids = std::iter::from_fn(|| connection.streams().open(Dir::Bi)).take(STREAMS);
                let ids: Vec<_> = ids.collect();
                let (up, down) = match self.transfer {
                    Transfer::Up => (share, 0),
                    // The other side learns of a stream with its first byte.
                    Transfer::Down => (1, share),
                };
                site.unwritten = ids.iter().map(|&id| (id, up)).collect();
                coordinator.unwritten = ids.iter().map(|&id| (id, down)).collect();
            }
            coordinator.connected()?;
            for end in [&mut site, &mut coordinator] {
                end.read();
                end.write();
            }
            let read = match self.transfer {
                Transfer::Up => coordinator.read,
                Transfer::Down => site.read,
            };
            if let Some(began) = began
                && read >= bytes
            {
                let line = match self.transfer {
                    Transfer::Up => site.line,
                    Transfer::Down => coordinator.line,
                };
                return Ok(Outcome {
                    mbit_s: bytes as f64 * 8e-6 / (now - began).as_secs_f64(),
                    overflowed: line.overflowed as f64 / line.sent as f64,
                });
            }
            if self.moves_at.is_some_and(|at| read >= at) {
                site.address.set_port(3);
            }
            for (to_coordinator, end) in [(true, &mut site), (false, &mut coordinator)] {
                for (due, packet) in end.transmit(now) {
                    count += 1;
                    under_way.insert((due, count), (to_coordinator, packet));
                }
            }
            let next = under_way.first_key_value().map(|(&(due, _), _)| due);
            let due = [next, site.due(), coordinator.due()].into_iter().flatten().min();
            now = due.expect("something is under way, or waited for").max(now);
            assert!(now - start < LONGEST, "{read} of {bytes} bytes came");
            site.time_out(now);
            coordinator.time_out(now);
            while let Some(first) = under_way.first_entry()
                && first.key().0 <= now
            {
                let (to_coordinator, packet) = first.remove();
                if to_coordinator {
                    coordinator.receive(now, site.address, packet);
                } else {
                    site.receive(now, coordinator.address, packet);
                }
            }
        }
    }
}

const MB: u64 = 1_000_000;

#[test]
fn a_transfer_fills_a_lossy_line_and_not_its_queue() {
    for transfer in [Transfer::Up, Transfer::Down] {
        for seed in 1..=4 {
            let got = Trial::new(Path { seed, ..LONG }, transfer).run(40 * MB).unwrap();
            assert!(got.mbit_s > 82.0 && got.overflowed < 0.02, "seed {seed}: {got:?}");
        }
    }
}

#[test]
fn lines_of_all_kinds_are_filled_and_none_is_flooded() {
    let ms = Duration::from_millis;
    // Mbit/s, there and back, queue, loss; the share of the line that a transfer gets, and what overflows.
    let lines = [
        (20, ms(50), ms(50), 0.01, 0.85, 0.02),
        (100, ms(50), ms(200), 0.0, 0.85, 0.02),
        (100, ms(50), ms(5), 0.0, 0.70, 0.06),
        (100, ms(10), ms(50), 0.01, 0.85, 0.02),
        (1000, ms(50), ms(50), 0.01, 0.40, 0.08),
    ];
    for (mbit_s, round_trip, queue, loss, least, most) in lines {
        let path = Path { mbit_s, round_trip, queue, loss, seed: 1 };
        let got = Trial::new(path, Transfer::Up).run(80 * MB.min(mbit_s * MB / 2)).unwrap();
        assert!(got.mbit_s > least * mbit_s as f64 && got.overflowed < most, "{path:?}: {got:?}");
    }
}

/// quinn ends a connection when too many gaps of a stream are open.
#[test]
fn a_line_that_loses_an_eighth_leaves_no_more_gaps_than_quinn_takes() {
    // No queue overflows, and no other window is full before that of the stream.
    let path = Path { loss: 0.125, mbit_s: 1000, queue: Duration::from_secs(1), ..LONG };
    let mut trial = Trial::new(path, Transfer::Up);
    (trial.floods, trial.site.send_window) = (true, 64 << 20);
    trial.coordinator.receive_window = 64 << 20;
    trial.run(80 * MB).unwrap();
    trial.coordinator.stream_window = 16 << 20;
    let error = trial.run(80 * MB).unwrap_err().to_string();
    assert!(error.contains("too many gaps"), "{error}: a wider window may be possible now");
}

#[test]
fn a_change_of_address_in_the_midst_of_a_transfer_costs_little() {
    for transfer in [Transfer::Up, Transfer::Down] {
        let mut trial = Trial::new(LONG, transfer);
        trial.moves_at = Some(20 * MB);
        let got = trial.run(40 * MB).unwrap();
        assert!(got.mbit_s > 75.0, "{got:?}");
    }
}

#[test]
fn cubic_stays_a_choice() {
    let mut trial = Trial::new(Path { loss: 0.0, ..LONG }, Transfer::Up);
    trial.site.congestion = Congestion::Cubic;
    let got = trial.run(40 * MB).unwrap();
    assert!(got.mbit_s > 75.0, "{got:?}");
}
