//! The convolutional half: residual blocks with instance normalisation, on the way down and on the way up.
//!
//! Field names are the reference's parameter names.

use burn::{
    module::Module,
    tensor::{Device, Tensor, activation::leaky_relu},
};

use crate::model::layers::{PlainConv3d, PlainPointwise, PlainUpConv3d};
use crate::model::ops;

/// Slope of the rectifiers below zero.
const SLOPE: f32 = 0.01;

#[derive(Module, Debug)]
struct Conv3 {
    conv: PlainConv3d,
}

#[derive(Module, Debug)]
struct Conv1 {
    conv: PlainPointwise,
}

#[derive(Module, Debug)]
struct TransposedConv {
    conv: PlainUpConv3d,
}

/// Two convolutions beside a shortcut. Every convolution is followed by instance normalisation, without parameters.
#[derive(Module, Debug)]
pub(super) struct ResidualBlock {
    conv1: Conv3,
    conv2: Conv3,
    /// Where the number of channels changes.
    conv3: Option<Conv1>,
}

impl ResidualBlock {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        let shortcut = || Conv1 { conv: PlainPointwise::new(input, output, device) };
        Self {
            conv1: Conv3 { conv: PlainConv3d::new(input, output, device) },
            conv2: Conv3 { conv: PlainConv3d::new(output, output, device) },
            conv3: (input != output).then(shortcut),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let first = self.conv1.conv.forward(x.clone());
        let shortcut = match &self.conv3 {
            Some(conv3) => ops::instance_norm(conv3.conv.forward(x), 1.0),
            None => x,
        };
        self.finish(first, shortcut)
    }

    /// On the channels of both, `a` first.
    pub(super) fn forward_pair(&self, a: Tensor<5>, b: Tensor<5>) -> Tensor<5> {
        let first = self.conv1.conv.forward_pair(a.clone(), b.clone());
        let shortcut = match &self.conv3 {
            Some(conv3) => ops::instance_norm(conv3.conv.forward_pair(a, b), 1.0),
            None => Tensor::cat(vec![a, b], 1),
        };
        self.finish(first, shortcut)
    }

    /// From the first convolution's output and the shortcut's.
    fn finish(&self, first: Tensor<5>, shortcut: Tensor<5>) -> Tensor<5> {
        let second = self.conv2.conv.forward(ops::instance_norm(first, SLOPE));
        leaky_relu(ops::instance_norm(second, 1.0) + shortcut, f64::from(SLOPE))
    }
}

/// One level on the way down.
#[derive(Module, Debug)]
pub(super) struct Encoder {
    layer: ResidualBlock,
}

impl Encoder {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { layer: ResidualBlock::new(input, output, device) }
    }

    pub(super) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.layer.forward(x)
    }
}

/// One level on the way up: doubles the resolution and joins the skip connection, the upsampled channels first.
#[derive(Module, Debug)]
pub(super) struct Decoder {
    transp_conv: TransposedConv,
    conv_block: ResidualBlock,
}

impl Decoder {
    pub(super) fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            transp_conv: TransposedConv { conv: PlainUpConv3d::new(input, output, device) },
            conv_block: ResidualBlock::new(2 * output, output, device),
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, skip: Tensor<5>) -> Tensor<5> {
        self.conv_block.forward_pair(self.transp_conv.conv.forward(x), skip)
    }
}
