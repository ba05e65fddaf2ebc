//! Rows of scores to shares and back, in the order in which tiles leave them: `[panel][row, columns]`.

use crate::kernels::isa::for_each_isa;
use crate::kernels::transcendental::exp_of_negative;

for_each_isa! {
    /// Scores, `[panel][row, columns]`, to shares that sum to one in each row; writes the logarithms of the sums.
    pub(super) fn exponentials(scores: &mut [f32], columns: usize, logs: &mut [f32]) {
        let block = logs.len() * columns;
        for (row, log) in logs.iter_mut().enumerate() {
            let mut peaks = [f32::MIN; 8];
            for panel in scores.chunks_exact(block) {
                for eight in panel[row * columns..][..columns].as_chunks::<8>().0 {
                    peaks.iter_mut().zip(eight).for_each(|(peak, &score)| *peak = peak.max(score));
                }
            }
            let peak = peaks.into_iter().fold(f32::MIN, f32::max);
            let mut sums = [0.0f32; 8];
            for panel in scores.chunks_exact_mut(block) {
                for eight in panel[row * columns..][..columns].as_chunks_mut::<8>().0 {
                    for (sum, score) in sums.iter_mut().zip(eight) {
                        *score = exp_of_negative(*score - peak);
                        *sum += *score;
                    }
                }
            }
            let sum: f32 = sums.into_iter().sum();
            let share = 1.0 / sum;
            for panel in scores.chunks_exact_mut(block) {
                panel[row * columns..][..columns].iter_mut().for_each(|score| *score *= share);
            }
            *log = peak + sum.ln();
        }
    }
}

for_each_isa! {
    /// Shares from scores and logarithms, and the gradient of the scores from that of the shares (`slopes`): row by row.
    pub(super) fn slopes_of_scores(
        scores: &[f32],
        slopes: &[f32],
        logs: &[f32],
        columns: usize,
        shares: &mut [f32],
        of_scores: &mut [f32],
    ) {
        let block = logs.len() * columns;
        let padded = shares.len() / logs.len();
        let rows = shares.chunks_exact_mut(padded).zip(of_scores.chunks_exact_mut(padded));
        for (row, ((shares, of_scores), &log)) in rows.zip(logs).enumerate() {
            let mut sums = [0.0f32; 8];
            for (panel, shares) in shares.chunks_exact_mut(columns).enumerate() {
                let from = panel * block + row * columns;
                let scores = scores[from..][..columns].as_chunks::<8>().0;
                let slopes = slopes[from..][..columns].as_chunks::<8>().0;
                for ((shares, scores), slopes) in shares.as_chunks_mut::<8>().0.iter_mut().zip(scores).zip(slopes) {
                    for i in 0..8 {
                        shares[i] = exp_of_negative(scores[i] - log);
                        sums[i] += shares[i] * slopes[i];
                    }
                }
            }
            let mean: f32 = sums.into_iter().sum();
            for (panel, of_scores) in of_scores.chunks_exact_mut(columns).enumerate() {
                let from = panel * block + row * columns;
                let slopes = &slopes[from..][..columns];
                let shares = &shares[panel * columns..][..columns];
                for ((of_score, share), slope) in of_scores.iter_mut().zip(shares).zip(slopes) {
                    *of_score = share * (slope - mean);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;

    #[test]
    fn a_score_that_is_no_number_gives_a_row_that_is_none() {
        for isa in Isa::available() {
            let (mut scores, mut logs) = ([0.5f32; 16], [0.0f32; 2]);
            scores[3] = f32::NAN;
            exponentials(isa, &mut scores, 8, &mut logs);
            assert!(scores[..8].iter().chain(&logs[..1]).all(|value| value.is_nan()), "{isa:?}: {scores:?}");
            assert_eq!(scores[8..], [0.125; 8], "{isa:?}");
        }
    }
}
