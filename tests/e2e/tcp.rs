//! Sites whose networks let no UDP out, for a while or for ever, or nothing but through a proxy.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::ids::Role;

use crate::harness::consortium::{Consortium, Site};
use crate::harness::federation::Federation;
use crate::harness::network::{Firewall, Nowhere, proxy};
use crate::harness::process::{Process, command, finish};

/// Where a consortium's coordinator listens.
fn listens_at(consortium: &Consortium) -> SocketAddr {
    consortium.address.parse().expect("IP and port")
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
    let firewall = Firewall::before(listens_at(&consortium));
    site.configure(&firewall.address.to_string(), "");
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

#[test]
fn a_hospital_behind_a_proxy_enrols_through_it_and_connects_with_what_enrolment_wrote() {
    let mut consortium = Consortium::found("thorax");
    let (nowhere, proxy) = (Nowhere::new(), proxy(listens_at(&consortium)));
    let invite = consortium.invite("north", Role::Trainer, 1);
    let text = fs::read_to_string(&invite).expect("written just now");
    let elsewhere = text.replace(&consortium.address, &nowhere.address.to_string());
    assert_ne!(text, elsewhere);
    fs::write(&invite, elsewhere).expect("the folder is ours");

    let site = Site { name: "north".to_owned(), folder: consortium.path("north") };
    let mut enrol = command("site-agent", ["enroll", "--proxy", proxy.as_str()]);
    enrol.arg(&invite).arg("--dir").arg(&site.folder);
    let told = finish(enrol).ok();
    assert!(told.contains("enrolled: trainer `north` of `thorax`"), "{told}");
    let mut agent = site.run();
    agent.until_says(&format!("over TCP through the proxy {proxy}: UDP "));
    consortium.coordinator.until_connected("north");
}

#[test]
#[ignore = "slow: QUIC is tried again after a minute"]
fn a_site_changes_over_to_quic_in_mid_round_when_udp_gets_out() {
    let mut federation = Federation::set_up();
    let firewall = Firewall::before(listens_at(&federation.consortium));
    federation.north.dial_at(&federation.consortium.address, firewall.address);
    // Its round is held open.
    let south = federation.run_held(&federation.south);
    let mut north = federation.north.run();
    north.until_says("gets no answer (a firewall?); QUIC is tried again every 10 minutes");
    north.until_says("round 1: the coordinator counts the update");
    firewall.open();
    north.until_says("QUIC gets an answer again: changing over from TCP");
    north.until_says("as trainer `north` over QUIC");
    south.resume();
    federation.assert_ends_undisturbed();
}
