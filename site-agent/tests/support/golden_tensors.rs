//! The tensors of a golden file, of which a test may not leave out one unnoticed.

use std::{cell::RefCell, collections::BTreeSet, ops::Index};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use site_agent::model::{HostTensor, NamedTensors};

use super::golden::{Golden, PASSED_OVER};

/// F32 tensors, and U8 tensors widened. Dropping them fails the test if it did not look at one of the file's tensors,
/// unless [`PASSED_OVER`] says why it need not.
pub(crate) struct GoldenTensors {
    file: String,
    tensors: NamedTensors,
    unread: RefCell<BTreeSet<String>>,
}

impl Golden {
    pub(crate) fn tensors(&self, file: &str) -> GoldenTensors {
        let bytes = self.bytes(file);
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let decode = |(name, view): (&str, TensorView<'_>)| {
            let values = match view.dtype() {
                Dtype::F32 => view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
                // Counters: nothing to read, so each has to be passed over.
                Dtype::I64 => return None,
                other => panic!("{file}: {name} is {other:?}"),
            };
            Some((name.to_owned(), HostTensor::new(view.shape().to_vec(), values).unwrap()))
        };
        let may_pass = |name: &str| {
            let mut entries = PASSED_OVER.iter().filter(|(of, by, ..)| *of == file && *by == self.test);
            entries.any(|(_, _, part, _)| name.contains(part))
        };
        let unread = stored.names().into_iter().filter(|name| !may_pass(name)).map(str::to_owned).collect();
        GoldenTensors {
            file: file.to_owned(),
            tensors: stored.iter().filter_map(decode).collect(),
            unread: RefCell::new(unread),
        }
    }
}

impl GoldenTensors {
    pub(crate) fn get(&self, name: &str) -> Option<&HostTensor> {
        self.unread.borrow_mut().remove(name);
        self.tensors.get(name)
    }

    /// Every tensor whose name starts with `prefix`, by the rest of its name.
    pub(crate) fn below(&self, prefix: &str) -> NamedTensors {
        let names = self.names().filter_map(|name| name.strip_prefix(prefix));
        names.map(|rest| (rest.to_owned(), self[&format!("{prefix}{rest}")].clone())).collect()
    }

    /// The names alone: nothing counts as read.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }
}

impl<Name: AsRef<str> + ?Sized> Index<&Name> for GoldenTensors {
    type Output = HostTensor;

    fn index(&self, name: &Name) -> &HostTensor {
        self.get(name.as_ref()).unwrap_or_else(|| panic!("{} has no tensor `{}`", self.file, name.as_ref()))
    }
}

impl Drop for GoldenTensors {
    fn drop(&mut self) {
        let (unread, failed) = (self.unread.borrow(), std::thread::panicking());
        assert!(failed || unread.is_empty(), "not looked at in {}: {unread:?}", self.file);
    }
}
