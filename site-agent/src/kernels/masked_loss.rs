//! Binary cross-entropy and Dice over the annotated (sample, class) pairs, and their gradient in closed form
//! (specification §10; smoothing in the denominator of Dice only). Pairs that are not annotated are never read.

use rayon::prelude::*;

use super::isa::{Isa, for_each_isa};
use super::transcendental::{exp_of_negative, log_one_plus};

/// The means over annotated pairs, and what their gradients need.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Mean cross-entropy of a voxel.
    pub bce: f32,
    /// Mean Dice loss of a term.
    pub dice: f32,
    /// `Σ p·y` and `Σ p + Σ y + 1` of each Dice term, pair after pair; nothing for pairs that are not annotated.
    sums: Vec<(f32, f32)>,
}

/// How logits are cut: `annotated` has one entry for each pair, each pair consists of `terms` Dice terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs<'a> {
    /// Which pairs count.
    pub annotated: &'a [bool],
    /// Dice terms of a pair.
    pub terms: usize,
}

impl Pairs<'_> {
    fn counted(self) -> usize {
        self.annotated.iter().filter(|&&counts| counts).count()
    }

    /// `(start, pair)` of each annotated term, in order, terms being `length` long.
    fn starts(self, length: usize) -> Vec<usize> {
        let terms = (0..self.annotated.len() * self.terms).filter(|term| self.annotated[term / self.terms]);
        terms.map(|term| term * length).collect()
    }

    fn length(self, values: &[f32]) -> usize {
        values.len() / (self.annotated.len() * self.terms).max(1)
    }
}

/// The loss of logits `x` against a target `y` of 0 and 1; zero when nothing is annotated.
pub fn loss(isa: Isa, x: &[f32], y: &[f32], pairs: Pairs<'_>) -> Loss {
    let length = pairs.length(x);
    let terms = pairs.starts(length).into_par_iter();
    let sums = terms.map(|start| term_sums(isa, &x[start..][..length], &y[start..][..length]));
    let sums: Vec<Sums> = sums.collect();
    let (mut bce, mut dice) = (0.0f64, 0.0f64);
    for term in &sums {
        bce += term.cross_entropy;
        dice += 1.0 - 2.0 * term.overlap / term.size();
    }
    let terms = sums.len().max(1) as f64;
    Loss {
        bce: (bce / (terms * length.max(1) as f64)) as f32,
        dice: (dice / terms) as f32,
        sums: sums.iter().map(|term| (term.overlap as f32, term.size() as f32)).collect(),
    }
}

/// Turns the logits `x` into the gradient with respect to them of `bce_slope · bce + dice_slope · dice`, where they lie; zero for
/// pairs that are not annotated.
pub fn gradient(
    isa: Isa,
    x: &mut [f32],
    y: &[f32],
    pairs: Pairs<'_>,
    loss: &Loss,
    bce_slope: f32,
    dice_slope: f32,
) {
    let length = pairs.length(x);
    let terms = (pairs.counted() * pairs.terms).max(1) as f32;
    let is_annotated = |term: &(usize, &mut [f32])| pairs.annotated[term.0 / pairs.terms];
    let (annotated, rest): (Vec<_>, Vec<_>) = x.chunks_mut(length.max(1)).enumerate().partition(is_annotated);
    rest.into_par_iter().for_each(|(_, x)| x.fill(0.0));
    annotated.into_par_iter().zip(&loss.sums).for_each(|((term, x), &(overlap, size))| {
        let slopes = Slopes {
            bce: bce_slope / (terms * length as f32),
            // d dice/dp = 2 overlap/size² − 2 y/size.
            shrink: dice_slope / terms * 2.0 * overlap / (size * size),
            reward: dice_slope / terms * 2.0 / size,
        };
        term_gradient(isa, x, &y[term * length..][..length], slopes);
    });
}

/// Sums over one Dice term.
struct Sums {
    cross_entropy: f64,
    overlap: f64,
    /// `Σ p + Σ y`.
    both: f64,
}

impl Sums {
    fn size(&self) -> f64 {
        self.both + 1.0
    }
}

const LANES: usize = 16;
/// Voxels whose sums are kept in f32.
const RUN: usize = 256;

for_each_isa! {
    fn term_sums(x: &[f32], y: &[f32]) -> Sums {
        let mut sums = Sums { cross_entropy: 0.0, overlap: 0.0, both: 0.0 };
        for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
            let mut lanes = [[0.0f32; LANES]; 3];
            for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
                // Past the last voxel: a logit so low that nothing is added.
                let (mut logits, mut targets) = ([-1e3f32; LANES], [0.0; LANES]);
                logits[..x.len()].copy_from_slice(x);
                targets[..y.len()].copy_from_slice(y);
                for l in 0..LANES {
                    let (x, y) = (logits[l], targets[l]);
                    let e = exp_of_negative(-x.abs());
                    let p = probability(x, e);
                    lanes[0][l] += x.max(0.0) - x * y + log_one_plus(e);
                    lanes[1][l] += p * y;
                    lanes[2][l] += p + y;
                }
            }
            let [cross_entropy, overlap, both] = lanes.map(|lanes| f64::from(lanes.iter().sum::<f32>()));
            sums.cross_entropy += cross_entropy;
            sums.overlap += overlap;
            sums.both += both;
        }
        sums
    }
}

/// Factors of the gradient of one term.
#[derive(Clone, Copy)]
struct Slopes {
    bce: f32,
    shrink: f32,
    reward: f32,
}

for_each_isa! {
    fn term_gradient(x: &mut [f32], y: &[f32], slopes: Slopes) {
        for (x, &y) in x.iter_mut().zip(y) {
            let p = probability(*x, exp_of_negative(-x.abs()));
            *x = slopes.bce * (p - y) + p * (1.0 - p) * (slopes.shrink - slopes.reward * y);
        }
    }
}

/// The sigmoid of `x`, from `e = exp(−|x|)`.
#[inline(always)]
fn probability(x: f32, e: f32) -> f32 {
    let numerator = if x >= 0.0 { 1.0 } else { e };
    numerator / (1.0 + e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_computes_the_definition_and_its_gradient() {
        let wave = |i: usize| ((i * 37) % 101) as f64 / 10.0 - 5.0;
        for (length, terms) in [(5, 1), (300, 2)] {
            let annotated = [true, false, true];
            let pairs = Pairs { annotated: &annotated, terms };
            let values = annotated.len() * terms * length;
            let x: Vec<f64> = (0..values).map(wave).collect();
            let y: Vec<f32> = (0..values).map(|i| if i % 3 == 0 { 1.0 } else { 0.0 }).collect();
            let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
            let definition = |x: &[f64]| {
                let (mut bce, mut dice, mut counted) = (0.0, 0.0, 0.0);
                for term in (0..3 * terms).filter(|term| annotated[term / terms]) {
                    let (mut overlap, mut size) = (0.0, 1.0);
                    for i in term * length..(term + 1) * length {
                        let (x, y) = (x[i], f64::from(y[i]));
                        let p = 1.0 / (1.0 + (-x).exp());
                        bce -= (y * p.ln() + (1.0 - y) * (-p).ln_1p()) / length as f64;
                        overlap += p * y;
                        size += p + y;
                    }
                    dice += 1.0 - 2.0 * overlap / size;
                    counted += 1.0;
                }
                (bce / counted, dice / counted)
            };
            let (bce, dice) = definition(&x);
            for isa in Isa::available() {
                let loss = loss(isa, &narrow(&x), &y, pairs);
                assert!(
                    (f64::from(loss.bce) - bce).abs() < 1e-6 && (f64::from(loss.dice) - dice).abs() < 1e-6
                );
                let mut of_x = narrow(&x);
                gradient(isa, &mut of_x, &y, pairs, &loss, 0.7, 1.3);
                for i in 0..values {
                    let mut moved = x.clone();
                    moved[i] += 1e-5;
                    let up = definition(&moved);
                    moved[i] -= 2e-5;
                    let down = definition(&moved);
                    let slope = (0.7 * (up.0 - down.0) + 1.3 * (up.1 - down.1)) / 2e-5;
                    assert!((slope - f64::from(of_x[i])).abs() < 1e-6, "{i}: {} against {slope}", of_x[i]);
                }
            }
        }
    }
}
