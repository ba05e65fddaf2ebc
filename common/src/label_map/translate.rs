//! A data set in the words of another taxonomy: what a study with classes of its own can learn from scans that were
//! described for other classes.
//!
//! Classes meet by name ([`Taxonomy::counterpart`]). A structure that the other taxonomy lacks becomes background, or part
//! of the organ that the map folds it into. A class that the data set could show only in part is not annotated: nothing is
//! learnt about it, which is never wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::{Annotated, Exclusion, Fold, LabelMap, RawMask, Target};
use crate::ids::ClassId;
use crate::taxonomy::{Class, Taxonomy};

/// From the classes of one taxonomy to those of another.
#[derive(Debug)]
pub struct Translation<'a> {
    from: &'a Taxonomy,
    to: &'a Taxonomy,
    counterparts: BTreeMap<ClassId, ClassId>,
}

impl<'a> Translation<'a> {
    /// The way from one taxonomy to another.
    pub fn between(from: &'a Taxonomy, to: &'a Taxonomy) -> Self {
        let meets = |class: &Class| Some((class.id, to.counterpart(class)?));
        Self { from, to, counterparts: from.classes().iter().filter_map(meets).collect() }
    }

    /// A label map over the other taxonomy's classes; between equal taxonomies, the same map.
    pub fn label_map(&self, map: &LabelMap) -> LabelMap {
        if self.from == self.to {
            return map.clone();
        }
        let unclear = self.unclear(map);
        let known = |class: ClassId| self.counterpart(class).filter(|found| !unclear.contains(found));
        let stand_ins = self.stand_ins(map);
        let foldable = |class: ClassId| known(class).or_else(|| stand_ins.get(&class).copied());
        let mut translated = LabelMap {
            values: map
                .values
                .iter()
                .map(|(&value, &target)| (value, moved(target, map, &foldable)))
                .collect(),
            folds: map.folds.iter().filter_map(|fold| moved_fold(fold, &foldable)).collect(),
            splits: map.splits.iter().filter_map(|&right| self.moved_split(right, &known)).collect(),
            raw_masks: moved_masks(&map.raw_masks, &known),
            exclusions: map.exclusions.iter().filter_map(|one| moved_exclusion(one, &known)).collect(),
            merge: moved_merge(&map.merge, &known),
            ..map.clone()
        };
        if let Annotated::Always(classes) = &map.annotated {
            let annotated = self.annotated(&translated, &classes.iter().copied().collect());
            let in_order = classes.iter().filter_map(|&class| self.counterpart(class));
            translated.annotated = Annotated::Always(each_once(in_order.filter(|c| annotated.contains(c))));
        }
        translated
    }

    /// What a case annotates over the other taxonomy's classes; `translated` is its label map there.
    ///
    /// A class that stands for several of ours is annotated where all of them are: one kidney is not both.
    pub fn annotated(&self, translated: &LabelMap, annotated: &BTreeSet<ClassId>) -> BTreeSet<ClassId> {
        let possible = translated.producible(self.to);
        let whole = |found: &ClassId| {
            self.counterparts.iter().all(|(own, other)| other != found || annotated.contains(own))
        };
        let found = annotated.iter().filter_map(|&class| self.counterpart(class));
        found.filter(|class| possible.contains(class) && whole(class)).collect()
    }

    fn counterpart(&self, class: ClassId) -> Option<ClassId> {
        self.counterparts.get(&class).copied()
    }

    /// Classes of the other taxonomy that this data set would show in part.
    fn unclear(&self, map: &LabelMap) -> BTreeSet<ClassId> {
        let mut unclear = BTreeSet::new();
        for &right in &map.splits {
            let Some(left) = self.from.left_of(right) else { continue };
            match (self.counterpart(right), self.counterpart(left)) {
                (Some(one), Some(other)) if one == other || self.to.left_of(one) == Some(other) => {}
                // Both sides share a value, and nothing here would tell them apart.
                (right, left) => unclear.extend(right.into_iter().chain(left)),
            }
        }
        for lesion in map.folds.iter().flat_map(|fold| &fold.from) {
            let organs = self.organs_of(*lesion, map);
            if organs.contains(&None) {
                // Where one of them is missing, nothing tells what of the lesion is part of the others.
                unclear.extend(organs.into_iter().flatten());
            }
        }
        let is_masked = |class: ClassId| map.raw_masks.iter().any(|mask| mask.class == class);
        let mut masked: BTreeMap<ClassId, BTreeSet<bool>> = BTreeMap::new();
        for class in map.producible(self.from) {
            if let Some(found) = self.counterpart(class) {
                masked.entry(found).or_default().insert(is_masked(class));
            }
        }
        // A mask of raw values takes the place of what is mapped: it cannot be joined with it.
        unclear.extend(masked.into_iter().filter(|(_, kinds)| kinds.len() > 1).map(|(class, _)| class));
        unclear
    }

    /// The organs that take a lesion in, in the other taxonomy; none for those that it lacks.
    fn organs_of(&self, lesion: ClassId, map: &LabelMap) -> BTreeSet<Option<ClassId>> {
        let folds = map.folds.iter().filter(|fold| fold.from.contains(&lesion));
        folds.map(|fold| self.counterpart(fold.into)).collect()
    }

    /// An id that no class of the other taxonomy has, for each lesion that has none there and that several organs share: by it
    /// their folds find the lesion, and leave nothing of it.
    fn stand_ins(&self, map: &LabelMap) -> BTreeMap<ClassId, ClassId> {
        let is_shared = |lesion: ClassId| {
            let organs = self.organs_of(lesion, map);
            organs.len() > 1 && !organs.contains(&None)
        };
        let lesions: BTreeSet<ClassId> =
            map.folds.iter().flat_map(|fold| fold.from.iter().copied()).collect();
        let wanted =
            lesions.into_iter().filter(|&class| self.counterpart(class).is_none() && is_shared(class));
        let free = (1..=u8::MAX).rev().filter_map(ClassId::new).filter(|id| self.to.class(*id).is_none());
        wanted.zip(free).collect()
    }

    fn moved_split(&self, right: ClassId, known: &impl Fn(ClassId) -> Option<ClassId>) -> Option<ClassId> {
        let (one, other) = (known(right)?, known(self.from.left_of(right)?)?);
        (self.to.left_of(one) == Some(other)).then_some(one)
    }
}

/// A structure without a class of its own counts as the organ that it is folded into, if there is one.
fn moved(target: Target, map: &LabelMap, known: &impl Fn(ClassId) -> Option<ClassId>) -> Target {
    let Target::Class(class) = target else { return Target::Drop };
    let folded =
        || map.folds.iter().fold(class, |at, fold| if fold.from.contains(&at) { fold.into } else { at });
    known(class).or_else(|| known(folded())).map_or(Target::Drop, Target::Class)
}

fn moved_fold(fold: &Fold, known: &impl Fn(ClassId) -> Option<ClassId>) -> Option<Fold> {
    let into = known(fold.into)?;
    let from = each_once(fold.from.iter().filter_map(|&class| known(class)).filter(|&class| class != into));
    (!from.is_empty()).then_some(Fold { from, into })
}

fn moved_exclusion(exclusion: &Exclusion, known: &impl Fn(ClassId) -> Option<ClassId>) -> Option<Exclusion> {
    let organ = known(exclusion.organ)?;
    let without = each_once(exclusion.without.iter().filter_map(|&class| known(class)));
    (!without.is_empty()).then_some(Exclusion { organ, without })
}

fn moved_masks(masks: &[RawMask], known: &impl Fn(ClassId) -> Option<ClassId>) -> Vec<RawMask> {
    let mut joined: BTreeMap<ClassId, BTreeSet<i32>> = BTreeMap::new();
    for mask in masks {
        if let Some(class) = known(mask.class) {
            joined.entry(class).or_default().extend(&mask.values);
        }
    }
    let mask = |(class, values): (ClassId, BTreeSet<i32>)| RawMask { class, values: Vec::from_iter(values) };
    joined.into_iter().map(mask).collect()
}

fn moved_merge(merge: &[(ClassId, i32)], known: &impl Fn(ClassId) -> Option<ClassId>) -> Vec<(ClassId, i32)> {
    let mut moved: Vec<(ClassId, i32)> = Vec::new();
    for &(class, value) in merge {
        if let Some(class) = known(class).filter(|class| moved.iter().all(|(listed, _)| listed != class)) {
            moved.push((class, value));
        }
    }
    moved
}

fn each_once(classes: impl Iterator<Item = ClassId>) -> Vec<ClassId> {
    let mut seen = BTreeSet::new();
    classes.filter(|class| seen.insert(*class)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taxonomy(text: &str) -> Taxonomy {
        Taxonomy::parse("own.toml", text).unwrap()
    }

    /// Classes 1, 2, … with these names and, each after a colon, other names; all are organs.
    fn organs(names: &[&str]) -> Taxonomy {
        let class = |(index, names): (usize, &&str)| {
            let mut names = names.split(':');
            let (name, aliases) = (names.next().unwrap(), names.collect::<Vec<_>>());
            format!(
                "[[class]]\nid = {}\nname = \"{name}\"\nkind = \"organ\"\naliases = {aliases:?}\n",
                index + 1
            )
        };
        taxonomy(&names.iter().enumerate().map(class).collect::<String>())
    }

    fn translated(name: &str, to: &Taxonomy) -> LabelMap {
        Translation::between(&Taxonomy::standard(), to).label_map(&LabelMap::standard(name).unwrap())
    }

    fn values(map: &LabelMap) -> Vec<u8> {
        let id = |target: &Target| match target {
            Target::Drop => 0,
            Target::Class(class) => class.get(),
        };
        map.values.values().map(id).collect()
    }

    fn annotated(map: &LabelMap) -> Vec<u8> {
        let Annotated::Always(classes) = &map.annotated else { panic!("{} annotates per case", map.name) };
        classes.iter().map(|class| class.get()).collect()
    }

    #[test]
    fn between_equal_taxonomies_every_map_stays_as_it_is() {
        for name in LabelMap::standard_names() {
            assert_eq!(translated(name, &Taxonomy::standard()), LabelMap::standard(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn other_numbers_and_fewer_classes_leave_what_a_data_set_says_of_the_rest() {
        let two = taxonomy(
            "[[class]]\nid = 1\nname = \"Pancreas Tumor\"\nkind = \"tumour\"\nparents = [2]\n\
             [[class]]\nid = 2\nname = \"Pancreas\"\nkind = \"organ\"\n",
        );
        let pancreas = translated("msd-pancreas", &two);
        assert_eq!((values(&pancreas), annotated(&pancreas)), (vec![0, 2, 1], vec![2, 1]));
        // What was translated is a map of the other taxonomy, by all its rules.
        assert_eq!(LabelMap::parse("t", &pancreas.to_toml(&two), &two).unwrap(), pancreas);

        let btcv = translated("btcv", &two);
        assert_eq!(annotated(&btcv), [2]);
        assert_eq!(btcv.target(6), Some(Target::Drop), "a liver is known, and is no pancreas");
        assert_eq!(annotated(&translated("msd-spleen", &two)), [0; 0]);
    }

    #[test]
    fn a_lesion_without_a_class_stays_part_of_its_organ() {
        let lits = translated("lits", &organs(&["Spleen", "Liver"]));
        assert_eq!((values(&lits), annotated(&lits)), (vec![0, 2, 2], vec![2]));
        assert!(lits.folds.is_empty() && lits.raw_masks.is_empty());
        // Vessels were never meant to hold their tumours.
        assert_eq!(values(&translated("msd-hepatic-vessel", &organs(&["Hepatic Vessel"]))), [0, 1, 0]);
    }

    #[test]
    fn sides_may_be_joined_and_a_side_alone_is_not_both() {
        let joined = organs(&["Kidneys:right kidney:left kidney"]);
        let kits = translated("kits", &joined);
        assert_eq!((values(&kits), annotated(&kits)), (vec![0, 1, 1, 1], vec![1]));
        assert!(kits.splits.is_empty());
        assert_eq!(annotated(&translated("btcv", &joined)), [1]);
        // These cases annotate the left kidney and not the right one.
        assert_eq!(annotated(&translated("btcv-after-60", &joined)), [0; 0]);
    }

    #[test]
    fn a_side_is_not_annotated_where_nothing_tells_it_from_the_other() {
        let right = organs(&["Right Kidney"]);
        assert_eq!(annotated(&translated("kits", &right)), [0; 0]);
        assert_eq!(annotated(&translated("btcv", &right)), [1]);
        // Two classes that are no pair would not be split.
        assert_eq!(annotated(&translated("kits", &organs(&["Right Kidney", "Left Kidney"]))), [0; 0]);
    }

    #[test]
    fn a_mask_of_raw_values_is_not_joined_with_mapped_voxels() {
        let to = organs(&["Liver:liver tumor"]);
        assert_eq!(annotated(&translated("lits", &to)), [0; 0]);
        // Both lesions are masks: their values are joined.
        let lesions = taxonomy(
            "[[class]]\nid = 1\nname = \"Right Kidney\"\nkind = \"organ\"\nside = \"right\"\npair = 2\n\
             [[class]]\nid = 2\nname = \"Left Kidney\"\nkind = \"organ\"\nside = \"left\"\npair = 1\n\
             [[class]]\nid = 3\nname = \"Lesion\"\nkind = \"tumour\"\nparents = [1, 2]\n\
             aliases = [\"kidney tumor\", \"kidney cyst\"]\n",
        );
        let kits = translated("kits", &lesions);
        assert_eq!(annotated(&kits), [1, 2, 3]);
        assert_eq!(kits.raw_masks, [RawMask { class: ClassId::new(3).unwrap(), values: vec![2, 3] }]);
        assert_eq!(LabelMap::parse("t", &kits.to_toml(&lesions), &lesions).unwrap(), kits);
    }

    #[test]
    fn a_lesion_of_two_organs_stays_part_of_them_without_a_class() {
        let names = [(1, "right kidney"), (2, "left kidney"), (3, "kidney tumor")];
        let names = names.map(|(value, name)| (value, name.to_owned())).into();
        let standard = Taxonomy::standard();
        let map = LabelMap::from_names("case", &names, &standard);
        let moved = |names: &[&str]| Translation::between(&standard, &organs(names)).label_map(&map);

        let both = moved(&["Left Kidney", "Right Kidney"]);
        assert_eq!((values(&both), annotated(&both)), (vec![0, 2, 1, 255], vec![2, 1]));
        let fold = |into| Fold { from: vec![ClassId::new(255).unwrap()], into: ClassId::new(into).unwrap() };
        assert_eq!(both.folds, [fold(2), fold(1)]);
        let joined = moved(&["Kidneys:right kidney:left kidney"]);
        assert_eq!((values(&joined), annotated(&joined)), (vec![0, 1, 1, 1], vec![1]));
        assert_eq!(annotated(&moved(&["Right Kidney"])), [0; 0], "which tumours are in it?");
    }

    #[test]
    fn a_case_annotates_what_it_annotated_and_the_other_taxonomy_has() {
        let (standard, to) = (Taxonomy::standard(), organs(&["Liver", "Aorta"]));
        let translation = Translation::between(&standard, &to);
        let map = translation.label_map(&LabelMap::standard("universal").unwrap());
        let case = [6, 7].map(|id| ClassId::new(id).unwrap()).into();
        assert_eq!(translation.annotated(&map, &case), BTreeSet::from([ClassId::new(1).unwrap()]));
    }
}
