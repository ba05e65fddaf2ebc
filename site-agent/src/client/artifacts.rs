//! Artifacts on disk, by their hash: fetched models and embeddings, and updates that wait to be sent.
//!
//! `HASH.json` is the manifest, `HASH.data` the tensors' bytes, `HASH.part` the same with holes while it is fetched.
//! Which chunks a `.part` has is not written down: those whose bytes have the right hash. So a crash costs nothing.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::artifact::{ArtifactManifest, TensorLayout, TensorSpec};
use common::ids::{ArtifactHash, ChunkHash};
use common::wire::chunk::check_chunk;
use link::transfer::{ChunkSink, ChunkSource};
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use crate::model::NamedTensors;
use crate::train::tensors::{TensorError, from_artifact, to_artifact};

/// A folder of artifacts.
#[derive(Clone, Debug)]
pub struct ArtifactFolder(PathBuf);

/// Why an artifact cannot be had from disk.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not here, or not all of it.
    #[error("artifact {0} is not here")]
    Absent(ArtifactHash),
    /// What is on the disk is not what was put there.
    #[error("artifact {0} is damaged")]
    Damaged(ArtifactHash),
    /// It is no set of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    tensors: Vec<TensorSpec>,
    chunks: Vec<ChunkHash>,
}

impl ArtifactFolder {
    /// Opens the folder and makes it if need be.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        files::make_private_folder(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// Whether all of an artifact is here.
    pub fn has(&self, hash: ArtifactHash) -> bool {
        self.data(hash).exists() && self.manifest_path(hash).exists()
    }

    /// The manifest, if it is here; one that does not hash to its name counts as absent.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn manifest(&self, hash: ArtifactHash) -> Result<Option<ArtifactManifest>, FileError> {
        let Some(Stored { tensors, chunks }) = files::read_json(&self.manifest_path(hash))? else {
            return Ok(None);
        };
        let manifest = TensorLayout::new(tensors).and_then(|layout| ArtifactManifest::new(layout, chunks));
        Ok(manifest.ok().filter(|manifest| manifest.hash() == hash))
    }

    /// Goes on fetching an artifact: what is here of it, and a sink for the rest.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn begin(&self, manifest: &ArtifactManifest) -> Result<PartialArtifact, FileError> {
        let hash = manifest.hash();
        self.write_manifest(manifest)?;
        let path = self.part(hash);
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = opened.map_err(|source| FileError::new("write", &path, source))?;
        file.set_len(manifest.layout().bytes()).map_err(|source| FileError::new("write", &path, source))?;
        let missing = missing_chunks(&file, manifest);
        Ok(PartialArtifact { file, manifest: manifest.clone(), missing, path, done: self.data(hash) })
    }

    /// Keeps tensors as an artifact: durable when it returns.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn store(&self, tensors: &NamedTensors) -> Result<ArtifactManifest, ArtifactError> {
        let (manifest, data) = to_artifact(tensors)?;
        self.write_manifest(&manifest)?;
        files::write(&self.data(manifest.hash()), &data)?;
        Ok(manifest)
    }

    /// The tensors of an artifact; each chunk is compared with the manifest again, because disks err too.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn load(&self, hash: ArtifactHash) -> Result<NamedTensors, ArtifactError> {
        let manifest = self.manifest(hash)?.filter(|_| self.has(hash)).ok_or(ArtifactError::Absent(hash))?;
        let data = files::read(&self.data(hash))?;
        let intact = data.len() as u64 == manifest.layout().bytes()
            && (0..).zip(manifest.layout().spans()).all(|(index, span)| {
                let start = span.offset as usize;
                check_chunk(&manifest, index, &data[start..start + span.len as usize]).is_ok()
            });
        if !intact {
            // Fetched again at the next need.
            files::remove(&self.data(hash))?;
            return Err(ArtifactError::Damaged(hash));
        }
        Ok(from_artifact(manifest.layout(), &data)?)
    }

    /// The chunks of an artifact, for sending.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn source(&self, hash: ArtifactHash) -> Result<(ArtifactManifest, StoredChunks), ArtifactError> {
        let manifest = self.manifest(hash)?.ok_or(ArtifactError::Absent(hash))?;
        let path = self.data(hash);
        let file = File::open(&path).map_err(|source| FileError::new("read", &path, source))?;
        Ok((manifest.clone(), StoredChunks { file, manifest }))
    }

    /// Removes an artifact.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove(&self, hash: ArtifactHash) -> Result<(), FileError> {
        for path in [self.data(hash), self.part(hash), self.manifest_path(hash)] {
            files::remove(&path)?;
        }
        Ok(())
    }

    /// Removes all artifacts but those to keep and the `spare` newest others.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune(&self, keep: &BTreeSet<ArtifactHash>, spare: usize) -> Result<(), FileError> {
        let others = self.newest_first()?.into_iter().filter(|hash| !keep.contains(hash));
        others.skip(spare).try_for_each(|hash| self.remove(hash))
    }

    /// What is here, whole or not, newest first.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn newest_first(&self) -> Result<Vec<ArtifactHash>, FileError> {
        let listed = std::fs::read_dir(&self.0).map_err(|source| FileError::new("read", &self.0, source))?;
        let dated = listed.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let hash: ArtifactHash = name.strip_suffix(".json")?.parse().ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, hash))
        });
        let mut dated: Vec<_> = dated.collect();
        dated.sort_by(|a, b| b.cmp(a));
        Ok(dated.into_iter().map(|(_, hash)| hash).collect())
    }

    fn write_manifest(&self, manifest: &ArtifactManifest) -> Result<(), FileError> {
        let stored =
            Stored { tensors: manifest.layout().tensors().to_vec(), chunks: manifest.chunks().to_vec() };
        files::write_json(&self.manifest_path(manifest.hash()), &stored)
    }

    fn manifest_path(&self, hash: ArtifactHash) -> PathBuf {
        self.0.join(format!("{hash}.json"))
    }

    fn data(&self, hash: ArtifactHash) -> PathBuf {
        self.0.join(format!("{hash}.data"))
    }

    fn part(&self, hash: ArtifactHash) -> PathBuf {
        self.0.join(format!("{hash}.part"))
    }
}

fn missing_chunks(file: &File, manifest: &ArtifactManifest) -> BTreeSet<u32> {
    let mut buffer = Vec::new();
    let here = |index: u32, span: &common::artifact::ChunkSpan, buffer: &mut Vec<u8>| {
        buffer.resize(span.len as usize, 0);
        file.read_exact_at(buffer, span.offset).is_ok() && check_chunk(manifest, index, buffer).is_ok()
    };
    let spans = (0..).zip(manifest.layout().spans());
    spans.filter(|(index, span)| !here(*index, span, &mut buffer)).map(|(index, _)| index).collect()
}

/// An artifact while it is fetched.
#[derive(Debug)]
pub struct PartialArtifact {
    file: File,
    manifest: ArtifactManifest,
    missing: BTreeSet<u32>,
    path: PathBuf,
    done: PathBuf,
}

impl PartialArtifact {
    /// Makes the artifact whole; durable when it returns.
    ///
    /// # Errors
    /// [`FileError`], also when chunks are missing.
    pub fn finish(self) -> Result<(), FileError> {
        if !self.missing.is_empty() {
            let problem = format!("{} chunks are missing", self.missing.len());
            return Err(FileError::new("complete", &self.path, io::Error::other(problem)));
        }
        self.file.sync_all().map_err(|source| FileError::new("write", &self.path, source))?;
        files::rename(&self.path, &self.done)
    }
}

impl ChunkSink for PartialArtifact {
    fn missing(&self) -> Vec<u32> {
        self.missing.iter().copied().collect()
    }

    // One MiB into the page cache: shorter than handing it to another thread.
    async fn keep_chunk(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        let span = self.manifest.layout().spans().get(index as usize);
        let span = span.ok_or_else(|| io::Error::other("no such chunk"))?;
        self.file.write_all_at(bytes, span.offset)?;
        self.missing.remove(&index);
        Ok(())
    }
}

/// A whole artifact, read chunk by chunk.
#[derive(Debug)]
pub struct StoredChunks {
    file: File,
    manifest: ArtifactManifest,
}

impl ChunkSource for StoredChunks {
    async fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
        let span = self.manifest.layout().spans().get(index as usize);
        let span = span.ok_or_else(|| io::Error::other("no such chunk"))?;
        buffer.resize(span.len as usize, 0);
        link::failpoint::pass("site.mid-upload");
        self.file.read_exact_at(buffer, span.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HostTensor;

    fn tensors() -> NamedTensors {
        let ramp = |n: usize| HostTensor::from_fn(vec![n], |i| i as f32);
        NamedTensors::from([("a".to_owned(), ramp(300_000)), ("b".to_owned(), ramp(3))])
    }

    #[tokio::test]
    async fn a_fetch_goes_on_where_it_stopped_even_after_a_crash() {
        let (source_folder, sink_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) =
            (ArtifactFolder::open(source_folder.path()), ArtifactFolder::open(sink_folder.path()));
        let (from, to) = (from.unwrap(), to.unwrap());
        let manifest = from.store(&tensors()).unwrap();
        let (_, mut chunks) = from.source(manifest.hash()).unwrap();
        let mut buffer = Vec::new();
        let mut sink = to.begin(&manifest).unwrap();
        assert_eq!(sink.missing(), [0, 1, 2]);
        chunks.read_chunk(1, &mut buffer).await.unwrap();
        sink.keep_chunk(1, &buffer).await.unwrap();
        drop(sink);
        assert!(!to.has(manifest.hash()));

        let mut sink = to.begin(&manifest).unwrap();
        assert_eq!(sink.missing(), [0, 2]);
        for index in [0, 2] {
            chunks.read_chunk(index, &mut buffer).await.unwrap();
            sink.keep_chunk(index, &buffer).await.unwrap();
        }
        sink.finish().unwrap();
        assert_eq!(to.load(manifest.hash()).unwrap(), tensors());
    }

    #[test]
    fn a_damaged_artifact_is_noticed_and_fetched_anew() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFolder::open(folder.path()).unwrap();
        let hash = artifacts.store(&tensors()).unwrap().hash();
        let path = artifacts.data(hash);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[77] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(artifacts.load(hash), Err(ArtifactError::Damaged(_))));
        assert!(!artifacts.has(hash));
    }

    #[test]
    fn pruning_keeps_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactFolder::open(folder.path()).unwrap();
        let store = |value: f32| {
            let tensor = HostTensor::new(vec![1], vec![value]).unwrap();
            artifacts.store(&NamedTensors::from([("a".to_owned(), tensor)])).unwrap().hash()
        };
        let hashes = [1.0, 2.0, 3.0].map(store);
        artifacts.prune(&BTreeSet::from([hashes[0]]), 1).unwrap();
        assert!(artifacts.has(hashes[0]));
        assert_eq!(hashes.iter().filter(|hash| artifacts.has(**hash)).count(), 2);
    }
}
