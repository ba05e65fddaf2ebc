//! The door to the heavy operations: every convolution, batch normalisation and pooling of the model goes through here.
//!
//! All volumes are `[batch, channel, x, y, z]`. On the CPU these are our own kernels ([`cpu_ops`](super::cpu_ops)), on
//! any other device those of `card_ops` and burn; here is the one place that chooses.

use std::f64::consts::FRAC_1_SQRT_2;
use std::sync::Arc;

use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{
    DType, Device, Int, Tensor,
    activation::{relu, softmax},
    module::{self, max_pool2d},
    ops::MaxPoolOptions,
};

use super::card_ops::CardOps;
use super::cpu_ops::CpuOps;
use super::cpu_step::CpuStep;
use super::loss_parts;
use crate::kernels::adamw::Coefficients;
use crate::kernels::norm_relu::{Normalisation, Together};
use crate::kernels::segmentor::HIDDEN;
use crate::kernels::windows::{SIDE, Windows};

type Dispatched = FloatTensor<Dispatch>;

/// Whether our kernels, which are f32, can work on this tensor where it is.
fn on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.device() == Device::flex() && x.dtype() == DType::F32
}

/// A layer with weights, by one of [`CpuOps`].
fn on_dispatch<const D: usize, const W: usize>(
    layer: impl FnOnce(Dispatched, Dispatched, Dispatched) -> Dispatched,
    x: Tensor<D>,
    weight: Tensor<W>,
    bias: Tensor<1>,
) -> Tensor<D> {
    Tensor::from_dispatch(layer(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

/// As [`on_dispatch`], a layer of two volumes.
fn on_dispatch_pair(
    layer: impl FnOnce(Dispatched, Dispatched, Dispatched, Dispatched) -> Dispatched,
    [a, b]: [Tensor<5>; 2],
    weight: Tensor<5>,
    bias: Tensor<1>,
) -> Tensor<5> {
    let (a, b) = (a.into_dispatch(), b.into_dispatch());
    Tensor::from_dispatch(layer(a, b, weight.into_dispatch(), bias.into_dispatch()))
}

/// 3x3x3 convolution, padding 1: `[n, in, x, y, z]` to `[n, out, x, y, z]`; weight `[out, in, 3, 3, 3]`.
pub(super) fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    if on_cpu(&x) {
        return on_dispatch(Dispatch::conv3, x, weight, bias);
    }
    on_dispatch(Dispatch::conv3_by_products, x, weight, bias)
}

/// As [`conv3d`] on the channels of both, `a` first.
pub(super) fn conv3d_pair(a: Tensor<5>, b: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    if on_cpu(&a) {
        return on_dispatch_pair(Dispatch::conv3_pair, [a, b], weight, bias);
    }
    conv3d(Tensor::cat(vec![a, b], 1), weight, bias)
}

/// Normalisation by the statistics at hand, then the rectifier; shape kept.
pub(super) fn norm_relu(x: Tensor<5>, weight: Tensor<1>, bias: Tensor<1>, how: Normalisation) -> Tensor<5> {
    if on_cpu(&x) {
        return on_dispatch(|x, weight, bias| Dispatch::norm_relu(x, weight, bias, how), x, weight, bias);
    }
    on_dispatch(|x, weight, bias| Dispatch::norm_relu_by_sums(x, weight, bias, how), x, weight, bias)
}

/// Each channel of each sample normalised by itself, without parameters; then a rectifier of this slope below zero.
pub(super) fn instance_norm(x: Tensor<5>, slope: f32) -> Tensor<5> {
    let (channels, device) = (x.dims()[1], x.device());
    let how = Normalisation { together: Together::Groups(channels), epsilon: 1e-5, slope };
    norm_relu(x, Tensor::ones([channels], &device), Tensor::zeros([channels], &device), how)
}

/// Transposed convolution, kernel 2, stride 2: doubles each side; weight `[in, out, 2, 2, 2]`.
pub(super) fn conv_transpose3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    if on_cpu(&x) {
        return on_dispatch(Dispatch::up2, x, weight, bias);
    }
    transposed_by_product(x, weight, bias)
}

/// Each voxel is one of 8 products with the voxel that it comes from.
fn transposed_by_product(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    let ([n, ins, sx, sy, sz], [_, outs, ..]) = (x.dims(), weight.dims());
    let weight = weight.reshape([1, ins, outs * 8]).transpose();
    let bias = bias.reshape([outs, 1]).repeat_dim(1, 8).reshape([1, outs * 8]);
    let y = voxel_products(x.reshape([n, ins, sx * sy * sz]), weight, bias);
    let y = y.reshape([n, outs, 2, 2, 2, sx, sy, sz]).permute([0, 1, 5, 2, 6, 3, 7, 4]);
    y.reshape([n, outs, 2 * sx, 2 * sy, 2 * sz])
}

/// 1x1x1 convolution; weight `[out, in, 1, 1, 1]`.
pub(super) fn pointwise(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    if on_cpu(&x) {
        return on_dispatch(Dispatch::conv1, x, weight, bias);
    }
    pointwise_by_product(x, weight, bias)
}

/// As [`pointwise`] on the channels of both, `a` first.
pub(super) fn pointwise_pair(a: Tensor<5>, b: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    if on_cpu(&a) {
        return on_dispatch_pair(Dispatch::conv1_pair, [a, b], weight, bias);
    }
    pointwise(Tensor::cat(vec![a, b], 1), weight, bias)
}

fn pointwise_by_product(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    let ([n, ins, sx, sy, sz], [outs, ..]) = (x.dims(), weight.dims());
    let (weight, bias) = (weight.reshape([1, outs, ins]), bias.reshape([1, outs]));
    voxel_products(x.reshape([n, ins, sx * sy * sz]), weight, bias).reshape([n, outs, sx, sy, sz])
}

/// Matrices `[1 or n, out, in]` times voxels `[n, in, voxel]`, plus a bias `[1 or n, out]`: `[n, out, voxel]`.
fn voxel_products(x: Tensor<3>, matrices: Tensor<3>, bias: Tensor<2>) -> Tensor<3> {
    let (x, matrices, bias) = (x.into_dispatch(), matrices.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::voxel_products(x, matrices, bias))
}

/// The sum of each row of `[rows, many]`, many side by side.
pub(super) fn row_sums(x: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::row_sums(x.into_dispatch()))
}

/// Linear map of rows, `[…, in]` to `[…, out]`; weight `[out, in]`.
pub(super) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    if on_cpu(&x) {
        return module::linear(x, weight.transpose(), bias);
    }
    linear_by_parts(x, weight, bias)
}

/// The gradient of the weight is small and a sum over all rows, which a card would walk with a few blocks of threads. So rows come
/// in parts, each of which has its own part of that sum.
fn linear_by_parts<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let (mut shape, [outs, ins]) = (x.dims(), weight.dims());
    shape[D - 1] = outs;
    let rows = shape[..D - 1].iter().product::<usize>();
    let parts = 64.min(1 << rows.trailing_zeros());
    let y = x.reshape([parts, rows / parts, ins]).matmul(weight.transpose().unsqueeze_dim::<3>(0));
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    y.reshape(shape)
}

/// Normalises each row over its numbers; shape kept.
pub(super) fn layer_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, epsilon: f32) -> Tensor<3> {
    if on_cpu(&x) {
        return on_dispatch(|x, weight, bias| Dispatch::row_norm(x, weight, bias, epsilon), x, weight, bias);
    }
    module::layer_norm(x, weight, Some(bias), f64::from(epsilon))
}

/// `x · Φ(x)`, exact; shape kept.
pub(super) fn gelu(x: Tensor<3>) -> Tensor<3> {
    if on_cpu(&x) {
        return Tensor::from_dispatch(Dispatch::exact_gelu(x.into_dispatch()));
    }
    gelu_by_error_function(x)
}

/// Off the CPU, the gradient that burn has for its own is of the approximation by tanh, which is not the function that it
/// computes: up to 9e-4 beside it.
fn gelu_by_error_function(x: Tensor<3>) -> Tensor<3> {
    let below = x.clone().mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
    x * below
}

/// Attention within windows: queries, keys and values `[n, voxels, 3 · width]` to `[n, voxels, width]`.
///
/// `padding` are the three of a token that is no voxel, `[3 · width]`; `table` the biases of relative positions, `[2197, heads]`.
pub(super) fn window_attention(
    qkv: Tensor<3>,
    padding: Tensor<1>,
    table: Tensor<2>,
    windows: &Arc<Windows>,
) -> Tensor<3> {
    if on_cpu(&qkv) {
        let (qkv, padding, table) = (qkv.into_dispatch(), padding.into_dispatch(), table.into_dispatch());
        return Tensor::from_dispatch(Dispatch::window_attention(qkv, padding, table, Arc::clone(windows)));
    }
    window_attention_by_products(qkv, padding, table, windows)
}

/// Every window's tokens side by side, padding too, and their scores in whole.
fn window_attention_by_products(
    qkv: Tensor<3>,
    padding: Tensor<1>,
    table: Tensor<2>,
    windows: &Windows,
) -> Tensor<3> {
    let [_, heads] = table.dims();
    let ([n, voxels, triple], device) = (qkv.dims(), qkv.device());
    let (width, tokens, count) = (triple / 3, windows.tokens, windows.count());
    let ints = |values: Vec<i32>| Tensor::<1, Int>::from_ints(values.as_slice(), &device);

    let padding = padding.reshape([1, 1, triple]).expand([n, 1, triple]);
    let rows = windows.voxel.iter().map(|voxel| voxel.map_or(voxels as i32, |voxel| voxel as i32)).collect();
    let qkv = Tensor::cat(vec![qkv, padding], 1).select(1, ints(rows));
    let qkv = qkv.reshape([n * count, tokens, 3, heads, width / heads]).permute([2, 0, 3, 1, 4]);
    let part = |i: usize| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0);
    let (q, k, v) = (part(0), part(1), part(2));

    let scores = q.mul_scalar(((width / heads) as f64).powf(-0.5)).matmul(k.swap_dims(2, 3));
    let bias = pair_biases(table).narrow(0, 0, tokens).narrow(1, 0, tokens).permute([2, 0, 1]);
    let scores = scores + bias.unsqueeze_dim(0);
    let scores = match windows.region.is_empty() {
        true => scores,
        false => {
            let apart: Vec<f32> =
                windows.pairs_apart().map(|apart| if apart { APART } else { 0.0 }).collect();
            let apart = Tensor::<1>::from_floats(apart.as_slice(), &device);
            let apart = apart.reshape([1, count, 1, tokens, tokens]);
            let by_sample = scores.reshape([n, count, heads, tokens, tokens]) + apart;
            by_sample.reshape([n * count, heads, tokens, tokens])
        }
    };
    let mixed = softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([n, count * tokens, width]);
    mixed.select(1, ints(windows.entries().iter().map(|&entry| entry as i32).collect()))
}

/// The bias of every pair of tokens of a full window, `[343, 343, heads]`, cut out of the table one axis after the other.
///
/// Chosen by the number of its row, the gradient of the table would be a sum that burn has one thread walk for each head.
fn pair_biases(table: Tensor<2>) -> Tensor<3> {
    let [_, heads] = table.dims();
    let along = 2 * SIDE - 1;
    let x = pairs_along_axis(table.reshape([1, along, along * along * heads]));
    let y = pairs_along_axis(x.reshape([SIDE * SIDE, along, along * heads]));
    let z = pairs_along_axis(y.reshape([SIDE.pow(4), along, heads]));
    let axes = z.reshape([SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, heads]).permute([0, 2, 4, 1, 3, 5, 6]);
    axes.reshape([SIDE.pow(3), SIDE.pow(3), heads])
}

/// Offsets along one axis, `[before, 13, after]`, to places `i` and `j` there, `[before, 7, 7, after]`: offset i + 6 − j.
fn pairs_along_axis(table: Tensor<3>) -> Tensor<4> {
    let of_place = |j: usize| table.clone().narrow(1, SIDE - 1 - j, SIDE).unsqueeze_dim(2);
    Tensor::cat((0..SIDE).map(of_place).collect(), 2)
}

/// What is added to the score of two tokens that are not to see each other, as in the reference.
const APART: f32 = -100.0;

/// Runs the generated networks: voxel features `[n, 8, x, y, z]`, parameters `[n, k, 153]`, logits `[n, k, x, y, z]`.
pub(super) fn segment(voxels: Tensor<5>, parameters: Tensor<3>) -> Tensor<5> {
    if on_cpu(&voxels) {
        return Tensor::from_dispatch(Dispatch::segment(voxels.into_dispatch(), parameters.into_dispatch()));
    }
    segment_by_products(voxels, parameters)
}

/// The first layers of all classes are one matrix product per sample; the others are k independent small ones.
fn segment_by_products(voxels: Tensor<5>, parameters: Tensor<3>) -> Tensor<5> {
    let [n, _, x, y, z] = voxels.dims();
    let k = parameters.dims()[1];
    let size = x * y * z;
    let mut taken = 0;
    let mut take = |length: usize| {
        taken += length;
        parameters.clone().slice([0..n, 0..k, taken - length..taken])
    };
    let w1 = take(HIDDEN * HIDDEN).reshape([n, k * HIDDEN, HIDDEN]);
    let w2 = take(HIDDEN * HIDDEN).reshape([n * k, HIDDEN, HIDDEN]);
    let w3 = take(HIDDEN).reshape([n * k, 1, HIDDEN]);
    let b1 = take(HIDDEN).reshape([n, k * HIDDEN]);
    let b2 = take(HIDDEN).reshape([n * k, HIDDEN]);
    let b3 = take(1).reshape([n * k, 1]);

    let hidden = relu(voxel_products(voxels.reshape([n, HIDDEN, size]), w1, b1));
    let hidden = relu(voxel_products(hidden.reshape([n * k, HIDDEN, size]), w2, b2));
    voxel_products(hidden, w3, b3).reshape([n, k, x, y, z])
}

/// Mean cross-entropy and mean Dice loss over the annotated (sample, class) pairs: logits and target `[n, k, x, y, z]`, one
/// mark for each of the `n * k` pairs. The rest is never read.
pub(crate) fn masked_loss(
    logits: Tensor<5>,
    target: Tensor<5>,
    annotated: &[bool],
    dice_terms: usize,
) -> [Tensor<1>; 2] {
    if on_cpu(&logits) {
        let (logits, target) = (logits.into_dispatch(), target.into_dispatch());
        let means = Dispatch::masked_loss(logits, target, annotated.to_vec(), dice_terms);
        let means: Tensor<1> = Tensor::from_dispatch(means);
        return [means.clone().narrow(0, 0, 1), means.narrow(0, 1, 1)];
    }
    loss_parts::masked_loss(logits, target, annotated, dice_terms)
}

/// Values, first and second moment after one step of AdamW; all flat, none of them in a graph.
pub(crate) fn adamw(
    theta: Tensor<1>,
    gradient: Tensor<1>,
    [first, second]: [Tensor<1>; 2],
    c: Coefficients,
) -> [Tensor<1>; 3] {
    if on_cpu(&theta) {
        let (theta, gradient) = (theta.into_dispatch(), gradient.into_dispatch());
        let (theta, first, second) =
            Dispatch::adamw(theta, gradient, first.into_dispatch(), second.into_dispatch(), c);
        return [theta, first, second].map(Tensor::from_dispatch);
    }
    let first = first * c.beta1 + gradient.clone() * c.one_minus_beta1;
    let second = second * c.beta2 + gradient.clone() * gradient * c.one_minus_beta2;
    let root = second.clone().sqrt() / c.second_correction + c.epsilon;
    let change = first.clone() / root * c.rate + theta.clone() * c.decay;
    [theta - change, first, second]
}

/// Maximum over 2x2x2 blocks; sides must be even.
pub(super) fn max_pool(x: Tensor<5>) -> Tensor<5> {
    if on_cpu(&x) {
        return Tensor::from_dispatch(Dispatch::pool2(x.into_dispatch()));
    }
    max_pool_by_planes(x)
}

/// burn 0.22 pools in two dimensions only: (y, z) first, then x with each yz plane as one row.
fn max_pool_by_planes(x: Tensor<5>) -> Tensor<5> {
    let [n, c, sx, sy, sz] = x.dims();
    let planes = max_pool2d(x.reshape([n * c, sx, sy, sz]), MaxPoolOptions::new([2, 2]));
    let rows = planes.reshape([1, n * c, sx, sy / 2 * (sz / 2)]);
    max_pool2d(rows, MaxPoolOptions::new([2, 1])).reshape([n, c, sx / 2, sy / 2, sz / 2])
}

#[cfg(test)]
mod tests;
