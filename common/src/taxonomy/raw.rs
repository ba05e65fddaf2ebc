//! The taxonomy as it is written, and the check that turns it into a [`Taxonomy`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Class, ClassKind, Pair, Side, Taxonomy, normalise};
use crate::config::Problems;
use crate::ids::ClassId;

/// Most other names of one class.
const MAX_ALIASES: usize = 20;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTaxonomy {
    pub(super) class: Vec<RawClass>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClass {
    id: u8,
    name: String,
    kind: ClassKind,
    /// What stands in the text prompt, when it is not the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parents: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    side: Option<Side>,
    /// The class on the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pair: Option<u8>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
}

impl From<Class> for RawClass {
    fn from(class: Class) -> Self {
        Self {
            id: class.id.get(),
            kind: class.kind,
            prompt_name: (class.prompt_name != class.name).then_some(class.prompt_name),
            parents: class.parents.into_iter().map(ClassId::get).collect(),
            side: class.pair.map(|pair| pair.side),
            pair: class.pair.map(|pair| pair.other.get()),
            aliases: class.aliases,
            name: class.name,
        }
    }
}

impl Taxonomy {
    /// Builds the taxonomy and says what is wrong with it: valid only when there are no problems.
    pub(super) fn check(raw: RawTaxonomy) -> (Self, Problems) {
        let mut problems = Problems::new();
        if raw.class.is_empty() || raw.class.len() > usize::from(u8::MAX) {
            problems.add_allowed("class", format!("{} classes", raw.class.len()), "1 to 255");
        }
        let classes: Vec<_> =
            (0..).zip(raw.class).map(|(i, raw)| check_class(i, raw, &mut problems)).collect();
        let classes: Vec<Class> = classes.into_iter().flatten().collect();
        for (index, class) in classes.iter().enumerate() {
            check_parents(index, class, &classes, &mut problems);
            check_pair(index, class, &classes, &mut problems);
        }
        let by_name = index_names(&classes, &mut problems);
        (Self { classes, by_name }, problems)
    }
}

/// The class at `index`, whatever else is wrong with it; none when it has no usable id.
fn check_class(index: usize, raw: RawClass, problems: &mut Problems) -> Option<Class> {
    let key = |field: &str| format!("class[{index}].{field}");
    if usize::from(raw.id) != index + 1 {
        problems.add_allowed(
            key("id"),
            format!("id {}", raw.id),
            format!("{}: ids ascend from 1 without a gap", index + 1),
        );
    }
    if normalise(&raw.name).is_empty() {
        problems.add(key("name"), "is empty");
    }
    let names = [("name", Some(&raw.name)), ("prompt_name", raw.prompt_name.as_ref())];
    let names = names.into_iter().filter_map(|(field, name)| Some((field, name?)));
    for (field, name) in names.chain(raw.aliases.iter().map(|alias| ("aliases", alias))) {
        // Names are lines of tables, of reports and of viewers' files.
        if name.chars().any(char::is_control) {
            problems.add(key(field), format!("{name:?} has a control character"));
        }
    }
    if raw.aliases.len() > MAX_ALIASES {
        problems.add_allowed(
            key("aliases"),
            format!("{} aliases", raw.aliases.len()),
            format!("at most {MAX_ALIASES}"),
        );
    }
    let class = |field: &str, id: u8, problems: &mut Problems| {
        let class = ClassId::new(id);
        if class.is_none() {
            problems.add(key(field), "0 is background and no class");
        }
        class
    };
    let mut parents: Vec<_> = raw.parents.iter().filter_map(|&id| class("parents", id, problems)).collect();
    parents.sort_unstable();
    parents.dedup();
    let pair = match (raw.side, raw.pair) {
        (Some(side), Some(id)) => class("pair", id, problems).map(|other| Pair { side, other }),
        (None, None) => None,
        _ => {
            problems.add(key("pair"), "`side` and `pair` go together");
            None
        }
    };
    let mut aliases = raw.aliases;
    aliases.sort_unstable();
    let prompt_name = raw.prompt_name.unwrap_or_else(|| raw.name.clone());
    Some(Class {
        id: ClassId::new(raw.id)?,
        name: raw.name,
        kind: raw.kind,
        parents,
        pair,
        prompt_name,
        aliases,
    })
}

/// Tumours and cysts lie in organs; organs lie in nothing.
fn check_parents(index: usize, class: &Class, classes: &[Class], problems: &mut Problems) {
    let key = format!("class[{index}].parents");
    match class.kind {
        ClassKind::Organ if !class.parents.is_empty() => problems.add(&key, "an organ has no parents"),
        ClassKind::Tumour | ClassKind::Cyst if class.parents.is_empty() => {
            problems.add(&key, "a tumour or cyst needs the organs it lies in");
        }
        _ => {}
    }
    for parent in &class.parents {
        match classes.get(parent.channel()) {
            Some(found) if found.kind == ClassKind::Organ => {}
            Some(_) => problems.add(&key, format!("class {parent} is not an organ")),
            None => problems.add(&key, format!("there is no class {parent}")),
        }
    }
}

/// The other side must say the same of this one.
fn check_pair(index: usize, class: &Class, classes: &[Class], problems: &mut Problems) {
    let Some(Pair { side, other }) = class.pair else { return };
    let mirrored = classes.get(other.channel()).and_then(|found| found.pair);
    if !mirrored.is_some_and(|back| back.other == class.id && back.side != side) {
        problems
            .add(format!("class[{index}].pair"), format!("class {other} is not paired back to {}", class.id));
    }
}

fn index_names(classes: &[Class], problems: &mut Problems) -> BTreeMap<String, ClassId> {
    let mut by_name: BTreeMap<String, ClassId> = BTreeMap::new();
    for (index, class) in classes.iter().enumerate() {
        let names = std::iter::once(("name", &class.name))
            .chain(class.aliases.iter().map(|alias| ("aliases", alias)));
        for (field, name) in names {
            let key = format!("class[{index}].{field}");
            if name.trim().parse::<u8>().is_ok() {
                problems.add(&key, format!("`{name}` would be read as an id"));
            }
            if let Some(taken) = by_name.insert(normalise(name), class.id) {
                problems.add(&key, format!("`{name}` already names class {taken}"));
            }
        }
    }
    by_name
}
