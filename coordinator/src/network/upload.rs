//! An update on its way in, or an artifact that the disk lost: each chunk checked before it is written, the whole made durable before
//! it is counted.
//!
//! ```text
//! stream 1: read chunk k+1   │ check, write, count chunk k (blocking thread) ┐
//! stream 2: read chunk m+1   │ check, write, count chunk m (blocking thread) ┴► one file; synced every 16 MiB meanwhile
//! ```
//! A chunk is hashed once, when it came. Chunks of zeros do not come at all: their hash says what they are.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use common::artifact::{ArtifactManifest, Dtype};
use common::ids::{ArtifactHash, AttemptId, ModelHash, SiteId};
use common::study::sections::Aggregation;
use common::update::{
    CheckedChunk, Rejection, UpdateExpectation, UpdateOffer, UpdateVerifier, VerifiedUpdate, ZeroChunks,
};
use common::wire::{Refusal, RefusalCode};
use link::buffers::ChunkBuffer;
use link::write_back::WriteBack;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::requests::internal;
use crate::driver::position;
use crate::store::{ReturnedArtifact, SpooledUpdate, Store, StoreError};

/// An update or an artifact that is arriving, on any number of streams.
pub(super) struct Upload {
    attempt: AttemptId,
    manifest: ArtifactManifest,
    expected: Expected,
    /// Whether it may be written to: held while a chunk is written, changed once.
    open: RwLock<bool>,
    /// Bytes still to come, about: for the credit alone.
    left: AtomicU64,
    /// Its syncs, until it is let go of. Who hears that one failed removes the files, and holds this meanwhile.
    write_back: tokio::sync::Mutex<Option<WriteBack>>,
}

/// What arrives, and where it is written.
enum Expected {
    Update(Box<ArrivingUpdate>),
    /// One that the disk lost: its name says what it is.
    Artifact(Box<ReturnedArtifact>),
}

/// An update, for the spool.
struct ArrivingUpdate {
    /// Held for the moment that it takes to count a chunk.
    verifier: Mutex<UpdateVerifier>,
    spooled: SpooledUpdate,
}

/// What came whole, and is durable.
#[derive(Debug)]
pub(super) enum Kept {
    Update(Box<VerifiedUpdate>),
    Artifact(ArtifactHash),
}

/// Why a chunk or update is not kept.
enum Fault {
    Rejected(Rejection),
    Store(StoreError),
    /// It was let go of.
    LetGo,
}

impl From<Rejection> for Fault {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Rejected(rejection) => rejection.refusal(),
            Fault::Store(error) => internal(error),
            Fault::LetGo => Refusal::new(RefusalCode::TooBusy, "the update was offered anew meanwhile"),
        }
    }
}

impl Upload {
    /// Begins, or resumes with the chunks that are on disk already.
    pub(super) async fn begin(
        store: &Store,
        site: SiteId,
        offer: UpdateOffer,
        base: ModelHash,
        aggregation: &Aggregation,
    ) -> Result<Self, Refusal> {
        let (store, dtype) = (store.clone(), aggregation.update_dtype);
        let max_norm = Some(aggregation.longest_update());
        off_thread(move || begin(&store, site, offer, base, dtype, max_norm)).await
    }

    /// Begins with an artifact that the disk lost: nothing of it is here.
    pub(super) async fn receive(
        store: &Store,
        attempt: AttemptId,
        manifest: ArtifactManifest,
    ) -> Result<Self, Refusal> {
        let artifacts = store.artifacts().clone();
        off_thread(move || {
            let expected = Expected::Artifact(Box::new(artifacts.receive(manifest.clone())?));
            Ok(Self::new(attempt, manifest, expected))
        })
        .await
    }

    fn new(attempt: AttemptId, manifest: ArtifactManifest, expected: Expected) -> Self {
        let spans = manifest.layout().spans();
        let to_come = expected.missing().into_iter().filter_map(|index| spans.get(position(index)));
        let left = AtomicU64::new(to_come.map(|span| u64::from(span.len)).sum());
        let write_back = tokio::sync::Mutex::new(Some(WriteBack::default()));
        Self { attempt, manifest, expected, open: RwLock::new(true), left, write_back }
    }

    /// The site's key for it.
    pub(super) fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// What it will consist of.
    pub(super) fn manifest(&self) -> &ArtifactManifest {
        &self.manifest
    }

    /// Chunks still to come.
    pub(super) fn missing(&self) -> Vec<u32> {
        self.expected.missing()
    }

    /// Bytes still to come, on all streams, about.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Says that so many bytes came; how many are still to come, on all streams.
    pub(super) fn came(&self, bytes: u64) -> u64 {
        let less = |left: u64| Some(left.saturating_sub(bytes));
        // Always changed: the closure never gives up.
        let before = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        before.unwrap_or_else(|left| left).saturating_sub(bytes)
    }

    /// Checks, writes and counts a chunk, in this order: what is counted is in the file.
    fn take(&self, index: u32, bytes: &[u8]) -> Result<(), Fault> {
        let checked = CheckedChunk::check(&self.manifest, index, bytes)?;
        // One word is whole whatever panicked.
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(Fault::LetGo);
        }
        self.expected.take(&checked)
    }

    /// Has it synced, now and then, while more of it comes.
    async fn wrote(&self, bytes: u64) -> Result<(), Refusal> {
        let mut held = self.write_back.lock().await;
        let Some(write_back) = held.as_mut() else { return Err(Fault::LetGo.into()) };
        let synced = write_back.wrote(bytes, self.expected.data()).await;
        synced.map_err(|error| internal(self.expected.failed(error)))
    }

    /// Has nothing more of it written, synced or removed, on whatever stream: its files are its successor's. What is under way
    /// is waited for; what a sync that failed may have lost is not left to the successor.
    pub(super) async fn let_go(self: Arc<Self>) -> Result<(), Refusal> {
        let upload = self.clone();
        off_thread(move || {
            *upload.open.write().unwrap_or_else(PoisonError::into_inner) = false;
            Ok(())
        })
        .await?;
        let mut held = self.write_back.lock().await;
        let Some(mut write_back) = held.take() else { return Ok(()) };
        if let Err(error) = write_back.settle().await {
            let error = self.expected.failed(error);
            tracing::error!(error = &error as &dyn std::error::Error, "a sync failed: the update comes anew");
        }
        Ok(())
    }

    /// Completes the verification of an update, and makes what came durable.
    pub(super) async fn keep(self) -> Result<Kept, Refusal> {
        let Self { expected, write_back, .. } = self;
        let Some(mut write_back) = write_back.into_inner() else { return Err(Fault::LetGo.into()) };
        let synced = write_back.settle().await;
        synced.map_err(|error| internal(expected.failed(error)))?;
        off_thread(move || match expected {
            Expected::Update(update) => Ok(Kept::Update(Box::new(update.keep()?))),
            Expected::Artifact(artifact) => Ok(Kept::Artifact(artifact.keep()?)),
        })
        .await
    }
}

impl Expected {
    fn missing(&self) -> Vec<u32> {
        match self {
            Self::Update(update) => update.verifier.lock().unwrap_or_else(PoisonError::into_inner).missing(),
            Self::Artifact(artifact) => artifact.missing(),
        }
    }

    fn take(&self, checked: &CheckedChunk<'_>) -> Result<(), Fault> {
        match self {
            Self::Update(update) => {
                update.spooled.write_checked(checked)?;
                // Poisoning means that a panic interrupted the counting of another chunk; that one counts as missing.
                let mut verifier = update.verifier.lock().unwrap_or_else(PoisonError::into_inner);
                verifier.count(checked)?;
            }
            Self::Artifact(artifact) => artifact.write_checked(checked)?,
        }
        Ok(())
    }

    fn data(&self) -> &Arc<File> {
        match self {
            Self::Update(update) => update.spooled.data(),
            Self::Artifact(artifact) => artifact.data(),
        }
    }

    fn failed(&self, error: io::Error) -> StoreError {
        match self {
            Self::Update(update) => update.spooled.failed(error),
            Self::Artifact(artifact) => artifact.failed(error),
        }
    }
}

impl ArrivingUpdate {
    fn keep(self) -> Result<VerifiedUpdate, Fault> {
        let Self { verifier, spooled } = self;
        let verified = verifier.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?;
        spooled.note_verification(&verified.verification())?;
        spooled.keep()?;
        link::failpoint::pass("coordinator.after-spool-keep");
        Ok(verified)
    }
}

fn begin(
    store: &Store,
    site: SiteId,
    offer: UpdateOffer,
    base: ModelHash,
    dtype: Dtype,
    max_norm: Option<f64>,
) -> Result<Upload, Fault> {
    let missing = || StoreError::corrupt("artifact", format!("model {base} is not here"));
    let layout = store.artifacts().read(&base)?.ok_or_else(missing)?.manifest().layout().in_dtype(dtype);
    let (study, round, attempt, manifest) = (offer.study, offer.round, offer.attempt, offer.manifest.clone());
    let expectation = UpdateExpectation { site: site.clone(), study, round, base, layout, max_norm };
    let mut verifier = UpdateVerifier::new(expectation, offer)?;
    let spooled = store.spool().receive(&study, round, &site, manifest.clone())?;
    let absent: Vec<usize> = spooled.missing().collect();
    let mut zeros = ZeroChunks::default();
    for index in verifier.missing() {
        if absent.binary_search(&position(index)).is_err() {
            verifier.push_chunk(index, &spooled.read_chunk(position(index))?)?;
        } else if let Some(zeros) = zeros.content(&manifest, index) {
            let checked = CheckedChunk::check(&manifest, index, zeros)?;
            spooled.write_checked(&checked)?;
            verifier.count(&checked)?;
        }
    }
    let expected = Expected::Update(Box::new(ArrivingUpdate { verifier: Mutex::new(verifier), spooled }));
    Ok(Upload::new(attempt, manifest, expected))
}

/// One stream's way into an upload: while a chunk is checked and written, the next is read. It holds two buffers.
pub(super) struct Intake {
    upload: Arc<Upload>,
    under_way: Option<JoinHandle<Taken>>,
}

/// A chunk that was looked at, and its buffer.
struct Taken {
    bytes: ChunkBuffer,
    result: Result<(), Refusal>,
}

impl Intake {
    /// Into `upload`.
    pub(super) fn new(upload: Arc<Upload>) -> Self {
        Self { upload, under_way: None }
    }

    /// The upload.
    pub(super) fn upload(&self) -> &Upload {
        &self.upload
    }

    /// Takes a chunk once the one before is kept; gives the buffer of that one back.
    pub(super) async fn take(&mut self, index: u32, bytes: ChunkBuffer) -> Result<ChunkBuffer, Refusal> {
        let spare = self.settle().await?;
        let upload = self.upload.clone();
        self.under_way = Some(spawn_blocking(move || {
            let result = upload.take(index, &bytes).map_err(Refusal::from);
            Taken { bytes, result }
        }));
        Ok(spare)
    }

    /// Waits until the last chunk taken is kept; its buffer.
    pub(super) async fn settle(&mut self) -> Result<ChunkBuffer, Refusal> {
        let Some(under_way) = self.under_way.take() else { return Ok(ChunkBuffer::take()) };
        let Taken { bytes, result } = under_way.await.map_err(|error| failed(&error))?;
        result?;
        self.upload.wrote(bytes.len() as u64).await?;
        Ok(bytes)
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Refusal> {
    spawn_blocking(work).await.map_err(|error| failed(&error))?.map_err(Refusal::from)
}

fn failed(error: &JoinError) -> Refusal {
    tracing::error!(%error, "keeping an update failed");
    Refusal::new(RefusalCode::Internal, "the coordinator failed: try again")
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use common::artifact::{CHUNK_BYTES, TensorLayout, TensorSpec};
    use common::ids::{Digest, RoundId, StudyDigest};
    use common::testing::example_study;

    use super::*;
    use crate::network::slot::{self, UploadSlots};

    /// Numbers of a full chunk.
    const CHUNK: u32 = CHUNK_BYTES as u32 / 4;

    struct Folder {
        store: Store,
        base: ModelHash,
        layout: TensorLayout,
        _dir: tempfile::TempDir,
    }

    /// A store with a base model of four chunks: three of a tensor, and one of another.
    async fn folder() -> Folder {
        let spec =
            |name: &str, len| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![len] };
        let layout = TensorLayout::new(vec![spec("a", 2 * CHUNK + 5), spec("b", 3)]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        let mut writer = store.artifacts().write(layout.clone()).unwrap();
        for span in layout.spans() {
            writer.push_chunk(&vec![0; span.len as usize]).unwrap();
        }
        let base = writer.finish().unwrap();
        Folder { store, base, layout, _dir: dir }
    }

    impl Folder {
        fn offer(&self, data: &[u8]) -> UpdateOffer {
            UpdateOffer {
                study: StudyDigest(Digest::of(b"study")),
                round: RoundId(1),
                base: self.base,
                attempt: AttemptId::from_bytes([7; 16]),
                steps: 3,
                manifest: ArtifactManifest::of(self.layout.clone(), data),
            }
        }

        async fn begin(&self, data: &[u8]) -> Upload {
            let (site, study) = ("north".parse().unwrap(), example_study());
            let aggregation = &study.study().aggregation;
            Upload::begin(&self.store, site, self.offer(data), self.base, aggregation).await.unwrap()
        }

        fn chunk(&self, data: &[u8], index: u32) -> ChunkBuffer {
            let span = self.layout.spans()[index as usize];
            let mut chunk = ChunkBuffer::take();
            chunk.extend_from_slice(&data[span.offset as usize..][..span.len as usize]);
            chunk
        }
    }

    /// The update that came whole, as it was verified.
    async fn verified(upload: Arc<Upload>) -> VerifiedUpdate {
        match Arc::into_inner(upload).unwrap().keep().await.unwrap() {
            Kept::Update(verified) => *verified,
            Kept::Artifact(artifact) => panic!("{artifact:?} is an update"),
        }
    }

    /// Numbers, each another.
    fn ramp(layout: &TensorLayout) -> Vec<u8> {
        (0..layout.bytes() / 4).flat_map(|k| (k as f32 + 0.5).to_le_bytes()).collect()
    }

    #[tokio::test]
    async fn two_streams_fill_one_update_in_any_order() {
        let folder = folder().await;
        let data = ramp(&folder.layout);
        let upload = Arc::new(folder.begin(&data).await);
        assert_eq!(upload.missing(), [0, 1, 2, 3]);
        assert_eq!(upload.came(CHUNK_BYTES), data.len() as u64 - CHUNK_BYTES);
        let (mut one, mut other) = (Intake::new(upload.clone()), Intake::new(upload.clone()));
        for (intake, index) in [(&mut one, 3), (&mut other, 0)] {
            intake.take(index, folder.chunk(&data, index)).await.unwrap();
        }
        for (intake, index) in [(&mut one, 1), (&mut other, 2)] {
            let spare = intake.take(index, folder.chunk(&data, index)).await.unwrap();
            assert!(!spare.is_empty(), "the buffer comes back");
        }
        one.settle().await.unwrap();
        other.settle().await.unwrap();
        assert_eq!(upload.missing(), [0u32; 0]);
        drop((one, other));

        let verified = verified(upload).await;
        let (study, round) = (verified.study(), verified.round());
        let kept = folder.store.spool().read(&study, round, verified.site(), &verified.hash());
        let kept = kept.unwrap().unwrap();
        for index in 0..4 {
            assert_eq!(kept.read_chunk(index as usize).unwrap(), *folder.chunk(&data, index));
        }
    }

    /// What a server's moments could not hold: the study would stand still for good.
    #[tokio::test]
    async fn a_number_that_no_training_gives_is_refused_though_the_study_names_no_limit() {
        let folder = folder().await;
        let mut data = vec![0; folder.layout.bytes() as usize];
        data[..4].copy_from_slice(&1e25f32.to_le_bytes());
        let upload = Arc::new(folder.begin(&data).await);
        assert_eq!(upload.missing(), [0], "the rest is zeros");
        let mut intake = Intake::new(upload);
        intake.take(0, folder.chunk(&data, 0)).await.unwrap();
        intake.settle().await.unwrap();
        let Intake { upload, .. } = intake;
        let refused = Arc::into_inner(upload).unwrap().keep().await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::NormExceeded);
    }

    #[tokio::test]
    async fn a_bad_chunk_is_refused_and_what_came_before_stays() {
        let folder = folder().await;
        let data = ramp(&folder.layout);
        let mut intake = Intake::new(Arc::new(folder.begin(&data).await));
        intake.take(0, folder.chunk(&data, 0)).await.unwrap();
        let mut bad = folder.chunk(&data, 1);
        bad[77] ^= 1;
        intake.take(1, bad).await.unwrap();
        assert_eq!(intake.settle().await.unwrap_err().code, RefusalCode::BadChunk);
        assert_eq!(intake.upload().missing(), [1, 2, 3]);
        drop(intake);
        assert_eq!(folder.begin(&data).await.missing(), [1, 2, 3], "it is on the disk");
    }

    #[tokio::test]
    async fn of_two_connections_of_a_site_the_newer_alone_writes() {
        let folder = folder().await;
        let data = ramp(&folder.layout);
        let slots = UploadSlots::default();
        let site: SiteId = "north".parse().unwrap();
        let (older, newer) = (slots.session(&site), slots.session(&site));
        let begun = Arc::new(folder.begin(&data).await);
        older.lock().await.unwrap().update = Some(begun.clone());
        let mut stream = Intake::new(begun);
        stream.take(0, folder.chunk(&data, 0)).await.unwrap();
        stream.settle().await.unwrap();

        let mut slot = newer.lock().await.unwrap();
        assert!(slot.update.is_none(), "the older is let go of");
        // Its stream has more that came before it was closed.
        stream.take(1, folder.chunk(&data, 1)).await.unwrap();
        assert_eq!(stream.settle().await.unwrap_err().code, RefusalCode::TooBusy);
        let upload = folder.begin(&data).await;
        assert_eq!(upload.missing(), [1, 2, 3], "what came before stays, and nothing came after");
        slot.update = Some(Arc::new(upload));
        drop(slot);
        assert_eq!(older.lock().await.err().map(|refusal| refusal.code), Some(RefusalCode::TooBusy));
        older.leave().await;
        assert!(newer.lock().await.unwrap().update.is_some());
        newer.leave().await;
        assert!(newer.lock().await.unwrap().update.is_none(), "its files are closed");
    }

    /// Begins a sync that fails: a pipe cannot be synced.
    async fn fail_to_sync(upload: &Upload) {
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(OwnedFd::from(writer)));
        let mut write_back = upload.write_back.lock().await;
        write_back.as_mut().unwrap().wrote(1 << 30, &pipe).await.unwrap();
    }

    #[tokio::test]
    async fn what_an_older_connection_hears_of_the_disk_is_no_harm_to_the_update_of_the_newer() {
        let folder = folder().await;
        let data = ramp(&folder.layout);
        let slots = UploadSlots::default();
        let site: SiteId = "north".parse().unwrap();
        let (older, newer) = (slots.session(&site), slots.session(&site));
        let begun = Arc::new(folder.begin(&data).await);
        older.lock().await.unwrap().update = Some(begun.clone());
        let mut stream = Intake::new(begun.clone());
        stream.take(0, folder.chunk(&data, 0)).await.unwrap();
        stream.settle().await.unwrap();
        fail_to_sync(&begun).await;
        // A chunk that was written, and what the disk says to it is still to be heard.
        let bytes = folder.chunk(&data, 0);
        stream.under_way = Some(spawn_blocking(move || Taken { bytes, result: Ok(()) }));

        drop(newer.lock().await.unwrap());
        let upload = Arc::new(folder.begin(&data).await);
        assert_eq!(upload.missing(), [0, 1, 2, 3], "the disk may have lost what is in memory");
        assert_eq!(stream.settle().await.unwrap_err().code, RefusalCode::TooBusy);
        older.leave().await;
        let mut stream = Intake::new(upload);
        for index in 0..4 {
            stream.take(index, folder.chunk(&data, index)).await.unwrap();
        }
        stream.settle().await.unwrap();
        let Intake { upload, .. } = stream;
        assert!(Arc::into_inner(upload).unwrap().keep().await.is_ok(), "its files are there");
    }

    #[tokio::test]
    async fn the_next_update_has_the_file_once_nothing_of_a_cancelled_one_is_being_written() {
        let folder = folder().await;
        let (data, next) = (ramp(&folder.layout), vec![7; folder.layout.bytes() as usize]);
        let session = UploadSlots::default().session(&"north".parse().unwrap());
        let cancelled = Arc::new(folder.begin(&data).await);
        let mut slot = session.lock().await.unwrap();
        slot.update = Some(cancelled.clone());
        let mut stream = Intake::new(cancelled.clone());
        stream.take(0, folder.chunk(&data, 0)).await.unwrap();
        stream.settle().await.unwrap();

        let mut letting_go = pin!(slot.let_go());
        {
            // The stream is cancelled, and a thread has a chunk of it in hand.
            let _writing = cancelled.open.read().unwrap();
            assert!(letting_go.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let chunk = folder.chunk(&data, 1);
            let checked = CheckedChunk::check(&cancelled.manifest, 1, &chunk).unwrap();
            assert!(cancelled.expected.take(&checked).is_ok());
        }
        letting_go.await.unwrap();
        // One that no thread has taken up yet comes too late.
        stream.take(2, folder.chunk(&data, 2)).await.unwrap();
        assert_eq!(stream.settle().await.unwrap_err().code, RefusalCode::TooBusy);

        let upload = Arc::new(folder.begin(&next).await);
        assert_eq!(upload.missing(), [0, 1, 2, 3], "nothing of another update is taken for it");
        let mut stream = Intake::new(upload);
        for index in 0..4 {
            stream.take(index, folder.chunk(&next, index)).await.unwrap();
        }
        stream.settle().await.unwrap();
        let Intake { upload, .. } = stream;
        let verified = verified(upload).await;
        let (study, round) = (verified.study(), verified.round());
        let kept = folder.store.spool().read(&study, round, verified.site(), &verified.hash());
        kept.unwrap().unwrap().verify(|_| {}).unwrap();
    }

    #[tokio::test]
    async fn a_lost_artifact_comes_back_beside_an_update_each_under_its_attempt() {
        let folder = folder().await;
        let (data, base) = (ramp(&folder.layout), vec![0; folder.layout.bytes() as usize]);
        let session = UploadSlots::default().session(&"north".parse().unwrap());
        let mut slot = session.lock().await.unwrap();
        slot.update = Some(Arc::new(folder.begin(&data).await));
        std::fs::remove_dir_all(folder.store.artifacts().folder(&folder.base)).unwrap();
        let (attempt, manifest) =
            (AttemptId::from_bytes([9; 16]), ArtifactManifest::of(folder.layout.clone(), &base));
        assert_eq!(manifest.hash(), folder.base);
        let returned = Upload::receive(&folder.store, attempt, manifest).await.unwrap();
        assert_eq!(returned.missing(), [0, 1, 2, 3], "zeros too");
        slot.artifact = Some(Arc::new(returned));

        let mut intake = Intake::new(slot.of(attempt).unwrap().clone());
        for index in [2, 0, 3, 1] {
            intake.take(index, folder.chunk(&base, index)).await.unwrap();
        }
        intake.settle().await.unwrap();
        drop(intake);
        slot::let_go(&mut slot.update).await.unwrap();
        assert!(slot.of(folder.offer(&data).attempt).is_none());
        let (returned, _) = slot.take(attempt).unwrap();
        let kept = Arc::into_inner(returned).unwrap().keep().await.unwrap();
        assert!(matches!(kept, Kept::Artifact(artifact) if artifact == folder.base));
        folder.store.artifacts().read(&folder.base).unwrap().unwrap().verify(|_| {}).unwrap();
    }

    #[tokio::test]
    async fn a_session_that_ends_hears_what_the_disk_says_last() {
        let folder = folder().await;
        let data = ramp(&folder.layout);
        let session = UploadSlots::default().session(&"north".parse().unwrap());
        let upload = Arc::new(folder.begin(&data).await);
        session.lock().await.unwrap().update = Some(upload.clone());
        let mut stream = Intake::new(upload.clone());
        stream.take(0, folder.chunk(&data, 0)).await.unwrap();
        stream.settle().await.unwrap();
        fail_to_sync(&upload).await;
        session.leave().await;
        assert_eq!(folder.begin(&data).await.missing(), [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn tensors_that_training_left_alone_are_not_asked_for() {
        let folder = folder().await;
        let mut data = ramp(&folder.layout);
        let (start, end) = (CHUNK_BYTES as usize, 2 * CHUNK_BYTES as usize + 20);
        data[start..end].fill(0);
        let upload = Arc::new(folder.begin(&data).await);
        assert_eq!(upload.missing(), [0, 3]);
        let mut intake = Intake::new(upload);
        for index in [0, 3] {
            intake.take(index, folder.chunk(&data, index)).await.unwrap();
        }
        intake.settle().await.unwrap();
        let Intake { upload, .. } = intake;
        let verified = verified(upload).await;
        assert_eq!(verified.hash(), folder.offer(&data).hash());
    }
}
