//! A model of any size: many small tensors and a few large ones, as in a convolutional network.
//!
//! The tensors are those that `tests/bench/peers` moves, and one more that a study looks for in a U-Net.

use std::path::Path;

use anyhow::ensure;
use common::study::sections::Backbone;
use site_agent::model::record::write_safetensors;
use site_agent::model::{HostTensor, NamedTensors};

/// Shape of the tensor that a study looks for: its first axis is the width of the small study's network.
const FIRST: [usize; 5] = [8, 1, 3, 3, 3];
/// The smallest model that has all its tensors.
pub(crate) const FEWEST: u64 = 100_000;

/// Writes a model of `params` numbers.
pub(crate) fn write(path: &Path, params: u64) -> anyhow::Result<()> {
    std::fs::write(path, write_safetensors(&tensors(params)?)?)?;
    Ok(())
}

fn tensors(params: u64) -> anyhow::Result<NamedTensors> {
    ensure!(params >= FEWEST, "--params {params}: at least {FEWEST}");
    let first: usize = FIRST.iter().product();
    let mut tensors = NamedTensors::from([(
        Backbone::Unet.first_tensor().to_owned(),
        HostTensor::from_fn(FIRST.to_vec(), |i| noise(u64::MAX, i)),
    )]);
    for (index, size) in (0u64..).zip(sizes(params - first as u64)) {
        let tensor = HostTensor::from_fn(vec![usize::try_from(size)?], |i| noise(index, i));
        tensors.insert(format!("layer.{index:03}.weight"), tensor);
    }
    Ok(tensors)
}

/// Sizes that add up to `params`; the largest is a thousand times the smallest.
fn sizes(params: u64) -> Vec<u64> {
    let tensors: u32 = if params > 40_000_000 { 170 } else { 117 };
    let weight = |i: u32| 1.0 + 999.0 * (f64::from(i * 37 % tensors) / f64::from(tensors)).powi(3);
    let weights: Vec<f64> = (0..tensors).map(weight).collect();
    let total: f64 = weights.iter().sum();
    let mut sizes: Vec<u64> =
        weights.iter().map(|weight| ((params as f64 * weight / total) as u64).max(16)).collect();
    let given: u64 = sizes.iter().sum();
    if let Some(last) = sizes.last_mut() {
        *last = (*last + params).saturating_sub(given);
    }
    sizes
}

/// In [-0.02, 0.02), with no period: no two chunks are the same.
fn noise(tensor: u64, i: usize) -> f32 {
    let mut x = ((tensor << 40) ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    ((x >> 40) as f32 / (1u32 << 24) as f32 - 0.5) * 0.04
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_as_many_numbers_as_asked_for() {
        for params in [FEWEST, 1_000_000, 19_400_000, 62_600_000] {
            let sizes = sizes(params);
            assert_eq!(sizes.iter().sum::<u64>(), params);
            assert!(sizes.iter().all(|&size| size > 0), "{params}");
        }
        let tensors = tensors(FEWEST).unwrap();
        assert_eq!(tensors.values().map(|tensor| tensor.values().len() as u64).sum::<u64>(), FEWEST);
        assert!(tensors_differ(&tensors));
        assert!(super::tensors(FEWEST - 1).is_err());
    }

    fn tensors_differ(tensors: &NamedTensors) -> bool {
        let first = |tensor: &HostTensor| tensor.values()[..8].to_vec();
        let mut beginnings: Vec<_> = tensors.values().map(first).collect();
        beginnings.sort_by(|a, b| a.partial_cmp(b).unwrap());
        beginnings.windows(2).all(|pair| pair[0] != pair[1])
    }
}
