//! When a round is kept while it is trained, and where: `[checkpoint]` of `site.toml`, one file of the state folder.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use link::failpoint;

use super::files;
use crate::model::LiveTensor;
use crate::train::checkpoint::{CheckpointError, CheckpointKey, read_checkpoint, store_checkpoint};
use crate::train::trainer::{KeepRound, RoundState};

/// How much of a round a site is ready to train again after a crash. A stop that is asked for loses nothing in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// After each so many steps, counted from the round's first; `None`: not by steps.
    pub every_steps: Option<NonZeroU32>,
    /// After the first step that ends so long after the last checkpoint; `None`: not by time.
    pub every: Option<Duration>,
}

impl CheckpointPolicy {
    /// Whether the state after `step` is kept, `since` the last one was.
    pub fn is_due(&self, step: u32, since: Duration) -> bool {
        let by_steps = self.every_steps.is_some_and(|every| step.is_multiple_of(every.get()));
        by_steps || self.every.is_some_and(|every| since >= every)
    }
}

/// Why the round under way is not kept on the disk, if it is not; clones say the same.
#[derive(Clone, Debug, Default)]
pub struct Unkept(Arc<Mutex<Option<String>>>);

impl Unkept {
    /// In words for the operator.
    pub(super) fn why(&self) -> Option<String> {
        self.lock().clone()
    }

    /// It is kept, or over.
    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    fn say(&self, why: String) {
        *self.lock() = Some(why);
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // A poisoned lock guards some words.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one round in a file.
pub(super) struct RoundFile {
    path: PathBuf,
    key: CheckpointKey,
    policy: CheckpointPolicy,
    last: Instant,
    unkept: Unkept,
}

impl RoundFile {
    /// The file at `path`, for the round `key`.
    pub(super) fn new(path: PathBuf, key: CheckpointKey, policy: CheckpointPolicy) -> Self {
        Self { path, key, policy, last: Instant::now(), unkept: Unkept::default() }
    }

    /// Tells here too why it could not be kept.
    pub(super) fn telling(self, unkept: Unkept) -> Self {
        Self { unkept, ..self }
    }

    /// Training goes on: only what is done again after a crash grows.
    fn could_not_keep(&self, step: u32, error: CheckpointError) {
        let round = self.key.round;
        let why = format!("round {round}: step {step} could not be kept: {error}");
        tracing::warn!("{why}; training goes on, and it is tried again at the next");
        let Some(name) = files::disk_trouble(&error.into()) else { return };
        let folder = self.path.parent().unwrap_or(&self.path);
        if self.unkept.why().is_none() {
            tracing::error!("{name}: {}: {}", folder.display(), files::DISK_HINT);
        }
        self.unkept.say(format!("{name}: {why}; training goes on; {}", files::free_space(folder)));
    }
}

impl KeepRound for RoundFile {
    fn take_up(&mut self) -> Option<RoundState> {
        let round = self.key.round;
        let left = match read_checkpoint(&self.path, &self.key) {
            Ok(left) => left,
            Err(error) => {
                if let CheckpointError::OfAnother { .. } = &error {
                    tracing::info!(
                        "round {round}: it begins at its first step; what is kept is another's: {error}"
                    );
                } else {
                    tracing::warn!(
                        "round {round}: it begins at its first step; what was kept is no use: {error}"
                    );
                }
                None
            }
        };
        if let Some(RoundState { step, .. }) = &left {
            tracing::info!("round {round}: goes on after step {step} of {}", self.key.steps);
        }
        self.last = Instant::now();
        left
    }

    fn is_due(&mut self, step: u32) -> bool {
        self.policy.is_due(step, self.last.elapsed())
    }

    fn keep(&mut self, state: &RoundState<LiveTensor>) -> bool {
        let (round, step) = (self.key.round, state.step);
        let stored = store_checkpoint(&self.path, &self.key, state);
        let is_kept = stored.is_ok();
        match stored {
            Ok(()) => {
                tracing::debug!("round {round}: kept after step {step}");
                self.unkept.clear();
                failpoint::pass("site.after-checkpoint");
            }
            Err(error) => self.could_not_keep(step, error),
        }
        // From here, not from its beginning: what takes long to write is not written all the time.
        self.last = Instant::now();
        is_kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_checkpoint_is_due_by_steps_of_the_round_or_by_time_since_the_last() {
        let due = |steps: u32, minutes: u32, step: u32, since: Duration| {
            let every = (minutes > 0).then(|| MINUTE * minutes);
            CheckpointPolicy { every_steps: NonZeroU32::new(steps), every }.is_due(step, since)
        };
        assert_eq!(
            [1, 2, 3, 4, 6].map(|step| due(3, 0, step, MINUTE * 99)),
            [false, false, true, false, true]
        );
        assert_eq!([4, 5, 6].map(|since| due(0, 5, 1, MINUTE * since)), [false, true, true]);
        assert!(due(3, 5, 3, Duration::ZERO) && due(3, 5, 1, MINUTE * 5) && !due(3, 5, 1, MINUTE));
        assert!(!due(0, 0, 1000, MINUTE * 1000));
    }

    #[test]
    fn a_file_of_another_round_or_a_damaged_one_is_no_reason_to_stop() {
        use common::ids::{ArtifactHash, Digest, RoundId, StudyDigest};

        use crate::model::NamedTensors;
        use crate::train::optimizer::OptimizerState;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("round.checkpoint");
        let digest = Digest::of(b"round");
        let key = |round: u32| CheckpointKey {
            study: StudyDigest(digest),
            round: RoundId(round),
            base: ArtifactHash(digest),
            steps: 4,
        };
        let policy = CheckpointPolicy { every_steps: NonZeroU32::new(2), every: None };
        let file = |round: u32| RoundFile::new(path.clone(), key(round), policy);
        let optimizer = OptimizerState { steps: 2, moments: NamedTensors::new() };
        let state = RoundState { step: 2, loss_sum: 0.5, weights: NamedTensors::new(), optimizer };
        assert_eq!(file(1).take_up(), None);
        assert!(file(1).keep(&state.clone().into_live()));
        assert_eq!(file(2).take_up(), None);
        assert_eq!(file(1).take_up(), Some(state.clone()));
        std::fs::write(&path, b"cut short").unwrap();
        assert_eq!(file(1).take_up(), None);
        // Nowhere to write: said, and nothing else.
        let mut nowhere = RoundFile::new(folder.path().join("absent/round.checkpoint"), key(1), policy);
        assert!(!nowhere.keep(&state.into_live()));
    }

    #[test]
    fn a_disk_without_room_for_a_checkpoint_is_named_until_there_is_some() {
        use std::io;

        use common::ids::{ArtifactHash, Digest, RoundId, StudyDigest};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("round.checkpoint");
        let digest = Digest::of(b"round");
        let (study, base) = (StudyDigest(digest), ArtifactHash(digest));
        let key = CheckpointKey { study, round: RoundId(3), base, steps: 4 };
        let policy = CheckpointPolicy { every_steps: NonZeroU32::new(2), every: None };
        let unkept = Unkept::default();
        let file = RoundFile::new(path.clone(), key, policy).telling(unkept.clone());
        let fail = |kind: io::ErrorKind| CheckpointError::Io { path: path.clone(), source: kind.into() };
        file.could_not_keep(12, fail(io::ErrorKind::PermissionDenied));
        assert_eq!(unkept.why(), None, "it passes by no room");
        file.could_not_keep(12, fail(io::ErrorKind::StorageFull));
        let why = unkept.why().unwrap();
        assert!(why.starts_with("disk full: round 3: step 12 could not be kept: "), "{why}");
        assert!(why.contains(&folder.path().display().to_string()), "{why}");
        unkept.clear();
        assert_eq!(unkept.why(), None);
    }
}
