//! AdamW and plain gradient descent over the named tensors of a model.
//!
//! The state of [`AdamW`] is keyed by tensor name, so that it can be kept beside a round on disk and outlive the process
//! as well as the loading of a new global model.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::kernels::adamw::Coefficients;
use crate::model::{
    Gradients, HostTensor, LiveTensor, LiveTensors, ModelError, UniversalModel, ops, tensors::TensorMismatch,
};

const FIRST: &str = "first.";
const SECOND: &str = "second.";

/// Settings of [`AdamW`]; the defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay, of every trainable tensor (normalisations and biases too).
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-5 }
    }
}

/// AdamW with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2).
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// Both flat and on the device.
#[derive(Clone, Debug)]
struct Moments {
    first: Tensor<1>,
    second: Tensor<1>,
}

/// What an optimiser has to remember: on the host as it was read, or live to be written from where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState<T = HostTensor> {
    /// Steps done since the moments were zero.
    pub steps: u64,
    /// `first.<name>` and `second.<name>` for each trainable tensor; empty before the first step.
    pub moments: BTreeMap<String, T>,
}

impl OptimizerState {
    /// The same, to be written.
    pub fn into_live(self) -> OptimizerState<LiveTensor> {
        let moments = self.moments.into_iter().map(|(name, moment)| (name, moment.into())).collect();
        OptimizerState { steps: self.steps, moments }
    }
}

impl OptimizerState<LiveTensor> {
    /// A copy on the host.
    pub fn to_host(&self) -> OptimizerState {
        let moments = self.moments.iter().map(|(name, moment)| (name.clone(), moment.to_host())).collect();
        OptimizerState { steps: self.steps, moments }
    }
}

impl AdamW {
    /// An optimiser without memory.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Steps done since the moments were zero.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Changes the model by one step. The gradients are used up: new values take their place in memory.
    pub fn step(&mut self, model: &mut UniversalModel, mut gradients: Gradients, learning_rate: f64) {
        self.steps += 1;
        let coefficients = coefficients(self.config, self.steps, learning_rate);
        model.update(|name, theta| match gradients.take(name) {
            Some(gradient) => {
                let moments = match self.moments.remove(name) {
                    Some(Moments { first, second }) => [first, second],
                    None => [theta.zeros_like(), theta.zeros_like()],
                };
                let [theta, first, second] = ops::adamw(theta, gradient, moments, coefficients);
                self.moments.insert(name.to_owned(), Moments { first, second });
                theta
            }
            None => theta,
        });
    }

    /// The state, to be stored from where it is.
    pub fn state(&self, model: &UniversalModel) -> OptimizerState<LiveTensor> {
        let mut moments = LiveTensors::new();
        for (name, shape) in model.shapes() {
            let Some(Moments { first, second }) = self.moments.get(&name) else { continue };
            for (prefix, moment) in [(FIRST, first), (SECOND, second)] {
                let live = LiveTensor::on_device(shape.clone(), moment.clone());
                moments.insert(format!("{prefix}{name}"), live);
            }
        }
        OptimizerState { steps: self.steps, moments }
    }

    /// An optimiser that goes on from a stored state.
    ///
    /// # Errors
    ///
    /// [`ModelError::Mismatch`] unless the state has both moments of every trainable tensor of `model` and no other, or
    /// is that of an optimiser which never stepped.
    pub fn restore(
        config: AdamWConfig,
        state: OptimizerState,
        model: &UniversalModel,
        device: &Device,
    ) -> Result<Self, ModelError> {
        if state.steps == 0 && state.moments.is_empty() {
            return Ok(Self::new(config));
        }
        let trained = model.shapes();
        let expected = trained.iter().flat_map(|(name, shape)| {
            [FIRST, SECOND].map(|prefix| (format!("{prefix}{name}"), shape.clone()))
        });
        TensorMismatch::check(&expected.collect(), &state.moments)?;
        let device = device.clone().without_autodiff();
        let OptimizerState { steps, moments: mut stored } = state;
        let mut moment = |prefix: &str, name: &str| {
            let (_, values) = stored.remove(&format!("{prefix}{name}"))?.into_parts();
            let length = values.len();
            Some(Tensor::<1>::from_data(TensorData::new(values, [length]), &device))
        };
        let moments = |name: String| {
            let (first, second) = (moment(FIRST, &name)?, moment(SECOND, &name)?);
            Some((name, Moments { first, second }))
        };
        Ok(Self { config, steps, moments: trained.into_keys().filter_map(moments).collect() })
    }
}

/// The numbers of step `step`, the first being 1.
fn coefficients(config: AdamWConfig, step: u64, learning_rate: f64) -> Coefficients {
    let AdamWConfig { beta1, beta2, epsilon, weight_decay } = config;
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    Coefficients {
        beta1: beta1 as f32,
        one_minus_beta1: (1.0 - beta1) as f32,
        beta2: beta2 as f32,
        one_minus_beta2: (1.0 - beta2) as f32,
        epsilon: epsilon as f32,
        rate: (learning_rate / correction(beta1)) as f32,
        second_correction: correction(beta2).sqrt() as f32,
        decay: (learning_rate * weight_decay) as f32,
    }
}

/// One step of plain gradient descent, without decay or momentum.
pub fn sgd_step(model: &mut UniversalModel, gradients: &Gradients, learning_rate: f64) {
    model.update(|name, theta| match gradients.flat(name) {
        Some(gradient) => theta - gradient.clone() * learning_rate,
        None => theta,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClassEmbeddings, EmbeddingConfig, EmbeddingKind, ModelConfig};

    fn new_model(seed: u64) -> UniversalModel {
        let embeddings = ClassEmbeddings::one_hot(2, 1.0).unwrap();
        let config = ModelConfig::unet(8, EmbeddingConfig { kind: EmbeddingKind::OneHot, rows: 2, width: 2 });
        UniversalModel::new(&config, Some(&embeddings), seed, &Device::flex().autodiff()).unwrap()
    }

    /// Gradients that only have to be different from each other.
    fn gradients(model: &UniversalModel, seed: usize) -> Gradients {
        let wave = |i: usize| ((i * 31 + seed * 17) % 13) as f32 / 13.0 - 0.4;
        let tensors = model.export();
        let host =
            tensors.iter().map(|(name, t)| (name.clone(), HostTensor::from_fn(t.shape().to_vec(), wave)));
        Gradients::from_host(&host.collect(), &Device::flex())
    }

    #[test]
    fn moments_survive_the_loading_of_a_global_model() {
        let (mut model, mut optimizer) = (new_model(1), AdamW::new(AdamWConfig::default()));
        let first = gradients(&model, 1);
        optimizer.step(&mut model, first, 1e-3);
        let before = optimizer.state(&model).to_host();
        model.load(&new_model(2).export()).unwrap();
        assert_eq!(optimizer.state(&model).to_host(), before);
        assert_eq!(before.moments.len(), 2 * model.trainable_names().len());

        // The next step uses them: a fresh optimiser would go elsewhere.
        let second = gradients(&model, 2);
        let mut fresh = model.clone();
        AdamW::new(AdamWConfig::default()).step(&mut fresh, second.clone(), 1e-3);
        optimizer.step(&mut model, second, 1e-3);
        assert_eq!(optimizer.steps(), 2);
        assert_ne!(model.export(), fresh.export());
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() {
        let (mut model, mut optimizer) = (new_model(1), AdamW::new(AdamWConfig::default()));
        let first = gradients(&model, 1);
        optimizer.step(&mut model, first, 1e-3);
        let state = optimizer.state(&model).to_host();
        let mut twin = model.clone();
        let mut restored =
            AdamW::restore(AdamWConfig::default(), state, &twin, &Device::flex().autodiff()).unwrap();
        let next = gradients(&model, 2);
        optimizer.step(&mut model, next.clone(), 1e-3);
        restored.step(&mut twin, next, 1e-3);
        assert_eq!(model.export(), twin.export());
        assert_eq!(optimizer.state(&model).to_host(), restored.state(&twin).to_host());
    }

    #[test]
    fn a_state_that_lacks_a_moment_is_refused() {
        let (mut model, mut optimizer) = (new_model(1), AdamW::new(AdamWConfig::default()));
        let first = gradients(&model, 1);
        optimizer.step(&mut model, first, 1e-3);
        let mut state = optimizer.state(&model).to_host();
        state.moments.remove("second.controller.bias");
        let restored = AdamW::restore(AdamWConfig::default(), state, &model, &Device::flex());
        assert!(matches!(restored, Err(ModelError::Mismatch(_))));
    }

    #[test]
    fn gradient_descent_subtracts_the_scaled_gradient() {
        let mut model = new_model(3);
        let (before, step) = (model.export(), gradients(&model, 1));
        sgd_step(&mut model, &step, 0.5);
        for ((name, after), gradient) in model.export().iter().zip(step.export().values()) {
            for ((a, b), g) in after.values().iter().zip(before[name].values()).zip(gradient.values()) {
                assert_eq!(*a, b - g * 0.5, "{name}");
            }
        }
    }
}
