//! Prediction and truth drawn over the scan, on three axes: so that a person sees in a second whether left is left.
//!
//! Slices go through the centre of the organs. Pictures follow the radiologist's convention: the patient's right is on
//! the left, and anterior (or superior) is up; the letters at the edges say so. Pixels are square in millimetres. The
//! truth's contours are green, the prediction's magenta, white where both agree. Pictures never leave the site.

use std::io::Write;
use std::path::Path;

use crate::client::files::{self, FileError};
use crate::data::volume::Volume;

/// What to draw, all on one grid with axes R, A, S.
pub struct Overlay<'a> {
    /// The scan, HU.
    pub image: &'a Volume<f32>,
    /// Class id of each voxel by the annotation, 0 for none.
    pub truth: &'a [u8],
    /// Class id of each voxel by the network, 0 for none.
    pub prediction: &'a [u8],
    /// HU shown as black and as white.
    pub window_hu: (f32, f32),
}

/// Longest side of a panel in pixels.
const PANEL: f64 = 420.0;
const GAP: usize = 10;
const LEGEND: usize = 24;

const TRUTH: Colour = [0, 230, 90];
const PREDICTION: Colour = [255, 60, 220];
const AGREEMENT: Colour = [255, 255, 255];
const LETTER: Colour = [255, 220, 0];

type Colour = [u8; 3];

/// Draws and writes a PNG.
///
/// # Errors
/// [`FileError`].
pub fn write(path: &Path, overlay: &Overlay<'_>) -> Result<(), FileError> {
    let picture = draw(overlay);
    let bytes = picture.png().map_err(|error| FileError::new("draw", path, std::io::Error::other(error)))?;
    files::write(path, &bytes)
}

/// The picture: axial, coronal and sagittal slice side by side.
pub fn draw(overlay: &Overlay<'_>) -> Picture {
    let centre = overlay.centre();
    let panels = Plane::ALL.map(|plane| overlay.panel(plane, centre));
    let width = panels.iter().map(|p| p.width).sum::<usize>() + GAP * 4;
    let height = panels.iter().map(|p| p.height).max().unwrap_or(0) + GAP * 2 + LEGEND;
    let mut picture = Picture::new(width, height);
    let mut x = GAP;
    for panel in &panels {
        picture.place(panel, [x, GAP]);
        x += panel.width + GAP;
    }
    let y = height - LEGEND;
    let after = picture.write("TRUTH", [GAP, y], TRUTH);
    picture.write("PREDICTION", [after + 2 * GAP, y], PREDICTION);
    picture
}

/// A slice through the patient, by the world axes shown rightwards and downwards, both against their growth: the
/// patient's right (or anterior) is on the left, and anterior (or superior) is up.
#[derive(Clone, Copy)]
struct Plane {
    across: usize,
    down: usize,
    through: usize,
}

impl Plane {
    /// Axial, coronal, sagittal.
    const ALL: [Self; 3] = [
        Self { across: 0, down: 1, through: 2 },
        Self { across: 0, down: 2, through: 1 },
        Self { across: 1, down: 2, through: 0 },
    ];
}

/// Letters towards which each axis grows, and away from which.
const TOWARDS: [char; 3] = ['R', 'A', 'S'];
const AWAY: [char; 3] = ['L', 'P', 'I'];

impl Overlay<'_> {
    /// Mean position of all labelled voxels, or the middle of the scan when nothing is labelled.
    fn centre(&self) -> [usize; 3] {
        let [_, ny, nz] = self.image.shape();
        let (mut sum, mut count) = ([0usize; 3], 0usize);
        let labelled = self.truth.iter().zip(self.prediction).enumerate();
        for (offset, _) in labelled.filter(|(_, (t, p))| **t != 0 || **p != 0) {
            let index = [offset / (ny * nz), offset / nz % ny, offset % nz];
            (0..3).for_each(|axis| sum[axis] += index[axis]);
            count += 1;
        }
        if count == 0 { self.image.shape().map(|n| n / 2) } else { sum.map(|s| s / count) }
    }

    fn panel(&self, plane: Plane, centre: [usize; 3]) -> Picture {
        let (shape, spacing) = (self.image.shape(), self.image.grid().affine.spacing());
        let mm = |axis: usize| shape[axis] as f64 * spacing[axis];
        let scale = PANEL / mm(plane.across).max(mm(plane.down));
        let pixels = |axis: usize| ((mm(axis) * scale).round() as usize).max(1);
        let (width, height) = (pixels(plane.across), pixels(plane.down));
        // Nearest voxel; both axes run against their growth.
        let voxel = |pixel: usize, of: usize, axis: usize| {
            shape[axis] - 1 - (pixel * shape[axis] / of).min(shape[axis] - 1)
        };
        let offset = |px: usize, py: usize| {
            let mut index = centre;
            index[plane.across] = voxel(px, width, plane.across);
            index[plane.down] = voxel(py, height, plane.down);
            self.image.grid().offset(index)
        };
        debug_assert!(centre[plane.through] < shape[plane.through]);
        let mut panel = Picture::new(width, height);
        for py in 0..height {
            for px in 0..width {
                let contour = |labels: &[u8]| is_contour(labels, &offset, [px, py], [width, height]);
                let colour = match (contour(self.truth), contour(self.prediction)) {
                    (true, true) => AGREEMENT,
                    (true, false) => TRUTH,
                    (false, true) => PREDICTION,
                    (false, false) => [self.grey(offset(px, py)); 3],
                };
                panel.set([px, py], colour);
            }
        }
        panel.letters(plane);
        panel
    }

    fn grey(&self, offset: usize) -> u8 {
        let (low, high) = self.window_hu;
        let value = (self.image.voxels()[offset] - low) / (high - low);
        // The clamp keeps the cast within a byte; NaN becomes 0.
        (value.clamp(0.0, 1.0) * 255.0) as u8
    }
}

/// Whether a labelled pixel has a right or lower, left or upper neighbour of another label.
fn is_contour(
    labels: &[u8],
    offset: &dyn Fn(usize, usize) -> usize,
    [px, py]: [usize; 2],
    [width, height]: [usize; 2],
) -> bool {
    let own = labels[offset(px, py)];
    let other = |x: usize, y: usize| labels[offset(x, y)] != own;
    own != 0
        && ((px > 0 && other(px - 1, py))
            || (py > 0 && other(px, py - 1))
            || (px + 1 < width && other(px + 1, py))
            || (py + 1 < height && other(px, py + 1)))
}

/// An RGB picture.
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height * 3] }
    }

    /// Colour of a pixel, counted from the upper left.
    pub fn pixel(&self, [x, y]: [usize; 2]) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    fn set(&mut self, [x, y]: [usize; 2], colour: Colour) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    fn place(&mut self, part: &Self, [x, y]: [usize; 2]) {
        for py in 0..part.height {
            (0..part.width).for_each(|px| self.set([x + px, y + py], part.pixel([px, py])));
        }
    }

    fn letters(&mut self, plane: Plane) {
        let (right, bottom) = (self.width.saturating_sub(14), self.height.saturating_sub(18));
        let (middle_x, middle_y) =
            (self.width / 2 - 5.min(self.width / 2), self.height / 2 - 7.min(self.height / 2));
        self.glyph(TOWARDS[plane.across], [4, middle_y], LETTER);
        self.glyph(AWAY[plane.across], [right, middle_y], LETTER);
        self.glyph(TOWARDS[plane.down], [middle_x, 4], LETTER);
        self.glyph(AWAY[plane.down], [middle_x, bottom], LETTER);
    }

    /// Writes capital letters; where the text ends.
    fn write(&mut self, text: &str, [x, y]: [usize; 2], colour: Colour) -> usize {
        for (index, letter) in text.chars().enumerate() {
            self.glyph(letter, [x + index * 12, y], colour);
        }
        x + text.len() * 12
    }

    /// A letter of 5 × 7 dots, each 2 × 2 pixels.
    fn glyph(&mut self, letter: char, [x, y]: [usize; 2], colour: Colour) {
        for (row, dots) in dots(letter).into_iter().enumerate() {
            for column in (0..5).filter(|column| dots & (0b1_0000 >> column) != 0) {
                for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    self.set([x + 2 * column + dx, y + 2 * row + dy], colour);
                }
            }
        }
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut encoder = png::Encoder::new(&mut bytes, side(self.width), side(self.height));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        bytes.flush()?;
        Ok(bytes)
    }
}

/// The letters that pictures need, row by row.
const fn dots(letter: char) -> [u8; 7] {
    match letter {
        'A' => [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'C' => [0b01110, 0b10001, 0b10000, 0b10000, 0b10000, 0b10001, 0b01110],
        'D' => [0b11110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b11110],
        'E' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111],
        'H' => [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'I' => [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        'L' => [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111],
        'N' => [0b10001, 0b11001, 0b10101, 0b10011, 0b10001, 0b10001, 0b10001],
        'O' => [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        'P' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000],
        'R' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001],
        'S' => [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110],
        'T' => [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
        'U' => [0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        _ => [0; 7],
    }
}

#[cfg(test)]
mod tests {
    use nalgebra::{Matrix4, Vector4};

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::volume::Grid;

    /// 20 × 30 × 10 voxels of 2 × 1 × 4 mm.
    fn image() -> Volume<f32> {
        let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(2.0, 1.0, 4.0, 1.0))).unwrap();
        Volume::from_fn(Grid { shape: [20, 30, 10], affine }, |_| -175.0)
    }

    fn block(image: &Volume<f32>, from: [usize; 3], to: [usize; 3]) -> Vec<u8> {
        let inside = |index: [usize; 3]| (0..3).all(|a| (from[a]..to[a]).contains(&index[a]));
        Volume::from_fn(image.grid().clone(), |index| u8::from(inside(index))).into_voxels()
    }

    fn find(panel: &Picture, colour: Colour) -> Vec<[usize; 2]> {
        let all = (0..panel.height).flat_map(|y| (0..panel.width).map(move |x| [x, y]));
        all.filter(|&at| panel.pixel(at) == colour).collect()
    }

    #[test]
    fn pixels_are_square_in_millimetres() {
        let image = image();
        let nothing = vec![0; image.grid().len()];
        let overlay =
            Overlay { image: &image, truth: &nothing, prediction: &nothing, window_hu: (-175.0, 250.0) };
        let sizes = Plane::ALL.map(|plane| overlay.panel(plane, [10, 15, 5]));
        // 40 × 30 mm, 40 × 40 mm, 30 × 40 mm.
        assert_eq!(sizes.map(|p| [p.width, p.height]), [[420, 315], [420, 420], [315, 420]]);
    }

    #[test]
    fn right_is_on_the_left_and_anterior_and_superior_are_up() {
        let image = image();
        // Truth on the patient's right, anterior, superior; prediction on the left, posterior, inferior.
        let truth = block(&image, [14, 22, 6], [18, 28, 9]);
        let prediction = block(&image, [2, 2, 1], [6, 8, 4]);
        let overlay =
            Overlay { image: &image, truth: &truth, prediction: &prediction, window_hu: (-175.0, 250.0) };
        for (plane, right, left) in [
            (Plane::ALL[0], [15, 0, 7], [3, 0, 2]),
            (Plane::ALL[1], [0, 24, 0], [0, 4, 0]),
            (Plane::ALL[2], [15, 0, 0], [3, 0, 0]),
        ] {
            let mean = |panel: &Picture, colour| {
                let found = find(panel, colour);
                assert!(!found.is_empty());
                let sum = found.iter().fold([0; 2], |s, at| [s[0] + at[0], s[1] + at[1]]);
                sum.map(|s| s / found.len())
            };
            let truth_at = mean(&overlay.panel(plane, right), TRUTH);
            let prediction_at = mean(&overlay.panel(plane, left), PREDICTION);
            assert!(truth_at[0] < prediction_at[0], "towards R or A is left");
            assert!(truth_at[1] < prediction_at[1], "towards A or S is up");
        }
    }

    #[test]
    fn agreement_is_white_and_the_inside_stays_visible() {
        let image = image();
        let both = block(&image, [5, 8, 2], [15, 22, 8]);
        let overlay = Overlay { image: &image, truth: &both, prediction: &both, window_hu: (-175.0, 250.0) };
        let panel = overlay.panel(Plane::ALL[0], overlay.centre());
        assert!(find(&panel, TRUTH).is_empty() && find(&panel, PREDICTION).is_empty());
        assert!(!find(&panel, AGREEMENT).is_empty());
        assert_eq!(panel.pixel([210, 100]), [0; 3]);
    }

    #[test]
    fn a_written_picture_is_a_png_of_the_size_drawn() {
        let image = image();
        let nothing = vec![0; image.grid().len()];
        let overlay =
            Overlay { image: &image, truth: &nothing, prediction: &nothing, window_hu: (-175.0, 250.0) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case.png");
        write(&path, &overlay).unwrap();
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()));
        let reader = decoder.read_info().unwrap();
        assert_eq!(reader.info().width, 420 + 420 + 315 + 40);
    }
}
