//! Updates that count and are gone: the disk lost them, or `coordinator doctor --repair` moved them away.
//!
//! Their sites have a receipt and know nothing of it. What is found corrupt is moved to the quarantine, and the round
//! machine asks the site again. Looked for at the start, by name and size, and after an aggregation that failed, by every
//! byte.

use common::ids::{ArtifactHash, AttemptId, RoundId, SiteId, StudyDigest};
use common::round;

use super::Driver;
use super::study_run::{Happening, StudyRun};
use crate::clock;
use crate::store::Store;

/// An update that a round counts.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) study: StudyDigest,
    pub(super) round: RoundId,
    pub(super) site: SiteId,
    pub(super) attempt: AttemptId,
    pub(super) update: ArtifactHash,
}

impl Wanted {
    /// The machine's event.
    pub(super) fn lost(self) -> round::Event {
        round::Event::UpdateLost { site: self.site, round: self.round, attempt: self.attempt }
    }
}

/// How closely an update is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// That it is there, of the right name and size.
    Name,
    /// Every byte.
    Whole,
}

impl Driver {
    /// Tells the machines of the updates that are gone since the last run.
    pub(super) async fn miss_updates(&mut self) {
        let mut wanted = Vec::new();
        for (study, run) in &self.studies {
            for (site, (round, counted)) in run.rounds.counted() {
                let (study, attempt, update) = (*study, counted.attempt, counted.update);
                wanted.push(Wanted { study, round, site, attempt, update });
            }
        }
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || missing(&store, wanted, Look::Name)).await;
        for lost in found.unwrap_or_default() {
            self.take(lost.study, Happening::Round(lost.lost())).await;
        }
    }

    /// Removes the updates of rounds that ended while we were killed: their model is durable, or their study is over.
    pub(super) async fn sweep_spool(&mut self) {
        let rounds = match self.store.spool().rounds() {
            Ok(rounds) => rounds,
            Err(error) => return self.note_fault(&error),
        };
        for (study, round) in rounds {
            if self.unreadable.contains_key(&study) {
                continue;
            }
            let records = match self.store.rounds(&study).await {
                Ok(records) => records,
                Err(error) => return self.note_fault(&error),
            };
            let kept = |model| self.store.artifacts().contains(&model);
            let ended = |record: &crate::store::RoundRecord| {
                record.round == round && record.closed_at.is_some() && record.model.is_none_or(kept)
            };
            let of_round = |run: &StudyRun| run.rounds.counted().values().any(|(of, _)| *of == round);
            let counts = self.studies.get(&study).is_some_and(of_round);
            // One that came late may still count in the round after.
            let late = self.studies.get(&study).is_some_and(|run| run.rounds.takes_late(round));
            if !counts && !late && records.iter().any(ended) {
                let removed = self.store.spool().remove_round(&study, round);
                self.note(removed);
            }
        }
    }
}

/// Those of `wanted` that are not in the spool as they were stored; what lies in their place is moved away. Blocks.
pub(super) fn missing(store: &Store, wanted: Vec<Wanted>, look: Look) -> Vec<Wanted> {
    wanted.into_iter().filter(|update| is_lost(store, update, look)).collect()
}

fn is_lost(store: &Store, wanted: &Wanted, look: Look) -> bool {
    let Wanted { study, round, site, update, .. } = wanted;
    let looked = match store.spool().read(study, *round, site, update) {
        Ok(None) => return true,
        Ok(Some(file)) if look == Look::Whole => file.verify(|_| {}),
        Ok(Some(_)) => Ok(()),
        Err(error) => Err(error),
    };
    match looked {
        Err(error) if error.is_damage() => {
            let folder = store.spool().folder(study, *round, site, update);
            let moved = store.quarantine(&folder, clock::now());
            tracing::error!(%site, %round, %error, ?moved, "a counted update is corrupt");
            // Where it cannot be moved, the disk fails otherwise: then the study waits for the operator.
            moved.is_ok()
        }
        Err(error) => {
            tracing::error!(%site, %round, %error, "a counted update cannot be read");
            false
        }
        Ok(()) => false,
    }
}

#[cfg(test)]
pub(super) mod tests;
