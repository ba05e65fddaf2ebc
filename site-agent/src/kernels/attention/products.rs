//! The products of one task: scores, mixtures of values, and their gradients.

use std::ops::Range;

use super::Inputs;
use super::plan::Plan;
use super::softmax::slopes_of_scores;
use crate::kernels::micro::{Product, add_product};

/// Added to the score of two tokens that are not to see each other, as in the reference.
const APART: f32 = -100.0;

impl Plan<'_> {
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
