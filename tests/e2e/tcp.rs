//! Sites whose networks let no UDP out.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use common::ids::Role;

use crate::harness::consortium::{Consortium, Site};
use crate::harness::process::Process;

/// A way to the coordinator that lets TCP through and swallows UDP: its address, and the socket that swallows.
fn firewall(coordinator: SocketAddr) -> (SocketAddr, UdpSocket) {
    let (tcp, udp) = (0..16).find_map(|_| same_port().ok()).expect("a port that both can have");
    let address = tcp.local_addr().expect("it is bound");
    // Ends with the test's process.
    thread::spawn(move || {
        for site in tcp.incoming().flatten() {
            let Ok(onwards) = TcpStream::connect(coordinator) else { continue };
            let (Ok(site_too), Ok(onwards_too)) = (site.try_clone(), onwards.try_clone()) else { continue };
            thread::spawn(move || pass(site, onwards));
            thread::spawn(move || pass(onwards_too, site_too));
        }
    });
    (address, udp)
}

fn same_port() -> io::Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let udp = UdpSocket::bind(tcp.local_addr()?)?;
    Ok((tcp, udp))
}

/// Passes bytes on until one side ends; then both do.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// Starts an agent and waits until it is connected over TCP; `None` when that took ten seconds.
fn connected_within_ten_seconds(site: &Site) -> Option<Process> {
    let start = Instant::now();
    let mut agent = site.run();
    agent.until_says("gets no answer (a firewall?); QUIC is tried again every 10 minutes");
    (start.elapsed() < Duration::from_secs(10)).then_some(agent)
}

#[test]
fn a_site_whose_udp_is_swallowed_is_connected_over_tcp_within_ten_seconds() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    let coordinator = consortium.address.parse().expect("IP and port");
    let (address, _swallows) = firewall(coordinator);
    site.configure(&address.to_string(), "");
    // A machine may stand still for seconds, but not at each start.
    let agent = (0..3).find_map(|_| connected_within_ten_seconds(&site));
    let _agent = agent.expect("one of three starts is fast enough");
    consortium.coordinator.until_connected("north");
}

#[test]
fn a_revoked_site_hears_the_same_over_tcp() {
    let mut consortium = Consortium::found("thorax");
    let site = consortium.enrol("north", Role::Trainer);
    site.configure(&consortium.address, "lane = \"tcp\"\n");
    let mut agent = site.run();
    agent.until_says("over TCP, as site.toml says");
    consortium.coordinator.until_connected("north");
    consortium.operate(["revoke", "north"]).ok();
    agent.until_says("not connected: the coordinator has revoked this site");
    // It dials again by itself.
    let line = consortium.coordinator.until_refused(Some("north"), "site-revoked");
    assert_eq!(line, "connection: this site was revoked");
    agent.until_says("this site was revoked (site-revoked)");
    agent.until_says("hint: ask the coordinator's operator why, and for a new invite");
}
