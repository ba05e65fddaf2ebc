//! A trainer without a network: it adds a constant that depends on seed and round. Every test of the protocol uses it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use common::rng::{KeyedRng, Rng};

use super::optimizer::OptimizerState;
use super::tensors::delta;
use super::trainer::{
    Cancel, KeepRound, LocalTrainer, RoundOutcome, RoundPlan, RoundState, StepReport, TrainError,
};
use crate::model::{HostTensor, LiveTensor, LiveTensors, NamedTensors};

/// How often a trainer that waits at its gate looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(5);

/// Adds a seeded constant to every tensor.
#[derive(Debug)]
pub struct FakeTrainer {
    seed: u64,
    gate: Option<Gate>,
    global: Option<NamedTensors>,
    steps_remembered: u64,
}

/// Lets a test decide when steps happen: each step takes a permit.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<u64>, Condvar)>);

impl Gate {
    /// Allows `steps` more steps.
    pub fn allow(&self, steps: u64) {
        let (permits, changed) = &*self.0;
        *permits.lock().unwrap_or_else(PoisonError::into_inner) += steps;
        changed.notify_all();
    }

    /// Takes a permit, waiting for one; gives up when cancelled.
    fn pass(&self, cancel: &Cancel) {
        let (permits, changed) = &*self.0;
        let mut left = permits.lock().unwrap_or_else(PoisonError::into_inner);
        while *left == 0 && !cancel.is_cancelled() {
            left = changed.wait_timeout(left, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        *left = left.saturating_sub(1);
    }
}

impl FakeTrainer {
    /// A trainer whose constants are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, gate: None, global: None, steps_remembered: 0 }
    }

    /// The same, taking each step only when `gate` allows it.
    pub fn behind(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// What the round adds to every value of every tensor.
    pub fn constant(&self, plan: &RoundPlan) -> f32 {
        let draw: f32 = KeyedRng::new(self.seed).round(plan.round).purpose("fake update").rng().random();
        (draw - 0.5) * plan.steps as f32
    }
}

impl LocalTrainer for FakeTrainer {
    fn load_global(&mut self, tensors: NamedTensors) -> Result<(), TrainError> {
        self.global = Some(tensors);
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
        let loss = |step: u32| 1.0 / f64::from(plan.round.0 + step);
        let state = |step: u32| {
            let optimizer = OptimizerState { steps: u64::from(step), moments: NamedTensors::new() };
            let loss_sum = (1..=step).map(loss).sum();
            RoundState { step, loss_sum, weights: global.clone(), optimizer }.into_live()
        };
        let begun = kept.take_up().map_or(0, |state| state.step);
        let mut last_kept = begun;
        for step in begun + 1..=plan.steps {
            if let Some(gate) = &self.gate {
                gate.pass(cancel);
            }
            if cancel.is_cancelled() {
                if cancel.is_suspended() && step > begun + 1 {
                    kept.keep(&state(step - 1));
                }
                return Err(TrainError::Cancelled { steps: step - 1 });
            }
            let (round, steps) = (plan.round, plan.steps);
            let (duration, waited) = (Duration::ZERO, Duration::ZERO);
            let loss = loss(step);
            progress(StepReport { round, step, steps, loss, duration, waited, kept: last_kept });
            if step < plan.steps && kept.is_due(step) && kept.keep(&state(step)) {
                last_kept = step;
            }
        }
        self.steps_remembered += u64::from(plan.steps);
        let constant = self.constant(plan);
        let moved = |tensor: &HostTensor| {
            let values = tensor.values().iter().map(|value| value + constant).collect();
            HostTensor::new(tensor.shape().to_vec(), values)
        };
        let local = global.iter().map(|(name, tensor)| Ok((name.clone(), moved(tensor)?)));
        let local = local.collect::<Result<NamedTensors, TrainError>>()?;
        let mean_loss = (1..=plan.steps).map(loss).sum::<f64>() / f64::from(plan.steps.max(1));
        Ok(RoundOutcome { delta: delta(&local, &global)?, steps: plan.steps, mean_loss })
    }

    fn optimizer_state(&self) -> OptimizerState<LiveTensor> {
        OptimizerState { steps: self.steps_remembered, moments: LiveTensors::new() }
    }

    fn restore_optimizer(&mut self, state: OptimizerState) -> Result<(), TrainError> {
        self.steps_remembered = state.steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::RoundId;

    const PLAN: RoundPlan = RoundPlan { round: RoundId(3), steps: 4, learning_rate: 1e-3 };

    fn global() -> NamedTensors {
        NamedTensors::from([("w".to_owned(), HostTensor::from_fn(vec![2, 2], |i| i as f32))])
    }

    fn train(trainer: &mut FakeTrainer, cancel: &Cancel) -> (Result<RoundOutcome, TrainError>, Vec<u32>) {
        let mut steps = Vec::new();
        trainer.load_global(global()).unwrap();
        (trainer.train_round(&PLAN, &mut |report| steps.push(report.step), cancel), steps)
    }

    #[test]
    fn the_update_is_a_function_of_seed_and_round() {
        let (one, steps) = train(&mut FakeTrainer::new(1), &Cancel::default());
        let one = one.unwrap();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert_eq!(one, train(&mut FakeTrainer::new(1), &Cancel::default()).0.unwrap());
        assert_ne!(one.delta, train(&mut FakeTrainer::new(2), &Cancel::default()).0.unwrap().delta);
    }

    #[test]
    fn a_round_behind_a_gate_goes_on_as_far_as_it_is_allowed() {
        let gate = Gate::default();
        let mut trainer = FakeTrainer::new(1).behind(gate.clone());
        let cancel = Cancel::default();
        gate.allow(2);
        let (outcome, steps) = std::thread::scope(|scope| {
            let running = scope.spawn(|| train(&mut trainer, &cancel));
            cancel.cancel();
            running.join().unwrap()
        });
        assert!(
            matches!(outcome, Err(TrainError::Cancelled { steps: done }) if done as usize == steps.len())
        );
        assert!(steps.len() <= 2);
    }

    /// Keeps the last state of each second step.
    #[derive(Default)]
    struct InMemory(Option<RoundState>);

    impl KeepRound for InMemory {
        fn take_up(&mut self) -> Option<RoundState> {
            self.0.take()
        }

        fn is_due(&mut self, step: u32) -> bool {
            step.is_multiple_of(2)
        }

        fn keep(&mut self, state: &RoundState<LiveTensor>) -> bool {
            self.0 = Some(state.to_host());
            true
        }
    }

    #[test]
    fn a_suspended_round_goes_on_with_the_next_step() {
        let whole = train(&mut FakeTrainer::new(1), &Cancel::default()).0.unwrap();
        let (mut trainer, mut kept, cancel) = (FakeTrainer::new(1), InMemory::default(), Cancel::default());
        let (mut steps, mut durable) = (Vec::new(), Vec::new());
        let mut told = |report: StepReport| {
            steps.push(report.step);
            durable.push(report.kept);
            if report.step == 3 {
                cancel.suspend();
            }
        };
        trainer.load_global(global()).unwrap();
        let stopped = trainer.train_round_kept(&PLAN, &mut kept, &mut told, &cancel);
        assert!(matches!(stopped, Err(TrainError::Cancelled { steps: 3 })));
        let mut trainer = FakeTrainer::new(1);
        trainer.load_global(global()).unwrap();
        let mut told = |report: StepReport| {
            steps.push(report.step);
            durable.push(report.kept);
        };
        let resumed = trainer.train_round_kept(&PLAN, &mut kept, &mut told, &Cancel::default());
        assert_eq!(resumed.unwrap(), whole);
        assert_eq!((steps, durable), (vec![1, 2, 3, 4], vec![0, 0, 2, 3]));
    }

    #[test]
    fn a_global_model_is_used_up_by_its_round() {
        let mut trainer = FakeTrainer::new(1);
        train(&mut trainer, &Cancel::default()).0.unwrap();
        let again = trainer.train_round(&PLAN, &mut |_| {}, &Cancel::default());
        assert!(matches!(again, Err(TrainError::NoGlobalModel)));
    }
}
