//! One round's new model, from files to a file, a chunk at a time.
//!
//! Updates were verified when they came, and what was found lies beside them: here each chunk is read once, compared with its
//! manifest, and summed. A chunk that a disk has changed ends it before anything is published. Blocks: runs on its own
//! threads, a few chunks side by side, while those before are written. Memory: for each of them one chunk of the sums, of an update,
//! and two of the model and of each moment, whatever the number of sites; a rule that sorts holds a chunk of every site, and takes
//! one at a time.

mod in_order;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use common::aggregate::{
    AggregateError, AggregatedChunk, Aggregator, Clipped, Contribution, Method, WeightedUpdate, Workspace,
};
use common::ids::{ClassId, ModelHash, RoundId, SiteId, StudyDigest};
use common::round::{Fault, Term};
use common::study::CLASS_TABLE_TENSOR;
use common::update::{Rejection, UpdateExpectation, UpdateOffer, UpdateVerifier, VerifiedUpdate};
use tokio_util::sync::CancellationToken;

use self::in_order::make_in_order;
use crate::store::{ArtifactFile, ArtifactWriter, ServerState, ServerStateWriter, Store, StoreError};

/// Most chunks in the making at once: hashing and reading keep a few cores busy, and each costs some MiB.
const MOST_THREADS: usize = 4;

/// What to average.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) study: StudyDigest,
    pub(super) round: RoundId,
    pub(super) base: ModelHash,
    pub(super) terms: Vec<Term>,
    pub(super) method: Method,
    pub(super) steps: u32,
    /// Which sites annotate each class, when the class table is trained.
    pub(super) class_rows: Option<BTreeMap<ClassId, BTreeSet<SiteId>>>,
    /// Cancelled when nobody wants the model any more.
    pub(super) stop: CancellationToken,
}

impl Job {
    fn go_on(&self) -> Result<(), JobError> {
        if self.stop.is_cancelled() { Err(JobError::Cancelled) } else { Ok(()) }
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    /// The new model, durable; and so are the moments beside it.
    pub(super) model: ModelHash,
    /// Updates that counted scaled down.
    pub(super) clipped: Vec<Clipped>,
    /// What each update is in the round.
    pub(super) contributions: Vec<Contribution>,
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
    #[error("it was cancelled")]
    Cancelled,
}

impl JobError {
    /// The machine's word for it.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Store(error) if error.code() == "disk-full" => Fault::StorageFull,
            Self::Store(_) | Self::Missing { .. } | Self::Update(_) | Self::Cancelled => Fault::Storage,
            Self::Numbers(AggregateError::Chunk { .. }) => Fault::Storage,
            Self::Numbers(_) => Fault::Numbers,
        }
    }
}

/// Computes the new model and keeps it, durable, among the artifacts, and the moments beside it.
pub(super) fn aggregate(store: &Store, job: &Job) -> Result<Done, JobError> {
    let missing = |what: String| JobError::Missing { what };
    let base = store.artifacts().read(&job.base)?.ok_or_else(|| missing(format!("model {}", job.base)))?;
    let mut files = BTreeMap::new();
    let mut updates = Vec::new();
    for term in &job.terms {
        let file = store.spool().read(&job.study, term.round, &term.site, &term.update)?;
        let file = file.ok_or_else(|| missing(format!("the update of {}", term.site)))?;
        let update = recall(store, job, term, &base, &file)?;
        updates.push(WeightedUpdate { update, weight: term.share });
        files.insert(term.site.clone(), file);
    }
    let late =
        job.terms.iter().filter(|term| term.round != job.round).map(|term| term.site.clone()).collect();
    let mut aggregator = Aggregator::by_method(base.manifest().clone(), updates, &late, job.method)?;
    if let Some(annotating) = &job.class_rows {
        aggregator = aggregator.with_class_rows(CLASS_TABLE_TENSOR, annotating)?;
    }
    // Both in order of the sites' names.
    let sources = Sources { base, updates: files.into_values().collect(), state: state_before(store, job)? };
    let model = write_model(store, job, &aggregator, &sources)?;
    let (clipped, contributions) = (aggregator.clipped().to_vec(), aggregator.contributions());
    Ok(Done { model, clipped, contributions })
}

/// The update as it was verified, by what was found then; where that is lost, by reading it all.
fn recall(
    store: &Store,
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
        layout: base.manifest().layout().in_dtype(job.method.update_dtype),
        // Its norm was checked when it was taken; a receipt is given for it, so it counts.
        max_norm: None,
    };
    let manifest = file.manifest().clone();
    let offer =
        UpdateOffer { study, round, base: term.base, attempt: term.attempt, steps: job.steps, manifest };
    let mut verifier = UpdateVerifier::new(expectation, offer)?;
    if let Some(found) = store.spool().verification(&study, round, &term.site, &term.update) {
        verifier.recall(&found);
    }
    let mut bytes = Vec::new();
    for index in verifier.missing() {
        file.read_unchecked(position(index), &mut bytes)?;
        verifier.push_chunk(index, &bytes)?;
    }
    Ok(verifier.finish()?)
}

/// The moments that the round starts from: none where the rule has none; zeros in the first round alone.
fn state_before(store: &Store, job: &Job) -> Result<Option<ServerState>, JobError> {
    let moments = job.method.rule.moments();
    if moments.is_empty() || job.round.0 <= 1 {
        return Ok(None);
    }
    let before = RoundId(job.round.0 - 1);
    Ok(Some(store.server_states().read(&job.study, before, &job.base, moments)?))
}

/// What a chunk is made of.
struct Sources {
    base: ArtifactFile,
    /// In the order of [`Aggregator::updates`].
    updates: Vec<ArtifactFile>,
    state: Option<ServerState>,
}

/// What a chunk is made with.
#[derive(Default)]
struct Scratch {
    workspace: Workspace,
    input: Vec<u8>,
}

/// What came of a chunk, until it is written.
#[derive(Default)]
struct Made {
    moments: Vec<Vec<u8>>,
    new: Vec<u8>,
}

/// Chunks of the old model after which the memory that caches them is given to the new one.
const GIVE_UP_EVERY: usize = 16;

/// Where the chunks go, in order.
struct Output<'a> {
    base: &'a ArtifactFile,
    writer: ArtifactWriter,
    state: Option<ServerStateWriter>,
    chunks: Vec<AggregatedChunk>,
}

impl Output<'_> {
    fn keep(&mut self, chunk: AggregatedChunk, made: &Made) -> Result<(), JobError> {
        self.writer.push_hashed(&made.new, chunk.hash())?;
        link::failpoint::pass("coordinator.mid-aggregation");
        if let Some(state) = &mut self.state {
            state.push_chunk(&made.moments)?;
        }
        self.chunks.push(chunk);
        // Nobody waits for the old model any more, and who still fetches it has it from the disk. Memory that was never touched is dear on
        // a virtual machine.
        if self.chunks.len().is_multiple_of(GIVE_UP_EVERY) {
            self.base.give_up_cache(self.chunks.len() - 1);
        }
        Ok(())
    }
}

fn write_model(
    store: &Store,
    job: &Job,
    aggregator: &Aggregator,
    sources: &Sources,
) -> Result<ModelHash, JobError> {
    let layout = sources.base.manifest().layout();
    let writer = store.artifacts().write(layout.clone())?;
    let state = match job.method.rule.moments() {
        [] => None,
        names => Some(store.server_states().write(job.study, layout, names)?),
    };
    let (base, chunks) = (&sources.base, Vec::with_capacity(aggregator.chunks()));
    let mut output = Output { base, writer, state, chunks };
    make_in_order(
        u32::try_from(aggregator.chunks()).unwrap_or(u32::MAX),
        side_by_side(job.method),
        |index, scratch, made| {
            job.go_on()?;
            make_chunk(aggregator, sources, index, scratch, made)
        },
        |chunk, made| output.keep(chunk, made),
    )?;
    let Output { writer, state, chunks, .. } = output;
    let model = aggregator.seal(chunks)?.hash();
    job.go_on()?;
    let written = writer.finish()?;
    link::failpoint::pass("coordinator.after-model-rename");
    debug_assert_eq!(model, written, "both are of the same chunks");
    if let Some(state) = state {
        state.finish(job.round, &model)?;
        link::failpoint::pass("coordinator.after-moments");
    }
    Ok(model)
}

/// How many chunks to make at once.
fn side_by_side(method: Method) -> usize {
    if method.rule.sorts() {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS))
}

fn make_chunk(
    aggregator: &Aggregator,
    sources: &Sources,
    index: u32,
    scratch: &mut Scratch,
    made: &mut Made,
) -> Result<AggregatedChunk, JobError> {
    let Scratch { workspace, input } = scratch;
    let Made { moments, new } = made;
    let mut sum = aggregator.chunk(index, workspace)?;
    for update in &sources.updates {
        update.read_unchecked(position(index), input)?;
        sum.add(input)?;
    }
    sources.base.read_unchecked(position(index), input)?;
    moments.resize_with(aggregator.method().rule.moments().len(), Vec::new);
    match &sources.state {
        Some(state) => state.read_chunk(position(index), moments)?,
        None => moments.iter_mut().for_each(|moment| {
            moment.clear();
            moment.resize(input.len(), 0);
        }),
    }
    Ok(sum.finish(input, moments, new)?)
}

/// A chunk's index as a position in memory; indices come from a layout, which fits.
pub(crate) fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
