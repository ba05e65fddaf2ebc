//! Model and embedding files (safetensors) into artifacts. The coordinator knows tensors by name, shape and format only.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::artifact::{ArtifactManifest, Dtype, LayoutError, TensorLayout, TensorSpec};
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::store::{Artifacts, StoreError};

/// Why a file does not become an artifact.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file.
    #[error("{}", .path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not safetensors.
    #[error("{}: not a safetensors file", .path.display())]
    Format {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A tensor in another format than f32, or larger than an axis can be.
    #[error("{}: tensor `{tensor}` has format {got} and shape {shape:?}; expected F32", .path.display())]
    Tensor {
        /// Where.
        path: PathBuf,
        /// Which.
        tensor: String,
        /// Its format.
        got: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Its tensors are no layout.
    #[error("{}", .path.display())]
    Layout {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: LayoutError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The key under which `site-agent embed` says how embeddings were made.
const NOTE: &str = "made";
/// Longest header that is read: 4096 tensors of a layout need less than a tenth of it.
const MAX_HEADER: u64 = 16 << 20;

/// Reads the file at `path` into `artifacts`, a chunk at a time. Blocks.
///
/// # Errors
/// [`ImportError`] names the file, and the tensor if it is one.
pub fn import_safetensors(path: &Path, artifacts: &Artifacts) -> Result<ArtifactManifest, ImportError> {
    let file = Opened::open(path)?;
    let mut tensors: Vec<(String, &TensorInfo)> = file.metadata.tensors().into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let specs = tensors.iter().map(|(name, info)| spec(path, name, info)).collect::<Result<Vec<_>, _>>()?;
    let layout =
        TensorLayout::new(specs).map_err(|source| ImportError::Layout { path: path.to_owned(), source })?;
    let spans = layout.spans().to_vec();
    let mut writer = artifacts.write(layout)?;
    let mut bytes = Vec::new();
    // Tensors lie in the file as it likes, and in the artifact in order of name.
    let (mut tensor, mut within) = (0, 0);
    for span in spans {
        if span.tensor != tensor {
            (tensor, within) = (span.tensor, 0);
        }
        bytes.resize(span.len as usize, 0);
        file.read(tensors[tensor].1, within, &mut bytes)?;
        writer.push_chunk(&bytes)?;
        within += u64::from(span.len);
    }
    let hash = writer.finish()?;
    let kept = artifacts.read(&hash)?;
    let kept =
        kept.ok_or_else(|| StoreError::corrupt("artifact", "it is gone right after it was written"))?;
    Ok(kept.manifest().clone())
}

/// How the tensors of the file at `path` were made, if it says so: foreign text. Blocks.
///
/// # Errors
/// [`ImportError`] names the file.
pub fn note(path: &Path) -> Result<Option<String>, ImportError> {
    let file = Opened::open(path)?;
    Ok(file.metadata.metadata().as_ref().and_then(|notes| notes.get(NOTE).cloned()))
}

/// A safetensors file of which the header is read.
struct Opened<'a> {
    path: &'a Path,
    file: File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl<'a> Opened<'a> {
    fn open(path: &'a Path) -> Result<Self, ImportError> {
        let on_disk = |source| ImportError::File { path: path.to_owned(), source };
        let format = |source| ImportError::Format { path: path.to_owned(), source };
        let file = File::open(path).map_err(on_disk)?;
        let size = file.metadata().map_err(on_disk)?.len();
        let mut length = [0; 8];
        if size < length.len() as u64 {
            return Err(format(SafeTensorError::HeaderTooSmall));
        }
        file.read_exact_at(&mut length, 0).map_err(on_disk)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(format(SafeTensorError::HeaderTooLarge));
        }
        if length > size - 8 {
            return Err(format(SafeTensorError::InvalidHeaderLength));
        }
        let mut header = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut header, 8).map_err(on_disk)?;
        // Offsets without gaps or overlaps, of the sizes that the shapes say: the library checks it here.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| format(SafeTensorError::InvalidHeaderDeserialization(error)))?;
        let data = 8 + length;
        if data + metadata.data_len() as u64 != size {
            return Err(format(SafeTensorError::MetadataIncompleteBuffer));
        }
        Ok(Self { path, file, metadata, data })
    }

    /// Reads the bytes of a tensor from `within` on.
    fn read(&self, tensor: &TensorInfo, within: u64, bytes: &mut [u8]) -> Result<(), ImportError> {
        let offset = self.data + tensor.data_offsets.0 as u64 + within;
        let on_disk = |source| ImportError::File { path: self.path.to_owned(), source };
        self.file.read_exact_at(bytes, offset).map_err(on_disk)
    }
}

fn spec(path: &Path, name: &str, tensor: &TensorInfo) -> Result<TensorSpec, ImportError> {
    let shape = tensor.shape.iter().map(|&axis| u32::try_from(axis).ok()).collect::<Option<Vec<u32>>>();
    match (tensor.dtype, shape) {
        (safetensors::Dtype::F32, Some(shape)) => {
            Ok(TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape })
        }
        (got, _) => Err(ImportError::Tensor {
            path: path.to_owned(),
            tensor: name.to_owned(),
            got: format!("{got:?}"),
            shape: tensor.shape.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::store::Store;

    fn file(dtype: safetensors::Dtype, names: &[&str]) -> Vec<u8> {
        let data: Vec<u8> = (0..).take(2 * 3 * dtype.bitsize() / 8).collect();
        let view = || TensorView::new(dtype, vec![2, 3], &data).unwrap();
        safetensors::serialize(names.iter().map(|name| (name.to_string(), view())), None).unwrap()
    }

    #[tokio::test]
    async fn tensors_are_kept_in_order_of_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("state")).await.unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, file(safetensors::Dtype::F32, &["b", "a"])).unwrap();
        let manifest = import_safetensors(&path, store.artifacts()).unwrap();
        let names: Vec<_> =
            manifest.layout().tensors().iter().map(|t| (t.name.as_str(), t.shape.clone())).collect();
        assert_eq!(names, [("a", vec![2, 3]), ("b", vec![2, 3])]);
        let read = store.artifacts().read(&manifest.hash()).unwrap().unwrap();
        assert_eq!(read.read_chunk(1).unwrap(), (0..24u8).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn other_formats_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("state")).await.unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, file(safetensors::Dtype::F64, &["a"])).unwrap();
        let error = import_safetensors(&path, store.artifacts()).unwrap_err();
        assert!(error.to_string().contains("tensor `a` has format F64"), "{error}");
        std::fs::write(&path, b"no").unwrap();
        assert!(matches!(import_safetensors(&path, store.artifacts()), Err(ImportError::Format { .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_or_longer_than_it_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("state")).await.unwrap();
        let path = dir.path().join("m.safetensors");
        let whole = file(safetensors::Dtype::F32, &["a", "b"]);
        let longer = [whole.as_slice(), &[0]].concat();
        for wrong in [&whole[..whole.len() - 1], &longer, &whole[..9], &whole[..4], &[0xff; 64]] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(import_safetensors(&path, store.artifacts()), Err(ImportError::Format { .. })));
        }
    }
}
