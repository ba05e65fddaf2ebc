//! Artifacts on disk, by their hash: fetched models and embeddings, and updates that wait to be sent.
//!
//! `HASH.json` is the manifest, `HASH.data` the tensors' bytes, `HASH.part` the same with holes while it is fetched.
//! Which chunks a `.part` has is not written down: those whose bytes have the right hash. So a crash costs nothing. A chunk
//! that another artifact here has, of a tensor that did not change, is copied and not fetched.
//!
//! What is stored here is durable, because nobody else has it. What was fetched is not: after a loss of power it may be torn,
//! and is fetched again where it is. Each chunk is hashed as it comes, and once more in [`ArtifactFolder::load`], while its
//! bytes become numbers; [`ArtifactFolder::has`] looks at names alone. What the disk does not give back is as good as damaged.
//!
//! `spare` is the file of an artifact that was stored and that nobody wants any more, for the next to be written over it
//! (docs/decisions/0025).
//!
//! Tensors and files meet a chunk at a time: no artifact is in memory as bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::artifact::{ArtifactManifest, CHUNK_NUMBERS, ChunkSpan, Dtype, TensorLayout, TensorSpec};
use common::ids::{ArtifactHash, ChunkHash, Digest};
use common::wire::chunk::check_chunk;
use link::transfer::{ChunkSink, ChunkSource};
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use crate::model::{HostTensor, NamedTensors};
use crate::train::tensors::{TensorError, layout_of};

/// Name of a file whose content nobody wants any more.
const SPARE: &str = "spare";

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

/// The artifact for want of which something failed: it is to be fetched again.
pub fn lost_artifact(error: &anyhow::Error) -> Option<ArtifactHash> {
    error.chain().find_map(|cause| match cause.downcast_ref::<ArtifactError>()? {
        ArtifactError::Absent(hash) | ArtifactError::Damaged(hash) => Some(*hash),
        ArtifactError::File(_) | ArtifactError::Tensors(_) => None,
    })
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

    /// The folder as it is: nothing is made.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether all of an artifact is here, by its files' names.
    pub fn has(&self, hash: ArtifactHash) -> bool {
        self.data(hash).exists() && self.manifest_path(hash).exists()
    }

    /// The manifest, if it is here; a torn one, one that cannot be read, or one that does not hash to its name, counts as absent.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn manifest(&self, hash: ArtifactHash) -> Result<Option<ArtifactManifest>, FileError> {
        let path = self.manifest_path(hash);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) if files::is_unreadable(&source) => {
                tracing::warn!("cannot read {}: {source}; it counts as absent", path.display());
                return Ok(None);
            }
            Err(source) => return Err(FileError::new("read", &path, source)),
        };
        let Ok(Stored { tensors, chunks }) = serde_json::from_slice(&bytes) else { return Ok(None) };
        let manifest = TensorLayout::new(tensors).and_then(|layout| ArtifactManifest::new(layout, chunks));
        Ok(manifest.ok().filter(|manifest| manifest.hash() == hash))
    }

    /// Goes on fetching an artifact: what is here of it, and a sink for the rest. Blocks.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn begin(&self, manifest: &ArtifactManifest) -> Result<PartialArtifact, FileError> {
        let hash = manifest.hash();
        files::write_json_unsynced(&self.manifest_path(hash), &Stored::of(manifest))?;
        let path = self.part(hash);
        let fail = |source| FileError::new("write", &path, source);
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = opened.map_err(fail)?;
        let resumed = file.metadata().map_err(fail)?.len() > 0;
        file.set_len(manifest.layout().bytes()).map_err(fail)?;
        // A new file has nothing but zeros, which would be hashed for nothing.
        let mut missing: BTreeSet<u32> = match resumed {
            true => missing_chunks(&file, manifest),
            false => (0..).zip(manifest.chunks()).map(|(index, _)| index).collect(),
        };
        self.copy_known(manifest, &file, &mut missing).map_err(fail)?;
        let (manifest, done) = (manifest.clone(), self.data(hash));
        let fetched = Fetched { file, manifest, missing: Mutex::new(missing), path, done };
        Ok(PartialArtifact(Arc::new(fetched)))
    }

    /// Copies what other artifacts here have of the missing chunks, each checked. What cannot be read here is fetched.
    fn copy_known(
        &self,
        manifest: &ArtifactManifest,
        into: &File,
        missing: &mut BTreeSet<u32>,
    ) -> io::Result<()> {
        let mut wanted: BTreeMap<ChunkHash, Vec<u32>> = BTreeMap::new();
        for (index, hash) in (0u32..).zip(manifest.chunks()).filter(|(index, _)| missing.contains(index)) {
            wanted.entry(*hash).or_default().push(index);
        }
        let mut buffer = Vec::new();
        for other in self.newest_first().unwrap_or_default() {
            let Ok(Some(theirs)) = self.manifest(other) else { continue };
            let shared = theirs.chunks().iter().zip(theirs.layout().spans());
            let shared: Vec<_> = shared.filter(|(hash, _)| wanted.contains_key(hash)).collect();
            if shared.is_empty() {
                continue;
            }
            let Ok(from) = File::open(self.data(other)) else { continue };
            for (hash, span) in shared {
                buffer.resize(span.len as usize, 0);
                let intact = from.read_exact_at(&mut buffer, span.offset).is_ok()
                    && ChunkHash(Digest::of(&buffer)) == *hash;
                if !intact {
                    continue;
                }
                // Absent: the other artifact has the chunk twice.
                let Some(indices) = wanted.remove(hash) else { continue };
                for index in indices {
                    into.write_all_at(&buffer, span_of(manifest, index)?.offset)?;
                    missing.remove(&index);
                }
            }
        }
        Ok(())
    }

    /// Keeps tensors as an artifact: durable when it returns.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn store(&self, tensors: &NamedTensors) -> Result<ArtifactManifest, ArtifactError> {
        self.store_in(Dtype::F32, tensors, |values, bytes| {
            bytes.resize(values.len() * 4, 0);
            for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
            Ok(())
        })
    }

    /// Keeps tensors as an artifact in this format, into which `encode` brings the numbers of one chunk after the other: durable when
    /// it returns.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn store_in(
        &self,
        dtype: Dtype,
        tensors: &NamedTensors,
        mut encode: impl FnMut(&[f32], &mut Vec<u8>) -> Result<(), FileError>,
    ) -> Result<ArtifactManifest, ArtifactError> {
        let layout = layout_of(tensors)?.in_dtype(dtype);
        let mut file = files::Unnamed::begin_over(&self.spare())?;
        let (mut chunks, mut buffer) = (Vec::with_capacity(layout.spans().len()), Vec::<u8>::new());
        for tensor in tensors.values() {
            for values in tensor.values().chunks(NUMBERS_OF_A_CHUNK) {
                encode(values, &mut buffer)?;
                chunks.push(ChunkHash(Digest::of(&buffer)));
                file.write(&buffer)?;
            }
        }
        let manifest = ArtifactManifest::new(layout, chunks).map_err(TensorError::from)?;
        let hash = manifest.hash();
        files::write_json(&self.manifest_path(hash), &Stored::of(&manifest))?;
        file.place(&self.data(hash))?;
        // Of a damaged one, whose place this takes.
        files::remove(&self.part(hash))?;
        Ok(manifest)
    }

    /// The tensors of an artifact; each chunk is compared with the manifest again, because disks err too. One that is not
    /// whole is put aside: what is good of it need not be fetched again. One that cannot be read is removed.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn load(&self, hash: ArtifactHash) -> Result<NamedTensors, ArtifactError> {
        let Some(manifest) = self.manifest(hash)?.filter(|_| self.has(hash)) else {
            self.put_aside(hash)?;
            return Err(ArtifactError::Absent(hash));
        };
        let read = read_tensors(&self.data(hash), &manifest).map_err(|source| self.unread(hash, source))?;
        let Some(tensors) = read else {
            self.put_aside(hash)?;
            return Err(ArtifactError::Damaged(hash));
        };
        let named = tensors.into_iter().zip(manifest.layout().tensors()).map(|(values, spec)| {
            let shape = spec.shape.iter().map(|&axis| axis as usize).collect();
            Ok((spec.name.clone(), HostTensor::new(shape, values).map_err(TensorError::from)?))
        });
        named.collect()
    }

    /// Makes the data, if it is here, the beginning of another fetch.
    fn put_aside(&self, hash: ArtifactHash) -> Result<(), FileError> {
        match files::rename_unsynced(&self.data(hash), &self.part(hash)) {
            Err(error) if error.is_not_found() => Ok(()),
            renamed => renamed,
        }
    }

    /// What it means that the data cannot be read. What the disk does not give goes: written anew, it lies elsewhere.
    fn unread(&self, hash: ArtifactHash, source: io::Error) -> ArtifactError {
        let path = self.data(hash);
        if source.kind() == io::ErrorKind::NotFound {
            return ArtifactError::Absent(hash);
        }
        if !files::is_unreadable(&source) {
            return FileError::new("read", &path, source).into();
        }
        tracing::warn!("cannot read {}: {source}; it is removed, and had again", path.display());
        match files::remove(&path) {
            Ok(()) => ArtifactError::Damaged(hash),
            Err(error) => error.into(),
        }
    }

    /// The chunks of an artifact, for sending.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn source(&self, hash: ArtifactHash) -> Result<(ArtifactManifest, StoredChunks), ArtifactError> {
        let manifest = self.manifest(hash)?.ok_or(ArtifactError::Absent(hash))?;
        let file = File::open(self.data(hash)).map_err(|source| self.unread(hash, source))?;
        let chunks = StoredChunks::new(file, manifest.clone());
        Ok((manifest, chunks))
    }

    /// As [`ArtifactFolder::source`], of an artifact of which every byte was looked at. Blocks.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn whole_source(
        &self,
        hash: ArtifactHash,
    ) -> Result<(ArtifactManifest, StoredChunks), ArtifactError> {
        let (manifest, chunks) = self.source(hash)?;
        match missing_chunks(&chunks.file, &manifest).is_empty() {
            true => Ok((manifest, chunks)),
            false => Err(ArtifactError::Damaged(hash)),
        }
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

    /// As [`ArtifactFolder::remove`], but what is stored next is written over its file (docs/decisions/0025).
    ///
    /// # Errors
    /// [`FileError`].
    pub fn recycle(&self, hash: ArtifactHash) -> Result<(), FileError> {
        if self.has(hash) && !self.spare().exists() {
            files::rename_unsynced(&self.data(hash), &self.spare())?;
        }
        self.remove(hash)
    }

    /// Removes what was recycled and not taken.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn remove_spare(&self) -> Result<(), FileError> {
        files::remove(&self.spare())
    }

    /// Removes all artifacts but those to keep and, of the others, the newest `unfinished` that are not here as a whole.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune(&self, keep: &BTreeSet<ArtifactHash>, unfinished: usize) -> Result<(), FileError> {
        let others = self.newest_first()?.into_iter().filter(|hash| !keep.contains(hash));
        let (whole, parts): (Vec<_>, Vec<_>) = others.partition(|hash| self.has(*hash));
        whole.into_iter().chain(parts.into_iter().skip(unfinished)).try_for_each(|hash| self.remove(hash))
    }

    /// What is here, whole or not, newest first.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn newest_first(&self) -> Result<Vec<ArtifactHash>, FileError> {
        let dated = files::list(&self.0)?.into_iter().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let hash: ArtifactHash = name.strip_suffix(".json")?.parse().ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, hash))
        });
        let mut dated: Vec<_> = dated.collect();
        dated.sort_by(|a, b| b.cmp(a));
        Ok(dated.into_iter().map(|(_, hash)| hash).collect())
    }

    fn manifest_path(&self, hash: ArtifactHash) -> PathBuf {
        self.0.join(format!("{hash}.json"))
    }

    fn data(&self, hash: ArtifactHash) -> PathBuf {
        self.0.join(format!("{hash}.data"))
    }

    fn spare(&self) -> PathBuf {
        self.0.join(SPARE)
    }

    fn part(&self, hash: ArtifactHash) -> PathBuf {
        self.0.join(format!("{hash}.part"))
    }
}

impl Stored {
    fn of(manifest: &ArtifactManifest) -> Self {
        Self { tensors: manifest.layout().tensors().to_vec(), chunks: manifest.chunks().to_vec() }
    }
}

/// Numbers of a full chunk.
const NUMBERS_OF_A_CHUNK: usize = CHUNK_NUMBERS as usize;

/// The numbers of each tensor; `None` when the file is not what the manifest names.
fn read_tensors(path: &Path, manifest: &ArtifactManifest) -> io::Result<Option<Vec<Vec<f32>>>> {
    let (file, layout) = (File::open(path)?, manifest.layout());
    if file.metadata()?.len() != layout.bytes() {
        return Ok(None);
    }
    let room = |spec: &TensorSpec| {
        // Whole files alone are read: so many numbers are there.
        Vec::with_capacity(usize::try_from(spec.elements().unwrap_or(0)).unwrap_or(0))
    };
    let mut tensors: Vec<Vec<f32>> = layout.tensors().iter().map(room).collect();
    let mut buffer = Vec::<u8>::new();
    for (index, span) in (0..).zip(layout.spans()) {
        buffer.resize(span.len as usize, 0);
        file.read_exact_at(&mut buffer, span.offset)?;
        if check_chunk(manifest, index, &buffer).is_err() {
            return Ok(None);
        }
        if let (Some(numbers), Some(spec)) = (tensors.get_mut(span.tensor), layout.tensors().get(span.tensor))
        {
            spec.dtype.read(&buffer, numbers);
        }
    }
    Ok(Some(tensors))
}

fn missing_chunks(file: &File, manifest: &ArtifactManifest) -> BTreeSet<u32> {
    let mut buffer = Vec::new();
    let here = |index: u32, span: &ChunkSpan, buffer: &mut Vec<u8>| {
        buffer.resize(span.len as usize, 0);
        file.read_exact_at(buffer, span.offset).is_ok() && check_chunk(manifest, index, buffer).is_ok()
    };
    let spans = (0..).zip(manifest.layout().spans());
    spans.filter(|(index, span)| !here(*index, span, &mut buffer)).map(|(index, _)| index).collect()
}

fn span_of(manifest: &ArtifactManifest, index: u32) -> io::Result<ChunkSpan> {
    let span = manifest.layout().spans().get(index as usize).copied();
    span.ok_or_else(|| io::Error::other("no such chunk"))
}

/// An artifact while it is fetched, by any number of streams: clones are the same artifact.
#[derive(Clone, Debug)]
pub struct PartialArtifact(Arc<Fetched>);

#[derive(Debug)]
struct Fetched {
    file: File,
    manifest: ArtifactManifest,
    missing: Mutex<BTreeSet<u32>>,
    path: PathBuf,
    done: PathBuf,
}

impl PartialArtifact {
    /// Bytes that are still to come.
    pub fn missing_bytes(&self) -> u64 {
        let spans = self.0.manifest.layout().spans();
        let missing = self.missing();
        missing.iter().filter_map(|index| spans.get(*index as usize)).map(|span| u64::from(span.len)).sum()
    }

    /// Makes the artifact whole. It is not synced: a round does not wait for the disk, and what a loss of power takes is
    /// fetched again.
    ///
    /// # Errors
    /// [`FileError`], also when chunks are missing.
    pub fn finish(self) -> Result<(), FileError> {
        let Fetched { path, done, .. } = &*self.0;
        let missing = self.missing().len();
        if missing > 0 {
            let problem = format!("{missing} chunks are missing");
            return Err(FileError::new("complete", path, io::Error::other(problem)));
        }
        files::rename_unsynced(path, done)
    }
}

impl ChunkSink for PartialArtifact {
    fn missing(&self) -> Vec<u32> {
        // A poisoned lock guards a set of numbers: one that was not removed is fetched again.
        self.0.missing.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    // One MiB into the page cache: shorter than handing it to another thread. The disk writes it later.
    async fn keep_chunk(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        let Fetched { file, manifest, missing, .. } = &*self.0;
        file.write_all_at(bytes, span_of(manifest, index)?.offset)?;
        missing.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
        Ok(())
    }
}

/// A whole artifact, read chunk by chunk; clones read the same file.
#[derive(Clone, Debug)]
pub struct StoredChunks {
    file: Arc<File>,
    manifest: Arc<ArtifactManifest>,
    /// The disk did not give a chunk.
    is_unread: Arc<AtomicBool>,
}

impl StoredChunks {
    fn new(file: File, manifest: ArtifactManifest) -> Self {
        Self { file: Arc::new(file), manifest: Arc::new(manifest), is_unread: Arc::default() }
    }

    /// Whether this or a clone came upon a chunk that the disk does not give.
    pub fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Acquire)
    }
}

impl ChunkSource for StoredChunks {
    async fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
        let span = span_of(&self.manifest, index)?;
        buffer.resize(span.len as usize, 0);
        link::failpoint::pass("site.mid-upload");
        let read = self.file.read_exact_at(buffer, span.offset);
        if read.as_ref().is_err_and(files::is_unreadable) {
            self.is_unread.store(true, Ordering::Release);
        }
        read
    }
}

#[cfg(test)]
mod tests;
