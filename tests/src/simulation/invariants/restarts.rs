//! What no restart undoes: steps that were kept.

use common::ids::SiteId;
use common::round::RoundTask;

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
}
