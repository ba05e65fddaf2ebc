//! Tumour detection per patient: is there one?

/// Counts of patients. A scan is positive when the predicted volume reaches [`Detection::positive_ml`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    positive_ml: f64,
    with_tumour: u32,
    found: u32,
    without_tumour: u32,
    cleared: u32,
}

impl Detection {
    /// Counts nothing yet; a scan counts as positive from `positive_ml` millilitres on (0: from one voxel on).
    pub fn new(positive_ml: f64) -> Self {
        Self { positive_ml, with_tumour: 0, found: 0, without_tumour: 0, cleared: 0 }
    }

    /// The decision rule: a predicted volume from which a scan counts as positive, millilitres.
    pub fn positive_ml(&self) -> f64 {
        self.positive_ml
    }

    /// Counts one patient: the predicted volume and whether there is a tumour.
    pub fn add(&mut self, predicted_ml: f64, has_tumour: bool) {
        let positive = predicted_ml > 0.0 && predicted_ml >= self.positive_ml;
        if has_tumour {
            self.with_tumour += 1;
            self.found += u32::from(positive);
        } else {
            self.without_tumour += 1;
            self.cleared += u32::from(!positive);
        }
    }

    /// Patients with a tumour.
    pub fn with_tumour(&self) -> u32 {
        self.with_tumour
    }

    /// Patients without one.
    pub fn without_tumour(&self) -> u32 {
        self.without_tumour
    }

    /// Share of patients with a tumour whose scan is positive.
    pub fn sensitivity(&self) -> Option<f64> {
        (self.with_tumour > 0).then(|| f64::from(self.found) / f64::from(self.with_tumour))
    }

    /// Share of patients without a tumour whose scan is negative.
    pub fn specificity(&self) -> Option<f64> {
        (self.without_tumour > 0).then(|| f64::from(self.cleared) / f64::from(self.without_tumour))
    }

    /// Harmonic mean of sensitivity and specificity; 0 when both are.
    pub fn harmonic_mean(&self) -> Option<f64> {
        let (sensitivity, specificity) = (self.sensitivity()?, self.specificity()?);
        Some(harmonic(sensitivity, specificity))
    }
}

fn harmonic(a: f64, b: f64) -> f64 {
    if a + b == 0.0 { 0.0 } else { 2.0 * a * b / (a + b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harmonic_means_are_the_published_ones() {
        for (sensitivity, specificity, mean) in [
            (88.89, 95.0, 91.84349339278917),
            (91.67, 95.0, 93.30529811967642),
            (93.98, 91.25, 92.59488203854667),
        ] {
            assert!((harmonic(sensitivity, specificity) - mean).abs() < 1e-9);
        }
        assert_eq!(harmonic(0.0, 0.0), 0.0);
    }

    #[test]
    fn a_scan_below_the_smallest_volume_is_negative() {
        let mut detection = Detection::new(0.5);
        detection.add(0.6, true);
        detection.add(0.4, true);
        detection.add(0.4, false);
        assert_eq!((detection.with_tumour(), detection.without_tumour()), (2, 1));
        assert_eq!((detection.sensitivity(), detection.specificity()), (Some(0.5), Some(1.0)));
        assert_eq!(detection.harmonic_mean(), Some(2.0 / 3.0));
    }

    #[test]
    fn without_a_smallest_volume_one_voxel_counts_and_none_does_not() {
        let mut detection = Detection::new(0.0);
        detection.add(0.0, false);
        detection.add(0.001, true);
        assert_eq!((detection.sensitivity(), detection.specificity()), (Some(1.0), Some(1.0)));
        assert_eq!(Detection::new(0.0).harmonic_mean(), None);
    }
}
