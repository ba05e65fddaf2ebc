//! Which files of a data set's folder belong together: scan and labels of each case, in either layout.
//!
//! What looks like a scan and is not read is a mistake that is named: left out in silence, it would cost the site a scan.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::data::DataError;

/// Image and labels of each case, by the case's name.
pub(super) type CaseFiles = BTreeMap<String, (PathBuf, PathBuf)>;

/// How the names of files end that are read, in capitals or not. Of a pair, the header stands for both halves.
const READ: [&str; 4] = [".nii.gz", ".nii", ".hdr.gz", ".hdr"];
/// How those of a pair's headers end, and of its voxels.
const HEADERS: [&str; 2] = [".hdr.gz", ".hdr"];
const VOXELS: [&str; 2] = [".img.gz", ".img"];
/// How those of volumes end that are not read. A DICOM file is a slice, and not named here: folders of them lie beside many data
/// sets as what these were made from.
const NOT_READ: [&str; 4] = [".nrrd", ".nhdr", ".mha", ".mhd"];

/// The cases of a data set's folder.
///
/// # Errors
/// Every mistake in its layout.
pub(super) fn find_files(folder: &Path) -> Result<CaseFiles, DataError> {
    let pairs = [("images", "labels"), ("imagesTr", "labelsTr")];
    let pairs = pairs.map(|(images, labels)| (folder.join(images), folder.join(labels)));
    let (cases, mut mistakes) = match pairs.iter().find(|(images, labels)| images.is_dir() && labels.is_dir())
    {
        Some((images, labels)) => pair_files(images, labels)?,
        None => case_folders(folder)?,
    };
    if cases.is_empty() && mistakes.is_empty() {
        let expected = "no case: expected folders with `ct` and `labels` files, or files of the same names in folders \
                        `images` and `labels`";
        mistakes.push(expected.to_owned());
    }
    let dataset = folder.display().to_string();
    if mistakes.is_empty() { Ok(cases) } else { Err(DataError::Dataset { dataset, mistakes }) }
}

/// Cases that are folders, and what is wrong with the other folders that hold scans.
fn case_folders(folder: &Path) -> Result<(CaseFiles, Vec<String>), DataError> {
    let (mut cases, mut mistakes) = (CaseFiles::new(), Vec::new());
    for entry in listed(folder)? {
        let volumes = Volumes::of(&entry)?;
        if volumes.read.is_empty() && volumes.not_read.is_empty() {
            continue;
        }
        match volumes.case(&entry) {
            Ok((name, files)) => drop(cases.insert(name, files)),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    Ok((cases, mistakes))
}

/// Cases of the pair layout, and what has no counterpart or is not read.
fn pair_files(images: &Path, labels: &Path) -> Result<(CaseFiles, Vec<String>), DataError> {
    let (images, mut labels) = (Volumes::of(images)?, Volumes::of(labels)?);
    let mut cases = CaseFiles::new();
    let not_read = images.not_read.iter().chain(&labels.not_read);
    let mut mistakes: Vec<String> = not_read.map(|file| not_read_because(file)).collect();
    for (name, image) in &images.read {
        let case = name.strip_suffix("_0000").unwrap_or(name);
        let Some(label) = labels.read.remove(case) else {
            mistakes.push(format!("image `{name}` has no label file `{case}`"));
            continue;
        };
        match (only(image), only(&label)) {
            (Ok(image), Ok(label)) => drop(cases.insert(case.to_owned(), (image, label))),
            (image, label) => mistakes.extend([image, label].into_iter().filter_map(Result::err)),
        }
    }
    mistakes.extend(labels.read.keys().map(|name| format!("label file `{name}` has no image")));
    Ok((cases, mistakes))
}

/// Scans and label files of a folder.
#[derive(Default)]
struct Volumes {
    /// NIfTI files by name without ending: one each, unless a mistake was made.
    read: BTreeMap<String, Vec<PathBuf>>,
    /// Files of other formats, voxels without a header, and files whose names are not UTF-8.
    not_read: Vec<PathBuf>,
}

impl Volumes {
    /// Those in `folder`; none in what is no folder.
    fn of(folder: &Path) -> Result<Self, DataError> {
        let mut volumes = Self::default();
        let mut voxels = Vec::new();
        let files = if folder.is_dir() { listed(folder)? } else { Vec::new() };
        for file in files {
            let name = file_name(&file).into_owned();
            let is_utf8 = file.file_name().is_some_and(|name| name.to_str().is_some());
            match without_ending(&name, &READ) {
                Some(stem) if is_utf8 => volumes.read.entry(stem.to_owned()).or_default().push(file),
                None if without_ending(&name, &VOXELS).is_some() => voxels.push(file),
                None if without_ending(&name, &NOT_READ).is_none() => {}
                _ => volumes.not_read.push(file),
            }
        }
        voxels.retain(|file| !volumes.have_header_of(file));
        volumes.not_read.extend(voxels);
        volumes.not_read.sort();
        Ok(volumes)
    }

    /// Whether these voxels have their header here.
    fn have_header_of(&self, voxels: &Path) -> bool {
        let name = file_name(voxels);
        let beside = without_ending(&name, &VOXELS).and_then(|stem| self.read.get(stem));
        beside.into_iter().flatten().any(|file| without_ending(&file_name(file), &HEADERS).is_some())
    }

    /// Name and files of the case that `folder` is, if these are its files.
    fn case(&self, folder: &Path) -> Result<(String, (PathBuf, PathBuf)), String> {
        let (Some(ct), Some(labels)) = (self.read.get("ct"), self.read.get("labels")) else {
            return Err(self.no_case(folder));
        };
        let name = folder.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| not_read_because(folder))?;
        Ok((name.to_owned(), (only(ct)?, only(labels)?)))
    }

    /// What the folder has in the place of a `ct` and a `labels` file.
    fn no_case(&self, folder: &Path) -> String {
        const SHOWN: usize = 4;
        let lacks: Vec<_> =
            ["ct", "labels"].into_iter().filter(|stem| !self.read.contains_key(*stem)).collect();
        let mut files: Vec<&PathBuf> = self.read.values().flatten().chain(&self.not_read).collect();
        files.sort();
        let mut has: Vec<_> = files.iter().take(SHOWN).map(|file| format!("`{}`", file_name(file))).collect();
        if files.len() > SHOWN {
            has.push(format!("{} more", files.len() - SHOWN));
        }
        format!(
            "`{}` has {} and no `{}`: a case is `ct.nii.gz` and `labels.nii.gz` (or `.nii`, or `.hdr` with `.img`); rename, \
             convert or add the file, or move the folder away",
            file_name(folder),
            has.join(", "),
            lacks.join("`, no `")
        )
    }
}

/// The file of a name. Of `labels.nii` and `labels.nii.gz`, one is what somebody corrected, and nobody can tell which.
fn only(files: &[PathBuf]) -> Result<PathBuf, String> {
    match files {
        [file] => Ok(file.clone()),
        several => {
            let names: Vec<_> = several.iter().map(|file| format!("`{}`", in_folder(file))).collect();
            let names = names.join(" and ");
            Err(format!(
                "{names} differ in their endings alone: keep the one that counts, and move the other away"
            ))
        }
    }
}

fn not_read_because(file: &Path) -> String {
    format!(
        "`{}` is not read: scans and label files are `.nii.gz`, `.nii`, or `.hdr` with `.img`, under names in UTF-8; convert or \
         rename it, or move it away",
        in_folder(file)
    )
}

/// `name` without its ending, if it is one of these, in capitals or not.
fn without_ending<'n>(name: &'n str, endings: &[&str]) -> Option<&'n str> {
    let small = name.to_ascii_lowercase();
    let ending = endings.iter().find(|ending| small.ends_with(**ending))?;
    name.get(..name.len() - ending.len())
}

/// A file's name for people: what is not UTF-8 in it is replaced.
fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// The same after the name of its folder: what tells `labels/p7.nii` from `images/p7.nii`.
fn in_folder(path: &Path) -> String {
    let folder = path.parent().map(file_name).unwrap_or_default();
    format!("{folder}/{}", file_name(path))
}

/// What is in a folder, by name. What macOS puts beside a file to keep its attributes (`._p7.nii.gz`) is none of it: archives of
/// public data sets are full of that.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = fs::read_dir(folder).map_err(DataError::io(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(DataError::io(folder)));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| !file_name(path).starts_with("._"));
    paths.sort();
    Ok(paths)
}
