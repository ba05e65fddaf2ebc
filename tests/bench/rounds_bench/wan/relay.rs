//! A path between a site and a coordinator, as a process in the middle: this kernel emulates none.
//!
//! The site dials the relay; UDP goes through `udp`, TCP through `tcp`, both on one port. What the
//! path does is switched while it runs, and what a site sends into it is counted, lost or not.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context as _;

use super::line::Path;
use super::tcp;
use super::udp::{self, Side};

/// How many ports are tried until one is free for both protocols.
const TRIES: usize = 20;

/// A running relay; dropped, it ends.
pub(crate) struct Relay {
    /// What the site dials.
    pub(crate) address: SocketAddr,
    switches: Arc<Switches>,
}

/// What the path does now, and what it has carried.
#[derive(Debug, Default)]
pub(super) struct Switches {
    cut: AtomicBool,
    udp_dropped: AtomicBool,
    moved: AtomicBool,
    ended: AtomicBool,
    sent: AtomicU64,
    delivered: AtomicU64,
}

impl Relay {
    /// Begins to relay to the coordinator at `to`.
    pub(crate) fn start(to: SocketAddr, path: Path) -> anyhow::Result<Self> {
        let switches = Arc::new(Switches::default());
        let bind = || -> std::io::Result<(Side, TcpListener)> {
            let side = Side::bind()?;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, side.port()?))?;
            Ok((side, listener))
        };
        let bound = (0..TRIES).find_map(|_| bind().ok()).context("no port is free for UDP and TCP")?;
        let (side, listener) = bound;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (for_udp, for_tcp) = (switches.clone(), switches.clone());
        std::thread::spawn(move || udp::relay(side, to, path, &for_udp));
        std::thread::spawn(move || tcp::relay(&listener, to, path, &for_tcp));
        Ok(Self { address, switches })
    }

    /// Lets nothing through, of either protocol, or all again.
    pub(crate) fn cut(&self, cut: bool) {
        self.switches.cut.store(cut, Ordering::Relaxed);
    }

    /// Lets no UDP through any more.
    pub(crate) fn drop_udp(&self) {
        self.switches.udp_dropped.store(true, Ordering::Relaxed);
    }

    /// Gives the site another address, as the coordinator sees it.
    pub(crate) fn move_address(&self) {
        self.switches.moved.store(true, Ordering::Relaxed);
    }

    /// Bytes that the site has sent into the path.
    pub(crate) fn sent(&self) -> u64 {
        self.switches.sent.load(Ordering::Relaxed)
    }

    /// Of these, bytes that have come out at the coordinator's end.
    pub(crate) fn delivered(&self) -> u64 {
        self.switches.delivered.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.switches.ended.store(true, Ordering::Relaxed);
    }
}

impl Switches {
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Whether UDP goes nowhere.
    pub(super) fn drops_udp(&self) -> bool {
        self.is_cut() || self.udp_dropped.load(Ordering::Relaxed)
    }

    /// Whether the address is to be another from now on; says so once.
    pub(super) fn moves_now(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn note_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn note_delivered(&self, bytes: usize) {
        self.delivered.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;

    /// Long: nothing waits it out.
    const PATIENCE: Duration = Duration::from_secs(60);
    const PATH: Path = Path {
        mbit_s: 100,
        delay: Duration::from_millis(5),
        loss: 0.0,
        queue: Duration::from_millis(50),
        seed: 1,
    };

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    #[test]
    fn packets_go_both_ways_after_their_delay_and_from_another_address_when_told() {
        let (site, coordinator) = (socket(), socket());
        let relay = Relay::start(coordinator.local_addr().unwrap(), PATH).unwrap();
        let mut buffer = [0; 100];
        let since = Instant::now();
        site.send_to(b"liver", relay.address).unwrap();
        let (got, seen) = coordinator.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..got], b"liver");
        assert!(since.elapsed() >= PATH.delay);
        coordinator.send_to(b"spleen", seen).unwrap();
        let (got, from) = site.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..got], from), (&b"spleen"[..], relay.address));
        assert_eq!((relay.sent(), relay.delivered()), (5, 5));

        relay.move_address();
        // One that comes before the relay has looked still goes the old way.
        let moved = (0..1000).any(|_| {
            site.send_to(b"liver", relay.address).unwrap();
            coordinator.recv_from(&mut buffer).unwrap().1 != seen
        });
        assert!(moved);
    }

    #[test]
    fn a_path_without_udp_still_carries_tcp() {
        let coordinator = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::start(coordinator.local_addr().unwrap(), PATH).unwrap();
        relay.drop_udp();
        let mut site = TcpStream::connect(relay.address).unwrap();
        site.write_all(&[7; 100_000]).unwrap();
        site.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut end, _) = coordinator.accept().unwrap();
        let mut got = Vec::new();
        end.read_to_end(&mut got).unwrap();
        assert_eq!(got, [7; 100_000]);
        end.write_all(b"kept").unwrap();
        drop(end);
        let mut answer = String::new();
        site.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "kept");
        assert_eq!((relay.sent(), relay.delivered()), (100_000, 100_000));
    }
}
