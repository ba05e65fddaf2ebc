//! The one place of this crate that reads the clocks; everything else is handed a [`Timestamp`].
//!
//! Certificates, invites and records go by the wall clock ([`now`]). Deadlines go by [`SteadyClock`], which an operator, a
//! time server or a bad battery cannot move: a round lasts as long as it lasts.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::time::Timestamp;

/// A smaller difference between the clocks is drift, which time servers correct all the time.
const STEP: Duration = Duration::from_secs(60);

/// The time now, by the wall clock. A clock before 1970 reads as 1970.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// `at` as people and reports read it: RFC 3339 in UTC, whole seconds.
pub fn rfc3339(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let instant = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    instant.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `at` for the name of a file: as [`rfc3339`], without what a shell or another system may not like.
pub fn file_stamp(at: Timestamp) -> String {
    rfc3339(at).replace(['-', ':'], "")
}

/// Time for deadlines: begins with the wall clock, and from then on only passes.
#[derive(Debug)]
pub struct SteadyClock {
    started: Instant,
    watch: ClockWatch,
}

impl SteadyClock {
    /// Starts at the time of the wall clock, but not before `last`, the last time that a journal knows: a clock that was
    /// set back while nobody ran would make its deadlines longer.
    pub fn starting_after(last: Timestamp) -> Self {
        Self { started: Instant::now(), watch: ClockWatch::starting(now(), last) }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.watch.time(self.started.elapsed())
    }

    /// Whether somebody has set the wall clock since the last look.
    pub fn look(&mut self) -> Option<Step> {
        self.watch.compare(Reading { wall: now(), elapsed: self.started.elapsed() })
    }
}

/// Both clocks at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What the wall clock says.
    pub wall: Timestamp,
    /// What has passed since the start, by a clock that nobody sets.
    pub elapsed: Duration,
}

/// The arithmetic of [`SteadyClock`], fed with readings.
#[derive(Clone, Copy, Debug)]
pub struct ClockWatch {
    begun: Timestamp,
    last: Reading,
}

impl ClockWatch {
    /// Begins at `wall`, but not before `last`.
    pub fn starting(wall: Timestamp, last: Timestamp) -> Self {
        Self { begun: wall.max(last), last: Reading { wall, elapsed: Duration::ZERO } }
    }

    /// The time when so much has passed since the start.
    pub fn time(&self, elapsed: Duration) -> Timestamp {
        self.begun.after(elapsed)
    }

    /// How far the wall clock has moved beside the other since the reading before, if that is more than drift.
    pub fn compare(&mut self, reading: Reading) -> Option<Step> {
        let passed = reading.elapsed.saturating_sub(self.last.elapsed);
        let expected = self.last.wall.after(passed);
        self.last = reading;
        let (forward, back) = (reading.wall.since(expected), expected.since(reading.wall));
        match (forward > STEP, back > STEP) {
            (true, _) => Some(Step::Forward(forward)),
            (_, true) => Some(Step::Back(back)),
            _ => None,
        }
    }
}

/// The wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To a later time, by so much.
    Forward(Duration),
    /// To an earlier time, by so much.
    Back(Duration),
}

impl Step {
    /// Seconds forward; negative when it was set back.
    pub fn seconds(self) -> i64 {
        let whole = |by: Duration| i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        match self {
            Self::Forward(by) => whole(by),
            Self::Back(by) => -whole(by),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds();
        let (sign, seconds) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs());
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        match (hours, minutes) {
            (0, 0) => write!(f, "{sign}{seconds} s"),
            (0, _) => write!(f, "{sign}{minutes} min"),
            (_, 0) => write!(f, "{sign}{hours} h"),
            _ => write!(f, "{sign}{hours} h {minutes} min"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn reading(wall: Timestamp, elapsed: Duration) -> Reading {
        Reading { wall, elapsed }
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(rfc3339(Timestamp(1_800_000_000_123)), "2027-01-15T08:00:00Z");
        assert_eq!(file_stamp(Timestamp(1_800_000_000_123)), "20270115T080000Z");
        assert!(!rfc3339(Timestamp(u64::MAX)).is_empty());
    }

    #[test]
    fn a_step_is_told_once_and_moves_no_deadline() {
        let mut watch = ClockWatch::starting(NOON, Timestamp(0));
        let deadline = watch.time(HOUR);
        assert_eq!(watch.compare(reading(NOON.after(HOUR / 2), HOUR / 2)), None);
        // Set three hours forward: half of the round is still to come.
        let later = NOON.after(HOUR / 2 + 3 * HOUR);
        let step = watch.compare(reading(later, HOUR / 2));
        assert_eq!(step, Some(Step::Forward(3 * HOUR)));
        assert!(watch.time(HOUR / 2) < deadline);
        assert_eq!(watch.compare(reading(later.after(HOUR / 2), HOUR)), None, "told before");
        assert_eq!(watch.time(HOUR), deadline);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        let mut watch = ClockWatch::starting(NOON, Timestamp(0));
        let back = Timestamp(NOON.0 - 86_400_000);
        let step = watch.compare(reading(back, Duration::ZERO));
        assert_eq!(step, Some(Step::Back(24 * HOUR)));
        assert_eq!(watch.time(HOUR), NOON.after(HOUR));
    }

    #[test]
    fn a_clock_that_was_set_back_while_nobody_ran_starts_where_the_journal_ends() {
        let last = NOON.after(HOUR);
        let watch = ClockWatch::starting(NOON, last);
        assert_eq!(watch.time(Duration::ZERO), last);
        assert_eq!(watch.time(HOUR), last.after(HOUR));
    }

    #[test]
    fn drift_is_no_step() {
        let mut watch = ClockWatch::starting(NOON, Timestamp(0));
        for seconds in [59u64, 118, 177] {
            // A second too many each minute, and never a step.
            let wall = NOON.after(Duration::from_secs(seconds + seconds / 59));
            assert_eq!(watch.compare(reading(wall, Duration::from_secs(seconds))), None);
        }
    }

    #[test]
    fn steps_are_told_in_hours_and_minutes() {
        let words = |seconds| Step::Forward(Duration::from_secs(seconds)).to_string();
        assert_eq!([61, 3 * 3600, 3 * 3600 + 120].map(words), ["+1 min", "+3 h", "+3 h 2 min"]);
        assert_eq!(Step::Back(2 * HOUR).to_string(), "-2 h");
    }
}
