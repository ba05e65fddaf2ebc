//! One step of AdamW over one tensor in one pass.

use rayon::prelude::*;

use super::isa::{Isa, for_each_isa};

/// The numbers of one step (Loshchilov and Hutter, 2019, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Decay of the first moment.
    pub beta1: f32,
    /// `1 − beta1`, rounded once.
    pub one_minus_beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 − beta2`, rounded once.
    pub one_minus_beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Learning rate over the bias correction of the first moment.
    pub rate: f32,
    /// Root of the bias correction of the second moment.
    pub second_correction: f32,
    /// Learning rate times weight decay.
    pub decay: f32,
}

/// Numbers of one task.
const TASK: usize = 1 << 15;

/// Turns the gradient into the values after one step along it, where it lies; the moments are moved on in place, too. Nobody else
/// reads them.
pub fn step(
    isa: Isa,
    theta: &[f32],
    gradient: &mut [f32],
    [first, second]: [&mut [f32]; 2],
    coefficients: Coefficients,
) {
    let moments = first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK));
    let values = gradient.par_chunks_mut(TASK).zip(theta.par_chunks(TASK));
    values.zip(moments).for_each(|((gradient, theta), (first, second))| {
        step_task(isa, theta, gradient, first, second, coefficients);
    });
}

for_each_isa! {
    fn step_task(theta: &[f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32], c: Coefficients) {
        let values = gradient.iter_mut().zip(theta);
        for ((value, &theta), (m, v)) in values.zip(first.iter_mut().zip(second)) {
            let g = *value;
            *m = *m * c.beta1 + g * c.one_minus_beta1;
            *v = *v * c.beta2 + g * g * c.one_minus_beta2;
            let root = v.sqrt() / c.second_correction + c.epsilon;
            // Decay and step are joined before they meet the weight: lr * decay alone is often less than its last bit.
            *value = theta - (*m / root * c.rate + theta * c.decay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: Coefficients = Coefficients {
        beta1: 0.9,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        epsilon: 1e-8,
        rate: 0.02,
        second_correction: 0.5,
        decay: 1e-4,
    };

    #[test]
    fn every_instruction_set_computes_the_definition_to_the_same_bits() {
        let values = |salt: usize| -> Vec<f32> {
            (0..TASK + 77).map(|i| ((i * 7919 + salt * 104_729) % 20_011) as f32 / 10_005.5 - 1.0).collect()
        };
        let (theta, gradient) = (values(1), values(2));
        let (first, second) = (values(3), values(4).into_iter().map(f32::abs).collect::<Vec<_>>());
        let run = |isa| {
            let (mut stepped, mut m, mut v) = (gradient.clone(), first.clone(), second.clone());
            step(isa, &theta, &mut stepped, [&mut m, &mut v], C);
            (stepped, m, v)
        };
        let (stepped, m, v) = run(Isa::Portable);
        for i in 0..theta.len() {
            let [theta, g, m0, v0] = [&theta, &gradient, &first, &second].map(|values| f64::from(values[i]));
            let (m1, v1) = (0.9 * m0 + 0.1 * g, 0.999 * v0 + 0.001 * g * g);
            let expected = theta - 0.02 * m1 / (v1.sqrt() / 0.5 + 1e-8) - 1e-4 * theta;
            for (got, expected) in [(stepped[i], expected), (m[i], m1), (v[i], v1)] {
                assert!(
                    (f64::from(got) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                    "{i}: {got}, {expected}"
                );
            }
        }
        for isa in Isa::available() {
            assert!(run(isa) == (stepped.clone(), m.clone(), v.clone()), "{isa:?}");
        }
    }
}
