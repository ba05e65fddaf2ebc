//! A site's disk that fills up or turns read-only, and files on it that change: the agent says what it is and goes on by
//! itself, and the study ends with the model of one that was not disturbed, bit for bit.

use std::fs;
use std::path::{Path, PathBuf};

use common::ids::Role;

use crate::harness::consortium::Consortium;
use crate::harness::disk::{self, Disk};
use crate::harness::federation::{Federation, ROUNDS};
use crate::harness::process::Process;
use crate::harness::study::STEPS;

/// How a site calls its pause, in its log and in its status.
const DISK_FULL: &str = "paused: disk full";
const DISK_READ_ONLY: &str = "paused: disk read-only";
/// What a site says of an artifact that the disk changed.
const DAMAGED: &str = "is damaged";
/// What it says of a checkpoint that the disk changed.
const NO_USE: &str = "what was kept is no use";

#[test]
fn a_site_whose_disk_is_full_waits_with_what_it_trained() {
    disk::run_inside("site_storage::on_a_disk_that_fills_while_a_round_is_trained");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_disk_that_fills_while_a_round_is_trained() {
    if !disk::is_inside() {
        return;
    }
    while_a_round_is_trained(Disk::fill, Disk::make_room, |federation, south| {
        south.until_says(DISK_FULL);
        federation.south.until_status(DISK_FULL);
    });
}

/// South's disk takes nothing from `spoil` to `mend`: neither the checkpoints of the steps to come nor the update.
fn while_a_round_is_trained(
    spoil: fn(&Disk),
    mend: fn(&Disk),
    until_named: impl FnOnce(&mut Federation, &mut Process),
) {
    let mut federation = Federation::set_up();
    federation.south.keep_every_step();
    let disk = Disk::under(&federation.south.path("state"));
    // Where this test is slow, south has trained the round: then the disk is missed by the next, which north keeps from opening.
    let north = federation.run_held(&federation.north);
    let mut south = federation.south.run_to(None);
    south.until_says("round 1: kept after step 2");
    south.pause();
    spoil(&disk);
    south.resume();
    north.resume();
    until_named(&mut federation, &mut south);
    mend(&disk);
    let model = federation.finished();
    south.until_says("the study is over");
    let left = fs::read_dir(federation.south.path("state/outbox")).expect("the agent made it");
    assert_eq!(left.count(), 0, "neither updates nor what one could be written over");
    federation.assert_each_counted_once();
    assert_eq!(model, Federation::undisturbed());
}

#[test]
#[ignore = "slow: it outlasts the pause twice"]
fn a_site_whose_disk_is_full_waits_with_what_it_is_to_download() {
    disk::run_inside("site_storage::on_a_disk_that_fills_before_a_download");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_disk_that_fills_before_a_download() {
    if !disk::is_inside() {
        return;
    }
    let mut federation = Federation::set_up();
    let disk = Disk::under(&federation.south.path("state"));
    let north = federation.run_held(&federation.north);
    let mut south = federation.south.run();
    south.until_says("round 1: the coordinator counts the update");
    let spare = federation.south.path("state/outbox/spare");
    // The next thing that it has to keep is the model of round 2.
    disk.fill();
    let before = south.said(DISK_FULL).len();
    north.resume();
    south.until_said(DISK_FULL, before + 1);
    assert!(!spare.exists(), "its room is needed");
    disk.make_room();
    let model = federation.finished();
    federation.assert_each_counted_once();
    assert_eq!(model, Federation::undisturbed());
}

#[test]
fn a_site_whose_disk_is_read_only_waits_with_what_it_trained() {
    disk::run_inside("site_storage::on_a_disk_that_turns_read_only_while_a_round_is_trained");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_disk_that_turns_read_only_while_a_round_is_trained() {
    if !disk::is_inside() {
        return;
    }
    while_a_round_is_trained(Disk::cover, Disk::uncover, |_, south| {
        south.until_says(DISK_READ_ONLY);
    });
}

#[test]
fn a_site_that_is_started_on_a_read_only_disk_waits_for_it() {
    disk::run_inside("site_storage::on_a_disk_that_is_read_only_from_the_start");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_disk_that_is_read_only_from_the_start() {
    if !disk::is_inside() {
        return;
    }
    let mut consortium = Consortium::found("patient");
    let north = consortium.enrol("north", Role::Trainer);
    let disk = Disk::under(&north.path("state"));
    disk.turn_read_only();
    let mut agent = north.run();
    agent.until_says(DISK_READ_ONLY);
    north.until_status(DISK_READ_ONLY);
    disk.turn_writable();
    consortium.coordinator.until_connected("north");
    assert_eq!(agent.said(DISK_READ_ONLY).len(), 1, "told once");
}

/// Changes a byte in the middle of each file of `folder` whose name has this ending.
fn damage(folder: &Path, ending: &str) {
    let listed =
        fs::read_dir(folder).expect("the agent made it").filter_map(|entry| Some(entry.ok()?.path()));
    let ours: Vec<PathBuf> =
        listed.filter(|path| path.extension().is_some_and(|e| e.to_str() == Some(ending))).collect();
    assert!(!ours.is_empty(), "{} holds no .{ending}", folder.display());
    for path in ours {
        let mut bytes = fs::read(&path).expect("it is ours");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).expect("the folder is ours");
    }
}

#[test]
fn what_the_disk_changed_at_a_site_is_found_and_had_again() {
    let mut federation = Federation::set_up();
    federation.south.keep_every_step();
    let _north = federation.north.run();
    // Embeddings and model are there.
    federation.south.run_to(Some("site.after-download:2")).until_dead();
    damage(&federation.south.path("state/artifacts"), "data");
    let said = federation.south.run_to(Some("site.after-checkpoint:3")).until_dead();
    assert!(said.iter().any(|line| line.contains(DAMAGED)), "{said:#?}");

    damage(&federation.south.path("state/checkpoint"), "checkpoint");
    let said = federation.south.run_to(Some("site.after-outbox")).until_dead();
    assert!(said.iter().any(|line| line.contains(NO_USE)), "{said:#?}");

    // Nobody knows of the update yet; then the journal does, and it is offered as it is.
    damage(&federation.south.path("state/outbox"), "data");
    let said = federation.south.run_to(Some("site.after-journal-trained")).until_dead();
    assert!(said.iter().any(|line| line.contains(DAMAGED)), "{said:#?}");
    damage(&federation.south.path("state/outbox"), "data");
    let mut south = federation.south.run();
    south.until_says(DAMAGED);
    federation.assert_ends_undisturbed();
    assert_eq!(federation.south.trainings(), [STEPS; 1 + ROUNDS as usize], "round 1 was trained once more");
}
