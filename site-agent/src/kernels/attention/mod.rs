//! Attention within windows (specification §9), and its gradients.
//!
//! A task is one head of one window: its scores are made a strip of rows at a time and never leave the cache. The backward
//! pass makes them again from the logarithms of the rows' sums, so nothing quadratic is kept. Queries, keys and values are
//! read where they lie, one row for each voxel; the tokens of padding have a row of their own.

mod plan;
mod products;
mod softmax;

use rayon::prelude::*;

use self::plan::Plan;
use self::products::Squares;
use self::softmax::exponentials;
use super::isa::Isa;
use super::windows::Windows;

/// One attention over a batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Which voxels meet.
    pub windows: &'a Windows,
    /// Volumes of the batch.
    pub n: usize,
    /// Numbers of a token, all heads together.
    pub width: usize,
    /// Heads; they divide the width.
    pub heads: usize,
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries, keys and values of each voxel, `[n, voxels, 3, heads, width / heads]`.
    pub qkv: &'a [f32],
    /// The same of a token that is no voxel.
    pub padding: &'a [f32],
    /// Biases of relative positions, `[2197, heads]`.
    pub table: &'a [f32],
}

/// Gradients with respect to [`Inputs`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `[n, voxels, 3, heads, width / heads]`.
    pub qkv: Vec<f32>,
    /// `[3, heads, width / heads]`.
    pub padding: Vec<f32>,
    /// `[2197, heads]`.
    pub table: Vec<f32>,
}

/// Mixed values `[n, voxels, width]`, and the logarithm of each row's sum of exponentials, which the gradients need.
pub fn forward(isa: Isa, a: Attention<'_>, inputs: Inputs<'_>) -> (Vec<f32>, Vec<f32>) {
    let plan = Plan::new(isa, a);
    let biases = plan.biases(inputs.table);
    let mut mixed = vec![0.0; plan.tasks() * plan.tokens * plan.depth];
    let mut logs = vec![0.0; plan.tasks() * plan.tokens];
    let outputs = mixed.par_chunks_mut(plan.tokens * plan.depth).zip(logs.par_chunks_mut(plan.tokens));
    outputs.enumerate().for_each_init(Vec::new, |scores, (task, (mixed, logs))| {
        let [q, k, v] = plan.gather(inputs, task);
        let (k, v) = (plan.turned(&k), plan.panels(&v));
        for strip in plan.strips() {
            plan.scores(&biases, task, &strip, &q, &k, scores);
            exponentials(isa, scores, plan.wide.columns(), &mut logs[strip.clone()]);
            plan.mix(scores, &strip, &v, &mut mixed[strip.start * plan.depth..strip.end * plan.depth]);
        }
    });
    (plan.to_voxels(&mixed, 1), logs)
}

/// Gradients, from the inputs, the logarithms that [`forward`] gave, and the gradient of its output.
pub fn backward(isa: Isa, a: Attention<'_>, inputs: Inputs<'_>, logs: &[f32], dy: &[f32]) -> Gradients {
    let plan = Plan::new(isa, a);
    let biases = plan.biases(inputs.table);
    let mut qkv = vec![0.0; plan.tasks() * 3 * plan.tokens * plan.depth];
    let runs = plan.runs(qkv.chunks_mut(3 * plan.tokens * plan.depth));
    let of_run = |run: Vec<(usize, &mut [f32])>| {
        let mut square = Squares::new(&plan);
        for (task, gradient) in run {
            let logs = &logs[task * plan.tokens..][..plan.tokens];
            plan.differentiate(&biases, inputs, task, logs, dy, gradient, &mut square);
        }
        square.of_biases
    };
    let of_biases: Vec<Vec<f32>> = runs.into_par_iter().map(of_run).collect();
    Gradients {
        qkv: plan.to_voxels(&qkv, 3),
        padding: plan.of_padding(&qkv),
        table: plan.of_table(&of_biases),
    }
}
