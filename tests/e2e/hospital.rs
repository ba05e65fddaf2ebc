//! What a hospital's own people do at the command line: approve a study, look after their scans, label a scan with the
//! model that came of it.

use std::fs;
use std::path::Path;

use common::ids::Role;
use nix::sys::signal::Signal;
use site_agent::data::nifti::{Limits, PlacedBy, read_image, read_labels, write_labels};
use site_agent::data::orientation::Orientation;
use site_agent::egress::Kind;

use crate::harness::consortium::{Consortium, Site};
use crate::harness::process::{Process, command, finish};
use crate::harness::study::NAME;

#[test]
fn a_hospital_that_asks_trains_only_after_a_person_approved_the_study() {
    let mut consortium = Consortium::found("thorax");
    let south = consortium.member("south", Role::Trainer, "site-b");
    consortium.add_study_of(2, 1, 1);
    // The first round is held open, so that the other hospital is there before it ends.
    let at_south = south.run();
    consortium.until_ready(&south);
    at_south.pause();
    consortium.start_study();
    consortium.coordinator.until_study("round-opened", "round 1");

    let north = consortium.member("north", Role::Trainer, "site-a");
    north.ask_before_studies();
    let mut at_north = north.run();
    let told = at_north.until_says("waits for you: `site-agent study show");
    let digest = told.rsplit("study approve ").next().and_then(|end| end.strip_suffix('`'));
    let digest = digest.expect("says what to type");
    at_south.resume();
    consortium.coordinator.until_study("round-committed", "round 1");

    // A round went by. North was connected all the time, and neither trained nor told anybody what it has.
    let shown = finish(north.command(["study", "show"])).ok();
    assert!(shown.contains("undecided"), "{shown}");
    assert_eq!(north.trainings(), [0; 0]);
    assert!(north.left().iter().all(|kind| *kind == Kind::Enrolment), "{:?}", north.left());

    let approved = finish(north.command(["study", "approve", digest])).ok();
    assert!(approved.contains(NAME), "{approved}");
    consortium.coordinator.until_study("finished", "model");
    assert_eq!(north.trainings(), [1]);
    assert!(north.left().contains(&Kind::Update));
    let shown = finish(north.command(["study", "show", digest])).ok();
    assert!(shown.contains("approved by the operator"), "{shown}");

    let report = consortium.report(NAME);
    let sites =
        |round: usize| report.rounds[round].sites.iter().map(|site| site.as_str()).collect::<Vec<_>>();
    assert_eq!((sites(0), sites(1)), (vec!["south"], vec!["north", "south"]));
}

/// Ends the agent as its operator would; what still waits for a decision, by its status.
fn waiting_at_the_end(site: &Site, agent: Process) -> usize {
    agent.signal(Signal::SIGTERM);
    let (code, said) = agent.end();
    assert_eq!(code, Some(0), "{said:#?}");
    let shown = finish(site.command(["status", "--json"])).ok();
    let status: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    status["status"]["waiting_for_approval"].as_array().expect("a list").len()
}

#[test]
fn a_study_that_was_aborted_no_longer_waits_for_a_person() {
    let mut consortium = Consortium::found("thorax");
    // An evaluator has no scans to count, and is asked all the same.
    let [here, away] = ["here", "away"].map(|name| consortium.enrol(name, Role::Evaluator));
    consortium.add_study_of(1, 1, 1);
    for site in [&here, &away] {
        site.ask_before_studies();
    }
    let (mut at_here, mut at_away) = (here.run(), away.run());
    at_here.until_says("waits for you");
    at_away.until_says("waits for you");
    assert_eq!(waiting_at_the_end(&away, at_away), 1);

    consortium.operate(["study", "abort", NAME]).ok();
    at_here.until_says("the study is over");
    assert_eq!(waiting_at_the_end(&here, at_here), 0);
    let mut at_away = away.run();
    at_away.until_says("the study is over");
    assert_eq!(waiting_at_the_end(&away, at_away), 0);

    // Who comes after it is asked only about the study that came after it.
    let late = consortium.enrol("late", Role::Evaluator);
    late.ask_before_studies();
    let mut at_late = late.run();
    consortium.coordinator.until_connected("late");
    consortium.add_study_of(2, 1, 1);
    at_late.until_says("waits for you");
    assert_eq!(waiting_at_the_end(&late, at_late), 1);
}

#[test]
fn an_evaluator_does_not_keep_the_model_of_every_round() {
    const ROUNDS: u32 = 5;
    let mut consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    let judge = consortium.member("judge", Role::Evaluator, "site-c");
    consortium.add_study_scored_each_round(ROUNDS);
    let mut at_judge = judge.run();
    consortium.coordinator.until_connected("judge");
    consortium.start_study();
    let _at_north = north.run();
    for round in 1..=ROUNDS {
        at_judge.until_says(&format!("round {round}: the coordinator has the evaluation report"));
    }
    let kept = fs::read_dir(judge.path("state/artifacts")).expect("the agent made it").flatten();
    let kept = kept.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "data")).count();
    // The embeddings, the newest model that was scored, and one that comes.
    assert!((2..=3).contains(&kept), "{kept}");
}

#[test]
fn predicted_labels_lie_exactly_where_the_scan_lies() {
    let mut consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    consortium.add_study_of(1, 1, 1);
    consortium.start_study();
    let mut agent = north.run();
    consortium.coordinator.until_study("finished", "model");
    agent.until_says("its last model, of round 1, is here");

    // No two axes have as many voxels or voxels of the same size, and none is where R, A or S would have it.
    let data = consortium.path("scans");
    let out = data.to_str().expect("a plain name");
    let phantom = ["phantom", "--hospital", "site-c", "--cases", "1", "--spacing", "11,13,9", "--out", out];
    finish(command("site-agent", phantom)).ok();
    let scan = data.join("digestive/case-0000/ct.nii.gz");
    let predicted = consortium.path("predicted");
    let mut predict = north.command(["predict"]);
    predict.arg(&scan).arg("--out").arg(&predicted);
    let told = finish(predict);
    let model = consortium.report(NAME).study.model;
    let last = format!("using the model of round 1 of 1, {model}, the last of the study");
    assert!(told.err.contains(&last), "{}", told.err);
    let said = told.ok();

    let labels = predicted.join("ct-labels.nii.gz");
    assert_eq!(said, format!("[1/1] {} -> {}\n", scan.display(), labels.display()));
    let image = read_image(&scan, &Limits::default()).expect("a phantom");
    let placed_by = read_image(&labels, &Limits::default()).expect("written just now").placed_by;
    let labels = read_labels(&labels, &Limits::default()).expect("written just now");
    let orientation = |affine| Orientation::of(affine).to_string();
    assert_eq!(orientation(&image.volume.grid().affine), "ARI");
    assert_eq!(orientation(&labels.grid().affine), "ARI");
    assert_eq!(labels.grid(), image.volume.grid(), "shape and affine, to the bit");
    assert_eq!((placed_by, image.placed_by), (PlacedBy::Sform, PlacedBy::Sform));
}

/// Gives one voxel of a label file a value that no label map lists.
fn mislabel(labels: &Path) {
    let read = read_labels(labels, &Limits::default()).expect("a phantom");
    let mut raw = read.map(|value| u8::try_from(*value).expect("phantoms have few"));
    raw.voxels_mut()[0] = 77;
    write_labels(labels, &raw).expect("the folder is ours");
}

#[test]
fn check_names_each_file_that_is_wrong_and_says_what_is_wrong_with_it() {
    let consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    let told = finish(north.command(["check"])).ok();
    assert!(!told.contains("WRONG") && told.contains("2 scans are readable"), "{told}");
    assert!(told.contains("welcomed by `thorax` as trainer `north`"), "{told}");

    mislabel(&north.path("data/upper-abdomen/case-0000/labels.nii.gz"));
    fs::write(north.path("data/upper-abdomen/case-0001/ct.nii.gz"), "no scan").expect("the phantom is there");
    let told = finish(north.command(["check"]));

    assert_eq!(told.code, Some(64));
    assert!(told.err.contains("error: 2 of "), "{}", told.err);
    let wrong: Vec<_> = told.out.lines().filter(|line| line.starts_with("WRONG")).collect();
    let [labels, scan] = wrong[..] else { panic!("{}", told.out) };
    assert!(labels.contains("case-0000") && labels.contains("labels.nii.gz"), "{labels}");
    assert!(labels.contains("value 77 (1 voxels): the label map lists no such value"), "{labels}");
    assert!(scan.contains("case-0001/ct.nii.gz: ") && scan.contains("not a NIfTI file"), "{scan}");
    assert!(told.out.contains("welcomed by"), "it goes on after a mistake: {}", told.out);
}

#[test]
fn a_log_on_a_full_disk_changes_no_exit_code() {
    let full = || fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut check = command("site-agent", ["check", "--config", "nowhere/site.toml"]);
    check.env("CONSILIUM_LOG", "trace").stdout(full()).stderr(full());
    assert_eq!(check.status().expect("the program starts").code(), Some(64));
}
