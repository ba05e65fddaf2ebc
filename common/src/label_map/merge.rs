//! The way back: which value each class gets in one label file, with overlaps settled by order.
//!
//! A label map says how values become classes; here it is turned round (specification §12.3). Where turning round does not give
//! the reference's table, the data set's file says the table itself (`merge`). Painting a volume is the site agent's work.

use std::collections::BTreeMap;

use super::{LabelMap, Target};
use crate::ids::ClassId;
use crate::taxonomy::{ClassKind, Taxonomy};

/// Classes and their values, in the order in which they are painted: later ones cover earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeTable(Vec<(ClassId, u8)>);

/// A label map whose values do not fit into a label file of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class} has value {value} in `{map}`: merged label files hold values from 1 to 255")]
pub struct MergeError {
    /// The name of the label map.
    pub map: String,
    /// The class, by name.
    pub class: String,
    /// Its value.
    pub value: i32,
}

impl MergeTable {
    /// Each class of the taxonomy by its own id; tumours and cysts cover the organs around them.
    pub fn universal(taxonomy: &Taxonomy) -> Self {
        Self(painting_order(taxonomy).map(|class| (class, class.get())).collect())
    }

    /// The data set's own values. A class that two values lead to gets the smaller, and the left one of two organs that
    /// share a value gets that of the right one.
    ///
    /// # Errors
    /// [`MergeError`] for a value that does not fit into a byte, or is background.
    pub fn of(map: &LabelMap, taxonomy: &Taxonomy) -> Result<Self, MergeError> {
        let pairs = if map.merge.is_empty() { turned_round(map, taxonomy) } else { map.merge.clone() };
        let fits = |(class, value): (ClassId, i32)| {
            let byte = u8::try_from(value).ok().filter(|&byte| byte != 0);
            let refused = || MergeError { map: map.name.clone(), class: taxonomy.name(class), value };
            byte.map(|byte| (class, byte)).ok_or_else(refused)
        };
        pairs.into_iter().map(fits).collect::<Result<_, _>>().map(Self)
    }

    /// The same, with a value of its own for each left organ that shares that of the right one: the first ones above all
    /// that are in use, in the order of the map's splits.
    ///
    /// The reference's second tables are these, but for KiTS, where it gives the left kidney the cyst's value.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn with_sides(map: &LabelMap, taxonomy: &Taxonomy) -> Result<Self, MergeError> {
        let Self(mut pairs) = Self::of(map, taxonomy)?;
        let highest = pairs.iter().map(|(_, value)| i32::from(*value)).max().unwrap_or(0);
        let lefts = map.splits.iter().filter_map(|&right| taxonomy.left_of(right));
        for (left, value) in lefts.zip(highest + 1..) {
            let refused = || MergeError { map: map.name.clone(), class: taxonomy.name(left), value };
            let own = u8::try_from(value).map_err(|_| refused())?;
            pairs.iter_mut().filter(|(class, _)| *class == left).for_each(|(_, value)| *value = own);
        }
        Ok(Self(pairs))
    }

    /// The table for another taxonomy's classes of the same names, in the same order; those that it lacks are left out. A class that
    /// stands for several gets the smallest of their values.
    pub fn translated(&self, from: &Taxonomy, to: &Taxonomy) -> Self {
        let mut pairs: Vec<(ClassId, u8)> = Vec::new();
        for &(class, value) in &self.0 {
            let Some(found) = from.class(class).and_then(|class| to.counterpart(class)) else { continue };
            match pairs.iter_mut().find(|(known, _)| *known == found) {
                Some((_, smallest)) => *smallest = value.min(*smallest),
                None => pairs.push((found, value)),
            }
        }
        Self(pairs)
    }

    /// Classes and values in painting order.
    pub fn pairs(&self) -> &[(ClassId, u8)] {
        &self.0
    }

    /// The classes behind each value, for tables of names and colours.
    pub fn classes_by_value(&self) -> BTreeMap<u8, Vec<ClassId>> {
        let mut by_value: BTreeMap<u8, Vec<ClassId>> = BTreeMap::new();
        for &(class, value) in &self.0 {
            by_value.entry(value).or_default().push(class);
        }
        by_value
    }
}

/// Organs first, then what may lie in them; each kind in order of id.
pub fn painting_order(taxonomy: &Taxonomy) -> impl Iterator<Item = ClassId> + '_ {
    let of = |organs: bool| {
        let chosen =
            taxonomy.classes().iter().filter(move |class| (class.kind == ClassKind::Organ) == organs);
        chosen.map(|class| class.id)
    };
    of(true).chain(of(false))
}

fn turned_round(map: &LabelMap, taxonomy: &Taxonomy) -> Vec<(ClassId, i32)> {
    let mut values: BTreeMap<ClassId, i32> = BTreeMap::new();
    for (&value, target) in &map.values {
        if let Target::Class(class) = *target {
            // Ascending: the smallest value stays.
            values.entry(class).or_insert(value);
        }
    }
    for &right in &map.splits {
        let shared = values.get(&right).copied();
        if let (Some(left), Some(value)) = (taxonomy.left_of(right), shared) {
            values.entry(left).or_insert(value);
        }
    }
    painting_order(taxonomy).filter_map(|class| Some((class, *values.get(&class)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing::shared_file;

    fn pairs(table: &MergeTable) -> Vec<(u8, u8)> {
        table.pairs().iter().map(|(class, value)| (class.get(), *value)).collect()
    }

    fn standard(name: &str) -> (LabelMap, Taxonomy) {
        (LabelMap::standard(name).unwrap(), Taxonomy::standard())
    }

    /// The reference's tables of one version by the key of the data set.
    fn published(version: &str) -> Option<BTreeMap<String, Vec<(u8, u8)>>> {
        let file: Value = serde_json::from_slice(&shared_file("golden/k_postprocess.json")?).unwrap();
        Some(serde_json::from_value(file["merge"][version].clone()).unwrap())
    }

    #[test]
    fn every_published_merge_table_is_that_of_its_label_map() {
        let Some(tables) = published("v1") else { return };
        assert_eq!(tables.len(), 18);
        for (key, expected) in tables {
            let (map, taxonomy) = standard(&key);
            assert_eq!(pairs(&MergeTable::of(&map, &taxonomy).unwrap()), expected, "{key}");
        }
    }

    #[test]
    fn every_published_merge_table_with_sides_is_ours_but_for_the_collision_in_kits() {
        let Some(tables) = published("v2") else { return };
        for (key, mut expected) in tables {
            let (map, taxonomy) = standard(&key);
            if key == "05" {
                // Published: the left kidney and the cyst share value 3. Ours: the next free one.
                assert_eq!(expected[1], (3, 3));
                expected[1] = (3, 4);
            }
            assert_eq!(pairs(&MergeTable::with_sides(&map, &taxonomy).unwrap()), expected, "{key}");
        }
    }

    #[test]
    fn a_lesion_is_painted_after_its_organ_whatever_their_values() {
        let (map, taxonomy) = standard("kits");
        let table = MergeTable::of(&map, &taxonomy).unwrap();
        assert_eq!(pairs(&table), [(2, 1), (3, 1), (26, 2), (32, 3)]);
        let both_kidneys = [2, 3].map(|id| ClassId::new(id).unwrap());
        assert_eq!(table.classes_by_value()[&1], both_kidneys);
    }

    #[test]
    fn the_universal_table_holds_every_class_once_by_its_id() {
        let table = MergeTable::universal(&Taxonomy::standard());
        assert_eq!(pairs(&table), (1..=32).map(|id| (id, id)).collect::<Vec<_>>());
    }

    #[test]
    fn of_several_values_of_a_class_the_smallest_is_written() {
        let (map, taxonomy) = standard("private-pancreas");
        assert_eq!(pairs(&MergeTable::of(&map, &taxonomy).unwrap()), [(11, 1), (28, 3)]);
    }

    #[test]
    fn another_taxonomy_gets_the_values_of_the_classes_that_it_names() {
        let (map, standard) = standard("kits");
        let own = "[[class]]\nid = 1\nname = \"Kidney Tumor\"\nkind = \"tumour\"\nparents = [2]\n\n\
                   [[class]]\nid = 2\nname = \"Kidneys\"\nkind = \"organ\"\naliases = [\"right kidney\", \"left kidney\"]\n";
        let own = Taxonomy::parse("own.toml", own).unwrap();
        let translated = |table: MergeTable, to: &Taxonomy| pairs(&table.translated(&standard, to));
        let sides = MergeTable::with_sides(&map, &standard).unwrap();
        assert_eq!(translated(sides.clone(), &own), [(2, 1), (1, 2)]);
        assert_eq!(translated(sides.clone(), &standard), pairs(&sides));
    }

    #[test]
    fn a_value_that_no_byte_holds_is_refused_by_name() {
        let (mut map, taxonomy) = standard("chaos");
        map.values = BTreeMap::from([(300, Target::Class(ClassId::new(6).unwrap()))]);
        let refused = MergeTable::of(&map, &taxonomy).unwrap_err();
        assert_eq!(refused.value, 300);
        assert!(refused.to_string().contains("Liver"), "{refused}");
    }
}
