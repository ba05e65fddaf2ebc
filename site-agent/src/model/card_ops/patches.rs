//! Volumes with a margin, laid out flat, and the patches around their voxels.

use std::iter;
use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Shape, Slice};

use super::voxels::PARTS;

/// Numbers of the patches that are made at a time: 128 MiB of them, the largest buffer that every Vulkan driver has. Tests have
/// small volumes, and are to make several runs.
const AT_ONCE: usize = if cfg!(test) { 1 << 14 } else { 1 << 25 };

/// Where voxels lie in a flat row: one volume behind the other, each with a margin of one voxel all around.
///
/// A place stands for the voxel that is in the middle of the patch which *begins* there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    volumes: usize,
    space: [usize; 3],
}

impl Grid {
    pub(super) fn of<B: Backend>(x: &FloatTensor<B>) -> Self {
        let [volumes, _, x, y, z] = x.shape().dims();
        Self { volumes, space: [x, y, z] }
    }

    fn with_margin(self) -> [usize; 3] {
        self.space.map(|side| side + 2)
    }

    fn length(self) -> usize {
        self.volumes * self.with_margin().iter().product::<usize>()
    }

    /// From one place to the next along each axis.
    fn strides(self) -> [usize; 3] {
        let [_, y, z] = self.with_margin();
        [y * z, z, 1]
    }

    /// From the beginning of a patch to its middle, and from there to its end.
    fn reach(self) -> usize {
        self.strides().iter().sum()
    }

    /// The places where a patch can begin, up to the last that has a voxel in its middle.
    fn places(self) -> usize {
        self.length() - 2 * self.reach()
    }

    /// Runs of places whose patches, of so many numbers each, are made at a time. All but the last can be cut into [`PARTS`].
    pub(super) fn runs(self, numbers: usize) -> impl Iterator<Item = Range<usize>> {
        let at_once = (AT_ONCE / numbers / PARTS).max(1) * PARTS;
        let (all, even) = (self.places(), self.places() / PARTS * PARTS);
        let run = move |&start: &usize| {
            let end = if start < even { even.min(start + at_once) } else { all };
            (start < all).then_some(start..end)
        };
        iter::successors(run(&0), move |last| run(&last.end))
    }

    /// `[n, channel, x, y, z]` to a row for each channel, zero in the margins.
    pub(super) fn flat<B: Backend>(self, x: FloatTensor<B>) -> FloatTensor<B> {
        let [_, channels, ..] = x.shape().dims::<5>();
        let [x_side, y_side, z_side] = self.with_margin();
        let (shape, device, kind) =
            (Shape::new([channels, self.volumes, x_side, y_side, z_side]), x.device(), x.dtype().into());
        let zeros = B::float_zeros(shape, &device, kind);
        let inside = self.corner(1, channels);
        let padded = B::float_slice_assign(zeros, &inside, B::float_swap_dims(x, 0, 1));
        B::float_reshape(padded, Shape::new([channels, self.length()]))
    }

    /// The voxels of all channels, from so far behind the first place of the grid.
    fn corner(self, from: usize, channels: usize) -> [Slice; 5] {
        let [x, y, z] = self.space.map(|side| Slice::from(from..from + side));
        [Slice::from(0..channels), Slice::from(0..self.volumes), x, y, z]
    }

    /// The patches that begin at these places of flat rows, `[27 · channel, place]`.
    pub(super) fn patches<B: Backend>(self, flat: &FloatTensor<B>, run: Range<usize>) -> FloatTensor<B> {
        let [channels, _] = flat.shape().dims();
        let ([x, y, z], places) = (self.strides(), run.len());
        let read = [Slice::from(0..channels), Slice::from(run.start..run.end + 2 * self.reach())];
        let rows = B::float_slice(flat.clone(), &read);
        // Each turns one row into three that begin a stride apart.
        let along_x = B::float_unfold(rows, 1, places + 2 * (y + z), x);
        let along_y = B::float_unfold(along_x, 2, places + 2 * z, y);
        let along_z = B::float_unfold(along_y, 3, places, z);
        B::float_reshape(along_z, Shape::new([27 * channels, places]))
    }

    /// What lies in the middle of the patches that begin at these places of flat rows, `[channel, place]`.
    pub(super) fn voxels<B: Backend>(self, flat: &FloatTensor<B>, run: Range<usize>) -> FloatTensor<B> {
        let [channels, _] = flat.shape().dims();
        let middle = Slice::from(run.start + self.reach()..run.end + self.reach());
        B::float_slice(flat.clone(), &[Slice::from(0..channels), middle])
    }

    /// Numbers of every place, `[channel, place]` run by run, to `[n, channel, x, y, z]`.
    pub(super) fn volumes<B: Backend>(self, mut runs: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let (device, kind) = (runs[0].device(), runs[0].dtype().into());
        let [channels, _] = runs[0].shape().dims();
        // No patch begins at the last places.
        runs.push(B::float_zeros(Shape::new([channels, 2 * self.reach()]), &device, kind));
        let [x, y, z] = self.with_margin();
        let all = B::float_reshape(B::float_cat(runs, 1), Shape::new([channels, self.volumes, x, y, z]));
        B::float_swap_dims(B::float_slice(all, &self.corner(0, channels)), 0, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_every_place_once_and_all_but_the_last_are_cut_evenly() {
        for (volumes, space, numbers) in [(1, [1, 1, 1], 27), (2, [7, 5, 3], 540), (1, [16, 16, 16], 27 * 96)]
        {
            let grid = Grid { volumes, space };
            let runs: Vec<Range<usize>> = grid.runs(numbers).collect();
            assert_eq!(runs[0].start, 0);
            assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start), "{runs:?}");
            assert_eq!(runs.last().map(|run| run.end), Some(grid.places()));
            assert!(runs[..runs.len() - 1].iter().all(|run| run.len() % PARTS == 0), "{runs:?}");
        }
    }
}
