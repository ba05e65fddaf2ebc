//! An artifact that the disk lost, on its way back from a site: its name says what every byte of it must be.
//!
//! Chunks arrive in any order, several at once, in a folder without a name. It takes its name when all are there and synced; what is
//! let go of before leaves nothing, and comes anew. All calls block.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::artifact::ArtifactManifest;
use common::ids::ArtifactHash;
use common::update::CheckedChunk;

use super::artifacts::{Unfinished, chunk};
use super::{Artifacts, StoreError};

/// An artifact that is arriving. Nothing about it is trusted but the hashes of the chunks that it has.
#[derive(Debug)]
pub struct ReturnedArtifact {
    unfinished: Unfinished,
    data: Arc<File>,
    manifest: ArtifactManifest,
    present: Vec<AtomicBool>,
}

impl Artifacts {
    /// Begins to take the artifact that `manifest` describes.
    ///
    /// # Errors
    /// The disk.
    pub fn receive(&self, manifest: ArtifactManifest) -> Result<ReturnedArtifact, StoreError> {
        let (unfinished, data) = self.health.note(self.begin_folder())?;
        let present = manifest.chunks().iter().map(|_| AtomicBool::new(false)).collect();
        Ok(ReturnedArtifact { unfinished, data: Arc::new(data), manifest, present })
    }
}

impl ReturnedArtifact {
    /// Indices of the chunks still to come, ascending.
    pub fn missing(&self) -> Vec<u32> {
        let absent =
            |(index, present): (u32, &AtomicBool)| (!present.load(Ordering::Acquire)).then_some(index);
        (0..).zip(&self.present).filter_map(absent).collect()
    }

    /// Writes a chunk that was checked: its bytes are not hashed again.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it was checked for another artifact; the disk.
    pub fn write_checked(&self, checked: &CheckedChunk<'_>) -> Result<(), StoreError> {
        let index = usize::try_from(checked.index()).unwrap_or(usize::MAX);
        let (span, _) = chunk(&self.manifest, index)?;
        if !checked.is_of(&self.manifest) {
            return Err(StoreError::corrupt("artifact", format!("chunk {index} is of another artifact")));
        }
        let written = self.data.write_all_at(checked.bytes(), span.offset);
        self.unfinished.note(written.map_err(StoreError::file(&self.unfinished.folder)))?;
        if let Some(present) = self.present.get(index) {
            present.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Its data, to be synced while more arrives.
    pub fn data(&self) -> &Arc<File> {
        &self.data
    }

    /// The disk's word about a sync that failed. The folder goes, so that nothing of it takes the artifact's name: the disk says it
    /// once, and what reads back as right afterwards may be in memory alone.
    pub fn failed(&self, source: io::Error) -> StoreError {
        let folder = &self.unfinished.folder;
        if let Err(error) = fs::remove_dir_all(folder) {
            tracing::warn!(%error, "an artifact that the disk may have lost cannot be removed");
        }
        StoreError::file(folder)(source)
    }

    /// Makes the whole artifact durable under its name; a corrupt one of this name gives way to it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when chunks are missing; the disk.
    pub fn keep(mut self) -> Result<ArtifactHash, StoreError> {
        if let Some(index) = self.missing().first() {
            return Err(StoreError::corrupt("artifact", format!("chunk {index} is missing")));
        }
        let Self { unfinished, data, manifest, .. } = &mut self;
        let placed = unfinished.place(manifest, || data.sync_all());
        self.unfinished.note(placed)
    }
}

#[cfg(test)]
mod tests {
    use common::artifact::{Dtype, TensorLayout, TensorSpec};

    use super::*;
    use crate::fixture::change_a_byte;
    use crate::store::Store;

    /// An artifact of two chunks that a store has.
    async fn stored(store: &Store) -> (ArtifactManifest, [Vec<u8>; 2]) {
        let spec = |name: &str| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![2] };
        let layout = TensorLayout::new(["a", "b"].map(spec).to_vec()).unwrap();
        let chunks = [[1.0f32, 2.0], [3.0, 4.0]].map(|chunk| chunk.map(f32::to_le_bytes).concat());
        let mut writer = store.artifacts().write(layout).unwrap();
        for chunk in &chunks {
            writer.push_chunk(chunk).unwrap();
        }
        let hash = writer.finish().unwrap();
        (store.artifacts().read(&hash).unwrap().unwrap().manifest().clone(), chunks)
    }

    fn give(returned: &ReturnedArtifact, index: u32, bytes: &[u8]) {
        returned.write_checked(&CheckedChunk::check(&returned.manifest, index, bytes).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_corrupt_artifact_gives_way_to_the_one_that_came_back_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        let (manifest, chunks) = stored(&store).await;
        let (hash, folder) = (manifest.hash(), store.artifacts().folder(&manifest.hash()));
        change_a_byte(&folder);

        let returned = store.artifacts().receive(manifest.clone()).unwrap();
        assert_eq!(returned.missing(), [0, 1]);
        give(&returned, 1, &chunks[1]);
        assert_eq!(returned.missing(), [0]);
        assert!(matches!(returned.keep(), Err(StoreError::Corrupt { .. })), "it is not whole");
        assert!(store.artifacts().read(&hash).unwrap().unwrap().verify(|_| {}).is_err(), "as it was");

        let returned = store.artifacts().receive(manifest).unwrap();
        for index in [1, 0] {
            give(&returned, index, &chunks[index as usize]);
        }
        assert_eq!(returned.keep().unwrap(), hash);
        store.artifacts().read(&hash).unwrap().unwrap().verify(|_| {}).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path().join("artifacts")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing else is left");
    }

    #[tokio::test]
    async fn nothing_that_a_sync_may_have_lost_takes_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        let (manifest, chunks) = stored(&store).await;
        let folder = store.artifacts().folder(&manifest.hash());
        fs::remove_dir_all(&folder).unwrap();
        let returned = store.artifacts().receive(manifest).unwrap();
        returned.failed(io::Error::other("the disk is on fire"));
        for index in [0, 1] {
            give(&returned, index, &chunks[index as usize]);
        }
        assert!(returned.keep().is_err() && !folder.exists());
    }
}
