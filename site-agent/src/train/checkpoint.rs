//! Where a round stands, as a file: weights, optimiser, step and loss, for the one round that its key names.
//!
//! A sealed file with its key in the note. Durable before it counts, written a piece at a time; anything but the whole
//! checkpoint of the round asked for is refused.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use common::ids::{ModelHash, RoundId, StudyDigest};
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerState;
use super::sealed::{read_sealed, write_sealed};
use super::trainer::RoundState;
use crate::model::{LiveTensor, NamedTensors};

/// What the note says; another form has another number.
const FORMAT: u32 = 1;
const WEIGHT: &str = "weight.";
const MOMENT: &str = "moment.";

/// Which round a checkpoint is of. All that training depends on follows from it and from the site's scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointKey {
    /// The study.
    pub study: StudyDigest,
    /// The round.
    pub round: RoundId,
    /// The model that it began from.
    pub base: ModelHash,
    /// Steps of the whole round.
    pub steps: u32,
}

/// A checkpoint that could not be stored, or is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system's refusal.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that was cut short, changed, or written by something else.
    #[error("{}: not a checkpoint, or damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A whole checkpoint, of something else.
    #[error("{}: of round {} of study {}, from model {}", path.display(), found.round, found.study.short(), found.base.short())]
    OfAnother {
        /// The file.
        path: PathBuf,
        /// What it is of.
        found: CheckpointKey,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    format: u32,
    of: CheckpointKey,
    step: u32,
    loss_sum: f64,
    optimizer_steps: u64,
}

/// Keeps where a round stands in the place of what was kept before; on return it survives a loss of power.
///
/// # Errors
/// The disk's refusal: then what was there before is still there.
pub fn store_checkpoint(
    path: &Path,
    key: &CheckpointKey,
    state: &RoundState<LiveTensor>,
) -> Result<(), CheckpointError> {
    let OptimizerState { steps, moments } = &state.optimizer;
    let weights = state.weights.iter().map(|(name, tensor)| (format!("{WEIGHT}{name}"), tensor));
    let moments = moments.iter().map(|(name, tensor)| (format!("{MOMENT}{name}"), tensor));
    let tensors: BTreeMap<String, &LiveTensor> = weights.chain(moments).collect();
    let note = Note {
        format: FORMAT,
        of: *key,
        step: state.step,
        loss_sum: state.loss_sum,
        optimizer_steps: *steps,
    };
    let note = serde_json::to_string(&note).map_err(io::Error::from);
    let stored = note.and_then(|note| write_sealed(path, &tensors, Some(&note)));
    stored.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
}

/// Where the round `key` was left; `None` when nothing is kept.
///
/// # Errors
/// [`CheckpointError::Damaged`] for anything but what [`store_checkpoint`] wrote, [`CheckpointError::OfAnother`] for another
/// round, or the disk's refusal.
pub fn read_checkpoint(path: &Path, key: &CheckpointKey) -> Result<Option<RoundState>, CheckpointError> {
    let sealed = match read_sealed(path) {
        Ok(sealed) => sealed,
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CheckpointError::Io { path: path.to_owned(), source }),
    };
    let decoded = sealed.and_then(|(tensors, note)| decode(tensors, &note?));
    let (found, state) = decoded.ok_or_else(|| CheckpointError::Damaged { path: path.to_owned() })?;
    if found != *key {
        return Err(CheckpointError::OfAnother { path: path.to_owned(), found });
    }
    Ok(Some(state))
}

fn decode(tensors: NamedTensors, note: &str) -> Option<(CheckpointKey, RoundState)> {
    let Note { format, of, step, loss_sum, optimizer_steps } = serde_json::from_str(note).ok()?;
    if format != FORMAT || step > of.steps {
        return None;
    }
    let (mut weights, mut moments) = (NamedTensors::new(), NamedTensors::new());
    for (name, tensor) in tensors {
        match (name.strip_prefix(WEIGHT), name.strip_prefix(MOMENT)) {
            (Some(name), _) => weights.insert(name.to_owned(), tensor),
            (None, Some(name)) => moments.insert(name.to_owned(), tensor),
            (None, None) => return None,
        };
    }
    let optimizer = OptimizerState { steps: optimizer_steps, moments };
    Some((of, RoundState { step, loss_sum, weights, optimizer }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use common::ids::{ArtifactHash, Digest};

    use super::*;
    use crate::model::HostTensor;

    fn key() -> CheckpointKey {
        let digest = Digest::of(b"checkpoint");
        CheckpointKey { study: StudyDigest(digest), round: RoundId(4), base: ArtifactHash(digest), steps: 9 }
    }

    fn state() -> RoundState {
        let ramp = |n: usize| HostTensor::from_fn(vec![n, 2], |i| 1.0 / (i as f32 + 3.0));
        let optimizer = OptimizerState {
            steps: u64::MAX - 5,
            moments: NamedTensors::from([
                ("first.w".to_owned(), ramp(3)),
                ("second.w".to_owned(), HostTensor::from_fn(vec![3, 2], |_| f32::MIN_POSITIVE)),
            ]),
        };
        let weights = NamedTensors::from([("w".to_owned(), ramp(3)), ("b".to_owned(), ramp(0))]);
        RoundState { step: 7, loss_sum: 1.0 / 3.0 + 2e-17, weights, optimizer }
    }

    #[test]
    fn a_round_reads_back_exactly_where_it_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("round.checkpoint");
        assert_eq!(read_checkpoint(&path, &key()).unwrap(), None);
        store_checkpoint(&path, &key(), &state().into_live()).unwrap();
        let back = read_checkpoint(&path, &key()).unwrap().unwrap();
        assert_eq!(back, state());
        assert_eq!(back.loss_sum.to_bits(), state().loss_sum.to_bits());

        // The next one takes its place, and leaves nothing beside it.
        let next = RoundState { step: 8, ..state() };
        store_checkpoint(&path, &key(), &next.into_live()).unwrap();
        assert_eq!(read_checkpoint(&path, &key()).unwrap().unwrap().step, 8);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_checkpoint_of_another_round_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("round.checkpoint");
        store_checkpoint(&path, &key(), &state().into_live()).unwrap();
        let other = Digest::of(b"another");
        for wanted in [
            CheckpointKey { study: StudyDigest(other), ..key() },
            CheckpointKey { round: RoundId(5), ..key() },
            CheckpointKey { base: ArtifactHash(other), ..key() },
            CheckpointKey { steps: 10, ..key() },
        ] {
            let refused = read_checkpoint(&path, &wanted);
            assert!(matches!(refused, Err(CheckpointError::OfAnother { found, .. }) if found == key()));
        }
    }

    #[test]
    fn a_damaged_checkpoint_is_noticed_wherever_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("round.checkpoint");
        store_checkpoint(&path, &key(), &state().into_live()).unwrap();
        let whole = fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            matches!(read_checkpoint(&path, &key()), Err(CheckpointError::Damaged { .. }))
        };
        for at in [0, 20, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(damaged(&bytes), "byte {at}");
        }
        for length in [0, 31, 32, whole.len() - 1] {
            assert!(damaged(&whole[..length]), "{length} bytes");
        }
    }
}
