//! Binds [`crate::kernels`] to burn's automatic differentiation on the CPU device.
//!
//! [`CpuOps`] is what a network calls; [`CpuGradients`] is what its backward passes call on the device below the
//! differentiating one. Nothing outside `model::ops` uses either: there the device decides between these and burn's own.
//! `host` runs them on the kernels, `differentiation` records them and walks back.

mod differentiation;
mod host;
pub(super) use host::whole;

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

use crate::kernels::layer_norm;
use crate::kernels::masked_loss::Loss;
use crate::kernels::norm_relu::{Normalisation, Statistics};
use crate::kernels::windows::Windows;

/// Operations with a kernel of ours. Tensors are `[n, channel, x, y, z]`, f32.
#[backend_extension(Flex, Autodiff)]
pub(super) trait CpuOps: Backend {
    /// 1×1×1 convolution with bias; `weight` is `[outs, ins, 1, 1, 1]`.
    fn conv1(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// As [`CpuOps::conv1`] on the channels of both, `a` first, which are never joined in memory.
    fn conv1_pair(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// 3×3×3 convolution, stride 1, padding 1, with bias; `weight` is `[outs, ins, 3, 3, 3]`.
    fn conv3(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// As [`CpuOps::conv3`] on the channels of both, `a` first, which are never joined in memory.
    fn conv3_pair(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// Normalisation by the statistics at hand, then the rectifier.
    fn norm_relu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
    ) -> FloatTensor<Self>;
    /// Normalisation of each row of `[…, width]` over its numbers.
    fn row_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
    /// `x · Φ(x)`, shape kept.
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Attention within windows: `qkv` is `[n, voxels, 3 · width]`, `padding` `[3 · width]`, `table` `[2197, heads]`; the output
    /// `[n, voxels, width]`.
    fn window_attention(
        qkv: FloatTensor<Self>,
        padding: FloatTensor<Self>,
        table: FloatTensor<Self>,
        windows: Arc<Windows>,
    ) -> FloatTensor<Self>;
    /// Maximum of each 2×2×2 block.
    fn pool2(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// 2×2×2 transposed convolution, stride 2, with bias; `weight` is `[ins, outs, 2, 2, 2]`.
    fn up2(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// The generated networks: features `[n, 8, x, y, z]`, parameters `[n, classes, 153]`; logits `[n, classes, x, y, z]`.
    fn segment(features: FloatTensor<Self>, parameters: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Mean cross-entropy and mean Dice loss, `[2]`, over the annotated (sample, class) pairs of `[n, class, x, y, z]`.
    fn masked_loss(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        annotated: Vec<bool>,
        dice_terms: usize,
    ) -> FloatTensor<Self>;
}

/// The gradients of [`CpuOps`], first order only.
pub(super) trait CpuGradients: Backend {
    /// From the output's gradient to those of the inputs, which have so many channels each.
    fn conv1_input<const N: usize>(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        channels: [usize; N],
    ) -> [FloatTensor<Self>; N];
    /// From the output's gradient to the weight's; `x` are the inputs.
    fn conv1_weight<const N: usize>(x: [FloatTensor<Self>; N], dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// From the output's gradient to those of the inputs, which have so many channels each.
    fn conv3_input<const N: usize>(
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        channels: [usize; N],
    ) -> [FloatTensor<Self>; N];
    /// From the output's gradient to the weight's; `x` are the inputs.
    fn conv3_weight<const N: usize>(x: [FloatTensor<Self>; N], dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Sum per channel.
    fn channel_sums(dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// [`CpuOps::norm_relu`], and the statistics that its gradient needs.
    fn norm_relu_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
    ) -> (FloatTensor<Self>, Statistics);
    /// The output of [`CpuGradients::norm_relu_forward`] once more, the same bits.
    fn norm_relu_again(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
        statistics: &Statistics,
    ) -> FloatTensor<Self>;
    /// Gradients with respect to input, weight and bias.
    fn norm_relu_backward(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
        statistics: &Statistics,
    ) -> [FloatTensor<Self>; 3];
    /// [`CpuOps::row_norm`], and the statistics that its gradient needs.
    fn row_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, layer_norm::Statistics);
    /// The output of [`CpuGradients::row_norm_forward`] once more, the same bits.
    fn row_norm_again(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        statistics: &layer_norm::Statistics,
    ) -> FloatTensor<Self>;
    /// Gradients with respect to input, weight and bias.
    fn row_norm_backward(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        statistics: &layer_norm::Statistics,
    ) -> [FloatTensor<Self>; 3];
    /// From the output's gradient to the input's.
    fn exact_gelu_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// [`CpuOps::window_attention`], and the logarithms that its gradient needs.
    fn window_attention_forward(
        qkv: FloatTensor<Self>,
        padding: FloatTensor<Self>,
        table: FloatTensor<Self>,
        windows: &Windows,
    ) -> (FloatTensor<Self>, Vec<f32>);
    /// Gradients with respect to `qkv`, `padding` and `table`, of `inputs` in that order.
    fn window_attention_backward(
        inputs: [FloatTensor<Self>; 3],
        dy: FloatTensor<Self>,
        windows: &Windows,
        logs: &[f32],
    ) -> [FloatTensor<Self>; 3];
    /// [`CpuOps::pool2`], and which voxel of each block it took.
    fn pool2_forward(x: FloatTensor<Self>) -> (FloatTensor<Self>, Vec<u8>);
    /// From the output's gradient to the input's, whose shape is `[n, channel, x, y, z]`.
    fn pool2_backward(dy: FloatTensor<Self>, which: &[u8], shape: [usize; 5]) -> FloatTensor<Self>;
    /// From the output's gradient to the input's, whose shape is `[n, channel, x, y, z]`.
    fn up2_input(dy: FloatTensor<Self>, weight: FloatTensor<Self>, shape: [usize; 5]) -> FloatTensor<Self>;
    /// From the output's gradient to the weight's.
    fn up2_weight(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradients with respect to features and parameters.
    fn segment_backward(
        features: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];
    /// [`CpuOps::masked_loss`], and what its gradient needs.
    fn masked_loss_forward(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        annotated: &[bool],
        dice_terms: usize,
    ) -> (FloatTensor<Self>, Loss);
    /// Gradient with respect to the logits, from the slopes `[2]` of the two means.
    fn masked_loss_backward(
        x: FloatTensor<Self>,
        target: FloatTensor<Self>,
        counted: &Counted,
        slopes: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// What the gradient of the masked loss needs beside its inputs.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    annotated: Vec<bool>,
    dice_terms: usize,
    loss: Loss,
}
