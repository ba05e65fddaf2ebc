//! A patch-sized window on a volume that is padded where it is too small and enlarged where augmentation says so.
//!
//! Nothing is materialised but the patch. Order as in the specification (§5): pad, enlarge (keeping the size, by a central
//! crop), then crop. Padding is symmetric, an odd voxel at the end; images get 0 there (air after windowing), labels no class.

use std::ops::Range;

use super::volume::Volume;

/// Which voxels of the source feed each voxel of the patch.
#[derive(Clone, Debug)]
pub struct Window {
    axes: [Vec<Feed>; 3],
}

/// What feeds one index of the patch along one axis; indices outside the source are padding.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Feed {
    /// For images: the mean of these ("area" interpolation).
    span: Range<isize>,
    /// For labels.
    nearest: isize,
}

impl Window {
    /// The window of `patch` voxels around voxel `centre` of a volume of `shape`, enlarged `zoom` times (1 or more).
    ///
    /// The window is moved so that it stays inside the padded volume.
    pub fn around(centre: [usize; 3], shape: [usize; 3], patch: [usize; 3], zoom: f64) -> Self {
        Self { axes: [0, 1, 2].map(|axis| feeds(centre[axis], shape[axis], patch[axis], zoom)) }
    }

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
        let inside = |feed: &Feed, axis: usize| {
            usize::try_from(feed.nearest).ok().filter(|&index| index < shape[axis])
        };
        let mut offsets = Vec::with_capacity(xs.len() * ys.len() * zs.len());
        for x in xs {
            for y in ys {
                let row = inside(x, 0).zip(inside(y, 1)).map(|(x, y)| (x * shape[1] + y) * shape[2]);
                offsets.extend(zs.iter().map(|z| Some(row? + inside(z, 2)?)));
            }
        }
        offsets
    }
}

fn feeds(centre: usize, length: usize, patch: usize, zoom: f64) -> Vec<Feed> {
    let padded = length.max(patch);
    let before = (padded - length) / 2;
    // Enlarging never shrinks: a zoom below 1 would need padding of another kind.
    let enlarged = ((padded as f64 * zoom).floor() as usize).max(padded);
    let margin = (enlarged - padded) / 2;
    let centre = (centre + before) * enlarged / padded;
    let start = centre.saturating_sub(margin + patch / 2).min(padded - patch);
    let feed = |index: usize| {
        let from = index * padded / enlarged;
        let to = ((index + 1) * padded).div_ceil(enlarged);
        let shifted = |index: usize| index as isize - before as isize;
        Feed { span: shifted(from)..shifted(to), nearest: shifted(from) }
    };
    (start + margin..start + margin + patch).map(feed).collect()
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
        let patch = Window::around([0, 4, 2], volume.shape(), [2, 2, 2], 1.0).image(&volume);
        assert_eq!(patch, [32.0, 33.0, 42.0, 43.0, 132.0, 133.0, 142.0, 143.0]);
    }

    #[test]
    fn a_small_volume_is_padded_on_both_sides_with_the_odd_voxel_at_the_end() {
        let volume = numbered([1, 1, 2]);
        let window = Window::around([0, 0, 0], volume.shape(), [1, 1, 5], 1.0);
        assert_eq!(window.image(&volume), [0.0, 1.0, 2.0, 0.0, 0.0]);
        assert_eq!(window.label_offsets(volume.shape()), [None, Some(0), Some(1), None, None]);
    }

    #[test]
    fn labels_and_image_of_a_window_come_from_the_same_voxels() {
        let volume = numbered([7, 6, 5]);
        let window = Window::around([5, 1, 3], volume.shape(), [4, 3, 2], 1.0);
        let offsets = window.label_offsets(volume.shape());
        let by_label: Vec<f32> = offsets.iter().map(|offset| volume.voxels()[offset.unwrap()]).collect();
        assert_eq!(window.image(&volume), by_label);
    }

    #[test]
    fn enlarging_keeps_the_size_and_looks_at_the_middle() {
        let volume = numbered([1, 1, 10]);
        let window = Window::around([0, 0, 5], volume.shape(), [1, 1, 10], 1.5);
        let nearest: Vec<usize> =
            window.label_offsets(volume.shape()).into_iter().map(|offset| offset.unwrap()).collect();
        assert_eq!(nearest, [1, 2, 2, 3, 4, 4, 5, 6, 6, 7]);
        let image = window.image(&volume);
        // Index 3 of the enlarged row covers [2, 2.67), index 4 covers [2.67, 3.33): the mean of voxels 2 and 3.
        assert_eq!((image[1], image[2]), (3.0, 3.5));
    }
}
