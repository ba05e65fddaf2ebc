//! The one place of this crate that reads the clock; everything else is handed a [`Timestamp`].

use std::time::{SystemTime, UNIX_EPOCH};

use common::time::Timestamp;

/// The time now. A clock before 1970 reads as 1970.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(rfc3339(Timestamp(1_800_000_000_123)), "2027-01-15T08:00:00Z");
        assert!(!rfc3339(Timestamp(u64::MAX)).is_empty());
    }
}
