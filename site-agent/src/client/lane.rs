//! Which lane to dial: QUIC, or TCP where no UDP gets out. Decides only; [`super::dial`] dials.

use std::time::{Duration, Instant};

use link::Lane;
use serde::Deserialize;

use super::address::Address;

/// What site.toml says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneSetting {
    /// QUIC, and TCP where QUIC gets no answer or does not last.
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
/// A connection over QUIC that lives so long is not one whose flow a firewall drops after its first packets.
const LASTING: Duration = Duration::from_secs(600);
/// How long QUIC is left alone at most where it does not last: each try may break a transfer, a minute later.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);

/// Early ends in a row from which on a firewall is taken for the cause, and not a network that was cut off once.
const SILENT_FLOWS: u32 = 2;

/// Remembers whether QUIC got an answer here, and whether it lasted. Time is an argument.
#[derive(Clone, Debug)]
pub struct LaneChooser {
    setting: LaneSetting,
    /// QUIC got no answer although TCP did, or went silent: when to try it again.
    retry_at: Option<Instant>,
    /// Connections over QUIC that went silent early, since one lasted.
    losses: u32,
}

impl LaneChooser {
    /// Of a process that knows nothing yet.
    pub const fn new(setting: LaneSetting) -> Self {
        Self { setting, retry_at: None, losses: 0 }
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

    /// A connection ended that had lived so long, or its Hello got no answer. Some firewalls let the first packets of a UDP flow through
    /// and drop it then, so that every handshake succeeds: where QUIC went silent early twice in a row, TCP alone is dialled, for
    /// twice as long each time. Once alone is what a network looks like that is cut off for a minute, and TCP may be far slower over its line.
    pub fn lost(&mut self, lane: Lane, timed_out: bool, lived: Duration, now: Instant) {
        if self.setting != LaneSetting::Auto || lane != Lane::Quic {
            return;
        }
        if lived >= LASTING {
            self.losses = 0;
        } else if timed_out {
            let wait =
                |doublings| FIRST_RETRY.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_RETRY);
            self.losses = self.losses.saturating_add(1);
            self.retry_at = self.losses.checked_sub(SILENT_FLOWS).map(|again| now + wait(again));
        }
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
    pub fn words(&self, lane: Lane, coordinator: &Address, proxy: Option<&str>, now: Instant) -> String {
        if lane == Lane::Quic {
            return "over QUIC".to_owned();
        }
        let through = proxy.map_or(String::new(), |proxy| format!(" through the proxy {proxy}"));
        match self.setting {
            LaneSetting::Auto if self.losses >= SILENT_FLOWS => format!(
                "over TCP{through}: UDP {} to {} was answered and then went silent (a firewall?); QUIC is tried again in {} min",
                coordinator.port(),
                coordinator.host(),
                self.next_probe(now).unwrap_or_default().as_secs().div_ceil(60),
            ),
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
            chooser.lost(lane, true, MINUTE, now);
            assert_eq!((chooser.plan(now), chooser.next_probe(now)), (plan, None));
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

    /// Dials over QUIC as planned, and loses that connection a minute later, when nothing was heard for as long as it may be idle.
    fn lose_quic(chooser: &mut LaneChooser, now: Instant) -> Instant {
        assert_eq!(chooser.plan(now), Plan::Both);
        chooser.connected(Plan::Both, Lane::Quic, now);
        chooser.lost(Lane::Quic, true, MINUTE, now + MINUTE);
        now + MINUTE
    }

    #[test]
    fn where_quic_is_answered_and_goes_silent_tcp_is_taken_for_longer_each_time() {
        let mut chooser = LaneChooser::new(LaneSetting::Auto);
        let mut now = lose_quic(&mut chooser, Instant::now());
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            now = lose_quic(&mut chooser, now);
            assert_eq!(chooser.plan(now), Plan::Tcp);
            chooser.connected(Plan::Tcp, Lane::Tcp, now);
            assert_eq!(chooser.next_probe(now), Some(minutes * MINUTE));
            now += minutes * MINUTE;
            // A handshake is answered, as before: that alone forgets nothing.
            chooser.probed(true, now);
        }
    }

    #[test]
    fn quic_that_lasted_or_was_closed_or_went_silent_once_is_dialled_again() {
        let start = Instant::now();
        let mut chooser = LaneChooser::new(LaneSetting::Auto);
        chooser.connected(Plan::Both, Lane::Quic, start);
        chooser.lost(Lane::Quic, false, MINUTE, start + MINUTE);
        assert_eq!(chooser.plan(start + MINUTE), Plan::Both);

        // Once is a network that was cut off.
        let again = lose_quic(&mut chooser, start + MINUTE);
        assert_eq!(chooser.plan(again), Plan::Both);
        chooser.connected(Plan::Both, Lane::Quic, again);
        chooser.lost(Lane::Quic, true, 10 * MINUTE, again + 10 * MINUTE);
        assert_eq!(chooser.plan(again + 10 * MINUTE), Plan::Both);
        // The loss before it is forgotten: the next one counts as the first.
        let lost = lose_quic(&mut chooser, again + 10 * MINUTE);
        assert_eq!(chooser.plan(lost), Plan::Both);
    }

    #[test]
    fn after_a_silent_quic_both_are_tried_where_tcp_fails_too() {
        let start = Instant::now();
        let mut chooser = LaneChooser::new(LaneSetting::Auto);
        let once = lose_quic(&mut chooser, start);
        let lost = lose_quic(&mut chooser, once);
        assert_eq!(chooser.plan(lost), Plan::Tcp);
        chooser.failed();
        assert_eq!(chooser.plan(lost), Plan::Both);
        // The end of a connection over TCP says nothing about QUIC.
        chooser.lost(Lane::Tcp, true, MINUTE, lost);
        assert_eq!(chooser.plan(lost), Plan::Both);
    }

    #[test]
    fn the_operator_is_told_which_lane_and_why() {
        let (coordinator, now) = ("c.example.org:443".parse().unwrap(), Instant::now());
        let mut auto = LaneChooser::new(LaneSetting::Auto);
        assert_eq!(auto.words(Lane::Quic, &coordinator, None, now), "over QUIC");
        assert_eq!(
            auto.words(Lane::Tcp, &coordinator, Some("http://p:3128"), now),
            "over TCP through the proxy http://p:3128: UDP 443 to c.example.org gets no answer (a firewall?); QUIC is tried again every 10 minutes"
        );
        for _ in 0..SILENT_FLOWS {
            auto.lost(Lane::Quic, true, MINUTE, now);
        }
        assert_eq!(
            auto.words(Lane::Tcp, &coordinator, None, now + Duration::from_secs(1)),
            "over TCP: UDP 443 to c.example.org was answered and then went silent (a firewall?); QUIC is tried again in 1 min"
        );
        let tcp = LaneChooser::new(LaneSetting::Tcp);
        assert_eq!(tcp.words(Lane::Tcp, &coordinator, None, now), "over TCP, as site.toml says");
    }
}
