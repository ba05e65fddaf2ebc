//! Overlap of two masks: Dice, recall, precision, specificity, volumes.

use serde::{Deserialize, Serialize};

/// Voxel counts of a prediction against the truth. Counts of several blocks add up. Serialisable because a site keeps those of each
/// scan in its own files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// Predicted and true.
    pub true_positive: u64,
    /// Predicted, not true.
    pub false_positive: u64,
    /// True, not predicted.
    pub false_negative: u64,
    /// Neither.
    pub true_negative: u64,
}

impl Overlap {
    /// Counts two masks of equal length, voxel by voxel.
    pub fn of(prediction: impl IntoIterator<Item = bool>, truth: impl IntoIterator<Item = bool>) -> Self {
        let mut overlap = Self::default();
        for (predicted, true_) in prediction.into_iter().zip(truth) {
            match (predicted, true_) {
                (true, true) => overlap.true_positive += 1,
                (true, false) => overlap.false_positive += 1,
                (false, true) => overlap.false_negative += 1,
                (false, false) => overlap.true_negative += 1,
            }
        }
        overlap
    }

    /// Whether the truth contains the class: only then is Dice reported.
    pub fn truth_is_present(&self) -> bool {
        self.true_positive + self.false_negative > 0
    }

    /// Dice 2 TP / (|P| + |Y|) without smoothing; none when both masks are empty.
    pub fn dice(&self) -> Option<f64> {
        let sizes = 2 * self.true_positive + self.false_positive + self.false_negative;
        ratio(2 * self.true_positive, sizes)
    }

    /// Dice as the reference's code reports it, 2 TP / (|P| + |Y| + 1): identical masks stay below 1, empty ones reach 0.
    /// For comparison with published numbers alone; ours are [`Self::dice`].
    pub fn smoothed_dice(&self) -> f64 {
        let sizes = 2 * self.true_positive + self.false_positive + self.false_negative;
        (2 * self.true_positive) as f64 / (sizes + 1) as f64
    }

    /// TP / (TP + FN).
    pub fn recall(&self) -> Option<f64> {
        ratio(self.true_positive, self.true_positive + self.false_negative)
    }

    /// TP / (TP + FP).
    pub fn precision(&self) -> Option<f64> {
        ratio(self.true_positive, self.true_positive + self.false_positive)
    }

    /// TN / (TN + FP).
    pub fn specificity(&self) -> Option<f64> {
        ratio(self.true_negative, self.true_negative + self.false_positive)
    }

    /// Volume of the false positives in millilitres.
    pub fn false_positive_volume_ml(&self, spacing_mm: [f64; 3]) -> f64 {
        volume_ml(self.false_positive, spacing_mm)
    }

    /// Volume of the prediction in millilitres.
    pub fn predicted_volume_ml(&self, spacing_mm: [f64; 3]) -> f64 {
        volume_ml(self.true_positive + self.false_positive, spacing_mm)
    }
}

fn volume_ml(voxels: u64, spacing_mm: [f64; 3]) -> f64 {
    voxels as f64 * spacing_mm.iter().product::<f64>() / 1000.0
}

fn ratio(numerator: u64, denominator: u64) -> Option<f64> {
    (denominator > 0).then(|| numerator as f64 / denominator as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identical_masks_reach_a_dice_of_one() {
        let mask = [true, false, true];
        assert_eq!(Overlap::of(mask, mask).dice(), Some(1.0));
    }

    #[test]
    fn what_has_no_voxels_has_no_score() {
        let nothing = Overlap::of([false; 4], [false; 4]);
        assert_eq!((nothing.dice(), nothing.recall(), nothing.precision()), (None, None, None));
        assert!(!nothing.truth_is_present());
        let missed = Overlap::of([false; 4], [true, false, false, false]);
        assert_eq!((missed.dice(), missed.precision()), (Some(0.0), None));
    }

    #[test]
    fn volumes_are_measured_in_millilitres() {
        let overlap = Overlap { false_positive: 100, true_positive: 200, ..Overlap::default() };
        assert!((overlap.false_positive_volume_ml([1.0, 2.0, 5.0]) - 1.0).abs() < 1e-12);
        assert!((overlap.predicted_volume_ml([1.0, 2.0, 5.0]) - 3.0).abs() < 1e-12);
    }
}
