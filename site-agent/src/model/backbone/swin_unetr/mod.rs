//! The Swin UNETR backbone (Hatamizadeh et al., 2022), of any width that is a multiple of 12 (48 in the paper), as MONAI 0.9.0
//! builds it: a transformer on the way down, residual convolutions beside it and on the way up.
//!
//! Field names are the reference's parameter names.

mod attention;
mod cuts;
mod merging;
mod residual;
mod transformer;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use common::study::sections::PatchMerging;

pub(in crate::model) use self::transformer::{HEADS, MLP_RATIO};
pub use self::{merging::Downsample, transformer::Block};
use self::{
    residual::{Decoder, Encoder},
    transformer::SwinTransformer,
};
use super::{FeatureExtractor, Features, Show};
use crate::model::layers::Samples;

/// The backbone.
#[derive(Module, Debug)]
pub(in crate::model) struct SwinUnetr {
    swin_vit: SwinTransformer,
    encoder1: Encoder,
    encoder2: Encoder,
    encoder3: Encoder,
    encoder4: Encoder,
    encoder10: Encoder,
    decoder5: Decoder,
    decoder4: Decoder,
    decoder3: Decoder,
    decoder2: Decoder,
    decoder1: Decoder,
}

impl SwinUnetr {
    pub(super) fn new(width: usize, merging: PatchMerging, device: &Device) -> Self {
        let (c, encoder) = (width, |input, output| Encoder::new(input, output, device));
        let decoder = |input, output| Decoder::new(input, output, device);
        Self {
            swin_vit: SwinTransformer::new(c, merging, device),
            encoder1: encoder(1, c),
            encoder2: encoder(c, c),
            encoder3: encoder(2 * c, 2 * c),
            encoder4: encoder(4 * c, 4 * c),
            encoder10: encoder(16 * c, 16 * c),
            decoder5: decoder(16 * c, 8 * c),
            decoder4: decoder(8 * c, 4 * c),
            decoder3: decoder(4 * c, 2 * c),
            decoder2: decoder(2 * c, c),
            decoder1: decoder(c, c),
        }
    }
}

impl FeatureExtractor for SwinUnetr {
    fn channels(width: usize) -> (usize, usize) {
        (16 * width, width)
    }

    fn forward(&self, x: Tensor<5>, samples: Samples, show: &mut Show<'_>) -> Features {
        let hidden = match samples {
            Samples::Together => self.swin_vit.forward(x.clone(), show),
            Samples::Apart => self.swin_vit.forward_apart(x.clone(), show),
        };
        for (name, hidden) in ["hidden0", "hidden1", "hidden2", "hidden3", "hidden4"].into_iter().zip(&hidden)
        {
            show(name, hidden);
        }
        let [hidden0, hidden1, hidden2, hidden3, hidden4] = hidden;
        let mut seen = |name: &'static str, x: Tensor<5>| {
            show(name, &x);
            x
        };
        let skip1 = seen("encoder1", self.encoder1.forward(x));
        let skip2 = seen("encoder2", self.encoder2.forward(hidden0));
        let skip3 = seen("encoder3", self.encoder3.forward(hidden1));
        let skip4 = seen("encoder4", self.encoder4.forward(hidden2));
        let bottleneck = seen("encoder10", self.encoder10.forward(hidden4));
        let x = seen("decoder5", self.decoder5.forward(bottleneck.clone(), hidden3));
        let x = seen("decoder4", self.decoder4.forward(x, skip4));
        let x = seen("decoder3", self.decoder3.forward(x, skip3));
        let x = seen("decoder2", self.decoder2.forward(x, skip2));
        let decoder = seen("decoder1", self.decoder1.forward(x, skip1));
        Features { bottleneck, decoder }
    }
}
