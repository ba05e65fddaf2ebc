use super::*;
use crate::manifest::{CaseLabels, LabelManifest};
use crate::testing::provenance;

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

fn values(map: &LabelMap) -> Vec<(i32, u8)> {
    let id = |target: Target| match target {
        Target::Drop => 0,
        Target::Class(class) => class.get(),
    };
    map.values.iter().map(|(&value, &target)| (value, id(target))).collect()
}

fn ids(classes: &[ClassId]) -> Vec<u8> {
    classes.iter().map(|class| class.get()).collect()
}

/// Key, targets of raw values 1, 2, 3, … (0 = drop) and loss list, transcribed from specification §3.2.
const SPECIFICATION: &[(&str, &[u8], &[u8])] = &[
    (
        "01",
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
    ),
    ("01_2", &[1, 0, 3, 4, 5, 6, 7, 0, 0, 0, 11, 0, 0, 14], &[1, 3, 4, 5, 6, 7, 11, 14]),
    ("02", &[1, 0, 3, 4, 5, 6, 7, 0, 0, 0, 11, 0, 0, 14], &[1, 3, 4, 5, 6, 7, 11, 14]),
    ("03", &[6], &[6]),
    ("04", &[6, 27], &[6, 27]),
    ("05", &[2, 26, 32], &[2, 3, 26, 32]),
    ("06", &[1, 2, 3, 4, 6, 7, 11, 16, 17], &[1, 2, 3, 4, 6, 7, 11, 16, 17]),
    (
        "07",
        &[6, 1, 3, 2, 7, 4, 5, 11, 14, 18, 19, 12, 20, 21, 23, 24],
        &[6, 1, 3, 2, 7, 4, 5, 11, 14, 18, 19, 12, 13, 20, 21, 23, 24],
    ),
    ("08", &[6, 2, 1, 11], &[6, 2, 3, 1, 11]),
    (
        "09",
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 21, 22],
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 21, 22],
    ),
    ("10_03", &[6, 27], &[6, 27]),
    ("10_06", &[30], &[30]),
    ("10_07", &[11, 28], &[11, 28]),
    ("10_08", &[15, 29], &[15, 29]),
    ("10_09", &[1], &[1]),
    ("10_10", &[31], &[31]),
    ("12", &[6, 21, 16, 2, 0, 0], &[6, 21, 16, 17, 2, 3]),
    ("13", &[6, 2, 1, 11, 8, 9, 7, 4, 5, 12, 13, 25], &[6, 2, 3, 1, 11, 8, 9, 7, 4, 5, 12, 13, 25]),
    ("14", &[11, 11, 28, 28, 28], &[11, 28]),
    (
        "15",
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
    ),
];

#[test]
fn every_data_set_of_the_specification_is_there_as_published() {
    for (key, targets, loss_list) in SPECIFICATION {
        let map = LabelMap::standard(key).unwrap_or_else(|| panic!("no data set has key {key}"));
        let listed: Vec<(i32, u8)> =
            std::iter::once((0, 0)).chain((1..).zip(targets.iter().copied())).collect();
        assert_eq!(values(&map), listed, "values of {key}");
        let Annotated::Always(annotated) = &map.annotated else { panic!("{key} annotates per case") };
        assert_eq!(ids(annotated), *loss_list, "loss list of {key}");
        let evaluation = matches!(*key, "06" | "15");
        assert_eq!(map.purpose == Purpose::Evaluation, evaluation, "purpose of {key}");
    }
    // One more: data already in class ids.
    assert_eq!(LabelMap::standard_names().count(), SPECIFICATION.len() + 1);
}

#[test]
fn special_rules_are_those_of_the_specification() {
    let rules = |key: &str| {
        let map = LabelMap::standard(key).unwrap();
        let folds: Vec<_> = map.folds.iter().map(|fold| (ids(&fold.from), fold.into.get())).collect();
        let masks: Vec<_> =
            map.raw_masks.iter().map(|mask| (mask.class.get(), mask.values.clone())).collect();
        (folds, ids(&map.splits), masks)
    };
    assert_eq!(rules("04"), (vec![(vec![27], 6)], vec![], vec![(27, vec![2])]));
    assert_eq!(rules("05"), (vec![(vec![26, 32], 2)], vec![2], vec![(26, vec![2]), (32, vec![3])]));
    assert_eq!(rules("07"), (vec![], vec![12], vec![]));
    assert_eq!(rules("08"), (vec![], vec![2], vec![]));
    assert_eq!(rules("10_03"), rules("04"));
    assert_eq!(rules("10_07"), (vec![(vec![28], 11)], vec![], vec![(28, vec![2])]));
    assert_eq!(rules("10_08"), (vec![], vec![], vec![]));
    assert_eq!(rules("12"), (vec![], vec![2, 16], vec![]));
    assert_eq!(rules("13"), (vec![], vec![2], vec![]));
    assert_eq!(rules("14"), (vec![(vec![28], 11)], vec![], vec![(28, vec![3, 4, 5])]));
    let vessels = LabelMap::standard("msd-hepatic-vessel").unwrap();
    assert_eq!(vessels.exclusions, [Exclusion { organ: class(15), without: vec![class(29)] }]);

    let (folds, splits, masks) = rules("universal");
    let both = |lesions: &[u8], right| [(lesions.to_vec(), right), (lesions.to_vec(), right + 1)];
    let single = [(vec![27], 6), (vec![28], 11), (vec![31], 18)];
    assert_eq!(folds, [&single[..], &both(&[26, 32], 2), &both(&[30], 16)].concat());
    let own = [26u8, 27, 28, 30, 31, 32].map(|id| (id, vec![i32::from(id)]));
    assert_eq!((splits, masks), (vec![], own.to_vec()));
    assert_eq!(LabelMap::standard("universal").unwrap().exclusions, vessels.exclusions);
}

#[test]
fn every_built_in_map_is_the_same_after_printing_and_parsing() {
    let taxonomy = Taxonomy::standard();
    let mut keys = BTreeSet::new();
    for name in LabelMap::standard_names() {
        let map = LabelMap::standard(name).unwrap();
        assert_eq!(LabelMap::parse("t", &map.to_toml(&taxonomy), &taxonomy).unwrap(), map, "{name}");
        assert!(keys.insert(map.key), "{name} has the key of another");
    }
}

#[test]
fn a_value_that_is_not_listed_has_no_target() {
    let map = LabelMap::standard("ct-org").unwrap();
    assert_eq!(
        [0, 5, 1, 7, -1].map(|v| map.target(v)),
        [Some(Target::Drop), Some(Target::Drop), Some(Target::Class(class(6))), None, None]
    );
}

#[test]
fn the_annotated_classes_of_a_case_come_from_the_case_or_the_data_set() {
    let taxonomy = Taxonomy::standard();
    let lits = LabelMap::standard("lits").unwrap();
    let universal = LabelMap::standard("universal").unwrap();
    let case = BTreeSet::from([class(6)]);
    assert_eq!(lits.annotated_in_case(None, &taxonomy), Ok(BTreeSet::from([class(6), class(27)])));
    assert_eq!(lits.annotated_in_case(Some(&case), &taxonomy), Ok(case.clone()));
    assert_eq!(universal.annotated_in_case(Some(&case), &taxonomy), Ok(case));
    assert_eq!(universal.annotated_in_case(None, &taxonomy), Err(AnnotationError::Unstated));
    let spleen = BTreeSet::from([class(1)]);
    let refused = AnnotationError::Unproducible { class: "Spleen".to_owned() };
    assert_eq!(lits.annotated_in_case(Some(&spleen), &taxonomy), Err(refused));
}

#[test]
fn a_lesion_beside_its_organ_must_be_folded_or_excluded() {
    let text = r#"
name = "mine"
key = "mine"
use = "training"
annotated = ["liver", "liver tumour"]
[values]
1 = "liver"
2 = "liver tumour"
"#;
    let refused = LabelMap::parse("mine.toml", text, &Taxonomy::standard()).unwrap_err();
    insta::assert_snapshot!(refused, @r#"
    mine.toml:8: `values.2`: `Liver Tumor` has values beside those of `Liver`, which it lies in
      allowed: name it in exactly one of a `fold` into `Liver` and an `exclude` of it
    "#);
}

#[test]
fn a_left_organ_without_a_value_is_answered_with_the_split_that_divides_the_right_one() {
    let text = r#"
name = "mine"
key = "mine"
use = "training"
annotated = ["right kidney", "left kidney"]
[values]
1 = "right kidney"
"#;
    let refused = LabelMap::parse("mine.toml", text, &Taxonomy::standard()).unwrap_err();
    insta::assert_snapshot!(refused, @r#"
    mine.toml:5: `annotated`: no value leads to `Left Kidney`
      allowed: a `[[split]]` with `class = "Right Kidney"`, where the values of that one hold both sides
    "#);
    let split = format!("{text}[[split]]\nclass = \"Right Kidney\"\n");
    assert_eq!(LabelMap::parse("mine.toml", &split, &Taxonomy::standard()).unwrap().splits, [class(2)]);
}

#[test]
fn a_lesion_needs_its_rules_whatever_the_cases_annotate() {
    let taxonomy = Taxonomy::standard();
    let mistakes = |rules: &str| {
        let text = format!(
            "name = \"mine\"\nkey = \"mine\"\nuse = \"training\"\nannotated = \"per-case\"\n\
             [values]\n1 = \"right kidney\"\n2 = \"left kidney\"\n3 = \"kidney tumour\"\n{rules}"
        );
        let refused = LabelMap::parse("mine.toml", &text, &taxonomy).err();
        let items = refused.iter().flat_map(|refused| refused.items());
        items.map(|item| item.problem.key.clone()).collect::<Vec<_>>()
    };
    let fold = |into| format!("[[fold]]\nfrom = [\"kidney tumour\"]\ninto = \"{into} kidney\"\n");
    let mask = |class, value| format!("[[mask]]\nclass = \"{class}\"\nvalues = [{value}]\n");
    let (right, left, tumour) = (fold("right"), fold("left"), mask("kidney tumour", "3"));
    assert_eq!(mistakes(""), ["values.3", "values.3"], "each kidney");
    assert_eq!(mistakes(&format!("{right}{tumour}")), ["values.3"], "all tumours in the right one");
    assert_eq!(mistakes(&format!("{right}{left}")), ["fold"], "no tumour would be left");
    assert_eq!(mistakes(&format!("{right}{left}{tumour}")), [""; 0]);
    // These masks say it themselves.
    let kidneys = mask("right kidney", "1, 3") + &mask("left kidney", "2");
    assert_eq!(mistakes(&kidneys), [""; 0]);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = r#"
name = "mine"
key = "mine"
use = "training"
annotated = ["livr", "spleen", "spleen", "pancreas"]

[values]
0 = "liver"
1 = "spleen"
x = "drop"
3 = "stomach"

[[fold]]
from = ["heart"]
into = "liver"

[[split]]
class = "left kidney"

[[mask]]
class = "spleen"
values = [9]
"#;
    let refused = LabelMap::parse("mine.toml", text, &Taxonomy::standard()).unwrap_err();
    insta::assert_snapshot!(refused, @r#"
    mine.toml:5: `annotated`: the taxonomy has no class `livr`
      allowed: did you mean `liver`?
    error: mine.toml:5: `annotated`: `spleen` is named twice
    error: mine.toml:5: `annotated`: no value leads to `Pancreas`
    error: mine.toml:5: `annotated`: leaves out `Liver`, which values lead to
      allowed: name it, or make its values `drop`
    error: mine.toml:5: `annotated`: leaves out `Stomach`, which values lead to
      allowed: name it, or make its values `drop`
    error: mine.toml:8: `values.0`: 0 is background
      allowed: `drop`, or leave it out
    error: mine.toml:10: `values.x`: is not a label value
      allowed: an integer of 32 bits
    error: mine.toml:14: `fold[0].from`: the taxonomy has no class `heart`
    error: mine.toml:18: `split[0].class`: `left kidney`
      allowed: the right one of a left/right pair
    error: mine.toml:22: `mask[0].values`: 9 is not listed under `values`
    "#);
}

#[test]
fn a_key_is_one_that_a_manifest_may_name() {
    let taxonomy = Taxonomy::standard();
    let parsed = |key: &str| {
        let map = LabelMap { key: key.to_owned(), ..LabelMap::standard("lits").unwrap() };
        LabelMap::parse("lits.toml", &map.to_toml(&taxonomy), &taxonomy)
    };
    let refused = parsed("our liver").unwrap_err();
    insta::assert_snapshot!(refused, @r#"
    lits.toml:2: `key`: `our liver`
      allowed: 1 to 60 of letters, digits, `-`, `_` and `.`
    "#);
    let long = "k".repeat(61);
    assert!(["", "Köln", "a/b", &long[..]].iter().all(|key| parsed(key).is_err()));

    let annotated = BTreeSet::from([class(6)]);
    for key in ["our-liver_2.1", &long[1..]] {
        let map = parsed(key).unwrap();
        let case = CaseLabels {
            dataset: &map.key,
            patient: "p1",
            annotated: &annotated,
            present: &annotated,
            pseudo: false,
        };
        let manifest = LabelManifest::count("north".parse().unwrap(), taxonomy.digest(), [case], 1);
        assert!(manifest.checked().is_ok(), "{key}");
    }
}

#[test]
fn the_digest_follows_what_the_map_does_and_not_its_name() {
    let map = LabelMap::standard("lits").unwrap();
    let renamed = LabelMap { name: "other".to_owned(), ..map.clone() };
    assert_eq!(renamed.digest(), map.digest());
    let changed = LabelMap { folds: vec![], ..map.clone() };
    assert_ne!(changed.digest(), map.digest());
}

#[test]
fn crop_ratios_are_of_listed_values_and_survive_the_way_to_a_file_and_back() {
    let taxonomy = Taxonomy::standard();
    let map = LabelMap::standard("lits").unwrap();
    assert_eq!(map.crop_ratios, [1, 1, 5]);
    let text = map.to_toml(&taxonomy);
    assert_eq!(LabelMap::parse("lits.toml", &text, &taxonomy).unwrap(), map);

    let refused = |ratios: &str| {
        let text = text.replace("crop_ratios = [1, 1, 5]", &format!("crop_ratios = {ratios}"));
        LabelMap::parse("lits.toml", &text, &taxonomy).unwrap_err().to_string()
    };
    assert!(refused("[1, 1, 5, 1]").contains("3 is not listed under `values`"));
    assert!(refused("[0, 0, 0]").contains("all are 0"));
}

#[test]
fn a_merge_list_names_each_class_once_with_a_value_of_a_byte() {
    let taxonomy = Taxonomy::standard();
    let map = LabelMap::standard("ct-org").unwrap();
    assert_eq!(map.merge[2], (class(21), 2));
    let text = map.to_toml(&taxonomy);
    assert_eq!(LabelMap::parse("ct-org.toml", &text, &taxonomy).unwrap(), map);

    let text = r#"
name = "mine"
key = "mine"
use = "training"
annotated = ["liver"]
merge = [["liver", 0], ["liver", 256], ["heart", 1]]
[values]
1 = "liver"
"#;
    let refused = LabelMap::parse("mine.toml", text, &taxonomy).unwrap_err().to_string();
    for mistake in ["0 is out of range", "`liver` is named twice", "256 is out of range", "no class `heart`"]
    {
        assert!(refused.contains(mistake), "{mistake}: {refused}");
    }
}

#[test]
fn the_provenance_of_pseudo_labels_survives_the_way_to_a_file_and_back() {
    let taxonomy = Taxonomy::standard();
    let map = LabelMap { provenance: Some(provenance()), ..LabelMap::standard("lits").unwrap() };
    let text = map.to_toml(&taxonomy);
    assert_eq!(LabelMap::parse("dataset.toml", &text, &taxonomy).unwrap(), map);

    let wrong = text.replace("threshold = 0.7", "threshold = 1.7");
    let refused = LabelMap::parse("dataset.toml", &wrong, &taxonomy).unwrap_err().to_string();
    assert!(refused.contains("provenance.threshold"), "{refused}");
    let unnamed = text.replace("made_at", "made");
    assert!(LabelMap::parse("dataset.toml", &unnamed, &taxonomy).is_err());
}

#[test]
fn the_hospitals_guide_names_every_key_of_a_label_map() {
    let guide = include_str!("../../../docs/hospital.md");
    let (_, maps) = guide.split_once("For your own numbers write a file").unwrap();
    let (maps, _) = maps.split_once("**`annotated` is the most important line.**").unwrap();
    // Its reader lists all keys to whoever writes another.
    let refused = LabelMap::parse("mine.toml", "nothing = 1\n", &Taxonomy::standard()).unwrap_err();
    let listed = refused.items().iter().find_map(|item| item.problem.problem.split_once("expected one of "));
    let (_, keys) = listed.unwrap();
    let is_named = |key: &&str| {
        let key = key.trim_matches('`');
        maps.contains(&format!("\n{key} = "))
            || maps.contains(&format!("`{key}`"))
            || guide.contains(&format!("[{key}]"))
    };
    let missing: Vec<&str> = keys.split(", ").filter(|key| !is_named(key)).collect();
    assert_eq!(missing, [""; 0]);
}
