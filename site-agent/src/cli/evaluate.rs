//! `site-agent evaluate`: a model, or a baseline, against this site's own labels. Nothing leaves.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use common::ids::{RoundId, SiteId};
use common::report::{CaseOutcome, ClassReport, EvaluationReport, ReportSubject};
use common::taxonomy::Taxonomy;

use super::chosen_model::ChosenModel;
use super::chosen_scans::ChosenScans;
use super::error_report::CliError;
use super::postprocess::PostProcess;
use super::{ConfigArgs, limit_threads, line};
use crate::client::config::SiteConfig;
use crate::client::files;
use crate::data::dataset::{Case, Split};
use crate::infer::Segmenter;
use crate::infer::evaluate::{Evaluation, ScanScores};
use crate::infer::location::LocationAtlas;
use crate::infer::predict::{InferenceSettings, NetworkSegmenter};

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
    #[arg(long, value_name = "SITE.TOML", conflicts_with_all = ["model", "embeddings", "postprocess"])]
    location_only: Vec<PathBuf>,
    /// Write `evaluation.json` and a picture of each scan into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let document = args.chosen.study(&config)?;
    let study = document.study();
    let cases = args.chosen_scans.cases(&config, &study.taxonomy)?;
    if let Some(out) = &args.out {
        files::make_private_folder(out)?;
    }
    let postprocessing = args.postprocess.rules(&study.taxonomy);
    let settings = InferenceSettings { postprocessing, ..InferenceSettings::of(study) };
    let tau_mm = |class| study.evaluation.nsd_tolerance_mm.of(class);
    let evaluation = Evaluation {
        window_hu: settings.preprocessing.window_hu,
        taxonomy: &study.taxonomy,
        tau_mm: &tau_mm,
        overlays: args.out.as_deref(),
    };
    let chosen: Vec<&Case> = cases.iter().collect();
    let score = |segmenter: &dyn Segmenter| {
        evaluation.run(&chosen, segmenter, |case, scores| line(scan_line(case, scores)))
    };
    let scores = if args.location_only.is_empty() {
        let network = &args.chosen.network(&config, &document)?;
        score(&NetworkSegmenter { settings, network })?
    } else {
        score(&learn_locations(&args.location_only, &study.taxonomy)?)?
    };
    let site =
        config.identity.load().map_or_else(|_| "this-site".parse::<SiteId>(), |own| Ok(own.membership.site));
    let subject = ReportSubject {
        site: site.context("the name of this site")?,
        model: study.initial_model,
        round: RoundId(0),
        study: document.digest(),
        taxonomy: study.taxonomy.digest(),
    };
    // It stays here: there is nobody to hide small numbers from.
    let report = EvaluationReport::summarise(subject, &scores, tau_mm, 1, study.seed);
    table(&report, &study.taxonomy).into_iter().for_each(line);
    if let Some(out) = &args.out {
        files::write_json(&out.join("evaluation.json"), &report.classes)?;
        line(format!("pictures and evaluation.json: {}", out.display()));
    }
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

/// The mean over the classes of one scan.
fn scan_line(case: &Case, scores: &ScanScores) -> String {
    let dice: Vec<f64> = scores
        .values()
        .filter_map(|outcome| match outcome {
            CaseOutcome::Present { dice, .. } => Some(*dice),
            CaseOutcome::Absent { .. } => None,
        })
        .collect();
    let mean = dice.iter().sum::<f64>() / dice.len().max(1) as f64;
    format!("{:<40} {:>2} classes, mean Dice {mean:.3}", case.name, dice.len())
}

/// One line for each class, as the report page shows them.
pub(super) fn table(report: &EvaluationReport, taxonomy: &Taxonomy) -> Vec<String> {
    let head = format!(
        "\n{:<24} {:>5}  {:>5}  {:^13}  {:>9}  {:>22}",
        "class", "scans", "Dice", "95 % interval", "NSD", "false positives, ml"
    );
    let row = |class: &ClassReport| {
        let name = taxonomy.name(class.class);
        let present =
            class.present.as_ref().map_or(format!("{:>5}  {:>5}  {:^13}  {:>9}", 0, "-", "-", "-"), |p| {
                let interval = format!("{:.3} - {:.3}", p.ci_low, p.ci_high);
                format!("{:>5}  {:>5.3}  {interval}  {:>9.3}", p.n, p.mean_dice, p.mean_nsd)
            });
        let absent = class
            .absent
            .as_ref()
            .map_or(String::new(), |a| format!("{:.1} in {} without it", a.false_positive_volume_ml, a.n));
        format!("{name:<24} {present}  {absent:>22}").trim_end().to_owned()
    };
    std::iter::once(head).chain(report.classes.iter().map(row)).collect()
}
