//! Lesions patient by patient: is there one, and does the model say so?

use std::collections::BTreeMap;

use common::ids::ClassId;
use common::metrics::Detection;

use super::record::Record;

/// Counts the patients in whose scans `class` was looked for.
///
/// Of a patient who has it, only scans that show it count: what is predicted in another one has not found it. Of all
/// predictions that count, the largest decides.
pub(super) fn detection(record: &Record, class: ClassId, positive_ml: f64) -> Detection {
    let mut patients: BTreeMap<&str, (bool, f64)> = BTreeMap::new();
    for (scan, score) in record.scores(class) {
        let (has_it, predicted_ml) = patients.entry(scan.patient.as_str()).or_insert((false, 0.0));
        match (score.present.is_some(), *has_it) {
            (true, false) => (*has_it, *predicted_ml) = (true, score.predicted_ml),
            (false, true) => {}
            _ => *predicted_ml = f64::max(*predicted_ml, score.predicted_ml),
        }
    }
    let mut detection = Detection::new(positive_ml);
    for (has_it, predicted_ml) in patients.into_values() {
        detection.add(predicted_ml, has_it);
    }
    detection
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn patients_are_counted_once_and_by_the_scans_that_show_the_tumour() {
        let record = record(&[
            // Missed where it is, marked where it is not: not found, in whatever order the scans come.
            ("t/a1", "anna", 27, None, 4.0),
            ("t/a2", "anna", 27, Some(0.0), 0.0),
            ("t/a3", "anna", 27, None, 4.0),
            // Marked beside it, in one of two scans: found.
            ("t/b1", "bo", 27, Some(0.0), 2.0),
            ("t/b2", "bo", 27, Some(0.0), 0.0),
            ("t/c", "cy", 27, None, 0.0),
            ("t/d1", "di", 27, None, 0.0),
            ("t/d2", "di", 27, None, 1.0),
            ("t/e", "eve", 6, Some(0.9), 1500.0),
        ]);
        let tumour = ClassId::new(27).unwrap();
        let counts = detection(&record, tumour, 0.0);
        assert_eq!((counts.with_tumour(), counts.without_tumour()), (2, 2));
        assert_eq!((counts.sensitivity(), counts.specificity()), (Some(0.5), Some(0.5)));
        // From 1.5 ml on, di's is no finding any more.
        assert_eq!(detection(&record, tumour, 1.5).specificity(), Some(1.0));
    }
}
