//! Which files of a data set's folder belong together: scan and labels of each case, in either layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::data::DataError;

/// Image and labels of each case, by the case's name.
pub(super) type CaseFiles = BTreeMap<String, (PathBuf, PathBuf)>;

/// The cases of a data set's folder.
///
/// # Errors
/// Every mistake in its layout.
pub(super) fn find_files(folder: &Path) -> Result<CaseFiles, DataError> {
    let mistakes = |mistakes| DataError::Dataset { dataset: folder.display().to_string(), mistakes };
    for (images, labels) in [("images", "labels"), ("imagesTr", "labelsTr")] {
        let (images, labels) = (folder.join(images), folder.join(labels));
        if images.is_dir() && labels.is_dir() {
            return pair_files(&images, &labels)?.map_err(mistakes);
        }
    }
    let (mut cases, mut wrong) = (CaseFiles::new(), Vec::new());
    for entry in listed(folder)? {
        let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { continue };
        let files = volumes(&entry)?;
        match (files.get("ct"), files.get("labels")) {
            (Some(ct), Some(labels)) => drop(cases.insert(name.to_owned(), (ct.clone(), labels.clone()))),
            _ if files.is_empty() => {}
            _ => wrong.push(no_case(name, &files)),
        }
    }
    wrong.sort();
    if cases.is_empty() {
        let expected =
            "no case: expected folders with `ct` and `labels` files, or folders `images` and `labels`";
        wrong.push(expected.to_owned());
    }
    if wrong.is_empty() { Ok(cases) } else { Err(mistakes(wrong)) }
}

/// What a folder with NIfTI files has in the place of a `ct` and a `labels` file. Left out in silence, a slip in a name would
/// cost the site a scan.
fn no_case(name: &str, files: &BTreeMap<String, PathBuf>) -> String {
    const SHOWN: usize = 4;
    let lacks: Vec<_> = ["ct", "labels"].into_iter().filter(|stem| !files.contains_key(*stem)).collect();
    let file_names = files.values().filter_map(|path| path.file_name()?.to_str());
    let mut has: Vec<_> = file_names.take(SHOWN).map(|file| format!("`{file}`")).collect();
    if files.len() > SHOWN {
        has.push(format!("{} more", files.len() - SHOWN));
    }
    format!(
        "`{name}` has {} and no `{}`: a case is `ct.nii.gz` and `labels.nii.gz` (or `.nii`); rename or add the file, \
         or move the folder away",
        has.join(", "),
        lacks.join("`, no `")
    )
}

/// Cases of the pair layout; the inner error lists what has no counterpart.
fn pair_files(images: &Path, labels: &Path) -> Result<Result<CaseFiles, Vec<String>>, DataError> {
    let (images, mut labels) = (volumes(images)?, volumes(labels)?);
    let (mut cases, mut mistakes) = (CaseFiles::new(), Vec::new());
    for (name, image) in images {
        let case = name.strip_suffix("_0000").unwrap_or(&name).to_owned();
        match labels.remove(&case) {
            Some(label) => drop(cases.insert(case, (image, label))),
            None => mistakes.push(format!("image `{name}` has no label file `{case}`")),
        }
    }
    mistakes.extend(labels.keys().map(|name| format!("label file `{name}` has no image")));
    Ok(if mistakes.is_empty() { Ok(cases) } else { Err(mistakes) })
}

/// NIfTI files of a folder by name without ending; none for what is no folder.
fn volumes(folder: &Path) -> Result<BTreeMap<String, PathBuf>, DataError> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let stem = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_suffix(".nii.gz").or_else(|| name.strip_suffix(".nii"))?;
        Some((stem.to_owned(), path.clone()))
    };
    Ok(listed(folder)?.into_iter().filter_map(stem).collect())
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = fs::read_dir(folder).map_err(DataError::io(folder))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(DataError::io(folder))).collect()
}
