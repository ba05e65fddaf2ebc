//! Three slices through a scan, axial, coronal and sagittal, as a radiologist hangs them.
//!
//! The patient's right is on the left, and anterior (or superior) is up; the letters at the edges say so. Pixels are square
//! in millimetres. What each pixel shows is the caller's business.

use super::picture::{Colour, Picture};
use crate::data::volume::Volume;

/// Longest side of a panel in pixels.
const PANEL: f64 = 420.0;
/// Pixels around panels and words.
const GAP: usize = 10;
/// Height of the line of words below the panels.
const LEGEND: usize = 24;

const LETTER: Colour = [255, 220, 0];

/// A slice through the patient, by the world axes shown rightwards and downwards, both against their growth: the
/// patient's right (or anterior) is on the left, and anterior (or superior) is up.
#[derive(Clone, Copy)]
pub(super) struct Plane {
    across: usize,
    down: usize,
    through: usize,
}

impl Plane {
    /// Axial, coronal, sagittal.
    pub(super) const ALL: [Self; 3] = [
        Self { across: 0, down: 1, through: 2 },
        Self { across: 0, down: 2, through: 1 },
        Self { across: 1, down: 2, through: 0 },
    ];
}

/// Letters towards which each axis grows, and away from which.
const TOWARDS: [char; 3] = ['R', 'A', 'S'];
const AWAY: [char; 3] = ['L', 'P', 'I'];

/// The pixels of one slice and the voxels under them.
pub(super) struct Slice<'a> {
    image: &'a Volume<f32>,
    plane: Plane,
    centre: [usize; 3],
    /// Pixels rightwards and downwards.
    size: [usize; 2],
    window_hu: (f32, f32),
}

impl<'a> Slice<'a> {
    /// The slice of `image` (axes R, A, S) through the voxel `centre`; `window_hu` is shown as black and as white.
    pub(super) fn of(
        image: &'a Volume<f32>,
        plane: Plane,
        centre: [usize; 3],
        window_hu: (f32, f32),
    ) -> Self {
        debug_assert!(centre[plane.through] < image.shape()[plane.through]);
        let (shape, spacing) = (image.shape(), image.grid().affine.spacing());
        let mm = |axis: usize| shape[axis] as f64 * spacing[axis];
        let scale = PANEL / mm(plane.across).max(mm(plane.down));
        let pixels = |axis: usize| ((mm(axis) * scale).round() as usize).max(1);
        let size = [pixels(plane.across), pixels(plane.down)];
        Self { image, plane, centre, size, window_hu }
    }

    /// The voxel under a pixel: the nearest one, both axes against their growth. An offset in C order.
    pub(super) fn offset(&self, [px, py]: [usize; 2]) -> usize {
        let shape = self.image.shape();
        let voxel = |pixel: usize, of: usize, axis: usize| {
            shape[axis] - 1 - (pixel * shape[axis] / of).min(shape[axis] - 1)
        };
        let mut index = self.centre;
        index[self.plane.across] = voxel(px, self.size[0], self.plane.across);
        index[self.plane.down] = voxel(py, self.size[1], self.plane.down);
        self.image.grid().offset(index)
    }

    /// The scan under a pixel, from black to white.
    pub(super) fn grey(&self, pixel: [usize; 2]) -> u8 {
        let (low, high) = self.window_hu;
        let value = (self.image.voxels()[self.offset(pixel)] - low) / (high - low);
        // The clamp keeps the cast within a byte; NaN becomes 0.
        (value.clamp(0.0, 1.0) * 255.0) as u8
    }

    /// Whether a labelled pixel has a right or lower, left or upper neighbour of another label.
    pub(super) fn is_contour(&self, labels: &[u8], [px, py]: [usize; 2]) -> bool {
        let [width, height] = self.size;
        let own = labels[self.offset([px, py])];
        let other = |x: usize, y: usize| labels[self.offset([x, y])] != own;
        own != 0
            && ((px > 0 && other(px - 1, py))
                || (py > 0 && other(px, py - 1))
                || (px + 1 < width && other(px + 1, py))
                || (py + 1 < height && other(px, py + 1)))
    }

    /// The slice with the colour of each pixel, and letters that say which side is which.
    pub(super) fn draw(&self, colour: impl Fn([usize; 2]) -> Colour) -> Picture {
        let [width, height] = self.size;
        let mut panel = Picture::new(width, height);
        for py in 0..height {
            (0..width).for_each(|px| panel.set([px, py], colour([px, py])));
        }
        letters(&mut panel, self.plane);
        panel
    }
}

fn letters(panel: &mut Picture, plane: Plane) {
    let (right, bottom) = (panel.width.saturating_sub(14), panel.height.saturating_sub(18));
    let (middle_x, middle_y) =
        (panel.width / 2 - 5.min(panel.width / 2), panel.height / 2 - 7.min(panel.height / 2));
    panel.glyph(TOWARDS[plane.across], [4, middle_y], LETTER);
    panel.glyph(AWAY[plane.across], [right, middle_y], LETTER);
    panel.glyph(TOWARDS[plane.down], [middle_x, 4], LETTER);
    panel.glyph(AWAY[plane.down], [middle_x, bottom], LETTER);
}

/// Panels in a row over a line for `words`, each in its colour.
pub(super) fn side_by_side(panels: &[Picture], words: &[(&str, Colour)]) -> Picture {
    let width = panels.iter().map(|p| p.width).sum::<usize>() + GAP * (panels.len() + 1);
    let height = panels.iter().map(|p| p.height).max().unwrap_or(0) + GAP * 2 + LEGEND;
    let mut picture = Picture::new(width, height);
    let mut x = GAP;
    for panel in panels {
        picture.place(panel, [x, GAP]);
        x += panel.width + GAP;
    }
    let mut x = GAP;
    for &(word, colour) in words {
        x = picture.write(word, [x, height - LEGEND], colour) + 2 * GAP;
    }
    picture
}

/// Mean position of the voxels that `is_labelled` (C order over `shape`), or the middle when there are none.
pub(super) fn centre_of(shape: [usize; 3], is_labelled: impl Iterator<Item = bool>) -> [usize; 3] {
    let [_, ny, nz] = shape;
    let (mut sum, mut count) = ([0usize; 3], 0usize);
    for (offset, _) in is_labelled.enumerate().filter(|(_, labelled)| *labelled) {
        let index = [offset / (ny * nz), offset / nz % ny, offset % nz];
        (0..3).for_each(|axis| sum[axis] += index[axis]);
        count += 1;
    }
    if count == 0 { shape.map(|n| n / 2) } else { sum.map(|s| s / count) }
}
