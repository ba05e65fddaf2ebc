//! What a pickle holds, once a machine that can do nothing else has built it: dictionaries of tensors.
//!
//! Values live in one list and refer to each other by index: no depth of nesting can overflow a stack, neither while reading
//! nor while dropping, and recalling a value copies nothing. So memory is bounded by the pickle's own length, which
//! the caller bounds. How values come about is in [`machine`].

mod machine;

use super::{error::CheckpointError, numbers::Number};

/// A value's place in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(usize);

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'a> {
    /// Something that no tensor needs: none, a truth value, a float, a very long integer.
    Opaque,
    Int(i64),
    Text(&'a str),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    /// A dictionary, ordered or not, as it was filled.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(StoredTensor),
}

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Number),
}

/// Numbers in an entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) number: Number,
    /// The entry is `data/<key>`.
    pub(super) key: String,
    /// How many numbers.
    pub(super) length: u64,
}

/// Where a tensor's numbers are in its storage; nothing here was compared with the archive yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredTensor {
    pub(super) storage: Storage,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// As many as axes.
    pub(super) strides: Vec<u64>,
}

/// All values of a pickle.
#[derive(Clone, Debug)]
pub(super) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Builds the values of a pickle.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Pickle`] at the first instruction that is not followed.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let (nodes, root) = machine::run(bytes)?;
        Ok(Self { nodes, root })
    }

    /// The value that the pickle is for.
    pub(super) fn root(&self) -> &Node<'a> {
        self.node(self.root)
    }

    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0]
    }
}

#[cfg(test)]
mod tests;
