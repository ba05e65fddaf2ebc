//! Whole federations under one virtual clock: one coordinator, up to fifty trainers and evaluators, some of them sealed, a
//! network that loses, delays, doubles and reorders or cuts some of them off, disks on both sides that are slow, full or
//! rotten, clocks that are set, sites that are late, left out, leave and join, have too few scans or none that can be used, or
//! train for another study meanwhile, a liar, a study that the coordinator cannot read for a while, and processes that are killed
//! at any step and any durable write, stop in order or die in the midst of their work again and again, and are rebuilt from
//! their journals, of which the last line may be cut at any byte. A training goes on from what was kept of its round.
//!
//! A scenario is a list of operations (`operation`) made from a seed (`scenario`), for a study that refuses late updates or
//! counts them in the next round, with a quorum of sites or of each class too; `world` runs it, driving the three machines of
//! `common` as the binaries do; what must hold is written down apart (`invariants`) and checked after every step. A failure
//! is a broken invariant, or a federation that does not finish once the faults stop. No nondeterminism is left: the same
//! seed gives the same steps. One seed alone, or any range:
//!
//! ```text
//! cargo run --release -p tests --bin simulate -- --from 17 --seeds 1
//! ```
//!
//! No process, socket or disk is here: what those do to the binaries is for the end-to-end tests, as is what an optimiser
//! remembers between rounds.

mod arithmetic;
mod batch;
mod coordinator;
mod coverage;
mod fuse;
mod invariants;
mod log;
mod operation;
mod sabotage;
mod scenario;
mod site;
mod tally;
mod transitions;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::ids::ModelHash;

pub use batch::{Batch, Failure, run_seeds};
pub use coverage::{Coverage, Transition};
pub use fuse::Moment;
pub use invariants::Violation;
pub use operation::{Lie, Op};
pub use sabotage::Sabotage;
pub use scenario::Scenario;
pub use tally::Tally;

use world::World;

/// A federation that finished and kept its promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What happened.
    pub tally: Tally,
    /// The transitions taken.
    pub coverage: Coverage,
    /// The last round's model; none when the operator ended the study before.
    pub model: Option<ModelHash>,
    /// Every trainer took part in every round, with the manifest it began with: the model is that of
    /// [`Scenario::undisturbed`].
    pub whole: bool,
}

/// Runs one federation to its end.
///
/// # Errors
/// The promise that was broken; a panic counts as one.
pub fn run(scenario: &Scenario, sabotage: Sabotage) -> Result<Outcome, Violation> {
    let run = || World::new(scenario.clone(), sabotage).run();
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(Violation(format!("a panic: {text}")))
    })
}

/// Leaves out operations one by one for as long as the scenario still fails; what is left, and with what it fails.
pub fn shrink(mut scenario: Scenario, mut violation: Violation) -> (Scenario, Violation) {
    let mut index = 0;
    while index < scenario.ops.len() {
        let mut shorter = scenario.clone();
        shorter.ops.remove(index);
        match run(&shorter, Sabotage::None) {
            Err(broken) => (scenario, violation) = (shorter, broken),
            Ok(_) => index += 1,
        }
    }
    (scenario, violation)
}

/// The command that runs a seed again.
pub fn command(seed: u64) -> String {
    format!("cargo run --release -p tests --bin simulate -- --from {seed} --seeds 1")
}
