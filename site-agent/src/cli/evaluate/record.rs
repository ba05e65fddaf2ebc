//! `evaluation.json`: an evaluation as the site keeps it, scan by scan, and the same as `scores.csv`.
//!
//! It names scans and patients: no message carries it, and [`CaseScore`]s have no written form anywhere else.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use common::csv;
use common::ids::{ClassId, Digest, ModelHash, StudyDigest, TaxonomyDigest};
use common::metrics::{Overlap, bootstrap_interval};
use common::report::{CaseOutcome, CaseScore, ClassReport, EvaluationReport};
use common::rng::KeyedRng;
use common::taxonomy::Taxonomy;
use serde::{Deserialize, Serialize};

use crate::cli::error_report::{CliError, Exit};
use crate::client::files;
use crate::infer::evaluate::ScanScores;

/// Its name in the folder of an evaluation.
pub(super) const EVALUATION: &str = "evaluation.json";

const FORMAT: &str = "consilium evaluation 1";

/// What one model scores on each scan, and over all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: String,
    /// What was scored, in words.
    pub scored: String,
    /// The model, if it was one.
    pub model: Option<ModelHash>,
    /// Digest of what else was scored: what a baseline learnt, or embeddings that are not the study's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Digest>,
    /// The study that says how.
    pub study: StudyDigest,
    /// Its classes.
    pub taxonomy: TaxonomyDigest,
    /// Version of the metrics' definitions.
    pub metric_version: u32,
    /// Figures over all scans, by class.
    pub classes: Vec<ClassReport>,
    /// 95 % interval of the mean surface distance of each class that several patients show; reports have no field for it. Nothing in
    /// what earlier versions wrote.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nsd_intervals: BTreeMap<ClassId, [f64; 2]>,
    /// The scans, in the order in which they were scored.
    pub scans: Vec<ScanRecord>,
    /// Scans that could not be scored, by name: none of the figures is of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unscored: Vec<String>,
    /// Scans whose turn did not come before it was stopped: where there are any, all figures are partial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_come: Vec<String>,
}

/// The scores of one scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScanRecord {
    /// Its name, `dataset/case`.
    pub scan: String,
    /// Whose it is.
    pub patient: String,
    /// Digest of what was scored: scan, labels, and what the labels mean. Only where the evaluation can go on from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// The classes that it annotates, ascending.
    pub classes: Vec<ScoreRecord>,
}

/// The score of one class on one scan.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScoreRecord {
    /// The class.
    pub class: ClassId,
    /// None where the truth does not show the class: all that is predicted is false then.
    pub present: Option<Agreement>,
    /// Volume predicted, millilitres.
    pub predicted_ml: f64,
}

/// How well a prediction agrees with a truth that shows the class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Agreement {
    /// Dice, 0 to 1.
    pub dice: f64,
    /// Normalised surface distance, 0 to 1.
    pub nsd: f64,
    /// Voxels of the scan by prediction and truth. Nothing in what earlier versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voxels: Option<Overlap>,
}

impl Record {
    /// Scores with the names that they are numbered by: `scans` are name and patient of each, in the order of the numbers. All
    /// scans are among them. Resampling is keyed by `seed`.
    pub(super) fn of<'a>(
        scored: String,
        model: Option<ModelHash>,
        report: EvaluationReport,
        scans: impl Iterator<Item = (&'a str, &'a str)>,
        scores: &[CaseScore],
        seed: u64,
    ) -> Self {
        let unscored = |(scan, patient): (&str, &str)| ScanRecord {
            scan: scan.to_owned(),
            patient: patient.to_owned(),
            content: None,
            classes: Vec::new(),
        };
        let mut scans: Vec<ScanRecord> = scans.map(unscored).collect();
        for score in scores {
            if let Some(scan) = scans.get_mut(score.scan as usize) {
                scan.classes.push(ScoreRecord::of(score));
            }
        }
        let mut record = Self {
            format: FORMAT.to_owned(),
            scored,
            model,
            beside: None,
            study: report.subject.study,
            taxonomy: report.subject.taxonomy,
            metric_version: report.metric_version,
            classes: report.classes,
            nsd_intervals: BTreeMap::new(),
            scans,
            unscored: Vec::new(),
            to_come: Vec::new(),
        };
        let classes = record.classes.iter().map(|class| class.class);
        record.nsd_intervals =
            classes.filter_map(|class| Some((class, record.nsd_interval(class, seed)?))).collect();
        record
    }

    /// Reads an `evaluation.json`.
    pub(super) fn read(path: &Path) -> Result<Self, CliError> {
        let unreadable = |error: anyhow::Error| {
            let hint = "name an evaluation.json that `site-agent evaluate --out` of this version wrote";
            CliError::new(error.context(path.display().to_string())).exit(Exit::Data).hint(hint)
        };
        let bytes = files::read(path)?;
        let record: Self = serde_json::from_slice(&bytes).context("no evaluation").map_err(unreadable)?;
        if record.format != FORMAT {
            let other = anyhow::anyhow!("`format` is `{}`: expected `{FORMAT}`", record.format);
            return Err(unreadable(other));
        }
        Ok(record)
    }

    /// The scans that were asked for, scored or not.
    pub(super) fn asked(&self) -> usize {
        self.scans.len() + self.unscored.len() + self.to_come.len()
    }

    /// None of one patient: resampled, that is always the same one.
    fn nsd_interval(&self, class: ClassId, seed: u64) -> Option<[f64; 2]> {
        let mut patients: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (scan, agreement) in self.agreements(class) {
            patients.entry(scan.patient.as_str()).or_default().push(agreement.nsd);
        }
        let patients: Vec<Vec<f64>> = patients.into_values().collect();
        let key = KeyedRng::new(seed).sample(u32::from(class.get())).purpose("nsd");
        let (low, high) = bootstrap_interval(&patients, &mut key.rng());
        (patients.len() > 1).then_some([low, high])
    }

    /// The scores of a class where the truth shows it, each with its scan.
    pub(super) fn agreements(&self, class: ClassId) -> impl Iterator<Item = (&ScanRecord, Agreement)> {
        self.scores(class).filter_map(|(scan, score)| Some((scan, score.present?)))
    }

    /// The scores of a class, each with its scan.
    pub(super) fn scores(&self, class: ClassId) -> impl Iterator<Item = (&ScanRecord, &ScoreRecord)> {
        self.all_scores().filter(move |(_, score)| score.class == class)
    }

    fn all_scores(&self) -> impl Iterator<Item = (&ScanRecord, &ScoreRecord)> {
        self.scans.iter().flat_map(|scan| scan.classes.iter().map(move |score| (scan, score)))
    }

    /// `scores.csv`: a line for each class of each scan.
    pub(super) fn to_csv(&self, taxonomy: &Taxonomy) -> String {
        let head = [
            "scan",
            "patient",
            "class",
            "name",
            "dice",
            "nsd",
            "false_positive_ml",
            "predicted_ml",
            "recall",
            "precision",
            "specificity",
            "reference_dice",
        ];
        let line = |(scan, score): (&ScanRecord, &ScoreRecord)| {
            let voxels = score.present.and_then(|present| present.voxels);
            csv::line([
                scan.scan.clone(),
                scan.patient.clone(),
                score.class.to_string(),
                taxonomy.name(score.class),
                csv::optional(score.present.map(|present| present.dice)),
                csv::optional(score.present.map(|present| present.nsd)),
                csv::optional(score.false_positive_ml()),
                score.predicted_ml.to_string(),
                csv::optional(voxels.and_then(|voxels| voxels.recall())),
                csv::optional(voxels.and_then(|voxels| voxels.precision())),
                csv::optional(voxels.and_then(|voxels| voxels.specificity())),
                csv::optional(voxels.map(|voxels| voxels.smoothed_dice())),
            ])
        };
        std::iter::once(csv::line(head)).chain(self.all_scores().map(line)).collect()
    }
}

impl ScanRecord {
    /// The scores, as they were measured.
    pub(super) fn scores(&self) -> ScanScores {
        self.classes.iter().map(|score| (score.class, score.outcome())).collect()
    }
}

impl ScoreRecord {
    fn of(score: &CaseScore) -> Self {
        let (present, predicted_ml) = match score.outcome {
            CaseOutcome::Present { dice, nsd, predicted_ml, voxels } => {
                (Some(Agreement { dice, nsd, voxels }), predicted_ml)
            }
            CaseOutcome::Absent { false_positive_volume_ml } => (None, false_positive_volume_ml),
        };
        Self { class: score.class, present, predicted_ml }
    }

    fn outcome(&self) -> CaseOutcome {
        let predicted_ml = self.predicted_ml;
        match self.present {
            Some(Agreement { dice, nsd, voxels }) => CaseOutcome::Present { dice, nsd, predicted_ml, voxels },
            None => CaseOutcome::Absent { false_positive_volume_ml: predicted_ml },
        }
    }

    /// Volume predicted where the class is not, millilitres.
    fn false_positive_ml(&self) -> Option<f64> {
        self.present.is_none().then_some(self.predicted_ml)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use common::ids::{ArtifactHash, Digest, RoundId};
    use common::report::ReportSubject;

    use super::*;

    /// A score to make a record of: scan, patient, class, Dice where the class is, millilitres predicted.
    pub(in crate::cli::evaluate) type Score<'a> = (&'a str, &'a str, u8, Option<f64>, f64);

    /// An evaluation with these scores; the surface distance is half the Dice.
    pub(in crate::cli::evaluate) fn record(scores: &[Score<'_>]) -> Record {
        let (mut scans, mut patients, mut numbered) = (Vec::new(), Vec::new(), Vec::new());
        for &(scan, patient, class, dice, predicted_ml) in scores {
            let outcome = match dice {
                Some(dice) => CaseOutcome::Present { dice, nsd: dice / 2.0, predicted_ml, voxels: None },
                None => CaseOutcome::Absent { false_positive_volume_ml: predicted_ml },
            };
            numbered.push(CaseScore {
                patient: number_of(&mut patients, patient),
                scan: number_of(&mut scans, (scan, patient)),
                class: ClassId::new(class).unwrap(),
                outcome,
            });
        }
        let subject = ReportSubject {
            site: "held-out".parse().unwrap(),
            model: ArtifactHash(Digest::of(b"model")),
            round: RoundId(0),
            study: StudyDigest(Digest::of(b"study")),
            taxonomy: Taxonomy::standard().digest(),
        };
        let report = EvaluationReport::summarise(subject, &numbered, |_| 2.0, 1, 7);
        Record::of("a model".to_owned(), None, report, scans.into_iter(), &numbered, 7)
    }

    fn number_of<T: PartialEq>(known: &mut Vec<T>, wanted: T) -> u32 {
        let number = known.iter().position(|one| *one == wanted).unwrap_or(known.len());
        if number == known.len() {
            known.push(wanted);
        }
        u32::try_from(number).unwrap()
    }

    #[test]
    fn the_csv_has_a_line_for_each_class_of_each_scan() {
        let record = record(&[
            ("trunk/a,1", "anna", 6, Some(0.5), 1500.0),
            ("trunk/a,1", "anna", 27, None, 0.25),
            ("trunk/b", "bo", 6, Some(0.75), 1200.5),
        ]);
        let expected = "scan,patient,class,name,dice,nsd,false_positive_ml,predicted_ml,recall,precision,specificity,reference_dice\n\
                        \"trunk/a,1\",anna,6,Liver,0.5,0.25,,1500,,,,\n\
                        \"trunk/a,1\",anna,27,Liver Tumor,,,0.25,0.25,,,,\n\
                        trunk/b,bo,6,Liver,0.75,0.375,,1200.5,,,,\n";
        assert_eq!(record.to_csv(&Taxonomy::standard()), expected);
    }

    #[test]
    fn voxel_counts_become_recall_precision_specificity_and_the_references_dice() {
        let mut record = record(&[("t/a", "anna", 6, Some(0.5), 1.0), ("t/b", "bo", 6, Some(0.0), 0.0)]);
        let counted = |record: &mut Record, scan: usize, voxels| {
            record.scans[scan].classes[0].present.as_mut().unwrap().voxels = Some(voxels);
        };
        let half = Overlap { true_positive: 3, false_positive: 1, false_negative: 5, true_negative: 15 };
        counted(&mut record, 0, half);
        // Nothing is predicted: there is no precision.
        counted(&mut record, 1, Overlap { false_negative: 4, true_negative: 8, ..Overlap::default() });
        let csv = record.to_csv(&Taxonomy::standard());
        let lines: Vec<&str> = csv.lines().skip(1).collect();
        // Of 12 voxels of both masks the reference's Dice has 13.
        let reference = 6.0 / 13.0;
        assert_eq!(lines[0], format!("t/a,anna,6,Liver,0.5,0.25,,1,0.375,0.75,0.9375,{reference}"));
        assert_eq!(lines[1], "t/b,bo,6,Liver,0,0,,0,0,,1,0");

        // An evaluation that goes on from the file has them too.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EVALUATION);
        files::write_json(&path, &record).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        let voxels = record.scans[0].scores().into_values().map(|outcome| match outcome {
            CaseOutcome::Present { voxels, .. } => voxels,
            CaseOutcome::Absent { .. } => None,
        });
        assert_eq!(voxels.collect::<Vec<_>>(), [Some(half)]);
    }

    #[test]
    fn a_written_record_reads_back_and_anything_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluation.json");
        let record =
            record(&[("trunk/a", "anna", 6, Some(0.5), 1500.0), ("trunk/a", "anna", 27, None, 0.25)]);
        files::write_json(&path, &record).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        let (liver, tumour) = (ClassId::new(6).unwrap(), ClassId::new(27).unwrap());
        let measured = [
            (liver, CaseOutcome::Present { dice: 0.5, nsd: 0.25, predicted_ml: 1500.0, voxels: None }),
            (tumour, CaseOutcome::Absent { false_positive_volume_ml: 0.25 }),
        ];
        assert_eq!(record.scans[0].scores(), ScanScores::from(measured));
        let text = String::from_utf8(files::read(&path).unwrap()).unwrap();
        // The last is what earlier versions wrote: figures without scans.
        for other in [text.replace("evaluation 1", "evaluation 2"), "{".to_owned(), "[]".to_owned()] {
            files::write(&path, other.as_bytes()).unwrap();
            let refused = Record::read(&path).unwrap_err().text();
            assert!(refused.contains("evaluation.json") && refused.contains("hint: "), "{refused}");
        }
    }
}
