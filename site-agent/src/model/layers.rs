//! The layers of the network, with the parameter names and layouts of the reference.
//!
//! A new layer holds zeros; values come from [`init`](super::init) or from a file. Kernels are in [`ops`](super::ops).

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

use super::ops;
use crate::kernels::norm_relu::Together;

/// Added to every variance before its root is taken.
const EPSILON: f64 = 1e-5;
/// Groups of the head's normalisations.
pub(super) const GROUPS: usize = 16;

fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
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

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}

/// Batch normalisation by the statistics of the batch at hand (biased variance), in training *and* in inference.
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
    pub(super) fn forward_relu(&self, x: Tensor<5>) -> Tensor<5> {
        ops::norm_relu(x, self.weight.val(), self.bias.val(), Together::Channel, EPSILON)
    }
}

/// Group normalisation over 16 groups of channels, each sample by itself.
#[derive(Module, Debug)]
pub(super) struct GroupNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl GroupNorm {
    /// `channels` is a multiple of [`GROUPS`]; the head checks it.
    pub(super) fn new(channels: usize, device: &Device) -> Self {
        Self { weight: zeros([channels], device), bias: zeros([channels], device) }
    }

    /// As [`BatchNorm::forward_relu`].
    pub(super) fn forward_relu(&self, x: Tensor<5>) -> Tensor<5> {
        ops::norm_relu(x, self.weight.val(), self.bias.val(), Together::Groups(GROUPS), EPSILON)
    }
}
