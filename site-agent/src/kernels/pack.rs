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
    let mut packed = vec![0.0; extent.n * halo.voxels() * stride];
    let planes = packed.par_chunks_mut(halo.plane() * stride).enumerate();
    planes.for_each(|(index, plane)| {
        let (n, x) = (index / (extent.space[0] + 2), index % (extent.space[0] + 2));
        if x == 0 || x > extent.space[0] {
            return;
        }
        for y in 0..ny {
            let to = &mut plane[((y + 1) * halo.line() + 1) * stride..][..nz * stride];
            interleave_line(values, extent, [n, x - 1, y], to, stride);
        }
    });
    packed
}

/// `[n, channels, x, y, z]` → `[n · x · y · z][stride]`, without a halo; channels past the last are zero.
pub(super) fn voxel_rows(values: &[f32], extent: Extent, stride: usize) -> Vec<f32> {
    let [nx, ny, nz] = extent.space;
    let mut packed = vec![0.0; extent.n * extent.voxels() * stride];
    packed.par_chunks_mut(nz * stride).enumerate().for_each(|(index, line)| {
        let at = [index / (nx * ny), index / ny % nx, index % ny];
        interleave_line(values, extent, at, line, stride);
    });
    packed
}

/// Writes line `[n, x, y]` of all channels to `to`, a row of `stride` for each voxel. Channels are the inner loop: the rows
/// that all of them are written to stay in the nearest cache.
fn interleave_line(values: &[f32], extent: Extent, [n, x, y]: [usize; 3], to: &mut [f32], stride: usize) {
    let [_, ny, nz] = extent.space;
    let line = |channel: usize| {
        &values[(n * extent.channels + channel) * extent.voxels() + (x * ny + y) * nz..][..nz]
    };
    let mut channel = 0;
    while channel + GROUP <= extent.channels {
        interleave::<GROUP>(to, stride, channel, std::array::from_fn(|c| line(channel + c)));
        channel += GROUP;
    }
    while channel < extent.channels {
        interleave(to, stride, channel, [line(channel)]);
        channel += 1;
    }
}

/// Channels that are interleaved at once: one store for all of them.
const GROUP: usize = 8;

/// Writes `lines` side by side: value `v` of line `c` to `to[v][channel + c]`, rows of `to` being `stride` long.
fn interleave<const C: usize>(to: &mut [f32], stride: usize, channel: usize, lines: [&[f32]; C]) {
    for (v, cells) in to.chunks_exact_mut(stride).enumerate() {
        let values: [f32; C] = std::array::from_fn(|c| lines[c][v]);
        cells[channel..channel + C].copy_from_slice(&values);
    }
}

/// The planes of a batch, each `[channels, y, z]`, in the order `[n, x]` → `[n, channels, x, y, z]`.
pub(super) fn channels_first(planes: &[Vec<f32>], extent: Extent) -> Vec<f32> {
    let [nx, ny, nz] = extent.space;
    let mut out = Vec::with_capacity(extent.len());
    for volume in planes.chunks_exact(nx) {
        for channel in 0..extent.channels {
            for plane in volume {
                out.extend_from_slice(&plane[channel * ny * nz..][..ny * nz]);
            }
        }
    }
    out
}

/// Appends the first columns of `rows` of `columns`, as many as there are biases, one after the other with its bias added.
pub(super) fn append_columns(to: &mut Vec<f32>, rows: &[f32], columns: usize, bias: &[f32]) {
    for (column, &bias) in bias.iter().enumerate() {
        to.extend(rows.chunks_exact(columns).map(|row| row[column] + bias));
    }
}

/// A matrix `[rows, columns]` → panels of `width` columns: `[panel][row][width]`, columns past the last are zero.
pub(super) fn matrix_panels(
    rows: usize,
    columns: usize,
    width: usize,
    value: impl Fn(usize, usize) -> f32 + Sync,
) -> Vec<f32> {
    let mut packed = vec![0.0; columns.div_ceil(width) * rows * width];
    packed.par_chunks_mut(rows * width).enumerate().for_each(|(panel, to)| {
        for (row, cells) in to.chunks_exact_mut(width).enumerate() {
            for (cell, column) in cells.iter_mut().zip(panel * width..columns) {
                *cell = value(row, column);
            }
        }
    });
    packed
}

/// Taps of a 3×3×3 window.
pub(super) const TAPS: usize = 27;

/// `[out, in, 27]` → panels of `columns` outputs: `[panel][tap][in][columns]`, outputs past the last are zero.
pub(super) fn panels(weights: &[f32], outs: usize, ins: usize, columns: usize) -> Vec<f32> {
    panels_by(outs, ins, columns, |o, i| &weights[(o * ins + i) * TAPS..][..TAPS], |tap| tap)
}

/// The panels of the transposed convolution: inputs and outputs change places and the window is mirrored.
pub(super) fn mirrored_panels(weights: &[f32], outs: usize, ins: usize, columns: usize) -> Vec<f32> {
    panels_by(ins, outs, columns, |i, o| &weights[(o * ins + i) * TAPS..][..TAPS], |tap| TAPS - 1 - tap)
}

/// The windows of one input go through a small square where they are turned: both big arrays are met in runs.
fn panels_by<'a>(
    outs: usize,
    ins: usize,
    columns: usize,
    window: impl Fn(usize, usize) -> &'a [f32] + Sync,
    place: impl Fn(usize) -> usize + Sync,
) -> Vec<f32> {
    let size = TAPS * ins * columns;
    let mut packed = vec![0.0; outs.div_ceil(columns) * size];
    packed.par_chunks_mut(size).enumerate().for_each(|(panel, to)| {
        let mut turned = vec![0.0; TAPS * columns];
        for i in 0..ins {
            for (column, o) in (panel * columns..outs).take(columns).enumerate() {
                for (tap, &weight) in window(o, i).iter().enumerate() {
                    turned[tap * columns + column] = weight;
                }
            }
            for (tap, row) in turned.chunks_exact(columns).enumerate() {
                to[(place(tap) * ins + i) * columns..][..columns].copy_from_slice(row);
            }
        }
    });
    packed
}
