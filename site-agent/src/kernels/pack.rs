//! Channels-last copies with a halo, and weights in panels: the layouts that the inner loops read straight through.

use std::ops::Range;

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

    /// Position of voxel `[x, y, 0]`, `x` counted from the first plane of a packed run.
    pub(super) fn position(self, x: usize, y: usize) -> usize {
        (x + 1) * self.plane() + (y + 1) * self.line() + 1
    }
}

/// A packed copy of so many bytes at once, about: the copy of a large volume would be its largest array.
const SLAB_BYTES: usize = 16 << 20;
/// Planes of a packed copy at least: each copy has one more on either side, which are packed twice.
const SLAB_PLANES: usize = 4;

/// Cuts a batch into runs of planes, `(volume, planes)`, of which a packed copy with `stride` numbers for each voxel stays
/// small; no fewer planes at once than there are threads.
pub(super) fn slabs(extent: Extent, stride: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let planes = extent.space[0];
    let bytes = Halo::new(extent.space).plane() * stride * size_of::<f32>();
    let at_once = (SLAB_BYTES / bytes.max(1)).max(SLAB_PLANES).max(rayon::current_num_threads());
    let slabs = planes.div_ceil(at_once);
    let depth = planes.div_ceil(slabs.max(1)).max(1);
    (0..extent.n).flat_map(move |n| {
        (0..planes).step_by(depth).map(move |first| (n, first..(first + depth).min(planes)))
    })
}

/// The channels of a batch, which may lie in several arrays `[n, some channels, x, y, z]`, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Channels<'a> {
    extent: Extent,
    /// The array of each channel, how many channels that has, and which of them it is.
    of: Vec<(&'a [f32], usize, usize)>,
}

impl<'a> Channels<'a> {
    /// `extent` has as many channels as all parts together.
    pub(super) fn of(parts: &[&'a [f32]], extent: Extent) -> Self {
        let channels = |part: &&'a [f32]| {
            let (part, channels) = (*part, part.len() / (extent.n * extent.voxels()).max(1));
            (0..channels).map(move |channel| (part, channels, channel))
        };
        let of: Vec<_> = parts.iter().flat_map(channels).collect();
        debug_assert_eq!(of.len(), extent.channels);
        Self { extent, of }
    }

    /// Some of the channels.
    pub(super) fn range(&self, channels: Range<usize>) -> Self {
        Self { extent: self.extent.with_channels(channels.len()), of: self.of[channels].to_vec() }
    }

    /// Some voxels of a channel of volume `n`.
    pub(super) fn voxels(&self, channel: usize, n: usize, voxels: Range<usize>) -> &'a [f32] {
        let (part, channels, index) = self.of[channel];
        &part[(n * channels + index) * self.extent.voxels()..][voxels]
    }

    /// Line `[n, x, y]` of a channel.
    fn line(&self, channel: usize, [n, x, y]: [usize; 3]) -> &'a [f32] {
        let [_, ny, nz] = self.extent.space;
        let first = (x * ny + y) * nz;
        self.voxels(channel, n, first..first + nz)
    }
}

/// `planes` of volume `n`, and one more on either side → `[voxel with halo][stride]`; channels past the last and voxels
/// outside of the volume are zero.
pub(super) fn channels_last(
    channels: &Channels<'_>,
    stride: usize,
    n: usize,
    planes: &Range<usize>,
) -> Vec<f32> {
    let halo = Halo::new(channels.extent.space);
    let [nx, ny, nz] = channels.extent.space;
    let mut packed = vec![0.0; (planes.len() + 2) * halo.plane() * stride];
    // The first one lies before the run.
    packed.par_chunks_mut(halo.plane() * stride).enumerate().for_each(|(index, plane)| {
        let Some(x) = (planes.start + index).checked_sub(1).filter(|&x| x < nx) else { return };
        for y in 0..ny {
            let to = &mut plane[((y + 1) * halo.line() + 1) * stride..][..nz * stride];
            interleave_line(channels, [n, x, y], to, stride);
        }
    });
    packed
}

/// Plane `[n, x]` of the channels → `[y · z][channels]`, without a halo.
pub(super) fn voxel_rows(channels: &Channels<'_>, [n, x]: [usize; 2], to: &mut [f32]) {
    let ([.., nz], stride) = (channels.extent.space, channels.extent.channels);
    for (y, line) in to.chunks_exact_mut(nz * stride).enumerate() {
        interleave_line(channels, [n, x, y], line, stride);
    }
}

/// Writes line `at` of all channels to `to`, a row of `stride` for each voxel. Channels are the inner loop: the rows
/// that all of them are written to stay in the nearest cache.
fn interleave_line(channels: &Channels<'_>, at: [usize; 3], to: &mut [f32], stride: usize) {
    let count = channels.extent.channels;
    let mut channel = 0;
    while channel + GROUP <= count {
        interleave::<GROUP>(to, stride, channel, std::array::from_fn(|c| channels.line(channel + c, at)));
        channel += GROUP;
    }
    while channel < count {
        interleave(to, stride, channel, [channels.line(channel, at)]);
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

/// The parts of several arrays `[n, some channels, x, y, z]` that belong to each plane, in the order `[n, x]`: one `[y, z]` for
/// each channel of the first array, then of the next.
pub(super) fn by_plane<'a>(
    arrays: impl IntoIterator<Item = &'a mut Vec<f32>>,
    n: usize,
    [nx, ny, nz]: [usize; 3],
) -> Vec<Vec<&'a mut [f32]>> {
    let mut planes: Vec<Vec<&mut [f32]>> = (0..n * nx).map(|_| Vec::new()).collect();
    for values in arrays {
        let of_volume = values.len() / (n * ny * nz).max(1);
        for (index, part) in values.chunks_exact_mut(ny * nz).enumerate() {
            planes[index / of_volume * nx + index % nx].push(part);
        }
    }
    planes
}

/// A run of voxels of one volume.
pub(super) struct Run<'a> {
    /// The volume.
    pub(super) n: usize,
    /// The first voxel.
    pub(super) first: usize,
    /// These voxels of each channel.
    pub(super) lines: Vec<&'a mut [f32]>,
}

/// Cuts `[n, channels, voxels]` into runs of `length` voxels, in order; the last of a volume may be shorter.
pub(super) fn by_run(values: &mut [f32], channels: usize, voxels: usize, length: usize) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    for (n, volume) in values.chunks_exact_mut((channels * voxels).max(1)).enumerate() {
        let mut lines: Vec<_> = volume.chunks_exact_mut(voxels).map(|line| line.chunks_mut(length)).collect();
        for first in (0..voxels).step_by(length) {
            runs.push(Run { n, first, lines: lines.iter_mut().filter_map(Iterator::next).collect() });
        }
    }
    runs
}

/// Writes the first columns of `rows` of `columns`, as many as there are biases, each to its own place with its bias added.
pub(super) fn write_columns(to: &mut [&mut [f32]], rows: &[f32], columns: usize, bias: &[f32]) {
    for (column, (to, &bias)) in to.iter_mut().zip(bias).enumerate() {
        for (to, row) in to.iter_mut().zip(rows.chunks_exact(columns)) {
            *to = row[column] + bias;
        }
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
