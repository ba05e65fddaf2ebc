//! The new global model: `Global' = f32(f64(global) + η · Σ w_s Δ_s / Σ w_s)`, chunk by chunk (design §4).
//!
//! Sites are summed in the order of their names, whatever order updates came in, so the result is the same to the bit;
//! one site's chunk is held at a time, so memory does not grow with sites. The rows of a trainable class table average
//! over the sites that annotate the row's class alone ([`Aggregator::with_class_rows`]). An update and a global model
//! hold the trainable tensors alone: there are no running statistics to average. Weights are made elsewhere; I/O
//! is the driver's, and every chunk it hands in is compared with its manifest again, because disks err too.
//!
//! ```text
//! for each chunk (any order, any thread):  sum = aggregator.chunk(index)?
//!     for update in aggregator.updates():      sum.add(bytes of that update's chunk)?
//!     chunk = sum.finish(bytes of the global model's chunk, &mut out)?        → write out
//! aggregator.seal(chunks)?                                                    → AggregatedModel
//! ```

mod class_rows;
#[cfg(test)]
mod tests;
pub mod weights;

use std::collections::{BTreeMap, BTreeSet};

use crate::artifact::{ArtifactManifest, ChunkSpan, LayoutError};
use crate::ids::{ChunkHash, ClassId, Digest, ModelHash, RoundId, SiteId, StudyDigest};
use crate::update::VerifiedUpdate;
use crate::wire::{ChunkError, chunk};
use class_rows::ClassRows;

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
    /// The class table does not exist, or has fewer rows than there are classes.
    #[error("class table {tensor}: expected rows for {classes} classes, got {rows}")]
    ClassTable {
        /// Name of the tensor.
        tensor: String,
        /// Rows that it must have at least.
        classes: usize,
        /// Rows that it has; 0 when there is no such tensor.
        rows: usize,
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
    eta: f64,
    class_rows: Option<ClassRows>,
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
    /// Puts the updates in order. `base` is the round's global model; `eta` the server's learning rate.
    ///
    /// # Errors
    /// [`AggregateError`] when the updates do not belong together or have no weight.
    pub fn new(
        base: ArtifactManifest,
        updates: Vec<WeightedUpdate>,
        eta: f64,
    ) -> Result<Self, AggregateError> {
        Self::with_late(base, updates, &BTreeSet::new(), eta)
    }

    /// As [`Aggregator::new`], where the updates of the sites in `late` are of an earlier round: deltas from an earlier
    /// model, added to this one. At least one update is of the round itself.
    ///
    /// # Errors
    /// As [`Aggregator::new`].
    pub fn with_late(
        base: ArtifactManifest,
        mut updates: Vec<WeightedUpdate>,
        late: &BTreeSet<SiteId>,
        eta: f64,
    ) -> Result<Self, AggregateError> {
        updates.sort_by(|a, b| a.update.site().cmp(b.update.site()));
        check_factor("the server's learning rate", eta)?;
        for WeightedUpdate { update, weight } in &updates {
            check_factor(&format!("the weight of site {}", update.site()), *weight)?;
        }
        check_together(&base, &updates, late)?;
        let total: f64 = updates.iter().map(|update| update.weight).sum();
        if total <= 0.0 {
            return Err(AggregateError::NoWeight);
        }
        check_factor("the sum of weights", total)?;
        Ok(Self { base, updates, total, eta, class_rows: None })
    }

    /// Averages row `k` of the class table `tensor` over the sites that annotate class `k + 1` alone; a row that none
    /// of them annotates stays as it is. `annotating` names the sites of each class.
    ///
    /// # Errors
    /// [`AggregateError::ClassTable`] when there is no such table, or a class has no row.
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

    /// Begins chunk `index`.
    ///
    /// # Errors
    /// [`AggregateError::Chunk`] when there is no such chunk.
    pub fn chunk(&self, index: u32) -> Result<ChunkSum<'_>, AggregateError> {
        let spans = self.base.layout().spans();
        let span = usize::try_from(index).ok().and_then(|i| spans.get(i)).copied();
        let span = span.ok_or_else(|| AggregateError::Chunk {
            of: "global model".to_owned(),
            source: ChunkError::Unknown { index, chunks: spans.len() },
        })?;
        Ok(ChunkSum { aggregator: self, index, span, added: 0, sums: vec![0.0; span.len as usize / 4] })
    }

    /// Aggregates chunk `index` of which all bytes are at hand: `base` of the global model, `deltas` in the order of
    /// [`Aggregator::updates`]. The new bytes go to `out`, which is emptied first.
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
        let mut sum = self.chunk(index)?;
        for delta in deltas {
            sum.add(delta)?;
        }
        sum.finish(base, out)
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
}

/// One chunk in the making.
#[derive(Debug)]
pub struct ChunkSum<'a> {
    aggregator: &'a Aggregator,
    index: u32,
    span: ChunkSpan,
    added: usize,
    /// `Σ w_s Δ_s` of each element.
    sums: Vec<f64>,
}

impl<'a> ChunkSum<'a> {
    /// Adds this chunk of the next update in the order of [`Aggregator::updates`].
    ///
    /// # Errors
    /// [`AggregateError::Chunk`] when `bytes` are not what the update's manifest names.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), AggregateError> {
        let expected = self.aggregator.updates.len();
        let next = self.aggregator.updates.get(self.added);
        let WeightedUpdate { update, weight } =
            next.ok_or(AggregateError::Sites { index: self.index, expected, got: expected + 1 })?;
        chunk::check_chunk(update.manifest(), self.index, bytes)
            .map_err(|source| AggregateError::Chunk { of: format!("site {}", update.site()), source })?;
        let deltas = bytes.as_chunks::<4>().0.iter().map(|&le| f64::from(f32::from_le_bytes(le)));
        match self.class_rows() {
            None => self.sums.iter_mut().zip(deltas).for_each(|(sum, delta)| *sum += weight * delta),
            Some(rows) => {
                let weights = rows.weights_from(self.added, self.first_element());
                self.sums.iter_mut().zip(deltas).zip(weights).for_each(|((sum, delta), w)| *sum += w * delta);
            }
        }
        self.added += 1;
        Ok(())
    }

    /// Writes the new chunk to `out`, which is emptied first. `base` are the bytes of the global model's chunk.
    ///
    /// # Errors
    /// [`AggregateError::Sites`] when an update was left out, [`AggregateError::NotFinite`] when f32 cannot hold a value.
    pub fn finish(self, base: &[u8], out: &mut Vec<u8>) -> Result<AggregatedChunk, AggregateError> {
        let expected = self.aggregator.updates.len();
        if self.added != expected {
            return Err(AggregateError::Sites { index: self.index, expected, got: self.added });
        }
        chunk::check_chunk(&self.aggregator.base, self.index, base)
            .map_err(|source| AggregateError::Chunk { of: "global model".to_owned(), source })?;
        out.clear();
        out.reserve(base.len());
        match self.class_rows() {
            None => self.write(base, std::iter::repeat(self.aggregator.total), out),
            Some(rows) => self.write(base, rows.totals_from(self.first_element()), out),
        }
        let numbers = out.as_chunks::<4>().0;
        if !numbers.iter().all(|&le| f32::from_le_bytes(le).is_finite()) {
            return Err(AggregateError::NotFinite { tensor: self.tensor_name() });
        }
        Ok(AggregatedChunk { index: self.index, hash: ChunkHash(Digest::of(out)) })
    }

    fn write(&self, base: &[u8], totals: impl Iterator<Item = f64>, out: &mut Vec<u8>) {
        let eta = self.aggregator.eta;
        for ((&le, sum), total) in base.as_chunks::<4>().0.iter().zip(&self.sums).zip(totals) {
            let global = f32::from_le_bytes(le);
            // Nobody speaks for the element: it stays, to the bit.
            let new = if total > 0.0 { (f64::from(global) + eta * sum / total) as f32 } else { global };
            out.extend_from_slice(&new.to_le_bytes());
        }
    }

    /// The class table's weights, when this chunk is of the class table.
    fn class_rows(&self) -> Option<&'a ClassRows> {
        self.aggregator.class_rows.as_ref().filter(|rows| rows.tensor() == self.span.tensor)
    }

    /// Position in its tensor of the chunk's first element.
    fn first_element(&self) -> u64 {
        let spans = self.aggregator.base.layout().spans();
        let start = spans.iter().find(|span| span.tensor == self.span.tensor);
        start.map_or(0, |start| (self.span.offset - start.offset) / 4)
    }

    fn tensor_name(&self) -> String {
        let tensors = self.aggregator.base.layout().tensors();
        tensors.get(self.span.tensor).map_or(String::new(), |tensor| tensor.name.clone())
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
        if !fits || update.study() != first.study() || update.manifest().layout() != base.layout() {
            return Err(AggregateError::Foreign { site: update.site().clone() });
        }
    }
    match updates.windows(2).find(|pair| pair[0].update.site() == pair[1].update.site()) {
        Some(pair) => Err(AggregateError::TwoUpdates { site: pair[0].update.site().clone() }),
        None => Ok(()),
    }
}
