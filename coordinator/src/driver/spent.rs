//! What can go once a round has closed: its updates, when they cannot count in the next either, and the moments of rounds
//! before the last. Where a round follows, the files of the updates are kept for it to write over.
//!
//! It takes a while, and nobody waits for it: the next round is announced first, and then one thread removes the files. A
//! crash meanwhile leaves files that nothing refers to. The next removal takes them along, as each removes all up to its
//! round; and the start sweeps the spool (`lost`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use common::ids::{Role, RoundId, StudyDigest};

use super::Driver;
use crate::store::{Store, StoreError};

/// Up to where the files of each study can go. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Spent {
    waiting: Arc<Mutex<BTreeMap<StudyDigest, Bounds>>>,
    /// Held by who removes: one at a time.
    at_work: Arc<tokio::sync::Mutex<()>>,
}

/// Up to where.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Updates of this round, and of those before.
    updates: RoundId,
    /// Moments that rounds before this made.
    moments: RoundId,
    /// The files of the updates become spare: another round follows to write over them, and nothing is amiss with the disk.
    recycles: bool,
}

impl Driver {
    /// Has removed what `round`, which has closed, leaves behind. A study that takes late updates keeps those of its last
    /// round: one may be stored and not yet counted.
    pub(super) fn remove_spent(&self, study: StudyDigest, round: RoundId) {
        let run = self.studies.get(&study);
        let kept = run.is_some_and(|run| run.rounds.takes_late(round));
        let follows = run.is_some_and(|run| !run.rounds.is_over_for(Role::Trainer));
        let recycles = follows && self.trouble.is_none();
        let before = RoundId(round.0.saturating_sub(1));
        // The state of this round's model stays, and that of the model before.
        self.spent
            .add(study, Bounds { updates: if kept { before } else { round }, moments: before, recycles });
        let (spent, store) = (self.spent.clone(), self.store.clone());
        self.work.spawn(async move { spent.remove(store).await });
    }
}

impl Spent {
    fn add(&self, study: StudyDigest, bounds: Bounds) {
        // Poisoning means that a panic interrupted an insertion: the table is whole before and after.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let known = waiting.entry(study).or_insert(bounds);
        known.updates = known.updates.max(bounds.updates);
        known.moments = known.moments.max(bounds.moments);
        known.recycles = bounds.recycles;
    }

    /// Removes what waits, in a thread, once the removal before is over; there may be nothing left then.
    async fn remove(&self, store: Store) {
        let _alone = self.at_work.lock().await;
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if waiting.is_empty() {
            return;
        }
        let removal = move || {
            for (study, bounds) in waiting {
                if let Err(error) = remove(&store, study, bounds) {
                    // The next round tries it again.
                    tracing::error!(%study, error = &error as &dyn std::error::Error, "files of old rounds stay");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(removal).await {
            tracing::error!(%error, "removing the files of old rounds ended early");
        }
    }
}

/// Removes the files of `study` up to `bounds`. Blocks.
fn remove(store: &Store, study: StudyDigest, bounds: Bounds) -> Result<(), StoreError> {
    let spool = store.spool();
    // Those that the round did not take, of fewer sites than the one before.
    spool.remove_spares()?;
    let rounds = spool.rounds()?.into_iter().filter(|(of, round)| *of == study && *round <= bounds.updates);
    for (study, round) in rounds {
        match bounds.recycles {
            true => spool.recycle_round(&study, round)?,
            false => spool.remove_round(&study, round)?,
        }
    }
    store.server_states().forget_before(&study, bounds.moments)
}

#[cfg(test)]
mod tests {
    use common::round;

    use super::super::lost::tests::driver;
    use super::super::study_run::Happening;
    use super::*;
    use crate::fixture::{Fixture, keep_update};

    /// Keeps an update in each of these rounds.
    fn keep_updates(store: &Store, fixture: &Fixture, study: StudyDigest, rounds: &[u32]) {
        let base = store.artifacts().read(&fixture.study.study().initial_model).unwrap().unwrap();
        for round in rounds {
            keep_update(store, study, RoundId(*round), base.manifest().clone());
        }
    }

    #[tokio::test]
    async fn a_removal_takes_what_a_crash_left_of_earlier_rounds_and_nothing_of_later_ones() {
        let fixture = Fixture::new().await;
        let (store, study) = (fixture.store().await, fixture.digest());
        let other = StudyDigest(common::ids::Digest::of(b"another study"));
        keep_updates(&store, &fixture, study, &[2, 3, 4]);
        keep_updates(&store, &fixture, other, &[1]);
        let spent = Spent::default();
        let bounds =
            |updates| Bounds { updates: RoundId(updates), moments: RoundId(updates), recycles: false };
        spent.add(study, bounds(3));
        // Never back.
        spent.add(study, bounds(2));
        tokio::join!(spent.remove(store.clone()), spent.remove(store.clone()));
        let mut left = store.spool().rounds().unwrap();
        left.sort_unstable();
        let mut expected = [(study, RoundId(4)), (other, RoundId(1))];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    #[tokio::test]
    async fn a_round_that_closes_is_tidied_up_beside_the_next() {
        let fixture = Fixture::new().await;
        let (store, study) = (fixture.store().await, fixture.digest());
        let mut driver = driver(&fixture, store.clone()).await;
        let round = RoundId(1);
        let model = fixture.study.study().initial_model;
        driver.take(study, Happening::Round(round::Event::Aggregated { round, model })).await;
        assert_eq!(driver.studies[&study].rounds.status().model_round, round, "committed");
        let snapshot = store.journal(&study).await.unwrap();
        assert!(snapshot.snapshot.is_some() && snapshot.events.is_empty(), "the journal is short");
        driver.work.close();
        driver.work.wait().await;
        assert!(store.spool().rounds().unwrap().is_empty());
    }
}
