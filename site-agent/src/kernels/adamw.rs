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

/// A tensor's values and moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Stepped {
    /// Values.
    pub theta: Vec<f32>,
    /// First moment.
    pub first: Vec<f32>,
    /// Second moment.
    pub second: Vec<f32>,
}

/// Numbers of one task.
const TASK: usize = 1 << 15;

/// Values and moments after one step along `gradient`.
pub fn step(
    isa: Isa,
    theta: &[f32],
    gradient: &[f32],
    first: &[f32],
    second: &[f32],
    coefficients: Coefficients,
) -> Stepped {
    let mut new = Stepped { theta: theta.to_vec(), first: first.to_vec(), second: second.to_vec() };
    let moments = new.first.par_chunks_mut(TASK).zip(new.second.par_chunks_mut(TASK));
    let tasks = new.theta.par_chunks_mut(TASK).zip(moments).zip(gradient.par_chunks(TASK));
    tasks.for_each(|((theta, (first, second)), gradient)| {
        step_in_place(isa, theta, gradient, first, second, coefficients);
    });
    new
}

for_each_isa! {
    fn step_in_place(theta: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], c: Coefficients) {
        let moments = first.iter_mut().zip(second);
        for ((theta, (first, second)), &gradient) in theta.iter_mut().zip(moments).zip(gradient) {
            *first = *first * c.beta1 + gradient * c.one_minus_beta1;
            *second = *second * c.beta2 + gradient * gradient * c.one_minus_beta2;
            let root = second.sqrt() / c.second_correction + c.epsilon;
            // Decay and step are joined before they meet the weight: lr * decay alone is often less than its last bit.
            *theta -= *first / root * c.rate + *theta * c.decay;
        }
    }
}
