//! A first look at a prediction: three slices of the scan with every class filled in its colour, so that a gross mistake
//! is seen without a viewer. Pictures lie beside the label files and never leave the site.

use std::path::Path;

use common::ids::ClassId;

use super::colours::colour;
use super::picture::{Colour, Picture};
use super::slices::{Plane, Slice, centre_of, side_by_side};
use crate::client::files::{self, FileError};
use crate::data::volume::Volume;

/// How much of a filled pixel is the class's colour, of 256; the rest is the scan. Outlines are the colour alone.
const FILL: u16 = 96;
const WORDS: Colour = [255, 60, 220];

/// Draws and writes a PNG, as [`draw`] describes.
///
/// # Errors
/// [`FileError`].
pub fn write(
    path: &Path,
    image: &Volume<f32>,
    labels: &[u8],
    window_hu: (f32, f32),
) -> Result<(), FileError> {
    let bytes = draw(image, labels, window_hu).png();
    let bytes = bytes.map_err(|error| FileError::new("draw", path, std::io::Error::other(error)))?;
    files::write_result(path, &bytes)
}

/// Draws `labels` (class ids, C order, 0 for none) over `image` (HU); both have axes R, A, S. `window_hu` is shown as
/// black and as white.
pub fn draw(image: &Volume<f32>, labels: &[u8], window_hu: (f32, f32)) -> Picture {
    debug_assert_eq!(labels.len(), image.grid().len());
    let centre = centre_of(image.shape(), labels.iter().map(|label| *label != 0));
    let panels = Plane::ALL.map(|plane| {
        let slice = Slice::of(image, plane, centre, window_hu);
        slice.draw(|pixel| {
            let grey = slice.grey(pixel);
            match ClassId::new(labels[slice.offset(pixel)]) {
                None => [grey; 3],
                Some(class) if slice.is_contour(labels, pixel) => colour(class),
                Some(class) => colour(class).map(|part| blend(grey, part)),
            }
        })
    });
    side_by_side(&panels, &[("PREDICTION", WORDS)])
}

fn blend(grey: u8, part: u8) -> u8 {
    // At most 255 × 256, which 16 bits hold, and 255 after the shift.
    ((u16::from(grey) * (256 - FILL) + u16::from(part) * FILL) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use nalgebra::{Matrix4, Vector4};

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::volume::Grid;

    #[test]
    fn a_class_is_filled_in_its_colour_and_the_scan_shows_through() {
        let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(1.0, 1.0, 1.0, 1.0))).unwrap();
        let image = Volume::from_fn(Grid { shape: [21; 3], affine }, |_| 250.0);
        let inside = |index: [usize; 3]| index.iter().all(|i| (5..16).contains(i));
        let labels = Volume::from_fn(image.grid().clone(), |index| if inside(index) { 6 } else { 0 });
        let picture = draw(&image, labels.voxels(), (-175.0, 250.0));
        let liver = colour(ClassId::new(6).unwrap());
        // 21 voxels in 420 pixels: in the first panel, 10 pixels in, the box is 100 to 319.
        assert_eq!(picture.pixel([10 + 100, 10 + 150]), liver, "outline");
        assert_eq!(picture.pixel([10 + 160, 10 + 150]), liver.map(|part| blend(255, part)), "inside");
        assert_eq!(picture.pixel([10 + 50, 10 + 50]), [255; 3], "outside");
    }

    #[test]
    fn blending_stays_between_its_parts() {
        assert_eq!((blend(0, 0), blend(255, 255)), (0, 255));
        assert!((blend(0, 255)..blend(255, 0)).contains(&128));
    }
}
