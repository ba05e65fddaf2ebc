//! When a value agrees with a golden one.
//!
//! Golden values are float64 results rounded to f32. Unless a case says otherwise, a value agrees when it differs by at
//! most `max(10 f32_err, 1e-5) + 1e-4 |golden|`, where `f32_err` is what the reference itself lost in f32.

use serde::Deserialize;
use serde_json::Value;
use site_agent::{
    model::{NamedTensors, UniversalModel},
    train::loss::MaskedLoss,
};

use super::hash_fill;

/// Statistics of a tensor, as the JSON files have them.
#[derive(Deserialize)]
pub(crate) struct Stats {
    pub(crate) numel: usize,
    pub(crate) sum: f64,
    pub(crate) mean: f64,
    pub(crate) std: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) l2: f64,
    pub(crate) sample_index: Vec<usize>,
    pub(crate) sample: Vec<f64>,
}

pub(crate) fn assert_agrees(what: &str, got: &[f32], golden: &[f32], f32_err: f64) {
    let absolute = (10.0 * f32_err).max(1e-5);
    assert_all_within(what, got, golden, |golden| absolute + 1e-4 * golden.abs());
}

/// `allowed` gives the difference that a golden value allows; the largest one is printed beside that which 0 allows, for the
/// table of docs/fidelity.md.
pub(crate) fn assert_all_within(what: &str, got: &[f32], golden: &[f32], allowed: impl Fn(f64) -> f64) {
    assert_eq!(got.len(), golden.len(), "{what}: number of values");
    let pairs = || got.iter().zip(golden).map(|(&got, &golden)| (f64::from(got), f64::from(golden)));
    let worst = pairs().map(|(got, golden)| (got - golden).abs()).fold(0.0, f64::max);
    println!("{what}: at most {worst:.1e} of {:.1e}", allowed(0.0));
    for (i, (got, golden)) in pairs().enumerate() {
        let allowed = allowed(golden);
        let difference = (got - golden).abs();
        assert!(difference <= allowed, "{what}[{i}]: {got}, golden {golden}, allowed difference {allowed:e}");
    }
}

pub(crate) fn assert_within(what: &str, got: f64, golden: f64, allowed: f64) {
    println!("{what}: at most {:.1e} of {allowed:.1e}", (got - golden).abs());
    assert!(
        (got - golden).abs() <= allowed,
        "{what}: {got}, golden {golden}, allowed difference {allowed:e}"
    );
}

/// `error` is the absolute error that one value may have.
pub(crate) fn assert_stats_agree(what: &str, got: &[f32], golden: &Stats, error: f64) {
    assert_eq!(got.len(), golden.numel, "{what}: number of values");
    let n = golden.numel as f64;
    let sum: f64 = got.iter().map(|&v| f64::from(v)).sum();
    let square: f64 = got.iter().map(|&v| f64::from(v).powi(2)).sum();
    let (mean, relative) = (sum / n, |golden: f64| error + 1e-4 * golden.abs());
    let least = got.iter().copied().fold(f32::INFINITY, f32::min);
    let most = got.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_within(&format!("{what}: sum"), sum, golden.sum, error * n + 1e-4 * golden.sum.abs());
    assert_within(&format!("{what}: mean"), mean, golden.mean, relative(golden.mean));
    assert_within(&format!("{what}: l2"), square.sqrt(), golden.l2, error * n.sqrt() + 1e-4 * golden.l2);
    assert_within(&format!("{what}: min"), f64::from(least), golden.min, relative(golden.min));
    assert_within(&format!("{what}: max"), f64::from(most), golden.max, relative(golden.max));
    let deviation = (square / n - mean * mean).max(0.0).sqrt();
    assert_within(&format!("{what}: std"), deviation, golden.std, relative(golden.std));
    for (&i, &golden) in golden.sample_index.iter().zip(&golden.sample) {
        assert_within(&format!("{what}[{i}]"), f64::from(got[i]), golden, relative(golden));
    }
}

/// Compares names, shapes and numbers of all weights; those of buffers that our model does not have, with the hash fill.
pub(crate) fn assert_weights_agree(exported: &NamedTensors, golden: &Value) {
    let golden = golden.as_object().unwrap();
    let unknown: Vec<_> = exported.keys().filter(|name| !golden.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "the reference has no {unknown:?}");
    for (name, golden) in golden {
        let shape = Vec::<usize>::deserialize(&golden["shape"]).unwrap();
        let filled;
        let ours = match exported.get(name) {
            Some(ours) => ours,
            None => {
                filled = hash_fill::weight(name, &shape);
                &filled
            }
        };
        assert_eq!(ours.shape(), shape, "{name}");
        let values = || ours.values().iter().copied().map(f64::from);
        let (sum, l2) = (number(&golden["sum"]), number(&golden["l2"]));
        assert_within(&format!("{name}: sum"), values().sum(), sum, 1e-6 * (1.0 + sum.abs()));
        let square: f64 = values().map(|value| value * value).sum();
        assert_within(&format!("{name}: l2"), square.sqrt(), l2, 1e-6 * (1.0 + l2));
        let index = Vec::<usize>::deserialize(&golden["sample_index"]).unwrap();
        let sample: Vec<f32> = index.into_iter().map(|i| ours.values()[i]).collect();
        assert_eq!(sample, Vec::<f32>::deserialize(&golden["sample"]).unwrap(), "{name}");
    }
}

/// A convolution's bias in front of batch normalisation: its true gradient is 0, ours is rounding noise.
pub(crate) fn has_no_true_gradient(name: &str) -> bool {
    name.ends_with("conv1.bias")
}

pub(crate) fn stats(json: &Value) -> Stats {
    Stats::deserialize(json).unwrap()
}

pub(crate) fn number(json: &Value) -> f64 {
    json.as_f64().unwrap()
}

/// `error` gives, for a tensor's name and statistics, the absolute error that one value may have.
pub(crate) fn assert_gradient_stats_agree(
    model: &UniversalModel,
    loss: &MaskedLoss,
    golden: &Value,
    error: impl Fn(&str, &Value) -> f64,
) {
    let gradients = model.gradients(&loss.total()).export();
    assert_eq!(gradients.len(), golden.as_object().unwrap().len());
    for (name, gradient) in &gradients {
        let (got, golden) = (gradient.values(), &golden[name]);
        if has_no_true_gradient(name) {
            assert!(got.iter().all(|g| g.abs() <= 1e-4), "{name}");
        } else {
            assert_stats_agree(name, got, &stats(golden), error(name, golden));
        }
    }
}
