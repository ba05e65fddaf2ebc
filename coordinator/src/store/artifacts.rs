//! Artifacts as files: one folder each, named by its hash, holding `manifest.json` and `data`.
//!
//! A folder appears under its name only when it is whole and synced; what a crash leaves is a folder with another name,
//! removed at the next start. An artifact that is written again replaces one whose bytes have changed: so the operator
//! heals a lost one with the file that it was made of. All calls block: run them off the async threads.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::artifact::{ArtifactManifest, TensorLayout, TensorSpec};
use common::ids::{ArtifactHash, ChunkHash, Digest};
use link::write_back::BlockingWriteBack;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use super::{Health, StoreError, scrub};
use crate::clock;
use crate::files::{self, Access};

const MANIFEST: &str = "manifest.json";
/// The bytes of its tensors.
pub(super) const DATA: &str = "data";
/// Prefix of folders that are being written.
pub(super) const UNFINISHED: &str = "new-";

/// The folder of all artifacts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Artifacts {
    pub(super) dir: PathBuf,
    pub(super) health: Health,
}

/// The manifest as it lies on disk; the hash in the folder's name guards it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    tensors: Vec<TensorSpec>,
    chunks: Vec<ChunkHash>,
}

impl Artifacts {
    /// Opens `dir`, making it if need be, and removes what a crash left unfinished.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn open(dir: &Path, health: Health) -> Result<Self, StoreError> {
        files::create_private_dir(dir).map_err(StoreError::file(dir))?;
        for entry in fs::read_dir(dir).map_err(StoreError::file(dir))? {
            let entry = entry.map_err(StoreError::file(dir))?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).map_err(StoreError::file(&entry.path()))?;
            }
        }
        Ok(Self::at(dir, health))
    }

    /// The folder as it is: nothing is made or removed.
    pub(super) fn at(dir: &Path, health: Health) -> Self {
        Self { dir: dir.to_owned(), health }
    }

    /// Whether the artifact is here, whole.
    pub fn contains(&self, hash: &ArtifactHash) -> bool {
        self.folder(hash).is_dir()
    }

    /// Opens an artifact for reading; `None` when it is not here.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when its files are not what its name says; the disk.
    pub fn read(&self, hash: &ArtifactHash) -> Result<Option<ArtifactFile>, StoreError> {
        if !self.contains(hash) {
            return Ok(None);
        }
        ArtifactFile::open(&self.folder(hash), hash).map(Some)
    }

    /// Starts a new artifact of this layout.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, layout: TensorLayout) -> Result<ArtifactWriter, StoreError> {
        self.health.note(self.begin(layout))
    }

    fn begin(&self, layout: TensorLayout) -> Result<ArtifactWriter, StoreError> {
        let (unfinished, data) = self.begin_folder()?;
        let (write_back, chunks) = (BlockingWriteBack::default(), Vec::new());
        Ok(ArtifactWriter { unfinished, data, write_back, layout, chunks })
    }

    /// A folder without a name, with an empty data file.
    pub(super) fn begin_folder(&self) -> Result<(Unfinished, File), StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = self.dir.join(format!("{UNFINISHED}{number}"));
        files::create_private_dir(&folder).map_err(StoreError::file(&folder))?;
        let path = folder.join(DATA);
        let unfinished = Unfinished { artifacts: self.clone(), folder, is_placed: false };
        let data = File::create_new(&path).map_err(StoreError::file(&path))?;
        Ok((unfinished, data))
    }

    /// Keeps a copy of an artifact, each chunk checked; a corrupt one of this name gives way to it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a chunk of `copy` has changed; the disk.
    pub fn keep_copy(&self, copy: &ArtifactFile) -> Result<ArtifactHash, StoreError> {
        let manifest = copy.manifest();
        let mut writer = self.write(manifest.layout().clone())?;
        let mut bytes = Vec::new();
        for (index, hash) in manifest.chunks().iter().enumerate() {
            copy.read_into(index, &mut bytes)?;
            writer.push_hashed(&bytes, *hash)?;
        }
        writer.finish()
    }

    /// Where the artifact lies, or would.
    pub fn folder(&self, hash: &ArtifactHash) -> PathBuf {
        self.dir.join(hash.to_string())
    }

    /// Moves away what lies under this name, if it is not that artifact.
    fn make_room(&self, hash: &ArtifactHash) -> Result<(), StoreError> {
        let folder = self.folder(hash);
        let kept = ArtifactFile::open(&folder, hash).and_then(|file| file.verify(|_| {}));
        let Err(error) = kept else { return Ok(()) };
        let to = scrub::quarantine(files::parent(&self.dir), &folder, clock::now())?;
        tracing::warn!(%hash, %error, to = %to.display(), "a corrupt artifact is replaced");
        Ok(())
    }
}

/// The folder of an artifact that is being written. Dropped before it has its name, it goes.
#[derive(Debug)]
pub(super) struct Unfinished {
    artifacts: Artifacts,
    pub(super) folder: PathBuf,
    is_placed: bool,
}

impl Unfinished {
    /// Notes how a write went.
    pub(super) fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.artifacts.health.note(result)
    }

    /// Makes it durable under its name, which is returned; `sync` has the disk take the data. One that is there already is kept, if it
    /// is whole.
    pub(super) fn place(
        &mut self,
        manifest: &ArtifactManifest,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Result<ArtifactHash, StoreError> {
        let hash = manifest.hash();
        let to = self.artifacts.folder(&hash);
        if to.is_dir() {
            self.artifacts.make_room(&hash)?;
        }
        if !to.is_dir() {
            sync().map_err(StoreError::file(&self.folder))?;
            write_manifest(&self.folder, manifest)?;
            fs::rename(&self.folder, &to).map_err(StoreError::file(&to))?;
            self.is_placed = true;
        }
        // Also of one that is there: its name may be of a try that failed at this.
        files::sync_dir(&self.artifacts.dir).map_err(StoreError::file(&self.artifacts.dir))?;
        Ok(hash)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_placed {
            // Best effort: the next start removes it too.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Takes the chunks of a new artifact, in order, and has them synced meanwhile. Dropped before [`ArtifactWriter::finish`], it
/// leaves nothing.
#[derive(Debug)]
pub struct ArtifactWriter {
    unfinished: Unfinished,
    data: File,
    write_back: BlockingWriteBack,
    layout: TensorLayout,
    chunks: Vec<ChunkHash>,
}

impl ArtifactWriter {
    /// Appends the next chunk.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is not as long as the layout says, or one too many; the disk.
    pub fn push_chunk(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.push_hashed(bytes, ChunkHash(Digest::of(bytes)))
    }

    /// Appends the next chunk, whose hash the caller has just reckoned.
    ///
    /// # Errors
    /// As [`ArtifactWriter::push_chunk`].
    pub fn push_hashed(&mut self, bytes: &[u8], hash: ChunkHash) -> Result<(), StoreError> {
        let span = self.layout.spans().get(self.chunks.len());
        if span.is_none_or(|span| span.len as usize != bytes.len()) {
            let reason =
                format!("chunk {} of {} bytes does not fit the layout", self.chunks.len(), bytes.len());
            return Err(StoreError::corrupt("artifact", reason));
        }
        let written = self.append(bytes).map_err(StoreError::file(&self.unfinished.folder));
        self.unfinished.note(written)?;
        self.chunks.push(hash);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut data: &File = &self.data;
        data.write_all(bytes)?;
        self.write_back.wrote(bytes.len() as u64, &self.data)
    }

    /// Makes the artifact durable under its name, which is returned. One that is there already is kept, if it is whole.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when chunks are missing; the disk.
    pub fn finish(mut self) -> Result<ArtifactHash, StoreError> {
        let placed = self.make_durable();
        self.unfinished.note(placed)
    }

    fn make_durable(&mut self) -> Result<ArtifactHash, StoreError> {
        let manifest = ArtifactManifest::new(self.layout.clone(), std::mem::take(&mut self.chunks))
            .map_err(|e| StoreError::corrupt("artifact", e))?;
        let Self { unfinished, data, write_back, .. } = self;
        unfinished.place(&manifest, || {
            // A disk tells of a failed write once, to whoever syncs first.
            write_back.settle()?;
            data.sync_all()
        })
    }
}

/// An artifact on disk, read chunk by chunk. A chunk is hashed when it is read for the first time since the file was
/// opened: many sites fetch the same model, and each looks at what it gets.
#[derive(Debug)]
pub struct ArtifactFile {
    manifest: ArtifactManifest,
    data: File,
    path: PathBuf,
    checked: Vec<AtomicBool>,
}

impl ArtifactFile {
    /// Opens the artifact that lies in `folder`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is not the one called `hash`.
    pub(super) fn open(folder: &Path, hash: &ArtifactHash) -> Result<Self, StoreError> {
        let file = Self::open_files(&folder.join(MANIFEST), folder.join(DATA))?;
        if file.manifest.hash() != *hash {
            let reason = format!("{} is not what its name says", folder.display());
            return Err(StoreError::corrupt("artifact", reason));
        }
        Ok(file)
    }

    /// Opens a copy of an artifact: the folder of one, of another store or a backup, or a site's `HASH.data` with `HASH.json`
    /// beside it. What it is called by does not count: that is the hash of its manifest.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when its files do not belong together; the disk.
    pub fn open_copy(path: &Path) -> Result<Self, StoreError> {
        match path.is_dir() {
            true => Self::open_files(&path.join(MANIFEST), path.join(DATA)),
            false => Self::open_files(&path.with_extension("json"), path.with_extension("data")),
        }
    }

    fn open_files(manifest: &Path, data: PathBuf) -> Result<Self, StoreError> {
        let (manifest, path) = (read_manifest_file(manifest)?, data);
        let data = File::open(&path).map_err(StoreError::file(&path))?;
        let (size, expected) =
            (data.metadata().map_err(StoreError::file(&path))?.len(), manifest.layout().bytes());
        if size != expected {
            let reason = format!("{} has {size} bytes, its manifest says {expected}", path.display());
            return Err(StoreError::corrupt("artifact", reason));
        }
        let checked = manifest.chunks().iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { manifest, data, path, checked })
    }

    /// What it consists of.
    pub fn manifest(&self) -> &ArtifactManifest {
        &self.manifest
    }

    /// Reads chunk `index` and checks it against the manifest: a disk may have changed its mind.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when there is no such chunk or its bytes changed; the disk.
    pub fn read_chunk(&self, index: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.read_into(index, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`ArtifactFile::read_chunk`], into a buffer of before: fresh memory costs more than the reading.
    ///
    /// # Errors
    /// As [`ArtifactFile::read_chunk`].
    pub fn read_into(&self, index: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let (_, hash) = chunk(&self.manifest, index)?;
        self.read_unchecked(index, bytes)?;
        let checked = self.checked.get(index);
        if checked.is_some_and(|checked| checked.load(Ordering::Relaxed)) {
            return Ok(());
        }
        if ChunkHash(Digest::of(bytes)) != hash {
            let reason = format!("chunk {index} of {} has changed", self.path.display());
            return Err(StoreError::corrupt("artifact", reason));
        }
        if let Some(checked) = checked {
            checked.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads chunk `index` into `bytes`, for who compares it with the manifest himself: aggregation does, and hashing every
    /// chunk twice would cost it as much as all of its sums.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when there is no such chunk; the disk.
    pub fn read_unchecked(&self, index: usize, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let (span, _) = chunk(&self.manifest, index)?;
        bytes.resize(span.len as usize, 0);
        self.data.read_exact_at(bytes, span.offset).map_err(StoreError::file(&self.path))
    }

    /// Tells the system that nobody is expected to read the first chunks, up to `index`, again: the memory that caches them is free for
    /// what is written next. Who reads them nevertheless gets them from the disk.
    pub fn give_up_cache(&self, index: usize) {
        let Ok((span, _)) = chunk(&self.manifest, index) else { return };
        let end = i64::try_from(span.offset + u64::from(span.len)).unwrap_or(i64::MAX);
        // Advice: where it is not taken, nothing is lost but memory.
        let _ = posix_fadvise(&self.data, 0, end, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// Span and hash of chunk `index`.
pub(super) fn chunk(
    manifest: &ArtifactManifest,
    index: usize,
) -> Result<(common::artifact::ChunkSpan, ChunkHash), StoreError> {
    let span = manifest.layout().spans().get(index).copied();
    span.zip(manifest.chunks().get(index).copied())
        .ok_or_else(|| StoreError::corrupt("artifact", format!("there is no chunk {index}")))
}

/// Writes `manifest` into `folder` and syncs both.
pub(super) fn write_manifest(folder: &Path, manifest: &ArtifactManifest) -> Result<(), StoreError> {
    let file =
        ManifestFile { tensors: manifest.layout().tensors().to_vec(), chunks: manifest.chunks().to_vec() };
    let json = serde_json::to_vec(&file).map_err(|e| StoreError::corrupt("artifact", e))?;
    let path = folder.join(MANIFEST);
    files::write_atomic(&path, &json, Access::Private).map_err(StoreError::file(&path))
}

/// Reads the manifest in `folder`.
pub(super) fn read_manifest(folder: &Path) -> Result<ArtifactManifest, StoreError> {
    read_manifest_file(&folder.join(MANIFEST))
}

fn read_manifest_file(path: &Path) -> Result<ArtifactManifest, StoreError> {
    let bytes = fs::read(path).map_err(StoreError::file(path))?;
    let corrupt = |reason: String| StoreError::corrupt("artifact", format!("{}: {reason}", path.display()));
    let file: ManifestFile = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
    let layout = TensorLayout::new(file.tensors).map_err(|e| corrupt(e.to_string()))?;
    ArtifactManifest::new(layout, file.chunks).map_err(|e| corrupt(e.to_string()))
}

/// Gives the unfinished data file in `folder` its size, and makes it where it is not there: sparse, so that chunks may arrive in
/// any order.
pub(super) fn size_data(folder: &Path, manifest: &ArtifactManifest) -> Result<(), StoreError> {
    let path = folder.join(DATA);
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    file.and_then(|file| file.set_len(manifest.layout().bytes())).map_err(StoreError::file(&path))
}

/// Opens the data file in `folder` for reading and writing.
pub(super) fn open_data(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(DATA);
    File::options().read(true).write(true).open(&path).map_err(StoreError::file(&path))
}
