//! Each site left out once, as a consortium's operator does it: added, run by one command, and left alone.

use common::ids::Role;

use crate::harness::consortium::{Consortium, Site};
use crate::harness::process::{Process, finish};
use crate::harness::study::NAME;

/// The trainers, and the phantom hospital of each.
const TRAINERS: [(&str, &str); 2] = [("north", "site-a"), ("south", "site-b")];

/// Starts the command that runs all the studies.
fn run_all(consortium: &Consortium) -> Process {
    consortium.begin("cross-site", ["study", "cross-site", "run", NAME, "--sites", "north,south"])
}

/// The sites whose updates made the models of a study, round by round.
fn trained_by(consortium: &Consortium, study: &str) -> Vec<Vec<String>> {
    let rounds = consortium.report(study).rounds;
    rounds.iter().map(|round| round.sites.iter().map(|site| site.as_str().to_owned()).collect()).collect()
}

#[test]
fn each_site_is_left_out_once_and_scored_whoever_is_killed_meanwhile() {
    let mut consortium = Consortium::found("thorax");
    let [north, south] = TRAINERS.map(|(name, hospital)| consortium.member(name, Role::Trainer, hospital));
    let evaluators = TRAINERS
        .map(|(name, hospital)| consortium.member(&format!("{name}-held-out"), Role::Evaluator, hospital));
    consortium.add_studies_without("north,south");
    let _evaluate: Vec<Process> = evaluators.iter().map(Site::run).collect();
    let (mut at_north, mut at_south) = (north.run(), south.run());
    at_north.until_says("study `Small-without-north`: this study leaves north out");
    at_south.until_says("study `Small-without-south`: this study leaves south out");

    // Held open, so that the first study is under way when everything else is killed.
    at_south.pause();
    let mut sequence = run_all(&consortium);
    sequence.until_says("Small-without-north: started");
    sequence.kill();
    let mut said = consortium.crash_coordinator();
    consortium.coordinator.0.until_says("listening");
    let mut sequence = run_all(&consortium);
    at_south.resume();
    sequence.until_says("Small-without-north: finished, scored by north-held-out");
    sequence.until_says("Small-without-south: finished, scored by south-held-out");
    let (code, lines) = sequence.end();

    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("Small-without-north: started")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("Leave one site out: ")), "{lines:#?}");
    assert_eq!(trained_by(&consortium, "Small-without-north"), [["south"]]);
    assert_eq!(trained_by(&consortium, "Small-without-south"), [["north"]]);
    assert_eq!((north.trainings(), south.trainings()), (vec![1], vec![1]), "one study each");
    said.extend(consortium.coordinator.0.said("Small-without-"));
    let at = |study: &str, what: &str| {
        let wanted = |line: &String| line.contains(study) && line.contains(what);
        said.iter().position(wanted).unwrap_or_else(|| panic!("{study}, {what}: {said:#?}"))
    };
    let first_ended = at("Small-without-north", "\"finished\"");
    assert!(first_ended < at("Small-without-south", "\"round-opened\""), "{said:#?}");

    let shown = finish(north.command(["study", "show"])).ok();
    // Whether north has heard already that it is over is not asked here.
    let says = |study, what| shown.lines().any(|line| line.contains(study) && line.contains(what));
    assert!(says("Small-without-north", "this study leaves north out"), "{shown}");
    assert!(says("Small-without-south", "approved by the policy"), "{shown}");
}

#[test]
fn a_person_cannot_approve_what_leaves_the_hospital_out() {
    let consortium = Consortium::found("thorax");
    let north = consortium.enrol("north", Role::Trainer);
    north.ask_before_studies();
    let added = consortium.add_studies_without("north,south");
    let digest = added.split_whitespace().next().expect("a line for each study");
    assert!(added.contains("without north; north-held-out and the other sites approve"), "{added}");
    let mut at_north = north.run();
    at_north.until_says("study `Small-without-north`: this study leaves north out");

    let told = finish(north.command(["study", "approve", digest]));
    assert_eq!(told.code, Some(77), "{}", told.err);
    let words = "error: this study leaves north out: it is scored there, not trained";
    assert!(told.err.starts_with(words), "{}", told.err);
    let shown = finish(north.command(["study", "show", digest])).ok();
    assert!(shown.contains("without    north\n"), "{shown}");
    at_north.until_says("study `Small-without-south` waits for you");
}
