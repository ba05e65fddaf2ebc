//! The hierarchical vision transformer: patch embedding and four stages, each of two blocks and a merging.

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use common::study::sections::PatchMerging;

use super::attention::WindowAttention;
use super::cuts::Cuts;
use super::merging::Downsample;
use crate::model::backbone::Show;
use crate::model::layers::{LayerNorm, Linear, PatchEmbedding, plain_layer_norm};
use crate::model::ops;

/// Width of the hidden layer of a block, in widths of the block.
pub(in crate::model) const MLP_RATIO: usize = 4;
/// Heads of each stage.
pub(in crate::model) const HEADS: [usize; 4] = [3, 6, 12, 24];

#[derive(Module, Debug)]
struct Mlp {
    linear1: Linear,
    linear2: Linear,
}

/// Attention within windows, then a small network for each token; both add to their input.
#[derive(Module, Debug)]
pub struct Block {
    norm1: LayerNorm,
    attn: WindowAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    #[module(skip)]
    cuts: Cuts,
}

impl Block {
    /// A block of zeros.
    pub fn new(width: usize, heads: usize, device: &Device) -> Self {
        Self {
            norm1: LayerNorm::new(width, device),
            attn: WindowAttention::new(width, heads, device),
            norm2: LayerNorm::new(width, device),
            mlp: Mlp {
                linear1: Linear::new(width, MLP_RATIO * width, device),
                linear2: Linear::new(MLP_RATIO * width, width, device),
            },
            cuts: Cuts::default(),
        }
    }

    /// `[n, voxels, width]`, shape kept; the voxels are those of a volume with the sides `space`.
    pub fn forward(&self, x: Tensor<3>, space: [usize; 3], shifted: bool) -> Tensor<3> {
        let windows = self.cuts.of(space, shifted);
        let x = x.clone() + self.attn.forward(self.norm1.forward(x), &windows);
        let hidden = ops::gelu(self.mlp.linear1.forward(self.norm2.forward(x.clone())));
        x + self.mlp.linear2.forward(hidden)
    }
}

#[derive(Module, Debug)]
struct Stage {
    blocks: [Block; 2],
    downsample: Downsample,
}

impl Stage {
    fn new(width: usize, heads: usize, merging: PatchMerging, device: &Device) -> Self {
        let block = || Block::new(width, heads, device);
        Self { blocks: [block(), block()], downsample: Downsample::new(width, merging, device) }
    }

    /// `name` is the reference's; `show` sees the volumes channels last, `[n, x, y, z, c]`.
    fn forward(&self, mut x: Tokens, name: &'static [&'static str; 3], show: &mut Show<'_>) -> Tokens {
        for (index, block) in self.blocks.iter().enumerate() {
            x.values = block.forward(x.values, x.space, index % 2 == 1);
            show(name[index], &x.volume());
        }
        let merged = Tokens {
            values: self.downsample.forward(x.values, x.space),
            space: x.space.map(|side| side / 2),
        };
        show(name[2], &merged.channels_first());
        merged
    }
}

/// A volume as a list of tokens, `[n, x · y · z, c]`.
#[derive(Clone, Debug)]
struct Tokens {
    values: Tensor<3>,
    space: [usize; 3],
}

impl Tokens {
    /// `[n, x, y, z, c]`.
    fn volume(&self) -> Tensor<5> {
        let ([n, _, c], [x, y, z]) = (self.values.dims(), self.space);
        self.values.clone().reshape([n, x, y, z, c])
    }

    /// `[n, c, x, y, z]`.
    fn channels_first(&self) -> Tensor<5> {
        let ([n, _, c], [x, y, z]) = (self.values.dims(), self.space);
        self.values.clone().swap_dims(1, 2).reshape([n, c, x, y, z])
    }

    /// What the convolutions read: each token normalised over its channels, without parameters.
    fn hidden(&self) -> Tensor<5> {
        Self { values: plain_layer_norm(self.values.clone()), space: self.space }.channels_first()
    }
}

/// The transformer.
#[derive(Module, Debug)]
pub(super) struct SwinTransformer {
    patch_embed: PatchEmbed,
    layers1: [Stage; 1],
    layers2: [Stage; 1],
    layers3: [Stage; 1],
    layers4: [Stage; 1],
}

#[derive(Module, Debug)]
struct PatchEmbed {
    proj: PatchEmbedding,
}

/// The reference's names of what a stage puts out: its two blocks, and the merging.
const NAMES: [[&str; 3]; 4] = [
    ["swinViT.layers1.0.blocks.0", "swinViT.layers1.0.blocks.1", "swinViT.layers1.0"],
    ["swinViT.layers2.0.blocks.0", "swinViT.layers2.0.blocks.1", "swinViT.layers2.0"],
    ["swinViT.layers3.0.blocks.0", "swinViT.layers3.0.blocks.1", "swinViT.layers3.0"],
    ["swinViT.layers4.0.blocks.0", "swinViT.layers4.0.blocks.1", "swinViT.layers4.0"],
];

impl SwinTransformer {
    pub(super) fn new(width: usize, merging: PatchMerging, device: &Device) -> Self {
        let stage = |index: usize| [Stage::new(width << index, HEADS[index], merging, device)];
        Self {
            patch_embed: PatchEmbed { proj: PatchEmbedding::new(width, device) },
            layers1: stage(0),
            layers2: stage(1),
            layers3: stage(2),
            layers4: stage(3),
        }
    }

    /// `[n, 1, x, y, z]`, sides multiples of 32, to the five hidden volumes: `[n, width, x/2, …]` to `[n, 16 width, x/32, …]`.
    pub(super) fn forward(&self, x: Tensor<5>, show: &mut Show<'_>) -> [Tensor<5>; 5] {
        let [_, _, sx, sy, sz] = x.dims();
        let space = [sx / 2, sy / 2, sz / 2];
        let embedded = Tokens { values: self.patch_embed.proj.forward(x), space };
        show("swinViT.patch_embed", &embedded.channels_first());
        let stages = [&self.layers1, &self.layers2, &self.layers3, &self.layers4];
        let [first, second, third, fourth] = stages;
        let one = first[0].forward(embedded.clone(), &NAMES[0], show);
        let two = second[0].forward(one.clone(), &NAMES[1], show);
        let three = third[0].forward(two.clone(), &NAMES[2], show);
        let four = fourth[0].forward(three.clone(), &NAMES[3], show);
        [embedded, one, two, three, four].map(|tokens| tokens.hidden())
    }

    /// As [`Self::forward`], a sample at a time: nothing is normalised over samples here, but how burn rounds a product depends
    /// on its number of rows.
    pub(super) fn forward_apart(&self, x: Tensor<5>, show: &mut Show<'_>) -> [Tensor<5>; 5] {
        if x.dims()[0] == 1 {
            return self.forward(x, show);
        }
        let of_samples: Vec<[Tensor<5>; 5]> =
            x.split(1, 0).into_iter().map(|sample| self.forward(sample, show)).collect();
        std::array::from_fn(|level| {
            Tensor::cat(of_samples.iter().map(|hidden| hidden[level].clone()).collect(), 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::parameters;

    #[test]
    fn a_block_with_other_values_does_not_cut_its_windows_anew() {
        let (space, device) = ([4, 5, 9], Device::flex());
        let block = Block::new(12, 3, &device);
        let x = Tensor::<3>::zeros([1, 4 * 5 * 9, 12], &device);
        assert_eq!(block.forward(x.clone(), space, true).dims(), [1, 4 * 5 * 9, 12]);
        let windows = block.cuts.of(space, true);
        let stepped = parameters::update(block, |_, values| values);
        assert_eq!(stepped.forward(x, space, true).dims(), [1, 4 * 5 * 9, 12]);
        assert!(Arc::ptr_eq(&windows, &stepped.cuts.of(space, true)));
        // In the block that keeps them, and here: the passes are over.
        assert_eq!(Arc::strong_count(&windows), 2);
    }
}
