//! A data-set file as it is written, the check that turns it into a [`LabelMap`], and the way back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Annotated, Exclusion, Fold, LabelMap, Provenance, Purpose, RawMask, Target};
use crate::config::Problems;
use crate::ids::ClassId;
use crate::manifest::{DATASET_NAMES, names_dataset};
use crate::taxonomy::{ClassKind, Taxonomy};

/// What a file writes for "the site says it".
const PER_CASE: &str = "per-case";
/// What a file writes for a value that leads to no class.
const DROP: &str = "drop";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLabelMap {
    name: String,
    key: String,
    #[serde(rename = "use")]
    purpose: RawPurpose,
    annotated: RawAnnotated,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    crop_ratios: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    merge: Vec<(String, i32)>,
    values: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fold: Vec<RawFold>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<RawExclusion>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    split: Vec<RawSplit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mask: Vec<RawRawMask>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provenance: Option<Provenance>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawPurpose {
    Training,
    Evaluation,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RawAnnotated {
    Word(String),
    Classes(Vec<String>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFold {
    from: Vec<String>,
    into: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExclusion {
    organ: String,
    without: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSplit {
    class: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRawMask {
    class: String,
    values: Vec<i32>,
}

/// Looks names up and notes those that no class has.
struct Names<'a> {
    taxonomy: &'a Taxonomy,
    problems: Problems,
}

impl Names<'_> {
    fn class(&mut self, key: &str, name: &str) -> Option<ClassId> {
        let found = self.taxonomy.find(name).map(|class| class.id);
        if found.is_none() {
            let problem = format!("the taxonomy has no class `{name}`");
            match self.taxonomy.suggest(name) {
                Some(near) => self.problems.add_allowed(key, problem, format!("did you mean `{near}`?")),
                None => self.problems.add(key, problem),
            }
        }
        found
    }

    fn classes(&mut self, key: &str, names: &[String]) -> Vec<ClassId> {
        let mut found: Vec<ClassId> = Vec::new();
        for name in names {
            let Some(class) = self.class(key, name) else { continue };
            if found.contains(&class) {
                self.problems.add(key, format!("`{name}` is named twice"));
            } else {
                found.push(class);
            }
        }
        found
    }
}

/// Builds the map and says what is wrong with it: valid only when there are no problems.
pub(super) fn check(raw: RawLabelMap, taxonomy: &Taxonomy) -> (LabelMap, Problems) {
    let mut names = Names { taxonomy, problems: Problems::new() };
    let purpose = match raw.purpose {
        RawPurpose::Training => Purpose::Training,
        RawPurpose::Evaluation => Purpose::Evaluation,
    };
    let annotated = check_annotated(&raw.annotated, &mut names);
    let values = check_values(&raw.values, &mut names);
    let (folds, splits) = (check_folds(&raw.fold, &mut names), check_splits(&raw.split, &mut names));
    let raw_masks = check_masks(&raw.mask, &values, &mut names);
    let exclusions = check_exclusions(&raw.exclude, &mut names);
    let merge = check_merge(&raw.merge, &mut names);
    let map = LabelMap {
        name: raw.name,
        key: raw.key,
        purpose,
        values,
        annotated,
        folds,
        splits,
        raw_masks,
        exclusions,
        crop_ratios: raw.crop_ratios,
        merge,
        provenance: raw.provenance,
    };
    // No coordinator would take a manifest with another.
    if !names_dataset(&map.key) {
        names.problems.add_allowed("key", format!("`{}`", map.key), DATASET_NAMES);
    }
    check_provenance(map.provenance.as_ref(), &mut names.problems);
    check_crop_ratios(&map, &mut names);
    check_together(&map, &mut names);
    (map, names.problems)
}

fn check_annotated(raw: &RawAnnotated, names: &mut Names<'_>) -> Annotated {
    match raw {
        RawAnnotated::Word(word) => {
            if word != PER_CASE {
                let allowed = format!("a list of classes, or `{PER_CASE}`");
                names.problems.add_allowed("annotated", format!("`{word}`"), allowed);
            }
            Annotated::PerCase
        }
        RawAnnotated::Classes(classes) => {
            if classes.is_empty() {
                names.problems.add("annotated", "names no class: the data set would teach nothing");
            }
            Annotated::Always(names.classes("annotated", classes))
        }
    }
}

fn check_values(raw: &BTreeMap<String, String>, names: &mut Names<'_>) -> BTreeMap<i32, Target> {
    // Value 0 is background in every data set; a file need not say it.
    let mut values = BTreeMap::from([(0, Target::Drop)]);
    for (text, name) in raw {
        let key = format!("values.{text}");
        let Ok(value) = text.parse::<i32>() else {
            names.problems.add_allowed(key, "is not a label value", "an integer of 32 bits");
            continue;
        };
        let target = match name.as_str() {
            DROP => Some(Target::Drop),
            name => names.class(&key, name).map(Target::Class),
        };
        if value == 0 && target != Some(Target::Drop) {
            names.problems.add_allowed(&key, "0 is background", format!("`{DROP}`, or leave it out"));
        }
        values.extend(target.map(|target| (value, target)));
    }
    values
}

fn check_folds(raw: &[RawFold], names: &mut Names<'_>) -> Vec<Fold> {
    let fold = |(index, raw): (usize, &RawFold)| {
        let from = names.classes(&format!("fold[{index}].from"), &raw.from);
        let into = names.class(&format!("fold[{index}].into"), &raw.into)?;
        Some(Fold { from, into })
    };
    raw.iter().enumerate().filter_map(fold).collect()
}

fn check_exclusions(raw: &[RawExclusion], names: &mut Names<'_>) -> Vec<Exclusion> {
    let exclusion = |(index, raw): (usize, &RawExclusion)| {
        let without = names.classes(&format!("exclude[{index}].without"), &raw.without);
        let organ = names.class(&format!("exclude[{index}].organ"), &raw.organ)?;
        Some(Exclusion { organ, without })
    };
    raw.iter().enumerate().filter_map(exclusion).collect()
}

fn check_splits(raw: &[RawSplit], names: &mut Names<'_>) -> Vec<ClassId> {
    let mut splits = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("split[{index}].class");
        let Some(class) = names.class(&key, &raw.class) else { continue };
        if names.taxonomy.left_of(class).is_none() {
            names.problems.add_allowed(key, format!("`{}`", raw.class), "the right one of a left/right pair");
        }
        splits.push(class);
    }
    splits
}

fn check_masks(raw: &[RawRawMask], listed: &BTreeMap<i32, Target>, names: &mut Names<'_>) -> Vec<RawMask> {
    let mut masks = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let key = format!("mask[{index}].values");
        if raw.values.is_empty() || raw.values.contains(&0) {
            names.problems.add_allowed(
                &key,
                format!("{:?}", raw.values),
                "values other than 0, at least one",
            );
        }
        for value in raw.values.iter().filter(|value| !listed.contains_key(value)) {
            names.problems.add(&key, format!("{value} is not listed under `values`"));
        }
        let mut values = raw.values.clone();
        values.sort_unstable();
        let class = names.class(&format!("mask[{index}].class"), &raw.class);
        masks.extend(class.map(|class| RawMask { class, values }));
    }
    masks
}

fn check_merge(raw: &[(String, i32)], names: &mut Names<'_>) -> Vec<(ClassId, i32)> {
    let mut merge: Vec<(ClassId, i32)> = Vec::new();
    for (name, value) in raw {
        let Some(class) = names.class("merge", name) else { continue };
        if merge.iter().any(|(listed, _)| *listed == class) {
            names.problems.add("merge", format!("`{name}` is named twice"));
        }
        names.problems.in_range("merge", *value, 1..=255);
        merge.push((class, *value));
    }
    merge
}

fn check_provenance(provenance: Option<&Provenance>, problems: &mut Problems) {
    let Some(provenance) = provenance else { return };
    problems.in_range("provenance.threshold", provenance.threshold, 0.0..=1.0);
    problems.in_range("provenance.min_volume_ml", provenance.min_volume_ml, 0.0..=1e6);
}

fn check_crop_ratios(map: &LabelMap, names: &mut Names<'_>) {
    for (value, _) in (0i32..).zip(&map.crop_ratios).filter(|(value, _)| !map.values.contains_key(value)) {
        names.problems.add("crop_ratios", format!("{value} is not listed under `values`"));
    }
    if !map.crop_ratios.is_empty() && map.crop_ratios.iter().all(|&ratio| ratio == 0) {
        names.problems.add_allowed(
            "crop_ratios",
            "all are 0",
            "one number for each value from 0 on, not all 0",
        );
    }
}

/// Rules that concern several parts at once.
fn check_together(map: &LabelMap, names: &mut Names<'_>) {
    check_lesions(map, names);
    let Annotated::Always(annotated) = &map.annotated else { return };
    let producible = map.producible(names.taxonomy);
    for &class in annotated.iter().filter(|class| !producible.contains(*class)) {
        let problem = format!("no value leads to `{}`", names.taxonomy.name(class));
        match producible.iter().find(|right| names.taxonomy.left_of(**right) == Some(class)) {
            Some(&right) => {
                let right = names.taxonomy.name(right);
                let split = format!(
                    "a `[[split]]` with `class = \"{right}\"`, where the values of that one hold both sides"
                );
                names.problems.add_allowed("annotated", problem, split);
            }
            None => names.problems.add("annotated", problem),
        }
    }
    for class in producible.into_iter().filter(|class| !annotated.contains(class)) {
        let name = names.taxonomy.name(class);
        names.problems.add_allowed(
            "annotated",
            format!("leaves out `{name}`, which values lead to"),
            format!("name it, or make its values `{DROP}`"),
        );
    }
}

/// A lesion with values beside its organ's is part of the organ's mask or it is not: the file must say which, whatever a case
/// annotates of the two.
fn check_lesions(map: &LabelMap, names: &mut Names<'_>) {
    let taxonomy = names.taxonomy;
    // The first value of each class.
    let mut listed: BTreeMap<ClassId, i32> = BTreeMap::new();
    for (&value, target) in &map.values {
        if let Target::Class(class) = *target {
            listed.entry(class).or_insert(value);
        }
    }
    let is_masked = |class: ClassId| map.raw_masks.iter().any(|mask| mask.class == class);
    for (&lesion, value) in &listed {
        let Some(class) = taxonomy.class(lesion).filter(|class| class.kind != ClassKind::Organ) else {
            continue;
        };
        // A mask of its own says it all of an organ.
        for &organ in class.parents.iter().filter(|organ| listed.contains_key(*organ) && !is_masked(**organ))
        {
            let folded = map.folds.iter().any(|fold| fold.into == organ && fold.from.contains(&lesion));
            let excluded =
                map.exclusions.iter().any(|one| one.organ == organ && one.without.contains(&lesion));
            if folded == excluded {
                let organ = taxonomy.name(organ);
                names.problems.add_allowed(
                    format!("values.{value}"),
                    format!("`{}` has values beside those of `{organ}`, which it lies in", class.name),
                    format!("name it in exactly one of a `fold` into `{organ}` and an `exclude` of it"),
                );
            }
        }
        // Folding erases the lesion from the map: without a raw mask its class would always be empty.
        if map.folds.iter().any(|fold| fold.from.contains(&lesion)) && !is_masked(lesion) {
            names.problems.add("fold", format!("`{}` is folded and needs a `mask` of its own", class.name));
        }
    }
}

/// The file's text.
pub(super) fn print(map: &LabelMap, taxonomy: &Taxonomy) -> String {
    let name = |class: &ClassId| taxonomy.name(*class);
    let names = |classes: &[ClassId]| classes.iter().map(name).collect::<Vec<_>>();
    let raw = RawLabelMap {
        name: map.name.clone(),
        key: map.key.clone(),
        purpose: match map.purpose {
            Purpose::Training => RawPurpose::Training,
            Purpose::Evaluation => RawPurpose::Evaluation,
        },
        annotated: match &map.annotated {
            Annotated::Always(classes) => RawAnnotated::Classes(names(classes)),
            Annotated::PerCase => RawAnnotated::Word(PER_CASE.to_owned()),
        },
        crop_ratios: map.crop_ratios.clone(),
        merge: map.merge.iter().map(|(class, value)| (name(class), *value)).collect(),
        values: map
            .values
            .iter()
            .map(|(value, target)| (value.to_string(), print_target(*target, taxonomy)))
            .collect(),
        fold: map
            .folds
            .iter()
            .map(|fold| RawFold { from: names(&fold.from), into: name(&fold.into) })
            .collect(),
        exclude: map
            .exclusions
            .iter()
            .map(|exclusion| RawExclusion {
                organ: name(&exclusion.organ),
                without: names(&exclusion.without),
            })
            .collect(),
        split: map.splits.iter().map(|class| RawSplit { class: name(class) }).collect(),
        mask: map
            .raw_masks
            .iter()
            .map(|mask| RawRawMask { class: name(&mask.class), values: mask.values.clone() })
            .collect(),
        provenance: map.provenance.clone(),
    };
    // Invariant: strings, integers and lists of tables always have a TOML form.
    toml::to_string(&raw).expect("a label map has a TOML form")
}

fn print_target(target: Target, taxonomy: &Taxonomy) -> String {
    match target {
        Target::Drop => DROP.to_owned(),
        Target::Class(class) => taxonomy.name(class),
    }
}
