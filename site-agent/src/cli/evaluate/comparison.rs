//! Two models on the same scans: by how much one is better than the other, class by class, with an interval.
//!
//! The same scans with the same labels, or there is no comparison. Both scores of a scan are resampled together, so that a
//! small difference that all scans show is not lost among hard and easy scans.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{ClassId, TaxonomyDigest};
use common::metrics::paired_interval;
use common::report::METRIC_VERSION;
use common::rng::KeyedRng;

use super::record::{Agreement, Record, ScanRecord};

/// Most scans that an error names.
const NAMED: usize = 5;

/// A model beside another one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Comparison {
    /// What the other evaluation scored, in words.
    pub with: String,
    /// The classes that some scan shows, by id.
    pub classes: Vec<Difference>,
}

/// One class, over the scans that show it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Difference {
    pub class: ClassId,
    pub scans: usize,
    pub patients: usize,
    pub dice: Change,
    pub nsd: Change,
}

/// The mean of this model's scores less the other's, and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// Two evaluations that cannot be compared.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum ComparisonError {
    /// It was stopped and is not whole yet.
    #[error("it is partial: {scored} of {asked} scans are scored")]
    Partial { scored: usize, asked: usize },
    /// Not the same scans.
    #[error("it is of other scans: {}", scans_in_words(.only_now, .only_then))]
    Scans { only_now: Vec<String>, only_then: Vec<String> },
    /// Labels were changed in between.
    #[error("`{scan}` annotates or shows other classes than it did")]
    Labels { scan: String },
    /// Class ids mean something else.
    #[error("it is of taxonomy {}, expected {}", .then.short(), .now.short())]
    Taxonomy { now: TaxonomyDigest, then: TaxonomyDigest },
    /// Scores mean something else.
    #[error("its metrics have version {then}, expected {now}")]
    Metrics { now: u32, then: u32 },
    /// Surface distances mean something else.
    #[error("its surface distances of class {class} are within {then} mm, expected {now} mm")]
    Tolerance { class: ClassId, now: f64, then: f64 },
}

/// Whether `earlier` is of these scans: what can be known before they are scored.
pub(super) fn check_scans<'a>(
    earlier: &Record,
    taxonomy: TaxonomyDigest,
    scans: impl Iterator<Item = &'a str>,
) -> Result<(), ComparisonError> {
    if earlier.taxonomy != taxonomy {
        return Err(ComparisonError::Taxonomy { now: taxonomy, then: earlier.taxonomy });
    }
    if earlier.metric_version != METRIC_VERSION {
        return Err(ComparisonError::Metrics { now: METRIC_VERSION, then: earlier.metric_version });
    }
    if !earlier.to_come.is_empty() {
        return Err(ComparisonError::Partial { scored: earlier.scans.len(), asked: earlier.asked() });
    }
    let now: BTreeSet<&str> = scans.collect();
    let then: BTreeSet<&str> = earlier.scans.iter().map(|scan| scan.scan.as_str()).collect();
    if now != then {
        let owned = |name: &&str| (*name).to_owned();
        return Err(ComparisonError::Scans {
            only_now: now.difference(&then).map(owned).collect(),
            only_then: then.difference(&now).map(owned).collect(),
        });
    }
    Ok(())
}

impl Comparison {
    /// Sets `record` beside an earlier one of the same scans. The resampling is keyed by `seed`.
    pub(super) fn of(record: &Record, earlier: &Record, seed: u64) -> Result<Self, ComparisonError> {
        check_scans(earlier, record.taxonomy, record.scans.iter().map(|scan| scan.scan.as_str()))?;
        check_tolerances(record, earlier)?;
        let by_name: BTreeMap<&str, &ScanRecord> =
            earlier.scans.iter().map(|scan| (scan.scan.as_str(), scan)).collect();
        let mut pairs: BTreeMap<ClassId, BTreeMap<&str, Vec<[Agreement; 2]>>> = BTreeMap::new();
        for now in &record.scans {
            let then = by_name.get(now.scan.as_str()).filter(|then| has_same_labels(now, then));
            let then = then.ok_or_else(|| ComparisonError::Labels { scan: now.scan.clone() })?;
            for (ours, theirs) in now.classes.iter().zip(&then.classes) {
                if let (Some(ours_agree), Some(theirs_agree)) = (ours.present, theirs.present) {
                    let of_class = pairs.entry(ours.class).or_default();
                    of_class.entry(now.patient.as_str()).or_default().push([ours_agree, theirs_agree]);
                }
            }
        }
        let classes = pairs.iter().map(|(&class, patients)| Difference::of(class, patients, seed));
        Ok(Self { with: earlier.scored.clone(), classes: classes.collect() })
    }
}

fn check_tolerances(record: &Record, earlier: &Record) -> Result<(), ComparisonError> {
    for now in &record.classes {
        let then = earlier.classes.iter().find(|then| then.class == now.class);
        if let Some(then) = then.filter(|then| then.tau_mm != now.tau_mm) {
            let (class, now, then) = (now.class, now.tau_mm, then.tau_mm);
            return Err(ComparisonError::Tolerance { class, now, then });
        }
    }
    Ok(())
}

fn has_same_labels(a: &ScanRecord, b: &ScanRecord) -> bool {
    let labels = |scan: &ScanRecord| -> Vec<(ClassId, bool)> {
        scan.classes.iter().map(|score| (score.class, score.present.is_some())).collect()
    };
    labels(a) == labels(b)
}

impl Difference {
    fn of(class: ClassId, patients: &BTreeMap<&str, Vec<[Agreement; 2]>>, seed: u64) -> Self {
        let key = KeyedRng::new(seed).sample(u32::from(class.get()));
        let change = |purpose: &str, of: fn(Agreement) -> f64| {
            let of_patient = |scans: &Vec<[Agreement; 2]>| -> Vec<[f64; 2]> {
                scans.iter().map(|pair| pair.map(of)).collect()
            };
            let pairs: Vec<Vec<[f64; 2]>> = patients.values().map(of_patient).collect();
            Change::of(&pairs, &key.clone().purpose(purpose))
        };
        Self {
            class,
            scans: patients.values().map(Vec::len).sum(),
            patients: patients.len(),
            dice: change("paired dice", |agreement| agreement.dice),
            nsd: change("paired nsd", |agreement| agreement.nsd),
        }
    }
}

impl Change {
    fn of(pairs: &[Vec<[f64; 2]>], key: &KeyedRng) -> Self {
        let differences: Vec<f64> = pairs.iter().flatten().map(|[now, then]| now - then).collect();
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        let (low, high) = paired_interval(pairs, &mut key.rng());
        Self { mean, low, high }
    }
}

/// Scans that only one of two evaluations has.
pub(super) fn scans_in_words(only_now: &[String], only_then: &[String]) -> String {
    let named = |scans: &[String]| {
        let names: Vec<String> = scans.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
        let more = scans.len().saturating_sub(NAMED);
        names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    let sides = [(only_now, "it lacks"), (only_then, "it alone has")];
    let sides = sides.into_iter().filter(|(scans, _)| !scans.is_empty());
    sides.map(|(scans, what)| format!("{what} {}", named(scans))).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn differences_are_paired_by_scan_and_resampled_by_patient() {
        let now = record(&[
            ("t/a", "anna", 6, Some(0.75), 1.0),
            ("t/b", "anna", 6, Some(1.0), 1.0),
            ("t/c", "bo", 6, Some(0.5), 1.0),
            ("t/c", "bo", 27, None, 0.0),
        ]);
        // Whatever the order in which the scans were scored.
        let then = record(&[
            ("t/c", "bo", 6, Some(0.75), 1.0),
            ("t/c", "bo", 27, None, 3.0),
            ("t/b", "anna", 6, Some(0.5), 1.0),
            ("t/a", "anna", 6, Some(0.25), 1.0),
        ]);
        let comparison = Comparison::of(&now, &then, 7).unwrap();
        let [liver] = &comparison.classes[..] else { panic!("{comparison:?}") };
        assert_eq!((liver.class.get(), liver.scans, liver.patients), (6, 3, 2));
        // Twice +1/2 and once -1/4; resampled: both of anna's, bo's, or all three.
        assert_eq!(liver.dice, Change { mean: 0.25, low: -0.25, high: 0.5 });
        assert_eq!(liver.nsd, Change { mean: 0.125, low: -0.125, high: 0.25 });
        assert_eq!(comparison, Comparison::of(&now, &then, 7).unwrap());
    }

    #[test]
    fn other_scans_are_refused_by_name() {
        let now = record(&[("t/a", "anna", 6, Some(0.5), 1.0), ("t/b", "bo", 6, Some(0.5), 1.0)]);
        let then = record(&[("t/a", "anna", 6, Some(0.5), 1.0), ("t/c", "cy", 6, Some(0.5), 1.0)]);
        let refused = Comparison::of(&now, &then, 7).unwrap_err();
        let (only_now, only_then) = (vec!["t/b".to_owned()], vec!["t/c".to_owned()]);
        assert_eq!(refused, ComparisonError::Scans { only_now, only_then });
        assert!(refused.to_string().ends_with("it lacks `t/b`; it alone has `t/c`"), "{refused}");
        let many: Vec<String> = (0..7).map(|i| i.to_string()).collect();
        assert_eq!(scans_in_words(&[], &many), "it alone has `0`, `1`, `2`, `3`, `4` and 2 more");
    }

    #[test]
    fn an_evaluation_that_was_stopped_is_refused_until_it_is_whole() {
        let now = record(&[("t/a", "anna", 6, Some(0.5), 1.0)]);
        let mut partial = now.clone();
        partial.to_come = vec!["t/b".to_owned()];
        let refused = Comparison::of(&now, &partial, 7).unwrap_err();
        assert_eq!(refused, ComparisonError::Partial { scored: 1, asked: 2 });
    }

    #[test]
    fn other_labels_tolerances_metrics_or_classes_are_refused() {
        let now = record(&[("t/a", "anna", 6, Some(0.5), 1.0)]);
        let gone = record(&[("t/a", "anna", 6, None, 1.0)]);
        let refused = |earlier: &Record| Comparison::of(&now, earlier, 7).unwrap_err();
        assert_eq!(refused(&gone), ComparisonError::Labels { scan: "t/a".to_owned() });

        let mut looser = now.clone();
        looser.classes[0].tau_mm = 3.0;
        let class = looser.classes[0].class;
        assert_eq!(refused(&looser), ComparisonError::Tolerance { class, now: 2.0, then: 3.0 });

        let mut newer = now.clone();
        newer.metric_version += 1;
        assert!(matches!(refused(&newer), ComparisonError::Metrics { .. }));

        let mut foreign = now.clone();
        foreign.taxonomy = TaxonomyDigest(common::ids::Digest::of(b"another"));
        assert!(matches!(refused(&foreign), ComparisonError::Taxonomy { .. }));
    }
}
