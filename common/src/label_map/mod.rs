//! How a data set's own label values become classes, and which classes the data set annotates.
//!
//! A label map is data: the rules of the reference's label transfer (fold tumours into their organ, split left from right,
//! take a tumour's mask from the raw values) are entries of `configs/datasets/*.toml`, so that a hospital writes its own
//! without code. Applying one to a volume is the site agent's work. A raw value that the map does not list is an error
//! there: a silent drop would turn a structure into background. The way back, from classes to a data set's values, is a
//! [`MergeTable`]; the way to the classes of another taxonomy is a [`Translation`].

mod merge;
mod named;
mod raw;
mod standard;
#[cfg(test)]
mod tests;
mod translate;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Diagnostics, Document};
use crate::ids::{ClassId, Digest, ModelHash, StudyDigest};
use crate::taxonomy::Taxonomy;
pub use merge::{MergeError, MergeTable, painting_order};
pub use translate::Translation;

/// What a raw value stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing that the taxonomy has: background.
    Drop,
    /// A class.
    Class(ClassId),
}

/// Which classes a case of the data set annotates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Annotated {
    /// Every case annotates these, in the order of the data set's own list.
    Always(Vec<ClassId>),
    /// The site says it, for the data set or case by case: nothing can be concluded from the label file.
    PerCase,
}

/// What a data set may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training and evaluation.
    Training,
    /// Held-out evaluation: its scans are not trained on, unless a site says so of each.
    Evaluation,
}

/// Lesions whose voxels belong to the organ's mask too. Of a lesion that several folds name, such as one into each kidney, each
/// connected piece belongs to the nearest of their organs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// The tumours and cysts.
    pub from: Vec<ClassId>,
    /// The organ that takes them in, before sides are split.
    pub into: ClassId,
}

/// Lesions that the organ's mask leaves out, on purpose (hepatic vessels and their tumours).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// The organ.
    pub organ: ClassId,
    /// The tumours and cysts that are not part of it.
    pub without: Vec<ClassId>,
}

/// A class whose mask is the voxels with these raw values, whatever the other rules made of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawMask {
    /// The class.
    pub class: ClassId,
    /// Its raw values, ascending.
    pub values: Vec<i32>,
}

/// Where pseudo-labels come from: a model, and no annotator, drew them. This is also how a file writes it, so that nothing
/// of it is lost on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The study of the model.
    pub study: StudyDigest,
    /// The model.
    pub model: ModelHash,
    /// A voxel belongs to a class whose probability is above this.
    pub threshold: f64,
    /// A class with less in a scan is not annotated there, millilitres.
    pub min_volume_ml: f64,
    /// Whether the reference's rules cleaned the masks.
    pub postprocessed: bool,
    /// When, RFC 3339.
    pub made_at: String,
}

/// A data set's label map, checked against the taxonomy.
///
/// Order of operations (specification §3.3): `values`, `folds`, `splits`, then one mask per annotated class (voxels of
/// that class), then `raw_masks` overwrite theirs. `exclusions` ask for nothing: they state that no fold was intended.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelMap {
    /// The data set's name, as shown.
    pub name: String,
    /// The reference's key, such as `10_03`: how a label manifest names the data set.
    pub key: String,
    /// What the data set may be used for.
    pub purpose: Purpose,
    /// Every raw value that may occur, 0 (background) included.
    pub values: BTreeMap<i32, Target>,
    /// Which classes are annotated.
    pub annotated: Annotated,
    /// Lesions that count as organ too.
    pub folds: Vec<Fold>,
    /// Right classes that hold both sides; the left part becomes the paired class.
    pub splits: Vec<ClassId>,
    /// Masks taken from raw values.
    pub raw_masks: Vec<RawMask>,
    /// Lesions that do not count as organ.
    pub exclusions: Vec<Exclusion>,
    /// How often a patch is centred on a voxel of raw value 0, 1, 2, …, relative to each other, where a study draws from any
    /// voxel (specification §5); empty where foreground and background are enough.
    pub crop_ratios: Vec<u32>,
    /// Values of classes in one label file, in painting order; empty where turning `values` round gives them.
    pub merge: Vec<(ClassId, i32)>,
    /// The model that made the labels, where no annotator did.
    pub provenance: Option<Provenance>,
}

impl LabelMap {
    /// Parses the text of a data-set file; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All mistakes, each with its line.
    pub fn parse(file: &str, text: &str, taxonomy: &Taxonomy) -> Result<Self, Diagnostics> {
        let document = Document::parse(file, text)?;
        let (map, problems) = raw::check(document.read()?, taxonomy);
        document.locate(problems)?;
        Ok(map)
    }

    /// The map of a label file whose values have these names; `name` is the map's own, for messages at the site. All such maps
    /// have one key, which says nothing of the case.
    pub fn from_names(name: &str, names: &BTreeMap<i32, String>, taxonomy: &Taxonomy) -> Self {
        named::from_names(name, names, taxonomy)
    }

    /// The built-in label map with this name (the file's, such as `btcv`) or key (`01`), over the standard taxonomy.
    pub fn standard(name: &str) -> Option<Self> {
        standard::find(name)
    }

    /// Names of the built-in label maps.
    pub fn standard_names() -> impl Iterator<Item = &'static str> {
        standard::FILES.iter().map(|(name, _)| *name)
    }

    /// The map as text; parsing it gives the same map.
    pub fn to_toml(&self, taxonomy: &Taxonomy) -> String {
        raw::print(self, taxonomy)
    }

    /// Names the map by what it does (not by its name), for caches.
    pub fn digest(&self) -> Digest {
        let Self {
            name: _,
            key: _,
            purpose: _,
            values,
            annotated,
            folds,
            splits,
            raw_masks,
            exclusions: _,
            crop_ratios: _,
            merge: _,
            provenance: _,
        } = self;
        Digest::of(
            format!("consilium label map 1 {values:?} {annotated:?} {folds:?} {splits:?} {raw_masks:?}")
                .as_bytes(),
        )
    }

    /// What `value` stands for; none for a value that must not occur.
    pub fn target(&self, value: i32) -> Option<Target> {
        self.values.get(&value).copied()
    }

    /// Every class that a case may annotate: those the rules can produce.
    pub fn producible(&self, taxonomy: &Taxonomy) -> BTreeSet<ClassId> {
        let listed = self.values.values().filter_map(|target| match target {
            Target::Class(class) => Some(*class),
            Target::Drop => None,
        });
        let lefts = self.splits.iter().filter_map(|&right| taxonomy.left_of(right));
        listed.chain(lefts).chain(self.raw_masks.iter().map(|mask| mask.class)).collect()
    }

    /// The annotated classes of one case: its own list if it has one, else the data set's.
    ///
    /// # Errors
    /// [`AnnotationError`] when neither says, or the case names a class that the map cannot produce.
    pub fn annotated_in_case(
        &self,
        case: Option<&BTreeSet<ClassId>>,
        taxonomy: &Taxonomy,
    ) -> Result<BTreeSet<ClassId>, AnnotationError> {
        let Some(case) = case else {
            return match &self.annotated {
                Annotated::Always(classes) => Ok(classes.iter().copied().collect()),
                Annotated::PerCase => Err(AnnotationError::Unstated),
            };
        };
        match case.difference(&self.producible(taxonomy)).next() {
            Some(&class) => Err(AnnotationError::Unproducible { class: taxonomy.name(class) }),
            None => Ok(case.clone()),
        }
    }
}

/// Why the annotated classes of a case are unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// The label map leaves it to the site, and the site did not say.
    #[error("the label map does not say which classes are annotated: list them for the data set or the case")]
    Unstated,
    /// No raw value leads to the class.
    #[error(
        "`{class}` is listed in `annotated`, and no raw value of the label map leads to it: give it one in `[values]`, or take it \
         out of the list"
    )]
    Unproducible {
        /// The class, by name.
        class: String,
    },
}
