//! Feature extractors: what turns a patch into the bottleneck and the decoder's output that the head reads.
//!
//! To add one: a variant of the study's [`Backbone`], which says what its widths and patches must be and what its first tensor is
//! called. The compiler then asks for a variant of [`BackboneNetwork`], with a folder or file here that implements
//! [`FeatureExtractor`], and for a count of its operations in `model/cost`. What it does not ask for: how the names of its
//! tensors begin (`model/checkpoint/layout.rs`, and `model/parameters.rs` where ours differ from the reference's), a file in
//! `configs/models`, and a network of the demo (`coordinator/src/demo/study.rs`).

pub(super) mod swin_unetr;
mod unet;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use common::study::sections::Backbone;

use self::{swin_unetr::SwinUnetr, unet::UNet};
use super::config::ModelConfig;
use super::layers::Samples;

/// What a backbone hands to the head.
#[derive(Clone, Debug)]
pub struct Features {
    /// `[n, channels, x/8, y/8, z/8]`, or `x/32` and so on of a Swin UNETR.
    pub bottleneck: Tensor<5>,
    /// `[n, channels, x, y, z]`.
    pub decoder: Tensor<5>,
}

/// Looks at the output of a stage, which has the reference's name.
pub(super) type Show<'a> = dyn FnMut(&'static str, &Tensor<5>) + 'a;

/// A network from patches to features.
pub(super) trait FeatureExtractor {
    /// Number of channels of the bottleneck and of the decoder's output.
    fn channels(width: usize) -> (usize, usize);

    /// `[n, 1, x, y, z]` to features; `show` sees each stage, in the order of the forward pass.
    fn forward(&self, x: Tensor<5>, samples: Samples, show: &mut Show<'_>) -> Features;
}

/// The backbone of a model.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "one of them in a process, and a module cannot be boxed")]
pub(super) enum BackboneNetwork {
    Unet(UNet),
    SwinUnetr(SwinUnetr),
}

impl BackboneNetwork {
    /// A backbone of zeros.
    pub(super) fn new(config: &ModelConfig, device: &Device) -> Self {
        match config.backbone {
            Backbone::Unet => Self::Unet(UNet::new(config.width, device)),
            Backbone::SwinUnetr => {
                Self::SwinUnetr(SwinUnetr::new(config.width, config.patch_merging, device))
            }
        }
    }

    pub(super) fn forward(&self, x: Tensor<5>, samples: Samples, show: &mut Show<'_>) -> Features {
        match self {
            Self::Unet(network) => network.forward(x, samples, show),
            Self::SwinUnetr(network) => network.forward(x, samples, show),
        }
    }
}

/// Number of channels of the bottleneck and of the decoder's output.
pub(super) fn channels(config: &ModelConfig) -> (usize, usize) {
    match config.backbone {
        Backbone::Unet => UNet::channels(config.width),
        Backbone::SwinUnetr => SwinUnetr::channels(config.width),
    }
}
