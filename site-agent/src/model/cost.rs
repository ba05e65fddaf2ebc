//! What a network costs: its trainable numbers and the multiply-adds of one patch, by stage, from the configuration alone.
//!
//! No tensor is made. A multiply-add is one product that is added to a sum: two floating-point operations. Counted are the
//! products of convolutions, linear maps and attention (scores, and the mixing of values) as our kernels do them: a
//! convolution at a border multiplies its zeros too; of windows that reach past the volume only the voxels are mapped, but
//! all tokens attend. Not counted are biases, normalisations, activations, softmax and pooling, nor how windows are blended.

mod head;
mod swin_unetr;
mod unet;

use std::iter::Sum;
use std::ops::Add;

use super::{Backbone, ModelConfig, ModelError, backbone};

/// Taps of a 3x3x3 convolution.
const TAPS: u64 = 27;
/// Taps of a convolution, transposed or not, that takes or makes blocks of 2x2x2.
const BLOCK: u64 = 8;

/// Cost of a part of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Trainable numbers.
    pub parameters: u64,
    /// Products of the forward pass of one patch.
    pub multiply_adds: u64,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parameters: self.parameters + other.parameters,
            multiply_adds: self.multiply_adds + other.multiply_adds,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

/// A stage of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The reference's name.
    pub name: &'static str,
    /// What it costs.
    pub cost: Cost,
}

/// What a model costs for one patch, its two parts by stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCost {
    /// Stages of the backbone.
    pub backbone: Vec<Stage>,
    /// Stages of the head, all classes together.
    pub head: Vec<Stage>,
}

impl ModelCost {
    /// The cost of one patch with the sides `[x, y, z]`, in voxels, asked for every class of the embeddings.
    ///
    /// # Errors
    ///
    /// [`ModelError`] if the configuration is impossible or the patch does not suit its backbone.
    pub fn of(config: &ModelConfig, patch: [usize; 3]) -> Result<Self, ModelError> {
        config.validate()?;
        config.check_patch(patch)?;
        let (width, sides) = (config.width as u64, patch.map(|side| side as u64));
        let backbone = match config.backbone {
            Backbone::Unet => unet::stages(width, sides),
            Backbone::SwinUnetr => swin_unetr::stages(width, sides),
        };
        let (bottleneck, decoder) = backbone::channels(config);
        let head =
            head::stages([bottleneck, decoder].map(|n| n as u64), &config.embedding, sides.iter().product());
        Ok(Self { backbone, head })
    }

    /// Backbone and head together.
    pub fn total(&self) -> Cost {
        total(&self.backbone) + total(&self.head)
    }
}

/// The sum of some stages.
pub fn total(stages: &[Stage]) -> Cost {
    stages.iter().map(|stage| stage.cost).sum()
}

/// A linear map from `input` channels at each of `taps` neighbours to `output` channels, at `places`, without bias. The
/// places of a transposed convolution are those before it: each hands a product to every tap.
fn map(taps: u64, input: u64, output: u64, places: u64) -> Cost {
    let weights = taps * input * output;
    Cost { parameters: weights, multiply_adds: weights * places }
}

/// Numbers that are trained and multiply nothing that counts: biases, normalisations, tables.
fn trained(numbers: u64) -> Cost {
    Cost { parameters: numbers, multiply_adds: 0 }
}

/// Products of two activations, or of an activation and a generated number.
fn products(count: u64) -> Cost {
    Cost { parameters: 0, multiply_adds: count }
}

/// Scale and shift of each channel.
fn norm(channels: u64) -> Cost {
    trained(2 * channels)
}

/// Voxels of a patch after `halvings` of each side.
fn voxels(sides: [u64; 3], halvings: usize) -> u64 {
    sides.iter().map(|side| side >> halvings).product()
}

#[cfg(test)]
mod tests;
