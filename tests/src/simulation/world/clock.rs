//! The coordinator's clocks: that of its machine, which somebody sets, and the driver's own, which its deadlines go by.

use std::time::Duration;

use common::time::Timestamp;
use coordinator::clock::{ClockWatch, Reading, Step};

use super::World;
use crate::simulation::sabotage::Sabotage;

/// A smaller step is drift.
const DRIFT_MS: u64 = 60_000;

impl World {
    /// The time that the coordinator's process goes by.
    pub(super) fn coordinator_now(&self) -> Timestamp {
        match self.sabotage {
            Sabotage::TrustTheClock => self.wall(),
            _ => self.coordinator.clock.time(self.elapsed()),
        }
    }

    /// The same, for an event that is taken now.
    pub(super) fn event_time(&mut self) -> Timestamp {
        let told = self.coordinator_now();
        self.books.told_time(self.coordinator.incarnation, self.now, told);
        told
    }

    /// A new process looks at the clock once, and at what its journal knows.
    pub(super) fn start_clock(&mut self) {
        let wall = self.wall();
        let coordinator = &mut self.coordinator;
        coordinator.started = self.now;
        coordinator.clock = ClockWatch::starting(wall, coordinator.last_at);
    }

    /// Somebody sets the clock, and the process that runs names the step.
    pub(super) fn step_clock(&mut self, ms: i64) {
        self.tally.stepped += 1;
        let by = ms - std::mem::replace(&mut self.coordinator.wall_ms, ms);
        if !self.coordinator.up {
            return;
        }
        let reading = Reading { wall: self.wall(), elapsed: self.elapsed() };
        let told = self.coordinator.clock.compare(reading).map(Step::seconds);
        let expected = (by.unsigned_abs() > DRIFT_MS).then_some(by / 1000);
        self.books
            .check(told == expected, || format!("the clock was set by {by} ms, and told is {told:?} s"));
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.now.0.saturating_add_signed(self.coordinator.wall_ms))
    }

    /// Since the process started.
    fn elapsed(&self) -> Duration {
        self.now.since(self.coordinator.started)
    }
}
