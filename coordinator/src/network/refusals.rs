//! What the operator is told of those who are turned away at the door: the first at once, and from then on a line a minute for
//! each reason, with the number of those left out. Whoever speaks TLS can be turned away as often as it likes.
//!
//! By reason, for it is one of a few, and scanners cannot make every one of them: what nobody but a site can be told is not
//! drowned by what they are told all day.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use link::Tally;

use crate::driver::DriverHandle;
use crate::progress::Line;

/// Counts them by the code of their reason.
#[derive(Default)]
pub struct Refusals {
    by_code: Mutex<BTreeMap<&'static str, Tally>>,
}

impl Refusals {
    /// Tells of one more, now or with the next ones of its code.
    pub(super) async fn say(&self, driver: &DriverHandle, code: &'static str, detail: String) {
        if let Some(detail) = self.count(code, detail, Instant::now()) {
            driver.say(Line::Refused { site: None, code: code.to_owned(), detail }).await;
        }
    }

    /// One more; what to tell of it and of those left out, when it is time.
    fn count(&self, code: &'static str, detail: String, now: Instant) -> Option<String> {
        // Each change below the lock is one step.
        let mut by_code = self.by_code.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match by_code.entry(code).or_default().count(now)? - 1 {
            0 => detail,
            others => format!("{detail} (and {others} more since the last such line)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn scanners_are_a_line_a_minute_and_hide_no_other_reason() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let said = |code, seconds| {
            refusals.count(code, format!("caller {seconds}"), start + Duration::from_secs(seconds))
        };
        assert_eq!(said("no-common-protocol", 0).unwrap(), "caller 0", "the first at once");
        assert!([1, 2, 59].iter().all(|&seconds| said("no-common-protocol", seconds).is_none()));
        assert_eq!(said("certificate-expired", 59).unwrap(), "caller 59");
        assert_eq!(
            said("no-common-protocol", 60).unwrap(),
            "caller 60 (and 3 more since the last such line)"
        );
        assert_eq!(said("no-common-protocol", 200).unwrap(), "caller 200");
    }
}
