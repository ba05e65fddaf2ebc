//! Scan after scan. With a folder, what was scored so far lies there after each of them: an evaluation that was stopped, in
//! whatever way, goes on where it was.
//!
//! It goes on with its own alone: the scores of another model, of other scans, or made in another way are not overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use common::ids::{Digest, ModelHash, RoundId, SiteId, StudyDigest};
use common::report::{CaseOutcome, EvaluationReport, METRIC_VERSION, ReportSubject};
use common::study::StudyDocument;

use super::comparison::scans_in_words;
use super::record::{EVALUATION, Record, ScanRecord};
use crate::cli::error_report::{CliError, Exit};
use crate::cli::line;
use crate::cli::window_progress::WindowProgress;
use crate::client::files;
use crate::data::cache::CaseKey;
use crate::data::dataset::Case;
use crate::data::preprocess::Preprocessing;
use crate::infer::InferError;
use crate::infer::evaluate::{ScanScores, numbered};
use crate::train::trainer::Cancel;

/// What decides the scores of a scan, beside the scan.
#[derive(Debug, PartialEq)]
pub(super) struct Basis {
    /// What is scored, in words.
    pub scored: String,
    /// The model, if it is one.
    pub model: Option<ModelHash>,
    /// See [`Record::beside`].
    pub beside: Option<Digest>,
    /// The study that says how.
    pub study: StudyDigest,
    /// Version of the metrics' definitions.
    pub metric_version: u32,
}

impl Basis {
    pub(super) fn new(
        scored: String,
        model: Option<ModelHash>,
        beside: Option<Digest>,
        study: StudyDigest,
    ) -> Self {
        Self { scored, model, beside, study, metric_version: METRIC_VERSION }
    }

    fn of(Record { scored, model, beside, study, metric_version, .. }: &Record) -> Self {
        let (scored, metric_version) = (scored.clone(), *metric_version);
        Self { scored, model: *model, beside: *beside, study: *study, metric_version }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.scored)?;
        let of = if self.model.is_some() { "embeddings" } else { "training scans" };
        self.beside.iter().try_for_each(|beside| write!(f, " ({of} {})", beside.short()))?;
        write!(f, ", study {}, metrics {}", self.study.short(), self.metric_version)
    }
}

/// An evaluation that a folder holds, and that is not the one to be made.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum OtherEvaluation {
    /// Another model, or another way to score.
    #[error("it is of {then}; expected {now}")]
    Basis { now: String, then: String },
    /// Not the same scans.
    #[error("it is of other scans: {}", scans_in_words(.only_now, .only_then))]
    Scans { only_now: Vec<String>, only_then: Vec<String> },
    /// A scan, its labels or what they mean.
    #[error("`{scan}` has changed since it was scored, or its labels have")]
    Changed { scan: String },
    /// Nothing tells whether the scans are the same.
    #[error("an earlier version wrote it, which did not note what was scored")]
    Unnoted,
}

/// Where a scan stands.
enum Standing {
    ToCome,
    Unscored,
    Scored(Scored),
}

/// A scan that is done with.
struct Scored {
    /// See [`ScanRecord::content`].
    content: Option<Digest>,
    scores: ScanScores,
}

impl Standing {
    fn scored(&self) -> Option<&Scored> {
        match self {
            Self::Scored(scored) => Some(scored),
            Self::ToCome | Self::Unscored => None,
        }
    }
}

/// An evaluation to be made, or to go on with.
pub(super) struct Scoring<'a> {
    /// This site.
    pub site: SiteId,
    pub document: &'a StudyDocument,
    pub basis: Basis,
    /// How scans are read.
    pub preprocessing: Preprocessing,
    pub cases: &'a [&'a Case],
    /// Where scores are kept.
    pub out: Option<&'a Path>,
    pub cancel: &'a Cancel,
}

impl Scoring<'_> {
    /// Scores every case that can be scored and was not before, a line for each, until it is cancelled.
    pub(super) fn run(
        &self,
        score: &dyn Fn(&Case) -> Result<ScanScores, InferError>,
        progress: Option<&WindowProgress<'_>>,
    ) -> Result<Record, CliError> {
        let mut standings = self.kept()?;
        for (index, &case) in self.cases.iter().enumerate() {
            if self.cancel.is_cancelled() {
                break;
            }
            if standings[index].scored().is_some() {
                continue;
            }
            if let Some(progress) = progress {
                progress.scan(index + 1, self.cases.len(), &case.name);
            }
            let scored = self.score(case, score);
            if let Some(progress) = progress {
                progress.clear();
            }
            standings[index] = match scored {
                Ok(scored) => {
                    line(scan_line(case, &scored.scores));
                    Standing::Scored(scored)
                }
                // It stopped because it was asked to.
                Err(_) if self.cancel.is_cancelled() => break,
                // A picture that could not be written: no other case would fare better.
                Err(error @ InferError::File(_)) => return Err(error.into()),
                Err(fault) => {
                    line(format!("{:<40} not scored", case.name));
                    // The exit code is that of all scans together.
                    let _ = CliError::new(fault).about(case.name.clone()).report();
                    Standing::Unscored
                }
            };
            self.keep(&standings)?;
        }
        Ok(self.record(&standings))
    }

    fn score(
        &self,
        case: &Case,
        score: &dyn Fn(&Case) -> Result<ScanScores, InferError>,
    ) -> Result<Scored, InferError> {
        let content = self.out.map(|_| self.content(case)).transpose()?;
        Ok(Scored { content, scores: score(case)? })
    }

    fn content(&self, case: &Case) -> Result<Digest, InferError> {
        let taxonomy = self.document.study().taxonomy.digest();
        Ok(CaseKey::of(case, &self.preprocessing, taxonomy)?.digest())
    }

    /// Nothing is kept before a scan is scored: what the folder holds is then of no use to anybody.
    fn keep(&self, standings: &[Standing]) -> Result<(), CliError> {
        match self.out {
            Some(out) if standings.iter().any(|standing| standing.scored().is_some()) => {
                Ok(files::write_json(&out.join(EVALUATION), &self.record(standings))?)
            }
            _ => Ok(()),
        }
    }

    /// Where each scan stands by what the folder holds of this evaluation.
    fn kept(&self) -> Result<Vec<Standing>, CliError> {
        let nothing = || -> Vec<Standing> { self.cases.iter().map(|_| Standing::ToCome).collect() };
        let Some(out) = self.out.filter(|out| out.join(EVALUATION).exists()) else { return Ok(nothing()) };
        let hint = format!(
            "name another folder with --out, or move {} away; to go on with it, give the options, the model (--model) and the scans that it was begun with",
            out.display()
        );
        let earlier = Record::read(&out.join(EVALUATION)).map_err(|error| error.hint(hint.clone()))?;
        let refused = |other: OtherEvaluation| {
            let what = format!("{} holds another evaluation, which is not overwritten", out.display());
            CliError::new(anyhow::Error::new(other).context(what)).exit(Exit::Data).hint(hint.clone())
        };
        self.check(&earlier).map_err(refused)?;
        let scored: BTreeMap<&str, &ScanRecord> =
            earlier.scans.iter().map(|scan| (scan.scan.as_str(), scan)).collect();
        let mut standings = nothing();
        for (&case, standing) in self.cases.iter().zip(&mut standings) {
            let Some(scan) = scored.get(case.name.as_str()) else { continue };
            if self.cancel.is_cancelled() {
                return Err(interrupted_early());
            }
            let unreadable = |error| CliError::new(error).about(case.name.clone()).hint(hint.clone());
            let content = Some(self.content(case).map_err(unreadable)?);
            if content != scan.content {
                return Err(refused(OtherEvaluation::Changed { scan: case.name.clone() }));
            }
            *standing = Standing::Scored(Scored { content, scores: scan.scores() });
        }
        line(format!("going on: {} of {} scans are scored", earlier.scans.len(), self.cases.len()));
        Ok(standings)
    }

    /// Whether an earlier evaluation is this one, as far as can be known without reading a scan.
    fn check(&self, earlier: &Record) -> Result<(), OtherEvaluation> {
        let (now, then) = (&self.basis, Basis::of(earlier));
        if *now != then {
            return Err(OtherEvaluation::Basis { now: now.to_string(), then: then.to_string() });
        }
        if earlier.scans.iter().any(|scan| scan.content.is_none()) {
            return Err(OtherEvaluation::Unnoted);
        }
        let now: BTreeSet<&str> = self.cases.iter().map(|case| case.name.as_str()).collect();
        let scored = earlier.scans.iter().map(|scan| &scan.scan);
        let then: BTreeSet<&str> = scored.chain(&earlier.to_come).map(String::as_str).collect();
        // A scan that could not be scored may have been mended since, or left out.
        let unscored: BTreeSet<&str> = earlier.unscored.iter().map(String::as_str).collect();
        let owned = |name: &&str| (*name).to_owned();
        let only_now: Vec<String> =
            now.difference(&then).filter(|name| !unscored.contains(*name)).map(owned).collect();
        let only_then: Vec<String> = then.difference(&now).map(owned).collect();
        match only_now.is_empty() && only_then.is_empty() {
            true => Ok(()),
            false => Err(OtherEvaluation::Scans { only_now, only_then }),
        }
    }

    fn record(&self, standings: &[Standing]) -> Record {
        let study = self.document.study();
        let all = || self.cases.iter().copied().zip(standings);
        let scored = || all().filter_map(|(case, standing)| Some((case, standing.scored()?)));
        let scores = numbered(scored().map(|(case, scored)| (case, &scored.scores)));
        let subject = ReportSubject {
            site: self.site.clone(),
            model: self.basis.model.unwrap_or(study.initial_model),
            round: RoundId(0),
            study: self.document.digest(),
            taxonomy: study.taxonomy.digest(),
        };
        let tau_mm = |class| study.evaluation.nsd_tolerance_mm.of(class);
        // It stays here: there is nobody to hide small numbers from.
        let report = EvaluationReport::summarise(subject, &scores, tau_mm, 1, study.seed);
        let names = scored().map(|(case, _)| (case.name.as_str(), case.patient.as_str()));
        let (scored_words, model) = (self.basis.scored.clone(), self.basis.model);
        let mut record = Record::of(scored_words, model, report, names, &scores, study.seed);
        record.beside = self.basis.beside;
        for (scan, (_, scored)) in record.scans.iter_mut().zip(scored()) {
            scan.content = scored.content;
        }
        for (case, standing) in all() {
            match standing {
                Standing::ToCome => record.to_come.push(case.name.clone()),
                Standing::Unscored => record.unscored.push(case.name.clone()),
                Standing::Scored(_) => {}
            }
        }
        record
    }
}

/// Stopped before anything was done that could be kept.
pub(super) fn interrupted_early() -> CliError {
    CliError::new(anyhow::anyhow!("interrupted before a scan was scored"))
        .hint("nothing has changed; the same command begins again")
}

/// The mean over the classes of one scan.
fn scan_line(case: &Case, scores: &ScanScores) -> String {
    let dice: Vec<f64> = scores
        .values()
        .filter_map(|outcome| match outcome {
            CaseOutcome::Present { dice, .. } => Some(*dice),
            CaseOutcome::Absent { .. } => None,
        })
        .collect();
    if dice.is_empty() {
        return format!("{:<40} shows none of the classes that it annotates", case.name);
    }
    let mean = dice.iter().sum::<f64>() / dice.len() as f64;
    format!("{:<40} {:>2} classes, mean Dice {mean:.3}", case.name, dice.len())
}
