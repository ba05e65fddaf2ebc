//! What can be wrong with a model, its files and its inputs.

use common::ids::ClassId;

use super::device::DeviceKind;
use super::tensors::TensorMismatch;

/// A model that cannot be built, loaded or asked what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The width does not suit the group normalisation of the head.
    #[error(
        "width {width} is not a positive multiple of {multiple}, as this backbone's channels and groups need"
    )]
    Width {
        /// Width asked for.
        width: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// Channel counts of a stand-alone head do not suit its group normalisation.
    #[error("{channels} channels do not split into groups: expected a multiple of 4")]
    Groups {
        /// Channel count of the feature map.
        channels: usize,
    },
    /// The class embeddings are not those that the configuration names.
    #[error("class embeddings are {got}, the model expects {expected}")]
    Embedding {
        /// What the configuration says: kind, rows and width.
        expected: String,
        /// What was given.
        got: String,
    },
    /// Embedding values that are no numbers, or a table of no size.
    #[error("class embeddings: {0}")]
    EmbeddingValues(String),
    /// Names or shapes of tensors do not fit this model.
    #[error("tensors do not fit this model: {0}")]
    Mismatch(TensorMismatch),
    /// A tensor whose number of values contradicts its shape.
    #[error("tensor has {got} values, its shape {shape:?} needs {expected}")]
    Length {
        /// Length of each axis.
        shape: Vec<usize>,
        /// Product of the axes.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// The input patch cannot be halved as often as the backbone does, or ends in one voxel.
    #[error(
        "patch of {got:?} voxels: each side must be a multiple of {multiple}, and not all {multiple} (statistics of one voxel)"
    )]
    Patch {
        /// Axes `[x, y, z]` of the patch.
        got: [usize; 3],
        /// What each side must be a multiple of.
        multiple: usize,
    },
    /// An input that does not have exactly one channel.
    #[error("input has {got} channels, the model reads 1")]
    InputChannels {
        /// Channels given.
        got: usize,
    },
    /// No class was asked for, or one that the embeddings do not have.
    #[error("class {class} is not among the {rows} rows of the class embeddings")]
    Class {
        /// Class asked for.
        class: ClassId,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// A forward pass over no class at all.
    #[error("no class was asked for")]
    NoClass,
    /// A file that is not safetensors, or has a number format we do not read.
    #[error("safetensors: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// A tensor in a number format other than floating point.
    #[error("tensor `{name}` has number format {dtype}; F32, F16, BF16 and F64 are read")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// Its format, as the file says.
        dtype: String,
    },
    /// A device that this binary was not built for.
    #[error("this site-agent was built without `{feature}`\n\nhint: build it with `--features {feature}`")]
    DeviceNotBuilt {
        /// The cargo feature that is missing.
        feature: &'static str,
    },
    /// A device that this machine does not have.
    #[error(
        "device `{device}` is not there: {found} of its kind found\n\nhint: indices begin at 0. None at all means that its \
         driver is not installed or not visible to this user"
    )]
    DeviceAbsent {
        /// What was asked for.
        device: DeviceKind,
        /// How many there are.
        found: usize,
    },
    /// A device name that means nothing.
    #[error("unknown device `{0}`; known: cpu, cuda, cuda:<index>, vulkan, vulkan:<index>")]
    UnknownDevice(String),
}
