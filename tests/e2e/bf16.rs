//! A study whose updates are in bfloat16: what rounding took at the site goes into its next update, once, whatever is killed.

use std::fs;

use common::ids::Role;

use crate::harness::consortium::Consortium;

/// The model that three rounds of one site end with, where the site ends itself at this point and is started again.
fn model(point: Option<&str>) -> String {
    let mut consortium = Consortium::found("rounding");
    let north = consortium.enrol("north", Role::Trainer);
    north.give_phantoms(&consortium.address, "site-a");
    consortium.add_study_in_bf16(3);
    consortium.start_study();
    let mut agent = north.run_to(point);
    if point.is_some() {
        agent.until_dead();
        agent = north.run_to(None);
    }
    let words = consortium.coordinator.until_study("finished", "model");
    drop(agent);
    // Of the round before the last, at the least: the site may not have read its last receipt.
    let kept = fs::read_dir(north.path("state/residual")).expect("the agent made it").flatten();
    let names: Vec<String> = kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name.ends_with("-2.state")), "{names:?}");
    words.rsplit(' ').next().expect("ends with the model").to_owned()
}

#[test]
fn what_rounding_takes_comes_with_the_next_update_once() {
    let undisturbed = model(None);
    for point in ["site.after-outbox:2", "site.after-receipt-before-journal"] {
        assert_eq!(model(Some(point)), undisturbed, "{point}");
    }
}
