use nalgebra::{Matrix4, Vector4};
use safetensors::SafeTensors;
use serde::Deserialize;

use super::*;
use crate::data::geometry::Affine;
use crate::data::volume::Grid;
use crate::golden::Golden;

/// What the JSON of golden (k) says of a case.
#[derive(Deserialize)]
struct Facts {
    organ_list: Vec<u8>,
    /// Voxels of each class that remain.
    voxels_after: BTreeMap<u8, usize>,
}

const CASES: [&str; 9] =
    ["all", "lits", "kits", "word", "pancreas", "btcv", "lungs_missing", "lungs_swapped", "only_one_lung"];

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

fn classes(ids: &[u8]) -> Vec<ClassId> {
    ids.iter().map(|&id| class(id)).collect()
}

/// A grid of the reference's spacing.
fn grid(shape: [usize; 3]) -> Grid {
    Grid { shape, affine: Affine::new(Matrix4::from_diagonal(&Vector4::new(1.5, 1.5, 1.5, 1.0))).unwrap() }
}

/// Masks along S of a volume of one column.
fn column(length: usize, masks: &[(u8, &[usize])]) -> ClassMasks {
    let mut all = ClassMasks::empty(grid([1, 1, length]), 32);
    for (id, voxels) in masks {
        all.insert(class(*id).channel(), 0, (0..length).map(|z| voxels.contains(&z)));
    }
    all
}

fn cleaned(masks: &ClassMasks, list: &[u8]) -> ClassMasks {
    postprocess(masks, &classes(list), &Rules::of(&Taxonomy::standard()))
}

fn voxels(masks: &ClassMasks, id: u8) -> Vec<usize> {
    let mask = masks.mask(class(id));
    (0..mask.len()).filter(|&offset| mask[offset]).collect()
}

#[test]
fn cleaned_masks_equal_the_reference_in_every_case() {
    let Some(golden) = Golden::open() else { return };
    let bytes = golden.bytes("k_postprocess.safetensors");
    let facts = golden.facts("k_postprocess.json");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = file.names().into_iter().filter(|name| name.ends_with(".post")).count();
    assert_eq!(stored, CASES.len(), "every case of the file is compared");
    for case in CASES {
        let facts: Facts = serde_json::from_value(facts[case].clone()).unwrap();
        let stacked = file.tensor(&format!("{case}.pred")).unwrap();
        let shape: [usize; 3] = stacked.shape()[2..].try_into().unwrap();
        let voxels = shape.iter().product();
        let mut raw = ClassMasks::empty(grid(shape), 32);
        for (channel, mask) in stacked.data().chunks_exact(voxels).enumerate() {
            raw.insert(channel, 0, mask.iter().map(|&voxel| voxel != 0));
        }
        let ours = cleaned(&raw, &facts.organ_list);
        let expected = file.tensor(&format!("{case}.post")).unwrap();
        for (channel, expected) in expected.data().chunks_exact(voxels).enumerate() {
            let id = class(channel as u8 + 1);
            let mask = ours.mask(id);
            assert!(
                mask.iter().map(|&inside| u8::from(inside)).eq(expected.iter().copied()),
                "{case}: class {id}"
            );
            let count = mask.iter().filter(|&&inside| inside).count();
            let told = facts.voxels_after.get(&id.get()).copied();
            assert!(told.is_none_or(|told| told == count), "{case}: class {id}");
        }
    }
}

#[test]
fn every_class_of_the_standard_taxonomy_has_exactly_one_rule() {
    for class in Taxonomy::standard().classes() {
        let rows = TABLE.iter().filter(|(ids, _)| ids.contains(&class.id.get())).count();
        assert_eq!(rows, 1, "{}", class.name);
    }
}

#[test]
fn an_empty_pancreas_leaves_the_veins_as_they_are() {
    let masks = column(6, &[(10, &[0, 1, 4])]);
    assert_eq!(voxels(&cleaned(&masks, &[10, 11]), 10), [0, 1, 4]);
}

#[test]
fn the_veins_end_with_the_pancreas_only_when_they_were_visited_before_it() {
    let masks = column(6, &[(10, &[0, 1, 4]), (11, &[1, 2])]);
    assert_eq!(voxels(&cleaned(&masks, &[10, 11]), 10), [1, 4]);
    assert_eq!(voxels(&cleaned(&masks, &[11, 10]), 10), [0, 1, 4]);
    assert!(voxels(&cleaned(&masks, &[11]), 10).is_empty());
}

#[test]
fn a_left_lung_without_its_right_one_in_the_list_stays_empty() {
    let masks = column(6, &[(16, &[0, 1]), (17, &[4, 5])]);
    let both = cleaned(&masks, &[17]);
    assert!(voxels(&both, 16).is_empty() && voxels(&both, 17).is_empty());
}

#[test]
fn lungs_that_the_network_swapped_are_put_on_their_sides() {
    let mut masks = ClassMasks::empty(grid([6, 1, 1]), 32);
    // Index 0 is the patient's left; the network says otherwise.
    masks.insert(15, 0, [true, true, false, false, false, false].into_iter());
    masks.insert(16, 0, [false, false, false, true, true, true].into_iter());
    let both = cleaned(&masks, &[16, 17]);
    assert_eq!((voxels(&both, 17), voxels(&both, 16)), (vec![0, 1], vec![3, 4, 5]));
}

#[test]
fn the_margin_around_an_organ_is_measured_in_millimetres() {
    let reach = |spacing: f64| {
        let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(spacing, spacing, spacing, 1.0)));
        let mut masks = ClassMasks::empty(Grid { shape: [25; 3], affine: affine.unwrap() }, 32);
        let organ = |offset: usize| {
            [offset / 625, offset / 25 % 25, offset % 25].iter().all(|index| (10..=14).contains(index))
        };
        masks.insert(5, 0, (0..25 * 625).map(organ));
        masks.insert(26, 0, (0..25 * 625).map(|offset| offset / 25 == 12 * 25 + 12));
        let kept = voxels(&cleaned(&masks, &[6, 27]), 27);
        kept.iter().map(|offset| offset % 25).filter(|&z| z > 14).count()
    };
    assert_eq!([0.75, 1.5, 3.0, 20.0].map(reach), [4, 2, 1, 1]);
}

#[test]
fn a_scan_thinner_than_the_margin_keeps_the_tumours_of_its_organs() {
    for thickness in 1..=5 {
        let mut masks = ClassMasks::empty(grid([9, 9, thickness]), 32);
        let middle = 40 * thickness;
        masks.insert(5, 0, std::iter::repeat_n(true, 81 * thickness));
        masks.insert(26, middle, std::iter::once(true));
        assert_eq!(voxels(&cleaned(&masks, &[6, 27]), 27), [middle], "{thickness} slices");
    }
    // Without an organ there is still nothing for a tumour to lie in.
    let mut masks = ClassMasks::empty(grid([1; 3]), 32);
    masks.insert(26, 0, std::iter::once(true));
    assert!(voxels(&cleaned(&masks, &[6, 27]), 27).is_empty());
}

#[test]
fn an_empty_volume_stays_empty() {
    for shape in [[0, 4, 4], [4, 0, 4], [4, 4, 0]] {
        let masks = ClassMasks::empty(grid(shape), 32);
        let rules = Rules::of(&Taxonomy::standard());
        assert_eq!(postprocess(&masks, rules.classes(), &rules), masks, "{shape:?}");
    }
}

#[test]
fn a_class_that_the_standard_taxonomy_does_not_know_is_left_as_it_is() {
    let text = "[[class]]\nid = 1\nname = \"Thymus\"\nkind = \"organ\"\n\n[[class]]\nid = 2\nname = \"Spleen\"\nkind = \"organ\"\n";
    let rules = Rules::of(&Taxonomy::parse("own.toml", text).unwrap());
    assert_eq!([class(1), class(2)].map(|class| rules.rule(class)), [Rule::AsItIs, Rule::Largest]);
    let masks = column(6, &[(1, &[0, 3, 4]), (2, &[0, 3, 4])]);
    let both = postprocess(&masks, rules.classes(), &rules);
    assert_eq!((voxels(&both, 1), voxels(&both, 2)), (vec![0, 3, 4], vec![3, 4]));
}

#[test]
fn a_rule_over_classes_that_the_taxonomy_does_not_have_empties_nothing() {
    let text = "[[class]]\nid = 1\nname = \"Kidney\"\nkind = \"organ\"\n\n[[class]]\nid = 2\nname = \"Kidney Tumor\"\nkind = \"tumour\"\nparents = [1]\n\n";
    for lung in ["Left Lung", "Right Lung"] {
        let text = format!("{text}[[class]]\nid = 3\nname = \"{lung}\"\nkind = \"organ\"\n");
        let rules = Rules::of(&Taxonomy::parse("own.toml", &text).unwrap());
        let masks = column(6, &[(1, &[0, 3]), (2, &[4]), (3, &[0, 2, 3])]);
        let all = postprocess(&masks, rules.classes(), &rules);
        assert_eq!((voxels(&all, 2), voxels(&all, 3)), (vec![4], vec![0, 2, 3]), "{lung}");
    }
}
