//! Normalisation of each row over its numbers, and its gradients.

use rayon::prelude::*;

use super::isa::{Isa, for_each_isa};

/// Rows that one task does: fixed, so that the bits do not depend on threads.
const ROWS: usize = 256;

/// Mean and reciprocal standard deviation of each row.
pub type Statistics = Vec<[f32; 2]>;

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

/// Turns the gradient of the output, `[rows, width]`, into that of the input, where it lies; returns those of the weight γ and the
/// bias β, `[width]` each.
pub fn backward(
    isa: Isa,
    x: &[f32],
    gradient: &mut [f32],
    weight: &[f32],
    statistics: &Statistics,
) -> [Vec<f32>; 2] {
    let width = weight.len();
    let parts = gradient.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
    let parts = parts.zip(statistics.par_chunks(ROWS));
    let sums: Vec<[Vec<f32>; 2]> = parts
        .map(|((gradient, x), statistics)| {
            let mut sums = [vec![0.0; width], vec![0.0; width]];
            differentiate(isa, x, gradient, weight, statistics, &mut sums);
            sums
        })
        .collect();
    [0, 1].map(|part| {
        let mut total = vec![0.0f64; width];
        for sums in &sums {
            total.iter_mut().zip(&sums[part]).for_each(|(total, &sum)| *total += f64::from(sum));
        }
        total.into_iter().map(|sum| sum as f32).collect()
    })
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
    /// Writes the input's gradient over that of the output, adds those of weight and bias.
    fn differentiate(
        x: &[f32],
        gradient: &mut [f32],
        weight: &[f32],
        statistics: &[[f32; 2]],
        sums: &mut [Vec<f32>; 2],
    ) {
        let [of_weight, of_bias] = sums;
        let width = weight.len();
        let mut slopes = vec![0.0; width];
        let mut normal = vec![0.0; width];
        let rows = x.chunks_exact(width).zip(gradient.chunks_exact_mut(width));
        for ((x, gradient), &[mean, scale]) in rows.zip(statistics) {
            for i in 0..width {
                normal[i] = (x[i] - mean) * scale;
                slopes[i] = gradient[i] * weight[i];
                of_weight[i] += gradient[i] * normal[i];
                of_bias[i] += gradient[i];
            }
            let plain = sum(&slopes, |slope| slope) / width as f32;
            for i in 0..width {
                gradient[i] = slopes[i] * normal[i];
            }
            let by_input = sum(gradient, |product| product) / width as f32;
            for i in 0..width {
                gradient[i] = scale * (slopes[i] - plain - normal[i] * by_input);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences_on_every_instruction_set() {
        let (rows, width) = (ROWS + 3, 5);
        let wave = |step: usize, len: usize| {
            (0..len).map(|i| ((i * step) % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>()
        };
        let (x, dy) = (wave(37, rows * width), wave(59, rows * width));
        let (weight, bias) = (wave(23, width), wave(71, width));
        for isa in Isa::available() {
            let loss = |x: &[f32], weight: &[f32], bias: &[f32]| -> f64 {
                let (y, _) = forward(isa, x, [weight, bias], 1e-2);
                y.iter().zip(&dy).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum()
            };
            let (_, statistics) = forward(isa, &x, [&weight, &bias], 1e-2);
            let mut of_x = dy.clone();
            let [of_weight, of_bias] = backward(isa, &x, &mut of_x, &weight, &statistics);
            let check = |what: &str, values: &[f32], gradient: &[f32], at: &dyn Fn(&[f32]) -> f64| {
                for i in (0..values.len()).step_by(1 + values.len() / 40) {
                    let mut moved = values.to_vec();
                    moved[i] = values[i] + 1e-2;
                    let up = at(&moved);
                    moved[i] = values[i] - 1e-2;
                    let slope = (up - at(&moved)) / 2e-2;
                    assert!(
                        (slope - f64::from(gradient[i])).abs() < 2e-2 * (1.0 + slope.abs()),
                        "{what}[{i}], {isa:?}: {} against {slope}",
                        gradient[i]
                    );
                }
            };
            check("x", &x, &of_x, &|x| loss(x, &weight, &bias));
            check("weight", &weight, &of_weight, &|w| loss(&x, w, &bias));
            check("bias", &bias, &of_bias, &|b| loss(&x, &weight, b));
        }
    }
}
