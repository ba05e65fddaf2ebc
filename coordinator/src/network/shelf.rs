//! Artifacts that sites fetch now, kept open: a round's model is opened once for all of them, and hashed once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use common::ids::ArtifactHash;

use crate::store::{ArtifactFile, Artifacts, StoreError};

/// The files that were asked for last.
#[derive(Default)]
pub struct Shelf {
    open: Mutex<VecDeque<(ArtifactHash, Arc<ArtifactFile>)>>,
    /// Those that were not what they should be, each with the chunk where that was seen, if it was one.
    damaged: Mutex<BTreeMap<ArtifactHash, Option<u32>>>,
}

/// Models of the rounds under way, and their embeddings.
const PLACES: usize = 8;

impl Shelf {
    /// The artifact, from here or from the disk; `None` when it is not there. Blocks.
    ///
    /// # Errors
    /// As [`Artifacts::read`].
    pub(super) fn read(
        &self,
        artifacts: &Artifacts,
        hash: &ArtifactHash,
    ) -> Result<Option<Arc<ArtifactFile>>, StoreError> {
        if let Some(file) = self.find(hash) {
            return Ok(Some(file));
        }
        let Some(file) = artifacts.read(hash)?.map(Arc::new) else { return Ok(None) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_front((*hash, file.clone()));
        open.truncate(PLACES);
        Ok(Some(file))
    }

    /// Has a file opened anew at the next need: it was not what it should be.
    pub(super) fn forget(&self, hash: &ArtifactHash) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| other != hash);
    }

    /// Notes that an artifact is damaged, in this chunk or altogether.
    pub(super) fn damage(&self, hash: &ArtifactHash, chunk: Option<u32>) {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(*hash, chunk);
    }

    /// Whether it was damaged and is no more, now that these chunks of it were served, ascending.
    pub(super) fn recovers(&self, hash: &ArtifactHash, served: &[u32]) -> bool {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let was_served = |chunk: &Option<u32>| chunk.is_none_or(|chunk| served.binary_search(&chunk).is_ok());
        let whole = damaged.get(hash).is_some_and(was_served);
        if whole {
            damaged.remove(hash);
        }
        whole
    }

    fn find(&self, hash: &ArtifactHash) -> Option<Arc<ArtifactFile>> {
        // Poisoning means that a panic interrupted a push: the list is whole before and after.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let place = open.iter().position(|(other, _)| other == hash)?;
        let found = open.remove(place)?;
        let file = found.1.clone();
        open.push_front(found);
        Some(file)
    }
}

#[cfg(test)]
mod tests {
    use common::artifact::{Dtype, TensorLayout, TensorSpec};

    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn the_artifact_asked_for_longest_ago_is_closed_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        let keep = |number: u8| {
            let spec = TensorSpec { name: "a".to_owned(), dtype: Dtype::F32, shape: vec![1] };
            let mut writer = store.artifacts().write(TensorLayout::new(vec![spec]).unwrap()).unwrap();
            writer.push_chunk(&[number; 4]).unwrap();
            writer.finish().unwrap()
        };
        let hashes: Vec<_> = (0..=PLACES as u8).map(keep).collect();
        let shelf = Shelf::default();
        let read = |hash| shelf.read(store.artifacts(), hash).unwrap().unwrap();
        let first = read(&hashes[0]);
        for hash in &hashes[1..PLACES] {
            read(hash);
        }
        assert!(Arc::ptr_eq(&first, &read(&hashes[0])), "opened once");
        // Puts out the second, which is now the one of longest ago.
        read(&hashes[PLACES]);
        assert!(shelf.find(&hashes[1]).is_none() && shelf.find(&hashes[0]).is_some());
        shelf.forget(&hashes[0]);
        assert!(shelf.find(&hashes[0]).is_none());
        assert!(
            shelf.read(store.artifacts(), &ArtifactHash(common::ids::Digest::of(b"x"))).unwrap().is_none()
        );
    }

    #[test]
    fn damage_is_over_when_that_chunk_is_served() {
        let (shelf, hash) = (Shelf::default(), ArtifactHash(common::ids::Digest::of(b"x")));
        assert!(!shelf.recovers(&hash, &[0, 1]), "it never was damaged");
        shelf.damage(&hash, Some(3));
        assert!(!shelf.recovers(&hash, &[0, 1, 2, 4]), "others say nothing of it");
        assert!(shelf.recovers(&hash, &[2, 3]));
        assert!(!shelf.recovers(&hash, &[2, 3]));
        shelf.damage(&hash, None);
        assert!(shelf.recovers(&hash, &[0]));
    }
}
