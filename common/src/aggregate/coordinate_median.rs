//! Coordinate median (Yin et al. 2018): of each number, the middle of the sites' values; of an even number of sites, the mean of the
//! two in the middle. Weights play no part.

/// The median of `values`, which it sorts; 0 of none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    match (values.get(n.saturating_sub(1) / 2), values.get(n / 2)) {
        (Some(low), Some(high)) if n.is_multiple_of(2) => (low + high) / 2.0,
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::Rounds;
    use crate::aggregate::{Method, Rule};

    #[test]
    fn of_an_even_number_it_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&mut [5.0, -1.0, 100.0]), 5.0);
        assert_eq!(median(&mut [8.0, 1.0, 100.0, 2.0]), 5.0);
        assert_eq!(median(&mut [3.0]), 3.0);
        assert_eq!(median(&mut []), 0.0);
    }

    /// Δ of five sites whose weights differ: the middle of 1, 2, 3, 4, −1000 is 2; of 1, 2, 5, 9, 1000 it is 5. By hand, η = 1/2:
    /// 1, then 1 + 1 = 2, then 2 + 2.5 = 4.5.
    #[test]
    fn two_rounds_are_those_of_a_hand_whatever_the_weights() {
        let method = Method { rule: Rule::CoordinateMedian, ..Method::fedavg(0.5) };
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
            ("a", 0.1, &[9.0]),
            ("b", 0.1, &[5.0]),
            ("c", 0.1, &[2.0]),
            ("d", 0.1, &[1.0]),
            ("hostile", 0.6, &[1000.0]),
        ]);
        assert_eq!(rounds.model(), [4.5]);
    }
}
