//! Intervals by resampling patients: of a mean, and of the mean difference of two models.

use rand::Rng;

/// Resamples drawn.
const RESAMPLES: usize = 1000;

/// 95 % percentile interval of the mean over scans, resampling patients: `values` holds one list of scans per patient.
/// Scans of one patient are not independent, so they are drawn together. One patient gives an interval of no width, and
/// no patient `(NaN, NaN)`.
pub fn bootstrap_interval(values: &[Vec<f64>], rng: &mut impl Rng) -> (f64, f64) {
    if values.iter().all(Vec::is_empty) {
        return (f64::NAN, f64::NAN);
    }
    let mut means: Vec<f64> = (0..RESAMPLES).filter_map(|_| resampled_mean(values, rng)).collect();
    means.sort_by(f64::total_cmp);
    let quantile = |q: f64| means[((means.len() - 1) as f64 * q).round() as usize];
    (quantile(0.025), quantile(0.975))
}

/// 95 % interval of the mean difference `a - b` of two models over the same scans, resampling patients: `pairs` holds one
/// list of scans per patient, a scan as `[a, b]`. Both scores of a scan are drawn together: what makes it hard for both
/// models does not widen the interval.
pub fn paired_interval(pairs: &[Vec<[f64; 2]>], rng: &mut impl Rng) -> (f64, f64) {
    let differences = |scans: &Vec<[f64; 2]>| -> Vec<f64> { scans.iter().map(|[a, b]| a - b).collect() };
    let by_patient: Vec<Vec<f64>> = pairs.iter().map(differences).collect();
    bootstrap_interval(&by_patient, rng)
}

/// Mean over as many patients as there are, drawn with replacement.
fn resampled_mean(values: &[Vec<f64>], rng: &mut impl Rng) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0);
    for _ in values {
        let patient = &values[rng.random_range(0..values.len())];
        sum += patient.iter().sum::<f64>();
        n += patient.len();
    }
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::KeyedRng;

    #[test]
    fn the_interval_holds_the_mean_and_narrows_with_more_patients() {
        let patients = |n: u32| (0..n).map(|i| vec![f64::from(i % 10) / 10.0]).collect::<Vec<_>>();
        let width = |n| {
            let (low, high) = bootstrap_interval(&patients(n), &mut KeyedRng::new(1).rng());
            assert!(low < 0.45 && 0.45 < high, "{low} {high}");
            high - low
        };
        assert!(width(200) < width(20) / 2.0);
    }

    #[test]
    fn scans_of_one_patient_do_not_narrow_the_interval() {
        let (low, high) = bootstrap_interval(&[vec![0.2, 0.8, 0.5]], &mut KeyedRng::new(1).rng());
        assert_eq!((low, high), (0.5, 0.5));
    }

    #[test]
    fn the_same_key_gives_the_same_interval() {
        let values = vec![vec![0.1], vec![0.7, 0.9], vec![0.4]];
        let draw = || bootstrap_interval(&values, &mut KeyedRng::new(7).rng());
        assert_eq!(draw(), draw());
    }

    #[test]
    fn no_patient_has_no_interval() {
        assert!(bootstrap_interval(&[], &mut KeyedRng::new(1).rng()).0.is_nan());
        assert!(paired_interval(&[], &mut KeyedRng::new(1).rng()).1.is_nan());
    }

    #[test]
    fn what_is_hard_for_both_models_does_not_widen_the_interval_of_their_difference() {
        let pairs = [vec![[0.25, 0.0]], vec![[0.5, 0.25], [1.0, 0.75]], vec![[0.75, 0.5]]];
        assert_eq!(paired_interval(&pairs, &mut KeyedRng::new(1).rng()), (0.25, 0.25));
        let of_one = pairs.map(|scans| scans.iter().map(|pair| pair[0]).collect::<Vec<f64>>());
        let (low, high) = bootstrap_interval(&of_one, &mut KeyedRng::new(1).rng());
        assert!(high - low > 0.25, "{low} {high}");
    }

    #[test]
    fn the_interval_of_a_difference_is_the_one_that_a_hand_computes() {
        // One patient in four differs, by 1: k of four draws hit that one, k/4 is the mean. P(k = 0) = 0.32, so the lower end is
        // 0; P(k <= 2) = 0.949 and P(k <= 3) = 0.996, so the upper end is 3/4.
        let quarter = [vec![[1.0, 0.0]], vec![[0.5, 0.5]], vec![[0.25, 0.25]], vec![[0.75, 0.75]]];
        assert_eq!(paired_interval(&quarter, &mut KeyedRng::new(3).rng()), (0.0, 0.75));
        // Scans of one patient go together: both of the first, +1/2 each, or that of the second, -1/4.
        let uneven = [vec![[0.75, 0.25], [1.0, 0.5]], vec![[0.5, 0.75]]];
        assert_eq!(paired_interval(&uneven, &mut KeyedRng::new(3).rng()), (-0.25, 0.5));
    }
}
