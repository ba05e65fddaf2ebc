use std::fs;

use common::ids::ClassId;
use common::testing::example_study;
use tempfile::TempDir;

use super::*;
use crate::data::dataset::CASES_FILE;
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

    /// Scores where structures lie on average, which takes no model.
    fn evaluate(&self, out: &str, against: Option<&str>) -> Result<(), CliError> {
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
        let command = <Command as clap::Parser>::try_parse_from(words).unwrap();
        evaluate(&command.args, &self.config)
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
    fs::write(site.path(bad).join("ct.nii.gz"), "no scan").unwrap();

    let told = site.evaluate("second", None).unwrap_err().text();
    assert!(told.starts_with("error: 1 of 3 scans were not scored\n\nhint: "), "{told}");
    let record = Record::read(&site.path("second/evaluation.json")).unwrap();
    assert_eq!((record.scans.len(), record.unscored.as_slice()), (2, &[bad.to_owned()][..]));
    assert!(record.scans.iter().all(|scan| !scan.classes.is_empty()), "no score is under another's name");
    let board = fs::read_to_string(site.path("second/board.html")).unwrap();
    assert!(board.contains("<p>2 scans of this site"), "{board}");
    assert!(board.contains(&format!("<p>Not scored, and in no figure: {bad}.</p>")), "{board}");

    let refused = site.evaluate("third", Some("second/evaluation.json")).unwrap_err().text();
    assert!(refused.contains(&format!("it lacks `{bad}`")), "{refused}");
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
