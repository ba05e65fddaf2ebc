//! Attention within windows, with a learned bias for each relative position.

use std::sync::Arc;

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

use crate::kernels::windows::{OFFSETS, Windows};
use crate::model::layers::{Linear, zeros};
use crate::model::ops;

/// Multi-head attention of the tokens of each window.
#[derive(Module, Debug)]
pub(super) struct WindowAttention {
    relative_position_bias_table: Param<Tensor<2>>,
    qkv: Linear,
    proj: Linear,
}

impl WindowAttention {
    /// `width` is a multiple of `heads`.
    pub(super) fn new(width: usize, heads: usize, device: &Device) -> Self {
        Self {
            relative_position_bias_table: zeros([OFFSETS, heads], device),
            qkv: Linear::new(width, 3 * width, device),
            proj: Linear::new(width, width, device),
        }
    }

    /// `[n, voxels, width]`, shape kept. The padding of windows is zero before the first map, so that its queries, keys and
    /// values are that map's bias: only voxels are mapped.
    pub(super) fn forward(&self, x: Tensor<3>, windows: &Arc<Windows>) -> Tensor<3> {
        let qkv = self.qkv.forward(x);
        let table = self.relative_position_bias_table.val();
        self.proj.forward(ops::window_attention(qkv, self.qkv.bias(), table, windows))
    }
}
