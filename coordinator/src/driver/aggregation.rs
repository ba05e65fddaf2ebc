//! One round's new model, from files to a file, a chunk at a time.
//!
//! Updates were verified when they came; they are verified again as they are read, because a restart or a disk may lie
//! between. Blocks: runs on its own thread. Memory: one chunk of the sums, one of an update, one of the model.

use std::collections::{BTreeMap, BTreeSet};

use common::aggregate::{AggregateError, Aggregator, WeightedUpdate};
use common::ids::{ClassId, ModelHash, RoundId, SiteId, StudyDigest};
use common::round::{Fault, Term};
use common::study::CLASS_TABLE_TENSOR;
use common::update::{Rejection, UpdateExpectation, UpdateOffer, UpdateVerifier, VerifiedUpdate};

use crate::store::{ArtifactFile, Store, StoreError};

/// What to average.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) study: StudyDigest,
    pub(super) round: RoundId,
    pub(super) base: ModelHash,
    pub(super) terms: Vec<Term>,
    pub(super) server_lr: f64,
    pub(super) steps: u32,
    /// Which sites annotate each class, when the class table is trained.
    pub(super) class_rows: Option<BTreeMap<ClassId, BTreeSet<SiteId>>>,
}

/// Why there is no new model.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobError {
    #[error("the files of the round")]
    Store(#[from] StoreError),
    #[error("{what} is not in the store")]
    Missing { what: String },
    #[error("a stored update is no longer what it was")]
    Update(#[from] Rejection),
    #[error("the numbers")]
    Numbers(#[from] AggregateError),
}

impl JobError {
    /// The machine's word for it.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Store(error) if error.code() == "disk-full" => Fault::StorageFull,
            Self::Store(_) | Self::Missing { .. } | Self::Update(_) => Fault::Storage,
            Self::Numbers(AggregateError::Chunk { .. }) => Fault::Storage,
            Self::Numbers(_) => Fault::Numbers,
        }
    }
}

/// Computes the new model and keeps it, durable, among the artifacts.
pub(super) fn aggregate(store: &Store, job: &Job) -> Result<ModelHash, JobError> {
    let missing = |what: String| JobError::Missing { what };
    let base = store.artifacts().read(&job.base)?.ok_or_else(|| missing(format!("model {}", job.base)))?;
    let mut files = BTreeMap::new();
    let mut updates = Vec::new();
    for term in &job.terms {
        let file = store.spool().read(&job.study, term.round, &term.site, &term.update)?;
        let file = file.ok_or_else(|| missing(format!("the update of {}", term.site)))?;
        updates.push(WeightedUpdate { update: verify(job, term, &base, &file)?, weight: term.share });
        files.insert(term.site.clone(), file);
    }
    let late =
        job.terms.iter().filter(|term| term.round != job.round).map(|term| term.site.clone()).collect();
    let mut aggregator = Aggregator::with_late(base.manifest().clone(), updates, &late, job.server_lr)?;
    if let Some(annotating) = &job.class_rows {
        aggregator = aggregator.with_class_rows(CLASS_TABLE_TENSOR, annotating)?;
    }
    write_model(store, &aggregator, &base, &files)
}

fn verify(
    job: &Job,
    term: &Term,
    base: &ArtifactFile,
    file: &ArtifactFile,
) -> Result<VerifiedUpdate, JobError> {
    // Of a late update another round and another base; the trainable tensors are those of every model of the study.
    let (study, round) = (job.study, term.round);
    let expectation = UpdateExpectation {
        site: term.site.clone(),
        study,
        round,
        base: term.base,
        layout: base.manifest().layout().clone(),
        // Its norm was checked when it was taken; a receipt is given for it, so it counts.
        max_norm: None,
    };
    let manifest = file.manifest().clone();
    let offer =
        UpdateOffer { study, round, base: term.base, attempt: term.attempt, steps: job.steps, manifest };
    let mut verifier = UpdateVerifier::new(expectation, offer)?;
    for index in verifier.missing() {
        verifier.push_chunk(index, &file.read_chunk(position(index))?)?;
    }
    Ok(verifier.finish()?)
}

fn write_model(
    store: &Store,
    aggregator: &Aggregator,
    base: &ArtifactFile,
    files: &BTreeMap<SiteId, ArtifactFile>,
) -> Result<ModelHash, JobError> {
    let mut writer = store.artifacts().write(base.manifest().layout().clone())?;
    let mut new = Vec::new();
    for (position, index) in (0..aggregator.chunks()).zip(0u32..) {
        let mut sum = aggregator.chunk(index)?;
        for update in aggregator.updates() {
            let site = update.update.site();
            let file =
                files.get(site).ok_or_else(|| JobError::Missing { what: format!("the update of {site}") })?;
            sum.add(&file.read_chunk(position)?)?;
        }
        sum.finish(&base.read_chunk(position)?, &mut new)?;
        writer.push_chunk(&new)?;
    }
    Ok(writer.finish()?)
}

/// A chunk's index as a position in memory; indices come from a layout, which fits.
pub(crate) fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
