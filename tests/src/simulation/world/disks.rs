//! Disks without room: what cannot be remembered is not done.
//!
//! The coordinator's own events wait, in the order in which they happened, while a site that brings something gets no answer
//! and comes again. A site's process halts altogether. Both go on by themselves when there is room.

use common::participant;
use common::round::{Event, Fault, PauseReason};
use common::time::Timestamp;

use super::{Happening, World};
use crate::simulation::coordinator::Waiting;
use crate::simulation::coverage::Transition;

impl World {
    /// The coordinator's disk takes nothing for a while.
    pub(super) fn fill_disk(&mut self, ms: u64) {
        self.tally.full += 1;
        let until = Timestamp(self.now.0 + ms);
        self.coordinator.full_until = self.coordinator.full_until.max(until);
        self.at(ms, Happening::DiskHasRoom);
    }

    pub(super) fn disk_is_full(&self) -> bool {
        self.now < self.coordinator.full_until
    }

    /// Whether an event of the coordinator's has to wait: for the disk, or behind what waits already.
    pub(super) fn waits_for_disk(&self) -> bool {
        self.disk_is_full() || !self.coordinator.waiting.is_empty()
    }

    /// Keeps an event that nobody else would tell again.
    pub(super) fn wait_for_disk(&mut self, event: Waiting) {
        self.disk_failed();
        if event.is_ours() {
            self.coordinator.waiting.push_back(event);
        }
    }

    /// From the first write that fails on, the coordinator is paused for its disk.
    pub(super) fn disk_failed(&mut self) {
        let from = if self.coordinator.disk_failed { "full" } else { "works" };
        self.coverage.note(Transition { machine: "disk", from, event: "write-failed", to: "full" });
        self.coordinator.disk_failed = true;
    }

    /// Takes up what waited, then the study, if a full disk held it up.
    pub(super) fn disk_has_room(&mut self) {
        if !self.coordinator.up || self.disk_is_full() || !self.coordinator.disk_failed {
            return;
        }
        while let Some(waiting) = self.coordinator.waiting.pop_front() {
            match waiting {
                Waiting::Round(event) => self.take(event),
                Waiting::Evaluation(event) => self.take_evaluation(event),
            }
            if !self.coordinator.up {
                return;
            }
        }
        self.coordinator.disk_failed = false;
        self.coverage.note(Transition { machine: "disk", from: "full", event: "tried", to: "works" });
        let held_up = match self.coordinator.rounds.status().paused {
            Some(PauseReason::Aggregation(fault) | PauseReason::Commit(fault)) => {
                matches!(fault, Fault::StorageFull | Fault::StorageReadOnly)
            }
            Some(PauseReason::Operator) | None => false,
        };
        if held_up {
            self.feed(Event::Resume);
        }
    }

    /// A site's disk takes nothing for a while.
    pub(super) fn fill_site_disk(&mut self, site: usize, ms: u64) {
        self.tally.full += 1;
        let until = Timestamp(self.now.0 + ms);
        self.sites[site].full_until = self.sites[site].full_until.max(until);
        self.at(ms, Happening::SiteHasRoom { site });
    }

    /// How long a site's process halts before it does this, if it does.
    pub(super) fn halts_before(&self, happening: &Happening) -> Option<u64> {
        let left = self.sites[happening.of_site()?].full_until.0.saturating_sub(self.now.0);
        (left > 0).then_some(left)
    }

    /// Whether an event has to wait at a site: for the disk, or behind what waits already.
    pub(super) fn waits_at_site(&self, site: usize) -> bool {
        let site = &self.sites[site];
        self.now < site.full_until || !site.todo.is_empty()
    }

    pub(super) fn wait_at_site(&mut self, site: usize, event: participant::Event) {
        let from = if self.sites[site].todo.is_empty() { "works" } else { "full" };
        self.coverage.note(Transition { machine: "site-disk", from, event: "write-failed", to: "full" });
        self.sites[site].todo.push_back(event);
    }

    /// Takes up what waited at a site.
    pub(super) fn site_has_room(&mut self, site: usize) {
        if self.now < self.sites[site].full_until || self.sites[site].todo.is_empty() {
            return;
        }
        while let Some(event) = self.sites[site].todo.pop_front() {
            self.take_at_site(site, event);
            if !self.sites[site].up {
                return;
            }
        }
        self.coverage.note(Transition { machine: "site-disk", from: "full", event: "tried", to: "works" });
    }
}
