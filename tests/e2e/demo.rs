//! A demo is a good guest: it ends at once when it cannot succeed or is told to, however it ends nothing that it started
//! runs on, and when it succeeds the report says what it is to show.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::ids::{Role, RoundId, SiteId};
use common::study::sections::Backbone;
use common::testing::shared_dir;
use coordinator::report::ReportData;
use nix::sys::signal::Signal;

use crate::harness::process::{PATIENCE, Process, command};
use crate::harness::study::make_phantoms;

/// Command lines of all processes that name `folder`.
fn processes_in(folder: &Path) -> Vec<String> {
    let listed = fs::read_dir("/proc").expect("Linux").flatten();
    // A process may end while it is looked at.
    let lines = listed.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder.to_str().expect("a plain name"))).collect()
}

/// Waits until no process names `folder` any more. Who was killed is gone soon, but not at once.
fn until_none_runs_in(folder: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let mut left = processes_in(folder);
    while !left.is_empty() {
        assert!(Instant::now() < deadline, "still there: {left:#?}");
        std::thread::yield_now();
        left = processes_in(folder);
    }
}

/// Coarse phantoms of two trainers and a held-out hospital, and a demo of them that takes longer than any test.
struct Coarse {
    folder: tempfile::TempDir,
}

impl Coarse {
    fn make() -> Self {
        let coarse = Self { folder: tempfile::tempdir().expect("a folder") };
        for (site, hospital) in [("hospital-a", "site-a"), ("hospital-b", "site-b")] {
            make_phantoms(&coarse.path("data").join(site), hospital);
        }
        make_phantoms(&coarse.path("held-out"), "site-d");
        coarse
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn demo(&self) -> Command {
        let (data, held_out) = (self.path("data"), self.path("held-out/whole-trunk"));
        let mut demo = command("coordinator", ["demo"]);
        demo.arg("--data").arg(data).arg("--held-out").arg(held_out).arg("--keep").arg(self.path("demo"));
        demo
    }

    /// Starts the demo, and waits until its coordinator and its three sites run and have met.
    fn start(&self) -> Process {
        let mut demo = Process::start("demo", self.demo());
        for site in ["hospital-a", "hospital-b", "held-out"] {
            demo.until_says(&format!("{site}: connected"));
        }
        let running = processes_in(self.folder.path());
        assert_eq!(running.iter().filter(|line| line.contains(" run ")).count(), 4, "{running:#?}");
        demo
    }
}

#[test]
fn a_demo_ends_with_the_words_of_the_site_whose_scans_cannot_be_used() {
    let coarse = Coarse::make();
    let scan = coarse.path("data/hospital-b/kidneys-and-vessels/case-0001/ct.nii.gz");
    fs::write(scan, "no scan").expect("the phantom is there");

    let (code, said) = Process::start("demo", coarse.demo()).end();

    assert_eq!(code, Some(1), "{said:#?}");
    let error = said.iter().find(|line| line.starts_with("error: ")).expect("one reporter of errors");
    assert!(error.starts_with("error: hospital-b: the training scans cannot be used: "), "{error}");
    assert!(error.contains("case-0001"), "{error}");
    assert_eq!(processes_in(coarse.folder.path()), [""; 0]);
}

#[test]
fn an_interrupted_demo_says_where_everything_lies_and_leaves_no_process() {
    let coarse = Coarse::make();
    let demo = coarse.start();

    demo.signal(Signal::SIGINT);

    let (code, said) = demo.end();
    assert_eq!(code, Some(1), "{said:#?}");
    let words = format!("error: interrupted; what there is lies in {}", coarse.path("demo").display());
    assert!(said.contains(&words), "{said:#?}");
    until_none_runs_in(coarse.folder.path());
}

#[test]
fn the_processes_of_a_killed_demo_die_with_it() {
    let coarse = Coarse::make();

    // It cannot end them in order: the kernel has to.
    coarse.start().kill();

    until_none_runs_in(coarse.folder.path());
}

/// Runs a demo to its end, which must be a good one.
fn succeed(demo: Command) {
    let mut demo = Process::start("demo", demo);
    // Each by itself has the patience that a slow machine needs: the evaluation is most of it.
    demo.until_says("finished with model");
    demo.until_says("report: ");
    let (code, said) = demo.end();
    assert_eq!(code, Some(0), "{said:#?}");
}

#[test]
fn a_small_demo_succeeds_and_its_report_shows_scores_coverage_traffic_and_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let keep = folder.path().join("demo");
    let mut demo =
        command("coordinator", ["demo", "--rounds", "1", "--steps", "1", "--cases", "2", "--keep"]);
    demo.arg(&keep);
    succeed(demo);
    assert_eq!(processes_in(folder.path()), [""; 0]);

    let written = fs::read_dir(keep.join("report")).expect("the report").flatten();
    let written: BTreeSet<_> = written.map(|entry| entry.file_name().into_string().expect("plain")).collect();
    assert_eq!(Vec::from_iter(written), ["report.csv", "report.html", "report.json"]);
    let report = fs::read(keep.join("report/report.json")).expect("written");
    let report: ReportData = serde_json::from_slice(&report).expect("a report");
    assert_eq!((report.study.rounds_committed, report.study.state.as_str()), (1, "finished"));
    assert_scored(&report);
    assert_covered(&report);
    let model = fs::metadata(keep.join("model.safetensors")).expect("the initial model").len();
    assert_moved(&report, model);

    let page = fs::read_to_string(keep.join("report/report.html")).expect("written");
    for foreign in ["http://", "https://", "<script", "<img", "<iframe", "@import", "url(", "<link", "src="] {
        assert!(!page.contains(foreign), "the page needs more than itself: {foreign}");
    }
    assert_pictures(&report, &page, &keep);
}

#[test]
fn a_demo_on_real_ct_trains_what_each_site_labelled_and_scores_what_each_scan_names() {
    let Some(real) = shared_dir() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let keep = folder.path().join("demo");
    let mut demo = command("coordinator", ["demo", "--rounds", "1", "--steps", "1"]);
    demo.arg("--data").arg(real.join("data/federated")).arg("--held-out").arg(real.join("data/cases"));
    demo.arg("--keep").arg(&keep);
    succeed(demo);

    let report = fs::read(keep.join("report/report.json")).expect("written");
    let report: ReportData = serde_json::from_slice(&report).expect("a report");
    assert_eq!((report.study.rounds_committed, report.study.state.as_str()), (1, "finished"));
    let named = |name: &str| report.classes.iter().find(|class| class.name == name).expect(name).class;
    // As `split.json` says.
    let labelled = [
        ("site-a", ["Spleen", "Gall Bladder", "Liver"]),
        ("site-b", ["Right Kidney", "Left Kidney", "Pancreas"]),
        ("site-c", ["Stomach", "Aorta", "Postcava"]),
    ];
    for (site, classes) in labelled {
        let cells = report.coverage.iter().filter(|cell| cell.site.as_str() == site && cell.annotated > 0);
        let annotated: BTreeSet<_> = cells.map(|cell| cell.class).collect();
        assert_eq!(annotated, BTreeSet::from(classes.map(named)), "{site}");
    }
    // As the `labels.json` of each scan says: one is of the thorax.
    let [scores] = report.final_scores()[..] else { panic!("one evaluator: {:#?}", report.scores) };
    let scans_of =
        |name: &str| scores.classes.iter().find(|score| score.class == named(name)).and_then(|score| score.n);
    assert_eq!(["Liver", "Aorta"].map(scans_of), [Some(2), Some(3)]);
}

#[test]
fn a_demo_told_of_classes_in_words_says_so_in_its_report() {
    let coarse = Coarse::make();
    let mut demo = coarse.demo();
    demo.args(["--rounds", "1", "--steps", "1", "--embedding", "minilm"]);
    succeed(demo);

    let report = fs::read(coarse.path("demo/report/report.json")).expect("written");
    let report: ReportData = serde_json::from_slice(&report).expect("a report");
    assert_eq!(report.study.embedding, "imported:minilm-l6-v2");
    assert_eq!(report.final_scores().len(), 1, "the model of 384 numbers a class was scored");
}

#[test]
fn a_demo_trains_and_scores_the_other_network() {
    let coarse = Coarse::make();
    let mut demo = coarse.demo();
    demo.args(["--rounds", "1", "--steps", "1", "--backbone", "swin-unetr"]);
    succeed(demo);

    let model = fs::read(coarse.path("demo/model.safetensors")).expect("the initial model");
    let name = Backbone::SwinUnetr.first_tensor().as_bytes();
    assert!(model.windows(name.len()).any(|bytes| bytes == name), "the model is a transformer");
    let report = fs::read(coarse.path("demo/report/report.json")).expect("written");
    let report: ReportData = serde_json::from_slice(&report).expect("a report");
    assert_eq!(report.study.rounds_committed, 1);
    assert_eq!(report.final_scores().len(), 1, "the trained model was scored");
}

const TRAINERS: [&str; 3] = ["hospital-a", "hospital-b", "hospital-c"];

/// The last model is scored, on all five held-out scans.
fn assert_scored(report: &ReportData) {
    let [scores] = report.final_scores()[..] else { panic!("one evaluator: {:#?}", report.scores) };
    assert_eq!((scores.site.as_str(), scores.round), ("held-out", RoundId(1)));
    let liver = report.classes.iter().find(|class| class.name == "Liver").expect("a class of the demo").class;
    let liver = scores.classes.iter().find(|score| score.class == liver).expect("scored");
    assert_eq!(liver.n, Some(5), "nobody is without");
    assert!(liver.mean_dice.is_some_and(|dice| (0.0..=1.0).contains(&dice)), "{liver:?}");
    assert!(liver.mean_nsd.is_some_and(|nsd| (0.0..=1.0).contains(&nsd)), "{liver:?}");
}

/// Each trainer, and nobody else, says what it annotates; no two say the same.
fn assert_covered(report: &ReportData) {
    let of = |site: &str| {
        let cells = report.coverage.iter().filter(|cell| cell.site.as_str() == site && cell.annotated > 0);
        cells.map(|cell| cell.class).collect::<BTreeSet<_>>()
    };
    assert_eq!(TRAINERS.map(|site| of(site).is_empty()), [false; 3]);
    assert_eq!(BTreeSet::from(TRAINERS.map(of)).len(), 3, "{:#?}", report.coverage);
    assert!(of("held-out").is_empty());
}

/// Weights went both ways at trainers, and to the evaluator, which sends numbers alone.
fn assert_moved(report: &ReportData, model: u64) {
    let sites: Vec<_> = report.sites.iter().map(|site| site.site.as_str()).collect();
    assert_eq!(sites, ["held-out", TRAINERS[0], TRAINERS[1], TRAINERS[2]]);
    for site in &report.sites {
        assert!(site.bytes_received >= model, "{site:?} of {model} bytes");
        match site.role {
            Role::Trainer => assert!(site.bytes_sent >= model / 2, "{site:?} of {model} bytes"),
            Role::Evaluator => assert!((1..model / 2).contains(&site.bytes_sent), "{site:?}"),
        }
    }
}

/// All pictures, and all that the page leads to, are the evaluator's, in its own folder.
fn assert_pictures(report: &ReportData, page: &str, keep: &Path) {
    let own = keep.join("sites/held-out/state/overlays").canonicalize().expect("the evaluator's folder");
    let held_out: SiteId = "held-out".parse().expect("a name");
    for overlay in &report.overlays {
        assert_eq!(overlay.site, held_out);
        let picture =
            keep.join("report").join(&overlay.path).canonicalize().expect("the link leads somewhere");
        assert!(picture.starts_with(&own), "{} lies elsewhere", picture.display());
        assert!(fs::read(&picture).expect("readable").starts_with(b"\x89PNG"), "{}", picture.display());
    }
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split_once('"'));
    let links: BTreeSet<_> = links.map(|(link, _)| link).filter(|link| !link.starts_with('#')).collect();
    let pictures: BTreeSet<_> = report.overlays.iter().map(|overlay| overlay.path.as_str()).collect();
    assert!(!pictures.is_empty());
    assert_eq!(links, pictures);
}
