//! A checkpoint's state dict: names and shapes at once, values one tensor at a time.
//!
//! The reference's trainer saves `{net, optimizer, scheduler, epoch}`, pre-training saves `{epoch, state_dict}`, and a
//! bare state dict is accepted too; everything beside the state dict is passed over. What the names mean is said in
//! [`layout`](super::layout).

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use super::{
    archive::Archive,
    error::{CheckpointError, PickleRefusal},
    numbers::Values,
    pickle::{Id, Node, Pickle, StoredTensor},
};
use crate::model::tensors::value_count;

/// Ten times the pickle of the reference's largest model with its optimiser.
const MAX_PICKLE: u64 = 1 << 20;

/// Where a state dict may be, in this order.
const TOP_KEYS: [&str; 2] = ["net", "state_dict"];

/// What tensors may share in a small file: the eight indices of token distances are 8 MiB of one.
const SHARED: u64 = 16 << 20;

/// Longer names than any module tree has.
const MAX_NAME: usize = 200;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint<R> {
    archive: Archive<R>,
    tensors: BTreeMap<String, StoredTensor>,
    /// Bytes of storages that may still be read: tensors may share a storage, but not each of ten thousand the largest.
    budget: u64,
}

/// A tensor as it was stored, made contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Length of each axis, outermost first.
    pub shape: Vec<usize>,
    /// The values in C order.
    pub values: Values,
}

impl<R: Read + Seek> Checkpoint<R> {
    /// Reads names and shapes. Nothing of the file is executed.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if the file is none of PyTorch's, its pickle asks for more than tensors, or there is no state
    /// dict in it.
    pub fn open(file: R) -> Result<Self, CheckpointError> {
        let mut archive = Archive::open(file)?;
        if archive.size("byteorder").is_some() && archive.read("byteorder")? != b"little" {
            return Err(CheckpointError::Archive("its numbers are not little-endian".to_owned()));
        }
        let length = archive.size("data.pkl").unwrap_or(0);
        if length > MAX_PICKLE {
            let refusal = PickleRefusal::TooLong { length, most: MAX_PICKLE };
            return Err(CheckpointError::Pickle { position: 0, refusal });
        }
        let tensors = state_dict(&Pickle::parse(&archive.read("data.pkl")?)?)?;
        let budget = archive.length().saturating_mul(2).saturating_add(SHARED);
        Ok(Self { archive, tensors, budget })
    }

    /// Names of the tensors, ascending.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The values of a tensor.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if there is no such tensor, or it reaches beyond its storage.
    pub fn read(&mut self, name: &str) -> Result<Stored, CheckpointError> {
        let problem =
            |problem: &str| CheckpointError::Tensor { name: name.to_owned(), problem: problem.to_owned() };
        let tensor = self.tensors.get(name).ok_or_else(|| problem("is not in the checkpoint"))?;
        let places = Places::of(tensor).ok_or_else(|| problem("reaches beyond its storage"))?;
        let bytes = tensor.storage.length.checked_mul(tensor.storage.number.size());
        let entry = format!("data/{}", tensor.storage.key);
        let available = self.archive.size(&entry).ok_or_else(|| problem("has no storage in the file"))?;
        if bytes.is_none_or(|bytes| bytes > available) {
            return Err(problem("has a storage that is shorter than it says"));
        }
        self.budget =
            self.budget.checked_sub(available).ok_or_else(|| problem("shares too large a storage"))?;
        let number = tensor.storage.number;
        let bytes = self.archive.read(&entry)?;
        Ok(Stored { values: number.decode(&bytes, places.positions()), shape: places.shape })
    }
}

/// Where the numbers of a tensor are in its storage: all of them inside.
struct Places {
    shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    count: usize,
}

impl Places {
    /// `None` if a number would be outside, or there are more of them than the storage has.
    fn of(tensor: &StoredTensor) -> Option<Self> {
        let narrow =
            |sizes: &[u64]| sizes.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>();
        let (shape, strides) = (narrow(&tensor.shape)?, narrow(&tensor.strides)?);
        let offset = usize::try_from(tensor.offset).ok()?;
        let length = usize::try_from(tensor.storage.length).ok()?;
        let count = value_count(&shape)?;
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&axis, &stride)| {
            last.checked_add(axis.saturating_sub(1).checked_mul(stride)?)
        })?;
        let is_inside = count == 0 || (last < length && count <= length);
        is_inside.then_some(Self { shape, strides, offset, count })
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&axis, &stride)| {
            let fits = axis == 1 || stride == expected;
            expected *= axis;
            fits
        })
    }

    /// The positions in C order.
    fn positions(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        if self.count == 0 || self.is_contiguous() {
            return Box::new(self.offset..self.offset + self.count);
        }
        Box::new((0..self.count).map(move |flat| {
            let mut rest = flat;
            let axes = self.shape.iter().zip(&self.strides).rev();
            axes.fold(self.offset, |position, (&axis, &stride)| {
                let index = rest % axis;
                rest /= axis;
                position + index * stride
            })
        }))
    }
}

fn state_dict(pickle: &Pickle<'_>) -> Result<BTreeMap<String, StoredTensor>, CheckpointError> {
    let Node::Dict(top) = pickle.root() else {
        return Err(CheckpointError::StateDict("the file holds no dictionary".to_owned()));
    };
    let mut tensors = BTreeMap::new();
    for &(name, value) in entries(pickle, top)? {
        let name = plain_name(pickle.node(name))?;
        let problem =
            |problem: &str| CheckpointError::Tensor { name: name.to_owned(), problem: problem.to_owned() };
        let Node::Tensor(tensor) = pickle.node(value) else { return Err(problem("is no tensor")) };
        if tensors.insert(name.to_owned(), tensor.clone()).is_some() {
            return Err(problem("is there twice"));
        }
    }
    if tensors.is_empty() {
        return Err(CheckpointError::StateDict("the dictionary is empty".to_owned()));
    }
    Ok(tensors)
}

/// The entries of the dictionary below one of [`TOP_KEYS`], or of the top itself.
fn entries<'p>(pickle: &'p Pickle<'_>, top: &'p [(Id, Id)]) -> Result<&'p [(Id, Id)], CheckpointError> {
    for key in TOP_KEYS {
        let mut below =
            top.iter().filter(|&&(name, _)| matches!(pickle.node(name), Node::Text(text) if *text == key));
        match (below.next(), below.next()) {
            (None, _) => {}
            (Some(&(_, value)), None) => {
                return match pickle.node(value) {
                    Node::Dict(entries) => Ok(entries.as_slice()),
                    _ => Err(CheckpointError::StateDict(format!("`{key}` is no dictionary"))),
                };
            }
            (Some(_), Some(_)) => return Err(CheckpointError::StateDict(format!("`{key}` is there twice"))),
        }
    }
    Ok(top)
}

/// Names go into messages and files: none may bring control characters.
fn plain_name<'p>(node: &Node<'p>) -> Result<&'p str, CheckpointError> {
    match node {
        Node::Text(name) if name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(*name)
        }
        _ => Err(CheckpointError::StateDict("a name in it is no name of a tensor".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::{numbers::Number, pickle::Storage};

    fn tensor(offset: u64, shape: &[u64], strides: &[u64]) -> StoredTensor {
        let storage = Storage { number: Number::F32, key: "0".to_owned(), length: 24 };
        StoredTensor { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    fn positions(offset: u64, shape: &[u64], strides: &[u64]) -> Option<Vec<usize>> {
        Places::of(&tensor(offset, shape, strides)).map(|places| places.positions().collect())
    }

    #[test]
    fn a_tensor_is_read_in_c_order_whatever_its_strides() {
        assert_eq!(positions(2, &[2, 3], &[3, 1]), Some(vec![2, 3, 4, 5, 6, 7]));
        assert_eq!(positions(0, &[3, 2], &[1, 3]), Some(vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(positions(1, &[2, 1, 2], &[8, 77, 2]), Some(vec![1, 3, 9, 11]));
        assert_eq!(positions(5, &[], &[]), Some(vec![5]));
        assert_eq!(positions(0, &[0, 5], &[5, 1]), Some(vec![]));
    }

    #[test]
    fn nothing_outside_of_the_storage_is_reached() {
        assert_eq!(positions(0, &[24], &[1]).map(|all| all.len()), Some(24));
        for (offset, shape, strides) in [
            (1, vec![24], vec![1]),
            (24, vec![], vec![]),
            (0, vec![2, 3], vec![22, 1]),
            (0, vec![1 << 40], vec![0]),
            (0, vec![1 << 33, 1 << 33], vec![0, 0]),
            (0, vec![0, 1 << 33, 1 << 33], vec![0, 0, 0]),
            (0, vec![3], vec![u64::MAX / 2]),
            (u64::MAX, vec![2], vec![1]),
        ] {
            assert_eq!(positions(offset, &shape, &strides), None, "{offset} {shape:?} {strides:?}");
        }
    }
}
