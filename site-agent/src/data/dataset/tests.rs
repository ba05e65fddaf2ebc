use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nalgebra::{Matrix4, Vector4};

use super::*;
use crate::data::error::CaseFault;
use crate::data::fixtures::{forget_orientation, shared, split_into_pair};
use crate::data::geometry::Affine;
use crate::data::nifti::{PlacedBy, write_image_i16, write_labels};
use crate::data::orientation::NoOrientation;
use crate::data::prepared::PreparedCase;
use crate::data::preprocess::Preprocessing;
use crate::data::volume::{Grid, Volume};

fn touch(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, b"").unwrap();
}

fn config(label_map: &str) -> DatasetConfig {
    toml::from_str(&format!("name = \"own\"\nfolder = \"data\"\nlabel_map = \"{label_map}\"")).unwrap()
}

fn read(base: &Path, config: &DatasetConfig) -> Result<Vec<Case>, DataError> {
    read_datasets(std::slice::from_ref(config), base, &Taxonomy::standard())
}

fn case_folders(names: &[&str]) -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    for name in names {
        touch(&base.path().join("data").join(name).join("ct.nii.gz"));
        touch(&base.path().join("data").join(name).join("labels.nii.gz"));
    }
    base
}

#[test]
fn case_folders_are_cases_by_the_folders_name() {
    let base = case_folders(&["case-2", "case-1"]);
    touch(&base.path().join("data/notes/readme.txt"));
    let cases = read(base.path(), &config("lits")).unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["own/case-1", "own/case-2"]);
    assert!(
        cases[0].image.ends_with("case-1/ct.nii.gz") && cases[0].labels.ends_with("case-1/labels.nii.gz")
    );
    let ids: Vec<u8> = cases[0].annotated.iter().map(|class| class.get()).collect();
    assert_eq!(ids, [6, 27]);
    assert_eq!(cases[0].split, Split::Training);
}

#[test]
fn a_folder_with_scans_that_is_no_case_is_a_mistake_and_not_left_out() {
    let base = case_folders(&["case-1", "case-2", "case-3"]);
    let rename = |from: &str, to: &str| {
        let folder = base.path().join("data");
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    };
    rename("case-1/labels.nii.gz", "case-1/label.nii.gz");
    rename("case-2/ct.nii.gz", "case-2/CT.nii.gz");
    for number in 0..6 {
        touch(&base.path().join(format!("data/others/{number}.nii")));
    }
    touch(&base.path().join("data/notes/readme.txt"));
    let Err(DataError::Dataset { mistakes, .. }) = read(base.path(), &config("lits")) else {
        panic!("two scans were left out in silence");
    };
    let [labels, ct, neither] = &mistakes[..] else { panic!("{mistakes:?}") };
    assert!(labels.starts_with("`case-1` has `ct.nii.gz`, `label.nii.gz` and no `labels`: "), "{labels}");
    assert!(ct.starts_with("`case-2` has `CT.nii.gz`, `labels.nii.gz` and no `ct`: "), "{ct}");
    let expected = "`others` has `0.nii`, `1.nii`, `2.nii`, `3.nii`, 2 more and no `ct`, no `labels`: ";
    assert!(neither.starts_with(expected), "{neither}");

    rename("case-1/label.nii.gz", "case-1/labels.nii.gz");
    rename("case-2/CT.nii.gz", "case-2/ct.nii.gz");
    fs::remove_dir_all(base.path().join("data/others")).unwrap();
    assert_eq!(read(base.path(), &config("lits")).unwrap().len(), 3);
}

/// What is wrong with the data set in `base`.
fn mistakes(base: &Path) -> Vec<String> {
    match read(base, &config("lits")) {
        Err(DataError::Dataset { mistakes, .. }) => mistakes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn endings_in_capitals_are_endings() {
    let base = tempfile::tempdir().unwrap();
    for file in ["images/a_0000.nii.gz", "images/B.NII.GZ", "labels/a.Nii", "labels/B.NII.GZ"] {
        touch(&base.path().join("data").join(file));
    }
    let cases = read(base.path(), &config("lits")).unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["own/B", "own/a"]);
    assert!(cases[0].image.ends_with("images/B.NII.GZ") && cases[1].labels.ends_with("labels/a.Nii"));
}

#[test]
fn a_file_that_looks_like_a_scan_and_is_not_read_is_a_mistake_and_not_left_out() {
    let base = tempfile::tempdir().unwrap();
    let not_utf8 = OsStr::from_bytes(b"M\xfcller.nii.gz");
    for folder in ["data/images", "data/labels"].map(|folder| base.path().join(folder)) {
        for name in ["a.nii.gz", "a.img", "b.img", "c.NRRD", "notes.txt"].map(OsStr::new) {
            touch(&folder.join(name));
        }
        touch(&folder.join(not_utf8));
    }
    let told = mistakes(base.path());
    let named: Vec<&str> = told.iter().filter_map(|mistake| mistake.split('`').nth(1)).collect();
    let of = |folder: &str| {
        ["M\u{fffd}ller.nii.gz", "a.img", "b.img", "c.NRRD"].map(|name| format!("{folder}/{name}"))
    };
    assert_eq!(named, [of("images"), of("labels")].concat());
    assert!(told[1].contains(" is not read: "), "{told:?}");

    let base = case_folders(&["a"]);
    touch(&base.path().join("data/a/source.nrrd"));
    for file in ["b/ct.img", "b/labels.nii.gz", "dicom/1.dcm"] {
        touch(&base.path().join("data").join(file));
    }
    let told = mistakes(base.path());
    assert!(
        told.len() == 1 && told[0].starts_with("`b` has `ct.img`, `labels.nii.gz` and no `ct`: "),
        "{told:?}"
    );
    fs::remove_dir_all(base.path().join("data/b")).unwrap();
    assert_eq!(
        read(base.path(), &config("lits")).unwrap().len(),
        1,
        "what lies beside whole cases harms nobody"
    );
}

#[test]
fn pairs_of_header_and_voxels_are_scans_and_label_files() {
    let base = tempfile::tempdir().unwrap();
    for file in ["images/a_0000.hdr", "images/a_0000.img.gz", "images/B.HDR", "images/B.IMG", "labels/a.nii"]
    {
        touch(&base.path().join("data").join(file));
    }
    touch(&base.path().join("data/labels/B.hdr.gz"));
    touch(&base.path().join("data/labels/B.img.gz"));
    let cases = read(base.path(), &config("lits")).unwrap();
    let files: Vec<_> = cases.iter().map(|case| (case.name.as_str(), &case.image, &case.labels)).collect();
    let at = |file: &str| base.path().join("data").join(file);
    let (a, b) = ([at("images/a_0000.hdr"), at("labels/a.nii")], [at("images/B.HDR"), at("labels/B.hdr.gz")]);
    assert_eq!(files, [("own/B", &b[0], &b[1]), ("own/a", &a[0], &a[1])]);

    touch(&at("labels/a.hdr"));
    let told = mistakes(base.path());
    let expected = "`labels/a.hdr` and `labels/a.nii` differ in their endings alone: ";
    assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}");
}

#[test]
fn a_case_of_pairs_is_prepared_as_one_of_single_files() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("data/a");
    fs::create_dir_all(&folder).unwrap();
    let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(1.5, 1.5, 1.5, 1.0))).unwrap();
    let grid = Grid { shape: [6, 5, 4], affine };
    let [ct, labels] = ["ct.nii", "labels.nii"].map(|file| folder.join(file));
    write_image_i16(&ct, &Volume::from_fn(grid.clone(), |[x, y, z]| (100 * x + 10 * y + z) as i16)).unwrap();
    write_labels(&labels, &Volume::from_fn(grid, |[x, ..]| u8::from(x < 2))).unwrap();
    // Made-up scans do not look like CT.
    fs::write(base.path().join("data/cases.toml"), "[a]\nhounsfield = \"assume\"\n").unwrap();
    let prepared = || {
        let case = read(base.path(), &config("lits")).unwrap().remove(0);
        PreparedCase::read(&case, &Preprocessing::default(), &Taxonomy::standard()).unwrap()
    };
    let single = prepared();
    split_into_pair(&ct, ["hdr", "img"]);
    split_into_pair(&labels, ["HDR", "IMG"]);
    assert_eq!(prepared(), single);
}

#[test]
fn what_macos_puts_beside_a_file_is_no_scan() {
    let base = tempfile::tempdir().unwrap();
    for file in ["imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz"] {
        touch(&base.path().join("data").join(file));
        touch(&base.path().join("data").join(file.replace("liver", "._liver")));
    }
    let cases = read(base.path(), &config("lits")).unwrap();
    assert_eq!(cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(), ["own/liver_0"]);
}

#[test]
fn two_files_of_one_name_are_a_mistake_where_one_of_them_would_be_used() {
    let base = case_folders(&["a", "b"]);
    for file in ["a/labels.nii", "b/other.nii", "b/other.nii.gz"] {
        touch(&base.path().join("data").join(file));
    }
    let told = mistakes(base.path());
    let expected = "`a/labels.nii` and `a/labels.nii.gz` differ in their endings alone: ";
    assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}");

    let base = tempfile::tempdir().unwrap();
    for file in
        ["images/p.nii", "images/p.nii.gz", "labels/p.NII", "labels/p.nii", "labels/q.nii", "images/q.nii"]
    {
        touch(&base.path().join("data").join(file));
    }
    let told = mistakes(base.path());
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("`images/p.nii` and `images/p.nii.gz` "), "{told:?}");
    assert!(told[1].starts_with("`labels/p.NII` and `labels/p.nii` "), "{told:?}");
}

#[test]
fn a_folder_without_a_case_is_a_mistake_in_either_layout() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir_all(base.path().join("data")).unwrap();
    assert!(mistakes(base.path())[0].starts_with("no case: "));
    for folder in ["data/images", "data/labels"] {
        fs::create_dir_all(base.path().join(folder)).unwrap();
    }
    assert!(mistakes(base.path())[0].starts_with("no case: "));
}

#[test]
fn a_slip_in_the_folder_is_told_apart_from_a_label_map_that_is_missing() {
    let base = case_folders(&["a"]);
    let told = |folder: &str| {
        let config = DatasetConfig { folder: folder.into(), label_map: None, ..config("lits") };
        match read(base.path(), &config) {
            Err(DataError::Dataset { dataset, mistakes }) if dataset == "own" => mistakes.join("\n"),
            other => panic!("{other:?}"),
        }
    };
    let at = |folder: &str| base.path().join(folder).display().to_string();
    assert_eq!(told("dtaa"), format!("{} does not exist: correct `folder` in site.toml", at("dtaa")));
    let scan = "data/a/ct.nii.gz";
    assert_eq!(told(scan), format!("{} is no folder: correct `folder` in site.toml", at(scan)));
    let lacks = "no `label_map` in site.toml and no dataset.toml in ";
    assert_eq!(told("data"), format!("{lacks}{}: add one of them", at("data")));
    let named = told_of(base.path(), &config("maps/ours.toml"));
    let at = at("maps/ours.toml");
    assert_eq!(named, format!("{at} does not exist: correct `label_map` in site.toml"));
}

/// What is wrong with a data set, in one text.
fn told_of(base: &Path, config: &DatasetConfig) -> String {
    match read(base, config) {
        Err(DataError::Dataset { mistakes, .. }) => mistakes.join("\n"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_cannot_be_looked_at_is_not_taken_for_missing() {
    for (file, label_map) in [(LABEL_MAP_FILE, None), (TAXONOMY_FILE, None), (CASES_FILE, Some("lits"))] {
        let base = case_folders(&["a"]);
        // It leads to itself: nobody gets there, not even root.
        std::os::unix::fs::symlink(file, base.path().join("data").join(file)).unwrap();
        let config = DatasetConfig { label_map: label_map.map(str::to_owned), ..config("lits") };
        let Err(DataError::Io { path, .. }) = read(base.path(), &config) else { panic!("{file} is there") };
        assert!(path.ends_with(file), "{path:?}");
    }
}

#[test]
fn a_slip_in_the_classes_of_site_toml_is_told_as_one_of_site_toml() {
    let base = case_folders(&["a"]);
    let slip = DatasetConfig { annotated: Some(vec!["livr".to_owned()]), ..config("universal") };
    let expected = "`annotated` in site.toml: the taxonomy has no class `livr`";
    assert_eq!(told_of(base.path(), &slip), expected);
}

#[test]
fn images_and_labels_are_paired_by_name() {
    let base = tempfile::tempdir().unwrap();
    touch(&base.path().join("data/imagesTr/liver_1_0000.nii.gz"));
    touch(&base.path().join("data/imagesTr/liver_2.nii"));
    touch(&base.path().join("data/labelsTr/liver_1.nii.gz"));
    touch(&base.path().join("data/labelsTr/liver_2.nii.gz"));
    let cases = read(base.path(), &config("lits")).unwrap();
    assert_eq!(
        cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(),
        ["own/liver_1", "own/liver_2"]
    );

    touch(&base.path().join("data/labelsTr/liver_3.nii.gz"));
    touch(&base.path().join("data/imagesTr/liver_4.nii.gz"));
    let Err(DataError::Dataset { mistakes, .. }) = read(base.path(), &config("lits")) else {
        panic!("half a pair was accepted");
    };
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
}

#[test]
fn the_case_table_overrides_what_the_data_set_says() {
    let base = case_folders(&["a", "b"]);
    let table =
        "[a]\npatient = \"p\"\nsplit = \"validation\"\nannotated = [\"liver\"]\nhounsfield = \"assume\"\n";
    fs::write(base.path().join("data/cases.toml"), table).unwrap();
    let cases = read(base.path(), &config("lits")).unwrap();
    assert_eq!((cases[0].patient.as_str(), cases[0].split), ("p", Split::Validation));
    assert_eq!((cases[0].annotated.len(), cases[0].assume_hounsfield), (1, true));
    assert_eq!((cases[1].annotated.len(), cases[1].assume_hounsfield), (2, false));
}

#[test]
fn an_mr_is_refused_until_the_case_table_vouches_for_its_values() {
    let Some(mr) = shared("data/negative/mr-not-ct") else { return };
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("data/mr");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(mr.join("mr.nii.gz"), folder.join("ct.nii.gz")).unwrap();
    fs::copy(mr.join("labels.nii.gz"), folder.join("labels.nii.gz")).unwrap();
    // The label file has numbers of its own: 5 is the liver, and nothing else matters here.
    let dropped = (1..=255).filter(|&value| value != 5).map(|value| format!("{value} = \"drop\"\n"));
    let map =
        "name = \"MR\"\nkey = \"mr\"\nuse = \"training\"\nannotated = [\"liver\"]\n[values]\n5 = \"liver\"\n";
    fs::write(base.path().join("map.toml"), format!("{map}{}", dropped.collect::<String>())).unwrap();
    let read_with = |table: &str| {
        fs::write(base.path().join("data/cases.toml"), table).unwrap();
        let cases = read(base.path(), &config("map.toml")).unwrap();
        PreparedCase::read(&cases[0], &Preprocessing::default(), &Taxonomy::standard())
    };

    for table in ["", "[mr]\nhounsfield = \"check\"\n"] {
        let Err(DataError::Case { case, fault }) = read_with(table) else { panic!("not refused: `{table}`") };
        assert_eq!(case, "own/mr");
        assert!(matches!(*fault, CaseFault::NotHounsfield(_)), "{fault}");
    }
    let case = read_with("[mr]\nhounsfield = \"assume\"\n").unwrap();
    assert_eq!(case.present, BTreeSet::from([ClassId::new(6).unwrap()]), "its labels came with it");
}

#[test]
fn a_scan_without_orientation_is_refused_until_the_case_table_vouches_for_it() {
    let base = tempfile::tempdir().unwrap();
    let [ct, labels] = ["data/a/ct.nii", "data/a/labels.nii"].map(|file| base.path().join(file));
    fs::create_dir_all(base.path().join("data/a")).unwrap();
    let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(1.5, 1.5, 1.5, 1.0))).unwrap();
    let grid = Grid { shape: [6, 5, 4], affine };
    write_image_i16(&ct, &Volume::from_fn(grid.clone(), |_| 100)).unwrap();
    write_labels(&labels, &Volume::from_fn(grid, |[x, ..]| u8::from(x < 2))).unwrap();
    // Made-up scans do not look like CT.
    let case = |more: &str| {
        let table = format!("[a]\nhounsfield = \"assume\"\n{more}");
        fs::write(base.path().join("data/cases.toml"), table).unwrap();
        read(base.path(), &config("lits")).unwrap().remove(0)
    };
    let prepare =
        |case: &Case| PreparedCase::read(case, &Preprocessing::default(), &Taxonomy::standard()).map(drop);
    prepare(&case("")).unwrap();

    forget_orientation(&ct);
    forget_orientation(&labels);
    for more in ["", "orientation = \"check\"\n"] {
        let refused = prepare(&case(more)).unwrap_err();
        let DataError::Case { case, fault } = refused else { panic!("`{more}`: {refused}") };
        assert_eq!(case, "own/a");
        assert!(matches!(*fault, CaseFault::NoOrientation(NoOrientation)), "{fault}");
    }
    let vouched = case("orientation = \"assume\"\n");
    assert_eq!(vouched.read_scan().unwrap().placed_by, PlacedBy::Assumed);
    prepare(&vouched).unwrap();
}

#[test]
fn mistakes_in_the_case_table_are_all_reported_with_their_lines() {
    let base = case_folders(&["a"]);
    let table = "[b]\npatient = \"p\"\n[a]\nannotated = [\"livre\"]\n";
    fs::write(base.path().join("data/cases.toml"), table).unwrap();
    let Err(DataError::Config(mistakes)) = read(base.path(), &config("lits")) else {
        panic!("mistakes were accepted");
    };
    let lines: Vec<_> = mistakes.items().iter().map(|item| item.line).collect();
    assert_eq!(lines, [Some(1), Some(4)], "{mistakes}");
}

#[test]
fn a_patient_is_on_one_side_of_the_split_only() {
    let base = case_folders(&["a", "b"]);
    let table = "[a]\npatient = \"p\"\n[b]\npatient = \"p\"\nsplit = \"validation\"\n";
    fs::write(base.path().join("data/cases.toml"), table).unwrap();
    let refused = read(base.path(), &config("lits"));
    assert!(matches!(refused, Err(DataError::PatientInTwoSplits { patient }) if patient == "p"));
}

#[test]
fn a_share_of_patients_is_kept_for_validation_and_stays_when_others_come() {
    let names: Vec<String> = (0..200).map(|i| format!("case-{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let share = DatasetConfig { validation_share: 0.25, ..config("lits") };
    let split = |names: &[&str]| {
        let cases = read(case_folders(names).path(), &share).unwrap();
        cases.into_iter().map(|case| (case.name, case.split)).collect::<BTreeMap<_, _>>()
    };
    let all = split(&names);
    let kept = all.values().filter(|split| **split == Split::Validation).count();
    assert!((35..=65).contains(&kept), "{kept}");
    assert!(split(&names[..50]).iter().all(|(name, split)| all[name] == *split));
}

#[test]
fn scans_for_evaluation_are_trained_on_only_where_the_case_table_says_so() {
    let base = case_folders(&["a", "b"]);
    let splits = || {
        let cases = read(base.path(), &config("3d-ircadb")).unwrap();
        cases.into_iter().map(|case| case.split).collect::<Vec<_>>()
    };
    assert_eq!(splits(), [Split::Validation, Split::Validation]);
    fs::write(base.path().join("data/cases.toml"), "[a]\nsplit = \"training\"\n").unwrap();
    assert_eq!(splits(), [Split::Training, Split::Validation]);
}

#[test]
fn a_label_map_that_leaves_annotations_open_needs_them_from_the_site() {
    let base = case_folders(&["a"]);
    assert!(matches!(read(base.path(), &config("universal")), Err(DataError::Case { .. })));
    let stated = DatasetConfig { annotated: Some(vec!["aorta".to_owned()]), ..config("universal") };
    assert_eq!(read(base.path(), &stated).unwrap()[0].annotated.len(), 1);
}

#[test]
fn btcv_cases_numbered_60_and_above_annotate_eight_classes_unless_the_site_says_what() {
    let base = case_folders(&["label0003", "label0059", "label0060", "label0061"]);
    let annotated = |config: &DatasetConfig| {
        let cases = read(base.path(), config).unwrap();
        cases.into_iter().map(|case| case.annotated.len()).collect::<Vec<_>>()
    };
    for name in ["btcv", "01"] {
        assert_eq!(annotated(&config(name)), [14, 14, 8, 8], "{name}");
    }
    let late = read(base.path(), &config("btcv")).unwrap().remove(3);
    assert_eq!(*late.label_map, LabelMap::standard("btcv-after-60").unwrap());
    assert_eq!(annotated(&config("btcv-after-60")), [8; 4]);
    assert_eq!(annotated(&config("amos")), [15; 4]);

    let aorta = Some(vec!["aorta".to_owned()]);
    assert_eq!(annotated(&DatasetConfig { annotated: aorta, ..config("btcv") }), [1; 4]);
    fs::write(base.path().join("data/cases.toml"), "[label0061]\nannotated = [\"aorta\", \"liver\"]\n")
        .unwrap();
    assert_eq!(annotated(&config("btcv")), [14, 14, 8, 2]);
}

#[test]
fn an_unknown_label_map_is_answered_with_the_known_ones() {
    let base = case_folders(&["a"]);
    let Err(DataError::Dataset { mistakes, .. }) = read(base.path(), &config("totalseg")) else {
        panic!("an unknown label map was accepted");
    };
    assert!(mistakes[0].contains("kits"), "{mistakes:?}");
}

#[test]
fn each_case_may_name_its_own_values() {
    let base = case_folders(&["a", "b"]);
    fs::write(base.path().join("data/a/labels.json"), r#"{"0": "background", "52": "aorta"}"#).unwrap();
    fs::write(base.path().join("data/b/labels.json"), r#"{"1": "liver", "2": "sacrum"}"#).unwrap();
    let cases = read(base.path(), &config(NAMES_FILE)).unwrap();
    let annotated: Vec<Vec<u8>> =
        cases.iter().map(|case| case.annotated.iter().map(|class| class.get()).collect()).collect();
    assert_eq!(annotated, [vec![8], vec![6]]);
    assert!(cases[0].label_map.target(1).is_none(), "a value of another case");

    fs::write(base.path().join("data/b/labels.json"), r#"["liver"]"#).unwrap();
    let Err(DataError::Dataset { dataset, mistakes }) = read(base.path(), &config(NAMES_FILE)) else {
        panic!("a list is not an object");
    };
    assert!(dataset.ends_with("b/labels.json") && mistakes[0].contains("such as"), "{dataset}: {mistakes:?}");
}

#[test]
fn nothing_is_asked_of_the_labels_of_an_excluded_scan() {
    let base = case_folders(&["a", "b"]);
    let exclude = |more: &str| {
        let table = format!("[b]\nsplit = \"excluded\"\n{more}");
        fs::write(base.path().join("data/cases.toml"), table).unwrap();
    };
    let annotated = |config: &DatasetConfig| {
        let cases = read(base.path(), config).unwrap();
        cases.into_iter().map(|case| (case.split, case.annotated.len())).collect::<Vec<_>>()
    };
    let expected = [(Split::Training, 1), (Split::Excluded, 0)];
    fs::write(base.path().join("data/a/labels.json"), r#"{"1": "liver"}"#).unwrap();
    exclude("");
    assert_eq!(annotated(&config(NAMES_FILE)), expected, "b has no labels.json");

    let table = "[a]\nannotated = [\"aorta\"]\n";
    exclude(table);
    assert_eq!(annotated(&config("universal")), expected, "nobody says what b annotates");
}

#[test]
fn a_study_with_other_classes_learns_what_both_name() {
    let base = case_folders(&["a"]);
    let organ = |id, name| format!("[[class]]\nid = {id}\nname = \"{name}\"\nkind = \"organ\"\n");
    let study = Taxonomy::parse("study.toml", &(organ(1, "Heart") + &organ(2, "Liver"))).unwrap();
    let annotated = |config: &DatasetConfig, taxonomy: &Taxonomy| {
        let case = read_dataset(config, base.path(), taxonomy).unwrap().remove(0);
        case.annotated.iter().map(|class| class.get()).collect::<Vec<_>>()
    };
    assert_eq!(
        annotated(&config("lits"), &study),
        [2],
        "by its number here, not by that of the built-in map"
    );
    assert_eq!(annotated(&config("msd-spleen"), &study), [0; 0]);

    let map = "name = \"Hearts\"\nkey = \"hearts\"\nuse = \"training\"\nannotated = [\"heart\"]\n\
               [values]\n1 = \"heart\"\n";
    fs::write(base.path().join("hearts.toml"), map).unwrap();
    let hearts = config("hearts.toml");
    assert!(matches!(read_dataset(&hearts, base.path(), &study), Err(DataError::Config(_))), "whose words?");
    fs::write(base.path().join("classes.toml"), study.to_toml()).unwrap();
    let named = DatasetConfig { taxonomy: Some("classes.toml".into()), ..hearts.clone() };
    assert_eq!(annotated(&named, &study), [1]);
    assert_eq!(annotated(&named, &Taxonomy::standard()), [0; 0]);
    fs::rename(base.path().join("classes.toml"), base.path().join("data").join(TAXONOMY_FILE)).unwrap();
    assert_eq!(annotated(&hearts, &study), [1], "its folder says it");
}
