//! TCP through the path: rate and delay, and no loss, which the kernels at both ends would never see here. A cut stops the
//! bytes and keeps the connections, as a cable does that is pulled.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Line, Path};
use super::relay::Switches;

/// Bytes that travel together.
const PIECE: usize = 16 << 10;
/// Pieces under way in one direction of a connection: 75 ms of 10 Gbit/s and more.
const UNDER_WAY: usize = 8192;
/// How often a thread looks whether the path is whole again, or somebody is at the door.
const LOOK: Duration = Duration::from_millis(2);

/// Which way, and what counts its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// Relays every connection to the coordinator at `to`, until told to end.
pub(super) fn relay(listener: &TcpListener, to: SocketAddr, path: Path, switches: &Arc<Switches>) {
    let lines = ["up", "down"].map(|name| Arc::new(Mutex::new(Line::new(path, name))));
    while !switches.has_ended() {
        let taken = if switches.is_cut() { Err(ErrorKind::WouldBlock.into()) } else { listener.accept() };
        match taken.and_then(|(site, _)| connect(site, to, &lines, switches)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => tracing::warn!("a TCP connection was not relayed: {error}"),
        }
    }
}

fn connect(
    site: TcpStream,
    to: SocketAddr,
    [up, down]: &[Arc<Mutex<Line>>; 2],
    switches: &Arc<Switches>,
) -> io::Result<()> {
    site.set_nonblocking(false)?;
    let coordinator = TcpStream::connect(to)?;
    for stream in [&site, &coordinator] {
        stream.set_nodelay(true)?;
    }
    let (site_too, coordinator_too) = (site.try_clone()?, coordinator.try_clone()?);
    carry(Way::Up, site, coordinator, up.clone(), switches.clone());
    carry(Way::Down, coordinator_too, site_too, down.clone(), switches.clone());
    Ok(())
}

/// Starts the two threads of one direction of a connection.
fn carry(way: Way, from: TcpStream, to: TcpStream, line: Arc<Mutex<Line>>, switches: Arc<Switches>) {
    let (pieces, under_way) = sync_channel(UNDER_WAY);
    let for_reader = switches.clone();
    std::thread::spawn(move || read(way, from, &line, &pieces, &for_reader));
    std::thread::spawn(move || write(way, to, &under_way, &switches));
}

/// Reads, and waits where the queue is full: that is how a sender learns of the rate.
fn read(
    way: Way,
    mut from: TcpStream,
    line: &Mutex<Line>,
    pieces: &SyncSender<(Instant, Vec<u8>)>,
    switches: &Switches,
) {
    let mut buffer = vec![0; PIECE];
    loop {
        // Either way the other side is told: by the end of the channel.
        let Ok(got @ 1..) = from.read(&mut buffer) else { return };
        if way == Way::Up {
            switches.note_sent(got);
        }
        let (due, overfull) = {
            // A panic in between is impossible; the line would be whole all the same.
            let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            (line.carry_stream(now, got), line.overfull(now))
        };
        if pieces.send((due, buffer[..got].to_vec())).is_err() {
            return;
        }
        std::thread::sleep(overfull);
    }
}

fn write(way: Way, mut to: TcpStream, under_way: &Receiver<(Instant, Vec<u8>)>, switches: &Switches) {
    for (due, piece) in under_way {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        while switches.is_cut() && !switches.has_ended() {
            std::thread::sleep(LOOK);
        }
        if to.write_all(&piece).is_err() {
            // Who reads at the other end of this direction is to stop, too.
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        if way == Way::Up {
            switches.note_delivered(piece.len());
        }
    }
    // The other side has gone already, if this fails.
    let _ = to.shutdown(Shutdown::Write);
}
