//! A site's data sets: folders of scans with labels, one label map each, and what is known case by case.
//!
//! Two layouts are read. *Case folders*: every folder with a `ct` and a `labels` file is a case, and may bring a `labels.json`
//! that names the values (`{"5": "liver"}`). *Pairs*: folders `images`
//! and `labels` (or `imagesTr` and `labelsTr`) hold files of the same names; `_0000` at the end of an image's name is left
//! out. Files end in `.nii` or `.nii.gz`, or are pairs of `.hdr` and `.img`, in capitals or not. An optional `cases.toml` in the folder
//! says more about single cases:
//!
//! ```toml
//! [case-07]
//! patient = "p3"            # default: a patient of its own
//! split = "validation"      # training, validation or excluded; default: by the label map's `use`, and by `validation_share`
//! annotated = ["liver"]     # where it differs from the data set's
//! hounsfield = "assume"     # a CT although its values look otherwise
//! orientation = "assume"    # LAS: its file does not say how the patient lies
//! ```
//!
//! Names of classes are words of one taxonomy: the data set's own, or the standard one. A study's may be another; what both
//! name is then what the cases annotate.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::config::{Document, Problems};
use common::ids::ClassId;
use common::label_map::{LabelMap, Purpose, Translation};
use common::taxonomy::Taxonomy;
use serde::Deserialize;

use self::files::find_files;
use super::DataError;
use super::intensity::check_hounsfield;
use super::nifti::{Image, Limits, read_image};
use super::orientation::check_orientation;

/// Label map and case table of a data set that brings its own.
pub const LABEL_MAP_FILE: &str = "dataset.toml";
/// The classes that a data set is described with, where they are not the standard ones.
pub const TAXONOMY_FILE: &str = "taxonomy.toml";
/// What is known of single cases.
pub const CASES_FILE: &str = "cases.toml";
/// Names of the values of one case, beside its label file.
pub const NAMES_FILE: &str = "labels.json";

/// The built-in map of BTCV, by name and by key.
const BTCV: [&str; 2] = ["btcv", "01"];
/// That of its later cases.
const LATE_BTCV: &str = "btcv-after-60";
/// The number of the first of these.
const FIRST_LATE: u8 = 60;

/// One `[[dataset]]` of `site.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// Name, as shown; part of each case's name.
    pub name: String,
    /// Where its files are, from the folder of `site.toml`.
    pub folder: PathBuf,
    /// A built-in label map by name (`kits`), a file (`maps/ours.toml`), or `labels.json`: each case names its values in
    /// that file beside its labels. Default: `dataset.toml` in the folder.
    #[serde(default)]
    pub label_map: Option<String>,
    /// The taxonomy that names of classes are looked up in, from the folder of `site.toml`. Default: `taxonomy.toml` in the
    /// data set's folder, or the standard one.
    #[serde(default)]
    pub taxonomy: Option<PathBuf>,
    /// The annotated classes, where the label map leaves them to the site.
    #[serde(default)]
    pub annotated: Option<Vec<String>>,
    /// Share of patients kept out of training, for patients without a split of their own. All are where the label map says
    /// `use = "evaluation"`.
    #[serde(default)]
    pub validation_share: f64,
}

impl DatasetConfig {
    /// The data set's own taxonomy, if it is described with other classes than the standard ones.
    ///
    /// # Errors
    /// A file that cannot be read, or its mistakes.
    pub fn own_taxonomy(&self, base: &Path) -> Result<Option<Taxonomy>, DataError> {
        let beside = base.join(&self.folder).join(TAXONOMY_FILE);
        let file = match &self.taxonomy {
            Some(named) => base.join(named),
            None if exists(&beside)? => beside,
            None => return Ok(None),
        };
        Ok(Some(Taxonomy::parse(&file.display().to_string(), &read_text(&file)?)?))
    }
}

/// What a case is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training.
    Training,
    /// The site's own validation.
    Validation,
    /// Nothing.
    Excluded,
}

/// How a property of a scan is known.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Known {
    /// By its file: a scan whose file does not show it is refused.
    Check,
    /// On the site's word.
    Assume,
}

/// One entry of `cases.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    patient: Option<String>,
    split: Option<Split>,
    annotated: Option<Vec<String>>,
    hounsfield: Option<Known>,
    orientation: Option<Known>,
}

/// One scan with its labels.
#[derive(Clone, Debug)]
pub struct Case {
    /// `dataset/case`.
    pub name: String,
    /// Name of its data set.
    pub dataset: String,
    /// The scan.
    pub image: PathBuf,
    /// Its label file.
    pub labels: PathBuf,
    /// What the label file's numbers mean.
    pub label_map: Arc<LabelMap>,
    /// The classes that this case annotates.
    pub annotated: BTreeSet<ClassId>,
    /// Whose scan it is.
    pub patient: String,
    /// What it is used for.
    pub split: Split,
    /// Whether it is CT on the site's word.
    pub assume_hounsfield: bool,
    /// Whether it lies as LAS on the site's word, where its file does not say how.
    pub assume_orientation: bool,
    /// Whether a model, and no annotator, labelled it: never scored, and trained on only where a study says so.
    pub pseudo: bool,
}

impl Case {
    /// Reads the scan, in the axes of its file: a CT that lies in a known way, as the file shows or on the site's word.
    ///
    /// # Errors
    /// A file that is no usable NIfTI, or that shows neither; the latter names the case.
    pub fn read_scan(&self) -> Result<Image, DataError> {
        let image = read_image(&self.image, &Limits::default())?;
        if !self.assume_orientation {
            check_orientation(image.placed_by).map_err(DataError::of_case(&self.name))?;
        }
        if !self.assume_hounsfield {
            check_hounsfield(&image.volume).map_err(DataError::of_case(&self.name))?;
        }
        Ok(image)
    }
}

/// All cases of all data sets of a site, ordered by name, over the classes of `taxonomy`: also those that annotate none of
/// them.
///
/// # Errors
/// What is wrong with the first data set that has mistakes, or a patient in two splits.
pub fn read_datasets(
    configs: &[DatasetConfig],
    base: &Path,
    taxonomy: &Taxonomy,
) -> Result<Vec<Case>, DataError> {
    let mut cases = Vec::new();
    for config in configs {
        cases.extend(read_dataset(config, base, taxonomy)?);
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    check_patients(&cases)?;
    Ok(cases)
}

/// Refuses labels that a model made, for studies that do not allow them.
///
/// # Errors
/// [`DataError::PseudoLabels`] names the first data set that has any.
pub fn refuse_pseudo_labels(cases: &[Case]) -> Result<(), DataError> {
    match cases.iter().find(|case| case.pseudo) {
        Some(case) => Err(DataError::PseudoLabels { dataset: case.dataset.clone() }),
        None => Ok(()),
    }
}

/// The cases of one data set; `base` is the folder that its paths start from.
///
/// # Errors
/// Every mistake in its label map, its table or its folder.
pub fn read_dataset(
    config: &DatasetConfig,
    base: &Path,
    taxonomy: &Taxonomy,
) -> Result<Vec<Case>, DataError> {
    let folder = base.join(&config.folder);
    check_folder(&config.name, &folder)?;
    let by_names = config.label_map.as_deref() == Some(NAMES_FILE);
    let words = match config.own_taxonomy(base)? {
        Some(own) => own,
        // A tool's names are anybody's words: whatever the study knows of them counts.
        None if by_names => taxonomy.clone(),
        None => Taxonomy::standard(),
    };
    let translation = Translation::between(&words, taxonomy);
    let translated = |map: LabelMap| (Arc::new(translation.label_map(&map)), map);
    let shared_map = match by_names {
        true => None,
        false => Some(translated(read_label_map(config, base, &folder, &words)?)),
    };
    let said = shared_map.as_ref().is_some_and(|(map, _)| map.provenance.is_some());
    let pseudo = said || says_provenance(&folder)?;
    let files = find_files(&folder)?;
    let table_file = folder.join(CASES_FILE);
    let text = if exists(&table_file)? { read_text(&table_file)? } else { String::new() };
    let shown = table_file.display().to_string();
    let document = Document::parse(&shown, &text)?;
    let mut table: BTreeMap<String, RawCase> = document.read()?;

    let mut problems = Problems::new();
    for name in table.keys().filter(|name| !files.contains_key(*name)) {
        problems.add(name.as_str(), "no such case in the folder");
    }
    let usual = usual_classes(config, &words)?;
    // What the site says of the data set or of a case goes before what its number says.
    let late_map = late_label_map(config, &words).filter(|_| usual.is_none()).map(translated);
    let mut cases = Vec::new();
    for (name, (image, labels)) in files {
        let raw = table.remove(&name).unwrap_or_default();
        // Nothing is asked about the labels of a scan that is not used.
        let is_excluded = raw.split == Some(Split::Excluded);
        let own = classes(&format!("{name}.annotated"), raw.annotated.as_deref(), &words, &mut problems);
        let full_name = format!("{}/{name}", config.name);
        let of_this_case;
        let (label_map, described) = match &shared_map {
            Some(shared) => late_map.as_ref().filter(|_| own.is_none() && is_late(&name)).unwrap_or(shared),
            None if is_excluded => {
                of_this_case = translated(LabelMap::from_names(&full_name, &BTreeMap::new(), &words));
                &of_this_case
            }
            None => {
                of_this_case = translated(read_names(&full_name, &labels, &words)?);
                &of_this_case
            }
        };
        let annotated = match described.annotated_in_case(own.as_ref().or(usual.as_ref()), &words) {
            Err(_) if is_excluded => BTreeSet::new(),
            annotated => annotated.map_err(DataError::of_case(&full_name))?,
        };
        let annotated = translation.annotated(label_map, &annotated);
        let patient = raw.patient.unwrap_or_else(|| full_name.clone());
        let split = raw.split.unwrap_or_else(|| match described.purpose {
            Purpose::Training => drawn_split(&patient, config.validation_share),
            Purpose::Evaluation => Split::Validation,
        });
        cases.push(Case {
            dataset: config.name.clone(),
            name: full_name,
            image,
            labels,
            label_map: Arc::clone(label_map),
            annotated,
            patient,
            split,
            assume_hounsfield: raw.hounsfield == Some(Known::Assume),
            assume_orientation: raw.orientation == Some(Known::Assume),
            pseudo,
        });
    }
    document.locate(problems)?;
    Ok(cases)
}

/// A slip in `folder` is told as that, and not as a file that is missing there.
fn check_folder(dataset: &str, folder: &Path) -> Result<(), DataError> {
    let what = match fs::metadata(folder) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "is no folder",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist",
        Err(error) => return Err(DataError::io(folder)(error)),
    };
    let mistake = format!("{} {what}: correct `folder` in site.toml", folder.display());
    Err(DataError::Dataset { dataset: dataset.to_owned(), mistakes: vec![mistake] })
}

/// The label map of a data set, in its own words.
fn read_label_map(
    config: &DatasetConfig,
    base: &Path,
    folder: &Path,
    words: &Taxonomy,
) -> Result<LabelMap, DataError> {
    let mistake = |mistake| DataError::Dataset { dataset: config.name.clone(), mistakes: vec![mistake] };
    let file = match config.label_map.as_deref() {
        None => {
            let file = folder.join(LABEL_MAP_FILE);
            if !exists(&file)? {
                let folder = folder.display();
                return Err(mistake(format!(
                    "no `label_map` in site.toml and no {LABEL_MAP_FILE} in {folder}: add one of them"
                )));
            }
            file
        }
        Some(name) if name.ends_with(".toml") => {
            let file = base.join(name);
            if !exists(&file)? {
                let file = file.display();
                return Err(mistake(format!("{file} does not exist: correct `label_map` in site.toml")));
            }
            file
        }
        Some(name) => {
            let known = LabelMap::standard(name).ok_or_else(|| {
                let known = LabelMap::standard_names().collect::<Vec<_>>().join(", ");
                mistake(format!("`label_map`: unknown data set `{name}`; known: {known}"))
            })?;
            return Ok(Translation::between(&Taxonomy::standard(), words).label_map(&known));
        }
    };
    Ok(LabelMap::parse(&file.display().to_string(), &read_text(&file)?, words)?)
}

/// The label map of BTCV's later cases, which annotate less, where the built-in one of the others is named.
fn late_label_map(config: &DatasetConfig, words: &Taxonomy) -> Option<LabelMap> {
    let is_btcv = config.label_map.as_deref().is_some_and(|name| BTCV.contains(&name));
    let late = LabelMap::standard(LATE_BTCV).filter(|_| is_btcv)?;
    Some(Translation::between(&Taxonomy::standard(), words).label_map(&late))
}

/// Whether a case of BTCV is one of the later, by the last two characters of its name (specification §3.1).
fn is_late(case: &str) -> bool {
    let last_two = case.len().checked_sub(2).and_then(|start| case.get(start..));
    last_two.and_then(|digits| digits.parse::<u8>().ok()).is_some_and(|number| number >= FIRST_LATE)
}

/// Whether the folder's own label map says that a model made the labels: it counts whichever map `site.toml` names, and
/// even if nothing else in it can be read.
fn says_provenance(folder: &Path) -> Result<bool, DataError> {
    let file = folder.join(LABEL_MAP_FILE);
    if !exists(&file)? {
        return Ok(false);
    }
    let table = toml::from_str::<toml::Table>(&read_text(&file)?);
    Ok(table.is_ok_and(|table| table.contains_key("provenance")))
}

/// The map of one label file from the names beside it.
fn read_names(case: &str, labels: &Path, taxonomy: &Taxonomy) -> Result<LabelMap, DataError> {
    let file = labels.with_file_name(NAMES_FILE);
    let mistake = |mistake: String| {
        let expected = "expected an object of value and name, such as {\"5\": \"liver\"}";
        DataError::Dataset {
            dataset: file.display().to_string(),
            mistakes: vec![format!("{mistake}; {expected}")],
        }
    };
    if !exists(&file)? {
        return Err(mistake("there is no such file beside the labels".to_owned()));
    }
    let names: BTreeMap<i32, String> =
        serde_json::from_str(&read_text(&file)?).map_err(|error| mistake(error.to_string()))?;
    Ok(LabelMap::from_names(case, &names, taxonomy))
}

fn read_text(file: &Path) -> Result<String, DataError> {
    fs::read_to_string(file).map_err(DataError::io(file))
}

/// Whether a file is there. One that cannot be looked at is not taken for missing.
fn exists(file: &Path) -> Result<bool, DataError> {
    match file.try_exists() {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        tried => tried.map_err(DataError::io(file)),
    }
}

/// The classes that `site.toml` says are annotated, if it does.
fn usual_classes(config: &DatasetConfig, words: &Taxonomy) -> Result<Option<BTreeSet<ClassId>>, DataError> {
    let Some(names) = &config.annotated else { return Ok(None) };
    let found = names.iter().map(|name| words.find(name).map(|class| class.id).ok_or(name));
    let found: Result<BTreeSet<ClassId>, &String> = found.collect();
    found.map(Some).map_err(|name| DataError::Dataset {
        dataset: config.name.clone(),
        mistakes: vec![format!("`annotated` in site.toml: the taxonomy has no class `{name}`")],
    })
}

/// The classes of these names, if there is a list; names that no class has are noted.
fn classes(
    key: &str,
    names: Option<&[String]>,
    taxonomy: &Taxonomy,
    problems: &mut Problems,
) -> Option<BTreeSet<ClassId>> {
    let mut found = BTreeSet::new();
    for name in names? {
        match taxonomy.find(name) {
            Some(class) => drop(found.insert(class.id)),
            None => problems.add(key, format!("the taxonomy has no class `{name}`")),
        }
    }
    Some(found)
}

/// A split that depends on the patient alone: it stays when other patients come or go.
fn drawn_split(patient: &str, validation_share: f64) -> Split {
    let [first, second, third, fourth, ..] = *blake3::hash(patient.as_bytes()).as_bytes();
    let place = f64::from(u32::from_le_bytes([first, second, third, fourth])) / f64::from(u32::MAX);
    if place < validation_share { Split::Validation } else { Split::Training }
}

/// Whether no patient is in training and in validation.
///
/// # Errors
/// [`DataError::PatientInTwoSplits`] names the first who is.
pub fn check_patients(cases: &[Case]) -> Result<(), DataError> {
    let mut splits = BTreeMap::new();
    for case in cases.iter().filter(|case| case.split != Split::Excluded) {
        if *splits.entry(&case.patient).or_insert(case.split) != case.split {
            return Err(DataError::PatientInTwoSplits { patient: case.patient.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
