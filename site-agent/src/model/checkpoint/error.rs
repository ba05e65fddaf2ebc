//! Why a checkpoint is not read or not written.

use crate::model::error::ModelError;

/// A checkpoint that is damaged, hostile, or of another kind.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system failed.
    #[error("the checkpoint cannot be read")]
    Io(#[from] std::io::Error),
    /// The file is not the zip archive that PyTorch writes.
    #[error("not a checkpoint of PyTorch: {0}")]
    Archive(String),
    /// The pickle asks for something that a file of tensors has no need of.
    #[error("refused at byte {position} of the pickle: {refusal}")]
    Pickle {
        /// Where in `data.pkl` the instruction begins.
        position: usize,
        /// What it asks for.
        refusal: PickleRefusal,
    },
    /// No dictionary of tensors where the reference puts it.
    #[error("no state dict: {0}")]
    StateDict(String),
    /// A tensor that contradicts its storage, its name or the specification.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// Its name in the file.
        name: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// More than the classic zip format holds.
    #[error("the model does not fit into a checkpoint: {0}")]
    TooLarge(&'static str),
    /// The tensors themselves.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl CheckpointError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Pickle { .. } | Self::StateDict(_) => Some(
                "where you trust the file, let PyTorch save its tensors alone: \
                 torch.save({'net': model.state_dict()}, FILE)",
            ),
            Self::Archive(_) => Some("let a PyTorch of 1.6 or newer load the file and save it again"),
            _ => None,
        }
    }
}

/// An instruction that the pickle machine does not follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleRefusal {
    /// Longer than the pickle of any model.
    #[error("{length} bytes of pickle, at most {most} are read")]
    TooLong {
        /// Bytes in the file.
        length: u64,
        /// Bytes that are read.
        most: u64,
    },
    /// It ends inside an instruction.
    #[error("it is cut off")]
    Truncated,
    /// Values or bytes are left at its end.
    #[error("something is left over at its end")]
    LeftOver,
    /// Another protocol than that of `torch.save`.
    #[error("pickle protocol {0}, only 2 is read")]
    Protocol(u8),
    /// An instruction that `torch.save` does not write.
    #[error("instruction {0:#04x}")]
    Instruction(u8),
    /// A name of Python code that is not among those that tensors need.
    #[error("it names the Python object {0:?}; no code of a checkpoint is run")]
    Global(String),
    /// A call of something else than the functions that build tensors and dictionaries.
    #[error("it calls something that builds no tensor")]
    Call,
    /// State for something else than a dictionary.
    #[error("it sets the state of something that is no dictionary")]
    State,
    /// It takes more values than it has put down.
    #[error("it takes a value that is not there")]
    Stack,
    /// It recalls a value that it never stored.
    #[error("it recalls value {0}, which it never stored")]
    Memo(u32),
    /// A value of another type than its place needs.
    #[error("{0} expected")]
    Expected(&'static str),
}
