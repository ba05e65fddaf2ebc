//! What the state folder keeps, and what a crash leaves of it.

use super::*;

#[test]
fn what_a_crash_left_half_written_goes_and_all_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let (half, whole) = (format!("{UNFINISHED}x1"), "whole.state".to_owned());
    for (part, name) in [("optimizer", &half), ("checkpoint", &half), ("", &half), ("optimizer", &whole)] {
        std::fs::write(folder.path().join(part).join(name), "bytes").unwrap();
    }
    state.remove_unfinished().unwrap();
    let left = |part: &str| std::fs::read_dir(folder.path().join(part)).unwrap().count();
    assert_eq!((left("optimizer"), left("checkpoint")), (1, 0));
    assert!(!folder.path().join(half).exists());
}

#[test]
fn the_optimiser_remembers_the_rounds_that_count_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let study = StudyDigest(common::ids::Digest::of(b"study"));
    let attempts = [1, 2, 3, 4].map(|n| AttemptId::from_bytes([n; 16]));
    let train = |round: usize, learnt: &str| {
        std::fs::write(state.optimizer_after(attempts[round - 1]), learnt).unwrap();
    };
    let deliver = |round: u32| {
        state.promote_optimizer(study, RoundId(round), attempts[round as usize - 1]).unwrap();
    };
    let before = |round: u32| {
        state.optimizer_before(study, RoundId(round)).map(|path| std::fs::read_to_string(path).unwrap())
    };
    train(1, "one");
    deliver(1);
    assert_eq!(before(2).as_deref(), Some("one"));
    // Round 2 closes before its update is whole, over a restart.
    train(2, "two");
    state.prune_optimizer(&BTreeSet::from([attempts[1]])).unwrap();
    assert!(state.optimizer_after(attempts[1]).exists(), "it may still count");
    state.prune_optimizer(&BTreeSet::new()).unwrap();
    assert_eq!(before(3).as_deref(), Some("one"));
    // Round 3 is delivered, and refused.
    train(3, "three");
    deliver(3);
    state.demote_optimizer(study, RoundId(3)).unwrap();
    assert_eq!(before(4).as_deref(), Some("one"));
    // Round 4 is delivered; a crash before the journal knows of the receipt has it offered again.
    train(4, "four");
    deliver(4);
    state.prune_optimizer(&BTreeSet::from([attempts[3]])).unwrap();
    deliver(4);
    assert_eq!(before(5).as_deref(), Some("four"));
}

#[test]
fn the_optimiser_forgets_a_study_that_is_over_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let [over, other] = [b"over", b"next"].map(|name| StudyDigest(common::ids::Digest::of(name)));
    let attempt = AttemptId::from_bytes([1; 16]);
    for study in [over, other] {
        for round in 1..=2 {
            std::fs::write(state.optimizer_after(attempt), "learnt").unwrap();
            state.promote_optimizer(study, RoundId(round), attempt).unwrap();
        }
    }
    state.forget_optimizer(over).unwrap();
    state.forget_optimizer(over).unwrap();
    assert_eq!(state.optimizer_before(over, RoundId(9)), None);
    let left = std::fs::read_dir(folder.path().join("optimizer")).unwrap().count();
    assert_eq!((left, state.optimizers(other).len()), (2, 2));
}

#[test]
fn a_damaged_memory_of_the_optimiser_is_set_aside_and_training_goes_on() {
    use crate::model::NamedTensors;
    use crate::train::state::store_state;

    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let study = StudyDigest(common::ids::Digest::of(b"study"));
    let learn = |round: u32| {
        let attempt = AttemptId::from_bytes([1; 16]);
        let learnt = OptimizerState { steps: u64::from(round), moments: NamedTensors::new() };
        store_state(&state.optimizer_after(attempt), &learnt.into_live()).unwrap();
        state.promote_optimizer(study, RoundId(round), attempt).unwrap();
    };
    let steps = |round: u32| {
        let mut steps = None;
        let restore = |known: OptimizerState| {
            steps = Some(known.steps);
            Ok(())
        };
        state.recall_optimizer(study, RoundId(round), restore).unwrap();
        steps
    };
    learn(1);
    learn(2);
    assert_eq!(steps(3), Some(2));
    let newest = state.learnt(study, RoundId(2));
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, &bytes).unwrap();
    // The second time as after a restart: nothing is left to be found damaged.
    for _ in 0..2 {
        assert_eq!(steps(3), Some(1));
        assert!(!newest.exists());
    }
    let aside = folder.path().join("optimizer").join("set-aside");
    assert_eq!(std::fs::read(&aside).unwrap(), bytes);
    std::fs::write(state.learnt(study, RoundId(1)), "cut short").unwrap();
    assert_eq!(steps(3), None, "fresh moments");
    learn(3);
    assert_eq!(steps(4), Some(3));
}

#[test]
fn a_memory_of_the_optimiser_that_is_of_another_model_is_set_aside_and_training_goes_on() {
    use std::collections::BTreeMap;

    use crate::model::tensors::TensorMismatch;
    use crate::model::{HostTensor, NamedTensors};
    use crate::train::state::store_state;

    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let study = StudyDigest(common::ids::Digest::of(b"study"));
    let learn = |round: u32, name: &str, shape: &[usize]| {
        let attempt = AttemptId::from_bytes([1; 16]);
        let moment = HostTensor::from_fn(shape.to_vec(), |i| i as f32);
        let moments = NamedTensors::from([(name.to_owned(), moment)]);
        let learnt = OptimizerState { steps: u64::from(round), moments };
        store_state(&state.optimizer_after(attempt), &learnt.into_live()).unwrap();
        state.promote_optimizer(study, RoundId(round), attempt).unwrap();
    };
    let model = BTreeMap::from([("first.w".to_owned(), vec![3])]);
    let steps = |round: u32| {
        let mut steps = None;
        let restore = |known: OptimizerState| -> Result<(), TrainError> {
            TensorMismatch::check(&model, &known.moments)?;
            steps = Some(known.steps);
            Ok(())
        };
        state.recall_optimizer(study, RoundId(round), restore).unwrap();
        steps
    };
    learn(1, "first.w", &[3]);
    learn(2, "first.w", &[4]);
    let newest = state.learnt(study, RoundId(2));
    let bytes = std::fs::read(&newest).unwrap();
    // What is wrong with the trainer is no fault of the memory.
    let refused = state.recall_optimizer(study, RoundId(3), |_| Err(TrainError::NoGlobalModel));
    assert!(matches!(refused.unwrap_err().downcast_ref(), Some(TrainError::NoGlobalModel)));
    // The second time as after a restart: nothing is left that does not fit.
    for _ in 0..2 {
        assert_eq!(steps(3), Some(1));
        assert!(!newest.exists());
    }
    assert_eq!(std::fs::read(folder.path().join("optimizer").join("set-aside")).unwrap(), bytes);
    learn(2, "first.other", &[3]);
    learn(3, "first.other", &[3]);
    assert_eq!(steps(4), None, "fresh moments");
    learn(4, "first.w", &[3]);
    assert_eq!(steps(5), Some(4));
}

#[test]
fn pictures_of_two_rounds_of_a_study_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let [study, other] = [b"here", b"next"].map(|name| StudyDigest(common::ids::Digest::of(name)));
    let draw = |study, round| {
        files::make_private_folder(&state.overlays(study, RoundId(round))).unwrap();
        std::fs::write(state.overlays(study, RoundId(round)).join("scan.png"), "picture").unwrap();
        state.prune_overlays(study, RoundId(round)).unwrap();
    };
    let kept = |study| [0, 5, 9, 10].map(|round| state.overlays(study, RoundId(round)).exists());
    draw(other, 0);
    draw(study, 0);
    draw(study, 5);
    assert_eq!(kept(study), [true, true, false, false]);
    draw(study, 10);
    assert_eq!(kept(study), [false, true, false, true], "as numbers, not as names");
    // A round of before, late: what was drawn last stays, and what is newest.
    draw(study, 9);
    assert_eq!(kept(study), [false, false, true, true]);
    assert_eq!(kept(other), [true, false, false, false], "another study's are its own");
}

#[test]
fn a_torn_status_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    assert_eq!(state.read_status().unwrap(), None);
    std::fs::write(state.status(), "{\"at\": \"20").unwrap();
    assert_eq!(state.read_status().unwrap(), None);
}

#[test]
fn a_round_that_is_asked_for_again_begins_with_what_the_optimiser_knew_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let study = StudyDigest(common::ids::Digest::of(b"study"));
    let learn = |round: u32, learnt: &str| {
        let attempt = AttemptId::from_bytes([1; 16]);
        std::fs::write(state.optimizer_after(attempt), learnt).unwrap();
        state.promote_optimizer(study, RoundId(round), attempt).unwrap();
        // Asked for again after a crash, it changes nothing.
        state.promote_optimizer(study, RoundId(round), attempt).unwrap();
    };
    let before = |round: u32| {
        state.optimizer_before(study, RoundId(round)).map(|path| std::fs::read_to_string(path).unwrap())
    };
    assert_eq!(before(1), None);
    for (round, learnt) in [(1, "one"), (2, "two"), (3, "three")] {
        learn(round, learnt);
    }
    assert_eq!((before(4).as_deref(), before(3).as_deref()), (Some("three"), Some("two")));
    assert_eq!(before(2), None, "it is kept no longer");
    // The round of before, again: what was learnt after it counts no more.
    learn(2, "two again");
    assert_eq!((before(4).as_deref(), before(3).as_deref()), (Some("two again"), Some("two again")));
    assert_eq!(state.optimizer_before(StudyDigest(common::ids::Digest::of(b"other")), RoundId(9)), None);
}

#[test]
fn a_round_further_back_than_what_is_kept_is_known_to_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let study = StudyDigest(common::ids::Digest::of(b"study"));
    let learn = |round: u32| {
        let attempt = AttemptId::from_bytes([1; 16]);
        std::fs::write(state.optimizer_after(attempt), "learnt").unwrap();
        state.promote_optimizer(study, RoundId(round), attempt).unwrap();
    };
    let outgrown = |round: u32| state.has_outgrown(study, RoundId(round));
    learn(1);
    assert_eq!([1, 2].map(outgrown), [false, false]);
    (2..=5).for_each(learn);
    assert_eq!([1, 2, 3, 4].map(outgrown), [false, true, true, true], "nothing comes before the first");
    assert_eq!([5, 6].map(outgrown), [false, false], "one round back is kept");
    learn(2);
    assert_eq!([2, 3].map(outgrown), [false, false], "it goes on from there");
}

/// By a command that only reads, of root perhaps: what it made would not be the agent's.
#[test]
fn nothing_is_made_in_a_folder_that_is_only_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::at(&folder.path().join("state"));
    assert!(state.studies().list().unwrap().is_empty());
    assert!(state.artifacts().newest_first().unwrap().is_empty());
    assert!(!state.is_locked() && state.read_status().unwrap().is_none());
    assert!(!state.path().exists());
}
