//! How a body lies in the scanner: shifted, turned about its long axis, and smoothly bent.

use common::rng::Rng;
use nalgebra::{Rotation3, Vector3};

/// How widely poses of a group of patients differ.
#[derive(Clone, Copy, Debug)]
pub struct PoseSpread {
    /// Largest shift along each axis, mm.
    pub shift_mm: f64,
    /// Largest rotation about the long axis, degrees.
    pub turn_deg: f64,
}

/// One sine wave of displacement.
#[derive(Clone, Debug)]
struct Wave {
    amplitude: f64,
    /// Direction times angular frequency, radians per mm.
    wave_vector: Vector3<f64>,
    phase: f64,
}

/// The map from scanner coordinates (RAS, mm, volume centre at the origin) to the undeformed body.
#[derive(Clone, Debug)]
pub(super) struct Pose {
    shift: Vector3<f64>,
    to_body: Rotation3<f64>,
    /// Three waves for each coordinate.
    waves: [[Wave; 3]; 3],
}

impl Pose {
    /// Draws a pose within `spread`.
    pub(super) fn sample(spread: PoseSpread, rng: &mut impl Rng) -> Self {
        let reach = spread.shift_mm;
        let shift = Vector3::from_fn(|_, _| rng.random_range(-reach..=reach));
        let turn = rng.random_range(-spread.turn_deg..=spread.turn_deg).to_radians();
        let waves = std::array::from_fn(|_| std::array::from_fn(|_| Wave::sample(rng)));
        Self { shift, to_body: Rotation3::from_axis_angle(&Vector3::z_axis(), -turn), waves }
    }

    /// Where the scanner's `point` lies in the body's own frame, mm.
    pub(super) fn to_body(&self, point: &Vector3<f64>) -> Vector3<f64> {
        let rigid = self.to_body * (point - self.shift);
        let bend = |axis: usize| self.waves[axis].iter().map(|wave| wave.at(&rigid)).sum::<f64>();
        rigid + Vector3::new(bend(0), bend(1), bend(2))
    }
}

impl Wave {
    fn sample(rng: &mut impl Rng) -> Self {
        let amplitude = rng.random_range(1.0..4.0);
        let wavelength = rng.random_range(110.0..240.0);
        Self {
            amplitude,
            wave_vector: direction(rng) * (std::f64::consts::TAU / wavelength),
            phase: rng.random_range(0.0..std::f64::consts::TAU),
        }
    }

    fn at(&self, point: &Vector3<f64>) -> f64 {
        self.amplitude * (self.wave_vector.dot(point) + self.phase).sin()
    }
}

/// A direction uniform over the sphere: height and angle are uniform (Archimedes).
fn direction(rng: &mut impl Rng) -> Vector3<f64> {
    let height: f64 = rng.random_range(-1.0..=1.0);
    let angle = rng.random_range(0.0..std::f64::consts::TAU);
    let across = (1.0 - height * height).sqrt();
    Vector3::new(across * angle.cos(), across * angle.sin(), height)
}
