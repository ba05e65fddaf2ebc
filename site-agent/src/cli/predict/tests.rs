use common::study::sections::Upsampling;
use common::testing::example_study;
use nalgebra::{Matrix4, Vector4};

use super::*;
use crate::data::fixtures::forget_orientation;
use crate::data::geometry::Affine;
use crate::data::nifti::{read_labels, write_image_i16};
use crate::data::preprocess::Preprocessing;
use crate::data::volume::Grid;
use crate::infer::InferError;
use crate::infer::testing::Bright;

const LIVER: Bright = Bright(&[6]);

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

fn wanted(taxonomy: &Taxonomy) -> Wanted<'_> {
    let settings = InferenceSettings {
        preprocessing: Preprocessing::default(),
        window: [16; 3],
        overlap: 0.5,
        window_batch: 1,
        threshold: 0.5,
        upsampling: Upsampling::Nearest,
        postprocessing: PostProcess::Reference.rules(taxonomy),
    };
    Wanted {
        settings,
        taxonomy,
        table: merge_table("lits", false, taxonomy).unwrap(),
        masks: vec![class(6)],
        probabilities: vec![class(6), class(27)],
        assume_hounsfield: true,
        assume_orientation: false,
    }
}

/// A bright box in a darker body.
fn write_scan(path: &Path) {
    let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(-1.5, -1.5, 1.5, 1.0))).unwrap();
    let inside = |index: [usize; 3]| (0..3).all(|axis| (4..12 - axis).contains(&index[axis]));
    let grid = Grid { shape: [20, 18, 16], affine };
    let scan = Volume::from_fn(grid, |index| if inside(index) { 200 } else { -100 });
    write_image_i16(path, &scan).unwrap();
}

#[test]
fn a_bad_scan_is_counted_and_the_others_are_labelled_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let scans = ["good.nii.gz", "bad.nii.gz", "missing.nii", "last.nii"].map(|name| folder.path().join(name));
    write_scan(&scans[0]);
    std::fs::write(&scans[1], "no gzip").unwrap();
    write_scan(&scans[3]);
    let (taxonomy, results) = (Taxonomy::standard(), tempfile::tempdir().unwrap());
    let wanted = wanted(&taxonomy);
    let outputs = outputs(&scans, results.path(), &wanted.ends()).unwrap();
    let tally = wanted.label_all(&scans, &outputs, &LIVER, &Cancel::default());
    assert_eq!(tally, Tally { labelled: 2, failed: 2 });

    let all = std::fs::read_dir(results.path()).unwrap();
    let mut names: Vec<String> =
        all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let of = |name: &str| {
        let ends = [
            "labels.ctbl",
            "labels.label.txt",
            "labels.nii.gz",
            "mask-liver.nii.gz",
            "preview.png",
            "probability-liver-tumor.nii.gz",
            "probability-liver.nii.gz",
        ];
        ends.map(|end| format!("{name}-{end}"))
    };
    assert_eq!(names, [of("good"), of("last")].concat());
}

#[test]
fn a_scan_without_orientation_is_not_labelled_unless_it_is_vouched_for() {
    let folder = tempfile::tempdir().unwrap();
    let scan = folder.path().join("ct.nii");
    write_scan(&scan);
    forget_orientation(&scan);
    let taxonomy = Taxonomy::standard();
    let mut wanted = wanted(&taxonomy);
    let outputs = outputs(std::slice::from_ref(&scan), folder.path(), &wanted.ends()).unwrap();
    let refused = CliError::new(wanted.read(&scan).unwrap_err()).text();
    assert!(refused.starts_with("error: case `ct.nii`: the file has no orientation"), "{refused}");
    assert!(refused.contains("\n\nhint: ") && refused.contains("--assume-orientation"), "{refused}");
    let label = |wanted: &Wanted<'_>| {
        wanted.label_all(std::slice::from_ref(&scan), &outputs, &LIVER, &Cancel::default())
    };
    assert_eq!(label(&wanted), Tally { labelled: 0, failed: 1 });

    wanted.assume_orientation = parse(&["--assume-orientation"]).unwrap().assume_orientation;
    assert_eq!(label(&wanted), Tally { labelled: 1, failed: 0 });
}

/// Asks to stop as Ctrl-C does, while it looks at its first window.
struct Interrupted<'a>(&'a Cancel);

impl Predictor for Interrupted<'_> {
    fn classes(&self) -> usize {
        LIVER.classes()
    }

    fn logits(&self, _: &[f32], _: [usize; 3]) -> Result<Vec<f32>, InferError> {
        self.0.cancel();
        Err(InferError::Cancelled)
    }
}

#[test]
fn an_interrupted_scan_leaves_no_file_and_the_next_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let scans = ["one.nii", "two.nii"].map(|name| folder.path().join(name));
    scans.iter().for_each(|scan| write_scan(scan));
    let (taxonomy, results) = (Taxonomy::standard(), tempfile::tempdir().unwrap());
    let wanted = wanted(&taxonomy);
    let outputs = outputs(&scans, results.path(), &wanted.ends()).unwrap();
    let cancel = Cancel::default();
    let tally = wanted.label_all(&scans, &outputs, &Interrupted(&cancel), &cancel);
    assert_eq!(tally, Tally { labelled: 0, failed: 0 });
    assert_eq!(std::fs::read_dir(results.path()).unwrap().count(), 0);
}

#[test]
fn masks_labels_and_probabilities_of_a_scan_agree() {
    let folder = tempfile::tempdir().unwrap();
    let scan = folder.path().join("ct.nii.gz");
    write_scan(&scan);
    let taxonomy = Taxonomy::standard();
    let wanted = wanted(&taxonomy);
    let outputs = outputs(std::slice::from_ref(&scan), folder.path(), &wanted.ends()).unwrap();
    let tally = wanted.label_all(&[scan], &outputs, &LIVER, &Cancel::default());
    assert_eq!(tally, Tally { labelled: 1, failed: 0 });

    let labels = |end: &str| read_labels(&outputs[0].file(end), &Limits::default()).unwrap();
    let (merged, mask) = (labels(LABELS), labels("-mask-liver.nii.gz"));
    // In LiTS the liver is value 1.
    assert_eq!(merged, mask);
    assert_eq!(mask.voxels().iter().filter(|&&voxel| voxel == 1).count(), 8 * 7 * 6);
    let file = outputs[0].file("-probability-liver.nii.gz");
    let sure = read_image(&file, &Limits::default()).unwrap().volume;
    assert!(sure.voxels().iter().zip(mask.voxels()).all(|(p, inside)| (*p > 0.5) == (*inside == 1)));
}

#[test]
fn a_data_set_or_class_that_nobody_knows_is_refused_with_what_is_known() {
    let taxonomy = Taxonomy::standard();
    let refused = merge_table("lit", false, &taxonomy).unwrap_err().text();
    assert!(refused.contains("`lit`") && refused.contains("lits"), "{refused}");
    let refused = chosen_classes(&["livr".to_owned()], &taxonomy).unwrap_err().text();
    assert!(refused.contains("did you mean `liver`"), "{refused}");
}

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: PredictArgs,
}

fn parse(more: &[&str]) -> Result<PredictArgs, clap::Error> {
    let words = ["predict", "ct.nii", "--out", "o"].into_iter().chain(more.iter().copied());
    <Command as clap::Parser>::try_parse_from(words).map(|command| command.args)
}

#[test]
fn classes_are_named_only_where_something_is_written_for_each() {
    let named = |more: &[&str]| parse(&[["--classes", "liver,spleen"].as_slice(), more].concat());
    assert!(named(&[]).is_err(), "the label file has all classes: nothing would come of it");
    for more in [["--masks"].as_slice(), &["--probabilities"], &["--masks", "--probabilities"]] {
        assert_eq!(named(more).unwrap().classes, ["liver", "spleen"]);
    }
}

#[test]
fn windows_overlap_as_the_study_says_unless_told_otherwise() {
    let document = example_study();
    let settings = |more: &[&str]| Wanted::of(&parse(more).unwrap(), document.study(), 4).unwrap().settings;
    assert_eq!(settings(&[]).overlap, document.study().evaluation.overlap);
    assert_eq!(settings(&["--overlap", "0.75"]).overlap, 0.75);
    assert_eq!(settings(&["--overlap", "0"]).overlap, 0.0);
    assert_eq!(settings(&[]).window_batch, 4);
    for outside in ["--overlap=-0.1", "--overlap=0.95", "--overlap=nan"] {
        let refused = parse(&[outside]).unwrap_err().to_string();
        assert!(refused.contains("0 to 0.9"), "{refused}");
    }
    assert!(parse(&["--overlap", "half"]).is_err());
}

#[test]
fn the_mask_of_no_class_overwrites_that_of_another() {
    let organ = |id, name| format!("[[class]]\nid = {id}\nname = \"{name}\"\nkind = \"organ\"\n");
    let tumour = "[[class]]\nid = 4\nname = \"Liver Tumor\"\nkind = \"tumour\"\nparents = [1]\n";
    let organs = [organ(1, "Liver"), organ(2, "Prostate/Uterus"), organ(3, "Prostate Uterus")].concat();
    let taxonomy = Taxonomy::parse("own.toml", &format!("{organs}{tumour}")).unwrap();
    let wanted = wanted(&taxonomy);
    let ends = [1, 2, 3].map(|id| wanted.mask_end(class(id)));
    let expected = ["-mask-liver.nii.gz", "-mask-prostate-uterus.nii.gz", "-mask-prostate-uterus-2.nii.gz"];
    assert_eq!(ends, expected);
}

#[test]
fn classes_are_found_by_name_and_number_and_written_once() {
    let names = ["spleen", "27", "Liver_Tumour"].map(str::to_owned);
    assert_eq!(chosen_classes(&names, &Taxonomy::standard()).unwrap(), [class(1), class(27)]);
    assert_eq!(chosen_classes(&[], &Taxonomy::standard()).unwrap().len(), 32);
}

#[test]
fn known_data_sets_are_written_in_the_ids_of_the_studys_own_taxonomy() {
    let text = "[[class]]\nid = 1\nname = \"Liver Tumor\"\nkind = \"tumour\"\nparents = [2]\n\n[[class]]\nid = 2\nname = \"Liver\"\nkind = \"organ\"\n";
    let taxonomy = Taxonomy::parse("own.toml", text).unwrap();
    let table = merge_table("lits", false, &taxonomy).unwrap();
    assert_eq!(table.pairs(), [(class(2), 1), (class(1), 2)]);
}

#[test]
fn a_data_set_is_written_without_the_classes_that_the_study_lacks() {
    let organ = |id, name| format!("[[class]]\nid = {id}\nname = \"{name}\"\nkind = \"organ\"\n");
    let taxonomy = Taxonomy::parse("own.toml", &[organ(1, "Heart"), organ(2, "Liver")].concat()).unwrap();
    assert_eq!(merge_table("lits", false, &taxonomy).unwrap().pairs(), [(class(2), 1)]);

    // A map of the site's own, in the standard words and in the study's.
    let folder = tempfile::tempdir().unwrap();
    let own = |values: &str| {
        let file = folder.path().join("ours.toml").display().to_string();
        let text = format!(
            "name = \"Ours\"\nkey = \"ours\"\nuse = \"training\"\nannotated = \"per-case\"\n[values]\n{values}"
        );
        std::fs::write(&file, text).unwrap();
        merge_table(&file, false, &taxonomy).map_err(|error| error.text())
    };
    let standard = own("0 = \"drop\"\n4 = \"spleen\"\n5 = \"liver\"\n").unwrap();
    assert_eq!(standard.pairs(), [(class(2), 5)]);
    let study = own("0 = \"drop\"\n4 = \"heart\"\n5 = \"liver\"\n").unwrap();
    assert_eq!(study.pairs(), [(class(1), 4), (class(2), 5)]);
    let refused = own("0 = \"drop\"\n4 = \"hart\"\n").unwrap_err();
    assert!(refused.contains("did you mean `heart`"), "{refused}");
    let refused = own("0 = \"drop\"\n4 = \"spleen\"\n").unwrap_err();
    assert!(refused.contains("the study has none of the classes"), "{refused}");
}
