//! The heavy operations for cards, where we have no kernels: made of burn's products of matrices, sums and elementwise steps.
//!
//! burn has most of them itself, but without its tuner (over a minute at every start) one thread makes each number
//! of its results: a sum over a volume, and with it a normalisation or the gradient of a bias, is then as slow as one thread,
//! and so is the gradient of a weight. Here every long sum is cut into parts that are made side by side.
//!
//! `convolution`, `voxels` and `normalisation` hold each operation with its gradients, `patches` what a 3×3×3 convolution
//! multiplies, `sums` the sums. docs/decisions/0027 says what that brings.

mod convolution;
mod normalisation;
mod patches;
mod sums;
mod voxels;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use burn::backend::Cube;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};

use super::graph::{Convolution, NormRelu};
use crate::kernels::norm_relu::Normalisation;

/// Operations for cards. Volumes are `[n, channel, x, y, z]`.
#[backend_extension(Flex, Cube: cfg(any(feature = "cuda", feature = "vulkan")), Autodiff)]
pub(super) trait CardOps: Backend {
    /// 3×3×3 convolution, stride 1, padding 1, with bias; `weight` is `[outs, ins, 3, 3, 3]`.
    fn conv3_by_products(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        convolution::forward::<Self>(x, weight, bias)
    }
    /// Matrices `[1 or n, out, in]` times voxels `[n, in, voxel]`, plus a bias `[1 or n, out]`: `[n, out, voxel]`.
    fn voxel_products(
        x: FloatTensor<Self>,
        matrices: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        voxels::forward::<Self>(x, matrices, bias)
    }
    /// Normalisation by the statistics at hand, then the rectifier; weight and bias `[channel]`.
    fn norm_relu_by_sums(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
    ) -> FloatTensor<Self> {
        normalisation::forward::<Self>(x, weight, bias, how).0
    }
    /// The sum of each row of `[rows, many]`: `[rows]`.
    fn row_sums(x: FloatTensor<Self>) -> FloatTensor<Self> {
        sums::of_rows::<Self>(x)
    }
}

/// For tests: there are kernels for the CPU. Numbers of 64 bits, which they do not read, come here too.
impl CardOps for Flex {}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
impl CardOps for Cube {}

impl<B: CardOps, C: CheckpointStrategy> CardOps for Autodiff<B, C> {
    fn conv3_by_products(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let convolution = Convolution::<B> {
            forward: convolution::forward::<B>,
            input: |dy, weight, _| convolution::input_gradient::<B>(dy, weight),
            weight: |x, dy, _| convolution::weight_gradient::<B>(x, dy),
            bias: |dy, _| sums::of_channels::<B>(dy),
            made_again: false,
        };
        convolution.record::<C>(x, weight, bias)
    }

    fn voxel_products(
        x: FloatTensor<Self>,
        matrices: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let product = Convolution::<B> {
            forward: voxels::forward::<B>,
            input: |dy, matrices, _| voxels::input_gradient::<B>(dy, matrices),
            weight: |x, dy, shapes| voxels::matrix_gradient::<B>(x, dy, shapes.weight[0]),
            bias: |dy, shapes| voxels::bias_gradient::<B>(dy, shapes.weight[0]),
            made_again: false,
        };
        product.record::<C>(x, matrices, bias)
    }

    fn norm_relu_by_sums(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        how: Normalisation,
    ) -> FloatTensor<Self> {
        let norm = NormRelu::<B, normalisation::Statistics<B>> {
            forward: normalisation::forward::<B>,
            again: normalisation::again::<B>,
            backward: normalisation::backward::<B>,
        };
        norm.record::<C>([x, weight, bias], how)
    }
}
