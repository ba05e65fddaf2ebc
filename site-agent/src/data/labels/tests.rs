mod coverage;

use std::collections::BTreeMap;

use nalgebra::Matrix4;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::*;
use crate::data::geometry::Affine;
use crate::golden::Golden;

const FILE: &str = "labels.nii.gz";

fn grid(shape: [usize; 3]) -> Grid {
    Grid { shape, affine: Affine::new(Matrix4::identity()).unwrap() }
}

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

fn transfer(values: &[i32], map: &LabelMap, annotated: &[u8]) -> Result<LabelledCase, LabelError> {
    let raw = Volume::new(grid([values.len(), 1, 1]), values.to_vec());
    let annotated = annotated.iter().map(|&id| class(id)).collect();
    LabelledCase::transfer(raw, map, &annotated, &Taxonomy::standard(), FILE)
}

/// Golden (j): the case's name there, and our label map.
const GOLDEN: [(&str, &str); 21] = [
    ("btcv", "btcv"),
    // Stored masks never use the shorter list of late BTCV cases; only the loss does.
    ("btcv_ge60_label0061", "btcv"),
    ("pancreasct", "pancreas-ct"),
    ("chaos_extra_value", "chaos"),
    ("lits", "lits"),
    ("kits_two_kidneys", "kits"),
    ("kits_one_kidney_low_x", "kits"),
    ("kits_tumour_bridges", "kits"),
    ("word", "word"),
    ("abdomen1k_three_components", "abdomenct-1k"),
    ("abdomen1k_four_components", "abdomenct-1k"),
    ("amos", "amos"),
    ("msd_liver", "msd-liver"),
    ("msd_lung", "msd-lung"),
    ("msd_pancreas", "msd-pancreas"),
    ("msd_hepaticvessel", "msd-hepatic-vessel"),
    ("msd_spleen", "msd-spleen"),
    ("msd_colon", "msd-colon"),
    ("ctorg", "ct-org"),
    ("abd12", "abdomenct-12organ"),
    ("felix14_patched", "private-pancreas"),
];

/// What the JSON of golden (j) says of a case.
#[derive(Deserialize)]
struct Facts {
    /// The classes that the reference trains on, ascending.
    labelled: Vec<u8>,
    /// Voxels in the mask of each of them.
    voxels: BTreeMap<usize, usize>,
    /// Voxels with each value of the label file.
    raw_counts: BTreeMap<i32, usize>,
}

fn counts(values: impl Iterator<Item = i32>) -> BTreeMap<i32, usize> {
    values.fold(BTreeMap::new(), |mut counts, value| {
        *counts.entry(value).or_default() += 1;
        counts
    })
}

/// The u8 tensor `name` and its last three axes.
fn tensor<'a>(file: &SafeTensors<'a>, name: &str) -> (&'a [u8], [usize; 3]) {
    let view = file.tensor(name).unwrap();
    let shape = view.shape();
    (view.data(), shape[shape.len() - 3..].try_into().unwrap())
}

#[test]
fn label_transfer_equals_the_reference_in_all_21_cases() {
    let Some(golden) = Golden::open() else { return };
    let bytes = golden.bytes("j_label_transfer.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let facts: BTreeMap<String, Facts> = golden.json("j_label_transfer.json");
    assert_eq!(facts.len(), GOLDEN.len());
    assert_eq!(file.len(), 3 * GOLDEN.len(), "every case of the file is compared");
    let taxonomy = Taxonomy::standard();
    for (case, map) in GOLDEN {
        let mut map = LabelMap::standard(map).unwrap();
        // The reference drops values beyond its list; we ask for `drop` in so many words.
        for value in 0..=6 {
            map.values.entry(value).or_insert(Target::Drop);
        }
        let (raw, shape) = tensor(&file, &format!("{case}.raw"));
        let raw = Volume::new(grid(shape), raw.iter().map(|&v| i32::from(v)).collect());
        assert_eq!(counts(raw.voxels().iter().copied()), facts[case].raw_counts, "{case}: raw values");
        let annotated = map.annotated_in_case(None, &taxonomy).unwrap();
        let labels = LabelledCase::transfer(raw, &map, &annotated, &taxonomy, FILE).unwrap();

        assert_eq!(labels.mapped().voxels(), tensor(&file, &format!("{case}.universal")).0, "{case}");
        assert!(labels.annotated().map(ClassId::get).eq(facts[case].labelled.iter().copied()), "{case}");
        let (masks, _) = tensor(&file, &format!("{case}.masks"));
        for (channel, expected) in masks.chunks(labels.grid().len()).enumerate() {
            let mask = labels.mask(ClassId::from_channel(channel).unwrap());
            let voxels = mask.as_ref().map(|mask| mask.iter().filter(|&&inside| inside).count());
            assert_eq!(
                voxels.as_ref(),
                facts[case].voxels.get(&(channel + 1)),
                "{case}: class {}",
                channel + 1
            );
            let stored = mask.map_or(vec![255; expected.len()], |m| m.into_iter().map(u8::from).collect());
            assert!(stored == expected, "{case}: class {}", channel + 1);
        }
    }
}

#[test]
fn a_scan_in_the_place_of_its_labels_is_told_in_a_line() {
    let hounsfield: Vec<i32> = (-1024..1024).collect();
    let told = transfer(&hounsfield, &LabelMap::standard("lits").unwrap(), &[6]).unwrap_err().to_string();
    assert!(told.starts_with("labels.nii.gz: value -1024 (1 voxels), value -1023 (1 voxels), "), "{told}");
    assert!(
        told.contains("value -1017 (1 voxels) and 2037 others (is this a scan, and not its labels?): "),
        "{told}"
    );
}

#[test]
fn an_unlisted_value_is_an_error_that_names_value_count_and_file() {
    let map = LabelMap::standard("chaos").unwrap();
    let error = transfer(&[0, 1, 7, 7, -3], &map, &[6]).unwrap_err();
    let unlisted = BTreeMap::from([(-3, 1), (7, 2)]);
    assert_eq!(error, LabelError::Unlisted { file: FILE.to_owned(), unlisted });
    let text = error.to_string();
    assert!(text.contains("value 7 (2 voxels)") && text.contains(FILE), "{text}");
}

#[test]
fn a_class_that_is_not_annotated_has_no_mask_at_all() {
    let map = LabelMap::standard("universal").unwrap();
    let labels = transfer(&[6, 1, 0], &map, &[1]).unwrap();
    assert_eq!(labels.mask(class(1)), Some(vec![false, true, false]));
    assert_eq!(labels.mask(class(6)), None);
    assert!(!labels.contains(class(6), 0));
}

#[test]
fn a_lesion_belongs_to_its_organ_and_to_itself() {
    let map = LabelMap::standard("lits").unwrap();
    let labels = transfer(&[0, 1, 2], &map, &[6, 27]).unwrap();
    assert_eq!(labels.mask(class(6)), Some(vec![false, true, true]));
    assert_eq!(labels.mask(class(27)), Some(vec![false, false, true]));
}

/// The map of a label file that names values 1, 2, 3, … so.
fn named(names: &[&str]) -> LabelMap {
    let names = (1..).zip(names.iter().map(|&name| name.to_owned())).collect();
    LabelMap::from_names("case", &names, &Taxonomy::standard())
}

#[test]
fn a_named_lesion_belongs_to_its_organ_and_to_itself() {
    let liver = transfer(&[0, 1, 2], &named(&["liver", "liver_tumor"]), &[6, 27]).unwrap();
    assert_eq!(liver.mask(class(6)), Some(vec![false, true, true]));
    assert_eq!(liver.mask(class(27)), Some(vec![false, false, true]));
    let vessels = named(&["hepatic_vessel", "hepatic_vessel_tumor"]);
    let vessels = transfer(&[0, 1, 2], &vessels, &[15, 29]).unwrap();
    assert_eq!(vessels.mask(class(15)), Some(vec![false, true, false]));
    assert_eq!(vessels.mask(class(29)), Some(vec![false, false, true]));
}

#[test]
fn a_lesion_of_two_organs_belongs_piece_by_piece_to_the_nearer_one() {
    let kidneys = named(&["kidney_right", "kidney_left", "kidney_tumor", "kidney_cyst"]);
    // A cyst beyond a tumour at the left kidney, and a tumour beside the right one.
    let labels = transfer(&[2, 2, 3, 3, 4, 0, 0, 1, 1, 0, 3], &kidneys, &[2, 3, 26, 32]).unwrap();
    let mask = |id: u8, voxels: &[usize]| {
        let expected: Vec<bool> = (0..11).map(|voxel| voxels.contains(&voxel)).collect();
        assert_eq!(labels.mask(class(id)), Some(expected), "class {id}");
    };
    mask(3, &[0, 1, 2, 3, 4]);
    mask(2, &[7, 8, 10]);
    mask(26, &[2, 3, 10]);
    mask(32, &[4]);

    let alone = transfer(&[0, 3, 0, 2], &kidneys, &[2, 3]).unwrap();
    assert_eq!(alone.mask(class(3)), Some(vec![false, true, false, true]), "a single left kidney");
    let without = transfer(&[0, 3], &kidneys, &[2, 3]).unwrap();
    assert_eq!(without.mask(class(2)), Some(vec![false, true]), "no kidney is left of it");
}

#[test]
fn a_class_is_on_both_sides_where_two_large_pieces_are() {
    let chaos = LabelMap::standard("chaos").unwrap();
    let is = |values: &[i32]| transfer(values, &chaos, &[6]).unwrap().is_on_both_sides(class(6));
    assert!(is(&[1, 1, 0, 0, 0, 0, 0, 1]));
    assert!(!is(&[0, 0, 0, 0, 0, 1, 0, 1]), "both on one side");
    assert!(!is(&[1, 0, 0, 0, 1, 1, 1, 1, 1]), "a fragment");
    assert!(!is(&[1, 1, 1, 1]) && !is(&[0, 0]), "one piece, or none");
    assert!(!transfer(&[1, 0, 1], &chaos, &[]).unwrap().is_on_both_sides(class(6)), "nobody looked for it");
}
