//! An attention on an instruction set: where everything lies, and the products of one task.

use std::ops::Range;

use rayon::prelude::*;

use super::softmax::slopes_of_scores;
use super::{Attention, Inputs};
use crate::kernels::isa::Isa;
use crate::kernels::micro::{Product, Shape, add_product};
use crate::kernels::windows::{OFFSETS, offset_row};

/// Added to the score of two tokens that are not to see each other, as in the reference.
const APART: f32 = -100.0;
/// The score of columns past the last token.
const NOTHING: f32 = -1e30;
/// Runs of windows that sum the gradients of a head's biases apart: fixed, so that the bits do not depend on threads.
const RUNS: usize = 4;

/// An attention on an instruction set: where everything lies. Task `(item · heads) + head` is one head of one window, items
/// being the windows of the first volume, then of the next.
///
/// A few numbers: both passes make their own. What costs to make is in [`Windows`](crate::kernels::windows::Windows), which they
/// share.
pub(super) struct Plan<'a> {
    isa: Isa,
    a: Attention<'a>,
    pub(super) tokens: usize,
    pub(super) depth: usize,
    /// Tiles of scores.
    pub(super) wide: Shape,
    /// Tiles of a head's numbers.
    narrow: Shape,
}

impl<'a> Plan<'a> {
    pub(super) fn new(isa: Isa, a: Attention<'a>) -> Self {
        let (tokens, depth) = (a.windows.tokens, a.width / a.heads);
        let (wide, narrow) = (Shape::for_columns(isa, tokens), Shape::for_columns(isa, depth));
        Self { isa, a, tokens, depth, wide, narrow }
    }

    fn items(&self) -> usize {
        self.a.n * self.a.windows.count()
    }

    pub(super) fn tasks(&self) -> usize {
        self.items() * self.a.heads
    }

    /// Length of a row of scores, whole tiles.
    fn padded(&self) -> usize {
        self.tokens.next_multiple_of(self.wide.columns())
    }

    /// Rows of scores that are made at once: as many as tiles of both kinds hold.
    pub(super) fn strips(&self) -> impl Iterator<Item = Range<usize>> {
        let lower = if self.wide.rows() < self.narrow.rows() { self.wide } else { self.narrow };
        lower.strips(self.tokens).into_iter().map(|(first, height)| first..first + height)
    }

    /// The volume, the windows' entries and the head of a task.
    fn place(&self, task: usize) -> (usize, Range<usize>, usize) {
        let (item, head) = (task / self.a.heads, task % self.a.heads);
        let (n, window) = (item / self.a.windows.count(), item % self.a.windows.count());
        (n, window * self.tokens..(window + 1) * self.tokens, head)
    }

    /// `[heads][tokens, padded]`, columns past the last token being nothing.
    pub(super) fn biases(&self, table: &[f32]) -> Vec<f32> {
        let (heads, padded) = (self.a.heads, self.padded());
        let mut biases = vec![NOTHING; heads * self.tokens * padded];
        biases.par_chunks_mut(self.tokens * padded).enumerate().for_each(|(head, biases)| {
            for (i, row) in biases.chunks_exact_mut(padded).enumerate() {
                for (j, bias) in row[..self.tokens].iter_mut().enumerate() {
                    *bias = table[offset_row(i, j) * heads + head];
                }
            }
        });
        biases
    }

    /// Queries, which are scaled, keys and values of a task, `[tokens, depth]` each.
    pub(super) fn gather(&self, inputs: Inputs<'_>, task: usize) -> [Vec<f32>; 3] {
        let (Attention { windows, width, .. }, (n, entries, head)) = (self.a, self.place(task));
        let part = |part: usize, factor: f32| {
            let row = |voxel: &Option<u32>| match voxel {
                Some(voxel) => &inputs.qkv[(n * windows.voxels + *voxel as usize) * 3 * width..][..3 * width],
                None => inputs.padding,
            };
            let numbers = |voxel| row(voxel)[part * width + head * self.depth..][..self.depth].iter();
            windows.voxel[entries.clone()].iter().flat_map(numbers).map(|x| x * factor).collect()
        };
        [part(0, (self.depth as f32).powf(-0.5)), part(1, 1.0), part(2, 1.0)]
    }

    /// The gradient of a task's output, `[tokens, depth]`; nobody reads what padding puts out.
    fn gather_output(&self, dy: &[f32], task: usize) -> Vec<f32> {
        let (Attention { windows, width, .. }, (n, entries, head)) = (self.a, self.place(task));
        let mut rows = vec![0.0; self.tokens * self.depth];
        for (row, voxel) in rows.chunks_exact_mut(self.depth).zip(&windows.voxel[entries]) {
            if let Some(voxel) = voxel {
                let from = (n * windows.voxels + *voxel as usize) * width + head * self.depth;
                row.copy_from_slice(&dy[from..][..self.depth]);
            }
        }
        rows
    }

    /// `[tokens, depth]` as the right factor of scores: panels `[depth, columns]` of tokens.
    pub(super) fn turned(&self, rows: &[f32]) -> Vec<f32> {
        let columns = self.wide.columns();
        let mut turned = vec![0.0; self.padded() * self.depth];
        for (token, row) in rows.chunks_exact(self.depth).enumerate() {
            let panel = &mut turned[token / columns * columns * self.depth..];
            for (c, &value) in row.iter().enumerate() {
                panel[c * columns + token % columns] = value;
            }
        }
        turned
    }

    /// `[tokens, depth]` as the right factor of a mixture: panels `[padded, columns]` of a head's numbers.
    pub(super) fn panels(&self, rows: &[f32]) -> Vec<f32> {
        let (columns, padded) = (self.narrow.columns(), self.padded());
        let mut packed = vec![0.0; self.depth.div_ceil(columns) * padded * columns];
        for (panel, to) in packed.chunks_exact_mut(padded * columns).enumerate() {
            for (to, row) in to.chunks_exact_mut(columns).zip(rows.chunks_exact(self.depth)) {
                to.iter_mut().zip(&row[panel * columns..]).for_each(|(to, &value)| *to = value);
            }
        }
        packed
    }

    /// The scores of some rows, `[panel][row, columns]`.
    pub(super) fn scores(
        &self,
        biases: &[f32],
        task: usize,
        strip: &Range<usize>,
        q: &[f32],
        turned_k: &[f32],
        scores: &mut Vec<f32>,
    ) {
        let (columns, padded) = (self.wide.columns(), self.padded());
        let (_, entries, head) = self.place(task);
        let biases = &biases[head * self.tokens * padded..][..self.tokens * padded];
        let regions = self.a.windows.region.get(entries).unwrap_or(&[]);
        scores.clear();
        for panel in (0..padded).step_by(columns) {
            for row in strip.clone() {
                scores.extend_from_slice(&biases[row * padded + panel..][..columns]);
                if let (Some(region), Some(regions)) = (regions.get(row), regions.get(panel..)) {
                    let start = scores.len() - columns;
                    for (score, other) in scores[start..].iter_mut().zip(regions) {
                        *score += if other == region { 0.0 } else { APART };
                    }
                }
            }
        }
        self.add_products(strip, q, turned_k, scores);
    }

    /// Adds to `[panel][row, columns]` the products of some rows with all tokens.
    fn add_products(&self, strip: &Range<usize>, rows: &[f32], turned: &[f32], to: &mut [f32]) {
        let columns = self.wide.columns();
        for (panel, to) in to.chunks_exact_mut(strip.len() * columns).enumerate() {
            let product = Product {
                left: rows,
                start: strip.start * self.depth,
                row: self.depth,
                step: 1,
                segments: &[0],
                terms: self.depth,
                right: &turned[panel * columns * self.depth..],
                right_step: columns,
            };
            add_product(self.isa, product, self.wide, strip.len(), to);
        }
    }

    /// Rows of shares, `[panel][row, columns]`, times values: `[rows, depth]`.
    pub(super) fn mix(&self, shares: &[f32], strip: &Range<usize>, panels: &[f32], to: &mut [f32]) {
        let columns = self.wide.columns();
        let segments: Vec<usize> =
            (0..self.padded() / columns).map(|panel| panel * strip.len() * columns).collect();
        let product = Product {
            left: shares,
            start: 0,
            row: columns,
            step: 1,
            segments: &segments,
            terms: columns,
            right: &[],
            right_step: self.narrow.columns(),
        };
        self.write_products(product, strip.len(), panels, self.padded(), to);
    }

    /// Writes a product with every panel of a head's numbers, of `length` rows each, to `[rows, depth]`.
    fn write_products(
        &self,
        product: Product<'_>,
        rows: usize,
        panels: &[f32],
        length: usize,
        to: &mut [f32],
    ) {
        let columns = self.narrow.columns();
        for (panel, right) in panels.chunks_exact(length * columns).enumerate() {
            let mut sums = vec![0.0; rows * columns];
            add_product(self.isa, Product { right, ..product }, self.narrow, rows, &mut sums);
            for (to, sums) in to.chunks_exact_mut(self.depth).zip(sums.chunks_exact(columns)) {
                to[panel * columns..].iter_mut().zip(sums).for_each(|(to, &sum)| *to = sum);
            }
        }
    }

    /// Writes the gradients of a task's queries, keys and values to `[3][tokens, depth]`, and adds that of its biases.
    #[expect(clippy::too_many_arguments, reason = "all that a task reads and writes")]
    pub(super) fn differentiate(
        &self,
        biases: &[f32],
        inputs: Inputs<'_>,
        task: usize,
        logs: &[f32],
        dy: &[f32],
        gradient: &mut [f32],
        square: &mut Squares,
    ) {
        let (size, padded) = (self.tokens * self.depth, self.padded());
        let ([q, k, v], dy) = (self.gather(inputs, task), self.gather_output(dy, task));
        let (turned_k, turned_v, keys) = (self.turned(&k), self.turned(&v), self.panels(&k));
        let (of_q, rest) = gradient.split_at_mut(size);
        let (of_k, of_v) = rest.split_at_mut(size);
        let (mut scores, mut slopes) = (Vec::new(), Vec::new());
        for strip in self.strips() {
            self.scores(biases, task, &strip, &q, &turned_k, &mut scores);
            slopes.clear();
            slopes.resize(scores.len(), 0.0);
            self.add_products(&strip, &dy, &turned_v, &mut slopes);
            let rows = strip.start * padded..strip.end * padded;
            let (shares, of_scores) = (&mut square.shares[rows.clone()], &mut square.of_scores[rows]);
            slopes_of_scores(
                self.isa,
                &scores,
                &slopes,
                &logs[strip.clone()],
                self.wide.columns(),
                shares,
                of_scores,
            );
            self.mix_rows(
                of_scores,
                strip.len(),
                &keys,
                &mut of_q[strip.start * self.depth..][..strip.len() * self.depth],
            );
        }
        let factor = (self.depth as f32).powf(-0.5);
        of_q.iter_mut().for_each(|value| *value *= factor);
        self.mix_columns(&square.of_scores, &self.panels(&q), of_k);
        self.mix_columns(&square.shares, &self.panels(&dy), of_v);
        for (sum, term) in square.of_biases.iter_mut().zip(&square.of_scores) {
            *sum += term;
        }
    }

    /// `[rows, padded]` times `[tokens, depth]`.
    fn mix_rows(&self, square: &[f32], rows: usize, panels: &[f32], to: &mut [f32]) {
        let product = Product {
            left: square,
            start: 0,
            row: self.padded(),
            step: 1,
            segments: &[0],
            terms: self.padded(),
            right: &[],
            right_step: self.narrow.columns(),
        };
        self.write_products(product, rows, panels, self.padded(), to);
    }

    /// The transposed of `[tokens, padded]` times `[tokens, depth]`.
    fn mix_columns(&self, square: &[f32], panels: &[f32], to: &mut [f32]) {
        for (first, rows) in self.narrow.strips(self.tokens) {
            let product = Product {
                left: square,
                start: first,
                row: 1,
                step: self.padded(),
                segments: &[0],
                terms: self.tokens,
                right: &[],
                right_step: self.narrow.columns(),
            };
            let to = &mut to[first * self.depth..][..rows * self.depth];
            self.write_products(product, rows, panels, self.padded(), to);
        }
    }

    /// Hands the tasks to runs of windows, each of one head.
    pub(super) fn runs<T>(&self, tasks: impl Iterator<Item = T>) -> Vec<Vec<(usize, T)>> {
        let mut runs: Vec<Vec<(usize, T)>> = (0..self.a.heads * RUNS).map(|_| Vec::new()).collect();
        for (task, of_task) in tasks.enumerate() {
            let (item, head) = (task / self.a.heads, task % self.a.heads);
            runs[head * RUNS + item * RUNS / self.items()].push((task, of_task));
        }
        runs
    }

    /// `[task][parts][tokens, depth]` to `[n, voxels, parts, heads, depth]`; padding is left out.
    pub(super) fn to_voxels(&self, values: &[f32], parts: usize) -> Vec<f32> {
        let Attention { windows, n, width, heads } = self.a;
        let (entries, depth) = (windows.entries(), self.depth);
        let mut rows = vec![0.0; n * windows.voxels * parts * width];
        rows.par_chunks_mut(parts * width).enumerate().for_each(|(index, row)| {
            let entry = entries[index % windows.voxels] as usize;
            let item = index / windows.voxels * windows.count() + entry / self.tokens;
            for (cell, to) in row.chunks_exact_mut(depth).enumerate() {
                let (part, task) = (cell / heads, item * heads + cell % heads);
                to.copy_from_slice(
                    &values[((task * parts + part) * self.tokens + entry % self.tokens) * depth..][..depth],
                );
            }
        });
        rows
    }

    /// Sum over all tokens that are no voxel, `[3, heads, depth]`.
    pub(super) fn of_padding(&self, qkv: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0f64; 3 * self.a.width];
        for (task, gradient) in qkv.chunks_exact(3 * self.tokens * self.depth).enumerate() {
            let (_, entries, head) = self.place(task);
            let voxels = &self.a.windows.voxel[entries];
            for (part, rows) in gradient.chunks_exact(self.tokens * self.depth).enumerate() {
                let sums = &mut sums[part * self.a.width + head * self.depth..][..self.depth];
                let rows = rows.chunks_exact(self.depth).zip(voxels);
                for (row, _) in rows.filter(|(_, voxel)| voxel.is_none()) {
                    sums.iter_mut().zip(row).for_each(|(sum, &term)| *sum += f64::from(term));
                }
            }
        }
        sums.into_iter().map(|sum| sum as f32).collect()
    }

    /// From the runs' sums, `[tokens, padded]` each, to `[2197, heads]`.
    pub(super) fn of_table(&self, of_biases: &[Vec<f32>]) -> Vec<f32> {
        let of_heads = of_biases.par_chunks(RUNS).map(|runs| {
            let mut sums = vec![0.0f64; OFFSETS];
            for run in runs {
                for (i, row) in run.chunks_exact(self.padded()).enumerate() {
                    for (j, &term) in row[..self.tokens].iter().enumerate() {
                        sums[offset_row(i, j)] += f64::from(term);
                    }
                }
            }
            sums
        });
        let of_heads: Vec<Vec<f64>> = of_heads.collect();
        (0..OFFSETS).flat_map(|offset| of_heads.iter().map(move |sums| sums[offset] as f32)).collect()
    }
}

/// What a backward task writes, `[tokens, padded]` each.
pub(super) struct Squares {
    shares: Vec<f32>,
    of_scores: Vec<f32>,
    /// Summed over the windows of a run.
    pub(super) of_biases: Vec<f32>,
}

impl Squares {
    pub(super) fn new(plan: &Plan<'_>) -> Self {
        let zeros = vec![0.0; plan.tokens * plan.padded()];
        Self { shares: zeros.clone(), of_scores: zeros.clone(), of_biases: zeros }
    }
}
