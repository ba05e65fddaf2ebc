//! UDP through the path: one thread, many packets a call, for a gigabit on a core that others use too.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::line::{Line, Path};
use super::relay::Switches;

/// What the kernel may join into one read.
const BUFFER: usize = 1 << 16;
/// Most bytes of a packet: what an Ethernet carries. Larger ones, which probe the path, are lost.
const LARGEST: usize = 1472;
/// Most bytes and packets of one call that sends.
const MOST_BYTES: usize = 60_000;
const MOST_PACKETS: usize = 64;
/// Reads before something is sent again.
const READS: usize = 4;
/// Asked of the operating system, each direction.
const SOCKET_BUFFER: usize = 4 << 20;
/// How late a packet may be, so that several go together; and how late a switch is noticed.
const SLACK: Duration = Duration::from_micros(200);
const LOOK: Duration = Duration::from_millis(5);

/// One end of the relay.
pub(super) struct Side {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// One direction: what is under way in it.
struct Way {
    line: Line,
    held: VecDeque<Held>,
    batch: Vec<u8>,
}

struct Held {
    due: Instant,
    bytes: Vec<u8>,
}

/// Relays between whoever speaks to `front` and the coordinator at `to`, until told to end.
pub(super) fn relay(front: Side, to: SocketAddr, path: Path, switches: &Switches) {
    if let Err(error) = run(&front, to, path, switches) {
        tracing::error!("the UDP relay ended: {error}");
    }
}

fn run(front: &Side, to: SocketAddr, path: Path, switches: &Switches) -> io::Result<()> {
    let mut back = Side::bind()?;
    let mut site = None;
    let (mut up, mut down) = (Way::new(path, "up"), Way::new(path, "down"));
    let mut buffers = vec![0; BUFFER * BATCH_SIZE];
    while !switches.has_ended() {
        if switches.moves_now() {
            back = Side::bind()?;
        }
        let dropped = switches.drops_udp();
        if dropped {
            up.held.clear();
            down.held.clear();
        }
        front.receive(&mut buffers, |from, packet| {
            site = Some(from);
            switches.note_sent(packet.len());
            if !dropped {
                up.take(packet);
            }
        })?;
        back.receive(&mut buffers, |_, packet| {
            if !dropped {
                down.take(packet);
            }
        })?;
        switches.note_delivered(up.deliver(&back, to)?);
        if let Some(site) = site {
            down.deliver(front, site)?;
        }
        wait(front, &back, [&up, &down])?;
    }
    Ok(())
}

/// Until something comes, or is due.
fn wait(front: &Side, back: &Side, ways: [&Way; 2]) -> io::Result<()> {
    let due = ways.into_iter().filter_map(|way| way.held.front()).map(|held| held.due).min();
    let wait = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()));
    let wait = TimeSpec::from_duration(wait.clamp(SLACK, LOOK));
    let mut sockets = [front, back].map(|side| PollFd::new(side.socket.as_fd(), PollFlags::POLLIN));
    match ppoll(&mut sockets, Some(wait), None) {
        Err(error) if error != nix::errno::Errno::EINTR => Err(error.into()),
        _ => Ok(()),
    }
}

impl Side {
    /// A socket on any port.
    pub(super) fn bind() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Cut short is not fatal: what overflows is lost, as on any path.
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER);
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER);
        Ok(Self { socket, state })
    }

    /// Its port.
    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Passes on what has come, packet by packet.
    fn receive(&self, buffers: &mut [u8], mut each: impl FnMut(SocketAddr, &[u8])) -> io::Result<()> {
        for _ in 0..READS {
            let mut slices: Vec<_> = buffers.chunks_mut(BUFFER).map(IoSliceMut::new).collect();
            let mut metas = [RecvMeta::default(); BATCH_SIZE];
            let count = match self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            for (meta, buffer) in metas.iter().take(count).zip(buffers.chunks(BUFFER)) {
                buffer[..meta.len].chunks(meta.stride.max(1)).for_each(|packet| each(meta.addr, packet));
            }
        }
        Ok(())
    }

    fn send(&self, to: SocketAddr, contents: &[u8], packet: usize) -> io::Result<()> {
        let segment_size = (contents.len() > packet).then_some(packet);
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        loop {
            match self.state.send(UdpSockRef::from(&self.socket), &transmit) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                sent => return sent,
            }
        }
    }
}

impl Way {
    fn new(path: Path, name: &str) -> Self {
        Self { line: Line::new(path, name), held: VecDeque::new(), batch: Vec::new() }
    }

    fn take(&mut self, packet: &[u8]) {
        if packet.len() > LARGEST {
            return;
        }
        if let Some(due) = self.line.carry(Instant::now(), packet.len()) {
            self.held.push_back(Held { due, bytes: packet.to_vec() });
        }
    }

    /// Sends what is due, packets of one size together; how many bytes.
    fn deliver(&mut self, side: &Side, to: SocketAddr) -> io::Result<usize> {
        let now = Instant::now();
        let most = side.state.max_gso_segments().clamp(1, MOST_PACKETS);
        let mut delivered = 0;
        while let Some(size) = self.held.front().filter(|held| held.due <= now).map(|held| held.bytes.len()) {
            self.batch.clear();
            let mut packets = 0;
            // Only the last of them may be shorter.
            while let Some(held) = self.held.front()
                && held.due <= now
                && held.bytes.len() <= size
                && packets < most
                && self.batch.len() == packets * size
                && self.batch.len() + held.bytes.len() <= MOST_BYTES.max(size)
            {
                self.batch.extend_from_slice(&held.bytes);
                self.held.pop_front();
                packets += 1;
            }
            side.send(to, &self.batch, size)?;
            delivered += self.batch.len();
        }
        Ok(delivered)
    }
}
