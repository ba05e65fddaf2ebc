//! 3×3×3 convolution, stride 1, padding 1: products of the weights and the patches around voxels, and its gradients.
//!
//! Patches are 27 times as large as what they show: they are made for some voxels at a time, and again in the backward pass.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use super::patches::Grid;
use super::voxels;

pub(super) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
) -> FloatTensor<B> {
    let outs = bias.shape().num_elements();
    B::float_add(correlate::<B>(x, weight), B::float_reshape(bias, Shape::new([1, outs, 1, 1, 1])))
}

/// From the output's gradient to that of the input: the same, with the weight turned about its middle and its channels the other
/// way.
pub(super) fn input_gradient<B: Backend>(dy: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    correlate::<B>(dy, B::float_flip(B::float_swap_dims(weight, 0, 1), &[2, 3, 4]))
}

/// Without a bias.
fn correlate<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let (grid, [outs, ins, ..]) = (Grid::of::<B>(&x), weight.shape().dims::<5>());
    let weight = B::float_reshape(weight, Shape::new([outs, 27 * ins]));
    let x = grid.flat::<B>(x);
    let runs = grid.runs(27 * ins);
    let products = runs.map(|run| B::float_matmul(weight.clone(), grid.patches::<B>(&x, run))).collect();
    grid.volumes::<B>(products)
}

/// From the input and the output's gradient.
pub(super) fn weight_gradient<B: Backend>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let (grid, [_, ins, ..], [_, outs, ..]) =
        (Grid::of::<B>(&x), x.shape().dims::<5>(), dy.shape().dims::<5>());
    let (x, dy) = (grid.flat::<B>(x), grid.flat::<B>(dy));
    let one =
        |rows: FloatTensor<B>, channels, places| B::float_reshape(rows, Shape::new([1, channels, places]));
    let of_run = grid.runs(27 * ins).map(|run| {
        let places = run.len();
        let dy = one(grid.voxels::<B>(&dy, run.clone()), outs, places);
        voxels::matrix_gradient::<B>(one(grid.patches::<B>(&x, run), 27 * ins, places), dy, 1)
    });
    let sum = of_run.reduce(B::float_add).expect("a grid has voxels");
    B::float_reshape(sum, Shape::new([outs, ins, 3, 3, 3]))
}
