//! Which lane to dial: QUIC, or TCP where no UDP gets out. Decides only; [`super::dial`] dials.

use std::time::{Duration, Instant};

use link::Lane;
use serde::Deserialize;

use super::address::Address;

/// What site.toml says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneSetting {
    /// QUIC, and TCP where QUIC gets no answer.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// TCP alone.
    Tcp,
}

/// How to dial next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// QUIC alone.
    Quic,
    /// TCP alone.
    Tcp,
    /// QUIC, and after a head start TCP beside it: who connects first is taken.
    Both,
}

/// When QUIC is first tried beside a connection over TCP: it may have been the coordinator that was slow to start.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// How often it is tried after that.
const RETRY_QUIC: Duration = Duration::from_secs(600);

/// Remembers whether QUIC got an answer here. Time is an argument.
#[derive(Clone, Debug)]
pub struct LaneChooser {
    setting: LaneSetting,
    /// QUIC got none although TCP did: when to try it again.
    retry_at: Option<Instant>,
}

impl LaneChooser {
    /// Of a process that knows nothing yet.
    pub const fn new(setting: LaneSetting) -> Self {
        Self { setting, retry_at: None }
    }

    /// How to dial now.
    pub fn plan(&self, now: Instant) -> Plan {
        match self.setting {
            LaneSetting::Quic => Plan::Quic,
            LaneSetting::Tcp => Plan::Tcp,
            LaneSetting::Auto => match self.next_probe(now) {
                Some(wait) if !wait.is_zero() => Plan::Tcp,
                _ => Plan::Both,
            },
        }
    }

    /// A connection was made as planned.
    pub fn connected(&mut self, plan: Plan, lane: Lane, now: Instant) {
        match (plan, lane) {
            (Plan::Both, Lane::Tcp) => self.retry_at = Some(now + FIRST_RETRY),
            (_, Lane::Quic) => self.retry_at = None,
            (Plan::Quic | Plan::Tcp, Lane::Tcp) => {}
        }
    }

    /// None was made: the network may be another one now, so all is tried next.
    pub fn failed(&mut self) {
        self.retry_at = None;
    }

    /// How long until QUIC is to be tried beside a connection over TCP; `None` when it is not.
    pub fn next_probe(&self, now: Instant) -> Option<Duration> {
        Some(self.retry_at?.saturating_duration_since(now))
    }

    /// QUIC was tried beside a connection over TCP.
    pub fn probed(&mut self, answered: bool, now: Instant) {
        self.retry_at = (!answered).then(|| now + RETRY_QUIC);
    }

    /// The lane and the reason for it, after "connected".
    pub fn words(&self, lane: Lane, coordinator: &Address, proxy: Option<&str>) -> String {
        if lane == Lane::Quic {
            return "over QUIC".to_owned();
        }
        let through = proxy.map_or(String::new(), |proxy| format!(" through the proxy {proxy}"));
        match self.setting {
            LaneSetting::Auto => format!(
                "over TCP{through}: UDP {} to {} gets no answer (a firewall?); QUIC is tried again every {} minutes",
                coordinator.port(),
                coordinator.host(),
                RETRY_QUIC.as_secs() / 60,
            ),
            LaneSetting::Quic | LaneSetting::Tcp => format!("over TCP{through}, as site.toml says"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_setting_is_obeyed_whatever_happens() {
        let now = Instant::now();
        for (setting, plan, lane) in
            [(LaneSetting::Quic, Plan::Quic, Lane::Quic), (LaneSetting::Tcp, Plan::Tcp, Lane::Tcp)]
        {
            let mut chooser = LaneChooser::new(setting);
            assert_eq!(chooser.plan(now), plan);
            chooser.connected(plan, lane, now);
            chooser.failed();
            assert_eq!((chooser.plan(now), chooser.next_probe(now)), (plan, None));
        }
    }

    #[test]
    fn where_quic_got_no_answer_it_is_tried_after_a_minute_and_then_every_ten() {
        let start = Instant::now();
        let mut chooser = LaneChooser::new(LaneSetting::Auto);
        assert_eq!(chooser.plan(start), Plan::Both);
        chooser.connected(Plan::Both, Lane::Tcp, start);
        assert_eq!(chooser.next_probe(start), Some(MINUTE));
        chooser.probed(false, start + MINUTE);
        assert_eq!(chooser.plan(start + 10 * MINUTE), Plan::Tcp);
        // A new connection over TCP alone says nothing about QUIC.
        chooser.connected(Plan::Tcp, Lane::Tcp, start + 10 * MINUTE);
        assert_eq!(chooser.next_probe(start + 10 * MINUTE), Some(MINUTE));
        assert_eq!(chooser.plan(start + 11 * MINUTE), Plan::Both);
    }

    #[test]
    fn quic_is_taken_again_once_it_answers() {
        let start = Instant::now();
        let mut chooser = LaneChooser::new(LaneSetting::Auto);
        chooser.connected(Plan::Both, Lane::Tcp, start);
        chooser.probed(true, start + MINUTE);
        assert_eq!(chooser.plan(start + MINUTE), Plan::Both);
        chooser.connected(Plan::Both, Lane::Quic, start + MINUTE);
        assert_eq!(chooser.next_probe(start + MINUTE), None);
    }

    #[test]
    fn when_tcp_fails_too_both_are_tried() {
        let now = Instant::now();
        let mut chooser = LaneChooser::new(LaneSetting::Auto);
        chooser.connected(Plan::Both, Lane::Tcp, now);
        chooser.failed();
        assert_eq!(chooser.plan(now), Plan::Both);
    }

    #[test]
    fn the_operator_is_told_which_lane_and_why() {
        let coordinator = "c.example.org:443".parse().unwrap();
        let auto = LaneChooser::new(LaneSetting::Auto);
        assert_eq!(auto.words(Lane::Quic, &coordinator, None), "over QUIC");
        assert_eq!(
            auto.words(Lane::Tcp, &coordinator, Some("http://p:3128")),
            "over TCP through the proxy http://p:3128: UDP 443 to c.example.org gets no answer (a firewall?); QUIC is tried again every 10 minutes"
        );
        let tcp = LaneChooser::new(LaneSetting::Tcp);
        assert_eq!(tcp.words(Lane::Tcp, &coordinator, None), "over TCP, as site.toml says");
    }
}
