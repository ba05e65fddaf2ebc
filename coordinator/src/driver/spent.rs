//! Which stored updates can go: those of rounds that are over, once they cannot count in the next either.

use common::ids::{RoundId, StudyDigest};

use super::Driver;

impl Driver {
    /// Removes what is stored of `round`, which has closed, and of the one before. A study that takes late updates keeps
    /// those of its last round: one may be stored and not yet counted.
    pub(super) fn remove_spent(&mut self, study: StudyDigest, round: RoundId) {
        let kept = self.studies.get(&study).is_some_and(|run| run.rounds.takes_late(round));
        let before = RoundId(round.0.saturating_sub(1));
        let spent = [before, round].into_iter().take(if kept { 1 } else { 2 });
        for round in spent {
            if let Err(error) = self.store.spool().remove_round(&study, round) {
                self.note_fault(&error);
            }
        }
    }
}
