//! What the optimiser remembers, as a file: by tensor name, durable before it counts, refused when damaged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::optimizer::OptimizerState;
use crate::model::record::{read_safetensors, write_safetensors};
use crate::model::{HostTensor, ModelError};

/// Holds the number of steps: four parts of 16 bits each, which an f32 holds exactly.
const STEPS: &str = "steps";
const DIGEST_BYTES: usize = 32;
/// How the names of files begin that are not whole yet.
pub const UNFINISHED: &str = ".writing-";

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
    /// Tensors that have no safetensors form.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Stores a state under `path`, whole or not at all; on return it survives a loss of power.
///
/// # Errors
/// The disk's refusal.
pub fn store_state(path: &Path, state: &OptimizerState) -> Result<(), StateError> {
    let mut tensors = state.moments.clone();
    let parts = [0, 16, 32, 48].map(|shift| f32::from((state.steps >> shift) as u16));
    tensors.insert(STEPS.to_owned(), HostTensor::new(vec![4], parts.to_vec())?);
    let mut bytes = write_safetensors(&tensors)?;
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());

    let stored = replace(path, |file| file.write_all(&bytes));
    stored.map_err(|source| StateError::Io { path: path.to_owned(), source })
}

/// Replaces a file as a whole: after a crash the old content is there or the new, and what `write` left of a new one has
/// the name of an unfinished file.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|refused| refused.error)?;
    File::open(folder)?.sync_all()
}

/// Reads a stored state.
///
/// # Errors
/// [`StateError::Damaged`] for anything but what [`store_state`] wrote.
pub fn read_state(path: &Path) -> Result<OptimizerState, StateError> {
    let bytes = fs::read(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
    decode(&bytes).ok_or_else(|| StateError::Damaged { path: path.to_owned() })
}

fn decode(bytes: &[u8]) -> Option<OptimizerState> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if blake3::hash(content).as_bytes() != digest {
        return None;
    }
    let mut moments = read_safetensors(content).ok()?;
    let (_, parts) = moments.remove(STEPS)?.into_parts();
    let steps = parts.iter().rev().fold(0, |steps, &part| steps << 16 | part as u64);
    Some(OptimizerState { steps, moments })
}

#[cfg(test)]
mod tests {
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
            store_state(&path, &state).unwrap();
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
