//! `site-agent pseudo-label`: a model's labels for the classes that nobody annotated in this site's own training scans.
//!
//! The result is a data set beside the others: links to the scans, label files, a case table, and last of all a label map
//! that names the model. Real labels are neither read nor copied, so no patch ever mixes the two. A crash leaves a folder
//! without a label map, which nothing reads.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use common::ids::ClassId;
use common::label_map::Provenance;
use common::taxonomy::Taxonomy;
use serde::Serialize;

use super::chosen_model::ChosenModel;
use super::error_report::{CliError, Exit};
use super::postprocess::PostProcess;
use super::predict::chosen_classes;
use super::run::cancelled_by_signal;
use super::window_progress::WindowProgress;
use super::{ConfigArgs, limit_threads, line, runtime};
use crate::client::files;
use crate::data::DataError;
use crate::data::dataset::{CASES_FILE, Case, LABEL_MAP_FILE, Split, TAXONOMY_FILE};
use crate::data::nifti::{files_of, write_labels};
use crate::infer::Predictor;
use crate::infer::distinct::distinct;
use crate::infer::predict::{InferenceSettings, segment};
use crate::infer::pseudo_labels::{OverlapValues, found};
use crate::train::trainer::Cancel;

/// How the names of a scan's files end.
const ENDINGS: [&str; 6] = [".nii.gz", ".nii", ".hdr.gz", ".hdr", ".img.gz", ".img"];

/// Arguments of `pseudo-label`.
#[derive(Debug, Args)]
pub(super) struct PseudoLabelArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    chosen: ChosenModel,
    /// The new data set's folder. It holds links to the scans, not copies.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The classes to label, by name or number, in scans that do not annotate them; default: all.
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    classes: Vec<String>,
    /// A voxel belongs to a class whose probability is above this; default: the study's own.
    #[arg(long, value_name = "P", value_parser = probability)]
    threshold: Option<f64>,
    /// A class with less in a scan is not annotated there: neither as present nor as absent.
    #[arg(long, default_value_t = 0.5, value_name = "ML", value_parser = volume_ml)]
    min_volume_ml: f64,
    /// What happens to the network's masks. The reference's rules drop a lung that is alone in the scan.
    #[arg(long, value_enum, default_value_t = PostProcess::Reference, value_name = "RULES")]
    postprocess: PostProcess,
}

fn probability(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if 0.0 < value && value < 1.0 { Ok(value) } else { Err("expected a number between 0 and 1".to_owned()) }
}

/// A volume in millilitres from a command line.
pub(super) fn volume_ml(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.0..=1e6).contains(&value) { Ok(value) } else { Err("expected 0 to 1000000".to_owned()) }
}

pub(super) fn run(args: &PseudoLabelArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let document = args.chosen.study(&config)?;
    let study = document.study();
    if args.out.exists() {
        let there = anyhow::anyhow!("{} exists", args.out.display());
        return Err(CliError::new(there).exit(Exit::Data).hint("move it away, or name another folder"));
    }
    let wanted = chosen_classes(&args.classes, &study.taxonomy)?;
    let mut cases = config.read_cases(&study.taxonomy)?;
    cases.retain(|case| case.split == Split::Training && !case.pseudo);
    let runtime = runtime()?;
    let cancel = cancelled_by_signal(&runtime, "stopping")?;
    let (network, model) = args.chosen.identified(&config, &document, cancel.clone())?;
    let threshold = args.threshold.unwrap_or(study.evaluation.threshold);
    let postprocessing = args.postprocess.rules(&study.taxonomy);
    let provenance = Provenance {
        study: document.digest(),
        model,
        threshold,
        min_volume_ml: args.min_volume_ml,
        postprocessed: postprocessing.is_some(),
        made_at: jiff::Timestamp::now().to_string(),
    };
    let mut labeller = Labeller {
        out: &args.out,
        taxonomy: &study.taxonomy,
        settings: InferenceSettings {
            window_batch: config.window_batch,
            threshold,
            postprocessing,
            ..InferenceSettings::of(study)
        },
        wanted: wanted.into_iter().collect(),
        min_volume_ml: args.min_volume_ml,
        min_count: config.min_count as usize,
        values: OverlapValues::default(),
        labelled: Vec::new(),
    };
    let failed = labeller.label_all(&cases, &network, &cancel);
    if cancel.is_cancelled() {
        let interrupted =
            anyhow::anyhow!("interrupted; {} is not whole and nothing reads it", args.out.display());
        return Err(CliError::new(interrupted).hint("remove it, and start again"));
    }
    labeller.finish(provenance)?;
    line(format!("to train on it, add {} to site.toml as a [[dataset]]", args.out.display()));
    if failed > 0 {
        let failed = anyhow::anyhow!("{failed} of {} scans were not labelled", cases.len());
        let hint = "each is named above, with the reason; all others are done";
        return Err(CliError::new(failed).exit(Exit::Data).hint(hint));
    }
    Ok(())
}

/// One entry of the new case table.
#[derive(Serialize)]
struct CaseEntry {
    patient: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<&'static str>,
    annotated: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hounsfield: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orientation: Option<&'static str>,
}

/// What is asked for, and the data set so far.
struct Labeller<'a> {
    out: &'a Path,
    taxonomy: &'a Taxonomy,
    settings: InferenceSettings,
    wanted: BTreeSet<ClassId>,
    min_volume_ml: f64,
    /// Fewest patients in whom a class was found, or it is left out everywhere.
    min_count: usize,
    values: OverlapValues,
    labelled: Vec<Labelled<'a>>,
}

/// A scan with a label file.
struct Labelled<'a> {
    case: &'a Case,
    /// Its folder in the new data set, by which the case table names it.
    folder: String,
    found: BTreeSet<ClassId>,
}

impl<'a> Labeller<'a> {
    /// Labels every scan that can be, a line for each, until it is cancelled, and says how many could not.
    fn label_all(&mut self, cases: &'a [Case], network: &dyn Predictor, cancel: &Cancel) -> usize {
        let mut failed = 0;
        let progress = WindowProgress::new(network);
        for (number, (case, folder)) in (1..).zip(cases.iter().zip(folder_names(cases))) {
            if cancel.is_cancelled() {
                break;
            }
            let place = format!("[{number}/{}] {}", cases.len(), case.name);
            progress.scan(number, cases.len(), &case.name);
            let labelled = self.label(case, &folder, &progress);
            progress.clear();
            match labelled {
                Ok(found) => {
                    line(format!("{place}: {} classes", found.len()));
                    if !found.is_empty() {
                        self.labelled.push(Labelled { case, folder, found });
                    }
                }
                // The network stopped because it was asked to.
                Err(_) if cancel.is_cancelled() => break,
                Err(error) => {
                    failed += 1;
                    line(format!("{place}: not labelled"));
                    // The exit code is that of all scans together.
                    let _ = error.about(format!("scan {number} of {}", cases.len())).report();
                }
            }
        }
        failed
    }

    /// Writes what was found in one scan, and says what that is.
    fn label(
        &mut self,
        case: &Case,
        folder: &str,
        network: &dyn Predictor,
    ) -> Result<BTreeSet<ClassId>, CliError> {
        let wanted: BTreeSet<ClassId> = self.wanted.difference(&case.annotated).copied().collect();
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let masks = segment(case.read_scan()?, &self.settings, network).with_context(|| case.name.clone())?;
        let found = found(&masks, &wanted, self.min_volume_ml);
        if !found.is_empty() {
            let labels = self.values.encode(&masks, &found)?;
            let folder = self.out.join(folder);
            files::make_private_folder(&folder)?;
            write_labels(&folder.join("labels.nii.gz"), &labels).map_err(DataError::from)?;
            link_scan(&case.image, &folder)?;
        }
        Ok(found)
    }

    /// Writes the case table and, last, the label map that makes the folder a data set.
    fn finish(self, provenance: Provenance) -> Result<(), CliError> {
        let told = self.told();
        if told.is_empty() {
            let nothing = anyhow::anyhow!("no class was found in {} patients", self.min_count.max(1));
            let hint = "look at the scans with `site-agent predict`; `min_count` in site.toml says how many it takes";
            return Err(CliError::new(nothing).exit(Exit::Data).hint(hint));
        }
        let entries = self.labelled.iter().map(|one| (one.folder.clone(), self.entry(one, &told)));
        let table: BTreeMap<String, CaseEntry> = entries.collect();
        files::write(&self.out.join(CASES_FILE), toml::to_string(&table)?.as_bytes())?;
        if *self.taxonomy != Taxonomy::standard() {
            files::write(&self.out.join(TAXONOMY_FILE), self.taxonomy.to_toml().as_bytes())?;
        }
        let map = self.values.label_map("Labels of a model, not of annotators", provenance);
        files::write(&self.out.join(LABEL_MAP_FILE), map.to_toml(self.taxonomy).as_bytes())?;
        let names: Vec<String> = told.iter().map(|&class| self.taxonomy.name(class)).collect();
        line(format!("{}: {} scans; {}", self.out.display(), table.len(), names.join(", ")));
        Ok(())
    }

    /// The classes that were found in enough patients. What a scan annotates follows here from what is in it, and manifests
    /// tell exactly how many scans annotate a class: without this they would tell of a single patient's tumour.
    fn told(&self) -> BTreeSet<ClassId> {
        let mut patients: BTreeMap<ClassId, BTreeSet<&str>> = BTreeMap::new();
        for Labelled { case, found, .. } in &self.labelled {
            for &class in found {
                patients.entry(class).or_default().insert(case.patient.as_str());
            }
        }
        let enough = |(class, of): (ClassId, BTreeSet<&str>)| (of.len() >= self.min_count).then_some(class);
        patients.into_iter().filter_map(enough).collect()
    }

    fn entry(&self, Labelled { case, found, .. }: &Labelled<'_>, told: &BTreeSet<ClassId>) -> CaseEntry {
        let annotated: Vec<String> =
            found.intersection(told).map(|&class| self.taxonomy.name(class)).collect();
        CaseEntry {
            patient: case.patient.clone(),
            split: annotated.is_empty().then_some("excluded"),
            annotated,
            hounsfield: case.assume_hounsfield.then_some("assume"),
            orientation: case.assume_orientation.then_some("assume"),
        }
    }
}

/// A folder for each scan; `a/b-c` and `a-b/c` would have the same.
fn folder_names(cases: &[Case]) -> Vec<String> {
    distinct(cases.iter().map(|case| case.name.replace('/', "-")))
}

/// Links to the scan's files, one or the two of a pair, under the names that case folders give them.
fn link_scan(image: &Path, folder: &Path) -> Result<(), CliError> {
    for file in files_of(image) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let ending = ENDINGS.iter().find(|ending| name.ends_with(**ending)).unwrap_or(&".nii");
        let link = || symlink(std::fs::canonicalize(&file)?, folder.join(format!("ct{ending}")));
        link().with_context(|| format!("linking {} into {}", file.display(), folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
