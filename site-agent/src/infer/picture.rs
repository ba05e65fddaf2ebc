//! RGB pictures with the few letters that radiology needs, as PNG. What is drawn is for [`super::overlay`] and
//! [`super::preview`] to say; `slices` cuts the scan.

use std::io::Write;

/// Red, green, blue.
pub type Colour = [u8; 3];

/// An RGB picture.
pub struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A black picture.
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height * 3] }
    }

    /// Colour of a pixel, counted from the upper left.
    pub fn pixel(&self, [x, y]: [usize; 2]) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// Colours a pixel; outside of the picture nothing happens.
    pub(super) fn set(&mut self, [x, y]: [usize; 2], colour: Colour) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// Lays `part` over this picture, its upper left corner at `[x, y]`.
    pub(super) fn place(&mut self, part: &Self, [x, y]: [usize; 2]) {
        for py in 0..part.height {
            (0..part.width).for_each(|px| self.set([x + px, y + py], part.pixel([px, py])));
        }
    }

    /// Writes capital letters; where the text ends.
    pub(super) fn write(&mut self, text: &str, [x, y]: [usize; 2], colour: Colour) -> usize {
        for (index, letter) in text.chars().enumerate() {
            self.glyph(letter, [x + index * 12, y], colour);
        }
        x + text.len() * 12
    }

    /// A letter of 5 × 7 dots, each 2 × 2 pixels.
    pub(super) fn glyph(&mut self, letter: char, [x, y]: [usize; 2], colour: Colour) {
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
