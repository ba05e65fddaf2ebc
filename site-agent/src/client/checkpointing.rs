//! When a round is kept while it is trained, and where: `[checkpoint]` of `site.toml`, one file of the state folder.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use link::failpoint;

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

/// Keeps one round in a file.
pub(super) struct RoundFile {
    path: PathBuf,
    key: CheckpointKey,
    policy: CheckpointPolicy,
    last: Instant,
}

impl RoundFile {
    /// The file at `path`, for the round `key`.
    pub(super) fn new(path: PathBuf, key: CheckpointKey, policy: CheckpointPolicy) -> Self {
        Self { path, key, policy, last: Instant::now() }
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

    fn keep(&mut self, state: &RoundState<LiveTensor>) {
        let (round, step) = (self.key.round, state.step);
        match store_checkpoint(&self.path, &self.key, state) {
            Ok(()) => {
                tracing::debug!("round {round}: kept after step {step}");
                failpoint::pass("site.after-checkpoint");
            }
            Err(error) => tracing::warn!(
                "round {round}: step {step} could not be kept: {error}; training goes on, and it is tried again at the next"
            ),
        }
        // From here, not from its beginning: what takes long to write is not written all the time.
        self.last = Instant::now();
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
        file(1).keep(&state.clone().into_live());
        assert_eq!(file(2).take_up(), None);
        assert_eq!(file(1).take_up(), Some(state.clone()));
        std::fs::write(&path, b"cut short").unwrap();
        assert_eq!(file(1).take_up(), None);
        // Nowhere to write: said, and nothing else.
        RoundFile::new(folder.path().join("absent/round.checkpoint"), key(1), policy)
            .keep(&state.into_live());
    }
}
