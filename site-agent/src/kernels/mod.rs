//! CPU kernels for 3-D convolution networks: plain functions over slices of `f32`, no tensor library.
//!
//! One generic kernel (`micro`) is compiled for AVX-512, for AVX2 with FMA and for any CPU; [`isa`] picks one at run
//! time. Work is cut into tasks whose number and order of additions depend on the shape alone, so the bits of a result
//! do not depend on the number of threads. `model::ops` binds these functions to automatic differentiation.
//!
//! Layout outside this folder: `[n, channel, x, y, z]`, C order. Inside: channels last with a halo of one zero voxel
//! (`pack`), so that a 3×3×3 window needs no bounds check and no im2col buffer.
#![expect(
    unsafe_code,
    reason = "calls into functions compiled for an instruction set that was detected at run time, and one to the allocator"
)]

pub mod adamw;
pub mod attention;
pub mod conv1;
pub mod conv3;
pub mod gelu;
pub mod isa;
pub mod layer_norm;
pub mod masked_loss;
pub mod memory;
mod micro;
pub mod norm_relu;
mod pack;
pub mod pool2;
pub mod segmentor;
mod transcendental;
pub mod up2;
pub mod windows;

/// Extent of a batch of volumes: `[n, channels, x, y, z]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Volumes in the batch.
    pub n: usize,
    /// Channels of each volume.
    pub channels: usize,
    /// Voxels along each axis.
    pub space: [usize; 3],
}

impl Extent {
    /// Voxels of one channel of one volume.
    pub fn voxels(&self) -> usize {
        self.space.iter().product()
    }

    /// Numbers in all.
    pub fn len(&self) -> usize {
        self.n * self.channels * self.voxels()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same batch with another number of channels.
    pub fn with_channels(self, channels: usize) -> Self {
        Self { channels, ..self }
    }
}
