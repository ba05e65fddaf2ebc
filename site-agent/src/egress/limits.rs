//! How much may leave, and how often: the policy's numbers against what the ledger says has left already.
//!
//! What is limited is what others learn from a hospital in a day (UTC), so the same content counts once a day however often it
//! is offered: a broken link costs nothing of the day's sum. Sums are rebuilt from the ledger at each start, so a restart
//! resets none; each day has its own, so that a clock which steps back and forth neither blocks nor forgets anything.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::Digest;

use super::ledger::{Entry, LedgerEvent};
use super::outbound::{Kind, Summary};
use super::policy::{Policy, PolicyRefusal};

/// Most bytes of a signed document; the wire allows no more.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Why a message does not leave now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// It never may.
    Never(PolicyRefusal),
    /// The day's sum is spent; another day has its own.
    Today(PolicyRefusal),
    /// It comes too soon after one like it.
    TooSoon(PolicyRefusal),
}

/// What left so far, as far as limits need to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Spent {
    /// Bytes of content on each day.
    bytes: BTreeMap<jiff::civil::Date, u64>,
    /// The day of the last entry, and the contents that count in its sum.
    day: Option<jiff::civil::Date>,
    counted: BTreeSet<Digest>,
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
            (self.day, self.counted) = (Some(day), BTreeSet::new());
        }
        // Progress is short and never the same: it is not worth remembering.
        if entry.kind == Kind::Progress {
            self.last_progress = Some(entry.at);
        } else if !self.counted.insert(entry.content) {
            return;
        }
        let sum = self.bytes.entry(day).or_default();
        *sum = sum.saturating_add(entry.bytes);
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
    ) -> Result<(), Limit> {
        let quota = policy.quota();
        permit_some_day(policy, message.kind, message.bytes).map_err(Limit::Never)?;
        // The others say nothing of the data, and are a few bytes: they count, but a round does not wait for want of them.
        if Kind::GOVERNED.contains(&message.kind) {
            let today = utc_day(now);
            let left = self.bytes.get(&today).copied().unwrap_or(0);
            let counts_already = self.day == Some(today) && self.counted.contains(&message.content);
            if !counts_already && left.saturating_add(message.bytes) > quota.max_bytes_per_day {
                let what = format!("{} MiB more after {} MiB today", mib(message.bytes), mib(left));
                return Err(Limit::Today(policy.refuse("egress.max_mib_per_day", what)));
            }
        }
        let since = self.last_progress.map(|last| now.duration_since(last).as_secs());
        // Less than nothing is a clock that stepped back.
        let early = since
            .is_some_and(|s| (0..i64::try_from(quota.progress_every_s).unwrap_or(i64::MAX)).contains(&s));
        if message.kind == Kind::Progress && early {
            let what = "a progress message so soon".to_owned();
            return Err(Limit::TooSoon(policy.refuse("egress.progress_every_s", what)));
        }
        Ok(())
    }
}

/// Whether a message of so many bytes may leave on a day on which nothing else does.
///
/// # Errors
/// The rule of the policy whose number it exceeds by itself.
pub(super) fn permit_some_day(policy: &Policy, kind: Kind, bytes: u64) -> Result<(), PolicyRefusal> {
    let quota = policy.quota();
    let what = || format!("`{}` of {} MiB", kind.name(), mib(bytes));
    let largest = match kind {
        Kind::Update => quota.max_update_bytes,
        // As large as it came; the day's sum bounds it.
        Kind::Model => u64::MAX,
        _ => MAX_DOCUMENT_BYTES,
    };
    if bytes > largest {
        return Err(policy.refuse("egress.max_update_mib", what()));
    }
    if Kind::GOVERNED.contains(&kind) && bytes > quota.max_bytes_per_day {
        return Err(policy.refuse("egress.max_mib_per_day", format!("{} on any day", what())));
    }
    Ok(())
}

const fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn utc_day(at: jiff::Timestamp) -> jiff::civil::Date {
    at.to_zoned(jiff::tz::TimeZone::UTC).date()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const DAY: i64 = 86_400;

    fn policy() -> Policy {
        let text = "[studies]\napprove = \"ask\"\n[egress]\nallow = [\"update\", \"progress\"]\nmax_update_mib = 4\n\
                    max_mib_per_day = 3\nprogress_every_s = 5\n";
        Policy::parse("policy.toml", text).unwrap()
    }

    /// A message whose content is named.
    fn message(kind: Kind, bytes: u64, content: &str) -> Summary {
        Summary { kind, study: None, round: None, content: Digest::of(content.as_bytes()), bytes }
    }

    fn update(mib: u64, content: &str) -> Summary {
        message(Kind::Update, mib * MIB, content)
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn entry(message: Summary, second: i64) -> Entry {
        let Summary { kind, study, round, content, bytes } = message;
        Entry { seq: 1, at: at(second), kind, event: LedgerEvent::Sending, study, round, content, bytes }
    }

    #[test]
    fn the_daily_limit_counts_what_was_sent_today_and_starts_anew_tomorrow() {
        let mut spent = Spent::default();
        spent.note(&entry(update(2, "one"), 100));
        assert_eq!(spent.permit(&policy(), &update(1, "two"), at(200)), Ok(()));
        let refused = spent.permit(&policy(), &update(2, "two"), at(200)).unwrap_err();
        let Limit::Today(refusal) = refused else { panic!("{refused:?}") };
        assert_eq!((refusal.rule, refusal.line), ("egress.max_mib_per_day", Some(6)));
        assert!(spent.permit(&policy(), &update(2, "two"), at(DAY - 1)).is_err());
        assert_eq!(spent.permit(&policy(), &update(2, "two"), at(DAY)), Ok(()));
    }

    #[test]
    fn the_same_content_counts_once_a_day_however_often_it_is_offered() {
        let mut spent = Spent::default();
        for second in [100, 200, 300] {
            assert_eq!(spent.permit(&policy(), &update(2, "one"), at(second)), Ok(()));
            spent.note(&entry(update(2, "one"), second));
        }
        assert_eq!(spent.permit(&policy(), &update(1, "two"), at(400)), Ok(()));
        assert!(spent.permit(&policy(), &update(2, "two"), at(400)).is_err());
        // On the next day it may leave again, and counts there.
        spent.note(&entry(update(2, "one"), DAY + 1));
        assert!(spent.permit(&policy(), &update(2, "two"), at(DAY + 2)).is_err());
    }

    #[test]
    fn a_clock_that_steps_neither_blocks_nor_forgets() {
        let mut spent = Spent::default();
        spent.note(&entry(update(3, "one"), 10 * DAY));
        // Back by a week: that day has its own sum.
        assert_eq!(spent.permit(&policy(), &update(2, "two"), at(3 * DAY)), Ok(()));
        spent.note(&entry(update(2, "two"), 3 * DAY));
        spent.note(&entry(message(Kind::Progress, 12, "p"), 3 * DAY));
        // Right again: what left on this day still counts, and progress is not held up by one from the past or the future.
        assert!(spent.permit(&policy(), &update(1, "three"), at(10 * DAY)).is_err());
        let progress = message(Kind::Progress, 12, "q");
        assert_eq!(spent.permit(&policy(), &progress, at(3 * DAY - 60)), Ok(()));
        assert_eq!(spent.permit(&policy(), &progress, at(11 * DAY)), Ok(()));
    }

    #[test]
    fn what_exceeds_a_limit_by_itself_never_leaves() {
        for (mib, rule) in [(5, "egress.max_update_mib"), (4, "egress.max_mib_per_day")] {
            let refused = Spent::default().permit(&policy(), &update(mib, "one"), at(0)).unwrap_err();
            assert!(matches!(&refused, Limit::Never(refusal) if refusal.rule == rule), "{refused:?}");
        }
    }

    #[test]
    fn a_model_goes_back_as_large_as_it_came_within_the_days_sum() {
        let text = "[studies]\napprove = \"ask\"\n[egress]\nallow = [\"model\"]\nmax_update_mib = 1\nmax_mib_per_day = 3\n\
                    progress_every_s = 5\n";
        let policy = Policy::parse("policy.toml", text).unwrap();
        let model = |mib: u64| message(Kind::Model, mib * MIB, "model");
        let mut spent = Spent::default();
        assert_eq!(spent.permit(&policy, &model(3), at(100)), Ok(()));
        assert!(matches!(spent.permit(&policy, &model(4), at(100)), Err(Limit::Never(_))));
        spent.note(&entry(update(1, "one"), 100));
        assert!(matches!(spent.permit(&policy, &model(3), at(101)), Err(Limit::Today(_))));
    }

    #[test]
    fn answers_leave_on_a_day_that_is_spent() {
        let mut spent = Spent::default();
        spent.note(&entry(update(3, "one"), 100));
        assert_eq!(spent.permit(&policy(), &message(Kind::Answer, 32, "yes"), at(101)), Ok(()));
        assert!(spent.permit(&policy(), &message(Kind::LabelManifest, 32, "m"), at(101)).is_err());
    }

    #[test]
    fn progress_is_thinned_out() {
        let mut spent = Spent::default();
        let progress = message(Kind::Progress, 12, "p");
        spent.note(&entry(progress, 100));
        assert!(matches!(spent.permit(&policy(), &progress, at(104)), Err(Limit::TooSoon(_))));
        assert_eq!(spent.permit(&policy(), &progress, at(105)), Ok(()));
    }

    #[test]
    fn what_was_withheld_does_not_count() {
        let mut spent = Spent::default();
        let event = LedgerEvent::Withheld { rule: String::new() };
        spent.note(&Entry { event, ..entry(update(3, "one"), 100) });
        assert_eq!(spent.permit(&policy(), &update(1, "two"), at(101)), Ok(()));
    }
}
