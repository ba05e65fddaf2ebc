//! Updates on their way in, and those that wait for their round to be aggregated.
//!
//! `spool/<study>-<round>/` holds `<site>.part` while an update arrives and `<site>.<hash>` once it is whole, checked
//! and synced. Each site has one unfinished update a round: a new attempt replaces the one before. After a crash the
//! chunks on disk are hashed again: those that are right need not be sent twice. Of one that was kept, and never counted because we
//! were killed in between, nothing is sent again. What was found of a whole update lies beside it (`verification`), so that
//! aggregation need not read it twice. All calls block.
//!
//! `spool/spare/` holds whole updates of a round that is over, for the next to write over their files (docs/decisions/0025). To one
//! that arrives its site may still write. Of what is in them nothing is taken for present.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::artifact::ArtifactManifest;
use common::ids::{ArtifactHash, ChunkHash, Digest, RoundId, SiteId, StudyDigest};
use common::update::{CheckedChunk, Verification};

use super::artifacts::{ArtifactFile, DATA, chunk, open_data, read_manifest, size_data, write_manifest};
use super::{Health, Kind, StoreError, scrub};
use crate::clock;
use crate::files::{self, Access};

const VERIFICATION: &str = "verification";

/// Folder of updates whose files may be written over.
pub(super) const SPARE: &str = "spare";

/// Suffix of updates that are arriving.
pub(super) const ARRIVING: &str = ".part";

/// The folder of all updates. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spool {
    pub(super) dir: PathBuf,
    health: Health,
}

impl Spool {
    /// Opens `dir`, making it if need be, and removes what the run before had spare.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn open(dir: &Path, health: Health) -> Result<Self, StoreError> {
        files::create_private_dir(dir).map_err(StoreError::file(dir))?;
        let spool = Self::at(dir, health);
        spool.remove_spares()?;
        Ok(spool)
    }

    /// The folder as it is: nothing is made.
    pub(super) fn at(dir: &Path, health: Health) -> Self {
        Self { dir: dir.to_owned(), health }
    }

    /// Begins or resumes the update that `manifest` describes; one that is here already has nothing missing.
    ///
    /// # Errors
    /// The disk.
    pub fn receive(
        &self,
        study: &StudyDigest,
        round: RoundId,
        site: &SiteId,
        manifest: ArtifactManifest,
    ) -> Result<SpooledUpdate, StoreError> {
        self.health.note(self.begin(study, round, site, manifest))
    }

    fn begin(
        &self,
        study: &StudyDigest,
        round: RoundId,
        site: &SiteId,
        manifest: ArtifactManifest,
    ) -> Result<SpooledUpdate, StoreError> {
        let (site, health) = (site.clone(), self.health.clone());
        let round_folder = self.round_folder(study, round);
        let kept = kept(&round_folder, &site, &manifest.hash());
        if is_whole(&kept, &manifest.hash()) {
            let data = Arc::new(open_data(&kept)?);
            let present = manifest.chunks().iter().map(|_| AtomicBool::new(true)).collect();
            return Ok(SpooledUpdate { folder: kept, round_folder, site, data, manifest, present, health });
        }
        let folder = round_folder.join(format!("{site}{ARRIVING}"));
        let resumable = folder.is_dir() && read_manifest(&folder).is_ok_and(|found| found == manifest);
        if !resumable {
            remove_if_there(&folder)?;
            files::create_private_dir(&folder).map_err(StoreError::file(&folder))?;
            self.take_spare(&folder)?;
            size_data(&folder, &manifest)?;
            // Last: a manifest says that the data file beside it has its full length.
            write_manifest(&folder, &manifest)?;
        }
        let data = Arc::new(open_data(&folder)?);
        let present = rehash(&data, &manifest, resumable);
        Ok(SpooledUpdate { folder, round_folder, site, data, manifest, present, health })
    }

    /// Opens an update that was kept; `None` when it is not here.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], or the disk.
    pub fn read(
        &self,
        study: &StudyDigest,
        round: RoundId,
        site: &SiteId,
        update: &ArtifactHash,
    ) -> Result<Option<ArtifactFile>, StoreError> {
        let folder = self.folder(study, round, site, update);
        if !folder.is_dir() {
            return Ok(None);
        }
        ArtifactFile::open(&folder, update).map(Some)
    }

    /// Where an update that was kept lies, or would.
    pub fn folder(
        &self,
        study: &StudyDigest,
        round: RoundId,
        site: &SiteId,
        update: &ArtifactHash,
    ) -> PathBuf {
        kept(&self.round_folder(study, round), site, update)
    }

    /// What was found of an update that was kept; `None` where that is not known, or no longer what was written.
    pub fn verification(
        &self,
        study: &StudyDigest,
        round: RoundId,
        site: &SiteId,
        update: &ArtifactHash,
    ) -> Option<Verification> {
        let folder = kept(&self.round_folder(study, round), site, update);
        Verification::from_bytes(&fs::read(folder.join(VERIFICATION)).ok()?)
    }

    /// Removes all updates of a round that is over.
    ///
    /// # Errors
    /// The disk.
    pub fn remove_round(&self, study: &StudyDigest, round: RoundId) -> Result<(), StoreError> {
        remove_if_there(&self.round_folder(study, round))
    }

    /// As [`Spool::remove_round`], but whole updates become spare.
    ///
    /// # Errors
    /// The disk.
    pub fn recycle_round(&self, study: &StudyDigest, round: RoundId) -> Result<(), StoreError> {
        let spares = self.dir.join(SPARE);
        files::create_private_dir(&spares).map_err(StoreError::file(&spares))?;
        for entry in self.of_round(*study, round)? {
            if let (Kind::Update(_), Some(name)) = (&entry.kind, entry.path.file_name()) {
                fs::rename(&entry.path, spares.join(name)).map_err(StoreError::file(&entry.path))?;
            }
        }
        self.remove_round(study, round)
    }

    /// Removes what is spare: nobody took it, or its room is needed.
    ///
    /// # Errors
    /// The disk.
    pub fn remove_spares(&self) -> Result<(), StoreError> {
        remove_if_there(&self.dir.join(SPARE))
    }

    /// Bytes of the files that are spare: the disk counts them as taken, and the next round does not.
    pub fn spare_bytes(&self) -> u64 {
        let spares = fs::read_dir(self.dir.join(SPARE)).into_iter().flatten().flatten();
        spares.filter_map(|spare| fs::metadata(spare.path().join(DATA)).ok()).map(|data| data.len()).sum()
    }

    /// Moves the data file of a spare update, if there is one, into `folder`.
    fn take_spare(&self, folder: &Path) -> Result<(), StoreError> {
        let Ok(spares) = fs::read_dir(self.dir.join(SPARE)) else { return Ok(()) };
        for spare in spares.flatten() {
            match fs::rename(spare.path().join(DATA), folder.join(DATA)) {
                Ok(()) => return remove_if_there(&spare.path()),
                // Another update has it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::file(folder)(error)),
            }
        }
        Ok(())
    }

    pub(super) fn round_folder(&self, study: &StudyDigest, round: RoundId) -> PathBuf {
        self.dir.join(format!("{study}-{round}"))
    }
}

/// An update that is arriving. Nothing about it is trusted but the hashes of the chunks that it has. Several chunks may be
/// written at once.
#[derive(Debug)]
pub struct SpooledUpdate {
    folder: PathBuf,
    round_folder: PathBuf,
    site: SiteId,
    data: Arc<File>,
    manifest: ArtifactManifest,
    present: Vec<AtomicBool>,
    health: Health,
}

impl SpooledUpdate {
    /// What it will consist of.
    pub fn manifest(&self) -> &ArtifactManifest {
        &self.manifest
    }

    /// Indices of the chunks still to come, ascending.
    pub fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        let absent =
            |(index, present): (usize, &AtomicBool)| (!present.load(Ordering::Acquire)).then_some(index);
        self.present.iter().enumerate().filter_map(absent)
    }

    /// Writes a chunk that was checked: its bytes are not hashed again. One that is here stays as it is: the file of a whole update
    /// is another's once its round is over.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it was checked for another update; the disk.
    pub fn write_checked(&self, checked: &CheckedChunk<'_>) -> Result<(), StoreError> {
        let index = usize::try_from(checked.index()).unwrap_or(usize::MAX);
        let (span, _) = chunk(&self.manifest, index)?;
        if !checked.is_of(&self.manifest) {
            return Err(StoreError::corrupt("update", format!("chunk {index} is of another update")));
        }
        let Some(present) = self.present.get(index).filter(|present| !present.load(Ordering::Acquire)) else {
            return Ok(());
        };
        let written =
            self.data.write_all_at(checked.bytes(), span.offset).map_err(StoreError::file(&self.folder));
        self.health.note(written)?;
        present.store(true, Ordering::Release);
        Ok(())
    }

    /// Its data, to be synced while more arrives.
    pub fn data(&self) -> &Arc<File> {
        &self.data
    }

    /// The disk's word about a sync that failed. What is arriving is removed then, and comes anew: the disk says it once, and
    /// what reads back as right afterwards may be in memory alone. Not for an update whose successor may have begun: the folder is
    /// the successor's.
    pub fn failed(&self, source: io::Error) -> StoreError {
        let arrives = self.folder.to_string_lossy().ends_with(ARRIVING);
        if arrives && let Err(error) = remove_if_there(&self.folder) {
            tracing::warn!(%error, "an update that the disk may have lost cannot be removed");
        }
        StoreError::file(&self.folder)(source)
    }

    /// Reads back a chunk that was written.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when there is no such chunk or its bytes changed; the disk.
    pub fn read_chunk(&self, index: usize) -> Result<Vec<u8>, StoreError> {
        let (span, hash) = chunk(&self.manifest, index)?;
        let mut bytes = vec![0; span.len as usize];
        self.data.read_exact_at(&mut bytes, span.offset).map_err(StoreError::file(&self.folder))?;
        if ChunkHash(Digest::of(&bytes)) != hash {
            return Err(StoreError::corrupt("update", format!("chunk {index} is not what was sent")));
        }
        Ok(bytes)
    }

    /// Lays what was found of the whole content beside it, to become durable with it.
    ///
    /// # Errors
    /// The disk.
    pub fn note_verification(&self, verification: &Verification) -> Result<(), StoreError> {
        let path = self.folder.join(VERIFICATION);
        files::write_atomic(&path, &verification.to_bytes(), Access::Private).map_err(StoreError::file(&path))
    }

    /// Makes the whole update durable, so that a receipt may be given for it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when chunks are missing; the disk.
    pub fn keep(self) -> Result<ArtifactHash, StoreError> {
        let health = self.health.clone();
        health.note(self.make_durable())
    }

    fn make_durable(self) -> Result<ArtifactHash, StoreError> {
        if let Some(index) = self.missing().next() {
            return Err(StoreError::corrupt("update", format!("chunk {index} is missing")));
        }
        let hash = self.manifest.hash();
        self.data.sync_all().map_err(|error| self.failed(error))?;
        files::sync_dir(&self.folder).map_err(StoreError::file(&self.folder))?;
        let to = kept(&self.round_folder, &self.site, &hash);
        if self.folder != to {
            self.take_name(&to, &hash)?;
        }
        for folder in [self.round_folder.as_path(), files::parent(&self.round_folder)] {
            files::sync_dir(folder).map_err(StoreError::file(folder))?;
        }
        Ok(hash)
    }

    /// Takes the name of what is whole. What lies under it is not removed: if it is whole too, it may count already.
    fn take_name(&self, to: &Path, hash: &ArtifactHash) -> Result<(), StoreError> {
        if to.exists() {
            match ArtifactFile::open(to, hash).and_then(|file| file.verify(|_| {})) {
                Ok(()) => return remove_if_there(&self.folder),
                // Out of reach for now, it may be whole.
                Err(error) if !error.is_damage() => return Err(error),
                Err(error) => {
                    let spool = files::parent(&self.round_folder);
                    let moved = scrub::quarantine(files::parent(spool), to, clock::now())?;
                    let (site, moved) = (&self.site, moved.display());
                    tracing::warn!(%site, %error, %moved, "a corrupt update is replaced");
                }
            }
        }
        fs::rename(&self.folder, to).map_err(StoreError::file(to))
    }
}

/// Whether the update called `hash` lies in `folder`, every byte of it.
fn is_whole(folder: &Path, hash: &ArtifactHash) -> bool {
    folder.is_dir() && ArtifactFile::open(folder, hash).and_then(|file| file.verify(|_| {})).is_ok()
}

fn kept(round_folder: &Path, site: &SiteId, update: &ArtifactHash) -> PathBuf {
    round_folder.join(format!("{site}.{update}"))
}

/// Which chunks of a file are right. A new file has none: what is in it, zeros or another update, is not looked at.
fn rehash(data: &File, manifest: &ArtifactManifest, resumed: bool) -> Vec<AtomicBool> {
    let mut buffer = vec![0; usize::try_from(common::artifact::CHUNK_BYTES).unwrap_or(0)];
    let spans = manifest.layout().spans().iter().zip(manifest.chunks());
    spans
        .map(|(span, hash)| {
            let Some(bytes) = buffer.get_mut(..span.len as usize).filter(|_| resumed) else { return false };
            data.read_exact_at(bytes, span.offset).is_ok() && ChunkHash(Digest::of(bytes)) == *hash
        })
        .map(AtomicBool::new)
        .collect()
}

fn remove_if_there(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::file(folder)(error)),
        _ => Ok(()),
    }
}
