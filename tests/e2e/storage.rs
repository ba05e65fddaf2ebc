//! Disks that fill up, turn read-only and lose bytes: the coordinator says what it is, nothing that it acknowledged is lost, and the study
//! ends with the model of one that was not disturbed, bit for bit.

use std::fs;
use std::path::{Path, PathBuf};

use coordinator::progress::Line;
use site_agent::egress::Kind;

use crate::harness::disk::{self, Disk};
use crate::harness::federation::Federation;
use crate::harness::process::Process;

impl Federation {
    fn state(&self) -> PathBuf {
        self.consortium.path("state")
    }

    /// In the second round, for which the update of north counts and that of south is held, the coordinator is dead and its disk has
    /// lost the model that both began from; the agents, and the model's name.
    fn in_round_2_without_its_model(&mut self) -> ([Process; 2], String) {
        let (mut north, mut south) = (self.north.run(), self.south.run());
        south.until_says("round 2: taking part");
        south.pause();
        north.until_says("round 2: the coordinator counts the update");
        self.consortium.coordinator.0.kill();

        let status = self.consortium.operate(["status", "--json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        let model = status["studies"][0]["model"].as_str().expect("there is a study").to_owned();
        fs::remove_dir_all(self.state().join("artifacts").join(&model)).expect("the folder is ours");
        ([north, south], model)
    }
}

/// The first folder below whose name has this beginning.
fn find(folder: &Path, beginning: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning));
    let here = folders.iter().find(|path| named(path)).cloned();
    here.or_else(|| folders.iter().find_map(|path| find(path, beginning)))
}

#[test]
fn an_update_that_the_disk_changed_is_found_by_the_doctor_and_asked_for_again() {
    let mut federation = Federation::set_up();
    let south = federation.run_held(&federation.south);
    let mut north = federation.north.run();
    north.until_says("round 1: the coordinator counts the update");
    let refused = federation.consortium.operate(["doctor", "--repair"]);
    assert_eq!(refused.code, Some(75), "a running coordinator repairs nothing: {refused:#?}");
    federation.consortium.operate(["doctor"]).ok();
    federation.consortium.coordinator.0.kill();

    let update = find(&federation.state().join("spool"), "north.").expect("the counted update is kept");
    let data = update.join("data");
    let mut bytes = fs::read(&data).expect("it is ours");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&data, bytes).expect("the folder is ours");
    let found = federation.consortium.operate(["doctor"]);
    assert_eq!(found.code, Some(1), "{found:#?}");
    assert!(found.out.contains("has changed"), "{found:#?}");
    let told = federation.consortium.operate(["doctor", "--repair"]).ok();
    assert!(told.contains("asks north again"), "{told}");
    assert!(!update.exists() && federation.state().join("quarantine").is_dir());

    federation.consortium.crash_coordinator();
    federation.consortium.coordinator.until_study("update-lost", "north");
    south.resume();
    federation.assert_ends_undisturbed();
}

#[test]
fn a_model_that_the_disk_lost_comes_back_from_the_files_of_a_site() {
    let mut federation = Federation::set_up();
    let ([_north, south], model) = federation.in_round_2_without_its_model();
    let found = federation.consortium.operate(["doctor"]);
    assert_eq!(found.code, Some(1), "{found:#?}");
    assert!(found.out.contains("coordinator artifact add"), "{found:#?}");

    let copy = federation.north.path("state/artifacts").join(format!("{model}.data"));
    let copy = copy.to_str().expect("a plain name");
    let told = federation.consortium.operate(["artifact", "add", copy]).ok();
    assert!(told.contains("the current model of"), "{told}");
    federation.consortium.operate(["doctor"]).ok();
    federation.consortium.crash_coordinator();
    south.resume();
    let made = federation.finished();
    federation.assert_made_of_both();
    assert_eq!(made, Federation::undisturbed());
}

#[test]
fn a_model_that_the_disk_lost_comes_back_by_itself_from_a_site_whose_policy_lets_it() {
    let mut federation = Federation::set_up();
    federation.north.let_models_leave();
    let ([mut north, south], model) = federation.in_round_2_without_its_model();
    federation.consortium.crash_coordinator();
    federation.consortium.coordinator.until_study("artifact-returned", "north had it");
    north.until_says("the coordinator had lost it, and has it again");
    assert!(federation.state().join("artifacts").join(&model).is_dir());
    federation.consortium.operate(["doctor"]).ok();
    assert!(federation.north.left().contains(&Kind::Model));
    south.resume();
    federation.assert_ends_undisturbed();
    assert!(!federation.south.left().contains(&Kind::Model), "its policy names no models");
}

#[test]
fn sites_follow_a_coordinator_that_was_restored_from_an_earlier_round() {
    let mut federation = Federation::set_up();
    let south = federation.run_held(&federation.south);
    let mut north = federation.north.run();
    north.until_says("round 1: the coordinator counts the update");
    north.pause();
    let backup = federation.consortium.path("backup");
    let to = backup.to_str().expect("a plain name");
    federation.consortium.operate(["backup", to]).ok();
    // The second round cannot end either: north is held.
    south.resume();
    federation.consortium.coordinator.until_study("round-opened", "round 2");
    federation.consortium.coordinator.0.kill();

    let occupied = federation.consortium.operate(["restore", to]);
    assert!(occupied.err.contains("is not empty"), "{occupied:#?}");
    fs::rename(federation.state(), federation.consortium.path("lost")).expect("the folder is ours");
    federation.consortium.operate(["restore", to]).ok();
    federation.consortium.crash_coordinator();
    north.resume();
    federation.assert_ends_undisturbed();
}

/// Waits for the fault of this name, and asks the operator's status for its words.
fn until_paused(federation: &mut Federation, fault: &str, words: &str) {
    federation.consortium.coordinator.until("the fault", |line| match line {
        Line::Fault { code, .. } => (code == fault).then_some(()),
        _ => None,
    });
    let status = federation.consortium.operate(["status"]).ok();
    assert!(status.contains(words), "{status}");
}

/// Stops the coordinator in order and spoils its disk: what it left is sound, is said to be, and can be copied to another disk. One
/// that is started meanwhile waits until the disk is mended.
fn started_anew_on(
    federation: &mut Federation,
    disk: &Disk,
    [spoil, mend]: [fn(&Disk); 2],
    (fault, words): (&str, &str),
) {
    federation.consortium.stop_coordinator();
    spoil(disk);
    let status = federation.consortium.operate(["status"]).ok();
    assert!(status.contains(words) && status.contains("no server answers"), "{status}");
    let refused = federation.consortium.operate(["revoke", "north"]);
    assert_eq!(refused.code, Some(74), "{refused:#?}");
    let found = federation.consortium.operate(["doctor"]);
    assert!(found.out.contains("its journal replays") && !found.out.contains("restore"), "{found:#?}");
    let backup = federation.consortium.path("backup");
    federation.consortium.operate(["backup", backup.to_str().expect("a plain name")]).ok();

    federation.consortium.crash_coordinator();
    until_paused(federation, fault, words);
    mend(disk);
    until_recovered(federation, fault);
    let told = federation.consortium.coordinator.0.said(r#""event":"fault""#);
    assert_eq!(told.len(), 1, "{told:#?}");
}

fn until_recovered(federation: &mut Federation, fault: &str) {
    federation.consortium.coordinator.until("the end of it", |line| match line {
        Line::Recovered { code } => (code == fault).then_some(()),
        _ => None,
    });
}

/// A federation whose coordinator's state has a disk of its own. North trains the first round, which cannot end: south, the second of
/// the processes, is held.
fn on_a_disk_in_round_1() -> (Federation, [Process; 2], Disk) {
    let mut federation = Federation::set_up();
    federation.consortium.coordinator.0.kill();
    let disk = Disk::under(&federation.state());
    federation.consortium.crash_coordinator();
    federation.consortium.coordinator.until_listening();
    let south = federation.run_held(&federation.south);
    let mut north = federation.north.run();
    north.until_says("round 1: step ");
    (federation, [north, south], disk)
}

#[test]
fn a_full_disk_is_a_pause_with_a_name_and_nothing_is_lost() {
    disk::run_inside("storage::on_a_small_disk");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_small_disk() {
    if !disk::is_inside() {
        return;
    }
    let (mut federation, [_north, south], disk) = on_a_disk_in_round_1();
    disk.fill();
    south.resume();
    until_paused(&mut federation, "disk-full", "paused: disk full");
    disk.make_room();
    until_recovered(&mut federation, "disk-full");
    federation.assert_ends_undisturbed();

    let full = ("disk-full", "paused: disk full");
    started_anew_on(&mut federation, &disk, [Disk::fill, Disk::make_room], full);
}

#[test]
fn a_read_only_disk_is_a_pause_with_a_name_and_nothing_is_lost() {
    disk::run_inside("storage::on_a_disk_that_turns_read_only");
}

#[test]
#[ignore = "runs in the namespace that the test above makes"]
fn on_a_disk_that_turns_read_only() {
    if !disk::is_inside() {
        return;
    }
    let (mut federation, [_north, south], disk) = on_a_disk_in_round_1();
    disk.cover();
    south.resume();
    until_paused(&mut federation, "disk-read-only", "paused: disk read-only");
    disk.uncover();
    until_recovered(&mut federation, "disk-read-only");
    federation.consortium.coordinator.until_study("round-committed", "round 1");

    let read_only = ("disk-read-only", "paused: disk read-only");
    started_anew_on(&mut federation, &disk, [Disk::turn_read_only, Disk::turn_writable], read_only);
    federation.assert_ends_undisturbed();
}
