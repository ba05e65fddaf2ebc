//! A study whose updates are in bfloat16: what rounding took at the site goes into its next update, once, whatever is killed.

use std::fs;

use common::ids::Role;

use crate::harness::consortium::Consortium;

/// The model that three rounds of one site end with, where the site ends itself at this point and is started again.
fn model(point: Option<&str>) -> String {
    let mut consortium = Consortium::found("rounding");
    let north = consortium.member("north", Role::Trainer, "site-a");
    consortium.add_study_in_bf16(3);
    consortium.start_study();
    if point.is_some() {
        north.run_to(point).until_dead();
    }
    // Looked at before the last round ends: with the study goes what rounding left. The second process trains two rounds.
    let last = if point.is_some() { 2 } else { 3 };
    north.run_to(Some(&format!("site.after-journal-trained:{last}"))).until_dead();
    let kept = fs::read_dir(north.path("state/residual")).expect("the agent made it").flatten();
    let names: Vec<String> = kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name.ends_with("-2.state")), "{names:?}");
    let _agent = north.run();
    let words = consortium.coordinator.until_study("finished", "model");
    words.rsplit(' ').next().expect("ends with the model").to_owned()
}

#[test]
fn what_rounding_takes_comes_with_the_next_update_once() {
    let undisturbed = model(None);
    for point in ["site.after-outbox:2", "site.after-receipt-before-journal"] {
        assert_eq!(model(Some(point)), undisturbed, "{point}");
    }
}
