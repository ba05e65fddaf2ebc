//! Model and embedding files (safetensors) into artifacts. The coordinator knows tensors by name, shape and format only.

use std::path::{Path, PathBuf};

use common::artifact::{ArtifactManifest, CHUNK_BYTES, Dtype, LayoutError, TensorLayout, TensorSpec};
use safetensors::SafeTensors;

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

/// Reads the file at `path` into `artifacts`. Blocks.
///
/// # Errors
/// [`ImportError`] names the file, and the tensor if it is one.
pub fn import_safetensors(path: &Path, artifacts: &Artifacts) -> Result<ArtifactManifest, ImportError> {
    let bytes = std::fs::read(path).map_err(|source| ImportError::File { path: path.to_owned(), source })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|source| ImportError::Format { path: path.to_owned(), source })?;
    let mut tensors: Vec<_> = file.iter().collect();
    tensors.sort_by_key(|(name, _)| *name);
    let specs = tensors.iter().map(|(name, view)| spec(path, name, view)).collect::<Result<Vec<_>, _>>()?;
    let layout =
        TensorLayout::new(specs).map_err(|source| ImportError::Layout { path: path.to_owned(), source })?;
    let mut writer = artifacts.write(layout)?;
    // 1 MiB fits any address space; chunks never span two tensors, so each tensor is cut by itself.
    let chunk = usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX);
    for piece in tensors.iter().flat_map(|(_, view)| view.data().chunks(chunk)) {
        writer.push_chunk(piece)?;
    }
    let hash = writer.finish()?;
    let kept = artifacts.read(&hash)?;
    let kept =
        kept.ok_or_else(|| StoreError::corrupt("artifact", "it is gone right after it was written"))?;
    Ok(kept.manifest().clone())
}

fn spec(
    path: &Path,
    name: &str,
    view: &safetensors::tensor::TensorView<'_>,
) -> Result<TensorSpec, ImportError> {
    let shape = view.shape().iter().map(|&axis| u32::try_from(axis).ok()).collect::<Option<Vec<u32>>>();
    match (view.dtype(), shape) {
        (safetensors::Dtype::F32, Some(shape)) => {
            Ok(TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape })
        }
        (got, _) => Err(ImportError::Tensor {
            path: path.to_owned(),
            tensor: name.to_owned(),
            got: format!("{got:?}"),
            shape: view.shape().to_vec(),
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
}
