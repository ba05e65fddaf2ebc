//! `site-agent predict`: label files for scans, each on the grid of its own file, with what viewers need to show them.
//!
//! Every file appears under its name when it is whole; a scan that cannot be labelled is named and the next one begun.

mod outputs;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{ArgGroup, Args};
use common::config::Diagnostics;
use common::ids::ClassId;
use common::label_map::{LabelMap, MergeTable};
use common::study::Study;
use common::taxonomy::Taxonomy;

use self::outputs::{Output, outputs, slug};
use super::chosen_model::ChosenModel;
use super::error_report::{CliError, Exit};
use super::postprocess::PostProcess;
use super::run::cancelled_by_signal;
use super::window_progress::WindowProgress;
use super::{ConfigArgs, limit_threads, line, runtime, shown};
use crate::client::files;
use crate::data::DataError;
use crate::data::intensity::check_hounsfield;
use crate::data::nifti::{Image, Limits, read_image, write_image_f32, write_labels};
use crate::data::orientation::{Reorientation, check_orientation};
use crate::data::volume::Volume;
use crate::infer::distinct::distinct;
use crate::infer::masks::ClassMasks;
use crate::infer::merge::{merge, merge_labels};
use crate::infer::predict::{InferenceSettings, Prediction, predict};
use crate::infer::{Predictor, colours, preview};
use crate::train::trainer::Cancel;

/// Arguments of `predict`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("of_each_class").args(["masks", "probabilities"]).multiple(true))]
pub(super) struct PredictArgs {
    /// The scans (`.nii`, `.nii.gz`, `.hdr`).
    #[arg(required = true, value_name = "CT")]
    scans: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    chosen: ChosenModel,
    /// Where the results go: `NAME-labels.nii.gz`, one class per voxel by its number in the taxonomy; its names and colours
    /// for ITK-SNAP (`.label.txt`) and 3D Slicer (`.ctbl`); `NAME-preview.png`. Scans of the same name are told apart by
    /// their folders: `FOLDER-NAME-labels.nii.gz`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Part of a window that its neighbour shares, 0 to 0.9: more is slower and has fewer seams. Default: the study's own.
    #[arg(long, value_name = "PART", value_parser = part_of_window)]
    overlap: Option<f64>,
    /// What happens to the network's masks. The reference's rules drop a lung that is alone in the scan.
    #[arg(long, value_enum, default_value_t = PostProcess::Reference, value_name = "RULES")]
    postprocess: PostProcess,
    /// Write the label file in the values of this data set: a known name (`btcv`) or a label map (`mine.toml`).
    #[arg(long, value_name = "DATASET")]
    labels_of: Option<String>,
    /// With --labels-of: left organs whose value is that of the right one get the next free values.
    #[arg(long, requires = "labels_of")]
    sides: bool,
    /// Also write a mask of each class, `NAME-mask-CLASS.nii.gz`. Masks may overlap, which the label file cannot show.
    #[arg(long)]
    masks: bool,
    /// Also write the raw probability of each class, `NAME-probability-CLASS.nii.gz`. Needs four bytes of memory for each class
    /// and voxel of the network's grid.
    #[arg(long)]
    probabilities: bool,
    /// The classes that --masks and --probabilities write, by name or number; default: all.
    #[arg(long, value_name = "CLASS", value_delimiter = ',', requires = "of_each_class")]
    classes: Vec<String>,
    /// These are CT although their values look otherwise.
    #[arg(long)]
    assume_hounsfield: bool,
    /// Scans whose files have no orientation run to the left, to the front and to the head (LAS).
    #[arg(long)]
    assume_orientation: bool,
}

fn part_of_window(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.0..=0.9).contains(&value) { Ok(value) } else { Err("expected a number from 0 to 0.9".to_owned()) }
}

pub(super) fn run(args: &PredictArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let document = args.chosen.study(&config)?;
    let wanted = Wanted::of(args, document.study(), config.window_batch)?;
    let outputs = outputs(&args.scans, &args.out, &wanted.ends())?;
    let runtime = runtime()?;
    let cancel = cancelled_by_signal(&runtime, "stopping; a scan whose files are being written is finished")?;
    let network = args.chosen.network(&config, &document, cancel.clone())?;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let Tally { labelled, failed } = wanted.label_all(&args.scans, &outputs, &network, &cancel);
    let all = args.scans.len();
    if labelled + failed < all {
        let interrupted = anyhow::anyhow!("interrupted: {labelled} of {all} scans are labelled");
        return Err(CliError::new(interrupted).hint("name the others to go on; nothing is half written"));
    }
    if failed > 0 {
        let failed = anyhow::anyhow!("{failed} of {all} scans were not labelled");
        let hint = "each is named above, with the reason; all others are done";
        return Err(CliError::new(failed).exit(Exit::Data).hint(hint));
    }
    Ok(())
}

const LABELS: &str = "-labels.nii.gz";
const ITK_SNAP: &str = "-labels.label.txt";
const SLICER: &str = "-labels.ctbl";
const PREVIEW: &str = "-preview.png";

/// What became of the scans; those in neither were not come to.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    labelled: usize,
    failed: usize,
}

/// What is written for each scan.
struct Wanted<'a> {
    settings: InferenceSettings,
    taxonomy: &'a Taxonomy,
    /// Values of the label file.
    table: MergeTable,
    /// Classes with a mask of their own.
    masks: Vec<ClassId>,
    /// Classes with a volume of probabilities.
    probabilities: Vec<ClassId>,
    assume_hounsfield: bool,
    assume_orientation: bool,
}

impl<'a> Wanted<'a> {
    fn of(args: &PredictArgs, study: &'a Study, window_batch: usize) -> Result<Self, CliError> {
        let taxonomy = &study.taxonomy;
        let settings = InferenceSettings {
            overlap: args.overlap.unwrap_or(study.evaluation.overlap),
            window_batch,
            postprocessing: args.postprocess.rules(taxonomy),
            ..InferenceSettings::of(study)
        };
        let classes = chosen_classes(&args.classes, taxonomy)?;
        let table = match &args.labels_of {
            Some(name) => merge_table(name, args.sides, taxonomy)?,
            None => MergeTable::universal(taxonomy),
        };
        Ok(Self {
            settings,
            taxonomy,
            table,
            masks: if args.masks { classes.clone() } else { Vec::new() },
            probabilities: if args.probabilities { classes } else { Vec::new() },
            assume_hounsfield: args.assume_hounsfield,
            assume_orientation: args.assume_orientation,
        })
    }

    /// How the names of a scan's files end.
    fn ends(&self) -> Vec<String> {
        let masks = self.masks.iter().map(|&class| self.mask_end(class));
        let probabilities = self.probabilities.iter().map(|&class| self.probability_end(class));
        let always = [LABELS, ITK_SNAP, SLICER, PREVIEW].map(str::to_owned).into_iter();
        always.chain(masks).chain(probabilities).collect()
    }

    fn mask_end(&self, class: ClassId) -> String {
        format!("-mask-{}.nii.gz", self.file_part(class))
    }

    fn probability_end(&self, class: ClassId) -> String {
        format!("-probability-{}.nii.gz", self.file_part(class))
    }

    /// A class's name as part of a file's. Names that differ in a slash or a sign alone would be the same there.
    fn file_part(&self, class: ClassId) -> String {
        let parts = distinct(self.taxonomy.classes().iter().map(|class| slug(&class.name)));
        parts.into_iter().nth(class.channel()).unwrap_or_else(|| class.to_string())
    }

    /// Labels every scan that can be, a line for each, until it is cancelled.
    fn label_all(
        &self,
        scans: &[PathBuf],
        outputs: &[Output],
        network: &dyn Predictor,
        cancel: &Cancel,
    ) -> Tally {
        let mut tally = Tally::default();
        let progress = WindowProgress::new(network);
        for (number, (scan, out)) in (1..).zip(scans.iter().zip(outputs)) {
            if cancel.is_cancelled() {
                break;
            }
            let place = format!("[{number}/{}] {}", scans.len(), scan.display());
            progress.scan(number, scans.len(), shown(scan));
            let labelled = self.label(scan, out, &progress);
            progress.clear();
            match labelled {
                Ok(()) => {
                    tally.labelled += 1;
                    line(format!("{place} -> {}", out.file(LABELS).display()));
                }
                // The network stopped because it was asked to.
                Err(_) if cancel.is_cancelled() => break,
                Err(error) => {
                    tally.failed += 1;
                    line(format!("{place}: not labelled"));
                    // The exit code is that of all scans together.
                    let _ = error.about(format!("scan {number} of {}", scans.len())).report();
                }
            }
        }
        tally
    }

    fn label(&self, scan: &Path, out: &Output, network: &dyn Predictor) -> Result<(), CliError> {
        let image = self.read(scan)?;
        let turn = Reorientation::of(image.volume.grid());
        let upright = turn.to_ras(&image.volume);
        let predicted = predict(image, &self.settings, network, &self.probabilities);
        let predicted = predicted.with_context(|| scan.display().to_string())?;
        self.write(out, &predicted)?;
        let labels = turn.to_ras(&merge_labels(&predicted.masks, self.taxonomy));
        let window_hu = self.settings.preprocessing.window_hu;
        preview::write(&out.file(PREVIEW), &upright, labels.voxels(), window_hu)?;
        Ok(())
    }

    fn read(&self, scan: &Path) -> Result<Image, DataError> {
        let image = read_image(scan, &Limits::default())?;
        let name = shown(scan).to_string();
        if !self.assume_orientation {
            check_orientation(image.placed_by).map_err(DataError::of_case(&name))?;
        }
        if !self.assume_hounsfield {
            check_hounsfield(&image.volume).map_err(DataError::of_case(&name))?;
        }
        Ok(image)
    }

    /// All but the preview.
    fn write(&self, out: &Output, Prediction { masks, probabilities }: &Prediction) -> Result<(), CliError> {
        write_labels(&out.file(LABELS), &merge(masks, &self.table)).map_err(DataError::from)?;
        let tables = [
            (ITK_SNAP, colours::itk_snap(&self.table, self.taxonomy)),
            (SLICER, colours::slicer(&self.table, self.taxonomy)),
        ];
        for (end, text) in tables {
            files::write_result(&out.file(end), text.as_bytes())?;
        }
        for &class in &self.masks {
            write_labels(&out.file(&self.mask_end(class)), &mask(masks, class)).map_err(DataError::from)?;
        }
        for &class in &self.probabilities {
            // All that are asked for were kept.
            let Some(volume) = probabilities.of(class) else { continue };
            write_image_f32(&out.file(&self.probability_end(class)), &volume).map_err(DataError::from)?;
        }
        Ok(())
    }
}

/// 1 where the class is.
fn mask(masks: &ClassMasks, class: ClassId) -> Volume<u8> {
    Volume::new(masks.grid().clone(), masks.mask(class).into_iter().map(u8::from).collect())
}

/// The classes of these names; all, if none is named.
pub(super) fn chosen_classes(names: &[String], taxonomy: &Taxonomy) -> Result<Vec<ClassId>, CliError> {
    if names.is_empty() {
        return Ok(taxonomy.classes().iter().map(|class| class.id).collect());
    }
    let class = |name: &String| {
        let found = taxonomy.find(name).map(|class| class.id);
        found.ok_or_else(|| {
            let near = taxonomy.suggest(name).map(|near| format!("did you mean `{near}`?"));
            let hint = near.unwrap_or_else(|| "name classes as the study's taxonomy does".to_owned());
            CliError::new(anyhow::anyhow!("`--classes`: the study has no class `{name}`"))
                .exit(Exit::Config)
                .hint(hint)
        })
    };
    let mut classes = names.iter().map(class).collect::<Result<Vec<_>, _>>()?;
    classes.sort_unstable();
    classes.dedup();
    Ok(classes)
}

/// The values of a data set: one that is known by name, or a label map of the site's own. Classes that the study lacks are left out.
fn merge_table(name: &str, sides: bool, taxonomy: &Taxonomy) -> Result<MergeTable, CliError> {
    let standard = Taxonomy::standard();
    let (map, words) = if name.ends_with(".toml") {
        let text = files::read_text(Path::new(name))?;
        let in_words = |words| Ok((LabelMap::parse(name, &text, words)?, words));
        // In the study's words, or in those that data sets are described with whatever a study's are.
        in_words(taxonomy).or_else(|mistakes: Diagnostics| in_words(&standard).map_err(|_| mistakes))?
    } else {
        let known = LabelMap::standard(name).ok_or_else(|| {
            let names: Vec<&str> = LabelMap::standard_names().collect();
            CliError::new(anyhow::anyhow!("`--labels-of`: unknown data set `{name}`"))
                .exit(Exit::Config)
                .hint(format!("known: {}; or name a label map that ends in .toml", names.join(", ")))
        })?;
        (known, &standard)
    };
    let table = if sides { MergeTable::with_sides(&map, words) } else { MergeTable::of(&map, words) };
    let table = table.map_err(|error| CliError::new(error).exit(Exit::Config))?.translated(words, taxonomy);
    if table.pairs().is_empty() {
        let none = anyhow::anyhow!("`--labels-of`: the study has none of the classes of `{name}`");
        let hint = "without it, the label file has the study's own numbers";
        return Err(CliError::new(none).exit(Exit::Config).hint(hint));
    }
    Ok(table)
}

#[cfg(test)]
mod tests;
