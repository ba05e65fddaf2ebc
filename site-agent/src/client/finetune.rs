//! Fine-tuning at this site alone: the rounds of a study with one trainer and no coordinator. Nothing leaves.
//!
//! The work of a round is that of a federation ([`training`](super::training)), and the next model is the one before, moved by the
//! update: what federated averaging of this site's update alone makes. After each round model and optimiser are on the disk, and within a round where it
//! stands, as often as in a federation: a run that was stopped goes on from there and ends with the same bits.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::ids::{ClassId, ModelHash, RoundId, StudyDigest};
use common::study::sections::Strategy;
use common::study::{CLASS_TABLE_TENSOR, Study};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::artifacts::ArtifactFolder;
use super::base_model::BaseModel;
use super::checkpointing::{CheckpointPolicy, RoundFile};
use super::files::{self, FileError};
use super::lock::lock_folder;
use crate::model::{LiveTensor, ModelError, NamedTensors};
use crate::train::checkpoint::CheckpointKey;
use crate::train::optimizer::OptimizerState;
use crate::train::state::{read_state, store_state};
use crate::train::tensors::advance;
use crate::train::trainer::{Cancel, LocalTrainer, RoundPlan, StepReport, TrainError};

/// The rounds of one study at this site.
pub struct Finetune<'a> {
    /// What is trained. Its quorum, evaluation and weights of sites play no part.
    pub study: &'a Study,
    /// The digest of its document.
    pub digest: StudyDigest,
    /// The classes that any training scan annotates.
    pub annotated: &'a BTreeSet<ClassId>,
    /// Where finished rounds are kept.
    pub rounds: &'a RoundFolder,
    /// When the round under way is kept there too.
    pub checkpoints: CheckpointPolicy,
}

/// How fine-tuning ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// All rounds are done; the model.
    Done(NamedTensors),
    /// It was asked to stop after this round, the last that is done. Suspended, it goes on with the next step; cancelled, from
    /// where the next round was kept, if it was.
    Stopped(RoundId),
}

impl Finetune<'_> {
    /// Trains all rounds that are not done yet, the first of all from `initial`.
    ///
    /// # Errors
    /// Why a round could not be trained or kept; the rounds before it are kept.
    pub fn run(
        &self,
        initial: NamedTensors,
        trainer: &mut dyn LocalTrainer,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> anyhow::Result<Ended> {
        let (mut done, mut base) = match self.rounds.last()? {
            Some(Finished { round, model, optimizer }) => {
                trainer.restore_optimizer(optimizer)?;
                (round, model)
            }
            None => (RoundId(0), self.rounds.models.store(&initial)?.hash()),
        };
        // From here on models are read from the disk when they are needed.
        drop(initial);
        while done.0 < self.study.rounds {
            let round = done.next();
            let steps = self.study.training.steps_per_round;
            let plan = RoundPlan { round, steps, learning_rate: self.study.learning_rate(round) };
            let key = CheckpointKey { study: self.digest, round, base, steps };
            let mut kept = RoundFile::new(self.rounds.checkpoint(), key, self.checkpoints);
            trainer.load_stored(Box::new(BaseModel::new(&self.rounds.models, base)))?;
            let outcome = match trainer.train_round_kept(&plan, &mut kept, progress, cancel) {
                Err(TrainError::Cancelled { .. }) => return Ok(Ended::Stopped(done)),
                trained => trained?,
            };
            let model = self.next_model(&self.rounds.models.load(base)?, &outcome.delta)?;
            base = self.rounds.keep(round, &model, &trainer.optimizer_state())?;
            done = round;
        }
        Ok(Ended::Done(self.rounds.models.load(base)?))
    }

    /// How much of an update counts. The rate of Adam at a server is no share of one: it is how far that moves each number.
    fn rate(&self) -> f64 {
        let aggregation = &self.study.aggregation;
        match aggregation.strategy {
            Strategy::FedAdam => 1.0,
            _ => aggregation.server_lr,
        }
    }

    /// The model after a round. Rows of a class table that nobody annotates stay, as in a federation: there is no decay.
    fn next_model(&self, model: &NamedTensors, delta: &NamedTensors) -> Result<NamedTensors, ModelError> {
        let mut next = advance(model, delta, self.rate())?;
        if let (Some(new), Some(old)) = (next.get_mut(CLASS_TABLE_TENSOR), model.get(CLASS_TABLE_TENSOR)) {
            let width = old.shape().last().copied().unwrap_or(0).max(1);
            let rows = new.values_mut().chunks_mut(width).zip(old.values().chunks(width)).enumerate();
            for (channel, (new, old)) in rows {
                let class = ClassId::from_channel(channel);
                if class.is_none_or(|class| !self.annotated.contains(&class)) {
                    new.copy_from_slice(old);
                }
            }
        }
        Ok(next)
    }
}

/// The last finished round of one study on the disk, and where the next one stands; locked as long as it is open.
#[derive(Debug)]
pub struct RoundFolder {
    path: PathBuf,
    models: ArtifactFolder,
    _lock: Flock<File>,
}

/// Which round was the last; written after what it names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Progress {
    round: RoundId,
    model: ModelHash,
}

/// A round that is done.
struct Finished {
    round: RoundId,
    model: ModelHash,
    optimizer: OptimizerState,
}

impl RoundFolder {
    /// Opens the folder and makes it if need be. What a killed run left half-written goes: it can be as large as a checkpoint.
    ///
    /// # Errors
    /// Another process trains the same study here, or [`FileError`].
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        files::make_private_folder(path)?;
        let lock = lock_folder(path)?;
        let models = ArtifactFolder::open(&path.join("models"))?;
        for folder in [path, models.path()] {
            files::remove_unfinished(folder)?;
        }
        Ok(Self { path: path.to_owned(), models, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last finished round; 0 before the first.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn done(&self) -> Result<RoundId, FileError> {
        Ok(self.progress()?.map_or(RoundId(0), |progress| progress.round))
    }

    /// Removes everything, once nobody needs to go on from it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove(self) -> Result<(), FileError> {
        fs::remove_dir_all(&self.path).map_err(|source| FileError::new("remove", &self.path, source))
    }

    fn last(&self) -> anyhow::Result<Option<Finished>> {
        let Some(Progress { round, model }) = self.progress()? else { return Ok(None) };
        let optimizer = read_state(&self.optimizer(round))?;
        Ok(Some(Finished { round, model, optimizer }))
    }

    /// Keeps a round; durable when it returns the model's name. The one before it goes last, and what was kept within this
    /// one, so that a crash leaves one of the two whole.
    fn keep(
        &self,
        round: RoundId,
        model: &NamedTensors,
        optimizer: &OptimizerState<LiveTensor>,
    ) -> anyhow::Result<ModelHash> {
        let before = self.done()?;
        let model = self.models.store(model)?.hash();
        store_state(&self.optimizer(round), optimizer)?;
        files::write_json(&self.progress_path(), &Progress { round, model })?;
        files::remove(&self.optimizer(before))?;
        files::remove(&self.checkpoint())?;
        self.models.prune(&BTreeSet::from([model]), 0)?;
        Ok(model)
    }

    fn progress(&self) -> Result<Option<Progress>, FileError> {
        files::read_json(&self.progress_path())
    }

    fn progress_path(&self) -> PathBuf {
        self.path.join("progress.json")
    }

    /// Where the round under way stands.
    fn checkpoint(&self) -> PathBuf {
        self.path.join("round.checkpoint")
    }

    fn optimizer(&self, after: RoundId) -> PathBuf {
        self.path.join(format!("round-{after}.optimizer"))
    }
}

#[cfg(test)]
mod tests;
