//! Augmentations of a crop (specification §5), drawn from the crop's own generator. All are off unless a study sets them.

use common::rng::Rng;
use common::study::sections::Augmentation as Settings;

/// The variation of one crop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augmentation {
    /// Enlargement of the volume, 1 for none.
    pub zoom: f64,
    /// Quarter turns in the plane of axes 0 and 1, 0 to 3.
    pub quarter_turns: u8,
    /// Added to the windowed intensity, which is not clipped again.
    pub shift: f32,
}

impl Augmentation {
    /// Draws one. The number of draws does not depend on what is drawn.
    pub fn draw(settings: &Settings, rng: &mut impl Rng) -> Self {
        let happens: [f64; 3] = std::array::from_fn(|_| rng.random());
        let place: f64 = rng.random();
        let turns = rng.random_range(1..=3);
        let shift = (2.0 * rng.random::<f64>() - 1.0) * settings.intensity_shift_max;
        let [low, high] = settings.zoom_range;
        Self {
            zoom: if happens[0] < settings.zoom_probability { low + place * (high - low) } else { 1.0 },
            quarter_turns: if happens[1] < settings.rotate_90_probability { turns } else { 0 },
            shift: if happens[2] < settings.intensity_shift_probability { shift as f32 } else { 0.0 },
        }
    }
}

/// Turns a patch in the plane of axes 0 and 1, axis 0 towards axis 1 (NumPy's `rot90` with axes (0, 1)).
///
/// A patch whose two sides differ can only be turned by a half: an odd turn leaves it as it is.
pub fn turn<T: Copy>(values: &[T], shape: [usize; 3], quarter_turns: u8) -> Vec<T> {
    let [nx, ny, nz] = shape;
    let source: fn(usize, usize, usize, usize) -> (usize, usize) = match quarter_turns % 4 {
        2 => |i, j, nx, ny| (nx - 1 - i, ny - 1 - j),
        1 if nx == ny => |i, j, _, ny| (j, ny - 1 - i),
        3 if nx == ny => |i, j, nx, _| (nx - 1 - j, i),
        _ => return values.to_vec(),
    };
    let mut turned = Vec::with_capacity(values.len());
    for i in 0..nx {
        for j in 0..ny {
            let (x, y) = source(i, j, nx, ny);
            let row = (x * ny + y) * nz;
            turned.extend_from_slice(&values[row..row + nz]);
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::rng::{ChaCha8Rng, SeedableRng};

    #[test]
    fn turns_agree_with_the_definition_and_four_of_them_are_none() {
        let square = [1, 2, 3, 4];
        assert_eq!(turn(&square, [2, 2, 1], 1), [2, 4, 1, 3]);
        assert_eq!(turn(&square, [2, 2, 1], 2), [4, 3, 2, 1]);
        assert_eq!(turn(&square, [2, 2, 1], 3), [3, 1, 4, 2]);
        let once = turn(&square, [2, 2, 1], 1);
        assert_eq!(turn(&once, [2, 2, 1], 3), square);
        assert_eq!(turn(&[1, 2, 3, 4, 5, 6], [2, 3, 1], 1), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn settings_of_zero_change_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let drawn = Augmentation::draw(&Settings::default(), &mut rng);
            assert_eq!(drawn, Augmentation { zoom: 1.0, quarter_turns: 0, shift: 0.0 });
        }
    }

    #[test]
    fn each_augmentation_happens_as_often_and_as_strongly_as_asked() {
        let settings = Settings {
            zoom_probability: 0.3,
            zoom_range: [1.3, 1.5],
            rotate_90_probability: 0.1,
            intensity_shift_probability: 0.2,
            intensity_shift_max: 0.1,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let drawn: Vec<Augmentation> = (0..4000).map(|_| Augmentation::draw(&settings, &mut rng)).collect();
        let share = |happened: fn(&Augmentation) -> bool| {
            drawn.iter().filter(|drawn| happened(drawn)).count() as f64 / drawn.len() as f64
        };
        assert!((share(|a| a.zoom > 1.0) - 0.3).abs() < 0.03);
        assert!((share(|a| a.quarter_turns > 0) - 0.1).abs() < 0.03);
        assert!((share(|a| a.shift != 0.0) - 0.2).abs() < 0.03);
        assert!(drawn.iter().all(|a| a.zoom == 1.0 || (1.3..1.5).contains(&a.zoom)));
        assert!(drawn.iter().all(|a| a.shift.abs() <= 0.1));
    }
}
