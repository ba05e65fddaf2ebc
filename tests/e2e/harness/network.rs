//! Networks of hospitals: one that lets no UDP out, for as long as it likes, and one that lets nothing out but through a proxy.
//! Their threads end with the test's process.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// A way to the coordinator that lets TCP through and swallows UDP.
pub(crate) struct Firewall {
    /// What a site behind it dials.
    pub(crate) address: SocketAddr,
    coordinator: SocketAddr,
    /// What comes here stays here.
    udp: UdpSocket,
}

impl Firewall {
    pub(crate) fn before(coordinator: SocketAddr) -> Self {
        let (tcp, udp) = port_of_both();
        let address = tcp.local_addr().expect("it is bound");
        thread::spawn(move || {
            for site in tcp.incoming().flatten() {
                if let Ok(onwards) = TcpStream::connect(coordinator) {
                    pass_both_ways(site, onwards);
                }
            }
        });
        Self { address, coordinator, udp }
    }

    /// Lets UDP through from now on.
    pub(crate) fn open(&self) {
        let (udp, coordinator) = (self.udp.try_clone().expect("a socket"), self.coordinator);
        thread::spawn(move || {
            let mut ways: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
            let mut datagram = vec![0; 1 << 16];
            while let Ok((length, site)) = udp.recv_from(&mut datagram) {
                let onwards = ways.entry(site).or_insert_with(|| way_of(site, &udp, coordinator));
                // Lost, as datagrams may be.
                let _ = onwards.send(&datagram[..length]);
            }
        });
    }
}

/// An address that no network leads to: nobody accepts TCP there, and UDP is swallowed.
pub(crate) struct Nowhere {
    pub(crate) address: SocketAddr,
    _ports: (TcpListener, UdpSocket),
}

impl Nowhere {
    pub(crate) fn new() -> Self {
        let (tcp, udp) = port_of_both();
        Self { address: tcp.local_addr().expect("it is bound"), _ports: (tcp, udp) }
    }
}

/// An HTTP proxy that makes ways to `coordinator`, under whatever name a site asks for it; the proxy, as `site.toml` names it.
pub(crate) fn proxy(coordinator: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("any port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for site in listener.incoming().flatten() {
            // A site that breaks off its request is of no concern to the others.
            thread::spawn(move || make_way(site, coordinator));
        }
    });
    format!("http://{address}")
}

fn make_way(mut site: TcpStream, coordinator: SocketAddr) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        site.read_exact(&mut byte)?;
        head.extend(byte);
    }
    if !head.starts_with(b"CONNECT ") {
        return site.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n");
    }
    let Ok(onwards) = TcpStream::connect(coordinator) else {
        return site.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
    };
    site.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    pass_both_ways(site, onwards);
    Ok(())
}

/// A port that is free for both lanes.
fn port_of_both() -> (TcpListener, UdpSocket) {
    let same_port = || -> io::Result<(TcpListener, UdpSocket)> {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let udp = UdpSocket::bind(tcp.local_addr()?)?;
        Ok((tcp, udp))
    };
    (0..16).find_map(|_| same_port().ok()).expect("a port that both can have")
}

fn pass_both_ways(site: TcpStream, onwards: TcpStream) {
    let (Ok(site_too), Ok(onwards_too)) = (site.try_clone(), onwards.try_clone()) else { return };
    thread::spawn(move || pass(site, onwards));
    thread::spawn(move || pass(onwards_too, site_too));
}

/// Passes bytes on until one side ends; then both do.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// A socket for the datagrams of one site; what comes back to it goes to the site.
fn way_of(site: SocketAddr, udp: &UdpSocket, coordinator: SocketAddr) -> UdpSocket {
    let onwards = UdpSocket::bind("127.0.0.1:0").expect("any port");
    onwards.connect(coordinator).expect("a local address");
    let (back, udp) = (onwards.try_clone().expect("a socket"), udp.try_clone().expect("a socket"));
    thread::spawn(move || {
        let mut datagram = vec![0; 1 << 16];
        while let Ok(length) = back.recv(&mut datagram) {
            let _ = udp.send_to(&datagram[..length], site);
        }
    });
    onwards
}
