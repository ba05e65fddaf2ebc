use std::cell::RefCell;
use std::fs;

use common::ids::{ArtifactHash, ClassId, Digest};
use common::report::CaseOutcome;
use common::testing::example_study;
use tempfile::TempDir;

use super::*;
use crate::data::dataset::CASES_FILE;
use crate::data::preprocess::Preprocessing;
use crate::infer::evaluate::ScanScores;
use crate::phantom::{HOSPITALS, write_hospital};

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: EvaluateArgs,
}

/// A site with three small phantoms that are fully labelled, and a study.
struct Site {
    folder: TempDir,
    config: SiteConfig,
}

impl Site {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let datasets = write_hospital(folder.path(), &HOSPITALS[3], 1, 3, Some([8.0; 3])).unwrap();
        let mut text =
            "coordinator = \"c.example.org:443\"\nidentity = \"identity\"\nstate = \"state\"\npolicy = \
                        \"policy.toml\"\n"
                .to_owned();
        for dataset in datasets {
            let (name, below) = (dataset.name, dataset.folder.display().to_string());
            text.push_str(&format!("[[dataset]]\nname = \"{name}\"\nfolder = \"{below}\"\n"));
        }
        let file = folder.path().join("site.toml");
        fs::write(&file, text).unwrap();
        fs::write(folder.path().join("study.json"), example_study().bytes()).unwrap();
        let config = SiteConfig::read(&file).unwrap();
        Self { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The baseline learns from training scans, and stops at one that cannot be read.
    fn keep_from_training(&self, scan: &str) {
        let (dataset, case) = scan.split_once('/').unwrap();
        let file = self.path(dataset).join(CASES_FILE);
        let others = fs::read_to_string(&file).unwrap_or_default();
        fs::write(file, format!("{others}[{case}]\nsplit = \"validation\"\n")).unwrap();
    }

    /// The arguments that score where structures lie on average, which takes no model.
    fn args(&self, out: &str, against: Option<&str>) -> EvaluateArgs {
        let paths = [self.path("study.json"), self.path("site.toml"), self.path(out)];
        let [study, site, out] = paths.map(|path| path.display().to_string());
        let mut words = vec![
            "evaluate",
            "--study",
            study.as_str(),
            "--location-only",
            site.as_str(),
            "--out",
            out.as_str(),
        ];
        let against = against.map(|earlier| self.path(earlier).display().to_string());
        words.extend(against.iter().flat_map(|file| ["--against", file.as_str()]));
        <Command as clap::Parser>::try_parse_from(words).unwrap().args
    }

    fn evaluate(&self, out: &str, against: Option<&str>) -> Result<(), CliError> {
        evaluate(&self.args(out, against), &self.config, &Cancel::default())
    }

    /// Goes through the scans with a score for each that nobody measured, and is asked to stop in the midst of the one of this number.
    /// Names the scans that were begun.
    fn score(
        &self,
        out: &str,
        model: &str,
        stopped_in: Option<usize>,
    ) -> Result<(Record, Vec<String>), CliError> {
        let document = example_study();
        let cases = self.config.read_cases(&document.study().taxonomy).unwrap();
        let cases: Vec<&Case> = cases.iter().collect();
        let out = self.path(out);
        files::make_private_folder(&out).unwrap();
        let (cancel, begun) = (Cancel::default(), RefCell::new(Vec::new()));
        let score = |case: &Case| {
            let mut begun = begun.borrow_mut();
            begun.push(case.name.clone());
            if stopped_in == Some(begun.len()) {
                cancel.suspend();
                return Err(InferError::Cancelled);
            }
            let dice = 1.0 / case.name.bytes().map(f64::from).sum::<f64>();
            let outcome = CaseOutcome::Present { dice, nsd: dice / 3.0, predicted_ml: 0.1, voxels: None };
            Ok(ScanScores::from([(ClassId::new(6).unwrap(), outcome)]))
        };
        let model = ArtifactHash(Digest::of(model.as_bytes()));
        let scored = in_words(Some(model), PostProcess::Off);
        let scoring = Scoring {
            site: "held-out".parse().unwrap(),
            document: &document,
            basis: Basis::new(scored, Some(model), None, document.digest()),
            preprocessing: Preprocessing::default(),
            cases: &cases,
            out: Some(&out),
            cancel: &cancel,
        };
        let record = scoring.run(&score, None)?;
        Ok((record, begun.take()))
    }
}

#[test]
fn an_evaluation_leaves_every_score_a_board_and_what_a_later_one_can_be_compared_with() {
    let site = Site::make();
    site.evaluate("first", None).unwrap();

    let record = Record::read(&site.path("first/evaluation.json")).unwrap();
    assert_eq!(record.scans.len(), 3);
    assert_eq!(record.agreements(ClassId::new(6).unwrap()).count(), 3, "every phantom has a liver");
    let scores: usize = record.scans.iter().map(|scan| scan.classes.len()).sum();
    let csv = fs::read_to_string(site.path("first/scores.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + scores);
    let board = fs::read_to_string(site.path("first/board.html")).unwrap();
    assert!(board.contains(">Liver</text>") && !board.contains("scan by scan"), "{board}");

    site.evaluate("second", Some("first/evaluation.json")).unwrap();
    let board = fs::read_to_string(site.path("second/board.html")).unwrap();
    assert!(board.contains("scan by scan") && board.contains("<td>+0.000 to +0.000</td>"), "{board}");
    assert_eq!(fs::read_to_string(site.path("second/scores.csv")).unwrap(), csv);
}

#[test]
fn an_evaluation_of_other_scans_is_refused_before_any_is_scored() {
    let site = Site::make();
    site.evaluate("first", None).unwrap();
    let record = Record::read(&site.path("first/evaluation.json")).unwrap();
    let gone = &record.scans[0].scan;
    fs::remove_dir_all(site.path(gone)).unwrap();

    let refused = site.evaluate("second", Some("first/evaluation.json")).unwrap_err().text();
    assert!(refused.contains(&format!("it alone has `{gone}`")) && refused.contains("hint: "), "{refused}");
    assert!(!site.path("second").exists());
}

#[test]
fn a_scan_that_cannot_be_read_is_named_and_the_others_are_scored() {
    let site = Site::make();
    site.evaluate("first", None).unwrap();
    let record = Record::read(&site.path("first/evaluation.json")).unwrap();
    assert_eq!(record.unscored, [""; 0]);
    let bad = record.scans[1].scan.as_str();
    site.keep_from_training(bad);
    let ct = site.path(bad).join("ct.nii.gz");
    let mended = fs::read(&ct).unwrap();
    fs::write(&ct, "no scan").unwrap();

    let told = site.evaluate("second", None).unwrap_err().text();
    assert!(told.starts_with("error: 1 of 3 scans were not scored\n\nhint: "), "{told}");
    let second = Record::read(&site.path("second/evaluation.json")).unwrap();
    assert_eq!((second.scans.len(), second.unscored.as_slice()), (2, &[bad.to_owned()][..]));
    assert!(second.scans.iter().all(|scan| !scan.classes.is_empty()), "no score is under another's name");
    let board = fs::read_to_string(site.path("second/board.html")).unwrap();
    assert!(board.contains("<p>2 scans of this site"), "{board}");
    assert!(board.contains(&format!("<p>Not scored, and in no figure: {bad}.</p>")), "{board}");

    let refused = site.evaluate("third", Some("second/evaluation.json")).unwrap_err().text();
    assert!(refused.contains(&format!("it lacks `{bad}`")), "{refused}");

    // Mended, it is scored by the same command.
    fs::write(&ct, mended).unwrap();
    site.evaluate("second", None).unwrap();
    let record = Record::read(&site.path("second/evaluation.json")).unwrap();
    assert_eq!((record.scans.len(), record.unscored.len()), (3, 0));
}

#[test]
fn an_evaluation_without_a_score_leaves_no_figure() {
    let site = Site::make();
    site.evaluate("first", None).unwrap();
    for scan in Record::read(&site.path("first/evaluation.json")).unwrap().scans {
        site.keep_from_training(&scan.scan);
        fs::write(site.path(&scan.scan).join("ct.nii.gz"), "no scan").unwrap();
    }
    let told = site.evaluate("second", None).unwrap_err().text();
    assert!(told.starts_with("error: 3 of 3 scans were not scored"), "{told}");
    assert_eq!(fs::read_dir(site.path("second")).unwrap().count(), 0);
}

#[test]
fn what_was_scored_before_a_stop_is_kept_and_the_same_command_goes_on() {
    let site = Site::make();
    let (whole, all) = site.score("whole", "a model", None).unwrap();
    assert_eq!((whole.scans.len(), whole.to_come.len()), (3, 0));

    let (partial, begun) = site.score("parts", "a model", Some(3)).unwrap();
    assert_eq!((&begun, partial.scans.len(), partial.to_come.as_slice()), (&all, 2, &all[2..]));
    let file = site.path("parts/evaluation.json");
    assert_eq!(Record::read(&file).unwrap(), partial, "and so it is where the process was killed");

    let document = example_study();
    let taxonomy = &document.study().taxonomy;
    let board = Board { record: &partial, comparison: None, taxonomy, positive_ml: 0.0 };
    write(&site.path("parts"), &board).unwrap();
    let page = fs::read_to_string(site.path("parts/board.html")).unwrap();
    assert!(page.contains("<h1>Partial evaluation of model"), "{page}");
    assert!(!site.path("parts/scores.csv").exists());
    let told = site.args("parts", None).whole(&partial).unwrap_err();
    assert!(told.text().starts_with("error: interrupted: 2 of 3 scans are scored\n\nhint: "), "{told:?}");

    let (ended, begun) = site.score("parts", "a model", None).unwrap();
    assert_eq!((ended, begun.as_slice()), (whole, &all[2..]));
    let (_, begun) = site.score("parts", "a model", None).unwrap();
    assert!(begun.is_empty(), "{begun:?}");
}

#[test]
fn what_a_folder_holds_of_another_evaluation_is_not_overwritten() {
    let site = Site::make();
    let (record, all) = site.score("scores", "a model", None).unwrap();
    let file = site.path("scores/evaluation.json");
    let written = fs::read(&file).unwrap();
    let refused = |model: &str, why: &str| {
        let held = fs::read(&file).unwrap();
        let told = site.score("scores", model, None).unwrap_err().text();
        assert!(told.contains("holds another evaluation, which is not overwritten"), "{told}");
        assert!(told.contains(why) && told.contains("hint: name another folder with --out"), "{told}");
        assert_eq!(fs::read(&file).unwrap(), held);
    };
    refused("another model", &format!("it is of {}, study ", record.scored));

    let mut unnoted = record;
    unnoted.scans[1].content = None;
    files::write_json(&file, &unnoted).unwrap();
    refused("a model", "an earlier version wrote it");
    fs::write(&file, &written).unwrap();

    let labels = site.path(&all[0]).join("labels.nii.gz");
    let before = fs::read(&labels).unwrap();
    fs::copy(site.path(&all[1]).join("labels.nii.gz"), &labels).unwrap();
    refused("a model", &format!("`{}` has changed since it was scored", all[0]));
    fs::write(&labels, before).unwrap();

    fs::remove_dir_all(site.path(&all[2])).unwrap();
    refused("a model", &format!("it is of other scans: it alone has `{}`", all[2]));
}

#[test]
fn the_whole_command_given_again_leaves_the_same_board() {
    let site = Site::make();
    site.evaluate("scores", None).unwrap();
    let files = ["evaluation.json", "scores.csv", "board.html"].map(|name| site.path("scores").join(name));
    let first = files.each_ref().map(|file| fs::read(file).unwrap());
    site.evaluate("scores", None).unwrap();
    assert!(first == files.each_ref().map(|file| fs::read(file).unwrap()));

    let stopped = Cancel::default();
    stopped.suspend();
    let told = evaluate(&site.args("scores", None), &site.config, &stopped).unwrap_err().text();
    assert!(told.starts_with("error: interrupted before a scan was scored"), "{told}");
    assert!(first == files.map(|file| fs::read(file).unwrap()));
}
