//! Evaluators: killed between any two durable writes, waited for by the next round, and sealed until a model is promoted.

use std::fs;

use common::ids::{Role, RoundId};

use crate::harness::consortium::{Consortium, Site};
use crate::harness::study::NAME;

/// What an evaluator says when it begins to score a model.
const SCORES: &str = "evaluating the model of round";
/// How a study is said to be paused.
const PAUSED: &str = "the coordinator's operator paused the study: the scanner moves";

/// The bytes of the one report that a site has kept.
fn kept_report(site: &Site) -> Vec<u8> {
    let reports: Vec<_> = fs::read_dir(site.path("state/reports")).expect("the agent made it").collect();
    let [Ok(report)] = &reports[..] else { panic!("{reports:?}") };
    fs::read(report.path()).expect("the agent wrote it")
}

#[test]
fn an_evaluator_killed_anywhere_reports_once_and_gate_pause_and_seal_hold_meanwhile() {
    let mut consortium = Consortium::found("thorax");
    let north = consortium.member("north", Role::Trainer, "site-a");
    let judge = consortium.member("judge", Role::Evaluator, "site-c");
    let vault = consortium.member("vault", Role::Evaluator, "site-d");
    consortium.add_study_with_gate("judge", "vault");
    consortium.start_study();
    let (mut at_north, mut at_vault) = (north.run(), vault.run());
    consortium.coordinator.until_study("round-committed", "round 1");
    // The gate keeps the second round from opening, and soon nothing else would.
    consortium.operate(["study", "pause", NAME, "--reason", "the scanner moves"]).ok();
    at_north.until_says(&format!("is paused: {PAUSED}"));

    judge.run_to(Some("site.after-report-kept")).until_dead();
    let report = kept_report(&judge);
    judge.run_to(Some("site.after-journal-evaluated")).until_dead();
    assert_eq!(kept_report(&judge), report, "scored again, to the byte");
    let said = judge.run_to(Some("site.after-report-receipt")).until_dead();
    assert!(!said.iter().any(|line| line.contains(SCORES)), "what was noted is sent: {said:#?}");
    consortium.coordinator.until_scored("judge", RoundId(1));

    // The gate is open, whether that was noted or not; the pause holds.
    let said = consortium.crash_coordinator_before(Some("coordinator.after-report-keep"));
    assert!(!said.iter().any(|line| line.contains("round 2 is open")), "{said:#?}");
    consortium.coordinator.until_listening();
    let mut at_judge = judge.run();
    at_judge.until_says("round 1: the coordinator has the evaluation report");
    let state = consortium.status().studies.remove(0).state;
    assert!(state.starts_with(&format!("paused ({PAUSED})")), "{state}");
    assert_eq!(consortium.coordinator.0.said("round 2 is open"), [""; 0]);
    consortium.operate(["study", "resume", NAME]).ok();
    consortium.coordinator.until_study("finished", "model");
    consortium.coordinator.0.until_dead();
    consortium.crash_coordinator();
    consortium.coordinator.until_scored("judge", RoundId(2));
    at_judge.until_says("round 2: the coordinator has the evaluation report");
    assert_eq!(at_judge.said(SCORES).len(), 1, "not again for the coordinator's death");

    assert_eq!(at_vault.said(SCORES), [""; 0], "it is sealed");
    let told = consortium.operate(["study", "promote", NAME, "--round", "1"]).ok();
    assert!(told.contains("promoted the model of round 1"), "{told}");
    at_vault.until_says("round 1: the coordinator has the evaluation report");
    let report = consortium.report(NAME);
    let scores = report.scores.iter().map(|scores| (scores.site.as_str(), scores.round.0));
    let mut scores: Vec<_> = scores.collect();
    scores.sort_unstable();
    assert_eq!(scores, [("judge", 1), ("judge", 2), ("vault", 1)]);
}
