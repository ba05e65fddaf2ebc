//! An update on its way in: each chunk checked before it is written, the whole made durable before it is counted.

use common::artifact::ArtifactManifest;
use common::ids::{AttemptId, ModelHash, SiteId};
use common::update::{Rejection, UpdateExpectation, UpdateOffer, UpdateVerifier, VerifiedUpdate};
use common::wire::{Refusal, RefusalCode};
use tokio::sync::Mutex;

use super::requests::internal;
use crate::driver::position;
use crate::store::{SpooledUpdate, Store, StoreError};

/// Room for the one update of a connection.
pub(super) type UploadSlot = Mutex<Option<Upload>>;

/// An update that is arriving.
pub(super) struct Upload {
    verifier: UpdateVerifier,
    spooled: SpooledUpdate,
}

/// Why a chunk or update is not kept.
enum Fault {
    Rejected(Rejection),
    Store(StoreError),
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
        max_norm: Option<f64>,
    ) -> Result<Self, Refusal> {
        let store = store.clone();
        off_thread(move || begin(&store, site, offer, base, max_norm)).await
    }

    /// The site's key for it.
    pub(super) fn attempt(&self) -> AttemptId {
        self.verifier.offer().attempt
    }

    /// What it will consist of.
    pub(super) fn manifest(&self) -> &ArtifactManifest {
        &self.verifier.offer().manifest
    }

    /// Chunks still to come.
    pub(super) fn missing(&self) -> Vec<u32> {
        self.verifier.missing()
    }

    /// Checks and writes a chunk; gives itself and the buffer back.
    pub(super) async fn keep_chunk(
        mut self,
        index: u32,
        bytes: Vec<u8>,
    ) -> (Self, Vec<u8>, Result<(), Refusal>) {
        // Invariant: the closure neither panics nor is cancelled; a task that was spawned to block runs to its end.
        let kept = tokio::task::spawn_blocking(move || {
            let result = self.write_chunk(index, &bytes).map_err(Refusal::from);
            (self, bytes, result)
        });
        kept.await.expect("a blocking task runs to its end")
    }

    fn write_chunk(&mut self, index: u32, bytes: &[u8]) -> Result<(), Fault> {
        self.verifier.push_chunk(index, bytes)?;
        self.spooled.write_chunk(position(index), bytes)?;
        Ok(())
    }

    /// Completes the verification and makes the update durable.
    pub(super) async fn keep(self) -> Result<VerifiedUpdate, Refusal> {
        off_thread(move || {
            let verified = self.verifier.finish()?;
            self.spooled.note_verification(&verified.verification())?;
            self.spooled.keep()?;
            link::failpoint::pass("coordinator.after-spool-keep");
            Ok(verified)
        })
        .await
    }
}

fn begin(
    store: &Store,
    site: SiteId,
    offer: UpdateOffer,
    base: ModelHash,
    max_norm: Option<f64>,
) -> Result<Upload, Fault> {
    let missing = || StoreError::corrupt("artifact", format!("model {base} is not here"));
    let layout = store.artifacts().read(&base)?.ok_or_else(missing)?.manifest().layout().clone();
    let (study, round, manifest) = (offer.study, offer.round, offer.manifest.clone());
    let expectation = UpdateExpectation { site: site.clone(), study, round, base, layout, max_norm };
    let mut verifier = UpdateVerifier::new(expectation, offer)?;
    let spooled = store.spool().receive(&study, round, &site, manifest)?;
    let absent: Vec<usize> = spooled.missing().collect();
    for index in verifier.missing() {
        if !absent.contains(&position(index)) {
            verifier.push_chunk(index, &spooled.read_chunk(position(index))?)?;
        }
    }
    Ok(Upload { verifier, spooled })
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Refusal::from),
        Err(error) => {
            tracing::error!(%error, "keeping an update failed");
            Err(Refusal::new(RefusalCode::Internal, "the coordinator failed: try again"))
        }
    }
}
