//! The rounds of a study.
//!
//! ```text
//! RoundMachine::new(plan) | restore(plan, snapshot) | replay(plan, snapshot, entries)
//!   .tick(event, now) -> Result<Vec<Action>, CommandError>      the one door in
//!   .expect_update(site, offer) -> Result<UpdateExpectation, Rejection>   asked before bytes are accepted
//!   .outstanding(now) -> Vec<Action>                            what was under way, after a restart
//!   .snapshot() / .status()
//! ```

mod event;
mod plan;
mod rejection;

pub use event::{
    Action, DeclineReason, Event, Fact, Fault, PauseReason, RoundOutcome, RoundTask, Term, Timer, UpdateOffer,
};
pub use plan::{Gate, Quorum, RoundPlan};
pub use rejection::{Rejection, UpdateExpectation};
