//! A model among the artifacts as a file (safetensors), a chunk at a time.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use common::artifact::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::files;
use crate::store::{ArtifactFile, StoreError};

/// The key under which a file says what it is.
const NOTE: &str = "consilium";

/// Writes `artifact` to `path`, which must be new; `note` says in the file what it is. Blocks.
///
/// # Errors
/// [`StoreError`] when the artifact is damaged, `path` exists or cannot be written; nothing is left of it then.
pub fn export_safetensors(artifact: &ArtifactFile, note: &str, path: &Path) -> Result<(), StoreError> {
    // Opened first: what is there already must not be touched, not even by cleaning up.
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = file.map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let written = write(artifact, note, &mut file, path);
    if written.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_file(path);
    }
    written
}

fn write(artifact: &ArtifactFile, note: &str, file: &mut File, path: &Path) -> Result<(), StoreError> {
    let layout = artifact.manifest().layout();
    let on_disk = |source| StoreError::File { path: path.to_owned(), source };
    let mut offset = 0;
    let mut tensors = Vec::with_capacity(layout.tensors().len());
    for tensor in layout.tensors() {
        let size = tensor.bytes().and_then(|bytes| usize::try_from(bytes).ok());
        let size = size.ok_or_else(|| StoreError::corrupt("artifact", "a tensor of no size"))?;
        let info = TensorInfo {
            dtype: match tensor.dtype {
                Dtype::F32 => safetensors::Dtype::F32,
                Dtype::BF16 => safetensors::Dtype::BF16,
            },
            shape: tensor.shape.iter().map(|&axis| axis as usize).collect(),
            data_offsets: (offset, offset + size),
        };
        offset += size;
        tensors.push((tensor.name.clone(), info));
    }
    let notes = HashMap::from([(NOTE.to_owned(), note.to_owned())]);
    let metadata = Metadata::new(Some(notes), tensors).map_err(|e| StoreError::corrupt("artifact", e))?;
    let header = header(&metadata).map_err(|e| StoreError::corrupt("artifact", e))?;
    file.write_all(&header).map_err(on_disk)?;
    for index in 0..layout.spans().len() {
        file.write_all(&artifact.read_chunk(index)?).map_err(on_disk)?;
    }
    file.sync_all().and_then(|()| files::sync_dir(files::parent(path))).map_err(on_disk)
}

/// Length and JSON, padded so that the numbers begin at a multiple of 8 bytes.
fn header(metadata: &Metadata) -> io::Result<Vec<u8>> {
    let mut json = serde_json::to_vec(metadata)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use common::artifact::{TensorLayout, TensorSpec};

    use super::*;
    use crate::import::import_safetensors;
    use crate::store::Store;

    #[tokio::test]
    async fn what_is_exported_comes_back_as_the_same_artifact() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("state")).await.unwrap();
        // The first is longer than a chunk.
        let spec = |name: &str, n| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![n] };
        let layout = TensorLayout::new(vec![spec("a", 300_000), spec("b", 3)]).unwrap();
        let lengths: Vec<usize> = layout.spans().iter().map(|span| span.len as usize).collect();
        let mut writer = store.artifacts().write(layout).unwrap();
        for (index, length) in (1u8..).zip(lengths) {
            writer.push_chunk(&vec![index; length]).unwrap();
        }
        let hash = writer.finish().unwrap();
        let artifact = store.artifacts().read(&hash).unwrap().unwrap();
        let path = dir.path().join("model.safetensors");
        export_safetensors(&artifact, "round 3", &path).unwrap();

        let again = import_safetensors(&path, store.artifacts()).unwrap();
        assert_eq!(again.hash(), hash);
        let bytes = fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()[NOTE], "round 3");
        assert!(export_safetensors(&artifact, "round 3", &path).is_err(), "nothing is overwritten");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
