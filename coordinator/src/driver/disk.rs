//! What the driver does while the disk does not take what it is given: `paused: disk full`.
//!
//! The operator is told once when it begins and once when it ends. Meanwhile nothing is acknowledged, so nothing is lost;
//! sites are told to come again, our own results wait, and the disk is tried every few seconds.

use std::path::Path;
use std::time::Duration;

use common::ids::ModelHash;
use common::round::{self, Answer, Fault, PauseReason};
use common::wire::{Refusal, RefusalCode};

use super::study_run::Happening;
use super::{Driver, UNREADABLE_TO_SITES};
use crate::files;
use crate::progress::Line;
use crate::store::{self, Failing, Store, StoreError};

/// How long the disk is left alone before it is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

impl Driver {
    /// With how the store fails, where it was opened to be looked at.
    pub(crate) fn with_trouble(mut self, trouble: Option<Failing>) -> Self {
        self.trouble = trouble;
        self
    }

    /// Notes that the store fails, and tells the operator what is new in it. What is known is not logged for each try of each
    /// site: the log may lie on the same disk.
    pub(super) fn note_fault(&mut self, error: &StoreError) {
        let code = self.store.name_failure(error);
        let error_chain = error as &dyn std::error::Error;
        match self.trouble.as_ref().is_some_and(|known| known.code == code) {
            true => tracing::debug!(code, error = error_chain, "the store still fails"),
            false => tracing::error!(code, error = error_chain, "the store fails"),
        }
        self.begin_trouble(Failing { code, words: store::causes(error) });
    }

    /// As [`Driver::note_fault`], of a write that failed elsewhere.
    pub(super) fn hear_of_fault(&mut self, failing: Option<Failing>) {
        if let Some(failing) = failing {
            self.begin_trouble(failing);
        }
    }

    fn begin_trouble(&mut self, Failing { code, words }: Failing) {
        if self.trouble.as_ref().is_some_and(|known| known.code == code) {
            return;
        }
        let words = match store::pause_name(code) {
            Some(_) => space_in_words(self.store.dir()),
            None => words,
        };
        if code == store::DISK_FULL {
            self.remove_spares();
        }
        self.progress.say(&Line::Fault { code: code.to_owned(), detail: words.clone() });
        self.try_at = self.clock.now().after(RETRY);
        self.trouble = Some(Failing { code, words });
    }

    /// Gives back the room of updates that are kept to be written over.
    fn remove_spares(&self) {
        let spool = self.store.spool().clone();
        self.work.spawn_blocking(move || {
            if let Err(error) = spool.remove_spares() {
                tracing::warn!(error = &error as &dyn std::error::Error, "spare files stay");
            }
        });
    }

    /// Whether the store is worth trying: it works as far as we know, or the disk takes a file again.
    pub(super) async fn disk_takes_files(&mut self) -> bool {
        if self.trouble.is_none() {
            return true;
        }
        self.try_at = self.clock.now().after(RETRY);
        let store = self.store.clone();
        let tried = tokio::task::spawn_blocking(move || store.try_disk()).await;
        matches!(tried, Ok(Ok(())))
    }

    /// Ends the trouble when nothing of ours waits any more and what the open rounds will bring has room; then takes up
    /// the studies that it had stopped.
    pub(super) async fn end_trouble(&mut self) {
        let full = match &self.trouble {
            Some(trouble) if self.retries.is_empty() => trouble.code == store::DISK_FULL,
            _ => return,
        };
        if full && !self.has_room().await {
            return;
        }
        let Some(Failing { code, .. }) = self.trouble.take() else { return };
        self.progress.say(&Line::Recovered { code: code.to_owned() });
        // A disk that fails otherwise may take files and not give one: that is for the machine's own timer, or a lasting fault
        // would be tried, and told, every few seconds.
        let held_up = |reason| match reason {
            PauseReason::Aggregation(fault) | PauseReason::Commit(fault) => {
                matches!(fault, Fault::StorageFull | Fault::StorageReadOnly)
            }
            PauseReason::Operator => false,
        };
        let studies = self.studies.iter().filter(|(_, run)| run.rounds.status().paused.is_some_and(held_up));
        for study in studies.map(|(study, _)| *study).collect::<Vec<_>>() {
            self.take(study, Happening::Round(round::Event::Resume)).await;
            self.tell_resumed(study);
        }
    }

    /// Whether the open rounds fit on the disk: the updates that are still to come, and the model of each.
    async fn has_room(&self) -> bool {
        let wanted: Vec<_> =
            self.studies.values().filter_map(|run| room_wanted(&run.rounds.status())).collect();
        let store = self.store.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let needed: u64 =
                wanted.iter().map(|(model, copies)| copies.saturating_mul(size(&store, model))).sum();
            files::space(store.dir()).map(|space| space.available >= needed)
        });
        matches!(looked.await, Ok(Ok(true)))
    }

    /// How the store fails, as it stands now.
    pub(super) fn trouble_in_words(&self) -> Option<String> {
        let Failing { code, words } = self.trouble.as_ref()?;
        Some(store::pause_name(code).map_or_else(|| words.clone(), |_| space_in_words(self.store.dir())))
    }

    /// What a site is told whose word could not be kept.
    pub(super) fn refusal_of_trouble(&self) -> Refusal {
        let code = self.trouble.as_ref().map_or("", |trouble| trouble.code);
        Refusal::new(RefusalCode::Internal, store::words_for_sites(code))
    }

    /// Whether a line says again what the operator knows: that sites are sent away while the disk takes nothing, or with what they
    /// have for a study that cannot be read.
    pub(super) fn is_echo(&self, line: &Line) -> bool {
        let Line::Refused { code, detail, .. } = line else { return false };
        let waits = self.trouble.as_ref().is_some_and(|trouble| store::pause_name(trouble.code).is_some());
        code == RefusalCode::Internal.code() && (waits || detail.ends_with(UNREADABLE_TO_SITES))
    }
}

/// How many files of the size of its model a study still has to write in this round.
pub(super) fn room_wanted(status: &round::Status) -> Option<(ModelHash, u64)> {
    let comes = |answer: &&Answer| !matches!(answer, Answer::Updated(_) | Answer::Declined { .. });
    let updates = status.answers.values().filter(comes).count();
    let over = matches!(status.phase, "finished" | "aborted") || !status.started;
    (!over).then(|| (status.model, u64::try_from(updates).unwrap_or(u64::MAX).saturating_add(1)))
}

/// Bytes of a model; nothing when it cannot be read, which is told where it is needed.
fn size(store: &Store, model: &ModelHash) -> u64 {
    let file = store.artifacts().read(model).ok().flatten();
    file.map_or(0, |file| file.manifest().layout().bytes())
}

/// Why a round's model could not be kept, in the machine's word.
pub(super) fn fault(store: &Store, error: &StoreError) -> Fault {
    match store.name_failure(error) {
        store::DISK_FULL => Fault::StorageFull,
        store::DISK_READ_ONLY => Fault::StorageReadOnly,
        _ => Fault::Storage,
    }
}

/// What is left where the state folder `dir` lies, and what that means.
pub(crate) fn space_in_words(dir: &Path) -> String {
    let shown = dir.display();
    let left = match files::space(dir) {
        Ok(space) if space.read_only => format!("{shown} is on a file system that is mounted read-only"),
        Ok(space) => format!("{shown} has {} left", files::size_in_words(space.available)),
        Err(error) => format!("{shown}: {error}"),
    };
    let seconds = RETRY.as_secs();
    format!("{left}; all that was acknowledged is safe, and the server tries the disk every {seconds} s")
}
