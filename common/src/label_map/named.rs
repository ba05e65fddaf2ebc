//! A label map from the names that come with a label file, as many tools write them: value → name.

use std::collections::BTreeMap;

use super::{Annotated, Exclusion, Fold, LabelMap, Purpose, RawMask, Target};
use crate::ids::ClassId;
use crate::taxonomy::{ClassKind, Taxonomy};

/// Key of each such map. It stands in the label manifest and leaves the site: a case's name, which may be a patient's, is no
/// part of it.
const KEY: &str = "labels.json";

/// The organ whose mask leaves its lesions out, in the reference and so here.
const WITHOUT_LESIONS: &str = "hepatic vessel";

/// Names that the taxonomy knows are classes, and annotated; others lead to no class, background included. Lesions count
/// as part of an organ that has a name here too, but for vessels.
pub(super) fn from_names(name: &str, names: &BTreeMap<i32, String>, taxonomy: &Taxonomy) -> LabelMap {
    let found = |text: &String| taxonomy.find(text).filter(|_| text.trim().parse::<u8>().is_err());
    let target = |text| found(text).map_or(Target::Drop, |class| Target::Class(class.id));
    let mut values: BTreeMap<i32, Target> =
        names.iter().map(|(&value, text)| (value, target(text))).collect();
    values.entry(0).or_insert(Target::Drop);
    let mut annotated: Vec<ClassId> = names.values().filter_map(|text| Some(found(text)?.id)).collect();
    annotated.sort_unstable();
    annotated.dedup();

    let without_lesions = taxonomy.find(WITHOUT_LESIONS).map(|organ| organ.id);
    let (mut folds, mut exclusions): (Vec<Fold>, Vec<Exclusion>) = (Vec::new(), Vec::new());
    let is_lesion = |&id: &ClassId| taxonomy.class(id).is_some_and(|class| class.kind != ClassKind::Organ);
    for lesion in annotated.iter().copied().filter(is_lesion) {
        for &organ in taxonomy.parents(lesion).iter().filter(|organ| annotated.contains(organ)) {
            if Some(organ) == without_lesions {
                exclusions.push(Exclusion { organ, without: vec![lesion] });
                continue;
            }
            match folds.iter_mut().find(|fold| fold.into == organ) {
                Some(fold) => fold.from.push(lesion),
                None => folds.push(Fold { from: vec![lesion], into: organ }),
            }
        }
    }
    // Folding erases a lesion from the map: its own mask is that of its values.
    let folded = annotated.iter().copied().filter(|class| folds.iter().any(|fold| fold.from.contains(class)));
    let mask = |class| {
        let of_class = values.iter().filter(|(_, target)| **target == Target::Class(class));
        RawMask { class, values: of_class.map(|(&value, _)| value).collect() }
    };
    let raw_masks = folded.map(mask).collect();
    LabelMap {
        name: name.to_owned(),
        key: KEY.to_owned(),
        purpose: Purpose::Training,
        values,
        annotated: Annotated::Always(annotated),
        folds,
        splits: Vec::new(),
        raw_masks,
        exclusions,
        crop_ratios: Vec::new(),
        merge: Vec::new(),
        provenance: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_annotated_and_others_lead_to_no_class() {
        let names =
            [(0, "background"), (5, "liver"), (7, "Liver_Tumour"), (52, "aorta"), (9, "sacrum"), (11, "6")];
        let names = names.map(|(value, name)| (value, name.to_owned())).into();
        let map = LabelMap::from_names("case", &names, &Taxonomy::standard());
        let class = |id| Some(Target::Class(ClassId::new(id).unwrap()));
        let targets = [0, 5, 7, 52, 9, 11, 12].map(|value| map.target(value));
        let dropped = Some(Target::Drop);
        assert_eq!(targets, [dropped, class(6), class(27), class(8), dropped, dropped, None]);
        assert_eq!(map.annotated, Annotated::Always([6, 8, 27].map(|id| ClassId::new(id).unwrap()).into()));
    }

    #[test]
    fn lesions_have_the_rules_that_a_file_would_have_to_state() {
        let names = ["liver", "liver_tumor", "kidney_right", "kidney_left", "kidney_cyst", "hepatic_vessel"];
        let names = names.into_iter().chain(["hepatic_vessel_tumor"]).map(str::to_owned);
        let (taxonomy, names) = (Taxonomy::standard(), (1..).zip(names).collect());
        let map = LabelMap::from_names("case", &names, &taxonomy);
        let class = |id| ClassId::new(id).unwrap();
        let fold = |from, into| Fold { from: vec![class(from)], into: class(into) };
        assert_eq!(map.folds, [fold(27, 6), fold(32, 2), fold(32, 3)]);
        assert_eq!(map.exclusions, [Exclusion { organ: class(15), without: vec![class(29)] }]);
        let mask = |id, value| RawMask { class: class(id), values: vec![value] };
        assert_eq!(map.raw_masks, [mask(27, 2), mask(32, 5)]);
        assert_eq!(LabelMap::parse("map.toml", &map.to_toml(&taxonomy), &taxonomy).unwrap(), map);
    }
}
