//! Initial values, PyTorch's defaults, from a generator of our own keyed by (seed, tensor name).
//!
//! burn's generator is one per process and its draws depend on the order of construction; ours make the initial model a
//! pure function of seed and names, on every machine.

use std::{collections::BTreeMap, f32::consts::TAU};

use super::tensors::{HostTensor, NamedTensors};

/// Initial values for tensors of these names and shapes.
///
/// Normalisations start at weight 1 and bias 0, a trainable embedding table at N(0, 1), biases of relative positions at
/// N(0, 0.02²), everything else uniform in ±1/sqrt(fan-in), where a bias uses the fan-in of its weight.
pub fn initial_tensors(shapes: &BTreeMap<String, Vec<usize>>, seed: u64) -> NamedTensors {
    let value = |name: &String, shape: &Vec<usize>| {
        let mut draws = Draws::new(seed, name);
        let layer = name.strip_suffix(".bias").and_then(|layer| shapes.get(&format!("{layer}.weight")));
        let weight_shape = layer.unwrap_or(shape);
        if name == "organ_embedding.weight" {
            return HostTensor::from_fn(shape.clone(), |_| draws.normal());
        }
        if name.ends_with(".relative_position_bias_table") {
            // The reference truncates at ±2, which is a hundred of these deviations.
            return HostTensor::from_fn(shape.clone(), |_| 0.02 * draws.normal());
        }
        if weight_shape.len() == 1 {
            let constant = if layer.is_some() { 0.0 } else { 1.0 };
            return HostTensor::from_fn(shape.clone(), |_| constant);
        }
        let bound = (1.0 / fan_in(weight_shape)).sqrt() as f32;
        HostTensor::from_fn(shape.clone(), |_| bound * (2.0 * draws.unit() - 1.0))
    };
    shapes.iter().map(|(name, shape)| (name.clone(), value(name, shape))).collect()
}

/// Numbers that feed one output, as PyTorch counts them: all axes but the first, for transposed convolutions too
/// (whose first axis is the input).
fn fan_in(weight_shape: &[usize]) -> f64 {
    weight_shape.iter().skip(1).product::<usize>() as f64
}

/// Counter-based draws: the extended output of a hash of (seed, name).
struct Draws(blake3::OutputReader);

impl Draws {
    fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("consilium 2026 initial model tensors");
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        Self(hasher.finalize_xof())
    }

    /// Uniform in [0, 1), 24 bits.
    fn unit(&mut self) -> f32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        (u32::from_le_bytes(bytes) >> 8) as f32 / (1 << 24) as f32
    }

    /// N(0, 1), by Box and Muller.
    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> BTreeMap<String, Vec<usize>> {
        [
            ("conv.weight", vec![64, 2, 3, 3, 3]),
            ("conv.bias", vec![64]),
            ("norm.weight", vec![16]),
            ("norm.bias", vec![16]),
            ("organ_embedding.weight", vec![32, 256]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into()
    }

    #[test]
    fn the_initial_model_depends_on_seed_and_name_alone() {
        let all = initial_tensors(&shapes(), 7);
        let mut fewer = shapes();
        fewer.remove("norm.weight");
        fewer.remove("norm.bias");
        assert_eq!(initial_tensors(&fewer, 7)["conv.weight"], all["conv.weight"]);
        assert_ne!(initial_tensors(&shapes(), 8)["conv.weight"], all["conv.weight"]);
    }

    #[test]
    fn values_have_the_spread_that_pytorch_gives_them() {
        let tensors = initial_tensors(&shapes(), 1);
        let bound = 1.0 / 54f32.sqrt();
        for name in ["conv.weight", "conv.bias"] {
            let values = tensors[name].values();
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest}");
        }
        assert!(tensors["norm.weight"].values().iter().all(|&v| v == 1.0));
        assert!(tensors["norm.bias"].values().iter().all(|&v| v == 0.0));
        let table = tensors["organ_embedding.weight"].values();
        let square = table.iter().map(|v| v * v).sum::<f32>() / table.len() as f32;
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }
}
