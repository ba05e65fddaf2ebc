//! How much may leave, and how often: the policy's numbers against what the ledger says has left already.
//!
//! The day's sum is rebuilt from the ledger at each start, so a restart resets no limit.

use super::ledger::{Entry, LedgerEvent};
use super::outbound::{Kind, Summary};
use super::policy::{Policy, PolicyRefusal};

/// Most bytes of a signed document; the wire allows no more.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// What left so far, as far as limits need to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Spent {
    day: Option<jiff::civil::Date>,
    bytes_today: u64,
    last_progress: Option<jiff::Timestamp>,
}

impl Spent {
    /// Takes one ledger entry into account.
    pub(super) fn note(&mut self, entry: &Entry) {
        if entry.event != LedgerEvent::Sending {
            return;
        }
        let day = utc_day(entry.at);
        if self.day != Some(day) {
            *self = Self { day: Some(day), bytes_today: 0, last_progress: self.last_progress };
        }
        self.bytes_today = self.bytes_today.saturating_add(entry.bytes);
        if entry.kind == Kind::Progress {
            self.last_progress = Some(entry.at);
        }
    }

    /// Whether `message` may leave at `now`.
    ///
    /// # Errors
    /// The rule of the policy whose number it exceeds.
    pub(super) fn permit(
        &self,
        policy: &Policy,
        message: &Summary,
        now: jiff::Timestamp,
    ) -> Result<(), PolicyRefusal> {
        let quota = policy.quota();
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let largest = if message.kind == Kind::Update { quota.max_update_bytes } else { MAX_DOCUMENT_BYTES };
        if message.bytes > largest {
            let what = format!("`{}` of {} MiB", message.kind.name(), mib(message.bytes));
            return Err(policy.refuse("egress.max_update_mib", what));
        }
        let today = if self.day == Some(utc_day(now)) { self.bytes_today } else { 0 };
        if today.saturating_add(message.bytes) > quota.max_bytes_per_day {
            let what = format!("{} MiB more after {} MiB today", mib(message.bytes), mib(today));
            return Err(policy.refuse("egress.max_mib_per_day", what));
        }
        let since = self.last_progress.map(|last| now.duration_since(last).as_secs());
        let early = since
            .is_some_and(|s| (0..i64::try_from(quota.progress_every_s).unwrap_or(i64::MAX)).contains(&s));
        if message.kind == Kind::Progress && early {
            return Err(policy.refuse("egress.progress_every_s", "a progress message so soon".to_owned()));
        }
        Ok(())
    }
}

fn utc_day(at: jiff::Timestamp) -> jiff::civil::Date {
    at.to_zoned(jiff::tz::TimeZone::UTC).date()
}

#[cfg(test)]
mod tests {
    use common::ids::Digest;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn policy() -> Policy {
        let text = "[studies]\napprove = \"ask\"\n[egress]\nallow = [\"update\", \"progress\"]\nmax_update_mib = 2\n\
                    max_mib_per_day = 3\nprogress_every_s = 5\n";
        Policy::parse("policy.toml", text).unwrap()
    }

    fn message(kind: Kind, bytes: u64) -> Summary {
        Summary { kind, study: None, round: None, content: Digest::of(b""), bytes }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn sent(kind: Kind, bytes: u64, second: i64) -> Entry {
        let Summary { kind, study, round, content, bytes } = message(kind, bytes);
        Entry { seq: 1, at: at(second), kind, event: LedgerEvent::Sending, study, round, content, bytes }
    }

    #[test]
    fn the_daily_limit_counts_what_was_sent_today_and_starts_anew_tomorrow() {
        let mut spent = Spent::default();
        spent.note(&sent(Kind::Update, 2 * MIB, 100));
        assert!(spent.permit(&policy(), &message(Kind::Update, MIB), at(200)).is_ok());
        let refusal = spent.permit(&policy(), &message(Kind::Update, 2 * MIB), at(200)).unwrap_err();
        assert_eq!((refusal.rule, refusal.line), ("egress.max_mib_per_day", Some(6)));
        assert!(spent.permit(&policy(), &message(Kind::Update, 2 * MIB), at(86_500)).is_ok());
    }

    #[test]
    fn an_update_above_the_limit_does_not_leave() {
        let refusal =
            Spent::default().permit(&policy(), &message(Kind::Update, 2 * MIB + 1), at(0)).unwrap_err();
        assert_eq!(refusal.rule, "egress.max_update_mib");
    }

    #[test]
    fn progress_is_thinned_out() {
        let mut spent = Spent::default();
        spent.note(&sent(Kind::Progress, 12, 100));
        assert!(spent.permit(&policy(), &message(Kind::Progress, 12), at(104)).is_err());
        assert!(spent.permit(&policy(), &message(Kind::Progress, 12), at(105)).is_ok());
    }

    #[test]
    fn what_was_withheld_does_not_count() {
        let mut spent = Spent::default();
        let event = LedgerEvent::Withheld { rule: String::new() };
        spent.note(&Entry { event, ..sent(Kind::Update, 3 * MIB, 100) });
        assert!(spent.permit(&policy(), &message(Kind::Update, MIB), at(101)).is_ok());
    }
}
