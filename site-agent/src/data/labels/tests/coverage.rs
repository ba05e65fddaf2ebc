//! Every data set's own numbers, from a synthetic case to masks and annotated marks: no file from outside is needed.
//!
//! The expectation is specification §3.2, written out here a second time and by hand: what `configs/datasets` says is
//! what is tested.

use std::fs;
use std::path::Path;

use common::label_map::Annotated;

use super::*;
use crate::data::nifti::{Image, PlacedBy};
use crate::data::preprocess::{Preprocessing, preprocess_image};

/// What the specification says of one data set.
struct Row {
    /// Name of its file.
    name: &'static str,
    /// Class of raw value 1, 2, 3, …; 0 is dropped.
    classes: &'static [u8],
    /// Raw values that count for a class beside those that lead to it.
    folded: &'static [(u8, &'static [i32])],
    /// Right classes whose raw value holds both sides.
    split: &'static [u8],
}

impl Row {
    const fn plain(name: &'static str, classes: &'static [u8]) -> Self {
        Self { name, classes, folded: &[], split: &[] }
    }

    const fn folded(
        name: &'static str,
        classes: &'static [u8],
        folded: &'static [(u8, &'static [i32])],
    ) -> Self {
        Self { name, classes, folded, split: &[] }
    }

    const fn split(name: &'static str, classes: &'static [u8], split: &'static [u8]) -> Self {
        Self { name, classes, folded: &[], split }
    }

    /// Every raw value, background first.
    fn values(&self) -> Vec<i32> {
        (0..).take(self.classes.len() + 1).collect()
    }

    /// For each class that the data set annotates: its raw values, and on which sides of [`case`] it lies.
    fn expected(&self) -> BTreeMap<u8, (Vec<i32>, Sides)> {
        let mut expected: BTreeMap<u8, (Vec<i32>, Sides)> = BTreeMap::new();
        for (value, &class) in (1..).zip(self.classes).filter(|(_, class)| **class != 0) {
            expected.entry(class).or_insert((Vec::new(), Sides::Both)).0.push(value);
        }
        for &(class, values) in self.folded {
            expected.entry(class).or_insert((Vec::new(), Sides::Both)).0.extend(values);
        }
        for &right in self.split {
            let (values, _) = expected[&right].clone();
            expected.insert(right, (values.clone(), Sides::Right));
            expected.insert(right + 1, (values, Sides::Left));
        }
        expected
    }
}

/// Where in [`case`] a mask lies.
#[derive(Clone, Copy)]
enum Sides {
    Both,
    Left,
    Right,
}

impl Sides {
    /// Axis 0 grows toward the patient's right.
    fn hold(self, x: usize) -> bool {
        match self {
            Self::Both => true,
            Self::Left => x < GAP,
            Self::Right => x > GAP,
        }
    }
}

/// Specification §3.2, in the order of the files' names.
const SPECIFICATION: [Row; 21] = [
    Row::plain("3d-ircadb", &[1, 2, 3, 4, 6, 7, 11, 16, 17]),
    Row::split("abdomenct-12organ", &[6, 2, 1, 11, 8, 9, 7, 4, 5, 12, 13, 25], &[2]),
    Row::split("abdomenct-1k", &[6, 2, 1, 11], &[2]),
    Row::plain("amos", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 21, 22]),
    Row::plain("btcv", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]),
    Row::plain("btcv-after-60", &[1, 0, 3, 4, 5, 6, 7, 0, 0, 0, 11, 0, 0, 14]),
    Row::plain("chaos", &[6]),
    Row::split("ct-org", &[6, 21, 16, 2, 0, 0], &[2, 16]),
    Row { name: "kits", classes: &[2, 26, 32], folded: &[(2, &[2, 3])], split: &[2] },
    Row::folded("lits", &[6, 27], &[(6, &[2])]),
    Row::plain("msd-colon", &[31]),
    Row::plain("msd-hepatic-vessel", &[15, 29]),
    Row::folded("msd-liver", &[6, 27], &[(6, &[2])]),
    Row::plain("msd-lung", &[30]),
    Row::folded("msd-pancreas", &[11, 28], &[(11, &[2])]),
    Row::plain("msd-spleen", &[1]),
    Row::plain("pancreas-ct", &[1, 0, 3, 4, 5, 6, 7, 0, 0, 0, 11, 0, 0, 14]),
    Row::folded("private-pancreas", &[11, 11, 28, 28, 28], &[(11, &[3, 4, 5])]),
    Row::plain("totalsegmentator", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]),
    // In `case`, the lesions are nearer to the left organs, whose values are the higher ones.
    Row::folded(
        "universal",
        &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
            27, 28, 29, 30, 31, 32,
        ],
        &[(3, &[26, 32]), (6, &[27]), (11, &[28]), (17, &[30]), (18, &[31])],
    ),
    Row::split("word", &[6, 1, 3, 2, 7, 4, 5, 11, 14, 18, 19, 12, 20, 21, 23, 24], &[12]),
];

/// The column of background between the two sides of [`case`].
const GAP: usize = 1;

/// Each value once on the left (x 0) and, larger, on the right (x 2 and 3); neighbouring values touch, so that an organ
/// and its lesions are one piece on each side.
fn case(values: &[i32]) -> Volume<i32> {
    Volume::from_fn(grid([4, values.len(), 1]), |[x, y, _]| if x == GAP { 0 } else { values[y] })
}

/// The voxels of [`case`] with one of `wanted`, on these sides.
fn expected_mask(values: &[i32], wanted: &[i32], sides: Sides) -> Vec<bool> {
    let column =
        |x: usize| values.iter().map(move |value| x != GAP && sides.hold(x) && wanted.contains(value));
    (0..4).flat_map(column).collect()
}

/// The data set's file, read from the folder of configurations.
fn map_in_file(name: &str, taxonomy: &Taxonomy) -> LabelMap {
    let file = folder().join(format!("{name}.toml"));
    LabelMap::parse(name, &fs::read_to_string(file).unwrap(), taxonomy).unwrap()
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/datasets")
}

/// What a case annotates; everything where the data set leaves it to the site.
fn annotated_by(map: &LabelMap, taxonomy: &Taxonomy) -> BTreeSet<ClassId> {
    let all: BTreeSet<ClassId> = taxonomy.classes().iter().map(|class| class.id).collect();
    let own = (map.annotated == Annotated::PerCase).then_some(&all);
    map.annotated_in_case(own, taxonomy).unwrap()
}

fn standard(name: &str, values: &[i32]) -> LabelledCase {
    let map = LabelMap::standard(name).unwrap();
    let annotated: Vec<u8> =
        annotated_by(&map, &Taxonomy::standard()).into_iter().map(ClassId::get).collect();
    transfer(values, &map, &annotated).unwrap()
}

#[test]
fn every_file_of_a_data_set_has_a_row_of_the_specification() {
    let stem = |entry: fs::DirEntry| entry.path().file_stem().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<String> = fs::read_dir(folder()).unwrap().map(|entry| stem(entry.unwrap())).collect();
    files.sort();
    let rows: BTreeSet<&str> = SPECIFICATION.iter().map(|row| row.name).collect();
    assert_eq!(files, rows.into_iter().collect::<Vec<_>>());
}

#[test]
fn the_own_numbers_of_every_data_set_become_the_masks_and_marks_of_the_specification() {
    let taxonomy = Taxonomy::standard();
    for row in &SPECIFICATION {
        let (name, values, expected) = (row.name, row.values(), row.expected());
        let map = map_in_file(name, &taxonomy);
        let annotated = annotated_by(&map, &taxonomy);
        let labels = LabelledCase::transfer(case(&values), &map, &annotated, &taxonomy, FILE).unwrap();

        assert!(labels.annotated().map(ClassId::get).eq(expected.keys().copied()), "{name}");
        for class in taxonomy.classes() {
            let mask =
                expected.get(&class.id.get()).map(|(wanted, sides)| expected_mask(&values, wanted, *sides));
            assert_eq!(labels.mask(class.id), mask, "{name}: {}", class.name);
        }
    }
}

#[test]
fn a_number_beyond_the_list_is_refused_for_every_data_set() {
    let taxonomy = Taxonomy::standard();
    for row in &SPECIFICATION {
        let map = map_in_file(row.name, &taxonomy);
        let mut values = row.values();
        let beyond = values.len() as i32;
        values.push(beyond);
        let annotated = annotated_by(&map, &taxonomy);
        let refused = LabelledCase::transfer(case(&values), &map, &annotated, &taxonomy, FILE).unwrap_err();
        let unlisted = BTreeMap::from([(beyond, 3)]);
        assert_eq!(refused, LabelError::Unlisted { file: FILE.to_owned(), unlisted }, "{}", row.name);
    }
}

#[test]
fn a_single_component_is_the_right_one_wherever_it_lies() {
    for values in [[2, 2, 0, 0, 0], [0, 0, 0, 2, 2]] {
        let labels = standard("abdomenct-1k", &values);
        assert_eq!(labels.mask(class(2)), Some(values.map(|value| value == 2).to_vec()));
        assert_eq!(labels.mask(class(3)), Some(vec![false; 5]), "annotated, and not there");
    }
}

#[test]
fn kidneys_that_a_tumour_joins_are_one_component_and_right() {
    let labels = standard("kits", &[1, 1, 2, 1, 1]);
    assert_eq!(labels.mask(class(2)), Some(vec![true; 5]));
    assert_eq!(labels.mask(class(3)), Some(vec![false; 5]));
    assert_eq!(labels.mask(class(26)), Some(vec![false, false, true, false, false]));
}

#[test]
fn a_kidney_that_its_tumour_and_cyst_divide_is_whole_before_sides_are_split() {
    let labels = standard("kits", &[1, 2, 3, 1, 0, 1, 1]);
    let left = [true, true, true, true, false, false, false];
    assert_eq!(labels.mask(class(3)), Some(left.to_vec()));
    assert_eq!(labels.mask(class(2)), Some(vec![false, false, false, false, false, true, true]));
    assert_eq!(labels.mask(class(26)), Some(vec![false, true, false, false, false, false, false]));
    assert_eq!(labels.mask(class(32)), Some(vec![false, false, true, false, false, false, false]));
}

#[test]
fn a_fragment_stays_right_on_whichever_side_it_lies() {
    let labels = standard("abdomenct-1k", &[2, 0, 2, 2, 0, 2, 2, 2]);
    let left = [false, false, true, true, false, false, false, false];
    assert_eq!(labels.mask(class(3)), Some(left.to_vec()));
    assert_eq!(labels.mask(class(2)), Some(vec![true, false, false, false, false, true, true, true]));
}

#[test]
fn hepatic_vessels_leave_out_their_tumours() {
    let labels = standard("msd-hepatic-vessel", &[0, 1, 2]);
    assert_eq!(labels.mask(class(15)), Some(vec![false, true, false]));
    assert_eq!(labels.mask(class(29)), Some(vec![false, false, true]));
}

#[test]
fn data_in_class_ids_has_lesions_in_their_organs_annotated_or_not() {
    let map = LabelMap::standard("universal").unwrap();
    let labels = transfer(&[0, 6, 27], &map, &[6, 27]).unwrap();
    assert_eq!(labels.mask(class(6)), Some(vec![false, true, true]));
    assert_eq!(labels.mask(class(27)), Some(vec![false, false, true]));
    let organ = transfer(&[0, 6, 27], &map, &[6]).unwrap();
    assert_eq!(organ.mask(class(6)), labels.mask(class(6)));
    let vessel = transfer(&[0, 15, 29], &map, &[15, 29]).unwrap();
    assert_eq!(vessel.mask(class(15)), Some(vec![false, true, false]));
}

#[test]
fn a_late_btcv_case_teaches_eight_classes_of_the_same_label_file() {
    let values: Vec<i32> = (0..=14).collect();
    let (early, late) = (standard("btcv", &values), standard("btcv-after-60", &values));
    let taught = [1, 3, 4, 5, 6, 7, 11, 14];
    assert!(late.annotated().map(ClassId::get).eq(taught));
    for id in 1..=14 {
        let expected = taught.contains(&id).then(|| early.mask(class(id)).unwrap());
        assert_eq!(late.mask(class(id)), expected, "class {id}");
    }
}

#[test]
fn sides_are_split_on_the_files_own_voxels_before_a_coarser_grid_joins_them() {
    // Every second voxel is kept: the gap at x = 3 is not among them.
    let place = grid([9, 3, 3]);
    let raw = Volume::from_fn(place.clone(), |[x, ..]| if x == 3 { 0 } else { 2 });
    let taxonomy = Taxonomy::standard();
    let map = LabelMap::standard("abdomenct-1k").unwrap();
    let annotated = annotated_by(&map, &taxonomy);
    let labels = LabelledCase::transfer(raw, &map, &annotated, &taxonomy, FILE).unwrap();

    let image = Image { volume: Volume::from_fn(place, |_| 100.0), placed_by: PlacedBy::Sform };
    let coarse = Preprocessing { spacing_mm: [2.0; 3], ..Preprocessing::default() };
    let labels = labels.prepared(&preprocess_image(image, &coarse).unwrap().journey).unwrap();
    let shape = labels.grid().shape;
    assert_eq!(shape, [5, 2, 2]);
    let (right, left) = (labels.mask(class(2)).unwrap(), labels.mask(class(3)).unwrap());
    assert_eq!(left, (0..20).map(|offset| offset / 4 < 2).collect::<Vec<_>>());
    assert_eq!(right, left.iter().map(|inside| !inside).collect::<Vec<_>>());
    let both: Vec<bool> = left.iter().zip(&right).map(|(left, right)| *left || *right).collect();
    assert_eq!(Components::of(&both, shape).sizes, [20], "split afterwards, all would be right");
}
