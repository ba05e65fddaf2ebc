//! A model as a checkpoint that PyTorch loads.
//!
//! The layout is that of the reference's released U-Net file, `{"net": state dict}` with `module.` before every name,
//! because the code that was released with it copies from there. Beside the trained tensors it has every buffer that a
//! strict load wants: the class embeddings, statistics of batch normalisation as they are before training (this network
//! never reads them), and the index of token distances. Equal models give equal bytes.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    archive_writer::ArchiveWriter,
    error::CheckpointError,
    layout::{
        BATCHES, BIAS_TABLE, DISTRIBUTED, RELATIVE_INDEX, RUNNING_MEAN, RUNNING_VAR, WINDOW_TOKENS,
        relative_position_index,
    },
};
use crate::model::{
    embedding::EMBEDDING_NAME,
    tensors::{HostTensor, NamedTensors},
};

/// Writes trained tensors, and the fixed class embeddings of a model that has them.
///
/// # Errors
///
/// [`CheckpointError::TooLarge`] from 4 GiB.
pub fn write_pytorch(
    tensors: &NamedTensors,
    embeddings: Option<&HostTensor>,
) -> Result<Vec<u8>, CheckpointError> {
    let items = state_dict(tensors, embeddings);
    let mut archive = ArchiveWriter::default();
    archive.add("archive/data.pkl", &pickle(&items)?)?;
    archive.add("archive/byteorder", b"little")?;
    let mut written = None;
    for (item, key) in items.values().zip(storage_keys(&items)) {
        // Keys ascend, but for those of a shared storage, which are the first one's.
        if written.is_none_or(|last| last < key) {
            archive.add(&format!("archive/data/{key}"), &item.bytes())?;
            written = Some(key);
        }
    }
    archive.add("archive/version", b"3\n")?;
    archive.finish()
}

/// What a state dict holds under a name.
enum Item<'a> {
    Tensor(&'a HostTensor),
    /// One number again and again.
    Constant(f32, &'a [usize]),
    /// The number of batches seen: 0.
    Batches,
    RelativeIndex,
}

impl Item<'_> {
    fn shape(&self) -> Cow<'_, [usize]> {
        match self {
            Self::Tensor(tensor) => tensor.shape().into(),
            Self::Constant(_, shape) => (*shape).into(),
            Self::Batches => Cow::Owned(Vec::new()),
            Self::RelativeIndex => Cow::Owned(vec![WINDOW_TOKENS; 2]),
        }
    }

    fn storage_class(&self) -> &'static str {
        match self {
            Self::Tensor(_) | Self::Constant(..) => "FloatStorage",
            Self::Batches | Self::RelativeIndex => "LongStorage",
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Tensor(tensor) => tensor.values().iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Constant(value, shape) => value.to_le_bytes().repeat(shape.iter().product()),
            Self::Batches => vec![0; 8],
            Self::RelativeIndex => {
                relative_position_index().iter().flat_map(|row| row.to_le_bytes()).collect()
            }
        }
    }
}

fn state_dict<'a>(
    tensors: &'a NamedTensors,
    embeddings: Option<&'a HostTensor>,
) -> BTreeMap<String, Item<'a>> {
    let mut items = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Some(norm) = name.strip_suffix("bn1.weight") {
            items.insert(format!("{norm}bn1.{RUNNING_MEAN}"), Item::Constant(0.0, tensor.shape()));
            items.insert(format!("{norm}bn1.{RUNNING_VAR}"), Item::Constant(1.0, tensor.shape()));
            items.insert(format!("{norm}bn1.{BATCHES}"), Item::Batches);
        }
        if let Some(attention) = name.strip_suffix(BIAS_TABLE) {
            items.insert(format!("{attention}{RELATIVE_INDEX}"), Item::RelativeIndex);
        }
        items.insert(name.clone(), Item::Tensor(tensor));
    }
    items.extend(embeddings.map(|table| (EMBEDDING_NAME.to_owned(), Item::Tensor(table))));
    items
}

/// The number of each item's storage: its own place, except that the indices of all windows are one storage.
fn storage_keys(items: &BTreeMap<String, Item<'_>>) -> Vec<usize> {
    let first_index = items.values().position(|item| matches!(item, Item::RelativeIndex));
    let key = |(place, item): (usize, &Item<'_>)| match item {
        Item::RelativeIndex => first_index.unwrap_or(place),
        _ => place,
    };
    items.values().enumerate().map(key).collect()
}

/// `{"net": OrderedDict}` in protocol 2, as `torch.save` pickles it, without recalling anything.
fn pickle(items: &BTreeMap<String, Item<'_>>) -> Result<Vec<u8>, CheckpointError> {
    let mut out = Pickler(vec![0x80, 2, b'}']);
    out.text("net")?;
    out.ordered_dict();
    out.op(b'(');
    for ((name, item), key) in items.iter().zip(storage_keys(items)) {
        out.text(&format!("{DISTRIBUTED}{name}"))?;
        out.tensor(item, key)?;
    }
    out.op(b'u');
    out.op(b's');
    out.op(b'.');
    Ok(out.0)
}

struct Pickler(Vec<u8>);

impl Pickler {
    fn op(&mut self, op: u8) {
        self.0.push(op);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend_from_slice(b")R");
    }

    fn text(&mut self, text: &str) -> Result<(), CheckpointError> {
        let length = u32::try_from(text.len()).map_err(|_| CheckpointError::TooLarge("a name of 4 GiB"))?;
        self.op(b'X');
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn int(&mut self, value: usize) -> Result<(), CheckpointError> {
        let value =
            i32::try_from(value).map_err(|_| CheckpointError::TooLarge("a tensor of 2^31 numbers"))?;
        self.op(b'J');
        self.0.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn ints(&mut self, values: &[usize]) -> Result<(), CheckpointError> {
        self.op(b'(');
        for &value in values {
            self.int(value)?;
        }
        self.op(b't');
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
    fn tensor(&mut self, item: &Item<'_>, key: usize) -> Result<(), CheckpointError> {
        let shape = item.shape();
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.op(b'(');
        self.op(b'(');
        self.text("storage")?;
        self.global("torch", item.storage_class());
        self.text(&key.to_string())?;
        self.text("cpu")?;
        self.int(shape.iter().product())?;
        self.op(b't');
        self.op(b'Q');
        self.int(0)?;
        self.ints(&shape)?;
        self.ints(&contiguous_strides(&shape))?;
        self.op(0x89);
        self.ordered_dict();
        self.op(b't');
        self.op(b'R');
        Ok(())
    }
}

fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect()
}
