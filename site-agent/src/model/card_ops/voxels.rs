//! Products of matrices `[1 or n, out, in]` with voxels `[n, in, voxel]`, and their gradients.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use super::sums;

/// Into how many parts a sum of products is cut at most.
pub(super) const PARTS: usize = 64;
/// Numbers of the partial sums of a matrix's gradient, at most.
const PARTIAL: usize = 1 << 22;

pub(super) fn forward<B: Backend>(
    x: FloatTensor<B>,
    matrices: FloatTensor<B>,
    bias: FloatTensor<B>,
) -> FloatTensor<B> {
    let [different, outs, _] = matrices.shape().dims();
    let bias = B::float_reshape(bias, Shape::new([different, outs, 1]));
    B::float_add(B::float_matmul(matrices, x), bias)
}

/// From the output's gradient.
pub(super) fn input_gradient<B: Backend>(dy: FloatTensor<B>, matrices: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(B::float_swap_dims(matrices, 1, 2), dy)
}

/// From the input and the output's gradient to those of one matrix, or of `n` `different` ones. It is a long sum with a small
/// result.
pub(super) fn matrix_gradient<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    different: usize,
) -> FloatTensor<B> {
    let ([n, ins, voxels], [_, outs, _]) = (x.shape().dims::<3>(), dy.shape().dims::<3>());
    let room = (PARTIAL / (n * ins * outs)).clamp(1, PARTS);
    let parts = (1 << room.ilog2()).min(1 << voxels.trailing_zeros());
    let cut =
        |x: FloatTensor<B>, channels| B::float_reshape(x, Shape::new([n, channels, parts, voxels / parts]));
    let (dy, x) = (B::float_swap_dims(cut(dy, outs), 1, 2), B::float_permute(cut(x, ins), &[0, 2, 3, 1]));
    let products = B::float_matmul(dy, x);
    let sum = B::float_sum_dim(products, 1);
    let sum = if different == 1 { B::float_sum_dim(sum, 0) } else { sum };
    B::float_reshape(sum, Shape::new([different, outs, ins]))
}

/// From the output's gradient to those of one bias, or of `n` `different` ones.
pub(super) fn bias_gradient<B: Backend>(dy: FloatTensor<B>, different: usize) -> FloatTensor<B> {
    let [n, outs, voxels] = dy.shape().dims();
    if different == 1 {
        return B::float_reshape(sums::of_channels::<B>(dy), Shape::new([1, outs]));
    }
    let rows = B::float_reshape(dy, Shape::new([n * outs, voxels]));
    B::float_reshape(sums::of_rows::<B>(rows), Shape::new([n, outs]))
}
