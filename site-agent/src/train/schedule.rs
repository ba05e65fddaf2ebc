//! The learning rate of a global round: linear warm-up, then half a cosine down to zero (the reference's schedule).

use serde::{Deserialize, Serialize};

/// Warm-up and cosine over the rounds of a study.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupCosine {
    /// Highest learning rate.
    pub base: f64,
    /// Rounds of warm-up, at least 2; less means none.
    pub warmup: u64,
    /// Rounds of the study.
    pub total: u64,
}

impl WarmupCosine {
    /// Learning rate of a round, counted from 0.
    ///
    /// The reference steps its scheduler before each epoch, hence the index `k = round + 1`: round 0 already trains,
    /// both rounds `warmup - 2` and `warmup - 1` have the base rate, and the last round has 0.
    pub fn learning_rate(&self, round: u64) -> f64 {
        let (k, warmup) = ((round + 1) as f64, self.warmup as f64);
        if k < warmup {
            return self.base * k / (warmup - 1.0).max(1.0);
        }
        if self.total <= self.warmup || round >= self.total {
            return 0.0;
        }
        let progress = (k - warmup) / (self.total as f64 - warmup);
        self.base * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: WarmupCosine = WarmupCosine { base: 1e-3, warmup: 5, total: 20 };

    #[test]
    fn the_base_rate_is_reached_twice_and_the_last_round_has_none() {
        let rates: Vec<f64> = (0..20).map(|round| SCHEDULE.learning_rate(round)).collect();
        assert!(rates[0] > 0.0);
        assert_eq!(rates[3..5], [1e-3, 1e-3]);
        assert!(rates[19].abs() < 1e-18);
        assert!(rates[4..].is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn rounds_beyond_the_study_and_studies_of_warmup_alone_stay_finite() {
        assert_eq!(SCHEDULE.learning_rate(20), 0.0);
        for schedule in [
            WarmupCosine { base: 1.0, warmup: 0, total: 1 },
            WarmupCosine { base: 1.0, warmup: 1, total: 1 },
            WarmupCosine { base: 1.0, warmup: 9, total: 4 },
        ] {
            assert!(
                (0..12).all(|round| (0.0..=1.0).contains(&schedule.learning_rate(round))),
                "{schedule:?}"
            );
        }
    }
}
