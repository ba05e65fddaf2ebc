//! Where the results of each scan go: settled before the work begins, so that nothing is overwritten and no hour is lost.

use std::path::{Path, PathBuf};

use crate::cli::error_report::{CliError, Exit};

/// The files of one scan, whose names start alike.
#[derive(Debug)]
pub(super) struct Output {
    folder: PathBuf,
    name: String,
}

impl Output {
    /// The file whose name ends in `end`.
    pub(super) fn file(&self, end: &str) -> PathBuf {
        self.folder.join(format!("{}{end}", self.name))
    }
}

/// Where the results of each scan go, in files that end in `ends`.
///
/// # Errors
/// A file that exists, or two scans whose results would have one name.
pub(super) fn outputs(scans: &[PathBuf], folder: &Path, ends: &[String]) -> Result<Vec<Output>, CliError> {
    let stems: Vec<String> = scans.iter().map(|scan| stem(scan)).collect();
    let output = |(scan, stem): (&PathBuf, &String)| {
        // In case folders every scan has the same name.
        let parent = scan.parent().and_then(Path::file_name).map(|parent| parent.to_string_lossy());
        let name = match parent.filter(|_| stems.iter().filter(|other| *other == stem).count() > 1) {
            Some(parent) => format!("{parent}-{stem}"),
            None => stem.clone(),
        };
        Output { folder: folder.to_owned(), name }
    };
    let outputs: Vec<Output> = scans.iter().zip(&stems).map(output).collect();
    for (scan, out) in scans.iter().zip(&outputs) {
        let in_the_way = ends.iter().map(|end| out.file(end)).find(|file| file.exists());
        let wrong = if let Some(file) = in_the_way {
            format!("{} exists", file.display())
        } else if outputs.iter().filter(|other| other.name == out.name).count() > 1 {
            let there = out.file("-*");
            format!("{} is not the only scan whose results would go to {}", scan.display(), there.display())
        } else {
            continue;
        };
        let hint = "move it away, or name another folder with --out";
        return Err(CliError::new(anyhow::anyhow!(wrong)).exit(Exit::Data).hint(hint));
    }
    Ok(outputs)
}

/// A class's name as part of a file's name.
pub(super) fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() { c } else { ' ' };
    let words: String = name.to_lowercase().chars().map(plain).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-")
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
        let ends = ["-labels.nii.gz", "-preview.png"].map(str::to_owned);
        Ok(outputs(&scans, folder, &ends)?.into_iter().map(|output| output.name).collect())
    }

    #[test]
    fn scans_of_one_name_are_told_apart_by_their_folders() {
        let out = Path::new("/nowhere");
        let given = names(&["a/ct.nii.gz", "b/ct.nii", "c/other.nii.gz"], out).unwrap();
        assert_eq!(given, ["a-ct", "b-ct", "other"]);
    }

    #[test]
    fn nothing_begins_when_results_would_be_overwritten() {
        let out = tempfile::tempdir().unwrap();
        let same = names(&["1/a/ct.nii.gz", "2/a/ct.nii.gz"], out.path()).unwrap_err().text();
        assert!(same.contains("1/a/ct.nii.gz is not the only scan"), "{same}");
        for file in ["ct-labels.nii.gz", "old-preview.png"] {
            std::fs::write(out.path().join(file), "").unwrap();
        }
        for scan in ["ct.nii.gz", "old.nii.gz"] {
            let there = names(&[scan], out.path()).unwrap_err().text();
            assert!(there.contains("exists") && there.contains("--out"), "{there}");
        }
    }

    #[test]
    fn a_class_becomes_part_of_a_name_without_spaces_or_slashes() {
        assert_eq!(slug("Portal Vein and Splenic Vein"), "portal-vein-and-splenic-vein");
        assert_eq!(slug("../Prostate/Uterus "), "prostate-uterus");
    }
}
