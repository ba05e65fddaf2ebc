//! The seam between a round of a study and whatever computes it.
//!
//! A trainer is loaded with a global model, does the local work of one round, and gives back the change. It knows neither
//! network nor protocol. Randomness is keyed by study, site, round and step, so that a round trained twice from the same
//! state gives the same update.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::ids::RoundId;

use super::loss::LossShapeError;
use super::optimizer::OptimizerState;
use crate::data::DataError;
use crate::model::{ModelError, NamedTensors};

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
}

/// Ends a round early from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the trainer to stop after the step that it is at.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why a round of local work gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// It was asked to stop.
    #[error("cancelled after {steps} steps")]
    Cancelled {
        /// Steps done, and undone again.
        steps: u32,
    },
    /// No global model was loaded.
    #[error("no global model is loaded")]
    NoGlobalModel,
    /// The loss is no number any more.
    #[error("the loss of step {step} is {loss}: the learning rate may be too high")]
    Diverged {
        /// The step, from 1.
        step: u32,
        /// Its loss.
        loss: f64,
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
    fn load_global(&mut self, tensors: &NamedTensors) -> Result<(), TrainError>;

    /// Trains one round from the loaded global model, which is used up. Reports every step, and looks at `cancel` before each.
    ///
    /// After an error the optimiser remembers what it did before the round: the round can be trained again.
    ///
    /// # Errors
    /// Why there is no update.
    fn train_round(
        &mut self,
        plan: &RoundPlan,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> Result<RoundOutcome, TrainError>;

    /// What the optimiser remembers after the last round, to be stored with it.
    fn optimizer_state(&self) -> OptimizerState;

    /// Goes on from a stored state.
    ///
    /// # Errors
    /// [`TrainError::Model`] for the state of another model.
    fn restore_optimizer(&mut self, state: &OptimizerState) -> Result<(), TrainError>;
}
