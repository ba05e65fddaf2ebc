//! `site-agent evaluate`: a model, or a baseline, against this site's own labels. Nothing leaves.
//!
//! A scan that cannot be scored is named and the next one begun; what is written says that its figures are not of all scans.
//!
//! `record` is what is kept of it, `comparison` sets it beside an earlier one, `board` shows it.

mod board;
mod comparison;
mod detection;
mod record;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::Args;
use common::ids::{ModelHash, RoundId};
use common::report::{CaseOutcome, EvaluationReport, ReportSubject};
use common::study::StudyDocument;
use common::taxonomy::Taxonomy;

use self::board::Board;
use self::comparison::{Comparison, ComparisonError, check_scans};
use self::record::Record;
use super::chosen_model::ChosenModel;
use super::chosen_scans::ChosenScans;
use super::error_report::{CliError, Exit};
use super::postprocess::PostProcess;
use super::pseudo_label::volume_ml;
use super::window_progress::WindowProgress;
use super::{ConfigArgs, limit_threads, line, site_name};
use crate::client::config::SiteConfig;
use crate::client::files;
use crate::data::dataset::{Case, Split};
use crate::infer::evaluate::{Evaluation, ScanScores, numbered};
use crate::infer::location::LocationAtlas;
use crate::infer::overlay::OverlayFiles;
use crate::infer::predict::{InferenceSettings, NetworkSegmenter};
use crate::infer::{InferError, Predictor};
use crate::train::trainer::Cancel;

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    chosen: ChosenModel,
    #[command(flatten)]
    chosen_scans: ChosenScans,
    /// What happens to the network's masks before they are scored. Reports of a study are of what the network says.
    #[arg(long, value_enum, default_value_t = PostProcess::Off, value_name = "RULES")]
    postprocess: PostProcess,
    /// Instead of a model, score where structures lie on average in the training scans of the sites with these
    /// configurations: what a model must beat that has learnt anything from images.
    #[arg(long, num_args = 1.., value_name = "SITE.TOML", conflicts_with_all = ["model", "embeddings", "postprocess"])]
    location_only: Vec<PathBuf>,
    /// Set the scores beside those of an earlier evaluation of the same scans: its `evaluation.json`. The difference of each class
    /// comes with an interval.
    #[arg(long, value_name = "EVALUATION.JSON")]
    against: Option<PathBuf>,
    /// A patient counts as positive for a lesion from this predicted volume on; 0: from one voxel on.
    #[arg(long, default_value_t = 0.0, value_name = "ML", value_parser = volume_ml)]
    positive_ml: f64,
    /// Write `evaluation.json`, `scores.csv`, `board.html` and a picture of each scan into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    evaluate(args, &config)
}

fn evaluate(args: &EvaluateArgs, config: &SiteConfig) -> Result<(), CliError> {
    let document = args.chosen.study(config)?;
    let study = document.study();
    let cases = args.chosen_scans.cases(config, &study.taxonomy)?;
    let cases: Vec<&Case> = cases.iter().collect();
    // Before any scan is scored: hours later is too late to hear that nothing can be compared.
    let earlier =
        args.against.as_deref().map(|path| read_earlier(path, &study.taxonomy, &cases)).transpose()?;
    if let Some(out) = &args.out {
        files::make_private_folder(out)?;
    }
    let record = score(args, config, &document, &cases)?;
    if record.scans.is_empty() {
        return whole(&record);
    }
    let compared = earlier.map(|earlier| Comparison::of(&record, &earlier, study.seed)).transpose();
    let board = Board {
        record: &record,
        comparison: compared.as_ref().ok().and_then(Option::as_ref),
        taxonomy: &study.taxonomy,
        positive_ml: args.positive_ml,
    };
    board.lines().into_iter().for_each(line);
    if let Some(out) = &args.out {
        write(out, &board)?;
        line(format!("\nboard.html, scores.csv, evaluation.json and pictures: {}", out.display()));
    }
    // The scores stand, compared or not. Where some are missing, that is also why they cannot be compared.
    whole(&record)?;
    compared.map_err(incomparable)?;
    Ok(())
}

/// An error where some scans could not be scored: what was scored stands, and is of fewer scans than was asked for.
fn whole(record: &Record) -> Result<(), CliError> {
    let unscored = record.unscored.len();
    if unscored == 0 {
        return Ok(());
    }
    let all = unscored + record.scans.len();
    let hint = "each is named above, with the reason; all figures are of the others, which may be easier or harder: mend it and evaluate again";
    let error = anyhow::anyhow!("{unscored} of {all} scans were not scored");
    Err(CliError::new(error).exit(Exit::Data).hint(hint))
}

/// An earlier evaluation of these scans.
fn read_earlier(path: &Path, taxonomy: &Taxonomy, cases: &[&Case]) -> Result<Record, CliError> {
    let earlier = Record::read(path)?;
    let names = cases.iter().map(|case| case.name.as_str());
    check_scans(&earlier, taxonomy.digest(), names).map_err(incomparable)?;
    Ok(earlier)
}

fn incomparable(error: ComparisonError) -> CliError {
    let hint = "score both models with the same options, labels and study; --model names a model";
    let error =
        anyhow::Error::new(error).context("the evaluation of `--against` cannot be compared with this one");
    CliError::new(error).exit(Exit::Data).hint(hint)
}

/// Scores all cases that can be scored, a line for each.
fn score(
    args: &EvaluateArgs,
    config: &SiteConfig,
    document: &StudyDocument,
    cases: &[&Case],
) -> Result<Record, CliError> {
    let study = document.study();
    let postprocessing = args.postprocess.rules(&study.taxonomy);
    let settings = InferenceSettings {
        window_batch: config.window_batch,
        postprocessing,
        ..InferenceSettings::of(study)
    };
    let tau_mm = |class| study.evaluation.nsd_tolerance_mm.of(class);
    let overlays = args.out.as_deref().map(|out| OverlayFiles::new(out, cases));
    let evaluation = Evaluation {
        window_hu: settings.preprocessing.window_hu,
        taxonomy: &study.taxonomy,
        tau_mm: &tau_mm,
        overlays: overlays.as_ref(),
    };
    let (scans, model) = if args.location_only.is_empty() {
        let (network, model) = args.chosen.identified(config, document, Cancel::default())?;
        (score_network(&evaluation, cases, settings, &network)?, Some(model))
    } else {
        let baseline = learn_locations(&args.location_only, &study.taxonomy)?;
        (evaluation.run(cases, &baseline, tell)?, None)
    };
    let scored = || {
        let scans = cases.iter().copied().zip(&scans);
        scans.filter_map(|(case, scores)| Some((case, scores.as_ref()?)))
    };
    let scores = numbered(scored());
    let subject = ReportSubject {
        site: site_name(config)?,
        model: model.unwrap_or(study.initial_model),
        round: RoundId(0),
        study: document.digest(),
        taxonomy: study.taxonomy.digest(),
    };
    // It stays here: there is nobody to hide small numbers from.
    let report = EvaluationReport::summarise(subject, &scores, tau_mm, 1, study.seed);
    let names = scored().map(|(case, _)| (case.name.as_str(), case.patient.as_str()));
    let mut record = Record::of(in_words(model, args.postprocess), model, report, names, &scores);
    let unscored = cases.iter().zip(&scans).filter(|(_, scores)| scores.is_none());
    record.unscored = unscored.map(|(case, _)| case.name.clone()).collect();
    Ok(record)
}

/// Scores a network, which shows how far it is within a scan.
fn score_network(
    evaluation: &Evaluation<'_>,
    cases: &[&Case],
    settings: InferenceSettings,
    network: &dyn Predictor,
) -> Result<Vec<Option<ScanScores>>, InferError> {
    let progress = WindowProgress::new(network);
    let announce = |done: usize| {
        if let Some(case) = cases.get(done) {
            progress.scan(done + 1, cases.len(), &case.name);
        }
    };
    announce(0);
    let mut done = 0;
    let heard = |case: &Case, scored: Result<&ScanScores, InferError>| {
        progress.clear();
        tell(case, scored);
        done += 1;
        announce(done);
    };
    evaluation.run(cases, &NetworkSegmenter { settings, network: &progress }, heard)
}

/// What is scored; without a model it is the baseline.
fn in_words(model: Option<ModelHash>, postprocess: PostProcess) -> String {
    match (model, postprocess) {
        (Some(model), PostProcess::Off) => format!("model {}", model.short()),
        (Some(model), PostProcess::Reference) => format!("model {}, post-processed", model.short()),
        (None, _) => "where structures lie on average".to_owned(),
    }
}

fn write(out: &Path, board: &Board<'_>) -> Result<(), CliError> {
    files::write_json(&out.join("evaluation.json"), board.record)?;
    files::write(&out.join("scores.csv"), board.record.to_csv(board.taxonomy).as_bytes())?;
    files::write(&out.join("board.html"), board.html().as_bytes())?;
    Ok(())
}

/// The mean masks of the training scans of all these sites, which only whoever may read them all can make.
fn learn_locations(sites: &[PathBuf], taxonomy: &Taxonomy) -> Result<LocationAtlas, CliError> {
    let mut cases = Vec::new();
    for site in sites {
        let config = SiteConfig::read(site)?;
        cases.extend(config.read_cases(taxonomy)?);
    }
    cases.retain(|case| case.split == Split::Training && !case.pseudo);
    Ok(LocationAtlas::learn(&cases, taxonomy)?)
}

/// A line for a scan that is done with; why it could not be scored goes where errors go.
fn tell(case: &Case, scored: Result<&ScanScores, InferError>) {
    match scored {
        Ok(scores) => line(scan_line(case, scores)),
        Err(fault) => {
            line(format!("{:<40} not scored", case.name));
            // The exit code is that of all scans together.
            let _ = CliError::new(fault).about(case.name.clone()).report();
        }
    }
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
