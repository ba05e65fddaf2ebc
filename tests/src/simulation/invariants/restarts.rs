//! What neither a restart nor a clock undoes: steps that were kept, and time that has passed.

use common::ids::SiteId;
use common::round::RoundTask;
use common::time::Timestamp;

use super::Books;
use crate::simulation::site::Checkpoint;

impl Books {
    /// A training is durable as far as it is.
    pub(in crate::simulation) fn kept(&mut self, site: SiteId, checkpoint: Checkpoint) {
        self.kept.insert(site, checkpoint);
    }

    /// A training begins, or goes on, after so many steps: none that was kept of its round is done again.
    pub(in crate::simulation) fn trains(&mut self, site: &SiteId, task: &RoundTask, done: u32) {
        let kept = self.kept.get(site).filter(|kept| kept.is_of(task)).map_or(0, |kept| kept.step);
        self.check(done >= kept, || {
            format!("{site} goes on after step {done} of round {}, and had kept {kept}", task.round)
        });
    }

    /// The coordinator's process takes an event at `now` for one of `told`: its time passes as time does, whatever its machine's
    /// clock is set to, and does not go back when it is started again.
    pub(in crate::simulation) fn told_time(&mut self, process: u32, now: Timestamp, told: Timestamp) {
        let Some((before, then, told_then)) = self.last_event.replace((process, now, told)) else { return };
        let passes = process != before || told.since(told_then) == now.since(then);
        self.check(passes && told >= told_then, || {
            format!("the coordinator takes {then} to {now} for {told_then} to {told}")
        });
    }
}
