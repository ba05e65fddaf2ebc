//! Many federations, on as many threads as the machine has.

use std::fmt;
use std::ops::{AddAssign, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::{Coverage, Outcome, Sabotage, Scenario, Tally, Violation, command, run, shrink};

/// What happened in many federations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What happened.
    pub tally: Tally,
    /// The transitions taken.
    pub coverage: Coverage,
}

/// A seed whose federation broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// The fewest operations that still break something.
    pub shrunk: Scenario,
    /// What they break.
    pub last: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, violation, shrunk, last } = self;
        writeln!(f, "seed {seed}: {violation}")?;
        writeln!(f, "shrunk to {shrunk:#?}\nwhich fails with: {last}")?;
        write!(f, "again: {}", command(*seed))
    }
}

impl AddAssign<Outcome> for Batch {
    fn add_assign(&mut self, outcome: Outcome) {
        self.tally += outcome.tally;
        self.coverage += &outcome.coverage;
    }
}

/// Runs every seed of a range, `jobs` at a time, and tells `progress` how many are done. What comes back does not depend on
/// `jobs`.
///
/// # Errors
/// The first seed that fails, with its shrunk scenario.
pub fn run_seeds(
    seeds: Range<u64>,
    jobs: usize,
    progress: impl Fn(u64) + Sync,
) -> Result<Batch, Box<Failure>> {
    let (next, done) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let work = || {
        let mut mine = Batch::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (mine, None);
            }
            match run(&Scenario::from_seed(seed), Sabotage::None) {
                Ok(outcome) => mine += outcome,
                Err(violation) => {
                    // Lower seeds are under way already; higher ones need not begin.
                    next.store(seeds.end, Ordering::Relaxed);
                    return (mine, Some((seed, violation)));
                }
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    let parts: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("panics of a federation are caught")).collect()
    });
    let mut total = Batch::default();
    let mut failures = Vec::new();
    for (part, failure) in parts {
        total.tally += part.tally;
        total.coverage += &part.coverage;
        failures.extend(failure);
    }
    let Some((seed, violation)) = failures.into_iter().min_by_key(|(seed, _)| *seed) else {
        return Ok(total);
    };
    let (shrunk, last) = shrink(Scenario::from_seed(seed), violation.clone());
    Err(Box::new(Failure { seed, violation, shrunk, last }))
}
