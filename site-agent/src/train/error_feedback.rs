//! Error feedback: what rounding takes from one update is added to the next (Seide et al. 2014, "1-bit stochastic gradient descent";
//! Karimireddy et al. 2019, "Error feedback fixes SignSGD and other gradient compression schemes", algorithm 2).
//!
//! Of `p = Δ + e` a site sends `C(p)`, its bfloat16, and keeps the residual `e' = p − C(p)`. So whatever the number of rounds, what was
//! sent differs from what training gave by the last residual alone: `Σ C(p) = Σ Δ − e'`. Without it the same small number could be
//! rounded away in each.

use common::bfloat16;

/// Rounds some numbers of a delta: `residual`, little-endian f32, goes in as `e` and comes out as `e'`; `sent` becomes `C(p)`.
pub fn round(deltas: &[f32], residual: &mut [u8], sent: &mut Vec<u8>) {
    sent.resize(2 * deltas.len(), 0);
    let sent = sent.as_chunks_mut::<2>().0;
    let residual = residual.as_chunks_mut::<4>().0;
    for ((&delta, residual), sent) in deltas.iter().zip(residual).zip(sent) {
        let (rounded, left) = round_one(delta, f32::from_le_bytes(*residual));
        (*sent, *residual) = (rounded, left.to_le_bytes());
    }
}

/// `C(p)` and `e'`. In f64, so that what the sum itself loses in f32 stays in the residual too. A number beyond the largest bfloat16 is sent as
/// the largest, and the rest later; one that is not finite stays so, and the coordinator refuses it.
fn round_one(delta: f32, residual: f32) -> ([u8; 2], f32) {
    let whole = f64::from(delta) + f64::from(residual);
    let sent = bfloat16::round(whole as f32);
    (sent, (whole - f64::from(bfloat16::widen(sent))) as f32)
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;

    use super::*;

    /// Between 1 and the next bfloat16, 1.0078125.
    const TIE: f32 = 1.0 + 1.0 / 256.0;

    fn rounds(deltas: &[f32]) -> (Vec<f32>, f32) {
        let (mut residual, mut sent) = ([0; 4], Vec::new());
        let send = |&delta: &f32| {
            round(&[delta], &mut residual, &mut sent);
            bfloat16::widen([sent[0], sent[1]])
        };
        let all = deltas.iter().map(send).collect();
        (all, f32::from_le_bytes(residual))
    }

    /// | Δ | e | p | C(p) | e' |
    /// | --- | --- | --- | --- | --- |
    /// | 1 + 2⁻⁸ | 0 | 1 + 2⁻⁸, a tie | 1 | 2⁻⁸ |
    /// | 1 + 2⁻⁸ | 2⁻⁸ | 1 + 2⁻⁷ | 1 + 2⁻⁷ | 0 |
    /// | −2⁻¹⁰ | 0 | −2⁻¹⁰ | −2⁻¹⁰ | 0 |
    /// | 3 + 2⁻⁹ | 0 | 3 + 2⁻⁹ | 3 | 2⁻⁹ |
    #[test]
    fn rounds_are_those_of_a_hand() {
        assert_eq!(rounds(&[TIE]), (vec![1.0], 0.003_906_25));
        let small = -1.0 / 1024.0;
        let (sent, residual) = rounds(&[TIE, TIE, small, 3.0 + 1.0 / 512.0]);
        assert_eq!((sent, residual), (vec![1.0, 1.007_812_5, small, 3.0], 1.0 / 512.0));
    }

    #[test]
    fn a_number_that_rounding_takes_each_time_arrives_all_the_same() {
        let (sent, residual) = rounds(&[TIE; 100]);
        assert_eq!((sent.iter().sum::<f32>(), residual), (100.390_625, 0.0));
        let without: f32 = [TIE; 100].map(|delta| bfloat16::widen(bfloat16::round(delta))).iter().sum();
        assert_eq!(without, 100.0, "so much is lost without");
    }

    #[test]
    fn over_many_rounds_what_was_sent_is_a_unit_of_the_last_place_from_what_was_trained() {
        // Some numbers of several sizes, always the same.
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(state >> 8) / f64::from(1 << 24) - 0.5) as f32 * 10f32.powi((state % 5) as i32 - 4)
        };
        for _ in 0..50 {
            let deltas: Vec<f32> = (0..200).map(|_| next()).collect();
            let (sent, residual) = rounds(&deltas);
            let exact = |numbers: &[f32]| numbers.iter().map(|&number| f64::from(number)).sum::<f64>();
            let (trained, sent_in_all) = (exact(&deltas), exact(&sent));
            let last = f64::from(*sent.last().unwrap());
            assert!((trained - sent_in_all - f64::from(residual)).abs() < 1e-8, "nothing is lost");
            assert!(
                (trained - sent_in_all).abs() <= last.abs() / 128.0 + 1e-8,
                "{trained} {sent_in_all} {last}"
            );
        }
    }

    #[test]
    fn what_is_too_large_is_sent_as_the_largest_and_the_rest_stays() {
        let (sent, residual) = rounds(&[f32::MAX]);
        assert_eq!(sent[0], bfloat16::widen([0x7f, 0x7f]));
        assert_eq!(f64::from(sent[0]) + f64::from(residual), f64::from(f32::MAX));
        assert!(rounds(&[f32::NAN]).0[0].is_nan());
        assert_eq!(rounds(&[f32::INFINITY]).0, [f32::INFINITY]);
    }

    #[test]
    fn rounding_is_that_of_the_library_for_whatever_it_holds() {
        for k in 0..(1u32 << 16) {
            let number = f32::from_bits(k.wrapping_mul(0x9e37_79b1));
            let theirs = bf16::from_f32(number);
            if theirs.is_finite() {
                assert_eq!(bfloat16::round(number), theirs.to_le_bytes(), "{number:e}");
            }
        }
    }
}
