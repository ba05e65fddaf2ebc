//! The classes that all parties of a study share: names, kinds, parents, left/right pairs and prompts.
//!
//! Class `k` lives in channel `k - 1` of the model, so ids are 1 to n without a gap. The digest is taken over a canonical
//! form, so that comments, order of aliases and formatting of the file do not change it. See [`raw`](self) for the file's
//! form and [`crate::label_map`] for how a data set's own values lead here.

mod raw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Diagnostics, Document, did_you_mean};
use crate::ids::{ClassId, Digest, TaxonomyDigest};
use raw::{RawClass, RawTaxonomy};

/// The taxonomy of the universal model, `configs/taxonomy.toml`.
const STANDARD: &str = include_str!("../../../configs/taxonomy.toml");

/// What a class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassKind {
    /// A normal structure.
    Organ,
    /// A lesion inside or beside its parent organ.
    Tumour,
    /// A fluid-filled lesion inside its parent organ.
    Cyst,
}

/// The patient's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The patient's left.
    Left,
    /// The patient's right.
    Right,
}

/// One of two organs that mirror each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Which of the two this class is.
    pub side: Side,
    /// The class on the other side.
    pub other: ClassId,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its id; channel `id - 1`.
    pub id: ClassId,
    /// Its name, as shown.
    pub name: String,
    /// Organ, tumour or cyst.
    pub kind: ClassKind,
    /// The organs it lies in; empty for an organ.
    pub parents: Vec<ClassId>,
    /// Its mirror image, if it has one.
    pub pair: Option<Pair>,
    /// What stands in the text prompt, including the two misspellings of the published embedding.
    pub prompt_name: String,
    /// Other names, sorted.
    pub aliases: Vec<String>,
}

/// All classes of a study, ids 1 to n without a gap; names and aliases are unambiguous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawTaxonomy", into = "RawTaxonomy")]
pub struct Taxonomy {
    classes: Vec<Class>,
    by_name: BTreeMap<String, ClassId>,
}

impl Taxonomy {
    /// The 32 classes of the universal model.
    pub fn standard() -> Self {
        // Invariant: the compiled-in file is parsed by a test.
        Self::parse("configs/taxonomy.toml", STANDARD).expect("the compiled-in taxonomy is valid")
    }

    /// Parses the text of a taxonomy file; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All mistakes, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, Diagnostics> {
        let document = Document::parse(file, text)?;
        let (taxonomy, problems) = Self::check(document.read()?);
        document.locate(problems)?;
        Ok(taxonomy)
    }

    /// All classes, ascending by id.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Number of classes, which is the number of channels.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Never: a taxonomy has at least one class.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The class with this id.
    pub fn class(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(id.channel())
    }

    /// The name of `id`, or `class <id>` for one that the taxonomy does not have.
    pub fn name(&self, id: ClassId) -> String {
        self.class(id).map_or_else(|| format!("class {id}"), |class| class.name.clone())
    }

    /// The class with this id, name or alias. Case, `_`, `-` and the spelling of `tumour` do not matter.
    pub fn find(&self, text: &str) -> Option<&Class> {
        let by_id = || text.trim().parse::<u8>().ok().and_then(ClassId::new);
        self.by_name.get(&normalise(text)).copied().or_else(by_id).and_then(|id| self.class(id))
    }

    /// The class that means the same structure as one of another taxonomy: by its name, or by one of its other names.
    pub fn counterpart(&self, other: &Class) -> Option<ClassId> {
        let mut names = std::iter::once(&other.name).chain(&other.aliases);
        names.find_map(|name| self.by_name.get(&normalise(name)).copied())
    }

    /// The known name nearest to a misspelt one.
    pub fn suggest(&self, text: &str) -> Option<&str> {
        did_you_mean(&normalise(text), self.by_name.keys().map(String::as_str))
    }

    /// The organs that `id` lies in: the other bits of its few-hot embedding.
    pub fn parents(&self, id: ClassId) -> &[ClassId] {
        self.class(id).map_or(&[], |class| &class.parents)
    }

    /// The left class of the pair whose right class is `right`.
    pub fn left_of(&self, right: ClassId) -> Option<ClassId> {
        let pair = self.class(right)?.pair?;
        (pair.side == Side::Right).then_some(pair.other)
    }

    /// The taxonomy as the text of a file; parsing it gives the same taxonomy.
    pub fn to_toml(&self) -> String {
        // Invariant: strings, small integers and lists of them always have a TOML form.
        toml::to_string(self).expect("a taxonomy has a TOML form")
    }

    /// Names the taxonomy. Hashes a canonical form, not the file.
    pub fn digest(&self) -> TaxonomyDigest {
        let mut bytes = b"consilium taxonomy 1\0".to_vec();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        for class in &self.classes {
            let kind = match class.kind {
                ClassKind::Organ => 0,
                ClassKind::Tumour => 1,
                ClassKind::Cyst => 2,
            };
            let (side, other) = match class.pair {
                None => (0, 0),
                Some(Pair { side: Side::Left, other }) => (1, other.get()),
                Some(Pair { side: Side::Right, other }) => (2, other.get()),
            };
            // At most 255 parents and aliases: both are unique and `check` limits them.
            bytes.extend([class.id.get(), kind, side, other, class.parents.len() as u8]);
            bytes.extend(class.parents.iter().map(|parent| parent.get()));
            text(&mut bytes, &class.name);
            text(&mut bytes, &class.prompt_name);
            bytes.push(class.aliases.len() as u8);
            class.aliases.iter().for_each(|alias| text(&mut bytes, alias));
        }
        TaxonomyDigest(Digest::of(&bytes))
    }
}

/// The form in which names are compared.
pub(crate) fn normalise(text: &str) -> String {
    let spaced = text.trim().to_lowercase().replace(['_', '-'], " ");
    let words: Vec<_> =
        spaced.split_whitespace().map(|word| if word == "tumour" { "tumor" } else { word }).collect();
    words.join(" ")
}

impl TryFrom<RawTaxonomy> for Taxonomy {
    type Error = Diagnostics;

    fn try_from(raw: RawTaxonomy) -> Result<Self, Self::Error> {
        let (taxonomy, problems) = Self::check(raw);
        problems.into_result("taxonomy")?;
        Ok(taxonomy)
    }
}

impl From<Taxonomy> for RawTaxonomy {
    fn from(taxonomy: Taxonomy) -> Self {
        Self { class: taxonomy.classes.into_iter().map(RawClass::from).collect() }
    }
}
