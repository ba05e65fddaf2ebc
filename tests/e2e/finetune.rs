//! A trained model for the classes of another task: at one hospital alone, and as a study of a consortium.

use std::fs;
use std::process::Command;

use common::ids::Role;
use common::study::StudyDocument;
use nix::sys::signal::Signal;

use crate::harness::consortium::{Consortium, Site};
use crate::harness::process::{Process, finish};
use crate::harness::study::{NAME, TwoClasses};

fn finetune(site: &Site, files: &TwoClasses) -> Command {
    let mut command = site.command(["finetune"]);
    command.arg("--study").arg(&files.study).arg("--taxonomy").arg(&files.classes);
    command.arg("--model").arg(&files.model).arg("--embeddings").arg(&files.embeddings);
    command.arg("--out").arg(site.path("tuned.safetensors"));
    command
}

/// What tuning said that was interrupted after its first round. `None` where this test was so slow that it came to its end: then
/// it has yet to begin.
fn interrupted(site: &Site, files: &TwoClasses) -> Option<Vec<String>> {
    let mut tuning = Process::start("finetune", finetune(site, files));
    tuning.until_says("round 1 of 4");
    tuning.signal(Signal::SIGINT);
    let (code, said) = tuning.end();
    if code == Some(0) {
        fs::remove_file(site.path("tuned.safetensors")).expect("it has tuned the model");
        return None;
    }
    assert_eq!(code, Some(1), "{said:#?}");
    Some(said)
}

#[test]
fn one_hospital_tunes_a_model_for_other_classes_with_an_interruption() {
    let consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    let files = consortium.adapt_to_two_classes(4, 8);
    let ledger = || fs::read(north.path("state/egress.jsonl")).expect("enrolment is in it");
    let left_before = ledger();

    let said = (0..5).find_map(|_| interrupted(&north, &files));
    let said = said.expect("one of five interruptions is not too late");
    assert!(said.iter().any(|line| line.contains("the same command goes on from there")), "{said:#?}");
    assert!(!north.path("tuned.safetensors").exists());

    let told = finish(finetune(&north, &files)).ok();
    assert!(told.contains("going on after round") && told.contains("round 4 of 4"), "{told}");
    assert!(told.contains("annotated here: Liver Tumor, Liver"), "{told}");
    let mut evaluate = north.command(["evaluate"]);
    evaluate.arg("--study").arg(north.path("tuned.study.json"));
    evaluate.arg("--model").arg(north.path("tuned.safetensors")).arg("--embeddings").arg(&files.embeddings);
    let scores = finish(evaluate).ok();
    assert!(scores.lines().any(|line| line.starts_with("Liver Tumor ")), "{scores}");
    assert_eq!(ledger(), left_before, "nothing has left");
}

#[test]
fn a_consortium_tunes_a_model_for_other_classes() {
    let mut consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    let TwoClasses { study, classes, embeddings, model } = consortium.adapt_to_two_classes(1, 1);
    let [study, classes, embeddings, model] =
        [&study, &classes, &embeddings, &model].map(|path| path.to_str().expect("a plain name"));
    let add = ["study", "add", study, "--taxonomy", classes, "--model", model, "--embeddings", embeddings];
    consortium.operate(add).ok();
    consortium.start_study();
    let _agent = north.run();
    consortium.coordinator.until_study("finished", "model");
    assert_eq!(north.trainings(), [1]);
    let names: Vec<String> = consortium.report(NAME).classes.into_iter().map(|class| class.name).collect();
    assert_eq!(names, ["Liver Tumor", "Liver"]);

    let documents = fs::read_dir(north.path("state/studies")).expect("a study was offered").flatten();
    let document =
        documents.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(".study.json"));
    let bytes = fs::read(document.expect("its document")).expect("it is ours");
    let document = StudyDocument::parse(bytes).expect("a study");
    assert_eq!(document.study().taxonomy.len(), 2, "sites learn the classes from the study");
}
