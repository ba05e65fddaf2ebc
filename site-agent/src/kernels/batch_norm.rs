//! Batch normalisation by the statistics of the current batch, with the rectifier that follows it.
//!
//! The reference never reads running statistics, not even in inference (specification §8), so there are none here.

use rayon::prelude::*;

use super::Extent;

/// What the backward pass needs beside the input: mean and reciprocal standard deviation of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Mean of each channel over batch and space.
    pub mean: Vec<f32>,
    /// `1 / sqrt(biased variance + ε)` of each channel.
    pub scale: Vec<f32>,
}

/// Gradients of one normalisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// With respect to the input, `[n, channels, x, y, z]`.
    pub input: Vec<f32>,
    /// With respect to the weight γ, one for each channel.
    pub weight: Vec<f32>,
    /// With respect to the bias β, one for each channel.
    pub bias: Vec<f32>,
}

/// `relu(γ · (x − mean) / sqrt(variance + ε) + β)`, channel by channel.
pub fn forward_relu(
    x: &[f32],
    extent: Extent,
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Statistics) {
    let statistics = statistics(x, extent, epsilon);
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(extent.voxels()).zip(x.par_chunks(extent.voxels())).enumerate().for_each(
        |(index, (y, x))| {
            let c = index % extent.channels;
            let slope = weight[c] * statistics.scale[c];
            let offset = bias[c] - statistics.mean[c] * slope;
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x * slope + offset).max(0.0);
            }
        },
    );
    (y, statistics)
}

/// Gradients, from the input, the output (whose zeros tell where the rectifier closed) and the gradient of the output.
pub fn backward_relu(
    x: &[f32],
    y: &[f32],
    dy: &[f32],
    extent: Extent,
    weight: &[f32],
    statistics: &Statistics,
) -> Gradients {
    let voxels = extent.voxels();
    let count = (extent.n * voxels) as f64;
    let sums = |c: usize| {
        let (mut plain, mut by_input) = (0.0, 0.0);
        for n in 0..extent.n {
            let at = (n * extent.channels + c) * voxels..(n * extent.channels + c + 1) * voxels;
            let open = |i: usize| if y[at.start + i] > 0.0 { dy[at.start + i] } else { 0.0 };
            plain += sum(voxels, open);
            by_input +=
                sum(voxels, |i| open(i) * ((x[at.start + i] - statistics.mean[c]) * statistics.scale[c]));
        }
        (plain, by_input)
    };
    let sums: Vec<(f64, f64)> = (0..extent.channels).into_par_iter().map(sums).collect();

    let mut input = vec![0.0; x.len()];
    input.par_chunks_mut(voxels).enumerate().for_each(|(index, dx)| {
        let c = index % extent.channels;
        let at = index * voxels..(index + 1) * voxels;
        let gain = weight[c] * statistics.scale[c];
        let (plain, by_input) = ((sums[c].0 / count) as f32, (sums[c].1 / count) as f32);
        let terms = x[at.clone()].iter().zip(&y[at.clone()]).zip(&dy[at]);
        for (dx, ((&x, &y), &dy)) in dx.iter_mut().zip(terms) {
            let open = if y > 0.0 { dy } else { 0.0 };
            let normal = (x - statistics.mean[c]) * statistics.scale[c];
            *dx = gain * (open - plain - normal * by_input);
        }
    });
    Gradients {
        input,
        weight: sums.iter().map(|s| s.1 as f32).collect(),
        bias: sums.iter().map(|s| s.0 as f32).collect(),
    }
}

fn statistics(x: &[f32], extent: Extent, epsilon: f32) -> Statistics {
    let voxels = extent.voxels();
    let count = (extent.n * voxels) as f64;
    let of_channel = |c: usize| {
        let volume = |n: usize| &x[(n * extent.channels + c) * voxels..][..voxels];
        let mean = (0..extent.n).map(|n| sum(voxels, |i| volume(n)[i])).sum::<f64>() / count;
        let centre = mean as f32;
        let squares = |n: usize| sum(voxels, |i| (volume(n)[i] - centre) * (volume(n)[i] - centre));
        let variance = (0..extent.n).map(squares).sum::<f64>() / count;
        (centre, (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32)
    };
    let (mean, scale) = (0..extent.channels).into_par_iter().map(of_channel).unzip();
    Statistics { mean, scale }
}

/// `Σ value(i)`: sixteen f32 lanes over short runs, runs added in f64. Always in the same order.
fn sum(len: usize, value: impl Fn(usize) -> f32) -> f64 {
    const RUN: usize = 512;
    let run = |start: usize| {
        let end = (start + RUN).min(len);
        let mut lanes = [0.0f32; 16];
        let mut i = start;
        while i + 16 <= end {
            for (l, lane) in lanes.iter_mut().enumerate() {
                *lane += value(i + l);
            }
            i += 16;
        }
        let tail: f32 = (i..end).map(&value).sum();
        f64::from(lanes.iter().sum::<f32>() + tail)
    };
    (0..len).step_by(RUN).map(run).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let extent = Extent { n: 2, channels: 3, space: [3, 2, 4] };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let (x, dy, weight, bias) = (fill(extent.len()), fill(extent.len()), fill(3), fill(3));
        let loss = |x: &[f32], weight: &[f32], bias: &[f32]| -> f64 {
            let (y, _) = forward_relu(x, extent, weight, bias, 1e-5);
            y.iter().zip(&dy).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum()
        };
        let (y, statistics) = forward_relu(&x, extent, &weight, &bias, 1e-5);
        let g = backward_relu(&x, &y, &dy, extent, &weight, &statistics);
        let check = |what: &str, values: &[f32], gradient: &[f32], at: &dyn Fn(&[f32]) -> f64| {
            for i in 0..values.len() {
                let mut moved = values.to_vec();
                let step = 1e-3;
                moved[i] = values[i] + step;
                let up = at(&moved);
                moved[i] = values[i] - step;
                let slope = (up - at(&moved)) / f64::from(2.0 * step);
                assert!(
                    (slope - f64::from(gradient[i])).abs() < 2e-2,
                    "{what}[{i}]: {} against {slope}",
                    gradient[i]
                );
            }
        };
        check("x", &x, &g.input, &|x| loss(x, &weight, &bias));
        check("weight", &weight, &g.weight, &|w| loss(&x, w, &bias));
        check("bias", &bias, &g.bias, &|b| loss(&x, &weight, b));
    }

    #[test]
    fn an_open_rectifier_leaves_mean_and_spread_of_the_affine_map() {
        let extent = Extent { n: 1, channels: 1, space: [10, 10, 10] };
        let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let (y, _) = forward_relu(&x, extent, &[2.0], &[10.0], 0.0);
        let mean = y.iter().sum::<f32>() / 1000.0;
        let spread = (y.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / 1000.0).sqrt();
        assert!((mean - 10.0).abs() < 1e-3 && (spread - 2.0).abs() < 1e-3, "{mean} {spread}");
    }
}
