use std::fs;

use common::study::sections::Upsampling;
use common::testing::provenance;
use nalgebra::{Matrix4, Vector4};

use super::*;
use crate::data::dataset::{DatasetConfig, read_datasets, refuse_pseudo_labels};
use crate::data::fixtures::{forget_orientation, split_into_pair};
use crate::data::geometry::Affine;
use crate::data::nifti::write_image_i16;
use crate::data::prepared::PreparedCase;
use crate::data::preprocess::Preprocessing;
use crate::data::volume::{Grid, Volume};
use crate::infer::testing::Bright;

const LIVER_AND_SPLEEN: Bright = Bright(&[1, 6]);

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

/// A scan whose labels say only where the liver is; `bright` shows a box that the model takes for liver and spleen.
fn write_case(folder: &Path, bright: bool) {
    write_case_as(folder, "ct.nii.gz", bright);
}

fn write_case_as(folder: &Path, ct: &str, bright: bool) {
    fs::create_dir_all(folder).unwrap();
    let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(1.5, 1.5, 1.5, 1.0))).unwrap();
    let grid = Grid { shape: [20, 18, 16], affine };
    let inside = |index: [usize; 3]| (0..3).all(|axis| (4..12 - axis).contains(&index[axis]));
    let scan = Volume::from_fn(grid.clone(), |index| if inside(index) && bright { 200 } else { -100 });
    write_image_i16(&folder.join(ct), &scan).unwrap();
    let labels = Volume::from_fn(grid, |index| u8::from(inside(index)));
    write_labels(&folder.join("labels.nii.gz"), &labels).unwrap();
}

fn dataset(name: &str, label_map: Option<&str>) -> DatasetConfig {
    let map = label_map.map_or(String::new(), |map| format!("label_map = \"{map}\""));
    toml::from_str(&format!("name = \"{name}\"\nfolder = \"{name}\"\n{map}")).unwrap()
}

fn cases(site: &Path, configs: &[DatasetConfig]) -> Vec<Case> {
    let mut cases = read_datasets(configs, site, &Taxonomy::standard()).unwrap();
    // Made-up scans are too small to look like CT.
    cases.iter_mut().for_each(|case| case.assume_hounsfield = true);
    cases
}

fn labeller<'a>(out: &'a Path, taxonomy: &'a Taxonomy, min_count: usize) -> Labeller<'a> {
    Labeller {
        out,
        taxonomy,
        settings: InferenceSettings {
            preprocessing: Preprocessing::default(),
            window: [16; 3],
            overlap: 0.5,
            window_batch: 1,
            threshold: 0.5,
            upsampling: Upsampling::Nearest,
            postprocessing: None,
        },
        wanted: taxonomy.classes().iter().map(|class| class.id).collect(),
        min_volume_ml: 0.5,
        min_count,
        values: OverlapValues::default(),
        labelled: Vec::new(),
    }
}

#[test]
fn the_new_data_set_annotates_what_the_model_found_and_the_annotators_did_not() {
    let site = tempfile::tempdir().unwrap();
    write_case(&site.path().join("livers/a"), true);
    write_case(&site.path().join("livers/b"), true);
    write_case(&site.path().join("livers/dark"), false);
    let own = cases(site.path(), &[dataset("livers", Some("chaos"))]);
    let (out, taxonomy) = (site.path().join("pseudo"), Taxonomy::standard());
    let mut labeller = labeller(&out, &taxonomy, 2);
    assert_eq!(labeller.label_all(&own, &LIVER_AND_SPLEEN, &Cancel::default()), 0);
    labeller.finish(provenance()).unwrap();

    let made = cases(site.path(), &[dataset("pseudo", None)]);
    assert_eq!(made.len(), 2, "nothing was found in the dark one");
    for (case, original) in made.iter().zip(&own) {
        assert!(case.pseudo && !original.pseudo);
        assert_eq!(case.annotated, BTreeSet::from([class(1)]), "the liver has real labels already");
        assert_eq!(case.patient, original.patient);
        assert_eq!(case.label_map.provenance, Some(provenance()));
        let prepared = PreparedCase::read(case, &Preprocessing::default(), &taxonomy).unwrap();
        assert_eq!(prepared.present, BTreeSet::from([class(1)]));
    }
}

#[test]
fn a_class_that_is_found_in_too_few_patients_is_left_out() {
    let site = tempfile::tempdir().unwrap();
    write_case(&site.path().join("livers/a"), true);
    let own = cases(site.path(), &[dataset("livers", Some("chaos"))]);
    let (out, taxonomy) = (site.path().join("pseudo"), Taxonomy::standard());
    let mut labeller = labeller(&out, &taxonomy, 2);
    assert_eq!(labeller.label_all(&own, &LIVER_AND_SPLEEN, &Cancel::default()), 0);
    let refused = labeller.finish(provenance()).unwrap_err().text();
    assert!(refused.contains("2 patients"), "{refused}");
    assert!(!out.join(LABEL_MAP_FILE).exists(), "the folder is no data set");
}

#[test]
fn a_bad_scan_is_counted_and_the_others_are_labelled() {
    let site = tempfile::tempdir().unwrap();
    write_case(&site.path().join("livers/a"), true);
    write_case(&site.path().join("livers/b"), true);
    let own = cases(site.path(), &[dataset("livers", Some("chaos"))]);
    fs::write(&own[0].image, "no gzip").unwrap();
    let (out, taxonomy) = (site.path().join("pseudo"), Taxonomy::standard());
    let mut labeller = labeller(&out, &taxonomy, 1);
    assert_eq!(labeller.label_all(&own, &LIVER_AND_SPLEEN, &Cancel::default()), 1);
    labeller.finish(provenance()).unwrap();
    assert_eq!(cases(site.path(), &[dataset("pseudo", None)])[0].patient, "livers/b");
}

#[test]
fn the_new_data_set_vouches_for_an_orientation_as_the_old_one_does() {
    let site = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        write_case_as(&site.path().join("livers").join(name), "ct.nii", true);
        forget_orientation(&site.path().join("livers").join(name).join("ct.nii"));
    }
    fs::write(site.path().join("livers").join(CASES_FILE), "[b]\norientation = \"assume\"\n").unwrap();
    let own = cases(site.path(), &[dataset("livers", Some("chaos"))]);
    let (out, taxonomy) = (site.path().join("pseudo"), Taxonomy::standard());
    let mut labeller = labeller(&out, &taxonomy, 1);
    assert_eq!(labeller.label_all(&own, &LIVER_AND_SPLEEN, &Cancel::default()), 1, "nobody vouches for `a`");
    labeller.finish(provenance()).unwrap();

    let made = cases(site.path(), &[dataset("pseudo", None)]);
    let names: Vec<&str> = made.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["pseudo/livers-b"]);
    PreparedCase::read(&made[0], &Preprocessing::default(), &taxonomy).unwrap();
}

#[test]
fn both_halves_of_a_pair_are_linked() {
    let site = tempfile::tempdir().unwrap();
    write_case_as(&site.path().join("livers/a"), "ct.nii", true);
    split_into_pair(&site.path().join("livers/a/ct.nii"), ["hdr", "img"]);
    let own = cases(site.path(), &[dataset("livers", Some("chaos"))]);
    let (out, taxonomy) = (site.path().join("pseudo"), Taxonomy::standard());
    let mut labeller = labeller(&out, &taxonomy, 1);
    assert_eq!(labeller.label_all(&own, &LIVER_AND_SPLEEN, &Cancel::default()), 0);
    labeller.finish(provenance()).unwrap();
    let made = cases(site.path(), &[dataset("pseudo", None)]);
    PreparedCase::read(&made[0], &Preprocessing::default(), &taxonomy).unwrap();
}

#[test]
fn scans_whose_names_differ_in_their_slashes_alone_do_not_share_a_folder() {
    let site = tempfile::tempdir().unwrap();
    write_case(&site.path().join("a/b-c"), true);
    write_case(&site.path().join("a-b/c"), true);
    let own = cases(site.path(), &[dataset("a", Some("chaos")), dataset("a-b", Some("chaos"))]);
    let (out, taxonomy) = (site.path().join("pseudo"), Taxonomy::standard());
    let mut labeller = labeller(&out, &taxonomy, 1);
    assert_eq!(labeller.label_all(&own, &LIVER_AND_SPLEEN, &Cancel::default()), 0);
    labeller.finish(provenance()).unwrap();

    let made = cases(site.path(), &[dataset("pseudo", None)]);
    let names: Vec<&str> = made.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["pseudo/a-b-c", "pseudo/a-b-c-2"]);
    for (case, original) in made.iter().zip(&own) {
        assert_eq!(case.patient, original.patient);
        let linked = fs::canonicalize(&case.image).unwrap();
        assert_eq!(linked, fs::canonicalize(&original.image).unwrap());
    }
}

#[test]
fn a_data_set_of_a_model_is_refused_whatever_map_the_site_names_for_it() {
    let site = tempfile::tempdir().unwrap();
    write_case(&site.path().join("livers/a"), true);
    write_case(&site.path().join("pseudo/a"), true);
    let real = dataset("livers", Some("chaos"));
    assert!(refuse_pseudo_labels(&cases(site.path(), std::slice::from_ref(&real))).is_ok());

    let map = OverlapValues::default().label_map("from a model", provenance());
    fs::write(site.path().join("pseudo").join(LABEL_MAP_FILE), map.to_toml(&Taxonomy::standard())).unwrap();
    let both = cases(site.path(), &[real, dataset("pseudo", Some("chaos"))]);
    let refused = refuse_pseudo_labels(&both);
    assert!(matches!(refused, Err(DataError::PseudoLabels { dataset }) if dataset == "pseudo"));
}

#[test]
fn a_threshold_is_a_probability_and_a_volume_is_not_negative() {
    assert_eq!((probability("0.7"), volume_ml("0")), (Ok(0.7), Ok(0.0)));
    for wrong in ["0", "1", "-0.5", "NaN", "half"] {
        assert!(probability(wrong).is_err(), "{wrong}");
    }
    for wrong in ["-1", "NaN", "inf"] {
        assert!(volume_ml(wrong).is_err(), "{wrong}");
    }
}
