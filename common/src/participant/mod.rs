//! A site's part in a study.
//!
//! ```text
//! ParticipantMachine::new(identity) | restore(identity, snapshot) | replay(identity, snapshot, entries)
//!   .tick(event, now) -> Vec<Action>
//!   .outstanding(now) -> Vec<Action>      what was under way, after a restart; the site counts as disconnected
//!   .snapshot() / .status()
//! ```

mod event;

pub use event::{Action, DropReason, Event, Fact, Step, Timer};
