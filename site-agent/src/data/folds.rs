//! Folds of a site's patients for cross-validation: dealt once from a seed, listed in a file, one of them left out of training.
//!
//! Scans of one patient share a fold, also where they lie in several data sets. Only what would be trained on is dealt:
//! scans that the case table or `validation_share` keep out of training stay out whichever fold is left out. The file names
//! patients, so it stays at the site.
//!
//! ```toml
//! format = "consilium folds 1"
//! seed = 7
//! folds = 5
//!
//! [[fold]]
//! dataset = "liver-2019"
//! number = 0
//! patients = ["liver-2019/case-03", "p7"]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use common::config::{Diagnostics, Document, Problems};
use common::rng::{KeyedRng, Rng};
use serde::{Deserialize, Serialize};

use super::DataError;
use super::dataset::{Case, Split};

const FORMAT: &str = "consilium folds 1";
/// Most folds.
pub const MAX_FOLDS: u32 = 100;
/// What a reader of the file should know.
const HEAD: &str = "\
# Patients by data set and fold, as `site-agent split` dealt them. A patient in several data sets is listed in the first.
# To leave one fold out of training, name this file and the fold in site.toml: folds = \"folds.toml\", fold = 0.

";

/// Folds that do not fit the scans.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// A fold would be empty.
    #[error("{patients} patients cannot be dealt into {folds} folds")]
    TooFewPatients {
        /// Patients with scans to train on.
        patients: usize,
        /// Folds asked for.
        folds: u32,
    },
    /// A number beyond the last fold.
    #[error("there is no fold {fold}: expected 0 to {last}")]
    NoSuchFold {
        /// The number.
        fold: u32,
        /// The last one there is.
        last: u32,
    },
    /// A patient who came after the folds were dealt.
    #[error("patient `{patient}` is in no fold: deal the patients again, or exclude the scan")]
    NotDealt {
        /// The patient, by the name in the case table.
        patient: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFolds {
    format: String,
    seed: u64,
    folds: u32,
    fold: Vec<RawFold>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFold {
    dataset: String,
    number: u32,
    patients: Vec<String>,
}

/// Which fold each patient is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folds {
    seed: u64,
    count: u32,
    patients: BTreeMap<String, Place>,
}

/// Where a patient is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    dataset: String,
    fold: u32,
}

impl Folds {
    /// Deals the patients of all training scans into `count` folds: in each data set, and over all of them, two folds differ
    /// by one patient at most. The same seed, data sets and patients give the same folds.
    ///
    /// # Errors
    /// [`FoldError::TooFewPatients`].
    pub fn deal(cases: &[Case], count: u32, seed: u64) -> Result<Self, FoldError> {
        let mut homes: BTreeMap<&str, &str> = BTreeMap::new();
        for case in cases.iter().filter(|case| case.split == Split::Training) {
            let dataset = case.dataset.as_str();
            let home = homes.entry(case.patient.as_str()).or_insert(dataset);
            *home = dataset.min(*home);
        }
        if homes.len() < count as usize {
            return Err(FoldError::TooFewPatients { patients: homes.len(), folds: count });
        }
        let drawn = |(patient, dataset)| (dataset, draw(seed, dataset, patient), patient);
        let mut order: Vec<(&str, u64, &str)> = homes.into_iter().map(drawn).collect();
        order.sort_unstable();
        // One round of cards for all data sets: each begins where the one before it ended.
        let dealt = order.into_iter().zip((0..count).cycle());
        let patients = dealt.map(|((dataset, _, patient), fold)| {
            (patient.to_owned(), Place { dataset: dataset.to_owned(), fold })
        });
        Ok(Self { seed, count, patients: patients.collect() })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or all its mistakes.
    pub fn read(file: &Path) -> Result<Self, DataError> {
        let text = fs::read_to_string(file).map_err(DataError::io(file))?;
        Ok(Self::parse(&file.display().to_string(), &text)?)
    }

    /// Parses the text of a file; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All mistakes, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(file, text)?;
        let raw: RawFolds = document.read()?;
        let mut problems = Problems::new();
        if raw.format != FORMAT {
            problems.add_allowed("format", format!("`{}`", raw.format), FORMAT);
        }
        problems.in_range("folds", raw.folds, 2..=MAX_FOLDS);
        let (seed, count) = (raw.seed, raw.folds);
        let patients = check_folds(raw, &mut problems);
        document.locate(problems)?;
        Ok(Self { seed, count, patients })
    }

    /// The folds as the text of a file; parsing it gives the same folds.
    pub fn to_toml(&self) -> String {
        let mut listed: BTreeMap<(&str, u32), Vec<String>> = BTreeMap::new();
        for (patient, place) in &self.patients {
            listed.entry((place.dataset.as_str(), place.fold)).or_default().push(patient.clone());
        }
        let fold = |((dataset, number), patients): ((&str, u32), Vec<String>)| RawFold {
            dataset: dataset.to_owned(),
            number,
            patients,
        };
        let raw = RawFolds {
            format: FORMAT.to_owned(),
            seed: self.seed,
            folds: self.count,
            fold: listed.into_iter().map(fold).collect(),
        };
        // Invariant: strings, lists of tables, and a seed that the command line bounds by i64 have a TOML form.
        let text = toml::to_string_pretty(&raw).expect("folds have a TOML form");
        format!("{HEAD}{text}")
    }

    /// Number of folds.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The fold of a patient; none for one that was not dealt.
    pub fn fold_of(&self, patient: &str) -> Option<u32> {
        self.patients.get(patient).map(|place| place.fold)
    }

    /// Makes the training scans of `fold` validation scans.
    ///
    /// # Errors
    /// A fold that does not exist, or a training scan of a patient that was not dealt: nobody said on which side of the
    /// split it belongs.
    pub fn leave_out(&self, cases: &mut [Case], fold: u32) -> Result<(), FoldError> {
        self.check(fold)?;
        for case in cases.iter_mut().filter(|case| case.split == Split::Training) {
            match self.fold_of(&case.patient) {
                Some(of_patient) if of_patient == fold => case.split = Split::Validation,
                Some(_) => {}
                None => return Err(FoldError::NotDealt { patient: case.patient.clone() }),
            }
        }
        Ok(())
    }

    /// The scans that [`Self::leave_out`] would leave out for `fold`; `cases` are as their data sets have them.
    ///
    /// # Errors
    /// [`FoldError::NoSuchFold`].
    pub fn scans_of(&self, fold: u32, mut cases: Vec<Case>) -> Result<Vec<Case>, FoldError> {
        self.check(fold)?;
        cases.retain(|case| case.split == Split::Training && self.fold_of(&case.patient) == Some(fold));
        Ok(cases)
    }

    fn check(&self, fold: u32) -> Result<(), FoldError> {
        if fold < self.count {
            return Ok(());
        }
        Err(FoldError::NoSuchFold { fold, last: self.count.saturating_sub(1) })
    }
}

/// Where a patient lies in the pack: it depends on nobody else.
fn draw(seed: u64, dataset: &str, patient: &str) -> u64 {
    KeyedRng::new(seed).purpose("folds").purpose(dataset).purpose(patient).rng().random()
}

fn check_folds(raw: RawFolds, problems: &mut Problems) -> BTreeMap<String, Place> {
    let mut patients: BTreeMap<String, Place> = BTreeMap::new();
    for (index, RawFold { dataset, number, patients: listed }) in raw.fold.into_iter().enumerate() {
        if number >= raw.folds {
            let allowed = format!("0 to {}", raw.folds.saturating_sub(1));
            problems.add_allowed(
                format!("fold[{index}].number"),
                format!("there is no fold {number}"),
                allowed,
            );
        }
        for patient in listed {
            let place = Place { dataset: dataset.clone(), fold: number };
            if patients.insert(patient.clone(), place).is_some() {
                problems.add(format!("fold[{index}].patients"), format!("`{patient}` is listed twice"));
            }
        }
    }
    // To leave one out that nobody is in would leave out nothing: nobody means that.
    let dealt: BTreeSet<u32> = patients.values().map(|place| place.fold).collect();
    for number in (0..raw.folds.min(MAX_FOLDS)).filter(|number| !dealt.contains(number)) {
        problems.add("fold", format!("no patient is in fold {number}"));
    }
    patients
}

#[cfg(test)]
mod tests;
