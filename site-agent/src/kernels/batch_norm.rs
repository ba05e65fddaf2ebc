//! Batch normalisation by the statistics of the current batch, with the rectifier that follows it.
//!
//! The reference never reads running statistics, not even in inference (specification §8), so there are none here.
//! One task does one channel from its statistics to its last voxel: what it read first is still in the cache.

use rayon::prelude::*;

use super::Extent;
use super::isa::{Isa, for_each_isa};

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
    isa: Isa,
    x: &[f32],
    extent: Extent,
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Statistics) {
    let mut y = vec![0.0; x.len()];
    let channels = by_channel(&mut y, extent).into_par_iter().enumerate();
    let normalise = |(c, y)| normalise_channel(isa, &volumes(x, extent, c), y, weight[c], bias[c], epsilon);
    let (mean, scale) = channels.map(normalise).unzip();
    (y, Statistics { mean, scale })
}

for_each_isa! {
    /// Writes a channel's output; returns its mean and scale.
    fn normalise_channel(
        x: &[&[f32]],
        y: Vec<&mut [f32]>,
        weight: f32,
        bias: f32,
        epsilon: f32,
    ) -> (f32, f32) {
        let (mean, scale) = statistics(x, epsilon);
        let slope = weight * scale;
        let offset = bias - mean * slope;
        for (y, x) in y.into_iter().zip(x) {
            for (y, &x) in y.iter_mut().zip(*x) {
                *y = (x * slope + offset).max(0.0);
            }
        }
        (mean, scale)
    }
}

/// Gradients, from the input, the output (whose zeros tell where the rectifier closed) and the gradient of the output.
pub fn backward_relu(
    isa: Isa,
    x: &[f32],
    y: &[f32],
    dy: &[f32],
    extent: Extent,
    weight: &[f32],
    statistics: &Statistics,
) -> Gradients {
    let mut input = vec![0.0; x.len()];
    let channels = by_channel(&mut input, extent).into_par_iter().enumerate();
    let differentiate = |(c, dx)| {
        let of = |values| volumes(values, extent, c);
        let affine = Affine { weight: weight[c], mean: statistics.mean[c], scale: statistics.scale[c] };
        differentiate_channel(isa, &of(x), &of(y), &of(dy), dx, affine)
    };
    let (weight, bias) = channels.map(differentiate).unzip();
    Gradients { input, weight, bias }
}

/// What a channel was mapped by.
#[derive(Clone, Copy)]
struct Affine {
    weight: f32,
    mean: f32,
    scale: f32,
}

for_each_isa! {
    /// Writes the gradient of a channel's input; returns those of its weight and bias.
    fn differentiate_channel(
        x: &[&[f32]],
        y: &[&[f32]],
        dy: &[&[f32]],
        dx: Vec<&mut [f32]>,
        affine: Affine,
    ) -> (f32, f32) {
        let Affine { weight, mean, scale } = affine;
        let count: usize = x.iter().map(|x| x.len()).sum();
        let (mut plain, mut by_input) = (0.0, 0.0);
        for ((x, y), dy) in x.iter().zip(y).zip(dy) {
            let [open, product] = sums([x, y, dy], |[x, y, dy]| {
                let open = if y > 0.0 { dy } else { 0.0 };
                [open, open * ((x - mean) * scale)]
            });
            plain += open;
            by_input += product;
        }
        let gain = weight * scale;
        let (plain_mean, input_mean) = ((plain / count as f64) as f32, (by_input / count as f64) as f32);
        for (((dx, x), y), dy) in dx.into_iter().zip(x).zip(y).zip(dy) {
            for (((dx, &x), &y), &dy) in dx.iter_mut().zip(*x).zip(*y).zip(*dy) {
                let open = if y > 0.0 { dy } else { 0.0 };
                let normal = (x - mean) * scale;
                *dx = gain * (open - plain_mean - normal * input_mean);
            }
        }
        (by_input as f32, plain as f32)
    }
}

/// Mean of a channel and its reciprocal standard deviation.
#[inline(always)]
fn statistics(x: &[&[f32]], epsilon: f32) -> (f32, f32) {
    let count = x.iter().map(|x| x.len()).sum::<usize>() as f64;
    let mean = x.iter().map(|x| sums([x], |[x]| [x])[0]).sum::<f64>() / count;
    let centre = mean as f32;
    let variance = x.iter().map(|x| sums([x], |[x]| [(x - centre) * (x - centre)])[0]).sum::<f64>() / count;
    (centre, (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32)
}

/// The volumes of a channel.
fn volumes(values: &[f32], extent: Extent, channel: usize) -> Vec<&[f32]> {
    values.chunks_exact(extent.voxels()).skip(channel).step_by(extent.channels).collect()
}

/// The volumes of each channel.
fn by_channel(values: &mut [f32], extent: Extent) -> Vec<Vec<&mut [f32]>> {
    let mut channels: Vec<Vec<&mut [f32]>> =
        (0..extent.channels).map(|_| Vec::with_capacity(extent.n)).collect();
    for (index, volume) in values.chunks_exact_mut(extent.voxels()).enumerate() {
        channels[index % extent.channels].push(volume);
    }
    channels
}

/// `Σ term(a[i], b[i], …)` of `S` terms at once: sixteen f32 lanes over short runs, runs added in f64. Always in the same order.
#[inline(always)]
fn sums<const A: usize, const S: usize>(
    values: [&[f32]; A],
    term: impl Fn([f32; A]) -> [f32; S],
) -> [f64; S] {
    const RUN: usize = 512;
    const LANES: usize = 16;
    let len = values[0].len();
    let mut totals = [0.0f64; S];
    for start in (0..len).step_by(RUN) {
        let runs = values.map(|v| &v[start..(start + RUN).min(len)]);
        let mut lanes = [[0.0f32; LANES]; S];
        let blocks = runs[0].len() / LANES;
        for block in 0..blocks {
            let block: [&[f32; LANES]; A] =
                runs.map(|run| run[block * LANES..][..LANES].try_into().expect("a slice of that length"));
            for l in 0..LANES {
                let terms = term(block.map(|v| v[l]));
                for (lanes, term) in lanes.iter_mut().zip(terms) {
                    lanes[l] += term;
                }
            }
        }
        let mut tail = [0.0f32; S];
        for i in blocks * LANES..runs[0].len() {
            for (tail, term) in tail.iter_mut().zip(term(runs.map(|run| run[i]))) {
                *tail += term;
            }
        }
        for (total, (lanes, tail)) in totals.iter_mut().zip(lanes.iter().zip(tail)) {
            *total += f64::from(lanes.iter().sum::<f32>() + tail);
        }
    }
    totals
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
            let (y, _) = forward_relu(Isa::detect(), x, extent, weight, bias, 1e-5);
            y.iter().zip(&dy).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum()
        };
        let (y, statistics) = forward_relu(Isa::detect(), &x, extent, &weight, &bias, 1e-5);
        let g = backward_relu(Isa::detect(), &x, &y, &dy, extent, &weight, &statistics);
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
        let (y, _) = forward_relu(Isa::detect(), &x, extent, &[2.0], &[10.0], 0.0);
        let mean = y.iter().sum::<f32>() / 1000.0;
        let spread = (y.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / 1000.0).sqrt();
        assert!((mean - 10.0).abs() < 1e-3 && (spread - 2.0).abs() < 1e-3, "{mean} {spread}");
    }
}
