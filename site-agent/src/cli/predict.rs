//! `site-agent predict`: label files for scans, each on the grid of its own file.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::chosen_model::ChosenModel;
use super::error_report::{CliError, Exit};
use super::{ConfigArgs, limit_threads, line, shown};
use crate::data::DataError;
use crate::data::error::CaseFault;
use crate::data::intensity::check_hounsfield;
use crate::data::nifti::{Limits, read_image, write_labels};
use crate::infer::predict::{InferenceSettings, merge_labels, segment};

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// The scans (`.nii`, `.nii.gz`, `.hdr`).
    #[arg(required = true, value_name = "CT")]
    scans: Vec<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    chosen: ChosenModel,
    /// Where the label files go: `NAME-labels.nii.gz`, one class per voxel by its number in the taxonomy.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// These are CT although their values look otherwise.
    #[arg(long)]
    assume_hounsfield: bool,
}

pub(super) fn run(args: &PredictArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let (document, network) = args.chosen.load(&config)?;
    let settings = InferenceSettings::of(document.study());
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    for scan in &args.scans {
        let out = args.out.join(format!("{}-labels.nii.gz", stem(scan)));
        if out.exists() {
            let error = anyhow::anyhow!("{} exists", out.display());
            return Err(CliError::new(error)
                .exit(Exit::Data)
                .hint("move it away, or name another folder with --out"));
        }
        let image = read_image(scan, &Limits::default()).map_err(DataError::from)?;
        if !args.assume_hounsfield {
            check_hounsfield(&image.volume).map_err(|fault| {
                let error = DataError::Case {
                    case: shown(scan).to_string(),
                    fault: Box::new(CaseFault::from(fault)),
                };
                CliError::new(error).hint("if it is CT all the same, say so with --assume-hounsfield")
            })?;
        }
        let masks = segment(image, &settings, &network)?;
        write_labels(&out, &merge_labels(&masks, &document.study().taxonomy)).map_err(DataError::from)?;
        line(format!("{} -> {}", scan.display(), out.display()));
    }
    Ok(())
}

/// The file's name without what says that it is NIfTI.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let known = [".nii.gz", ".nii", ".hdr", ".img"];
    known.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned()
}
