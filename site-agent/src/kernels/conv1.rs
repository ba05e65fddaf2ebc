//! 1×1×1 convolution, the same linear map at every voxel, and its gradients.
//!
//! Few channels and many voxels: channels first, as everything outside of this folder, is also the fast layout here. A task
//! takes a run of voxels that stays in the nearest cache while all pairs of channels pass over it.

use rayon::prelude::*;

use super::Extent;
use super::isa::{Isa, for_each_isa};
use super::pack::{Channels, Run, by_run};

/// Voxels of a task.
const RUN: usize = 2048;

/// `y[n, o] = bias[o] + Σ_i weights[o, i] · x[n, i]`; weights `[outs, ins]`; returns `[n, outs, x, y, z]`.
///
/// The inputs may lie in several arrays, first the channels of the first; `extent` counts all of them.
pub fn forward(isa: Isa, x: &[&[f32]], extent: Extent, weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let (ins, outs) = (extent.channels, bias.len());
    map(isa, x, extent, outs, |o, i| weights[o * ins + i], |o| bias[o])
}

/// Gradient with respect to the inputs, from `dy` with `extent.channels` = outputs of the convolution; one array for each of
/// `ins`, which are their channels.
pub fn input_gradient<const N: usize>(
    isa: Isa,
    dy: &[f32],
    extent: Extent,
    weights: &[f32],
    ins: [usize; N],
) -> [Vec<f32>; N] {
    let all: usize = ins.iter().sum();
    let mut next = 0;
    ins.map(|ins| {
        let first = next;
        next += ins;
        map(isa, &[dy], extent, ins, |i, o| weights[o * all + first + i], |_| 0.0)
    })
}

/// Gradient with respect to the weights, `[outs, ins]`. `x` and `extent` are as in [`forward`]; `dy` has `outs` channels.
pub fn weight_gradient(isa: Isa, x: &[&[f32]], extent: Extent, dy: &[f32], outs: usize) -> Vec<f32> {
    let (x, ins, voxels) = (Channels::of(x, extent), extent.channels, extent.voxels());
    let runs: Vec<(usize, usize)> =
        (0..extent.n).flat_map(|n| (0..voxels).step_by(RUN).map(move |first| (n, first))).collect();
    let of_runs = runs.into_par_iter().map(|(n, first)| {
        let length = RUN.min(voxels - first);
        let mut sums = vec![0.0f64; outs * ins];
        for o in 0..outs {
            let dy = &dy[(n * outs + o) * voxels + first..][..length];
            for i in 0..ins {
                sums[o * ins + i] = dot(isa, dy, x.voxels(i, n, first..first + length));
            }
        }
        sums
    });
    let mut gradient = vec![0.0f64; outs * ins];
    for sums in of_runs.collect::<Vec<_>>() {
        gradient.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    gradient.into_iter().map(|sum| sum as f32).collect()
}

/// `to[n, a] = offset(a) + Σ_b factor(a, b) · from[n, b]`.
fn map(
    isa: Isa,
    from: &[&[f32]],
    extent: Extent,
    channels: usize,
    factor: impl Fn(usize, usize) -> f32 + Sync,
    offset: impl Fn(usize) -> f32 + Sync,
) -> Vec<f32> {
    let (from, voxels) = (Channels::of(from, extent), extent.voxels());
    let mut to = vec![0.0; extent.n * channels * voxels];
    by_run(&mut to, channels, voxels, RUN).into_par_iter().for_each(|Run { n, first, lines }| {
        for (a, to) in lines.into_iter().enumerate() {
            to.fill(offset(a));
            for b in 0..extent.channels {
                let from = from.voxels(b, n, first..first + to.len());
                add_scaled(isa, to, factor(a, b), from);
            }
        }
    });
    to
}

for_each_isa! {
    fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += factor * from;
        }
    }
}

for_each_isa! {
    /// `Σ a·b` in sixteen lanes, which are added in f64.
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0f32; LANES];
        let blocks = a.len() / LANES;
        for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        let tail: f32 = a[blocks * LANES..].iter().zip(&b[blocks * LANES..]).map(|(a, b)| a * b).sum();
        lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn every_instruction_set_computes_the_definition_and_its_gradients() {
        for (ins, outs, space) in
            [(1, 1, [1, 1, 1]), (16, 8, [13, 14, 15]), (3, 5, [2, 3, 7]), (5, 17, [4, 4, 4])]
        {
            let extent = Extent { n: 2, channels: ins, space };
            let (output, voxels) = (extent.with_channels(outs), extent.voxels());
            let mut rng = ChaCha8Rng::seed_from_u64(ins as u64);
            let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (x, dy, weights, bias) =
                (fill(extent.len()), fill(output.len()), fill(outs * ins), fill(outs));
            let mut y: Vec<f64> =
                (0..output.len()).map(|index| f64::from(bias[index / voxels % outs])).collect();
            let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; weights.len()]);
            for n in 0..2 {
                for (o, i) in (0..outs).flat_map(|o| (0..ins).map(move |i| (o, i))) {
                    for v in 0..voxels {
                        let (input, out) = ((n * ins + i) * voxels + v, (n * outs + o) * voxels + v);
                        y[out] += f64::from(weights[o * ins + i]) * f64::from(x[input]);
                        dx[input] += f64::from(weights[o * ins + i]) * f64::from(dy[out]);
                        dw[o * ins + i] += f64::from(dy[out]) * f64::from(x[input]);
                    }
                }
            }
            for isa in Isa::available() {
                let close = |what: &str, got: Vec<f32>, expected: &[f64]| {
                    assert_eq!(got.len(), expected.len(), "{what}");
                    for (got, &expected) in got.into_iter().zip(expected) {
                        let tolerance = 1e-4 * (1.0 + expected.abs());
                        assert!(
                            (f64::from(got) - expected).abs() < tolerance,
                            "{what}, {isa:?}: {got}, {expected}"
                        );
                    }
                };
                close("y", forward(isa, &[&x], extent, &weights, &bias), &y);
                let [got] = input_gradient(isa, &dy, output, &weights, [ins]);
                close("dx", got, &dx);
                close("dw", weight_gradient(isa, &[&x], extent, &dy, outs), &dw);
            }
        }
    }

    #[test]
    fn inputs_in_two_arrays_are_one_input_to_the_bit() {
        let isa = Isa::detect();
        for (first, second) in [(3, 5), (8, 16), (1, 24)] {
            let mut rng = ChaCha8Rng::seed_from_u64(first as u64);
            let extent = Extent { n: 2, channels: first + second, space: [14, 13, 15] };
            let (output, voxels) = (extent.with_channels(9), extent.voxels());
            let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (a, b) = (fill(extent.with_channels(first).len()), fill(extent.with_channels(second).len()));
            let (weights, bias, dy) = (fill(9 * extent.channels), fill(9), fill(output.len()));
            // Volume by volume, the first channels and the rest.
            let join = |a: &[f32], b: &[f32]| -> Vec<f32> {
                let volumes = a.chunks_exact(first * voxels).zip(b.chunks_exact(second * voxels));
                volumes.flat_map(|(a, b)| [a, b].concat()).collect()
            };
            let x = join(&a, &b);
            let (one, two) = ([x.as_slice()], [a.as_slice(), b.as_slice()]);

            let y = |x: &[&[f32]]| forward(isa, x, extent, &weights, &bias);
            assert_eq!(y(&one), y(&two));
            let dw = |x: &[&[f32]]| weight_gradient(isa, x, extent, &dy, 9);
            assert_eq!(dw(&one), dw(&two));
            let [dx] = input_gradient(isa, &dy, output, &weights, [first + second]);
            let [da, db] = input_gradient(isa, &dy, output, &weights, [first, second]);
            assert_eq!(join(&da, &db), dx);
        }
    }
}
