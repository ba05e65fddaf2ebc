//! The Gaussian error linear unit `x · Φ(x)`, exact (not its tanh form), and its gradient.

use rayon::prelude::*;

use super::isa::{Isa, for_each_isa};
use super::transcendental::normal;

/// Numbers that one task does.
const CHUNK: usize = 1 << 14;

/// `x · Φ(x)`.
pub fn forward(isa: Isa, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let parts = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    parts.for_each(|(y, x)| activate(isa, x, y));
    y
}

/// Turns the gradient of the output into that of the input, where it lies.
pub fn backward(isa: Isa, x: &[f32], gradient: &mut [f32]) {
    let parts = gradient.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    parts.for_each(|(gradient, x)| differentiate(isa, x, gradient));
}

for_each_isa! {
    fn activate(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal(x).0;
        }
    }
}

for_each_isa! {
    fn differentiate(x: &[f32], gradient: &mut [f32]) {
        for (gradient, &x) in gradient.iter_mut().zip(x) {
            let (below, density) = normal(x);
            *gradient *= below + x * density;
        }
    }
}
