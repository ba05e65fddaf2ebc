//! Which transitions the machines took: the proof that the scenarios lead everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use common::evaluation;
use common::participant::{self, ParticipantMachine};
use common::round;
use serde::Serialize;

use super::transitions;

/// One event in one phase of a machine, and the phase after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Transition {
    /// `rounds`, `evaluations`, `trainer` or `evaluator`; `disk` and `site-disk` for a driver whose disk is full; `deaths` for
    /// what they are held against at a site; `study` for a coordinator that cannot read it.
    pub machine: &'static str,
    /// The phase before.
    pub from: &'static str,
    /// The event's name.
    pub event: &'static str,
    /// The phase after; the same when the event changes none.
    pub to: &'static str,
}

/// How often each transition was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<Transition, u64>);

impl Coverage {
    pub(super) fn note(&mut self, transition: Transition) {
        *self.0.entry(transition).or_default() += 1;
    }

    /// How often a transition was taken.
    pub fn count(&self, transition: &Transition) -> u64 {
        self.0.get(transition).copied().unwrap_or(0)
    }

    /// All that were taken, and how often.
    pub fn taken(&self) -> impl Iterator<Item = (Transition, u64)> {
        self.0.iter().map(|(&transition, &count)| (transition, count))
    }

    /// How many must be seen.
    pub fn required() -> usize {
        transitions::required().count()
    }

    /// Those that must be seen and were not.
    pub fn missing(&self) -> Vec<Transition> {
        transitions::required().filter(|transition| self.count(transition) == 0).collect()
    }
}

impl AddAssign<&Coverage> for Coverage {
    fn add_assign(&mut self, other: &Coverage) {
        for (transition, count) in other.taken() {
            *self.0.entry(transition).or_default() += count;
        }
    }
}

/// The table: every transition that must be seen or was, in order. One that must be and was not says so.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<Transition, (u64, bool)> =
            self.taken().map(|(transition, count)| (transition, (count, false))).collect();
        for transition in transitions::required() {
            rows.entry(transition).or_default().1 = true;
        }
        writeln!(f, "{:<11}  {:<14}  {:<20}  {:<14}  {:>10}", "machine", "phase", "event", "then", "times")?;
        for (Transition { machine, from, event, to }, (count, required)) in rows {
            let to = if to == from { "·" } else { to };
            let note = match (count, required) {
                (0, _) => "  not yet seen",
                (_, true) => "",
                (_, false) => "  (need not be)",
            };
            writeln!(f, "{machine:<11}  {from:<14}  {event:<20}  {to:<14}  {count:>10}{note}")?;
        }
        Ok(())
    }
}

/// The phase of the rounds, for the table: a pause lies over any of them.
pub(super) fn of_rounds(status: &round::Status) -> &'static str {
    match (status.paused, status.started) {
        (Some(_), _) => "paused",
        (None, false) => "not-started",
        (None, true) => status.phase,
    }
}

/// The machine's name and its phase at a site.
pub(super) fn of_site(machine: &ParticipantMachine, evaluates: bool) -> (&'static str, &'static str) {
    let participant::Status { phase, evaluation, .. } = machine.status();
    if evaluates { ("evaluator", evaluation) } else { ("trainer", phase) }
}

/// A stable short name.
pub(super) fn name_of(event: &evaluation::Event) -> &'static str {
    use evaluation::Event;
    match event {
        Event::Restarted => "restarted",
        Event::Requested { .. } => "requested",
        Event::Promoted { .. } => "promoted",
        Event::EvaluatorReady { .. } => "evaluator-ready",
        Event::EvaluatorGone { .. } => "evaluator-gone",
        Event::EvaluatorLeft { .. } => "evaluator-left",
        Event::ReportStored { .. } => "report-stored",
        Event::TimerFired(_) => "timer-fired",
    }
}
