//! A patch-sized window on a volume that is padded where it is too small and enlarged where augmentation says so.
//!
//! Nothing is materialised but the patch. Order as in the specification (§5): pad, enlarge (keeping the size, by a central
//! crop), then draw a centre and crop: what enlarging has moved out of sight is no centre. Padding is symmetric, an odd voxel
//! at the end; images get 0 there (air after windowing), labels no class.

use std::ops::Range;

use super::volume::Volume;

/// A volume as patches are cut from it: padded and enlarged.
#[derive(Clone, Debug)]
pub struct View {
    /// Voxels of the volume itself.
    shape: [usize; 3],
    axes: [Vec<Feed>; 3],
    is_enlarged: bool,
}

/// Which voxels of the source feed each voxel of the patch.
#[derive(Clone, Debug)]
pub struct Window {
    axes: [Vec<Feed>; 3],
}

/// What feeds one index along one axis; indices outside the source are padding.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Feed {
    /// For images: the mean of these ("area" interpolation).
    span: Range<isize>,
    /// For labels; none in padding.
    nearest: Option<usize>,
}

impl View {
    /// A volume of `shape`, padded to `patch` voxels at least and enlarged `zoom` times (1 or more).
    pub fn of(shape: [usize; 3], patch: [usize; 3], zoom: f64) -> Self {
        let axes = [0, 1, 2].map(|axis| feeds(shape[axis], patch[axis], zoom));
        Self { shape, axes, is_enlarged: zoom > 1.0 }
    }

    /// The window of `patch` voxels around voxel `centre` of the view, moved so that it stays inside.
    ///
    /// # Panics
    /// When the view was made for a smaller patch: a mistake of the caller.
    pub fn window(&self, centre: [usize; 3], patch: [usize; 3]) -> Window {
        let part = |axis: usize| {
            let (feeds, size) = (&self.axes[axis], patch[axis]);
            let start = centre[axis].saturating_sub(size / 2).min(feeds.len() - size);
            feeds[start..start + size].to_vec()
        };
        Window { axes: [0, 1, 2].map(part) }
    }

    /// The rows of voxels that show one of the volume, in C order: place in the view, and offset in the volume of what labels it.
    pub fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = ([usize; 3], usize)>> {
        let [_, ny, nz] = self.shape;
        let shown = move |axis: usize| {
            let feeds = self.axes[axis].iter().enumerate();
            feeds.filter_map(|(at, feed)| Some((at, feed.nearest?)))
        };
        shown(0).flat_map(move |(i, x)| {
            shown(1).map(move |(j, y)| {
                let row = (x * ny + y) * nz;
                shown(2).map(move |(k, z)| ([i, j, k], row + z))
            })
        })
    }

    /// Whether a voxel of the view, labelled by `offset` of the volume, is above zero in an image without negative values.
    pub fn is_bright(&self, image: &Volume<f32>, [i, j, k]: [usize; 3], offset: usize) -> bool {
        let [xs, ys, zs] = &self.axes;
        // What labels a voxel is among what its mean is of.
        image.voxels()[offset] > 0.0
            || (self.is_enlarged && mean(image, [&xs[i].span, &ys[j].span, &zs[k].span]) > 0.0)
    }
}

impl Window {
    /// The image in the window, C order.
    pub fn image(&self, volume: &Volume<f32>) -> Vec<f32> {
        let [xs, ys, zs] = &self.axes;
        let mut patch = Vec::with_capacity(xs.len() * ys.len() * zs.len());
        for x in xs {
            for y in ys {
                patch.extend(zs.iter().map(|z| mean(volume, [&x.span, &y.span, &z.span])));
            }
        }
        patch
    }

    /// Offset in a volume of `shape` of the voxel that labels each voxel of the patch, C order; none for padding.
    pub fn label_offsets(&self, shape: [usize; 3]) -> Vec<Option<usize>> {
        let [xs, ys, zs] = &self.axes;
        let mut offsets = Vec::with_capacity(xs.len() * ys.len() * zs.len());
        for x in xs {
            for y in ys {
                let row = x.nearest.zip(y.nearest).map(|(x, y)| (x * shape[1] + y) * shape[2]);
                offsets.extend(zs.iter().map(|z| Some(row? + z.nearest?)));
            }
        }
        offsets
    }
}

fn feeds(length: usize, patch: usize, zoom: f64) -> Vec<Feed> {
    let padded = length.max(patch);
    let before = (padded - length) / 2;
    // Enlarging never shrinks: a zoom below 1 would need padding of another kind.
    let enlarged = ((padded as f64 * zoom).floor() as usize).max(padded);
    let margin = (enlarged - padded) / 2;
    let feed = |index: usize| {
        let from = index * padded / enlarged;
        let to = ((index + 1) * padded).div_ceil(enlarged);
        let shifted = |index: usize| index as isize - before as isize;
        let nearest = from.checked_sub(before).filter(|&index| index < length);
        Feed { span: shifted(from)..shifted(to), nearest }
    };
    (margin..margin + padded).map(feed).collect()
}

/// Mean over a box; voxels outside the volume count as 0.
fn mean(volume: &Volume<f32>, spans: [&Range<isize>; 3]) -> f32 {
    let shape = volume.shape();
    let clipped = [0, 1, 2].map(|axis| {
        let length = shape[axis] as isize;
        spans[axis].start.clamp(0, length) as usize..spans[axis].end.clamp(0, length) as usize
    });
    let [xs, ys, zs] = clipped;
    let mut sum = 0.0;
    for x in xs {
        for y in ys.clone() {
            for z in zs.clone() {
                sum += volume.at([x, y, z]);
            }
        }
    }
    sum / spans.iter().map(|span| span.len()).product::<usize>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::volume::Grid;

    /// Voxel [i, j, k] holds 100 i + 10 j + k + 1.
    fn numbered(shape: [usize; 3]) -> Volume<f32> {
        let affine = Affine::new(nalgebra::Matrix4::identity()).unwrap();
        Volume::from_fn(Grid { shape, affine }, |[i, j, k]| (100 * i + 10 * j + k + 1) as f32)
    }

    #[test]
    fn a_window_is_moved_inside_the_volume() {
        let volume = numbered([6, 5, 4]);
        let patch = View::of(volume.shape(), [2; 3], 1.0).window([0, 4, 2], [2; 3]).image(&volume);
        assert_eq!(patch, [32.0, 33.0, 42.0, 43.0, 132.0, 133.0, 142.0, 143.0]);
    }

    #[test]
    fn a_small_volume_is_padded_on_both_sides_with_the_odd_voxel_at_the_end() {
        let volume = numbered([1, 1, 2]);
        let window = View::of(volume.shape(), [1, 1, 5], 1.0).window([0; 3], [1, 1, 5]);
        assert_eq!(window.image(&volume), [0.0, 1.0, 2.0, 0.0, 0.0]);
        assert_eq!(window.label_offsets(volume.shape()), [None, Some(0), Some(1), None, None]);
    }

    #[test]
    fn labels_and_image_of_a_window_come_from_the_same_voxels() {
        let volume = numbered([7, 6, 5]);
        let window = View::of(volume.shape(), [4, 3, 2], 1.0).window([5, 1, 3], [4, 3, 2]);
        let offsets = window.label_offsets(volume.shape());
        let by_label: Vec<f32> = offsets.iter().map(|offset| volume.voxels()[offset.unwrap()]).collect();
        assert_eq!(window.image(&volume), by_label);
    }

    #[test]
    fn enlarging_keeps_the_size_and_looks_at_the_middle() {
        let volume = numbered([1, 1, 10]);
        let window = View::of(volume.shape(), [1, 1, 10], 1.5).window([0, 0, 5], [1, 1, 10]);
        let nearest: Vec<usize> =
            window.label_offsets(volume.shape()).into_iter().map(|offset| offset.unwrap()).collect();
        assert_eq!(nearest, [1, 2, 2, 3, 4, 4, 5, 6, 6, 7]);
        let image = window.image(&volume);
        // Index 3 of the enlarged row covers [2, 2.67), index 4 covers [2.67, 3.33): the mean of voxels 2 and 3.
        assert_eq!((image[1], image[2]), (3.0, 3.5));
    }

    #[test]
    fn centres_are_counted_in_what_patches_are_cut_from() {
        let volume = numbered([7, 3, 10]);
        for zoom in [1.0, 1.4] {
            // The second axis is padded.
            let view = View::of(volume.shape(), [4, 5, 6], zoom);
            let whole = [7, 5, 10];
            let offsets = view.window([0; 3], whole).label_offsets(volume.shape());
            let place = |[i, j, k]: [usize; 3]| (i * whole[1] + j) * whole[2] + k;
            let shown: Vec<(usize, usize)> = view.rows().flatten().map(|(at, of)| (place(at), of)).collect();
            let expected = offsets.iter().enumerate().filter_map(|(at, offset)| Some((at, (*offset)?)));
            assert_eq!(shown, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_voxel_of_an_enlarged_volume_is_as_bright_as_its_patch_shows_it() {
        let affine = Affine::new(nalgebra::Matrix4::identity()).unwrap();
        let lit = Volume::from_fn(Grid { shape: [1, 1, 10], affine }, |[.., k]| f32::from(u8::from(k == 4)));
        for zoom in [1.0, 1.5] {
            let view = View::of(lit.shape(), [1, 1, 10], zoom);
            let image = view.window([0, 0, 5], [1, 1, 10]).image(&lit);
            let bright: Vec<bool> =
                view.rows().flatten().map(|(at, offset)| view.is_bright(&lit, at, offset)).collect();
            assert_eq!(bright, image.iter().map(|&value| value > 0.0).collect::<Vec<_>>(), "{zoom}");
        }
    }
}
