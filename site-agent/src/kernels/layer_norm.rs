//! Normalisation of each row over its numbers, and its gradients.

use rayon::prelude::*;

use super::isa::{Isa, for_each_isa};

/// Rows that one task does: fixed, so that the bits do not depend on threads.
const ROWS: usize = 256;

/// Mean and reciprocal standard deviation of each row.
pub type Statistics = Vec<[f32; 2]>;

/// Gradients of one normalisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// With respect to the input, `[rows, width]`.
    pub input: Vec<f32>,
    /// With respect to the weight γ, `[width]`.
    pub weight: Vec<f32>,
    /// With respect to the bias β, `[width]`.
    pub bias: Vec<f32>,
}

/// `γ · (x − mean) / sqrt(variance + ε) + β` for rows as long as γ, with the biased variance.
pub fn forward(isa: Isa, x: &[f32], [weight, bias]: [&[f32]; 2], epsilon: f32) -> (Vec<f32>, Statistics) {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    let mut statistics = vec![[0.0; 2]; x.len() / width];
    let parts = y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
    parts.zip(statistics.par_chunks_mut(ROWS)).for_each(|((y, x), statistics)| {
        measure(isa, x, width, epsilon, statistics);
        normalise(isa, x, weight, bias, statistics, y);
    });
    (y, statistics)
}

/// The output of [`forward`] once more, the same bits.
pub fn again(isa: Isa, x: &[f32], [weight, bias]: [&[f32]; 2], statistics: &Statistics) -> Vec<f32> {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    let parts = y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
    parts.zip(statistics.par_chunks(ROWS)).for_each(|((y, x), statistics)| {
        normalise(isa, x, weight, bias, statistics, y);
    });
    y
}

/// Gradients, from the input and the gradient of the output.
pub fn backward(isa: Isa, x: &[f32], dy: &[f32], weight: &[f32], statistics: &Statistics) -> Gradients {
    let width = weight.len();
    let mut input = vec![0.0; x.len()];
    let parts = input.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
    let parts = parts.zip(dy.par_chunks(ROWS * width)).zip(statistics.par_chunks(ROWS));
    let sums: Vec<[Vec<f32>; 2]> = parts
        .map(|(((dx, x), dy), statistics)| {
            let mut sums = [vec![0.0; width], vec![0.0; width]];
            differentiate(isa, x, dy, weight, statistics, dx, &mut sums);
            sums
        })
        .collect();
    let total = |part: usize| {
        let mut total = vec![0.0f64; width];
        for sums in &sums {
            total.iter_mut().zip(&sums[part]).for_each(|(total, &sum)| *total += f64::from(sum));
        }
        total.into_iter().map(|sum| sum as f32).collect()
    };
    Gradients { input, weight: total(0), bias: total(1) }
}

for_each_isa! {
    fn measure(x: &[f32], width: usize, epsilon: f32, statistics: &mut [[f32; 2]]) {
        for (row, statistics) in x.chunks_exact(width).zip(statistics) {
            let mean = sum(row, |x| x) / width as f32;
            let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
            *statistics = [mean, 1.0 / (variance + epsilon).sqrt()];
        }
    }
}

for_each_isa! {
    fn normalise(x: &[f32], weight: &[f32], bias: &[f32], statistics: &[[f32; 2]], y: &mut [f32]) {
        let rows = x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len()));
        for ((x, y), &[mean, scale]) in rows.zip(statistics) {
            for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * scale * weight + bias;
            }
        }
    }
}

for_each_isa! {
    /// Writes the input's gradient, adds those of weight and bias.
    fn differentiate(
        x: &[f32],
        dy: &[f32],
        weight: &[f32],
        statistics: &[[f32; 2]],
        dx: &mut [f32],
        sums: &mut [Vec<f32>; 2],
    ) {
        let [of_weight, of_bias] = sums;
        let width = weight.len();
        let mut slopes = vec![0.0; width];
        let mut normal = vec![0.0; width];
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, dy), dx), &[mean, scale]) in rows.zip(statistics) {
            for i in 0..width {
                normal[i] = (x[i] - mean) * scale;
                slopes[i] = dy[i] * weight[i];
                of_weight[i] += dy[i] * normal[i];
                of_bias[i] += dy[i];
            }
            let plain = sum(&slopes, |slope| slope) / width as f32;
            for i in 0..width {
                dx[i] = slopes[i] * normal[i];
            }
            let by_input = sum(dx, |product| product) / width as f32;
            for i in 0..width {
                dx[i] = scale * (slopes[i] - plain - normal[i] * by_input);
            }
        }
    }
}

/// Sum of `f` over a row, sixteen sums side by side.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f(x);
        }
    }
    sums.into_iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>()
}
