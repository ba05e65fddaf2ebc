//! Normalisation by the statistics at hand, with the rectifier that follows it: batch, group and instance normalisation in
//! one.
//!
//! What is normalised together is a set of (sample, channel) volumes: a channel of all samples, or some channels of one
//! sample. The reference never reads running statistics, not even in inference (specification §8), so there are none here.
//! One task does one set from its statistics to its last voxel: what it read first is still in the cache.
//!
//! The output is not needed for the gradients: [`again`] makes it from the input, to the bit, when somebody asks.

use rayon::prelude::*;

use super::Extent;
use super::isa::{Isa, for_each_isa};

/// What is normalised together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// Each channel, over all samples.
    Channel,
    /// This many groups of channels in each sample.
    Groups(usize),
}

/// A normalisation and its rectifier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// What is normalised together.
    pub together: Together,
    /// ε, added to the variance.
    pub epsilon: f32,
    /// Slope of the rectifier below zero, from 0 (it cuts off) to 1 (there is none).
    pub slope: f32,
}

/// Mean and reciprocal standard deviation of each set.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Mean of each set.
    pub mean: Vec<f32>,
    /// `1 / sqrt(biased variance + ε)` of each set.
    pub scale: Vec<f32>,
}

impl Together {
    /// How many sets there are.
    fn sets(self, extent: Extent) -> usize {
        match self {
            Self::Channel => extent.channels,
            Self::Groups(groups) => extent.n * groups,
        }
    }

    /// The set of a volume; `volume` counts `[n, channel]`.
    fn set_of(self, volume: usize, extent: Extent) -> usize {
        let (n, channel) = (volume / extent.channels, volume % extent.channels);
        match self {
            Self::Channel => channel,
            Self::Groups(groups) => n * groups + channel / (extent.channels / groups),
        }
    }

    /// Hands each volume to its set, in order.
    fn split<T>(self, volumes: impl Iterator<Item = T>, extent: Extent) -> Vec<Vec<T>> {
        let mut sets: Vec<Vec<T>> = (0..self.sets(extent)).map(|_| Vec::new()).collect();
        for (index, volume) in volumes.enumerate() {
            sets[self.set_of(index, extent)].push(volume);
        }
        sets
    }
}

/// The slope and offset of one channel after normalisation.
#[derive(Clone, Copy)]
struct Affine {
    weight: f32,
    bias: f32,
}

/// What a set is normalised by, and the slope of its rectifier.
#[derive(Clone, Copy)]
struct Set {
    mean: f32,
    scale: f32,
    slope: f32,
}

impl Statistics {
    fn set(&self, index: usize, slope: f32) -> Set {
        Set { mean: self.mean[index], scale: self.scale[index], slope }
    }
}

/// γ and β of each volume, by set.
fn affines(weight: &[f32], bias: &[f32], extent: Extent, together: Together) -> Vec<Vec<Affine>> {
    let of =
        |volume| Affine { weight: weight[volume % extent.channels], bias: bias[volume % extent.channels] };
    together.split((0..extent.n * extent.channels).map(of), extent)
}

/// `rectify(γ · (x − mean) / sqrt(variance + ε) + β)`.
pub fn forward(
    isa: Isa,
    x: &[f32],
    extent: Extent,
    Normalisation { together, epsilon, slope }: Normalisation,
    [weight, bias]: [&[f32]; 2],
) -> (Vec<f32>, Statistics) {
    let mut y = vec![0.0; x.len()];
    let affines = affines(weight, bias, extent, together);
    let sets = volumes_of(x, extent, together).into_par_iter().zip(volumes_of_mut(&mut y, extent, together));
    let normalised = sets.zip(affines).map(|((x, y), affines)| {
        let (mean, scale) = statistics(isa, &x, epsilon);
        normalise(isa, &x, y, &affines, Set { mean, scale, slope });
        (mean, scale)
    });
    let (mean, scale) = normalised.unzip();
    (y, Statistics { mean, scale })
}

/// The output of [`forward`] once more, the same bits, from the input and the statistics.
pub fn again(
    isa: Isa,
    x: &[f32],
    extent: Extent,
    Normalisation { together, slope, .. }: Normalisation,
    [weight, bias]: [&[f32]; 2],
    statistics: &Statistics,
) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let affines = affines(weight, bias, extent, together);
    let sets = volumes_of(x, extent, together).into_par_iter().zip(volumes_of_mut(&mut y, extent, together));
    sets.zip(affines).enumerate().for_each(|(set, ((x, y), affines))| {
        normalise(isa, &x, y, &affines, statistics.set(set, slope));
    });
    y
}

/// Turns the gradient of the output, `[n, channels, x, y, z]`, into that of the input, where it lies; returns those of the weight γ
/// and the bias β, one number for each channel.
pub fn backward(
    isa: Isa,
    x: &[f32],
    gradient: &mut [f32],
    extent: Extent,
    Normalisation { together, slope, .. }: Normalisation,
    [weight, bias]: [&[f32]; 2],
    statistics: &Statistics,
) -> [Vec<f32>; 2] {
    let affines = affines(weight, bias, extent, together);
    let sets = volumes_of(x, extent, together)
        .into_par_iter()
        .zip(volumes_of_mut(gradient, extent, together))
        .zip(affines);
    let of_volumes = sets.enumerate().map(|(set, ((x, gradient), affines))| {
        differentiate(isa, &x, gradient, &affines, statistics.set(set, slope))
    });
    let of_volumes: Vec<Vec<[f64; 2]>> = of_volumes.collect();
    let mut sums = vec![[0.0; 2]; extent.channels];
    let mut rest: Vec<_> = of_volumes.into_iter().map(Vec::into_iter).collect();
    for volume in 0..extent.n * extent.channels {
        let of_volume = rest[together.set_of(volume, extent)].next().unwrap_or_default();
        for (sum, term) in sums[volume % extent.channels].iter_mut().zip(of_volume) {
            *sum += term;
        }
    }
    [1, 0].map(|i| sums.iter().map(|sums| sums[i] as f32).collect())
}

for_each_isa! {
    /// Mean of a set and its reciprocal standard deviation.
    fn statistics(x: &[&[f32]], epsilon: f32) -> (f32, f32) {
        let count = x.iter().map(|x| x.len()).sum::<usize>() as f64;
        let mean = x.iter().map(|x| sums([x], |[x]| [x])[0]).sum::<f64>() / count;
        let centre = mean as f32;
        let variance = x.iter().map(|x| sums([x], |[x]| [(x - centre) * (x - centre)])[0]).sum::<f64>() / count;
        (centre, (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32)
    }
}

for_each_isa! {
    /// Writes a set's output.
    fn normalise(
        x: &[&[f32]],
        y: Vec<&mut [f32]>,
        affines: &[Affine],
        set: Set,
    ) {
        let Set { mean, scale, slope } = set;
        for ((y, x), affine) in y.into_iter().zip(x).zip(affines) {
            let factor = affine.weight * scale;
            let offset = affine.bias - mean * factor;
            for (y, &x) in y.iter_mut().zip(*x) {
                let normal = x * factor + offset;
                *y = normal.max(normal * slope);
            }
        }
    }
}

for_each_isa! {
    /// Writes the gradient of a set's input over that of its output; returns, for each volume, the sums of what the rectifier
    /// let through, plain and times the normalised input.
    fn differentiate(
        x: &[&[f32]],
        gradient: Vec<&mut [f32]>,
        affines: &[Affine],
        set: Set,
    ) -> Vec<[f64; 2]> {
        let Set { mean, scale, slope } = set;
        let count = x.iter().map(|x| x.len()).sum::<usize>() as f64;
        let mut of_volumes = Vec::with_capacity(x.len());
        let (mut plain, mut by_input) = (0.0, 0.0);
        for ((x, gradient), affine) in x.iter().zip(&gradient).zip(affines) {
            let factor = affine.weight * scale;
            let offset = affine.bias - mean * factor;
            let of_volume = sums([x, gradient], |[x, dy]| {
                let open = if x * factor + offset > 0.0 { dy } else { dy * slope };
                [open, open * ((x - mean) * scale)]
            });
            plain += f64::from(affine.weight) * of_volume[0];
            by_input += f64::from(affine.weight) * of_volume[1];
            of_volumes.push(of_volume);
        }
        let (plain_mean, input_mean) = ((plain / count) as f32, (by_input / count) as f32);
        for ((gradient, x), affine) in gradient.into_iter().zip(x).zip(affines) {
            let factor = affine.weight * scale;
            let offset = affine.bias - mean * factor;
            for (gradient, &x) in gradient.iter_mut().zip(*x) {
                let open = if x * factor + offset > 0.0 { *gradient } else { *gradient * slope };
                let normal = (x - mean) * scale;
                *gradient = scale * (affine.weight * open - plain_mean - normal * input_mean);
            }
        }
        of_volumes
    }
}

fn volumes_of(values: &[f32], extent: Extent, together: Together) -> Vec<Vec<&[f32]>> {
    together.split(values.chunks_exact(extent.voxels()), extent)
}

fn volumes_of_mut(values: &mut [f32], extent: Extent, together: Together) -> Vec<Vec<&mut [f32]>> {
    together.split(values.chunks_exact_mut(extent.voxels()), extent)
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

    const EXTENT: Extent = Extent { n: 2, channels: 4, space: [3, 2, 4] };

    #[test]
    fn gradients_agree_with_finite_differences_on_every_instruction_set() {
        for (how, isa) in [(Together::Channel, 0.0), (Together::Groups(2), 0.0), (Together::Groups(4), 0.2)]
            .into_iter()
            .flat_map(|how| Isa::available().into_iter().map(move |isa| (how, isa)))
        {
            let how = Normalisation { together: how.0, epsilon: 1e-5, slope: how.1 };
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (x, dy, weight, bias) = (fill(EXTENT.len()), fill(EXTENT.len()), fill(4), fill(4));
            let loss = |x: &[f32], weight: &[f32], bias: &[f32]| -> f64 {
                let (y, _) = forward(isa, x, EXTENT, how, [weight, bias]);
                y.iter().zip(&dy).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum()
            };
            let (_, statistics) = forward(isa, &x, EXTENT, how, [&weight, &bias]);
            let mut of_x = dy.clone();
            let [of_weight, of_bias] =
                backward(isa, &x, &mut of_x, EXTENT, how, [&weight, &bias], &statistics);
            let check = |what: &str, values: &[f32], gradient: &[f32], at: &dyn Fn(&[f32]) -> f64| {
                let (mut smooth, step, here) = (0, 1e-3, at(values));
                for i in 0..values.len() {
                    let mut moved = values.to_vec();
                    moved[i] = values[i] + step;
                    let up = (at(&moved) - here) / f64::from(step);
                    moved[i] = values[i] - step;
                    let down = (here - at(&moved)) / f64::from(step);
                    // Between the two a rectifier opened or closed: there is no slope to compare with.
                    if (up - down).abs() > 2e-2 {
                        continue;
                    }
                    smooth += 1;
                    let slope = (up + down) / 2.0;
                    assert!(
                        (slope - f64::from(gradient[i])).abs() < 2e-2,
                        "{what}[{i}], {how:?}, {isa:?}: {} against {slope}",
                        gradient[i]
                    );
                }
                assert!(2 * smooth > values.len(), "{what}: {smooth} of {} compared", values.len());
            };
            check("x", &x, &of_x, &|x| loss(x, &weight, &bias));
            check("weight", &weight, &of_weight, &|w| loss(&x, w, &bias));
            check("bias", &bias, &of_bias, &|b| loss(&x, &weight, b));
        }
    }

    /// Sums are made run by run: here of five runs and a rest. There is no kink that rounding could change.
    #[test]
    fn volumes_of_many_runs_are_normalised_and_differentiated_as_defined() {
        let extent = Extent { n: 2, channels: 3, space: [13, 14, 15] };
        let how = Normalisation { together: Together::Groups(3), epsilon: 1e-5, slope: 1.0 };
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut fill = |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let (x, dy, weight, bias) = (fill(extent.len()), fill(extent.len()), fill(3), fill(3));

        let (mut y, mut of_x, mut of_weight, mut of_bias) =
            (vec![], vec![], vec![0.0f64; 3], vec![0.0f64; 3]);
        let volumes = x.chunks(extent.voxels()).zip(dy.chunks(extent.voxels()));
        for (volume, (x, dy)) in volumes.enumerate() {
            let (channel, count) = (volume % 3, x.len() as f64);
            let (w, b) = (f64::from(weight[channel]), f64::from(bias[channel]));
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            let normal = |x: f32| (f64::from(x) - mean) * scale;
            let plain: f64 = dy.iter().map(|&dy| f64::from(dy)).sum();
            let by_input: f64 = x.iter().zip(dy).map(|(&x, &dy)| f64::from(dy) * normal(x)).sum();
            y.extend(x.iter().map(|&x| w * normal(x) + b));
            let gradient = |(&x, &dy): (&f32, &f32)| {
                scale * w * (f64::from(dy) - plain / count - normal(x) * by_input / count)
            };
            of_x.extend(x.iter().zip(dy).map(gradient));
            of_weight[channel] += by_input;
            of_bias[channel] += plain;
        }
        for isa in Isa::available() {
            let assert_close = |what: &str, got: &[f32], expected: &[f64]| {
                assert_eq!(got.len(), expected.len(), "{what}");
                for (&got, &expected) in got.iter().zip(expected) {
                    let apart = (f64::from(got) - expected).abs();
                    assert!(apart <= 1e-4 * (1.0 + expected.abs()), "{what}, {isa:?}: {got}, {expected}");
                }
            };
            let (got, statistics) = forward(isa, &x, extent, how, [&weight, &bias]);
            assert_close("y", &got, &y);
            let mut got = dy.clone();
            let parameters = backward(isa, &x, &mut got, extent, how, [&weight, &bias], &statistics);
            assert_close("x", &got, &of_x);
            assert_close("weight", &parameters[0], &of_weight);
            assert_close("bias", &parameters[1], &of_bias);
        }
    }

    #[test]
    fn the_output_made_again_is_the_same_to_the_bit() {
        let x: Vec<f32> = (0..EXTENT.len()).map(|i| ((i * 37) % 41) as f32 / 7.0 - 2.0).collect();
        let (weight, bias) = ([0.5, -1.0, 2.0, 1.0], [0.1, 0.2, -0.3, 0.0]);
        for together in [Together::Channel, Together::Groups(2)] {
            let how = Normalisation { together, epsilon: 1e-5, slope: 0.01 };
            for isa in Isa::available() {
                let (y, statistics) = forward(isa, &x, EXTENT, how, [&weight, &bias]);
                assert_eq!(again(isa, &x, EXTENT, how, [&weight, &bias], &statistics), y);
            }
        }
    }

    #[test]
    fn an_open_rectifier_leaves_mean_and_spread_of_the_affine_map() {
        let extent = Extent { n: 1, channels: 1, space: [10, 10, 10] };
        let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let how = Normalisation { together: Together::Channel, epsilon: 0.0, slope: 0.0 };
        let (y, _) = forward(Isa::detect(), &x, extent, how, [&[2.0], &[10.0]]);
        let mean = y.iter().sum::<f32>() / 1000.0;
        let spread = (y.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / 1000.0).sqrt();
        assert!((mean - 10.0).abs() < 1e-3 && (spread - 2.0).abs() < 1e-3, "{mean} {spread}");
    }
}
