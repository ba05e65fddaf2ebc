//! What the optimiser remembers, as a file: by tensor name, durable before it counts, refused when damaged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::optimizer::OptimizerState;
pub use super::sealed::UNFINISHED;
use super::sealed::{read_sealed, write_sealed};
use crate::model::{HostTensor, LiveTensor};

/// Holds the number of steps: four parts of 16 bits each, which an f32 holds exactly.
const STEPS: &str = "steps";

/// An optimiser state that could not be stored or read back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system's refusal.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that was cut short, changed, or written by something else.
    #[error("{}: not an optimiser state, or damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// Stores a state under `path`, whole or not at all; on return it survives a loss of power.
///
/// # Errors
/// The disk's refusal.
pub fn store_state(path: &Path, state: &OptimizerState<LiveTensor>) -> Result<(), StateError> {
    let steps =
        LiveTensor::from(HostTensor::from_fn(vec![4], |part| f32::from((state.steps >> (16 * part)) as u16)));
    let moments = state.moments.iter().map(|(name, moment)| (name.clone(), moment));
    let tensors: BTreeMap<String, &LiveTensor> = moments.chain([(STEPS.to_owned(), &steps)]).collect();
    let stored = write_sealed(path, &tensors, None);
    stored.map_err(|source| StateError::Io { path: path.to_owned(), source })
}

/// Reads a stored state.
///
/// # Errors
/// [`StateError::Damaged`] for anything but what [`store_state`] wrote.
pub fn read_state(path: &Path) -> Result<OptimizerState, StateError> {
    let sealed = read_sealed(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
    let state = sealed.and_then(|(mut moments, _)| {
        let (_, parts) = moments.remove(STEPS)?.into_parts();
        let steps = parts.iter().rev().fold(0, |steps, &part| steps << 16 | part as u64);
        Some(OptimizerState { steps, moments })
    });
    state.ok_or_else(|| StateError::Damaged { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::NamedTensors;

    #[test]
    fn a_state_reads_back_exactly_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let tensor = HostTensor::from_fn(vec![3, 2], |i| 1.0 / (i as f32 + 3.0));
        let moments = NamedTensors::from([("first.w".to_owned(), tensor)]);
        for steps in [0, 20, 70_000, u64::MAX - 5] {
            let state = OptimizerState { steps, moments: moments.clone() };
            store_state(&path, &state.clone().into_live()).unwrap();
            assert_eq!(read_state(&path).unwrap(), state);
        }
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(read_state(&path), Err(StateError::Damaged { .. })));
        fs::write(&path, &bytes[..10]).unwrap();
        assert!(matches!(read_state(&path), Err(StateError::Damaged { .. })));
    }
}
