//! Named instants at which a test kills a process: between two durable writes, in mid-upload.
//!
//! `CONSILIUM_FAILPOINT=name` ends the process the first time that it passes the point of that name, `name:3` the third
//! time, as `kill -9` would: nothing is flushed, nothing is tidied up. The points are listed in `docs/protocol.md`.
//!
//! Only a build with the feature `failpoints` looks at the variable. A program that is given out has no such thing in it:
//! there, [`pass`] is empty. In this crate because it is the one that both programs link and that may know the system.

/// The process passes the point `name`.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn pass(_name: &str) {}

/// The process passes the point `name`: the last thing that it does, when the environment says so.
#[cfg(feature = "failpoints")]
pub fn pass(name: &str) {
    if armed::is_last(name) {
        tracing::error!("failpoint {name}: the process ends here");
        std::process::abort();
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    const VARIABLE: &str = "CONSILIUM_FAILPOINT";

    /// The point that ends the process, and how often it is passed before.
    #[derive(Debug)]
    pub(super) struct Armed {
        name: String,
        /// The pass that is the last, from 1.
        last: u32,
        passed: AtomicU32,
    }

    impl Armed {
        /// Reads `name` or `name:n`.
        ///
        /// # Panics
        /// When `n` is no number from 1: a test that kills nobody must not pass.
        pub(super) fn parse(text: &str) -> Self {
            let (name, last) = match text.split_once(':') {
                Some((name, times)) => (name, times.parse().ok().filter(|&times| times > 0)),
                None => (text, Some(1)),
            };
            let last = last.unwrap_or_else(|| panic!("{VARIABLE}={text}: expected name or name:n, n from 1"));
            Self { name: name.to_owned(), last, passed: AtomicU32::new(0) }
        }

        /// Counts a pass; whether it is the last.
        pub(super) fn passes(&self, name: &str) -> bool {
            self.name == name && self.passed.fetch_add(1, Ordering::Relaxed) + 1 == self.last
        }
    }

    pub(super) fn is_last(name: &str) -> bool {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| Armed::parse(&text)));
        armed.as_ref().is_some_and(|armed| armed.passes(name))
    }
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::armed::Armed;

    #[test]
    fn the_nth_pass_of_the_named_point_is_the_last() {
        let third = Armed::parse("site.mid-upload:3");
        let passes =
            ["site.mid-upload", "site.after-outbox", "site.mid-upload", "site.mid-upload", "site.mid-upload"];
        assert_eq!(passes.map(|name| third.passes(name)), [false, false, false, true, false]);
        assert!(Armed::parse("coordinator.before-receipt").passes("coordinator.before-receipt"));
    }
}
