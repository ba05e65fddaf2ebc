//! Finished updates that wait to be sent, and which attempt each is of.
//!
//! `HASH.json` and `HASH.data` are the update, as in every folder of artifacts; `ATTEMPT.trained` says that the attempt has
//! ended with it. That file is written last: an attempt that has one need not be trained again, whatever the journal knows.
//! `spare` is the file of an update that nobody wants any more, for the next to be written over it (docs/decisions/0025).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::artifact::Dtype;
use common::ids::{ArtifactHash, AttemptId};
use link::failpoint;
use serde::{Deserialize, Serialize};

use super::artifacts::{ArtifactError, ArtifactFolder};
use super::files::{self, FileError};
use super::residual::Rounding;
use crate::train::trainer::RoundOutcome;

/// How the name of an attempt's file ends.
const TRAINED: &str = "trained";

/// The folder of updates.
#[derive(Clone, Debug)]
pub struct Outbox {
    folder: PathBuf,
    updates: ArtifactFolder,
}

/// An update in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    /// Name of the update.
    pub update: ArtifactHash,
    /// Optimiser steps done.
    pub steps: u32,
}

impl Outbox {
    /// Opens the folder and makes it if need be.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        Ok(Self { folder: folder.to_owned(), updates: ArtifactFolder::open(folder)? })
    }

    /// The updates, for sending.
    pub fn updates(&self) -> &ArtifactFolder {
        &self.updates
    }

    /// Keeps what an attempt ended with: durable when it returns.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn keep(&self, attempt: AttemptId, outcome: &RoundOutcome) -> Result<Finished, ArtifactError> {
        failpoint::pass("site.before-outbox-rename");
        let update = self.updates.store(&outcome.delta)?.hash();
        self.finish(attempt, update, outcome)
    }

    /// As [`Outbox::keep`], in bfloat16. What remains of it is durable before the attempt has ended.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn keep_rounded(
        &self,
        attempt: AttemptId,
        outcome: &RoundOutcome,
        mut rounding: Rounding,
    ) -> Result<Finished, ArtifactError> {
        failpoint::pass("site.before-outbox-rename");
        let update = self
            .updates
            .store_in(Dtype::BF16, &outcome.delta, |deltas, sent| rounding.round(deltas, sent))?;
        rounding.finish()?;
        self.finish(attempt, update.hash(), outcome)
    }

    fn finish(
        &self,
        attempt: AttemptId,
        update: ArtifactHash,
        outcome: &RoundOutcome,
    ) -> Result<Finished, ArtifactError> {
        let finished = Finished { update, steps: outcome.steps };
        files::write_json(&self.trained(attempt), &finished)?;
        failpoint::pass("site.after-outbox");
        Ok(finished)
    }

    /// What an attempt ended with, if it has ended and its update is here whole.
    pub fn find(&self, attempt: AttemptId) -> Option<Finished> {
        // Every byte is looked at: a disk may lie, and training it again is still possible.
        read(&self.trained(attempt)).filter(|finished| match self.updates.load(finished.update) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("outbox: {error:#}");
                false
            }
        })
    }

    /// Removes what an attempt ended with, if it ended; the next may be written over it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove(&self, attempt: AttemptId) -> Result<(), FileError> {
        let finished = read(&self.trained(attempt));
        files::remove(&self.trained(attempt))?;
        // Trained again from the same model, another attempt can have ended with the very same.
        let Some(Finished { update, .. }) = finished else { return Ok(()) };
        let is_wanted =
            self.attempts()?.iter().filter_map(|path| read(path)).any(|other| other.update == update);
        if is_wanted { Ok(()) } else { self.updates.recycle(update) }
    }

    /// Removes what is spare: no update follows, or its room is needed.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove_spare(&self) -> Result<(), FileError> {
        self.updates.remove_spare()
    }

    /// Removes every update but those of `keep`, and what is spare. Where it is not known which they are, no update is removed.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune(&self, keep: &BTreeSet<AttemptId>) -> Result<(), FileError> {
        let kept: Vec<PathBuf> = keep.iter().map(|&attempt| self.trained(attempt)).collect();
        let updates: Option<BTreeSet<ArtifactHash>> =
            kept.iter().map(|path| Some(read(path)?.update)).collect();
        self.remove_spare()?;
        let Some(updates) = updates else { return Ok(()) };
        let others = self.attempts()?.into_iter().filter(|path| !kept.contains(path));
        for path in others {
            files::remove(&path)?;
        }
        self.updates.prune(&updates, 0)
    }

    /// The files of attempts that have ended.
    fn attempts(&self) -> Result<Vec<PathBuf>, FileError> {
        let listed = std::fs::read_dir(&self.folder);
        let listed = listed.map_err(|source| FileError::new("read", &self.folder, source))?;
        let paths = listed.flatten().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|e| e == TRAINED)).collect())
    }

    fn trained(&self, attempt: AttemptId) -> PathBuf {
        self.folder.join(format!("{attempt}.{TRAINED}"))
    }
}

/// An attempt's file. A damaged one is as good as none: the round is trained again.
fn read(path: &Path) -> Option<Finished> {
    files::read_json(path).unwrap_or_else(|error| {
        tracing::warn!("outbox: {error:#}");
        None
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use common::ids::{RoundId, StudyDigest};

    use super::*;
    use crate::client::residual::Residuals;
    use crate::model::{HostTensor, NamedTensors};

    const ONE: AttemptId = AttemptId::from_bytes([1; 16]);
    const TWO: AttemptId = AttemptId::from_bytes([2; 16]);

    fn outcome(value: f32) -> RoundOutcome {
        let tensor = HostTensor::new(vec![2], vec![value, 0.5]).unwrap();
        RoundOutcome { delta: NamedTensors::from([("w".to_owned(), tensor)]), steps: 4, mean_loss: 0.5 }
    }

    #[test]
    fn what_an_attempt_ended_with_is_found_by_its_id_alone() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        assert_eq!(outbox.find(ONE), None);
        let finished = outbox.keep(ONE, &outcome(1.0)).unwrap();
        assert_eq!(finished.steps, 4);
        let again = Outbox::open(folder.path()).unwrap();
        assert_eq!((again.find(ONE), again.find(TWO)), (Some(finished), None));
        assert_eq!(again.updates().load(finished.update).unwrap(), outcome(1.0).delta);
    }

    #[test]
    fn an_update_in_bfloat16_has_half_the_bytes_and_is_found_as_it_will_be_sent() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&folder.path().join("outbox")).unwrap();
        let residuals = Residuals::open(&folder.path().join("residual")).unwrap();
        let study = StudyDigest(common::ids::Digest::of(b"study"));
        let keep = |attempt, value| {
            let rounding = residuals.begin(study, RoundId(1), attempt, 2).unwrap();
            outbox.keep_rounded(attempt, &outcome(value), rounding).unwrap()
        };
        // Half-way between 1 and the next bfloat16.
        let finished = keep(ONE, 1.0 + 1.0 / 256.0);
        assert_eq!(outbox.find(ONE), Some(finished));
        assert_eq!(outbox.updates().load(finished.update).unwrap(), outcome(1.0).delta);
        let (manifest, _) = outbox.updates().source(finished.update).unwrap();
        assert_eq!((manifest.layout().bytes(), manifest.layout().tensors()[0].dtype), (4, Dtype::BF16));
        // What was not counted is added to nothing.
        assert_eq!(keep(TWO, 1.0 + 1.0 / 256.0).update, finished.update);
        assert_ne!(
            outbox.keep(TWO, &outcome(1.0)).unwrap().update,
            finished.update,
            "the same numbers in f32"
        );
    }

    #[test]
    fn an_update_without_its_attempts_file_has_not_ended() {
        // As a crash leaves it between the two.
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let finished = outbox.keep(ONE, &outcome(1.0)).unwrap();
        files::remove(&outbox.trained(ONE)).unwrap();
        assert_eq!(outbox.find(ONE), None);
        assert_eq!(outbox.keep(ONE, &outcome(1.0)).unwrap(), finished);
    }

    #[test]
    fn a_damaged_update_is_trained_again() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let finished = outbox.keep(ONE, &outcome(1.0)).unwrap();
        let data = folder.path().join(format!("{}.data", finished.update));
        let mut bytes = std::fs::read(&data).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&data, bytes).unwrap();
        assert_eq!(outbox.find(ONE), None);
        assert_eq!(outbox.keep(ONE, &outcome(1.0)).unwrap(), finished);
        assert_eq!(outbox.find(ONE), Some(finished));
    }

    #[test]
    fn an_update_goes_with_the_last_attempt_that_ended_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let finished = outbox.keep(ONE, &outcome(1.0)).unwrap();
        assert_eq!(outbox.keep(TWO, &outcome(1.0)).unwrap(), finished);
        outbox.remove(ONE).unwrap();
        assert_eq!((outbox.find(ONE), outbox.find(TWO)), (None, Some(finished)));
        outbox.remove(TWO).unwrap();
        outbox.remove(TWO).unwrap();
        outbox.remove_spare().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_update_is_written_over_one_that_nobody_wants_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let spare = folder.path().join("spare");
        let outcome = |numbers: Vec<f32>| {
            let tensor = HostTensor::new(vec![numbers.len()], numbers).unwrap();
            RoundOutcome { delta: NamedTensors::from([("w".to_owned(), tensor)]), steps: 4, mean_loss: 0.5 }
        };
        let mut written_over = None;
        for (attempt, numbers) in [(1, vec![1.0, 2.0, 3.0]), (2, vec![4.0]), (3, vec![5.0, 6.0])] {
            let (attempt, outcome) = (AttemptId::from_bytes([attempt; 16]), outcome(numbers));
            let finished = outbox.keep(attempt, &outcome).unwrap();
            assert_eq!(outbox.updates().load(finished.update).unwrap(), outcome.delta);
            let data = folder.path().join(format!("{}.data", finished.update));
            let file = std::fs::metadata(data).unwrap().ino();
            assert!(!spare.exists() && written_over.is_none_or(|before| before == file));
            outbox.remove(attempt).unwrap();
            assert_eq!(std::fs::metadata(&spare).unwrap().ino(), file);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "and nothing else");
            written_over = Some(file);
        }
        outbox.prune(&BTreeSet::from([ONE])).unwrap();
        assert!(!spare.exists(), "a start begins with none");
    }

    #[test]
    fn nothing_stale_stays_and_nothing_that_is_wanted_goes() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        let (one, two) = (outbox.keep(ONE, &outcome(1.0)).unwrap(), outbox.keep(TWO, &outcome(2.0)).unwrap());
        let unknown = AttemptId::from_bytes([3; 16]);
        for keep in [vec![unknown], vec![ONE, unknown], vec![ONE, TWO]] {
            outbox.prune(&keep.into_iter().collect()).unwrap();
            assert_eq!((outbox.find(ONE), outbox.find(TWO)), (Some(one), Some(two)));
        }
        outbox.prune(&BTreeSet::from([TWO])).unwrap();
        assert_eq!((outbox.find(ONE), outbox.find(TWO)), (None, Some(two)));
        outbox.prune(&BTreeSet::new()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
