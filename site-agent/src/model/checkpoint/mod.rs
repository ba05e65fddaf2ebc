//! Checkpoints of the reference: PyTorch's files in and out, without PyTorch and without running anything in them.
//!
//! ```text
//! in:  archive → pickle → reader (tensors by stored name) → layout → Imported (tensors by our names)
//! out: write   → archive_writer
//! ```
//! All of it is about names and shapes and none about a backbone: [`Imported::check`] compares with whatever model is
//! given. What is refused and why there is no general reader of pickles here: `docs/decisions/0013`.

mod archive;
mod archive_writer;
mod bytes;
mod error;
mod layout;
mod numbers;
mod pickle;
mod reader;
mod write;

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use self::layout::{Role, WINDOW_TOKENS};
pub use self::{
    error::{CheckpointError, PickleRefusal},
    layout::Part,
    numbers::Values,
    reader::{Checkpoint, Stored},
    write::write_pytorch,
};
use super::{
    embedding::EMBEDDING_NAME,
    error::ModelError,
    tensors::{HostTensor, NamedTensors, TensorMismatch},
};

/// The tensors of a checkpoint by our names.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// Which part was asked for.
    pub part: Part,
    /// The trained tensors.
    pub tensors: NamedTensors,
    /// The fixed class embeddings, if the checkpoint has them.
    pub embeddings: Option<HostTensor>,
}

impl Imported {
    /// Reads every tensor that the model could have.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if a tensor lies outside of its storage, two have one name of ours, weights are integers, or an
    /// index of token distances is not that of a 7 x 7 x 7 window.
    pub fn read<R: Read + Seek>(checkpoint: &mut Checkpoint<R>, part: Part) -> Result<Self, CheckpointError> {
        let mut imported = Self { part, tensors: NamedTensors::new(), embeddings: None };
        for stored_name in checkpoint.names() {
            match layout::role(&stored_name, part) {
                Role::PassedOver => {}
                Role::RelativeIndex => check_index(&stored_name, &checkpoint.read(&stored_name)?)?,
                Role::Embeddings => {
                    let table = floats(&stored_name, checkpoint.read(&stored_name)?)?;
                    if imported.embeddings.replace(table).is_some() {
                        return Err(twice(stored_name));
                    }
                }
                Role::Trained(name) => {
                    let tensor = floats(&stored_name, checkpoint.read(&stored_name)?)?;
                    if imported.tensors.insert(name, tensor).is_some() {
                        return Err(twice(stored_name));
                    }
                }
            }
        }
        Ok(imported)
    }

    /// Compares with a model's trained tensors, of which only the backbone's count where only that was asked for, and the
    /// embeddings with the number of classes.
    ///
    /// # Errors
    ///
    /// [`ModelError::Mismatch`] with every difference.
    pub fn check(&self, model: &BTreeMap<String, Vec<usize>>, classes: usize) -> Result<(), ModelError> {
        let is_wanted = |name: &str| self.part == Part::Whole || name.starts_with("backbone.");
        let wanted = model.iter().filter(|(name, _)| is_wanted(name.as_str()));
        let mut expected: BTreeMap<_, _> =
            wanted.map(|(name, shape)| (name.clone(), shape.clone())).collect();
        let mut given: BTreeMap<_, _> =
            self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
        if let Some(table) = &self.embeddings {
            // Of any width: the model is built for the width that the table has.
            let width = table.shape().get(1).copied().unwrap_or(0);
            expected.insert(EMBEDDING_NAME.to_owned(), vec![classes, width]);
            given.insert(EMBEDDING_NAME.to_owned(), table.shape().to_vec());
        }
        TensorMismatch::check_shapes(&expected, &given)
    }
}

fn floats(name: &str, stored: Stored) -> Result<HostTensor, CheckpointError> {
    match stored.values {
        Values::Floats(values) => Ok(HostTensor::new(stored.shape, values)?),
        Values::Integers(_) => Err(problem(name, "holds integers, not weights")),
    }
}

fn check_index(name: &str, stored: &Stored) -> Result<(), CheckpointError> {
    let is_ours = stored.shape == [WINDOW_TOKENS; 2]
        && stored.values == Values::Integers(layout::relative_position_index());
    if is_ours { Ok(()) } else { Err(problem(name, "is not the index of a window of 7 x 7 x 7 tokens")) }
}

fn twice(name: String) -> CheckpointError {
    problem(&name, "is there twice, with and without a prefix")
}

fn problem(name: &str, problem: &str) -> CheckpointError {
    CheckpointError::Tensor { name: name.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests;
