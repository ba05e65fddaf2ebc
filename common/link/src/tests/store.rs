//! An artifact in memory, with holes: both ends of a transfer.

use std::io;
use std::sync::Arc;

use common::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use tokio::sync::Notify;

use crate::transfer::{ChunkSink, ChunkSource};

/// Chunks, some of which are absent.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) manifest: ArtifactManifest,
    pub(super) chunks: Vec<Option<Vec<u8>>>,
    /// Told after each chunk kept.
    pub(super) kept: Arc<Notify>,
}

impl Store {
    /// All of an artifact whose tensors have these names and numbers; no two of its chunks are the same.
    pub(super) fn full(tensors: &[(&str, u32)]) -> Self {
        let spec = |&(name, numbers): &(&str, u32)| TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: vec![numbers],
        };
        let layout = TensorLayout::new(tensors.iter().map(spec).collect()).unwrap();
        let data: Vec<u8> = (0..layout.bytes()).map(|k| (k % 251) as u8).collect();
        let mut store = Self::empty(&ArtifactManifest::of(layout, &data));
        for (slot, span) in store.chunks.iter_mut().zip(store.manifest.layout().spans()) {
            let start = span.offset as usize;
            *slot = Some(data[start..start + span.len as usize].to_vec());
        }
        store
    }

    /// Nothing yet of an artifact.
    pub(super) fn empty(manifest: &ArtifactManifest) -> Self {
        let chunks = vec![None; manifest.chunks().len()];
        Self { manifest: manifest.clone(), chunks, kept: Arc::default() }
    }
}

impl ChunkSource for Store {
    async fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        let chunk = self.chunks[index as usize].as_ref();
        buffer.extend_from_slice(chunk.ok_or_else(|| io::Error::other("rotten"))?);
        Ok(())
    }
}

impl ChunkSink for Store {
    fn missing(&self) -> Vec<u32> {
        (0..).zip(&self.chunks).filter(|(_, chunk)| chunk.is_none()).map(|(index, _)| index).collect()
    }

    async fn keep_chunk(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(self.chunks[index as usize].replace(bytes.to_vec()), None, "no chunk comes twice");
        self.kept.notify_one();
        Ok(())
    }
}
