//! One study at work: its two machines, their journal, and their timers.
//!
//! Every event is in the journal, durable, before a machine sees it; so what the machines then ask for may be done and
//! announced. After a restart snapshot and journal give back the same machines.

use std::collections::BTreeMap;

use common::evaluation::{self, EvaluationMachine};
use common::ids::{Role, RoundId, StudyDigest};
use common::journal::Entry;
use common::round::{self, RoundMachine};
use common::study::StudyDocument;
use common::time::Timestamp;
use common::wire::{Notice, RoundOutcome};
use serde::{Deserialize, Serialize};

use super::plan;
use crate::store::{JournalEntry, Store, StoreError, StoredStudy};

/// Events after which a snapshot is worth its writing, wherever the round stands.
const SNAPSHOT_EVERY: u32 = 500;

/// An event as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Happening {
    Round(round::Event),
    Evaluation(evaluation::Event),
}

/// Something that a machine asks for.
#[derive(Debug)]
pub(super) enum Deed {
    Round(round::Action),
    Evaluation(evaluation::Action),
}

/// Which machine's which timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerKey {
    Round(round::Timer),
    Evaluation(evaluation::Timer),
}

impl TimerKey {
    /// The event of its ringing.
    pub(super) fn fired(self) -> Happening {
        match self {
            Self::Round(timer) => Happening::Round(round::Event::TimerFired(timer)),
            Self::Evaluation(timer) => Happening::Evaluation(evaluation::Event::TimerFired(timer)),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshots {
    rounds: round::Snapshot,
    evaluation: evaluation::Snapshot,
    /// When the last event before it was taken in: time never goes back behind it.
    #[serde(default)]
    at: Timestamp,
}

/// An event that could not be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum TickError {
    /// It is not in the journal, so it did not happen.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operator's command makes no sense now.
    #[error(transparent)]
    Command(#[from] round::CommandError),
}

/// A study and all that is known of its progress.
#[derive(Debug)]
pub(super) struct StudyRun {
    pub(super) document: StudyDocument,
    pub(super) rounds: RoundMachine,
    pub(super) evaluation: EvaluationMachine,
    pub(super) timers: BTreeMap<TimerKey, Timestamp>,
    since_snapshot: u32,
    /// When the last event was taken in.
    last_at: Timestamp,
}

impl StudyRun {
    /// Rebuilds a study from the store.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when what is kept does not fit together.
    pub(super) async fn restore(store: &Store, stored: StoredStudy) -> Result<Self, StoreError> {
        let digest = stored.digest;
        let document = StudyDocument::parse(stored.document).map_err(|e| StoreError::corrupt("study", e))?;
        let journal = store.journal(&digest).await?;
        let snapshots: Option<Snapshots> = journal
            .snapshot
            .as_deref()
            .map(|text| read_json(text, || "the snapshot".to_owned()))
            .transpose()?;
        let mut last_at = snapshots.as_ref().map(|snapshots| snapshots.at).unwrap_or_default();
        let (rounds, evaluation) = snapshots.map(|s| (s.rounds, s.evaluation)).unzip();
        let mut round_events = Vec::new();
        let mut evaluation_events = Vec::new();
        let entries = journal.events.len();
        for (number, JournalEntry { at, event }) in (1..).zip(&journal.events) {
            last_at = last_at.max(*at);
            match read_json(event, || format!("entry {number} of {entries} since the snapshot"))? {
                Happening::Round(event) => round_events.push(Entry { at: *at, event }),
                Happening::Evaluation(event) => evaluation_events.push(Entry { at: *at, event }),
            }
        }
        let gate = plan::gate(&document);
        let unfit = |e: common::journal::RestoreError| StoreError::corrupt("journal", e);
        Ok(Self {
            rounds: RoundMachine::replay(plan::round_plan(&document), rounds, round_events).map_err(unfit)?,
            evaluation: EvaluationMachine::replay(digest, gate, evaluation, evaluation_events)
                .map_err(unfit)?,
            document,
            timers: BTreeMap::new(),
            since_snapshot: u32::try_from(journal.events.len()).unwrap_or(u32::MAX),
            last_at,
        })
    }

    /// When the last event was taken in.
    pub(super) fn last_time(&self) -> Timestamp {
        self.last_at
    }

    pub(super) fn digest(&self) -> StudyDigest {
        self.document.digest()
    }

    /// What a site that connects is told of the study: that it wants it, or how it ended. The last word names no round, so the round of the
    /// last model closes before it, as for a site that hears both when they happen.
    pub(super) fn greeting(&self, role: Role) -> Vec<Notice> {
        let study = self.digest();
        if !self.rounds.is_over_for(role) {
            return vec![Notice::StudyOffered { study, name: self.document.study().name.as_str().into() }];
        }
        let round::Status { model, model_round: round, .. } = self.rounds.status();
        let closed =
            Notice::RoundClosed { study, round, model: Some(model), outcome: RoundOutcome::Committed };
        // No round made the initial model.
        let closed = (round > RoundId(0)).then_some(closed);
        closed.into_iter().chain([Notice::StudyFinished { study, model }]).collect()
    }

    /// Takes an event: journal first, then the machine.
    ///
    /// # Errors
    /// [`TickError`]; the machine is as it was.
    pub(super) async fn tick(
        &mut self,
        store: &Store,
        happening: Happening,
        now: Timestamp,
    ) -> Result<Vec<Deed>, TickError> {
        let event = serde_json::to_string(&happening).map_err(|e| StoreError::corrupt("event", e))?;
        store.append_event(&self.digest(), &JournalEntry { at: now, event }).await?;
        if let Happening::Round(round::Event::UpdateStored { .. }) = &happening {
            link::failpoint::pass("coordinator.after-journal-stored");
        }
        self.since_snapshot = self.since_snapshot.saturating_add(1);
        self.last_at = now;
        match happening {
            Happening::Round(event) => {
                let actions = self.rounds.tick(event, now)?;
                Ok(actions.into_iter().map(Deed::Round).collect())
            }
            Happening::Evaluation(event) => {
                Ok(self.evaluation.tick(event, now).into_iter().map(Deed::Evaluation).collect())
            }
        }
    }

    /// Shortens the journal: after each commit, and when it has grown long.
    ///
    /// # Errors
    /// The store; the journal is whole then, only longer than need be.
    pub(super) async fn snapshot(&mut self, store: &Store, committed: bool) -> Result<(), StoreError> {
        if !committed && self.since_snapshot < SNAPSHOT_EVERY {
            return Ok(());
        }
        let (rounds, evaluation) = (self.rounds.snapshot(), self.evaluation.snapshot());
        let snapshots = Snapshots { rounds, evaluation, at: self.last_at };
        let state = serde_json::to_string(&snapshots).map_err(|e| StoreError::corrupt("snapshot", e))?;
        store.put_snapshot(&self.digest(), &state).await?;
        self.since_snapshot = 0;
        Ok(())
    }
}

fn read_json<T: serde::de::DeserializeOwned>(
    text: &str,
    which: impl Fn() -> String,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::corrupt("journal", format!("{}: {e}", which())))
}

#[cfg(test)]
mod tests {
    use super::super::lost::tests::driver;
    use super::*;
    use crate::fixture::Fixture;

    #[tokio::test]
    async fn who_comes_after_the_end_is_told_the_last_model_and_the_round_that_made_it() {
        let fixture = Fixture::new().await;
        let mut driver = driver(&fixture, fixture.store().await).await;
        let (study, round, model) = (fixture.digest(), RoundId(1), fixture.study.study().initial_model);
        let greeting = driver.studies[&study].greeting(Role::Trainer);
        assert!(matches!(greeting[..], [Notice::StudyOffered { .. }]), "{greeting:?}");

        for event in [round::Event::Aggregated { round, model }, round::Event::Abort] {
            driver.take(study, Happening::Round(event)).await;
        }
        let outcome = RoundOutcome::Committed;
        let closed = Notice::RoundClosed { study, round, model: Some(model), outcome };
        let over = Notice::StudyFinished { study, model };
        assert_eq!(driver.studies[&study].greeting(Role::Trainer), [closed, over]);
    }

    #[tokio::test]
    async fn a_study_that_ended_before_its_first_round_closed_has_none_to_name() {
        let fixture = Fixture::new().await;
        let mut driver = driver(&fixture, fixture.store().await).await;
        let (study, model) = (fixture.digest(), fixture.study.study().initial_model);
        driver.take(study, Happening::Round(round::Event::Abort)).await;
        let over = Notice::StudyFinished { study, model };
        assert_eq!(driver.studies[&study].greeting(Role::Evaluator), [over]);
    }
}
