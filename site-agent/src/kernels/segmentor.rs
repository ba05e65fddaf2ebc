//! The text-driven segmentor: for each class a generated network of three layers (8 → 8 → 8 → 1) over every voxel.
//!
//! All classes read the same eight features. Forward and backward pass go over short runs of voxels whose hidden layers
//! stay in the nearest cache; the backward pass computes them again, so that no hidden volume is ever stored.

use rayon::prelude::*;

use super::isa::{Isa, for_each_isa};
use super::pack::{Run, by_run};

/// Channels of the voxel features and of the hidden layers.
pub const HIDDEN: usize = 8;
/// Numbers of one generated network: `w1 [8, 8]`, `w2 [8, 8]`, `w3 [8]`, `b1 [8]`, `b2 [8]`, `b3`; weights `[out, in]`.
pub const PARAMETERS: usize = 2 * HIDDEN * HIDDEN + 3 * HIDDEN + 1;

/// Voxels that are computed at once.
const RUN: usize = 64;
/// Voxels of one task: its sums of parameter gradients are added to those of other tasks in order.
const TASK: usize = 4096;
/// Lanes of a sum.
const LANES: usize = 16;

const W2: usize = HIDDEN * HIDDEN;
const W3: usize = 2 * W2;
const B1: usize = W3 + HIDDEN;
const B2: usize = B1 + HIDDEN;
const B3: usize = B2 + HIDDEN;

/// A number for each voxel of a run.
type Line = [f32; RUN];
/// A layer of a run.
type Layer = [Line; HIDDEN];

/// Extent of the head's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadExtent {
    /// Samples.
    pub n: usize,
    /// Classes.
    pub classes: usize,
    /// Voxels of a sample.
    pub voxels: usize,
}

/// Gradients of [`logits`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// With respect to the features, `[n, 8, voxels]`.
    pub features: Vec<f32>,
    /// With respect to the generated numbers, `[n, classes, 153]`.
    pub parameters: Vec<f32>,
}

/// Logits `[n, classes, voxels]` from features `[n, 8, voxels]` and parameters `[n, classes, 153]`.
pub fn logits(isa: Isa, features: &[f32], parameters: &[f32], extent: HeadExtent) -> Vec<f32> {
    let HeadExtent { n, classes, voxels } = extent;
    let mut logits = vec![0.0; n * classes * voxels];
    logits.par_chunks_mut(voxels).enumerate().for_each(|(pair, to)| {
        let features = &features[pair / classes * HIDDEN * voxels..][..HIDDEN * voxels];
        evaluate_class(isa, &parameters[pair * PARAMETERS..][..PARAMETERS], features, to);
    });
    logits
}

for_each_isa! {
    /// The logits of one class in one sample.
    fn evaluate_class(network: &[f32], features: &[f32], logits: &mut [f32]) {
        let voxels = logits.len();
        for (run, to) in logits.chunks_mut(RUN).enumerate() {
            let input = load(features, voxels, run * RUN);
            let second = second_layer(network, &first_layer(network, &input));
            let mut sums = [network[B3]; RUN];
            for (weight, line) in network[W3..B1].iter().zip(&second) {
                add(&mut sums, *weight, line);
            }
            to.copy_from_slice(&sums[..to.len()]);
        }
    }
}

/// Gradients from that of the logits, `dy`. A run of a class whose `dy` is zero, as that of an unannotated class is, costs
/// no more than the look at it.
pub fn gradients(
    isa: Isa,
    features: &[f32],
    parameters: &[f32],
    dy: &[f32],
    extent: HeadExtent,
) -> Gradients {
    let HeadExtent { n, classes, voxels } = extent;
    let mut of_features = vec![0.0; n * HIDDEN * voxels];
    let runs = by_run(&mut of_features, HIDDEN, voxels, TASK).into_par_iter();
    let of_runs = runs.map_init(
        || vec![[0.0f32; LANES]; classes * PARAMETERS],
        |lanes, mut run| {
            lanes.fill([0.0; LANES]);
            let n = run.n;
            let features = &features[n * HIDDEN * voxels..][..HIDDEN * voxels];
            let parameters = &parameters[n * classes * PARAMETERS..][..classes * PARAMETERS];
            let dy = &dy[n * classes * voxels..][..classes * voxels];
            differentiate_run(isa, features, parameters, dy, &mut run, lanes);
            let sums: Vec<f32> = lanes.iter().map(|lanes| lanes.iter().sum::<f32>()).collect();
            (n, sums)
        },
    );
    let of_runs: Vec<(usize, Vec<f32>)> = of_runs.collect();

    let mut of_parameters = vec![0.0; n * classes * PARAMETERS];
    for (n, sums) in of_runs {
        let to = &mut of_parameters[n * classes * PARAMETERS..][..classes * PARAMETERS];
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
    }
    Gradients { features: of_features, parameters: of_parameters }
}

for_each_isa! {
    /// Writes the gradient of some voxels' features and adds those of the networks to `sums`, in lanes, `[classes, 153]`. Features,
    /// networks and `dy` are those of the whole sample.
    fn differentiate_run(
        features: &[f32],
        parameters: &[f32],
        dy: &[f32],
        run: &mut Run<'_>,
        sums: &mut [[f32; LANES]],
    ) {
        let voxels = features.len() / HIDDEN;
        let length = run.lines[0].len();
        for start in (0..length).step_by(RUN) {
            let width = RUN.min(length - start);
            let input = load(features, voxels, run.first + start);
            let mut total: Layer = [[0.0; RUN]; HIDDEN];
            let networks = parameters.chunks_exact(PARAMETERS).zip(sums.chunks_exact_mut(PARAMETERS));
            for ((network, sums), dy) in networks.zip(dy.chunks_exact(voxels)) {
                let mut slope = [0.0; RUN];
                slope[..width].copy_from_slice(&dy[run.first + start..][..width]);
                if slope != [0.0; RUN] {
                    differentiate(network, &input, &slope, &mut total, sums);
                }
            }
            for (line, to) in total.iter().zip(&mut run.lines) {
                to[start..start + width].copy_from_slice(&line[..width]);
            }
        }
    }
}

/// Adds one class's share of the gradients of a run to `total` (of the features) and `sums` (of its parameters).
#[inline(always)]
fn differentiate(network: &[f32], input: &Layer, slope: &Line, total: &mut Layer, sums: &mut [[f32; LANES]]) {
    let first = first_layer(network, input);
    let second = second_layer(network, &first);
    add_lanes(&mut sums[B3], slope);
    let mut second_slope: Layer = [[0.0; RUN]; HIDDEN];
    for j in 0..HIDDEN {
        add_products(&mut sums[W3 + j], slope, &second[j]);
        add(&mut second_slope[j], network[W3 + j], slope);
        close(&mut second_slope[j], &second[j]);
        add_lanes(&mut sums[B2 + j], &second_slope[j]);
    }
    let mut first_slope = propagate(&network[W2..W3], &first, &second_slope, &mut sums[W2..W3]);
    for i in 0..HIDDEN {
        close(&mut first_slope[i], &first[i]);
        add_lanes(&mut sums[B1 + i], &first_slope[i]);
    }
    let input_slope = propagate(&network[..W2], input, &first_slope, &mut sums[..W2]);
    for (total, line) in total.iter_mut().zip(&input_slope) {
        add(total, 1.0, line);
    }
}

/// Through a linear layer `[out, in]`: adds its weights' gradient to `sums` and returns the gradient of its input.
#[inline(always)]
fn propagate(weights: &[f32], input: &Layer, slope: &Layer, sums: &mut [[f32; LANES]]) -> Layer {
    let mut back: Layer = [[0.0; RUN]; HIDDEN];
    for o in 0..HIDDEN {
        for i in 0..HIDDEN {
            add(&mut back[i], weights[o * HIDDEN + i], &slope[o]);
            add_products(&mut sums[o * HIDDEN + i], &slope[o], &input[i]);
        }
    }
    back
}

#[inline(always)]
fn first_layer(network: &[f32], input: &Layer) -> Layer {
    layer(&network[..W2], &network[B1..B2], input)
}

#[inline(always)]
fn second_layer(network: &[f32], first: &Layer) -> Layer {
    layer(&network[W2..W3], &network[B2..B3], first)
}

/// `relu(weights · input + bias)`.
#[inline(always)]
fn layer(weights: &[f32], bias: &[f32], input: &Layer) -> Layer {
    let mut output: Layer = [[0.0; RUN]; HIDDEN];
    for (o, output) in output.iter_mut().enumerate() {
        *output = [bias[o]; RUN];
        for (i, input) in input.iter().enumerate() {
            add(output, weights[o * HIDDEN + i], input);
        }
        // Not `max`, which takes NaN for 0: what is no number must show in the logits. It is one instruction either way.
        output.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
    }
    output
}

/// The features of the run at `start`; voxels past the last are zero.
#[inline(always)]
fn load(features: &[f32], voxels: usize, start: usize) -> Layer {
    let width = RUN.min(voxels - start);
    let mut layer: Layer = [[0.0; RUN]; HIDDEN];
    for (line, from) in layer.iter_mut().zip(features.chunks_exact(voxels)) {
        line[..width].copy_from_slice(&from[start..start + width]);
    }
    layer
}

#[inline(always)]
fn add(to: &mut Line, factor: f32, line: &Line) {
    for (to, value) in to.iter_mut().zip(line) {
        *to += factor * value;
    }
}

#[inline(always)]
fn close(slope: &mut Line, output: &Line) {
    for (slope, &output) in slope.iter_mut().zip(output) {
        *slope = if output > 0.0 { *slope } else { 0.0 };
    }
}

#[inline(always)]
fn add_lanes(to: &mut [f32; LANES], line: &Line) {
    add_products(to, line, &[1.0; RUN]);
}

/// In a local array: the compiler keeps it in a register.
#[inline(always)]
fn add_products(to: &mut [f32; LANES], a: &Line, b: &Line) {
    let mut lanes = *to;
    for start in (0..RUN).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += a[start + l] * b[start + l];
        }
    }
    *to = lanes;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// The definition, one voxel at a time, in f64.
    fn logit(network: &[f64], input: &[f64]) -> f64 {
        let layer = |weights: &[f64], bias: &[f64], input: &[f64]| -> Vec<f64> {
            let row =
                |o: usize| weights[o * HIDDEN..][..HIDDEN].iter().zip(input).map(|(w, x)| w * x).sum::<f64>();
            (0..HIDDEN).map(|o| (row(o) + bias[o]).max(0.0)).collect()
        };
        let first = layer(&network[..W2], &network[B1..B2], input);
        let second = layer(&network[W2..W3], &network[B2..B3], &first);
        network[W3..B1].iter().zip(second).map(|(w, x)| w * x).sum::<f64>() + network[B3]
    }

    fn loss(features: &[f64], parameters: &[f64], dy: &[f32], extent: HeadExtent) -> f64 {
        let HeadExtent { n, classes, voxels } = extent;
        let mut loss = 0.0;
        for (index, &slope) in dy.iter().enumerate() {
            let (pair, voxel) = (index / voxels, index % voxels);
            let input: Vec<f64> =
                (0..HIDDEN).map(|c| features[(pair / classes * HIDDEN + c) * voxels + voxel]).collect();
            loss += f64::from(slope) * logit(&parameters[pair * PARAMETERS..][..PARAMETERS], &input);
        }
        assert_eq!(dy.len(), n * classes * voxels);
        loss
    }

    #[test]
    fn every_instruction_set_computes_the_definition_and_its_gradients() {
        for (seed, voxels) in [(1, 5), (2, 64), (3, 203)] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let extent = HeadExtent { n: 2, classes: 3, voxels };
            let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (features, parameters) = (fill(2 * HIDDEN * voxels), fill(6 * PARAMETERS));
            let mut dy = fill(6 * voxels);
            dy[voxels..2 * voxels].fill(0.0);
            let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let (wide_features, wide_parameters) = (wide(&features), wide(&parameters));

            for isa in Isa::available() {
                let y = logits(isa, &features, &parameters, extent);
                let by_logits: f64 = y.iter().zip(&dy).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum();
                let expected = loss(&wide_features, &wide_parameters, &dy, extent);
                assert!((by_logits - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{isa:?}");

                let g = gradients(isa, &features, &parameters, &dy, extent);
                assert!(g.parameters[PARAMETERS..2 * PARAMETERS].iter().all(|&g| g == 0.0));
                let check = |values: &[f64], gradient: &[f32], at: &dyn Fn(&[f64]) -> f64| {
                    for i in (0..values.len()).step_by(7) {
                        let mut moved = values.to_vec();
                        moved[i] += 1e-5;
                        let up = at(&moved);
                        moved[i] -= 2e-5;
                        let slope = (up - at(&moved)) / 2e-5;
                        assert!(
                            (slope - f64::from(gradient[i])).abs() < 1e-3 * (1.0 + slope.abs()),
                            "{i}, {isa:?}"
                        );
                    }
                };
                check(&wide_features, &g.features, &|f| loss(f, &wide_parameters, &dy, extent));
                check(&wide_parameters, &g.parameters, &|p| loss(&wide_features, p, &dy, extent));
            }
        }
    }

    #[test]
    fn a_feature_that_is_no_number_gives_logits_that_are_none() {
        let extent = HeadExtent { n: 1, classes: 2, voxels: 3 };
        let (mut features, parameters) = (vec![1.0; 3 * HIDDEN], vec![0.5; 2 * PARAMETERS]);
        features[1] = f32::NAN;
        for isa in Isa::available() {
            let logits = logits(isa, &features, &parameters, extent);
            let is_nan: Vec<bool> = logits.into_iter().map(f32::is_nan).collect();
            assert_eq!(is_nan, [false, true, false, false, true, false], "{isa:?}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let extent = HeadExtent { n: 1, classes: 2, voxels: 10_000 };
        let wave = |i: usize| ((i * 37) % 101) as f32 / 101.0 - 0.5;
        let values = |len: usize| (0..len).map(wave).collect::<Vec<f32>>();
        let (features, parameters, dy) = (values(80_000), values(2 * PARAMETERS), values(20_000));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| gradients(Isa::detect(), &features, &parameters, &dy, extent))
        };
        assert_eq!(run(1), run(3));
    }
}
