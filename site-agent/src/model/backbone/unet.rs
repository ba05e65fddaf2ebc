//! The U-Net backbone of any width (32 in the paper): three poolings, no output convolution.
//!
//! Field names are the reference's parameter names.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use super::{FeatureExtractor, Features, Show};
use crate::model::{
    layers::{BatchNorm, Conv3d, Samples, UpConv3d},
    ops,
};

/// Convolution, batch normalisation, ReLU.
#[derive(Module, Debug)]
struct ConvUnit {
    conv1: Conv3d,
    bn1: BatchNorm,
}

impl ConvUnit {
    fn new(input: usize, output: usize, device: &Device) -> Self {
        Self { conv1: Conv3d::new(input, output, device), bn1: BatchNorm::new(output, device) }
    }

    fn forward(&self, x: Tensor<5>, samples: Samples) -> Tensor<5> {
        self.bn1.forward_relu(self.conv1.forward(x), samples)
    }

    fn forward_pair(&self, a: Tensor<5>, b: Tensor<5>, samples: Samples) -> Tensor<5> {
        self.bn1.forward_relu(self.conv1.forward_pair(a, b), samples)
    }
}

/// Two units at one resolution; pooling is done by the caller, who keeps the output as skip connection.
#[derive(Module, Debug)]
struct Down {
    ops: Vec<ConvUnit>,
}

impl Down {
    fn new([input, middle, output]: [usize; 3], device: &Device) -> Self {
        Self { ops: vec![ConvUnit::new(input, middle, device), ConvUnit::new(middle, output, device)] }
    }

    fn forward(&self, x: Tensor<5>, samples: Samples) -> Tensor<5> {
        self.ops.iter().fold(x, |x, unit| unit.forward(x, samples))
    }
}

/// Doubles the resolution, joins the skip connection (upsampled channels first), two units.
#[derive(Module, Debug)]
struct Up {
    up_conv: UpConv3d,
    ops: [ConvUnit; 2],
}

impl Up {
    fn new(input: usize, output: usize, device: &Device) -> Self {
        // The skip connection of a stage has as many channels as the stage puts out.
        let units = [ConvUnit::new(input + output, output, device), ConvUnit::new(output, output, device)];
        Self { up_conv: UpConv3d::new(input, device), ops: units }
    }

    fn forward(&self, x: Tensor<5>, skip: Tensor<5>, samples: Samples) -> Tensor<5> {
        let [first, second] = &self.ops;
        second.forward(first.forward_pair(self.up_conv.forward(x), skip, samples), samples)
    }
}

/// The backbone.
#[derive(Module, Debug)]
pub(in crate::model) struct UNet {
    down_tr64: Down,
    down_tr128: Down,
    down_tr256: Down,
    down_tr512: Down,
    up_tr256: Up,
    up_tr128: Up,
    up_tr64: Up,
}

impl UNet {
    pub(super) fn new(width: usize, device: &Device) -> Self {
        let w = width;
        Self {
            down_tr64: Down::new([1, w, 2 * w], device),
            down_tr128: Down::new([2 * w, 2 * w, 4 * w], device),
            down_tr256: Down::new([4 * w, 4 * w, 8 * w], device),
            down_tr512: Down::new([8 * w, 8 * w, 16 * w], device),
            up_tr256: Up::new(16 * w, 8 * w, device),
            up_tr128: Up::new(8 * w, 4 * w, device),
            up_tr64: Up::new(4 * w, 2 * w, device),
        }
    }
}

impl FeatureExtractor for UNet {
    fn channels(width: usize) -> (usize, usize) {
        (16 * width, 2 * width)
    }

    /// A stage of the encoder ends with its pooling.
    fn forward(&self, x: Tensor<5>, samples: Samples, show: &mut Show<'_>) -> Features {
        let skip1 = self.down_tr64.forward(x, samples);
        let x = ops::max_pool(skip1.clone());
        show("down_tr64", &x);
        let skip2 = self.down_tr128.forward(x, samples);
        let x = ops::max_pool(skip2.clone());
        show("down_tr128", &x);
        let skip3 = self.down_tr256.forward(x, samples);
        let x = ops::max_pool(skip3.clone());
        show("down_tr256", &x);
        let bottleneck = self.down_tr512.forward(x, samples);
        show("down_tr512", &bottleneck);
        let x = self.up_tr256.forward(bottleneck.clone(), skip3, samples);
        show("up_tr256", &x);
        let x = self.up_tr128.forward(x, skip2, samples);
        show("up_tr128", &x);
        let decoder = self.up_tr64.forward(x, skip1, samples);
        show("up_tr64", &decoder);
        Features { bottleneck, decoder }
    }
}
