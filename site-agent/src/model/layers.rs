//! The layers of the network, with the parameter names and layouts of the reference.
//!
//! A new layer holds zeros; values come from [`init`](super::init) or from a file. Kernels are in [`ops`](super::ops).

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

use super::ops;
use crate::kernels::norm_relu::{Normalisation, Together};

/// Added to every variance before its root is taken.
const EPSILON: f32 = 1e-5;
/// Groups of the head's normalisations.
const GROUPS: usize = 16;
/// Fewest groups that a head may have: channels are a multiple of this.
pub(super) const SMALLEST_GROUPS: usize = 4;

pub(super) fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::zeros(shape, device))
}

/// 3x3x3 convolution with bias.
#[derive(Module, Debug)]
pub(super) struct Conv3d {
    weight: Param<Tensor<5>>,
    bias: Param<Tensor<1>>,
}

impl Conv3d {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([output, input, 3, 3, 3], device), bias: zeros([output], device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        ops::conv3d(x, self.weight.val(), self.bias.val())
    }

    /// As [`Self::forward`] on the channels of both, `a` first.
    pub(super) fn forward_pair(&self, a: Tensor<5>, b: Tensor<5>) -> Tensor<5> {
        ops::conv3d_pair(a, b, self.weight.val(), self.bias.val())
    }
}

/// Transposed convolution that doubles each side.
#[derive(Module, Debug)]
pub(super) struct UpConv3d {
    weight: Param<Tensor<5>>,
    bias: Param<Tensor<1>>,
}

impl UpConv3d {
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        Self { weight: zeros([channels, channels, 2, 2, 2], device), bias: zeros([channels], device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        ops::conv_transpose3d(x, self.weight.val(), self.bias.val())
    }
}

/// 1x1x1 convolution with bias: the same linear map at every voxel.
#[derive(Module, Debug)]
pub(super) struct Pointwise {
    weight: Param<Tensor<5>>,
    bias: Param<Tensor<1>>,
}

impl Pointwise {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([output, input, 1, 1, 1], device), bias: zeros([output], device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        ops::pointwise(x, self.weight.val(), self.bias.val())
    }

    /// The map as a matrix `[in, out]` and its bias `[1, out]`, for inputs without voxels.
    pub(super) fn matrix(&self) -> (Tensor<2>, Tensor<2>) {
        let [output, input, ..] = self.weight.dims();
        let weight = self.weight.val().reshape([output, input]).transpose();
        (weight, self.bias.val().reshape([1, output]))
    }
}

/// Linear map of rows; weight `[out, in]`.
#[derive(Module, Debug)]
pub(super) struct Linear {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Linear {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([output, input], device), bias: zeros([output], device) }
    }

    /// `[…, in]` to `[…, out]`.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::linear(x, self.weight.val(), Some(self.bias.val()))
    }

    pub(super) fn bias(&self) -> Tensor<1> {
        self.bias.val()
    }
}

/// Linear map of rows, without bias; weight `[out, in]`.
#[derive(Module, Debug)]
pub(super) struct PlainLinear {
    weight: Param<Tensor<2>>,
}

impl PlainLinear {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([output, input], device) }
    }

    /// `[…, in]` to `[…, out]`.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::linear(x, self.weight.val(), None)
    }
}

/// Normalises each row over its numbers.
#[derive(Module, Debug)]
pub(super) struct LayerNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl LayerNorm {
    pub(super) fn new(width: usize, device: &Device) -> Self {
        Self { weight: zeros([width], device), bias: zeros([width], device) }
    }

    /// Shape kept.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), EPSILON)
    }
}

/// A [`LayerNorm`] without parameters.
pub(super) fn plain_layer_norm(x: Tensor<3>) -> Tensor<3> {
    let ([.., width], device) = (x.dims(), x.device());
    let (ones, zeros) = (Tensor::ones([width], &device), Tensor::zeros([width], &device));
    ops::layer_norm(x, ones, zeros, EPSILON)
}

/// 3x3x3 convolution without bias.
#[derive(Module, Debug)]
pub(super) struct PlainConv3d {
    weight: Param<Tensor<5>>,
}

impl PlainConv3d {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([output, input, 3, 3, 3], device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        ops::conv3d(x, self.weight.val(), no_bias(&self.weight, 0))
    }

    /// As [`Self::forward`] on the channels of both, `a` first.
    pub(super) fn forward_pair(&self, a: Tensor<5>, b: Tensor<5>) -> Tensor<5> {
        ops::conv3d_pair(a, b, self.weight.val(), no_bias(&self.weight, 0))
    }
}

/// 1x1x1 convolution without bias.
#[derive(Module, Debug)]
pub(super) struct PlainPointwise {
    weight: Param<Tensor<5>>,
}

impl PlainPointwise {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([output, input, 1, 1, 1], device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        ops::pointwise(x, self.weight.val(), no_bias(&self.weight, 0))
    }

    /// As [`Self::forward`] on the channels of both, `a` first.
    pub(super) fn forward_pair(&self, a: Tensor<5>, b: Tensor<5>) -> Tensor<5> {
        ops::pointwise_pair(a, b, self.weight.val(), no_bias(&self.weight, 0))
    }
}

/// Transposed convolution without bias that doubles each side.
#[derive(Module, Debug)]
pub(super) struct PlainUpConv3d {
    weight: Param<Tensor<5>>,
}

impl PlainUpConv3d {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { weight: zeros([input, output, 2, 2, 2], device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        ops::conv_transpose3d(x, self.weight.val(), no_bias(&self.weight, 1))
    }
}

/// A bias of zeros that nobody trains, for a layer with its outputs on this axis of its weight.
fn no_bias(weight: &Param<Tensor<5>>, axis: usize) -> Tensor<1> {
    Tensor::zeros([weight.dims()[axis]], &weight.device())
}

/// Convolution of 2x2x2 blocks that do not overlap: each becomes one token.
#[derive(Module, Debug)]
pub(super) struct PatchEmbedding {
    weight: Param<Tensor<5>>,
    bias: Param<Tensor<1>>,
}

impl PatchEmbedding {
    pub(super) fn new(width: usize, device: &Device) -> Self {
        Self { weight: zeros([width, 1, 2, 2, 2], device), bias: zeros([width], device) }
    }

    /// `[n, 1, x, y, z]` with even sides to `[n, x/2 · y/2 · z/2, width]`.
    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<3> {
        let [n, _, sx, sy, sz] = x.dims();
        let [width, ..] = self.weight.dims();
        let blocks = x.reshape([n, sx / 2, 2, sy / 2, 2, sz / 2, 2]).permute([0, 1, 3, 5, 2, 4, 6]);
        let blocks = blocks.reshape([n, sx * sy * sz / 8, 8]);
        ops::linear(blocks, self.weight.val().reshape([width, 8]), Some(self.bias.val()))
    }
}

/// Which samples batch normalisation sees together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Samples {
    /// All of a batch: training.
    Together,
    /// Each by itself: inference. What becomes of a sample is the same, to the bit, whatever comes with it.
    Apart,
}

/// Batch normalisation by the statistics of the batch at hand (biased variance), in training *and* in inference, where a
/// window is a batch of its own.
///
/// There are no running statistics: the reference keeps and never reads them, and they would tell a coordinator about
/// the images of a site.
#[derive(Module, Debug)]
pub(super) struct BatchNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl BatchNorm {
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        Self { weight: zeros([channels], device), bias: zeros([channels], device) }
    }

    /// The rectifier follows every batch normalisation of the network, so it is part of this.
    pub(super) fn forward_relu(&self, x: Tensor<5>, samples: Samples) -> Tensor<5> {
        let together = match samples {
            Samples::Together => Together::Channel,
            Samples::Apart => Together::Groups(x.dims()[1]),
        };
        rectified(x, &self.weight, &self.bias, together)
    }
}

/// Group normalisation over 16 groups of channels, each sample by itself; over 8 or 4 where the channels of a backbone
/// smaller than the paper's do not split into more.
#[derive(Module, Debug)]
pub(super) struct GroupNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl GroupNorm {
    /// `channels` is a multiple of [`SMALLEST_GROUPS`]; the head checks it.
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        Self { weight: zeros([channels], device), bias: zeros([channels], device) }
    }

    /// With its rectifier, as [`BatchNorm::forward_relu`].
    pub(super) fn forward_relu(&self, x: Tensor<5>) -> Tensor<5> {
        let [_, channels, ..] = x.dims();
        // The largest power of two in both.
        let groups = GROUPS.min(1 << channels.trailing_zeros());
        rectified(x, &self.weight, &self.bias, Together::Groups(groups))
    }
}

fn rectified(
    x: Tensor<5>,
    weight: &Param<Tensor<1>>,
    bias: &Param<Tensor<1>>,
    together: Together,
) -> Tensor<5> {
    ops::norm_relu(x, weight.val(), bias.val(), Normalisation { together, epsilon: EPSILON, slope: 0.0 })
}
