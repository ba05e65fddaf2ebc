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
    /// Where the label files go: `NAME-labels.nii.gz`, one class per voxel by its number in the taxonomy. Scans of the same
    /// name are told apart by their folders: `FOLDER-NAME-labels.nii.gz`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// These are CT although their values look otherwise.
    #[arg(long)]
    assume_hounsfield: bool,
}

pub(super) fn run(args: &PredictArgs) -> Result<(), CliError> {
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let outputs = outputs(&args.scans, &args.out)?;
    let document = args.chosen.study(&config)?;
    let network = args.chosen.network(&config, &document)?;
    let settings = InferenceSettings::of(document.study());
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    for (scan, out) in args.scans.iter().zip(&outputs) {
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
        write_labels(out, &merge_labels(&masks, &document.study().taxonomy)).map_err(DataError::from)?;
        line(format!("{} -> {}", scan.display(), out.display()));
    }
    Ok(())
}

/// Where the labels of each scan go. Settled before the work begins: nothing is overwritten, and no hour is lost.
fn outputs(scans: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let stems: Vec<String> = scans.iter().map(|scan| stem(scan)).collect();
    let name = |(scan, stem): (&PathBuf, &String)| {
        // In case folders every scan has the same name.
        let parent = scan.parent().and_then(Path::file_name).map(|parent| parent.to_string_lossy());
        match parent.filter(|_| stems.iter().filter(|other| *other == stem).count() > 1) {
            Some(parent) => folder.join(format!("{parent}-{stem}-labels.nii.gz")),
            None => folder.join(format!("{stem}-labels.nii.gz")),
        }
    };
    let outputs: Vec<PathBuf> = scans.iter().zip(&stems).map(name).collect();
    for (scan, out) in scans.iter().zip(&outputs) {
        let wrong = if out.exists() {
            format!("{} exists", out.display())
        } else if outputs.iter().filter(|other| *other == out).count() > 1 {
            format!("{} is not the only scan whose labels would go to {}", scan.display(), out.display())
        } else {
            continue;
        };
        let hint = "move it away, or name another folder with --out";
        return Err(CliError::new(anyhow::anyhow!(wrong)).exit(Exit::Data).hint(hint));
    }
    Ok(outputs)
}

/// The file's name without what says that it is NIfTI.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let known = [".nii.gz", ".nii", ".hdr", ".img"];
    known.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scans: &[&str], folder: &Path) -> Result<Vec<String>, CliError> {
        let scans: Vec<PathBuf> = scans.iter().map(PathBuf::from).collect();
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(outputs(&scans, folder)?.into_iter().map(name).collect())
    }

    #[test]
    fn scans_of_one_name_are_told_apart_by_their_folders() {
        let out = Path::new("/nowhere");
        let given = names(&["a/ct.nii.gz", "b/ct.nii", "c/other.nii.gz"], out).unwrap();
        assert_eq!(given, ["a-ct-labels.nii.gz", "b-ct-labels.nii.gz", "other-labels.nii.gz"]);
    }

    #[test]
    fn nothing_begins_when_labels_would_be_overwritten() {
        let out = tempfile::tempdir().unwrap();
        let same = names(&["1/a/ct.nii.gz", "2/a/ct.nii.gz"], out.path()).unwrap_err().text();
        assert!(same.contains("1/a/ct.nii.gz is not the only scan"), "{same}");
        std::fs::write(out.path().join("ct-labels.nii.gz"), "").unwrap();
        let there = names(&["ct.nii.gz"], out.path()).unwrap_err().text();
        assert!(there.contains("exists") && there.contains("--out"), "{there}");
    }
}
