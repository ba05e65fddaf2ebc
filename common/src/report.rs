//! Evaluation report, version 1: how a published model does on a held-out site's own scans, class by class.
//!
//! Intervals are computed at the site by resampling patients, because the values of single cases never leave it. What would
//! tell of fewer patients than `min_count` is left out ([`crate::disclosure`]). There is no field for voxels, pictures or case
//! names, and none for how many tumours were found: of few patients, such a share is a count. A site sees it in its own files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Diagnostics, Problems};
use crate::disclosure::{ClassPatients, Disclosure};
use crate::ids::{ClassId, ModelHash, RoundId, SiteId, StudyDigest, TaxonomyDigest};
use crate::metrics::{Overlap, bootstrap_interval};
use crate::rng::KeyedRng;
use crate::signed::SignedDocument;

const FORMAT: &str = "consilium evaluation report 1";

/// Version of the metric definitions in [`crate::metrics`]; numbers of different versions are not compared.
pub const METRIC_VERSION: u32 = 1;

/// What was evaluated, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportSubject {
    /// The evaluator.
    pub site: SiteId,
    /// The model.
    pub model: ModelHash,
    /// The round whose model it is; 0 for the initial model.
    pub round: RoundId,
    /// The study.
    pub study: StudyDigest,
    /// Its taxonomy.
    pub taxonomy: TaxonomyDigest,
}

/// An evaluation report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationReport {
    format: String,
    /// What was evaluated.
    pub subject: ReportSubject,
    /// [`METRIC_VERSION`] of the site.
    pub metric_version: u32,
    /// Evaluated scans.
    pub volumes: u32,
    /// One entry per class that the site annotates, ascending.
    pub classes: Vec<ClassReport>,
}

/// Figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassReport {
    /// The class.
    pub class: ClassId,
    /// Tolerance of the surface distance, millimetres.
    pub tau_mm: f64,
    /// Scans that contain the class; none where there are none, or small numbers keep it back.
    pub present: Option<PresentSummary>,
    /// Scans without it; likewise.
    pub absent: Option<AbsentSummary>,
}

/// Over scans whose truth contains the class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresentSummary {
    /// Scans; the site's `min_count` where scores alone may leave ([`Disclosure::Scores`]): at least so many.
    pub n: u32,
    /// Patients; likewise.
    pub patients: u32,
    /// Mean Dice, 0 to 1, without smoothing, on the native label grid.
    pub mean_dice: f64,
    /// Lower end of the 95 % interval of the mean.
    pub ci_low: f64,
    /// Upper end.
    pub ci_high: f64,
    /// Mean normalised surface distance at `tau_mm`, 0 to 1.
    pub mean_nsd: f64,
}

/// Over scans whose truth does not contain the class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbsentSummary {
    /// Scans.
    pub n: u32,
    /// Patients.
    pub patients: u32,
    /// Mean volume of false positives, millilitres.
    pub false_positive_volume_ml: f64,
}

/// Score of one class on one scan. Stays at the site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaseScore {
    /// Number of the patient among the site's own; scans of one patient share it.
    pub patient: u32,
    /// Number of the scan.
    pub scan: u32,
    /// The class.
    pub class: ClassId,
    /// What was measured.
    pub outcome: CaseOutcome,
}

/// What was measured for one class on one scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CaseOutcome {
    /// The truth contains the class.
    Present {
        /// Dice, 0 to 1.
        dice: f64,
        /// Normalised surface distance, 0 to 1.
        nsd: f64,
        /// Volume predicted, millilitres: a tumour that is missed by its Dice may still be found.
        predicted_ml: f64,
        /// What Dice is made of, and recall, precision and specificity are; none where an earlier version measured it.
        voxels: Option<Overlap>,
    },
    /// It does not.
    Absent {
        /// Volume predicted all the same, millilitres.
        false_positive_volume_ml: f64,
    },
}

impl EvaluationReport {
    /// Summarises a site's scores. `tau_mm` gives each class's tolerance, `min_count` is in patients; the resampling is
    /// keyed by `seed`, so that the same scores give the same bytes.
    pub fn summarise(
        subject: ReportSubject,
        scores: &[CaseScore],
        tau_mm: impl Fn(ClassId) -> f64,
        min_count: u32,
        seed: u64,
    ) -> Self {
        let scans: BTreeSet<u32> = scores.iter().map(|score| score.scan).collect();
        let mut by_class: BTreeMap<ClassId, Vec<&CaseScore>> = BTreeMap::new();
        // Sums of floats depend on their order: the scans' own makes the report independent of who finished first.
        let mut scores: Vec<&CaseScore> = scores.iter().collect();
        scores.sort_by_key(|score| (score.class, score.patient, score.scan));
        for score in scores {
            by_class.entry(score.class).or_default().push(score);
        }
        let keyed = KeyedRng::new(seed).site(&subject.site).round(subject.round);
        let class_report = |(class, scores): (ClassId, Vec<&CaseScore>)| {
            let keyed = keyed.clone().sample(u32::from(class.get()));
            ClassReport::of(class, tau_mm(class), &scores, min_count, &keyed)
        };
        Self {
            format: FORMAT.to_owned(),
            subject,
            metric_version: METRIC_VERSION,
            volumes: count(scans.len()),
            classes: by_class.into_iter().map(class_report).collect(),
        }
    }

    /// Mean of the classes' mean Dice over those of `classes` that are reported; none when none is.
    pub fn mean_dice(&self, mut classes: impl FnMut(ClassId) -> bool) -> Option<f64> {
        let reported = self.classes.iter().filter(|report| classes(report.class));
        let values: Vec<f64> =
            reported.filter_map(|report| report.present.as_ref()).map(|p| p.mean_dice).collect();
        (!values.is_empty()).then(|| mean(&values))
    }

    fn problems(&self) -> Problems {
        let mut problems = Problems::new();
        if self.format != FORMAT {
            problems.add_allowed("format", format!("`{}`", self.format), FORMAT);
        }
        if !self.classes.is_sorted_by(|a, b| a.class < b.class) {
            problems.add("classes", "are not in strictly ascending order");
        }
        for report in &self.classes {
            report.check(self.volumes, &mut problems);
        }
        problems
    }
}

impl ClassReport {
    fn of(class: ClassId, tau_mm: f64, scores: &[&CaseScore], min_count: u32, keyed: &KeyedRng) -> Self {
        let mut patients = ClassPatients::default();
        for score in scores {
            patients.add(score.patient, matches!(score.outcome, CaseOutcome::Present { .. }));
        }
        let (present, absent) = match patients.disclosure(min_count) {
            Disclosure::Counts => (PresentSummary::of(scores, keyed), AbsentSummary::of(scores)),
            // Of the others not even a mean: voxels over scans, it may tell the number of scans.
            Disclosure::Scores => {
                let uncounted = |summary| PresentSummary { n: min_count, patients: min_count, ..summary };
                (PresentSummary::of(scores, keyed).map(uncounted), None)
            }
            Disclosure::Nothing => (None, None),
        };
        Self { class, tau_mm, present, absent }
    }

    fn check(&self, volumes: u32, problems: &mut Problems) {
        let key = |field: &str| format!("classes.{}.{field}", self.class);
        problems.in_range(&key("tau_mm"), self.tau_mm, 0.0..=1e3);
        if let Some(present) = &self.present {
            problems.in_range(&key("present.n"), present.n, 1..=volumes.max(1));
            problems.in_range(&key("present.patients"), present.patients, 1..=present.n.max(1));
            problems.in_range(&key("present.mean_dice"), present.mean_dice, 0.0..=1.0);
            problems.in_range(&key("present.mean_nsd"), present.mean_nsd, 0.0..=1.0);
            problems.in_range(&key("present.ci_low"), present.ci_low, 0.0..=1.0);
            problems.in_range(&key("present.ci_high"), present.ci_high, present.ci_low..=1.0);
        }
        if let Some(absent) = &self.absent {
            problems.in_range(&key("absent.n"), absent.n, 1..=volumes.max(1));
            problems.in_range(&key("absent.patients"), absent.patients, 1..=absent.n.max(1));
            problems.in_range(
                &key("absent.false_positive_volume_ml"),
                absent.false_positive_volume_ml,
                0.0..=1e7,
            );
        }
    }
}

impl PresentSummary {
    /// None where no scan has the class.
    fn of(scores: &[&CaseScore], keyed: &KeyedRng) -> Option<Self> {
        let mut by_patient: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let mut nsds = Vec::new();
        for score in scores {
            if let CaseOutcome::Present { dice, nsd, .. } = score.outcome {
                by_patient.entry(score.patient).or_default().push(dice);
                nsds.push(nsd);
            }
        }
        if by_patient.is_empty() {
            return None;
        }
        let patients = count(by_patient.len());
        let by_patient: Vec<Vec<f64>> = by_patient.into_values().collect();
        let (ci_low, ci_high) =
            bootstrap_interval(&by_patient, &mut keyed.clone().purpose("bootstrap").rng());
        let mean_dice = mean(&by_patient.concat());
        Some(Self { n: count(nsds.len()), patients, mean_dice, ci_low, ci_high, mean_nsd: mean(&nsds) })
    }
}

impl AbsentSummary {
    /// None where every scan has the class.
    fn of(scores: &[&CaseScore]) -> Option<Self> {
        let mut patients = BTreeSet::new();
        let mut volumes = Vec::new();
        for score in scores {
            if let CaseOutcome::Absent { false_positive_volume_ml } = score.outcome {
                patients.insert(score.patient);
                volumes.push(false_positive_volume_ml);
            }
        }
        let (n, patients) = (count(volumes.len()), count(patients.len()));
        (n > 0).then(|| Self { n, patients, false_positive_volume_ml: mean(&volumes) })
    }
}

impl SignedDocument for EvaluationReport {
    const MAX_BYTES: usize = 256 << 10;

    fn to_bytes(&self) -> Vec<u8> {
        // Invariant: every field has a JSON form.
        serde_json::to_vec(self).expect("a report has a JSON form")
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Diagnostics> {
        let file = "evaluation report";
        let report: Self = serde_json::from_slice(bytes)
            .map_err(|error| Diagnostics::whole_file(file, error.to_string()))?;
        report.problems().into_result(file)?;
        Ok(report)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Signer;
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{ArtifactHash, Digest};
    use crate::signed::{Signed, SignedError, SigningKey};

    fn subject() -> ReportSubject {
        ReportSubject {
            site: "held-out".parse().unwrap(),
            model: ArtifactHash(Digest::of(b"model")),
            round: RoundId(3),
            study: StudyDigest(Digest::of(b"study")),
            taxonomy: TaxonomyDigest(Digest::of(b"taxonomy")),
        }
    }

    fn present(patient: u32, class: u8, dice: f64) -> CaseScore {
        let outcome = CaseOutcome::Present { dice, nsd: dice / 2.0, predicted_ml: 1.0, voxels: None };
        CaseScore { patient, scan: patient, class: ClassId::new(class).unwrap(), outcome }
    }

    fn absent(patient: u32, class: u8, false_positive_volume_ml: f64) -> CaseScore {
        let outcome = CaseOutcome::Absent { false_positive_volume_ml };
        CaseScore { patient, scan: patient, class: ClassId::new(class).unwrap(), outcome }
    }

    fn summarise(scores: &[CaseScore], min_count: u32) -> EvaluationReport {
        EvaluationReport::summarise(subject(), scores, |_| 3.0, min_count, 1)
    }

    #[test]
    fn scans_with_and_without_the_class_are_summarised_apart() {
        let scores = [present(1, 6, 0.9), present(2, 6, 0.7), absent(3, 6, 4.0), absent(4, 6, 2.0)];
        let report = summarise(&scores, 2);
        let liver = &report.classes[0];
        let found = liver.present.as_ref().unwrap();
        assert_eq!((found.n, found.patients), (2, 2));
        assert!((found.mean_dice - 0.8).abs() < 1e-12 && (found.mean_nsd - 0.4).abs() < 1e-12);
        assert_eq!((found.ci_low, found.ci_high), (0.7, 0.9));
        assert_eq!(liver.absent.as_ref().unwrap().false_positive_volume_ml, 3.0);
        assert_eq!((report.volumes, report.mean_dice(|_| true)), (4, Some(found.mean_dice)));
    }

    #[test]
    fn numbers_over_too_few_patients_are_left_out() {
        let two_scans_of_one = [present(1, 6, 0.9), CaseScore { scan: 9, ..present(1, 6, 0.5) }];
        assert_eq!(summarise(&two_scans_of_one, 2).classes[0].present, None);
        assert_eq!(summarise(&two_scans_of_one, 2).mean_dice(|_| true), None);
        assert!(summarise(&two_scans_of_one, 1).classes[0].present.is_some());
    }

    /// Of twenty patients with a scan each, so many show the liver, all alike.
    fn of_twenty(shown: u32) -> EvaluationReport {
        let score =
            |patient| if patient < shown { present(patient, 6, 0.5) } else { absent(patient, 6, 2.0) };
        summarise(&(0..20).map(score).collect::<Vec<_>>(), 5)
    }

    #[test]
    fn how_few_have_a_class_does_not_follow_from_how_many_have_not() {
        for shown in 1..5 {
            let report = of_twenty(shown);
            assert_eq!(report, of_twenty(1), "{shown} of 20");
            assert_eq!((&report.classes[0].present, &report.classes[0].absent), (&None, &None));
        }
        let nobody = of_twenty(0).classes.remove(0);
        assert_eq!((nobody.present, nobody.absent.map(|absent| absent.n)), (None, Some(20)));
    }

    #[test]
    fn how_few_lack_a_class_does_not_follow_from_how_many_have_it() {
        for shown in 16..20 {
            let report = of_twenty(shown);
            assert_eq!(report, of_twenty(16), "{shown} of 20");
            let (present, absent) = (report.classes[0].present.as_ref().unwrap(), &report.classes[0].absent);
            assert_eq!((present.n, present.patients, present.mean_dice, absent), (5, 5, 0.5, &None));
        }
        let counted = of_twenty(15).classes.remove(0);
        assert_eq!(counted.present.map(|present| present.n), Some(15));
        assert_eq!(counted.absent.map(|absent| absent.n), Some(5));
    }

    /// As long as one can be: every class that there can be, every number with all its digits.
    fn longest() -> EvaluationReport {
        let (n, patients, least) = (u32::MAX, u32::MAX, f64::MIN_POSITIVE);
        let class = |class| ClassReport {
            class,
            tau_mm: least,
            present: Some(PresentSummary {
                n,
                patients,
                mean_dice: least,
                ci_low: least,
                ci_high: least,
                mean_nsd: least,
            }),
            absent: Some(AbsentSummary { n, patients, false_positive_volume_ml: least }),
        };
        let classes = (1..=u8::MAX).filter_map(ClassId::new).map(class).collect();
        let subject = ReportSubject { site: "s".repeat(40).parse().unwrap(), ..subject() };
        EvaluationReport { volumes: n, classes, subject, ..summarise(&[], 1) }
    }

    #[test]
    fn the_longest_report_is_taken_and_one_of_spaces_is_not() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let signed = Signed::sign(&longest(), &key);
        assert_eq!(signed.verify(&key.verifying_key()).unwrap(), longest());
        let mut spaced = longest().to_bytes();
        spaced.resize(spaced.len() + (1 << 20), b' ');
        let signature = key.sign(&spaced).to_bytes();
        let refused = Signed::<EvaluationReport>::from_parts(spaced, signature).verify(&key.verifying_key());
        assert!(matches!(refused, Err(SignedError::TooLong { .. })), "{refused:?}");
    }

    #[test]
    fn a_report_that_contradicts_itself_is_refused() {
        let text =
            String::from_utf8(summarise(&[present(1, 6, 0.9), present(2, 6, 0.7)], 1).to_bytes()).unwrap();
        let damage = [
            ("\"ci_low\":0.7", "\"ci_low\":0.95"),
            ("\"n\":2", "\"n\":3"),
            ("\"patients\":2", "\"patients\":0"),
            ("\"mean_nsd\":0.4", "\"mean_nsd\":1.4"),
            ("\"absent\":null", "\"absent\":null,\"cases\":[]"),
            ("report 1", "report 2"),
        ];
        for (from, to) in damage {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(EvaluationReport::from_bytes(changed.as_bytes()).is_err(), "{to}");
        }
    }

    proptest! {
        /// An organ that every scan shows tells the number of patients; a tumour is in some of their scans.
        #[test]
        fn no_counts_of_a_report_together_tell_of_a_few_patients(
            scans in proptest::collection::vec((0u32..14, any::<bool>()), 0..40),
            min_count in 1u32..6,
        ) {
            let both = |(scan, &(patient, shown)): (u32, &(u32, bool))| {
                let tumour = if shown { present(patient, 27, 0.5) } else { absent(patient, 27, 2.0) };
                [present(patient, 6, 0.5), tumour].map(|score| CaseScore { scan, ..score })
            };
            let report = summarise(&(0..).zip(&scans).flat_map(both).collect::<Vec<_>>(), min_count);
            let [organ, tumour] = &report.classes[..] else { return Ok(()) };
            let Some(all) = organ.present.as_ref().map(|present| present.patients) else { return Ok(()) };
            match (&tumour.present, &tumour.absent) {
                (Some(with), Some(without)) => {
                    let (with, without) = (with.patients, without.patients);
                    let groups = [all - with, all - without, with + without - all];
                    prop_assert!(groups.iter().all(|&n| n == 0 || n >= min_count), "{groups:?}");
                }
                (Some(with), None) => {
                    let told = (with.n, with.patients);
                    let exact = (report.volumes, all);
                    prop_assert!(told == exact || told == (min_count, min_count), "{told:?}");
                }
                (None, Some(without)) => {
                    prop_assert_eq!((without.n, without.patients), (report.volumes, all));
                }
                (None, None) => {}
            }
        }

        #[test]
        fn every_summary_reads_back_whatever_the_order_of_scores(
            scores in proptest::collection::vec((0u32..6, 0u32..9, 1u8..33, 0.0..=1.0f64, any::<bool>()), 0..40),
            min_count in 0u32..4,
        ) {
            let score = |&(patient, scan, class, value, is_present): &(u32, u32, u8, f64, bool)| {
                let score = if is_present { present(patient, class, value) } else { absent(patient, class, value) };
                // A scan has one score per class: number it by both.
                CaseScore { scan: patient * 100 + scan, ..score }
            };
            let mut seen = BTreeSet::new();
            let mut scores: Vec<CaseScore> = scores.iter().map(score).collect();
            scores.retain(|score| seen.insert((score.scan, score.class)));
            let report = summarise(&scores, min_count);
            prop_assert_eq!(&EvaluationReport::from_bytes(&report.to_bytes()).unwrap(), &report);
            scores.reverse();
            prop_assert_eq!(summarise(&scores, min_count), report);
        }
    }
}
