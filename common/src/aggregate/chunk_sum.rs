//! One chunk in the making: updates go in one after the other, the new chunk comes out.
//!
//! Elements of a chunk that the same sites speak for with the same weights are a run: a whole chunk, or a row of the class table. Which
//! rule holds is decided once a run; the loops over numbers know nothing of it.

use std::ops::Range;

use super::class_rows::ClassRows;
use super::coordinate_median::median;
use super::trimmed_mean::trimmed_mean;
use super::{AggregateError, AggregatedChunk, Aggregator, Rule, WeightedUpdate, fedavg, server_momentum};
use crate::artifact::{ChunkSpan, Dtype};
use crate::bfloat16;
use crate::ids::{ChunkHash, Digest};
use crate::wire::{ChunkError, chunk};

/// Room for one chunk in the making, used for one after the other. Empty at first.
#[derive(Debug, Default)]
pub struct Workspace {
    /// `Σ w_s Δ_s` of each element; where values are sorted, their middle.
    sums: Vec<f64>,
    /// The chunk of each update, where values are sorted.
    sorted: Vec<Vec<u8>>,
    /// A chunk that came in bfloat16, as f32.
    widened: Vec<u8>,
}

/// One chunk in the making.
#[derive(Debug)]
pub struct ChunkSum<'a> {
    aggregator: &'a Aggregator,
    index: u32,
    span: ChunkSpan,
    added: usize,
    runs: Vec<Run>,
    workspace: &'a mut Workspace,
}

/// Elements that the same sites speak for with the same weights.
#[derive(Debug)]
struct Run {
    elements: Range<usize>,
    /// Row of the class table, if it is of that.
    row: Option<usize>,
}

impl<'a> ChunkSum<'a> {
    pub(super) fn new(
        aggregator: &'a Aggregator,
        index: u32,
        workspace: &'a mut Workspace,
    ) -> Result<Self, AggregateError> {
        let spans = aggregator.base.layout().spans();
        let span = usize::try_from(index).ok().and_then(|i| spans.get(i)).copied();
        let span = span.ok_or_else(|| AggregateError::Chunk {
            of: "global model".to_owned(),
            source: ChunkError::Unknown { index, chunks: spans.len() },
        })?;
        let elements = span.len as usize / 4;
        // What is left of another chunk is written over by the first update.
        workspace.sums.resize(elements, 0.0);
        let table = aggregator.class_rows.as_ref().filter(|rows| rows.tensor() == span.tensor);
        let runs = match table {
            None => vec![Run { elements: 0..elements, row: None }],
            Some(table) => rows_as_runs(table, first_element(aggregator, span), elements),
        };
        Ok(Self { aggregator, index, span, added: 0, runs, workspace })
    }

    /// Adds this chunk of the next update in the order of [`Aggregator::updates`].
    ///
    /// # Errors
    /// [`AggregateError::Chunk`] when `bytes` are not what the update's manifest names.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), AggregateError> {
        let expected = self.aggregator.updates.len();
        let next = self.aggregator.updates.get(self.added);
        let WeightedUpdate { update, .. } =
            next.ok_or(AggregateError::Sites { index: self.index, expected, got: expected + 1 })?;
        chunk::check_chunk(update.manifest(), self.index, bytes)
            .map_err(|source| AggregateError::Chunk { of: format!("site {}", update.site()), source })?;
        match self.aggregator.method.update_dtype {
            Dtype::F32 => self.add_numbers(bytes),
            Dtype::BF16 => {
                let mut widened = std::mem::take(&mut self.workspace.widened);
                bfloat16::widen_all(bytes, &mut widened);
                self.add_numbers(&widened);
                self.workspace.widened = widened;
            }
        }
        self.added += 1;
        Ok(())
    }

    /// Adds the next update's numbers, which are f32 here whatever they came as.
    fn add_numbers(&mut self, bytes: &[u8]) {
        if self.aggregator.method.rule.sorts() {
            return self.hold(bytes);
        }
        let deltas = bytes.as_chunks::<4>().0;
        for Run { elements, row } in &self.runs {
            let weight = self.aggregator.scale(self.added) * self.aggregator.weight(self.added, *row);
            let sums = &mut self.workspace.sums[elements.clone()];
            let deltas = &deltas[elements.clone()];
            match self.added {
                0 => fedavg::begin(sums, deltas, weight),
                _ => fedavg::add(sums, deltas, weight),
            }
        }
    }

    /// Keeps the chunk until those of all sites are here.
    fn hold(&mut self, bytes: &[u8]) {
        let held = &mut self.workspace.sorted;
        if held.len() <= self.added {
            held.resize_with(self.added + 1, Vec::new);
        }
        if let Some(room) = held.get_mut(self.added) {
            room.clear();
            room.extend_from_slice(bytes);
        }
    }

    /// Writes the new chunk to `out`, which is emptied first. `base` are the bytes of the global model's chunk, `moments` those of
    /// this chunk of [`Rule::moments`], in that order: read, and written anew. What no site speaks for stays to the bit.
    ///
    /// # Errors
    /// [`AggregateError::Sites`] when an update was left out, [`AggregateError::Moments`] when `moments` are not the rule's,
    /// [`AggregateError::NotFinite`] when f32 cannot hold a value.
    pub fn finish(
        mut self,
        base: &[u8],
        moments: &mut [Vec<u8>],
        out: &mut Vec<u8>,
    ) -> Result<AggregatedChunk, AggregateError> {
        let expected = self.aggregator.updates.len();
        if self.added != expected {
            return Err(AggregateError::Sites { index: self.index, expected, got: self.added });
        }
        chunk::check_chunk(&self.aggregator.base, self.index, base)
            .map_err(|source| AggregateError::Chunk { of: "global model".to_owned(), source })?;
        let expected = self.aggregator.method.rule.moments().len();
        if moments.len() != expected || moments.iter().any(|moment| moment.len() != base.len()) {
            return Err(AggregateError::Moments { index: self.index, expected, got: moments.len() });
        }
        out.clear();
        out.extend_from_slice(base);
        for run in std::mem::take(&mut self.runs) {
            let total = self.aggregator.total(run.row);
            if total > 0.0 {
                self.step(&run, total, moments, out);
            }
        }
        if ![&*out].into_iter().chain(&*moments).all(|bytes| all_finite(bytes)) {
            return Err(AggregateError::NotFinite { tensor: self.tensor_name() });
        }
        Ok(AggregatedChunk { index: self.index, hash: ChunkHash(Digest::of(out)) })
    }

    /// Moves a run that somebody speaks for.
    fn step(&mut self, run: &Run, total: f64, moments: &mut [Vec<u8>], out: &mut [u8]) {
        let server_lr = self.aggregator.method.server_lr;
        let rule = self.aggregator.method.rule;
        match rule {
            Rule::TrimmedMean { trim } => self.sort(run, |values| trimmed_mean(values, trim)),
            Rule::CoordinateMedian => self.sort(run, median),
            Rule::FedAvg | Rule::ServerMomentum { .. } | Rule::FedAdam(_) => {}
        }
        let sums = &self.workspace.sums[run.elements.clone()];
        let model = numbers_of(out, run);
        match (rule, moments) {
            (Rule::ServerMomentum { momentum }, [velocity]) => {
                server_momentum::step(model, numbers_of(velocity, run), sums, total, server_lr, momentum);
            }
            (Rule::FedAdam(adam), [first, second]) => {
                let (first, second) = (numbers_of(first, run), numbers_of(second, run));
                adam.step(model, first, second, sums, total, server_lr);
            }
            // The middle of sorted values is no sum.
            (Rule::TrimmedMean { .. } | Rule::CoordinateMedian, _) => {
                fedavg::step(model, sums, 1.0, server_lr)
            }
            // `finish` compared the number of moments with the rule's.
            (Rule::FedAvg | Rule::ServerMomentum { .. } | Rule::FedAdam(_), _) => {
                fedavg::step(model, sums, total, server_lr);
            }
        }
    }

    /// Sets each element of the run to the `middle` of what the sites that speak for it say.
    fn sort(&mut self, run: &Run, middle: impl Fn(&mut [f64]) -> f64) {
        let Workspace { sums, sorted, .. } = &mut *self.workspace;
        let sorted = &*sorted;
        let speaks = |site: &usize| self.aggregator.weight(*site, run.row) > 0.0;
        let of_site = |site: usize| {
            let deltas = sorted.get(site).map_or(&[][..], |bytes| bytes.as_chunks::<4>().0);
            (self.aggregator.scale(site), &deltas[run.elements.clone()])
        };
        let sites: Vec<(f64, &[[u8; 4]])> = (0..self.added).filter(speaks).map(of_site).collect();
        let mut values = vec![0.0; sites.len()];
        for (element, sum) in sums[run.elements.clone()].iter_mut().enumerate() {
            for (value, (scale, deltas)) in values.iter_mut().zip(&sites) {
                *value = scale * number(deltas[element]);
            }
            *sum = middle(&mut values);
        }
    }

    fn tensor_name(&self) -> String {
        let tensors = self.aggregator.base.layout().tensors();
        tensors.get(self.span.tensor).map_or(String::new(), |tensor| tensor.name.clone())
    }
}

fn rows_as_runs(table: &ClassRows, first: u64, elements: usize) -> Vec<Run> {
    let rows = table.rows(first, elements).into_iter();
    rows.map(|(row, elements)| Run { elements, row: Some(row) }).collect()
}

/// Position in its tensor of the chunk's first element.
fn first_element(aggregator: &Aggregator, span: ChunkSpan) -> u64 {
    let start = aggregator.base.layout().spans().iter().find(|other| other.tensor == span.tensor);
    start.map_or(0, |start| (span.offset - start.offset) / 4)
}

/// The run's numbers, little-endian.
fn numbers_of<'b>(bytes: &'b mut [u8], run: &Run) -> &'b mut [[u8; 4]] {
    &mut bytes.as_chunks_mut::<4>().0[run.elements.clone()]
}

/// A number as all sums are reckoned.
pub(super) fn number(le: [u8; 4]) -> f64 {
    f64::from(f32::from_le_bytes(le))
}

/// Looks at all of them, without a way out at the first: so it is done many at a time.
fn all_finite(bytes: &[u8]) -> bool {
    bytes.as_chunks::<4>().0.iter().fold(true, |all, &le| all & f32::from_le_bytes(le).is_finite())
}
