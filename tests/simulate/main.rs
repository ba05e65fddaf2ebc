//! `simulate`: simulated federations, any range of seeds, and which transitions of the machines they took.
//!
//! The simulation itself, and what it promises, is [`tests::simulation`]. Exit code 1: a promise was broken, or a long run
//! did not lead everywhere.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Parser;
use serde::Serialize;
use tests::simulation::{self, Batch, Failure, Tally, Transition};

/// With so many federations every transition must have been seen.
const ENOUGH: u64 = 20_000;
/// Federations between two words on the progress.
const PROGRESS_EVERY: u64 = 250;

/// Simulates whole federations, one for each seed.
#[derive(Debug, Parser)]
struct Options {
    /// The first seed.
    #[arg(long, value_name = "A", default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    seeds: u64,
    /// Threads; as many as the machine has cores unless told.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// One JSON object in the place of the tables.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    from: u64,
    seeds: u64,
    jobs: usize,
    seconds: f64,
    seeds_per_s: f64,
    violations: u64,
    tally: Tally,
    transitions: Vec<Taken>,
    missing: Vec<Transition>,
}

#[derive(Debug, Serialize)]
struct Taken {
    #[serde(flatten)]
    transition: Transition,
    times: u64,
}

/// What `--json` prints of a seed that fails.
#[derive(Debug, Serialize)]
struct Broken {
    violations: u64,
    seed: u64,
    violation: String,
    shrunk: String,
    shrunk_violation: String,
    again: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let jobs = options.jobs.map_or(cores, |jobs| jobs.get().min(cores));
    let started = Instant::now();
    let end = options.from.saturating_add(options.seeds);
    let progress = |done| say_progress(done, options.seeds);
    let result = simulation::run_seeds(options.from..end, jobs, progress);
    clear_progress();
    match result {
        Ok(batch) => say_outcome(&options, jobs, &batch, started.elapsed().as_secs_f64()),
        Err(failure) => say_failure(&options, &failure),
    }
}

fn say_outcome(options: &Options, jobs: usize, batch: &Batch, seconds: f64) -> ExitCode {
    let Batch { tally, coverage } = batch;
    let missing = coverage.missing();
    let seeds_per_s = options.seeds as f64 / seconds.max(1e-9);
    if options.json {
        let transitions = coverage.taken().map(|(transition, times)| Taken { transition, times }).collect();
        let summary = Summary {
            from: options.from,
            seeds: options.seeds,
            jobs,
            seconds,
            seeds_per_s,
            violations: 0,
            tally: *tally,
            transitions,
            missing: missing.clone(),
        };
        print_json(&summary);
    } else {
        println!("{coverage}");
        for (name, number) in tally.fields() {
            println!("{name:<18}  {number:>12}");
        }
        println!();
        let all = simulation::Coverage::required();
        println!("transitions that must be seen: {} of {all}", all - missing.len());
        println!(
            "{} simulated federations from seed {}, 0 violations, in {seconds:.1} s with {jobs} threads \
             ({seeds_per_s:.0} a second)",
            options.seeds, options.from
        );
    }
    if options.seeds >= ENOUGH && !missing.is_empty() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn say_failure(options: &Options, failure: &Failure) -> ExitCode {
    let Failure { seed, violation, shrunk, last } = failure;
    if options.json {
        print_json(&Broken {
            violations: 1,
            seed: *seed,
            violation: violation.to_string(),
            shrunk: format!("{shrunk:?}"),
            shrunk_violation: last.to_string(),
            again: simulation::command(*seed),
        });
    } else {
        println!("{failure}");
    }
    ExitCode::FAILURE
}

fn print_json(value: &impl Serialize) {
    println!("{}", serde_json::to_string(value).expect("numbers and words are JSON"));
}

/// A line that overwrites itself, for who sits before it.
fn say_progress(done: u64, seeds: u64) {
    let mut out = std::io::stderr();
    if done.is_multiple_of(PROGRESS_EVERY) && out.is_terminal() {
        // Nobody is poorer for a line of progress that could not be written.
        let _ = write!(out, "\r{done} of {seeds} federations ");
    }
}

fn clear_progress() {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r{:40}\r", "");
    }
}
