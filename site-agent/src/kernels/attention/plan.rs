//! An attention on an instruction set: its tasks, and where all that they read and write lies.

use std::ops::Range;

use rayon::prelude::*;

use super::{Attention, Inputs};
use crate::kernels::isa::Isa;
use crate::kernels::micro::Shape;
use crate::kernels::windows::{OFFSETS, offset_row};

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
    pub(super) isa: Isa,
    pub(super) a: Attention<'a>,
    pub(super) tokens: usize,
    pub(super) depth: usize,
    /// Tiles of scores.
    pub(super) wide: Shape,
    /// Tiles of a head's numbers.
    pub(super) narrow: Shape,
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
    pub(super) fn padded(&self) -> usize {
        self.tokens.next_multiple_of(self.wide.columns())
    }

    /// Rows of scores that are made at once: as many as tiles of both kinds hold.
    pub(super) fn strips(&self) -> impl Iterator<Item = Range<usize>> {
        let lower = if self.wide.rows() < self.narrow.rows() { self.wide } else { self.narrow };
        lower.strips(self.tokens).into_iter().map(|(first, height)| first..first + height)
    }

    /// The volume, the windows' entries and the head of a task.
    pub(super) fn place(&self, task: usize) -> (usize, Range<usize>, usize) {
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
    pub(super) fn gather_output(&self, dy: &[f32], task: usize) -> Vec<f32> {
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
