//! The trainer that trains: the universal model on the batches of a site.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use common::study::sections::{
    DiceTerm, Loss, Optimizer as OptimizerSettings, OptimizerKind, OptimizerState as BetweenRounds, Training,
};

use super::loss::{DiceKind, masked_loss};
use super::optimizer::{AdamW, AdamWConfig, OptimizerState, sgd_step};
use super::proximal::Proximal;
use super::tensors::{into_delta, not_finite};
use super::trainer::{
    Cancel, KeepRound, LocalTrainer, RoundOutcome, RoundPlan, RoundState, StepReport, StoredModel, TrainError,
};
use crate::data::DataError;
use crate::data::batch::{Batch, BatchAddress, BatchSource};
use crate::data::prefetch::with_batches;
use crate::model::{Gradients, LiveTensor, LiveTensors, ModelError, NamedTensors, UniversalModel};

/// Trains a [`UniversalModel`] by masked back-propagation.
pub struct BurnTrainer {
    model: UniversalModel,
    device: Device,
    source: Arc<dyn BatchSource>,
    optimizer: Optimizer,
    /// A round began and did not end: what the optimiser remembers is of neither.
    is_spent: bool,
    settings: TrainerSettings,
    global: Option<Global>,
    /// Of the round under way.
    proximal: Option<Proximal>,
}

/// The model that the next round begins from: what it ends with is told as the difference.
enum Global {
    Here(NamedTensors),
    Stored(Box<dyn StoredModel>),
}

impl Global {
    fn into_tensors(self) -> Result<NamedTensors, TrainError> {
        match self {
            Self::Here(tensors) => Ok(tensors),
            Self::Stored(model) => model.read().map_err(TrainError::Stored),
        }
    }
}

/// What a study and a site say about local work.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerSettings {
    /// The study's section; micro-batches come from the source.
    pub training: Training,
    /// Batches prepared ahead, on a thread of their own.
    pub prefetch: usize,
    /// FedProx's μ: how strongly steps are pulled back towards the global model; 0 is FedAvg.
    pub proximal_mu: f64,
}

#[derive(Debug)]
enum Optimizer {
    AdamW(AdamW),
    Sgd,
}

/// Where a round begins in this process.
#[derive(Clone, Copy, Debug, Default)]
struct Begun {
    /// Steps done before.
    step: u32,
    /// Sum of their losses.
    loss_sum: f64,
}

/// The batches of one step, in order.
type Batches<'a> = dyn Iterator<Item = Result<Batch, DataError>> + 'a;

impl BurnTrainer {
    /// A trainer of `model`, which lives on `device` (with autodiff), on the batches of `source`.
    pub fn new(
        model: UniversalModel,
        device: Device,
        source: Arc<dyn BatchSource>,
        settings: TrainerSettings,
    ) -> Self {
        let optimizer = Optimizer::new(&settings.training.optimizer);
        Self { model, device, source, optimizer, is_spent: false, settings, global: None, proximal: None }
    }

    /// The model as the last round left it.
    pub fn model(&self) -> &UniversalModel {
        &self.model
    }

    /// FedProx's pull, where the study asks for it.
    fn proximal_to(&self, global: &Global) -> Result<Option<Proximal>, TrainError> {
        let mu = self.settings.proximal_mu;
        if mu == 0.0 {
            return Ok(None);
        }
        let proximal = match global {
            Global::Here(tensors) => Proximal::new(mu, tensors, &self.device),
            Global::Stored(model) => {
                Proximal::new(mu, &model.read().map_err(TrainError::Stored)?, &self.device)
            }
        };
        Ok(Some(proximal))
    }

    /// Goes where an earlier process left the round; to its start when there is no such place, or it is of another model.
    fn begin(&mut self, plan: &RoundPlan, left: Option<RoundState>) -> Begun {
        let Some(state) = left.filter(|state| state.step <= plan.steps) else { return Begun::default() };
        let begun = Begun { step: state.step, loss_sum: state.loss_sum };
        match self.go_to(state) {
            Ok(()) => begun,
            Err(error) => {
                tracing::warn!(
                    "round {}: what was kept of it is of another model, it begins anew: {error}",
                    plan.round
                );
                Begun::default()
            }
        }
    }

    /// All of it or nothing.
    fn go_to(&mut self, state: RoundState) -> Result<(), ModelError> {
        let RoundState { weights, optimizer, .. } = state;
        let optimizer = self.restored(optimizer)?;
        self.model.load(&weights)?;
        self.optimizer = optimizer;
        Ok(())
    }

    fn restored(&self, state: OptimizerState) -> Result<Optimizer, ModelError> {
        Ok(match self.optimizer {
            Optimizer::AdamW(_) => {
                let config = adamw_config(&self.settings.training.optimizer);
                Optimizer::AdamW(AdamW::restore(config, state, &self.model, &self.device)?)
            }
            Optimizer::Sgd => Optimizer::Sgd,
        })
    }

    fn state_after(&self, step: u32, loss_sum: f64) -> RoundState<LiveTensor> {
        RoundState { step, loss_sum, weights: self.model.live(), optimizer: self.optimizer_state() }
    }

    fn run(
        &mut self,
        plan: &RoundPlan,
        begun: Begun,
        batches: &mut Batches<'_>,
        kept: &mut dyn KeepRound,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> Result<f64, TrainError> {
        let (mut sum, mut last_kept) = (begun.loss_sum, begun.step);
        for step in begun.step + 1..=plan.steps {
            let done = step - 1;
            if cancel.is_cancelled() {
                if cancel.is_suspended() && done > last_kept {
                    kept.keep(&self.state_after(done, sum));
                }
                return Err(TrainError::Cancelled { steps: done });
            }
            let started = Instant::now();
            let (loss, waited) = self.step(plan.learning_rate, batches)?;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step, loss });
            }
            sum += loss;
            let (round, steps) = (plan.round, plan.steps);
            let duration = started.elapsed();
            progress(StepReport { round, step, steps, loss, duration, waited, kept: last_kept });
            // After the last one the update itself is kept.
            if step < plan.steps && kept.is_due(step) && kept.keep(&self.state_after(step, sum)) {
                last_kept = step;
            }
        }
        Ok(sum / f64::from(plan.steps.max(1)))
    }

    /// One optimiser step over the next micro-batches; returns their loss, and how long they were waited for.
    fn step(&mut self, learning_rate: f64, batches: &mut Batches<'_>) -> Result<(f64, Duration), TrainError> {
        let (mut step, mut waited) = (StepGradients::default(), Duration::ZERO);
        for _ in 0..self.settings.training.accumulation {
            let asked = Instant::now();
            // None is left only where the thread that prepares them panicked: a step without its batch is no step.
            let batch = batches.next().unwrap_or(Err(DataError::NoBatch))?;
            waited += asked.elapsed();
            // A micro-batch without any annotated pair teaches nothing.
            if batch.annotated.contains(&true) {
                step.add(on_pool(|| self.micro_batch(batch))?);
            }
        }
        if let Some(mut gradients) = step.mean {
            on_pool(|| {
                if let Some(proximal) = &self.proximal {
                    proximal.pull(&mut gradients, &mut self.model);
                }
                self.optimizer.step(&mut self.model, gradients, learning_rate);
            });
        }
        Ok((step.mean_loss, waited))
    }

    /// Forward and backward pass. The head runs only for the classes that some sample of the batch annotates.
    fn micro_batch(&self, batch: Batch) -> Result<MicroBatch, TrainError> {
        let Batch { patch: [x, y, z], samples, images, classes, targets, annotated } = batch;
        let tensor = |values: Vec<f32>, channels: usize| {
            let shape = [samples, channels, x, y, z];
            Tensor::<5>::from_data(TensorData::new(values, shape), &self.device)
        };
        let logits = self.model.forward(tensor(images, 1), &classes)?;
        let target = tensor(targets.into_iter().map(f32::from).collect(), classes.len());
        let Loss { bce, dice } = self.settings.training.loss;
        let kind = if dice == DiceTerm::Slice { DiceKind::Slice } else { DiceKind::Volume };
        let parts = masked_loss(logits, target, &annotated, kind)?;
        let mut objective = parts.bce.clone() * bce;
        if dice != DiceTerm::None {
            objective = objective + parts.dice.clone();
        }
        Ok(MicroBatch {
            gradients: self.model.gradients(&objective),
            loss: f64::from(objective.into_scalar::<f32>()),
            pairs: parts.pairs,
        })
    }
}

/// Runs `work` on the first thread of the pool that its parallel operations use. From outside, each of the hundreds in a step
/// would send that pool a job and sleep until it is done. Always the same thread, because the allocator gives each thread
/// regions of its own: steps that change threads keep twice what they need.
fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = Mutex::new(Some(work));
    let answers = rayon::broadcast(|thread| match thread.index() {
        0 => work.lock().ok()?.take().map(|work| work()),
        _ => None,
    });
    answers.into_iter().flatten().next().expect("a pool has a first thread")
}

impl LocalTrainer for BurnTrainer {
    fn load_global(&mut self, tensors: NamedTensors) -> Result<(), TrainError> {
        self.model.load(&tensors)?;
        self.global = Some(Global::Here(tensors));
        Ok(())
    }

    fn load_stored(&mut self, global: Box<dyn StoredModel>) -> Result<(), TrainError> {
        self.model.load(&global.read().map_err(TrainError::Stored)?)?;
        self.global = Some(Global::Stored(global));
        Ok(())
    }

    fn train_round_kept(
        &mut self,
        plan: &RoundPlan,
        kept: &mut dyn KeepRound,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> Result<RoundOutcome, TrainError> {
        let global = self.global.take().ok_or(TrainError::NoGlobalModel)?;
        if self.settings.training.optimizer_state == BetweenRounds::Reset {
            self.optimizer = Optimizer::new(&self.settings.training.optimizer);
        } else if self.is_spent {
            return Err(TrainError::OptimizerSpent);
        }
        self.is_spent = true;
        let (source, ahead) = (Arc::clone(&self.source), self.settings.prefetch);
        let micro_batches = self.settings.training.accumulation;
        let begun = self.begin(plan, kept.take_up());
        self.proximal = self.proximal_to(&global)?;
        let round = plan.round;
        let addresses = (begun.step..plan.steps)
            .flat_map(move |step| (0..micro_batches).map(move |micro| BatchAddress { round, step, micro }));
        let trained = with_batches(source.as_ref(), addresses, ahead, |batches| {
            self.run(plan, begun, batches, kept, progress, cancel)
        });
        self.proximal = None;
        let mean_loss = trained?;
        let delta = into_delta(&self.model.live(), global.into_tensors()?)?;
        // Each loss is that of the weights before its step.
        if let Some(tensor) = not_finite(&delta) {
            return Err(TrainError::NotFinite { tensor: tensor.to_owned() });
        }
        self.is_spent = false;
        Ok(RoundOutcome { delta, steps: plan.steps, mean_loss })
    }

    fn optimizer_state(&self) -> OptimizerState<LiveTensor> {
        match &self.optimizer {
            Optimizer::AdamW(adamw) => adamw.state(&self.model),
            Optimizer::Sgd => OptimizerState { steps: 0, moments: LiveTensors::new() },
        }
    }

    fn restore_optimizer(&mut self, state: OptimizerState) -> Result<(), TrainError> {
        self.optimizer = self.restored(state)?;
        self.is_spent = false;
        Ok(())
    }
}

impl Optimizer {
    fn new(settings: &OptimizerSettings) -> Self {
        match settings.kind {
            OptimizerKind::AdamW => Self::AdamW(AdamW::new(adamw_config(settings))),
            OptimizerKind::Sgd => Self::Sgd,
        }
    }

    fn step(&mut self, model: &mut UniversalModel, gradients: Gradients, learning_rate: f64) {
        match self {
            Self::AdamW(adamw) => adamw.step(model, gradients, learning_rate),
            Self::Sgd => sgd_step(model, &gradients, learning_rate),
        }
    }
}

fn adamw_config(settings: &OptimizerSettings) -> AdamWConfig {
    AdamWConfig { weight_decay: settings.weight_decay, ..AdamWConfig::default() }
}

/// What one forward and backward pass gave: means over its annotated pairs.
struct MicroBatch {
    gradients: Gradients,
    loss: f64,
    pairs: usize,
}

/// Gradients of one step: the mean over all annotated pairs of its micro-batches, whichever micro-batch they are in.
#[derive(Default)]
struct StepGradients {
    mean: Option<Gradients>,
    mean_loss: f64,
    pairs: usize,
}

impl StepGradients {
    /// Moves the mean towards that of one more micro-batch. The first one is taken as it is, bit for bit.
    fn add(&mut self, MicroBatch { gradients, loss, pairs }: MicroBatch) {
        self.pairs += pairs;
        let share = pairs as f64 / self.pairs.max(1) as f64;
        self.mean_loss += (loss - self.mean_loss) * share;
        match &mut self.mean {
            Some(mean) => {
                mean.scale(1.0 - share);
                mean.add_scaled(&gradients, share);
            }
            None => self.mean = Some(gradients),
        }
    }
}
