//! The new global model, chunk by chunk: by federated averaging `Global' = f32(f64(global) + η · Σ w_s Δ_s / Σ w_s)` (design §4), or by
//! another [`Rule`].
//!
//! Sites are summed in the order of their names, and sorted values by their own, whatever order updates came in, so the
//! result is the same to the bit. One site's chunk is held at a time, so memory does not grow with sites; only rules
//! that sort ([`Rule::sorts`]) hold a chunk of each, 1 MiB at most. The rows of a trainable class table average over the
//! sites that annotate the row's class alone ([`Aggregator::with_class_rows`]). An update and a global model hold the
//! trainable tensors alone: there are no running statistics to average. Updates in bfloat16 ([`Method::update_dtype`]) are widened as
//! they come in, which is exact; no rule knows of it. Weights are made elsewhere; I/O is the driver's,
//! and every chunk it hands in is compared with its manifest, because disks err too.
//!
//! ```text
//! for each chunk (any order, any thread):  sum = aggregator.chunk(index, &mut workspace)?
//!     for update in aggregator.updates():      sum.add(bytes of that update's chunk)?
//!     chunk = sum.finish(bytes of the global model's chunk, those of the moments, &mut out)?   → write out
//! aggregator.seal(chunks)?                                                    → AggregatedModel
//! ```

mod chunk_sum;
mod class_rows;
mod clipping;
mod coordinate_median;
mod fedadam;
mod fedavg;
mod method;
mod server_momentum;
#[cfg(test)]
mod tests;
mod trimmed_mean;
pub mod weights;

use std::collections::{BTreeMap, BTreeSet};

use crate::artifact::{ArtifactManifest, LayoutError, TensorLayout};
use crate::ids::{ChunkHash, ClassId, ModelHash, RoundId, SiteId, StudyDigest};
use crate::update::VerifiedUpdate;
use crate::wire::ChunkError;
pub use chunk_sum::{ChunkSum, Workspace};
use class_rows::ClassRows;
pub use clipping::{Clipped, Clipping};
pub use fedadam::FedAdam;
pub use method::{Method, Rule};

/// One summand: an update and how much it counts, relative to the others.
#[derive(Clone, Debug)]
pub struct WeightedUpdate {
    /// The update.
    pub update: VerifiedUpdate,
    /// `w_s`: finite, not negative.
    pub weight: f64,
}

/// Why there is no new model. All of these are failures of ours, or numbers that cannot be averaged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AggregateError {
    /// No update, or no weight.
    #[error("no update has any weight")]
    NoWeight,
    /// A weight or server learning rate that is negative or not finite.
    #[error("{what} is {got}: it must be finite and not negative")]
    Factor {
        /// Which.
        what: String,
        /// Its value.
        got: f64,
    },
    /// A site has two updates.
    #[error("site {site} has two updates")]
    TwoUpdates {
        /// The site.
        site: SiteId,
    },
    /// An update that does not fit the others: other study, round, base model or layout.
    #[error("the update of site {site} is not of this study, round and base model")]
    Foreign {
        /// The site.
        site: SiteId,
    },
    /// The class table does not exist.
    #[error("the model has no class table {tensor}")]
    ClassTable {
        /// Name of the tensor.
        tensor: String,
    },
    /// A chunk read back is not what its manifest names.
    #[error("{of}: {source}")]
    Chunk {
        /// `global model`, or the site whose update it is.
        of: String,
        /// What differs.
        source: ChunkError,
    },
    /// Not every site was added, or one too many.
    #[error("chunk {index}: {got} sites added, expected {expected}")]
    Sites {
        /// The chunk.
        index: u32,
        /// Number of updates.
        expected: usize,
        /// Number added.
        got: usize,
    },
    /// Moments that are not the rule's, or not as long as the chunk.
    #[error("chunk {index}: {got} moments, expected {expected}, each as long as the chunk")]
    Moments {
        /// The chunk.
        index: u32,
        /// Moments that the rule keeps.
        expected: usize,
        /// Moments given.
        got: usize,
    },
    /// A new value that f32 cannot hold.
    #[error("tensor {tensor}: a new value is not finite")]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
    },
    /// Not every chunk was aggregated.
    #[error("the new model lacks chunks: {0}")]
    Incomplete(#[from] LayoutError),
}

/// Averages the updates of one round.
#[derive(Debug)]
pub struct Aggregator {
    base: ArtifactManifest,
    updates: Vec<WeightedUpdate>,
    total: f64,
    method: Method,
    /// What each update is multiplied with, in their order: 1, or less where it is clipped.
    scales: Vec<f64>,
    clipped: Vec<Clipped>,
    class_rows: Option<ClassRows>,
}

/// What one site's update is in a round: for reports. Shares are made of [`weights::SiteCounts`], which manifests tell exactly, and so
/// of no count that small numbers keep back.
#[derive(Clone, Debug, PartialEq)]
pub struct Contribution {
    /// Whose.
    pub site: SiteId,
    /// Its share of the sum of weights, 0 to 1. Rows of a class table go by shares of their own.
    pub share: f64,
    /// Its Euclidean norm, before any clipping.
    pub norm: f64,
}

/// A new global model, every chunk of which was aggregated here. Not durable yet.
#[derive(Clone, Debug)]
pub struct AggregatedModel {
    manifest: ArtifactManifest,
    study: StudyDigest,
    round: RoundId,
    base: ModelHash,
}

/// A chunk of the new model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregatedChunk {
    index: u32,
    hash: ChunkHash,
}

impl Aggregator {
    /// By federated averaging, every update in full. `base` is the round's global model.
    ///
    /// # Errors
    /// [`AggregateError`] when the updates do not belong together or have no weight.
    pub fn new(
        base: ArtifactManifest,
        updates: Vec<WeightedUpdate>,
        server_lr: f64,
    ) -> Result<Self, AggregateError> {
        Self::by_method(base, updates, &BTreeSet::new(), Method::fedavg(server_lr))
    }

    /// Puts the updates in order, and clips them. Rules that sort count every site once, whatever its weight. The updates
    /// of the sites in `late` are of an earlier round: deltas from an earlier model, added to this one. At least one is
    /// of the round itself.
    ///
    /// # Errors
    /// As [`Aggregator::new`].
    pub fn by_method(
        base: ArtifactManifest,
        mut updates: Vec<WeightedUpdate>,
        late: &BTreeSet<SiteId>,
        method: Method,
    ) -> Result<Self, AggregateError> {
        updates.sort_by(|a, b| a.update.site().cmp(b.update.site()));
        check_factor("the server's learning rate", method.server_lr)?;
        for WeightedUpdate { update, weight } in &mut updates {
            check_factor(&format!("the weight of site {}", update.site()), *weight)?;
            if method.rule.sorts() {
                *weight = 1.0;
            }
        }
        check_together(&base, &updates, late, &base.layout().in_dtype(method.update_dtype))?;
        let total: f64 = updates.iter().map(|update| update.weight).sum();
        if total <= 0.0 {
            return Err(AggregateError::NoWeight);
        }
        check_factor("the sum of weights", total)?;
        let (scales, clipped) = clip(&updates, method.clipping);
        Ok(Self { base, updates, total, method, scales, clipped, class_rows: None })
    }

    /// Averages row `k` of the class table `tensor` over the sites that annotate class `k + 1` alone; a row that none
    /// of them annotates stays as it is. `annotating` names the sites of each class; a class without a row has no part in it: a
    /// site's word on what it annotates must not stop a study.
    ///
    /// # Errors
    /// [`AggregateError::ClassTable`] when there is no such table.
    pub fn with_class_rows(
        mut self,
        tensor: &str,
        annotating: &BTreeMap<ClassId, BTreeSet<SiteId>>,
    ) -> Result<Self, AggregateError> {
        self.class_rows = Some(ClassRows::new(&self.base, tensor, annotating, &self.updates)?);
        Ok(self)
    }

    /// The updates, in the order in which [`ChunkSum::add`] wants their chunks.
    pub fn updates(&self) -> &[WeightedUpdate] {
        &self.updates
    }

    /// Number of chunks to aggregate.
    pub fn chunks(&self) -> usize {
        self.base.chunks().len()
    }

    /// What each update is in the round, in their order.
    pub fn contributions(&self) -> Vec<Contribution> {
        let contribution = |WeightedUpdate { update, weight }: &WeightedUpdate| Contribution {
            site: update.site().clone(),
            share: weight / self.total,
            norm: update.norm(),
        };
        self.updates.iter().map(contribution).collect()
    }

    /// The updates that were scaled down, for the operator to be told.
    pub fn clipped(&self) -> &[Clipped] {
        &self.clipped
    }

    /// How the updates become the next model.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Begins chunk `index`.
    ///
    /// # Errors
    /// [`AggregateError::Chunk`] when there is no such chunk.
    pub fn chunk<'a>(
        &'a self,
        index: u32,
        workspace: &'a mut Workspace,
    ) -> Result<ChunkSum<'a>, AggregateError> {
        ChunkSum::new(self, index, workspace)
    }

    /// Aggregates chunk `index` of which all bytes are at hand, by a rule without moments: `base` of the global model,
    /// `deltas` in the order of [`Aggregator::updates`]. The new bytes go to `out`, which is emptied first.
    ///
    /// # Errors
    /// As [`ChunkSum`].
    pub fn aggregate_chunk(
        &self,
        index: u32,
        base: &[u8],
        deltas: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<AggregatedChunk, AggregateError> {
        let mut workspace = Workspace::default();
        let mut sum = self.chunk(index, &mut workspace)?;
        for delta in deltas {
            sum.add(delta)?;
        }
        sum.finish(base, &mut [], out)
    }

    /// The new model, from all of its chunks in any order.
    ///
    /// # Errors
    /// [`AggregateError::Incomplete`] when one is missing or there twice.
    pub fn seal(&self, mut chunks: Vec<AggregatedChunk>) -> Result<AggregatedModel, AggregateError> {
        chunks.sort_by_key(|chunk| chunk.index);
        chunks.dedup_by_key(|chunk| chunk.index);
        let hashes = chunks.into_iter().map(|chunk| chunk.hash).collect();
        let manifest = ArtifactManifest::new(self.base.layout().clone(), hashes)?;
        // Not empty: `new` refuses updates without weight. Late ones are of earlier rounds.
        let newest = self.updates.iter().max_by_key(|update| update.update.round());
        let newest = newest.ok_or(AggregateError::NoWeight)?;
        let (study, round) = (newest.update.study(), newest.update.round());
        Ok(AggregatedModel { manifest, study, round, base: self.base.hash() })
    }

    /// What the `site`-th update is multiplied with.
    fn scale(&self, site: usize) -> f64 {
        self.scales.get(site).copied().unwrap_or(1.0)
    }

    /// Weight of the `site`-th update, in a row of the class table or elsewhere.
    fn weight(&self, site: usize, row: Option<usize>) -> f64 {
        match (&self.class_rows, row) {
            (Some(table), Some(row)) => table.weight(site, row),
            _ => self.updates.get(site).map_or(0.0, |update| update.weight),
        }
    }

    /// Sum of the weights, in a row of the class table or elsewhere.
    fn total(&self, row: Option<usize>) -> f64 {
        match (&self.class_rows, row) {
            (Some(table), Some(row)) => table.total(row),
            _ => self.total,
        }
    }
}

impl AggregatedChunk {
    /// Digest of its bytes.
    pub fn hash(&self) -> ChunkHash {
        self.hash
    }
}

impl AggregatedModel {
    /// Its tensors and chunk hashes.
    pub fn manifest(&self) -> &ArtifactManifest {
        &self.manifest
    }

    /// The new model's name.
    pub fn hash(&self) -> ModelHash {
        self.manifest.hash()
    }

    /// The study.
    pub fn study(&self) -> StudyDigest {
        self.study
    }

    /// The round that made it.
    pub fn round(&self) -> RoundId {
        self.round
    }

    /// The global model before it.
    pub fn base(&self) -> ModelHash {
        self.base
    }
}

/// The scale of each update, and those that have another than 1.
fn clip(updates: &[WeightedUpdate], clipping: Clipping) -> (Vec<f64>, Vec<Clipped>) {
    let norms: Vec<f64> = updates.iter().map(|update| update.update.norm()).collect();
    let bound = clipping.bound(&norms).unwrap_or(f64::INFINITY);
    let scale = |&norm: &f64| if norm > bound { bound / norm } else { 1.0 };
    let long = updates.iter().filter(|update| update.update.norm() > bound);
    let said =
        |long: &WeightedUpdate| Clipped { site: long.update.site().clone(), norm: long.update.norm(), bound };
    (norms.iter().map(scale).collect(), long.map(said).collect())
}

fn check_factor(what: &str, got: f64) -> Result<(), AggregateError> {
    if got.is_finite() && got >= 0.0 {
        return Ok(());
    }
    Err(AggregateError::Factor { what: what.to_owned(), got })
}

fn check_together(
    base: &ArtifactManifest,
    updates: &[WeightedUpdate],
    late: &BTreeSet<SiteId>,
    layout: &TensorLayout,
) -> Result<(), AggregateError> {
    let hash = base.hash();
    let in_time = |update: &VerifiedUpdate| !late.contains(update.site());
    let first = updates.iter().map(|update| &update.update).find(|update| in_time(update));
    let first = first.ok_or(AggregateError::NoWeight)?;
    for WeightedUpdate { update, .. } in updates {
        let fits = match in_time(update) {
            true => update.round() == first.round() && update.base() == hash,
            false => update.round() < first.round(),
        };
        if !fits || update.study() != first.study() || update.manifest().layout() != layout {
            return Err(AggregateError::Foreign { site: update.site().clone() });
        }
    }
    match updates.windows(2).find(|pair| pair[0].update.site() == pair[1].update.site()) {
        Some(pair) => Err(AggregateError::TwoUpdates { site: pair[0].update.site().clone() }),
        None => Ok(()),
    }
}
