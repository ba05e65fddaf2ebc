//! The cost of the Swin UNETR of specification §9.

use super::{BLOCK, Cost, Stage, TAPS, map, norm, products, trained, voxels};
use crate::kernels::windows::{OFFSETS, SIDE};
use crate::model::backbone::swin_unetr::{HEADS, MLP_RATIO};

const LAYERS: [&str; 4] = ["swinViT.layers1", "swinViT.layers2", "swinViT.layers3", "swinViT.layers4"];

/// Stages of a Swin UNETR of width `c`, for a patch with these sides.
pub(super) fn stages(c: u64, sides: [u64; 3]) -> Vec<Stage> {
    let at = |halvings| voxels(sides, halvings);
    let stage = |name, cost| Stage { name, cost };
    let mut stages = vec![stage("swinViT.patch_embed", map(BLOCK, 1, c, at(1)) + trained(c))];
    for (i, (name, heads)) in LAYERS.into_iter().zip(HEADS).enumerate() {
        let width = c << i;
        let block = block(width, heads as u64, sides.map(|side| side >> (i + 1)));
        stages.push(stage(name, block + block + merging(width, at(i + 2))));
    }
    stages.extend([
        stage("encoder1", residual(1, c, at(0))),
        stage("encoder2", residual(c, c, at(1))),
        stage("encoder3", residual(2 * c, 2 * c, at(2))),
        stage("encoder4", residual(4 * c, 4 * c, at(3))),
        stage("encoder10", residual(16 * c, 16 * c, at(5))),
        stage("decoder5", decoder(16 * c, 8 * c, at(5))),
        stage("decoder4", decoder(8 * c, 4 * c, at(4))),
        stage("decoder3", decoder(4 * c, 2 * c, at(3))),
        stage("decoder2", decoder(2 * c, c, at(2))),
        stage("decoder1", decoder(c, c, at(1))),
    ]);
    stages
}

/// Two normalisations, attention and the network of each token.
fn block(width: u64, heads: u64, space: [u64; 3]) -> Cost {
    let tokens: u64 = space.iter().product();
    let linear = |input, output| map(1, input, output, tokens) + trained(output);
    let hidden = MLP_RATIO as u64 * width;
    let table = trained(OFFSETS as u64 * heads);
    let maps = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)];
    let maps: Cost = maps.into_iter().map(|(input, output)| linear(input, output)).sum();
    norm(width) + norm(width) + table + maps + products(attention_products(width, space))
}

/// Scores of each two tokens of a window, then as many products to mix the values; the heads share the width.
fn attention_products(width: u64, space: [u64; 3]) -> u64 {
    let (count, tokens) = windows(space);
    2 * count * tokens * tokens * width
}

/// Number of windows over a volume, and of tokens in each, padding among them. Shifting changes neither.
pub(super) fn windows(space: [u64; 3]) -> (u64, u64) {
    let side = |length: u64| length.min(SIDE as u64);
    let count = space.iter().map(|&length| length.div_ceil(side(length))).product();
    (count, space.iter().map(|&length| side(length)).product())
}

/// Eight tokens become one of twice the width.
fn merging(width: u64, tokens_after: u64) -> Cost {
    norm(8 * width) + map(1, 8 * width, 2 * width, tokens_after)
}

/// Normalisations of the convolutional half have no parameters, its convolutions no bias.
fn residual(input: u64, output: u64, voxels: u64) -> Cost {
    let shortcut = if input == output { Cost::default() } else { map(1, input, output, voxels) };
    map(TAPS, input, output, voxels) + map(TAPS, output, output, voxels) + shortcut
}

/// From `coarse` voxels to eight times as many.
fn decoder(input: u64, output: u64, coarse: u64) -> Cost {
    map(BLOCK, input, output, coarse) + residual(2 * output, output, 8 * coarse)
}
