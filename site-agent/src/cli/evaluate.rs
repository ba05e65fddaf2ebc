//! `site-agent evaluate`: a model, or a baseline, against this site's own labels. Nothing leaves.
//!
//! A scan that cannot be scored is named and the next one begun; what is written says that its figures are not of all scans. So does
//! what is written of an evaluation that was stopped, and the same command goes on with it.
//!
//! `scoring` goes through the scans, `record` is what is kept of it, `comparison` sets it beside an earlier one, `board` shows it.

mod board;
mod comparison;
mod detection;
mod record;
mod scoring;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use common::ids::ModelHash;
use common::study::StudyDocument;
use common::taxonomy::Taxonomy;

use self::board::Board;
use self::comparison::{Comparison, ComparisonError, check_scans};
use self::record::{EVALUATION, Record};
use self::scoring::{Basis, Scoring, interrupted_early};
use super::chosen_model::ChosenModel;
use super::chosen_scans::ChosenScans;
use super::error_report::{CliError, Exit};
use super::postprocess::PostProcess;
use super::pseudo_label::volume_ml;
use super::run::cancelled_by_signal;
use super::window_progress::WindowProgress;
use super::{ConfigArgs, limit_threads, line, runtime, site_name};
use crate::client::config::SiteConfig;
use crate::client::files::{self, FileError};
use crate::data::dataset::{Case, Split};
use crate::infer::evaluate::Evaluation;
use crate::infer::location::LocationAtlas;
use crate::infer::overlay::OverlayFiles;
use crate::infer::predict::{InferenceSettings, NetworkSegmenter};
use crate::infer::{InferError, Segmenter};
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
    /// Write `evaluation.json`, `scores.csv`, `board.html` and a picture of each scan into this folder. What it holds of this very
    /// evaluation is not scored again.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let runtime = runtime()?;
    let cancel = cancelled_by_signal(&runtime, "stopping; the scans that are scored count")?;
    evaluate(args, &config, &cancel)
}

fn evaluate(args: &EvaluateArgs, config: &SiteConfig, cancel: &Cancel) -> Result<(), CliError> {
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
    let record = score(args, config, &document, &cases, cancel)?;
    if record.scans.is_empty() {
        return args.whole(&record);
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
        line(format!("\n{} and pictures: {}", write(out, &board)?, out.display()));
    }
    // The scores stand, compared or not. Where some are missing, that is also why they cannot be compared.
    args.whole(&record)?;
    compared.map_err(incomparable)?;
    Ok(())
}

impl EvaluateArgs {
    /// An error where some scans were not scored: what was scored stands, and is of fewer scans than was asked for.
    fn whole(&self, record: &Record) -> Result<(), CliError> {
        let (scored, unscored, asked) = (record.scans.len(), record.unscored.len(), record.asked());
        let again = match self.out {
            Some(_) => "the same command scores what is missing and keeps the rest",
            None => "with --out, the same command would keep what is scored",
        };
        if !record.to_come.is_empty() {
            let interrupted = anyhow::anyhow!("interrupted: {scored} of {asked} scans are scored");
            return Err(CliError::new(interrupted).hint(again));
        }
        if unscored == 0 {
            return Ok(());
        }
        let error = anyhow::anyhow!("{unscored} of {asked} scans were not scored");
        let hint = format!(
            "each is named above, with the reason; all figures are of the others, which may be easier or harder: mend it and evaluate again ({again})"
        );
        Err(CliError::new(error).exit(Exit::Data).hint(hint))
    }
}

/// An earlier evaluation of these scans.
fn read_earlier(path: &Path, taxonomy: &Taxonomy, cases: &[&Case]) -> Result<Record, CliError> {
    let earlier = Record::read(path)?;
    let names = cases.iter().map(|case| case.name.as_str());
    check_scans(&earlier, taxonomy.digest(), names).map_err(incomparable)?;
    Ok(earlier)
}

fn incomparable(error: ComparisonError) -> CliError {
    let hint = match error {
        ComparisonError::Partial { .. } => "the command that it was begun with goes on with it",
        _ => "score both models with the same options, labels and study; --model names a model",
    };
    let error =
        anyhow::Error::new(error).context("the evaluation of `--against` cannot be compared with this one");
    CliError::new(error).exit(Exit::Data).hint(hint)
}

/// Scores all cases that can be scored, a line for each, until it is cancelled.
fn score(
    args: &EvaluateArgs,
    config: &SiteConfig,
    document: &StudyDocument,
    cases: &[&Case],
    cancel: &Cancel,
) -> Result<Record, CliError> {
    let study = document.study();
    let settings = InferenceSettings {
        window_batch: config.window_batch,
        postprocessing: args.postprocess.rules(&study.taxonomy),
        ..InferenceSettings::of(study)
    };
    let preprocessing = settings.preprocessing;
    let tau_mm = |class| study.evaluation.nsd_tolerance_mm.of(class);
    let overlays = args.out.as_deref().map(|out| OverlayFiles::new(out, cases));
    let evaluation = Evaluation {
        window_hu: preprocessing.window_hu,
        taxonomy: &study.taxonomy,
        tau_mm: &tau_mm,
        overlays: overlays.as_ref(),
    };
    let site = site_name(config)?;
    let run = |basis: Basis, segmenter: &dyn Segmenter, progress: Option<&WindowProgress<'_>>| {
        let out = args.out.as_deref();
        let scoring = Scoring { site, document, basis, preprocessing, cases, out, cancel };
        scoring.run(&|case: &Case| evaluation.score_case(case, segmenter), progress)
    };
    if args.location_only.is_empty() {
        let (network, model) = args.chosen.identified(config, document, cancel.clone())?;
        let beside = args.chosen.foreign_embeddings(document)?.map(|embeddings| embeddings.0);
        let scored = in_words(Some(model), args.postprocess);
        let progress = WindowProgress::new(&network);
        let segmenter = NetworkSegmenter { settings, network: &progress };
        run(Basis::new(scored, Some(model), beside, document.digest()), &segmenter, Some(&progress))
    } else {
        let baseline = learn_locations(&args.location_only, &study.taxonomy, cancel)?;
        let scored = in_words(None, args.postprocess);
        run(Basis::new(scored, None, Some(baseline.digest()), document.digest()), &baseline, None)
    }
}

/// What is scored; without a model it is the baseline.
fn in_words(model: Option<ModelHash>, postprocess: PostProcess) -> String {
    match (model, postprocess) {
        (Some(model), PostProcess::Off) => format!("model {}", model.short()),
        (Some(model), PostProcess::Reference) => format!("model {}, post-processed", model.short()),
        (None, _) => "where structures lie on average".to_owned(),
    }
}

/// Writes all but the pictures, and says what that is. A table of scores has no room for a word that it is partial: of an evaluation
/// that was stopped there is none.
fn write(out: &Path, board: &Board<'_>) -> Result<&'static str, CliError> {
    files::write_json(&out.join(EVALUATION), board.record)?;
    files::write(&out.join("board.html"), board.html().as_bytes())?;
    let scores = out.join("scores.csv");
    if !board.record.to_come.is_empty() {
        // One of a run before, which ended without some of the scans.
        match fs::remove_file(&scores) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::new("remove", &scores, error).into());
            }
            _ => {}
        }
        return Ok("board.html, evaluation.json (both partial)");
    }
    files::write(&scores, board.record.to_csv(board.taxonomy).as_bytes())?;
    Ok("board.html, scores.csv, evaluation.json")
}

/// The mean masks of the training scans of all these sites, which only whoever may read them all can make.
fn learn_locations(
    sites: &[PathBuf],
    taxonomy: &Taxonomy,
    cancel: &Cancel,
) -> Result<LocationAtlas, CliError> {
    let mut cases = Vec::new();
    for site in sites {
        let config = SiteConfig::read(site)?;
        cases.extend(config.read_cases(taxonomy)?);
    }
    cases.retain(|case| case.split == Split::Training && !case.pseudo);
    LocationAtlas::learn(&cases, taxonomy, cancel).map_err(|error| match error {
        InferError::Cancelled => interrupted_early(),
        other => other.into(),
    })
}
