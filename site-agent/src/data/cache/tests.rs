use std::cell::Cell;
use std::sync::Arc;

use common::manifest::{CaseLabels, LabelManifest};
use common::signed::SignedDocument;
use common::taxonomy::Taxonomy;

use super::*;
use crate::data::dataset::{DatasetConfig, NAMES_FILE, read_datasets};
use crate::data::prepared::{CaseStore, CaseSummary};
use crate::phantom::{Hospital, write_hospital};

const SETTINGS: Preprocessing = Preprocessing { spacing_mm: [16.0; 3], window_hu: (-175.0, 250.0) };

/// Two phantoms of `site` as files, and the cases read from them.
fn phantoms(site: &str) -> (tempfile::TempDir, Vec<Case>) {
    let folder = tempfile::tempdir().unwrap();
    let hospital = Hospital::named(site).unwrap();
    let datasets = write_hospital(folder.path(), hospital, 1, 2, Some([12.0; 3])).unwrap();
    let cases = read_datasets(&datasets, folder.path(), &Taxonomy::standard()).unwrap();
    (folder, cases)
}

fn prepare(case: &Case) -> Result<PreparedCase, DataError> {
    PreparedCase::read(case, &SETTINGS, &Taxonomy::standard())
}

fn cache_in(folder: &tempfile::TempDir) -> CaseCache {
    cache_of("study", folder)
}

fn cache_of(user: &str, folder: &tempfile::TempDir) -> CaseCache {
    CaseCache::open(&folder.path().join("cache"), user).unwrap()
}

#[test]
fn a_case_is_prepared_once_and_read_back_exactly() {
    let (folder, cases) = phantoms("site-b");
    let (cache, prepared) = (cache_in(&folder), Cell::new(0));
    let key = CaseKey::of(&cases[0], &SETTINGS, Taxonomy::standard().digest()).unwrap();
    let load = || {
        cache.load_or(key, || {
            prepared.set(prepared.get() + 1);
            prepare(&cases[0])
        })
    };
    assert_eq!(load().unwrap(), prepare(&cases[0]).unwrap());
    assert_eq!(load().unwrap(), prepare(&cases[0]).unwrap());
    assert_eq!(prepared.get(), 1);
}

#[test]
fn a_damaged_or_short_entry_is_made_anew() {
    let (folder, cases) = phantoms("site-b");
    let cache = cache_in(&folder);
    let key = CaseKey::of(&cases[0], &SETTINGS, Taxonomy::standard().digest()).unwrap();
    let whole = cache.load_or(key, || prepare(&cases[0])).unwrap();
    let path = fs::read_dir(folder.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&path).unwrap();
    let flipped: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| if i == 500 { b ^ 1 } else { *b }).collect();
    for damaged in [flipped.as_slice(), &bytes[..bytes.len() - 1], &[]] {
        fs::write(&path, damaged).unwrap();
        assert_eq!(cache.load_or(key, || prepare(&cases[0])).unwrap(), whole);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn the_key_follows_content_label_map_annotations_and_preprocessing() {
    let (_folder, cases) = phantoms("site-b");
    let taxonomy = Taxonomy::standard().digest();
    let key = |case: &Case, settings| CaseKey::of(case, settings, taxonomy).unwrap();
    let base = key(&cases[0], &SETTINGS);
    let renamed = Case { name: "other".to_owned(), ..cases[0].clone() };
    assert_eq!(base, key(&renamed, &SETTINGS));

    let mut fewer = cases[0].clone();
    fewer.annotated.pop_first();
    let mut map = (*cases[0].label_map).clone();
    map.splits.clear();
    let unsplit = Case { label_map: Arc::new(map), ..cases[0].clone() };
    let vouched = Case { assume_orientation: true, ..cases[0].clone() };
    let finer = Preprocessing { spacing_mm: [15.0; 3], ..SETTINGS };
    for other in [
        key(&fewer, &SETTINGS),
        key(&unsplit, &SETTINGS),
        key(&vouched, &SETTINGS),
        key(&cases[0], &finer),
        key(&cases[1], &SETTINGS),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn the_key_follows_both_halves_of_a_pair() {
    let (folder, mut cases) = phantoms("site-b");
    let [header, voxels] = ["ct.hdr", "ct.img"].map(|half| folder.path().join(half));
    cases[0].image.clone_from(&header);
    let key = |half: &Path, content: &str| {
        fs::write(half, content).unwrap();
        CaseKey::of(&cases[0], &SETTINGS, Taxonomy::standard().digest()).unwrap()
    };
    let keys = [key(&header, "a"), key(&voxels, "a"), key(&voxels, "b"), key(&header, "b")];
    assert!(keys.windows(2).all(|two| two[0] != two[1]), "{keys:?}");
}

#[test]
fn a_store_gives_the_same_cases_from_memory_and_from_disk() {
    let (folder, cases) = phantoms("site-c");
    let taxonomy = Arc::new(Taxonomy::standard());
    let open =
        |bytes| CaseStore::open(cases.clone(), SETTINGS, &taxonomy, &cache_in(&folder), bytes).unwrap();
    let ((memory, summaries), (disk, again)) = (open(usize::MAX), open(0));
    assert_eq!(summaries, again);
    for (index, CaseSummary { patient, annotated, present, .. }) in summaries.iter().enumerate() {
        assert_eq!(*patient, cases[index].patient);
        assert_eq!(memory.load(index).unwrap(), disk.load(index).unwrap());
        assert!(present.is_subset(annotated) && !present.is_empty());
    }
}

#[test]
fn the_manifest_of_cases_that_name_their_values_names_no_case() {
    const FOLDERS: [&str; 2] = ["MUELLER-HANS-19510304", "p 7"];
    let folder = tempfile::tempdir().unwrap();
    let hospital = Hospital::named("site-b").unwrap();
    let datasets = write_hospital(folder.path(), hospital, 1, 2, Some([12.0; 3])).unwrap();
    let root = folder.path().join(&datasets[0].folder);
    for (number, name) in FOLDERS.iter().enumerate() {
        fs::rename(root.join(format!("case-{number:04}")), root.join(name)).unwrap();
        let values = r#"{"1": "kidney", "2": "lesion", "3": "aorta", "4": "ivc", "5": "bladder"}"#;
        fs::write(root.join(name).join(NAMES_FILE), values).unwrap();
    }
    let config = DatasetConfig { label_map: Some(NAMES_FILE.to_owned()), ..datasets[0].clone() };
    let taxonomy = Arc::new(Taxonomy::standard());
    let cases = read_datasets(&[config], folder.path(), &taxonomy).unwrap();
    let (_, summaries) = CaseStore::open(cases, SETTINGS, &taxonomy, &cache_in(&folder), 0).unwrap();

    let labels = summaries.iter().map(|case| CaseLabels {
        dataset: &case.dataset,
        patient: &case.patient,
        annotated: &case.annotated,
        present: &case.present,
        pseudo: case.pseudo,
    });
    let manifest = LabelManifest::count("north".parse().unwrap(), taxonomy.digest(), labels, 1);
    assert_eq!((manifest.volumes, manifest.classes.len(), manifest.datasets.len()), (2, 3, 1));
    let bytes = manifest.to_bytes();
    assert_eq!(LabelManifest::from_bytes(&bytes).unwrap(), manifest, "the coordinator takes it");
    let text = String::from_utf8(bytes).unwrap();
    assert!(FOLDERS.iter().all(|name| !text.contains(name)), "{text}");
}

#[test]
fn what_nobody_has_a_use_for_any_more_goes() {
    let (folder, cases) = phantoms("site-b");
    let taxonomy = Arc::new(Taxonomy::standard());
    let finer = Preprocessing { spacing_mm: [15.0; 3], ..SETTINGS };
    let open = |user: &str, cases: &[Case], settings| {
        CaseStore::open(cases.to_vec(), settings, &taxonomy, &cache_of(user, &folder), 0).unwrap();
    };
    let path = folder.path().join("cache");
    let kept = || {
        let listed = fs::read_dir(&path).unwrap().flatten();
        listed.filter(|entry| !entry.file_name().to_string_lossy().ends_with(LIST)).count()
    };
    open("first", &cases, SETTINGS);
    open("second", &cases, finer);
    assert_eq!(kept(), 4, "two studies that run at once");
    // A scan is taken away; the second study had it too. And a process was killed.
    fs::write(path.join(format!("{UNFINISHED}half")), "half a case").unwrap();
    open("first", &cases[..1], SETTINGS);
    assert_eq!(kept(), 3);
    open("second", &cases[..1], finer);
    assert_eq!(kept(), 2);
    // The first is over, and what the next one needs of it stays.
    cache_of("first", &folder).forget().unwrap();
    cache_of("first", &folder).forget().unwrap();
    let key = CaseKey::of(&cases[0], &SETTINGS, taxonomy.digest()).unwrap();
    let written = || fs::metadata(path.join(key.file_name())).unwrap().modified().unwrap();
    let before = written();
    open("third", &cases[..1], SETTINGS);
    assert_eq!((kept(), written()), (2, before));
    cache_of("third", &folder).forget().unwrap();
    open("second", &cases[..1], finer);
    assert_eq!(kept(), 1);
}

#[test]
fn written_phantoms_read_back_with_their_sides_and_lesions() {
    let (_folder, cases) = phantoms("site-d");
    for case in &cases {
        let labels = prepare(case).unwrap().labels;
        let mean_r = |id| {
            let class = ClassId::new(id).unwrap();
            let [_, columns, rows] = labels.grid().shape;
            let voxels = (0..labels.grid().len()).filter(|&voxel| labels.contains(class, voxel));
            let indices: Vec<usize> = voxels.map(|voxel| voxel / (columns * rows)).collect();
            assert!(!indices.is_empty(), "class {id}");
            indices.iter().sum::<usize>() as f64 / indices.len() as f64
        };
        assert!(mean_r(2) > mean_r(3), "axis 0 runs to the patient's right");
        assert!(mean_r(16) > mean_r(17));
        assert_eq!(labels.annotated().count(), 14);
        for (lesion, organs) in [(27, &[6][..]), (26, &[2, 3])] {
            let class = |id: u8| ClassId::new(id).unwrap();
            let inside = |voxel| organs.iter().any(|&organ| labels.contains(class(organ), voxel));
            assert!((0..labels.grid().len()).all(|v| !labels.contains(class(lesion), v) || inside(v)));
        }
    }
}
