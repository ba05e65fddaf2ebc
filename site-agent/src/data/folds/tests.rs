use std::path::PathBuf;
use std::sync::Arc;

use common::label_map::LabelMap;

use super::*;

fn case(dataset: &str, number: u32, patient: &str) -> Case {
    Case {
        name: format!("{dataset}/{number}"),
        dataset: dataset.to_owned(),
        image: PathBuf::new(),
        labels: PathBuf::new(),
        label_map: Arc::new(LabelMap::standard("lits").unwrap()),
        annotated: BTreeSet::new(),
        patient: patient.to_owned(),
        split: Split::Training,
        assume_hounsfield: false,
        assume_orientation: false,
        pseudo: false,
    }
}

/// 13 patients with two scans each in `a`, 9 with one in `b`, and one with a scan in both.
fn site() -> Vec<Case> {
    let of_a = (0..26).map(|i| case("a", i, &format!("a{}", i / 2)));
    let of_b = (0..9).map(|i| case("b", i, &format!("b{i}")));
    of_a.chain(of_b).chain([case("a", 90, "both"), case("b", 90, "both")]).collect()
}

/// Patients of each fold.
fn sizes(folds: &Folds, of_patient: impl Fn(&str) -> bool) -> Vec<usize> {
    let of_fold = |fold: u32| {
        let mine = |(patient, place): &(&String, &Place)| place.fold == fold && of_patient(patient);
        folds.patients.iter().filter(mine).count()
    };
    (0..folds.count()).map(of_fold).collect()
}

fn spread(sizes: &[usize]) -> usize {
    sizes.iter().max().unwrap() - sizes.iter().min().unwrap()
}

#[test]
fn folds_differ_by_one_patient_at_most_in_each_data_set_and_over_all() {
    for seed in 0..20 {
        let folds = Folds::deal(&site(), 5, seed).unwrap();
        let all = sizes(&folds, |_| true);
        assert_eq!(all.iter().sum::<usize>(), 23, "every patient once");
        assert!(spread(&all) <= 1, "{all:?}");
        for dataset in ["a", "b"] {
            let sizes = sizes(&folds, |patient| folds.patients[patient].dataset == dataset);
            assert!(spread(&sizes) <= 1, "{dataset}: {sizes:?}");
        }
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    let mut backwards = site();
    backwards.reverse();
    let folds = Folds::deal(&site(), 5, 7).unwrap();
    assert_eq!(Folds::deal(&backwards, 5, 7).unwrap(), folds);
    assert_ne!(Folds::deal(&site(), 5, 8).unwrap().patients, folds.patients);
}

#[test]
fn each_scan_is_left_out_once_with_all_scans_of_its_patient() {
    let folds = Folds::deal(&site(), 5, 7).unwrap();
    let mut left_out = BTreeSet::new();
    for fold in 0..5 {
        let mut cases = site();
        folds.leave_out(&mut cases, fold).unwrap();
        let of = |split: Split| cases.iter().filter(move |case| case.split == split);
        let trained: BTreeSet<&str> = of(Split::Training).map(|case| case.patient.as_str()).collect();
        assert!(of(Split::Validation).all(|case| !trained.contains(case.patient.as_str())), "fold {fold}");
        let names: Vec<String> = of(Split::Validation).map(|case| case.name.clone()).collect();
        let scored = folds.scans_of(fold, site()).unwrap();
        assert!(scored.iter().map(|case| &case.name).eq(&names), "what is left out is what is scored");
        left_out.extend(names);
    }
    assert_eq!(left_out.len(), site().len());
}

#[test]
fn what_is_kept_out_of_training_already_is_in_no_fold() {
    let mut cases = site();
    cases.push(Case { split: Split::Validation, ..case("a", 91, "kept") });
    cases.push(Case { split: Split::Excluded, ..case("a", 92, "excluded") });
    let folds = Folds::deal(&cases, 5, 7).unwrap();
    assert_eq!((folds.fold_of("kept"), folds.fold_of("excluded")), (None, None));
    let splits: Vec<Split> = cases[37..].iter().map(|case| case.split).collect();
    folds.leave_out(&mut cases, 0).unwrap();
    assert!(cases[37..].iter().map(|case| case.split).eq(splits));
    assert!(folds.scans_of(0, cases).unwrap().iter().all(|case| case.patient != "kept"));
}

#[test]
fn folds_that_do_not_fit_the_scans_are_refused() {
    let folds = Folds::deal(&site(), 5, 7).unwrap();
    let mut cases = site();
    let beyond = Err(FoldError::NoSuchFold { fold: 5, last: 4 });
    assert_eq!(folds.leave_out(&mut cases, 5), beyond);
    cases.push(case("a", 91, "new"));
    assert_eq!(folds.leave_out(&mut cases, 0), Err(FoldError::NotDealt { patient: "new".to_owned() }));
    let few = Folds::deal(&site()[..4], 5, 7);
    assert_eq!(few, Err(FoldError::TooFewPatients { patients: 2, folds: 5 }));
}

#[test]
fn the_file_says_the_same_when_it_is_read() {
    let folds = Folds::deal(&site(), 5, 7).unwrap();
    let text = folds.to_toml();
    assert!(text.contains("\"both\"") && text.contains("seed = 7"), "{text}");
    assert_eq!(Folds::parse("folds.toml", &text).unwrap(), folds);
}

#[test]
fn mistakes_in_the_file_are_all_reported_with_their_lines() {
    let text = r#"format = "consilium folds 2"
seed = 7
folds = 2
[[fold]]
dataset = "a"
number = 2
patients = ["p", "q"]
[[fold]]
dataset = "b"
number = 0
patients = ["p"]
[[fold]]
dataset = "b"
number = 1
patients = ["r"]
"#;
    let refused = Folds::parse("folds.toml", text).unwrap_err();
    let lines: Vec<_> = refused.items().iter().map(|item| item.line).collect();
    assert_eq!(lines, [Some(1), Some(6), Some(11)], "{refused}");
}

#[test]
fn a_fold_that_nobody_is_in_is_a_mistake_of_the_file() {
    let text = "format = \"consilium folds 1\"\nseed = 7\nfolds = 3\n\
                [[fold]]\ndataset = \"a\"\nnumber = 0\npatients = [\"p\"]\n\
                [[fold]]\ndataset = \"a\"\nnumber = 2\npatients = []\n";
    let refused = Folds::parse("folds.toml", text).unwrap_err();
    let said: Vec<&str> = refused.items().iter().map(|item| item.problem.problem.as_str()).collect();
    assert_eq!(said, ["no patient is in fold 1", "no patient is in fold 2"]);
}
