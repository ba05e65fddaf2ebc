//! Evaluation report, version 1: how a published model does on a held-out site's own scans, class by class.
//!
//! Intervals are computed at the site by resampling patients, because the values of single cases never leave it. A summary
//! over fewer patients than the study's `min_count` is left out. There is no field for voxels, pictures or case names.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Diagnostics, Problems};
use crate::ids::{ClassId, ModelHash, RoundId, SiteId, StudyDigest, TaxonomyDigest};
use crate::metrics::bootstrap_interval;
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
    /// Scans that contain the class; none below `min_count` patients.
    pub present: Option<PresentSummary>,
    /// Scans without it; none below `min_count` patients.
    pub absent: Option<AbsentSummary>,
}

/// Over scans whose truth contains the class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresentSummary {
    /// Scans.
    pub n: u32,
    /// Patients.
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
        for score in scores {
            by_class.entry(score.class).or_default().push(score);
        }
        let keyed = KeyedRng::new(seed).site(&subject.site).round(subject.round);
        let class_report = |(class, scores): (ClassId, Vec<&CaseScore>)| ClassReport {
            class,
            tau_mm: tau_mm(class),
            present: PresentSummary::of(&scores, min_count, &keyed.clone().sample(u32::from(class.get()))),
            absent: AbsentSummary::of(&scores, min_count),
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
    fn of(scores: &[&CaseScore], min_count: u32, keyed: &KeyedRng) -> Option<Self> {
        let mut by_patient: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let mut nsds = Vec::new();
        for score in scores {
            if let CaseOutcome::Present { dice, nsd } = score.outcome {
                by_patient.entry(score.patient).or_default().push(dice);
                nsds.push(nsd);
            }
        }
        let patients = count(by_patient.len());
        if patients < min_count.max(1) {
            return None;
        }
        let by_patient: Vec<Vec<f64>> = by_patient.into_values().collect();
        let (ci_low, ci_high) =
            bootstrap_interval(&by_patient, &mut keyed.clone().purpose("bootstrap").rng());
        let mean_dice = mean(&by_patient.concat());
        Some(Self { n: count(nsds.len()), patients, mean_dice, ci_low, ci_high, mean_nsd: mean(&nsds) })
    }
}

impl AbsentSummary {
    fn of(scores: &[&CaseScore], min_count: u32) -> Option<Self> {
        let mut patients = BTreeSet::new();
        let mut volumes = Vec::new();
        for score in scores {
            if let CaseOutcome::Absent { false_positive_volume_ml } = score.outcome {
                patients.insert(score.patient);
                volumes.push(false_positive_volume_ml);
            }
        }
        let patients = count(patients.len());
        let enough = patients >= min_count.max(1);
        enough.then(|| Self { n: count(volumes.len()), patients, false_positive_volume_ml: mean(&volumes) })
    }
}

impl SignedDocument for EvaluationReport {
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
