//! Trimmed mean (Yin et al. 2018): of each number, the sites' values are sorted, the same share is left out at both ends, and the rest
//! averaged. Weights play no part.

/// The mean of `values` without `⌊trim · n⌋` of them at each end, and of three or more without at least one: with fewer sites than
/// `1 / trim` it would otherwise be a plain mean. Sorts them.
pub(super) fn trimmed_mean(values: &mut [f64], trim: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    let share = (trim * n as f64) as usize;
    // Invariant: below half of them, so that something is left.
    let cut = if n < 3 { 0 } else { share.clamp(1, (n - 1) / 2) };
    let kept = values.get(cut..n - cut).unwrap_or_default();
    kept.iter().sum::<f64>() / kept.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::Rounds;
    use crate::aggregate::{Method, Rule};

    #[test]
    fn as_many_are_left_out_as_a_hand_would() {
        let trimmed = |mut values: Vec<f64>, trim| trimmed_mean(&mut values, trim);
        assert_eq!(trimmed(vec![9.0, 1.0, 2.0, -50.0, 3.0], 0.2), 2.0, "1, 2 and 3 of five");
        assert_eq!(trimmed(vec![100.0, 1.0, 4.0], 0.2), 4.0, "one at each end of three");
        assert_eq!(trimmed(vec![100.0, 2.0], 0.2), 51.0, "none of two");
        assert_eq!(trimmed(vec![7.0], 0.45), 7.0);
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(trimmed([&ten[..9], &[1e6]].concat(), 0.2), 5.5, "3 to 8 of ten");
        assert_eq!(trimmed(vec![1.0, 2.0, 6.0, 900.0], 0.45), 4.0, "half is never left out");
    }

    /// Δ of five sites whose weights differ: 1, 2, 3, 4 and −1000, then 0, 1, 2, 3 and 1000. By hand, η = 1/2: 1, then
    /// 1 + (1 + 2 + 3)/3/2 = 2, then 2 + (1 + 2 + 3)/3/2 = 3.
    #[test]
    fn two_rounds_are_those_of_a_hand_whatever_the_weights() {
        let method = Method { rule: Rule::TrimmedMean { trim: 0.2 }, ..Method::fedavg(0.5) };
        let mut rounds = Rounds::new(method, &[1.0]);
        rounds.run(&[
            ("a", 0.1, &[1.0]),
            ("b", 0.1, &[2.0]),
            ("c", 0.1, &[3.0]),
            ("d", 0.1, &[4.0]),
            ("hostile", 0.6, &[-1000.0]),
        ]);
        assert_eq!(rounds.model(), [2.0]);
        rounds.run(&[
            ("a", 0.0, &[0.0]),
            ("b", 0.2, &[1.0]),
            ("c", 0.1, &[2.0]),
            ("d", 0.1, &[3.0]),
            ("hostile", 0.6, &[1000.0]),
        ]);
        assert_eq!(rounds.model(), [3.0]);
    }
}
