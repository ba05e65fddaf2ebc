//! Channels-last copies with a halo, and weights in panels: the layouts that the inner loops read straight through.

use rayon::prelude::*;

use super::Extent;

/// A volume with one zero voxel around it, seen as a flat list of voxels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halo {
    space: [usize; 3],
}

impl Halo {
    pub(super) fn new(space: [usize; 3]) -> Self {
        Self { space }
    }

    /// Distance of voxels that are neighbours along y.
    pub(super) fn line(self) -> usize {
        self.space[2] + 2
    }

    /// Distance of voxels that are neighbours along x.
    pub(super) fn plane(self) -> usize {
        (self.space[1] + 2) * self.line()
    }

    /// Voxels with the halo.
    pub(super) fn voxels(self) -> usize {
        (self.space[0] + 2) * self.plane()
    }

    /// Position of voxel `[x, y, 0]` of the volume proper.
    pub(super) fn position(self, x: usize, y: usize) -> usize {
        (x + 1) * self.plane() + (y + 1) * self.line() + 1
    }
}

/// `[n, channels, x, y, z]` → per volume, `[voxel with halo][stride]`; channels past the last are zero.
pub(super) fn channels_last(values: &[f32], extent: Extent, stride: usize) -> Vec<f32> {
    let halo = Halo::new(extent.space);
    let [_, ny, nz] = extent.space;
    let voxels = extent.voxels();
    let mut packed = vec![0.0; extent.n * halo.voxels() * stride];
    let planes = packed.par_chunks_mut(halo.plane() * stride).enumerate();
    planes.for_each(|(index, plane)| {
        let (n, x) = (index / (extent.space[0] + 2), index % (extent.space[0] + 2));
        if x == 0 || x > extent.space[0] {
            return;
        }
        for channel in 0..extent.channels {
            let from = &values[(n * extent.channels + channel) * voxels + (x - 1) * ny * nz..][..ny * nz];
            for (y, line) in from.chunks_exact(nz).enumerate() {
                let to = &mut plane[((y + 1) * halo.line() + 1) * stride + channel..];
                for (cell, &value) in to.iter_mut().step_by(stride).zip(line) {
                    *cell = value;
                }
            }
        }
    });
    packed
}

/// `[n][x, y, z][stride]` without halo → `[n, channels, x, y, z]`, each channel with its bias added.
pub(super) fn channels_first(
    values: &[f32],
    extent: Extent,
    stride: usize,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let voxels = extent.voxels();
    let mut out = vec![0.0; extent.len()];
    out.par_chunks_mut(voxels).enumerate().for_each(|(index, to)| {
        let (n, channel) = (index / extent.channels, index % extent.channels);
        let bias = bias.map_or(0.0, |bias| bias[channel]);
        let from = &values[n * voxels * stride + channel..];
        for (cell, &value) in to.iter_mut().zip(from.iter().step_by(stride)) {
            *cell = value + bias;
        }
    });
    out
}

/// Taps of a 3×3×3 window.
pub(super) const TAPS: usize = 27;

/// `[out, in, 27]` → panels of `columns` outputs: `[panel][tap][in][columns]`, outputs past the last are zero.
pub(super) fn panels(weights: &[f32], outs: usize, ins: usize, columns: usize) -> Vec<f32> {
    panels_by(outs, ins, columns, |o, i, tap| weights[(o * ins + i) * TAPS + tap])
}

/// The panels of the transposed convolution: inputs and outputs change places and the window is mirrored.
pub(super) fn mirrored_panels(weights: &[f32], outs: usize, ins: usize, columns: usize) -> Vec<f32> {
    panels_by(ins, outs, columns, |i, o, tap| weights[(o * ins + i) * TAPS + (TAPS - 1 - tap)])
}

fn panels_by(
    outs: usize,
    ins: usize,
    columns: usize,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<f32> {
    let size = TAPS * ins * columns;
    let mut packed = vec![0.0; outs.div_ceil(columns) * size];
    packed.par_chunks_mut(size).enumerate().for_each(|(panel, to)| {
        for (row, cells) in to.chunks_exact_mut(columns).enumerate() {
            let (tap, i) = (row / ins, row % ins);
            for (cell, o) in cells.iter_mut().zip(panel * columns..outs) {
                *cell = weight(o, i, tap);
            }
        }
    });
    packed
}
