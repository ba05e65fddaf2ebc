//! The seam between a round of a study and whatever computes it.
//!
//! A trainer is loaded with a global model, does the local work of one round, and gives back the change. It knows neither
//! network nor protocol. Randomness is keyed by study, site, round and step, so that a round trained twice from the same
//! state gives the same update.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use common::ids::RoundId;

use super::loss::LossShapeError;
use super::optimizer::OptimizerState;
use crate::data::DataError;
use crate::model::{HostTensor, LiveTensor, ModelError, NamedTensors};

/// Local work of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundPlan {
    /// The round.
    pub round: RoundId,
    /// Optimiser steps.
    pub steps: u32,
    /// Learning rate of all of them.
    pub learning_rate: f64,
}

/// A model where it is kept, so that nobody has to hold it as long as a round lasts.
pub trait StoredModel: Send + Sync {
    /// A copy of its tensors.
    ///
    /// # Errors
    /// Why it cannot be read (any more).
    fn read(&self) -> Result<NamedTensors, Box<dyn Error + Send + Sync>>;
}

/// What a round of local work gave.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundOutcome {
    /// Local minus global, every trainable tensor.
    pub delta: NamedTensors,
    /// Optimiser steps done.
    pub steps: u32,
    /// Mean loss over them.
    pub mean_loss: f64,
}

/// One optimiser step, as it is reported while the round runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The round.
    pub round: RoundId,
    /// Steps done, from 1.
    pub step: u32,
    /// Steps of the round.
    pub steps: u32,
    /// Loss of this step.
    pub loss: f64,
    /// Time of this step.
    pub duration: Duration,
    /// How much of it the trainer waited for its batches.
    pub waited: Duration,
    /// Steps of the round that were kept before: a process that ends now does none of them again.
    pub kept: u32,
}

/// Ends a round early from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

impl Cancel {
    const SUSPENDED: u8 = 1;
    const CANCELLED: u8 = 2;

    /// Asks the trainer to stop after the step that it is at; nothing of the round is wanted any more.
    pub fn cancel(&self) {
        self.0.fetch_max(Self::CANCELLED, Ordering::AcqRel);
    }

    /// Asks the trainer to stop after the step that it is at, and to keep what it did: the round goes on another time.
    pub fn suspend(&self) {
        self.0.fetch_max(Self::SUSPENDED, Ordering::AcqRel);
    }

    /// Whether it was asked to stop, for good or not.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) >= Self::SUSPENDED
    }

    /// Whether what was done is wanted another time.
    pub fn is_suspended(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::SUSPENDED
    }
}

/// Where a round stands after some of its steps: all that the next step needs. On the host as it was read, or live to be
/// written from where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundState<T = HostTensor> {
    /// Optimiser steps done.
    pub step: u32,
    /// Sum of their losses.
    pub loss_sum: f64,
    /// The trainable tensors.
    pub weights: BTreeMap<String, T>,
    /// What the optimiser remembers.
    pub optimizer: OptimizerState<T>,
}

impl RoundState {
    /// The same, to be written.
    pub fn into_live(self) -> RoundState<LiveTensor> {
        let Self { step, loss_sum, weights, optimizer } = self;
        let weights = weights.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        RoundState { step, loss_sum, weights, optimizer: optimizer.into_live() }
    }
}

impl RoundState<LiveTensor> {
    /// A copy on the host.
    pub fn to_host(&self) -> RoundState {
        let Self { step, loss_sum, ref weights, ref optimizer } = *self;
        let weights = weights.iter().map(|(name, tensor)| (name.clone(), tensor.to_host())).collect();
        RoundState { step, loss_sum, weights, optimizer: optimizer.to_host() }
    }
}

/// Keeps a round while it is trained, so that a process which ends in its midst repeats little of it.
pub trait KeepRound {
    /// Where an earlier process left this very round. Asked once, before the first step.
    fn take_up(&mut self) -> Option<RoundState>;

    /// Whether the state after `step` is to be kept.
    fn is_due(&mut self, step: u32) -> bool;

    /// Keeps a state in the place of the one before; whether it could. Why not is for the keeper to say: the round goes on.
    fn keep(&mut self, state: &RoundState<LiveTensor>) -> bool;
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepNothing;

impl KeepRound for KeepNothing {
    fn take_up(&mut self) -> Option<RoundState> {
        None
    }

    fn is_due(&mut self, _step: u32) -> bool {
        false
    }

    fn keep(&mut self, _state: &RoundState<LiveTensor>) -> bool {
        false
    }
}

/// Why a round of local work gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// It was asked to stop.
    #[error("cancelled after {steps} steps")]
    Cancelled {
        /// Steps of the round that were done; without a kept state they are undone again.
        steps: u32,
    },
    /// No global model was loaded.
    #[error("no global model is loaded")]
    NoGlobalModel,
    /// The global model could not be read from where it is kept.
    #[error("the model that the round begins from cannot be read")]
    Stored(#[source] Box<dyn Error + Send + Sync>),
    /// A round before this one failed and took with it what the optimiser remembered.
    #[error("what the optimiser remembered went with a round that failed: restore it from where it is kept")]
    OptimizerSpent,
    /// The loss is no number any more.
    #[error("the loss of step {step} is {loss}: the learning rate may be too high")]
    Diverged {
        /// The step, from 1.
        step: u32,
        /// Its loss.
        loss: f64,
    },
    /// The last step, which no loss looked at, left numbers that are none.
    #[error(
        "the last step left numbers of `{tensor}` that are not finite: the learning rate may be too high"
    )]
    NotFinite {
        /// The first such tensor.
        tensor: String,
    },
    /// The model refused its tensors, its input or its classes.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The training data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A batch that contradicts itself.
    #[error(transparent)]
    Loss(#[from] LossShapeError),
}

/// Computes rounds. One per process: burn's back ends share a process-global state.
pub trait LocalTrainer: Send {
    /// Starts from this global model. What the optimiser remembers stays.
    ///
    /// # Errors
    /// [`TrainError::Model`] for tensors of another model.
    fn load_global(&mut self, tensors: NamedTensors) -> Result<(), TrainError>;

    /// As [`LocalTrainer::load_global`], of a model that can be read once more at the end of the round: a trainer that has no
    /// need of it in between does not hold it.
    ///
    /// # Errors
    /// As [`LocalTrainer::load_global`], and [`TrainError::Stored`].
    fn load_stored(&mut self, global: Box<dyn StoredModel>) -> Result<(), TrainError> {
        self.load_global(global.read().map_err(TrainError::Stored)?)
    }

    /// Trains one round from the loaded global model, which is used up. Reports every step, and looks at `cancel` before each.
    ///
    /// After an error what the optimiser remembered is gone, unless the study begins each round without: a copy of it would
    /// take two models of memory as long as a round lasts. Restore it before the round is trained again.
    ///
    /// # Errors
    /// Why there is no update.
    fn train_round(
        &mut self,
        plan: &RoundPlan,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> Result<RoundOutcome, TrainError> {
        self.train_round_kept(plan, &mut KeepNothing, progress, cancel)
    }

    /// As [`LocalTrainer::train_round`], from where `kept` has the round, which it is given again whenever it is due, and
    /// once more when `cancel` suspends the round. The outcome is that of a round in one go, to the bit.
    ///
    /// # Errors
    /// As [`LocalTrainer::train_round`].
    fn train_round_kept(
        &mut self,
        plan: &RoundPlan,
        kept: &mut dyn KeepRound,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> Result<RoundOutcome, TrainError>;

    /// What the optimiser remembers after the last round, to be stored with it from where it is.
    fn optimizer_state(&self) -> OptimizerState<LiveTensor>;

    /// Goes on from a stored state.
    ///
    /// # Errors
    /// [`TrainError::Model`] for the state of another model.
    fn restore_optimizer(&mut self, state: OptimizerState) -> Result<(), TrainError>;
}
