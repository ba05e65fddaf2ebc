//! The phantom's body: which tissue lies where.
//!
//! Frame: +x the patient's right, +y anterior, +z superior, origin in the middle of the trunk. Places and radii in the
//! tables are fractions of the trunk's half-axes, so that a patient of another size keeps the arrangement; tubes have
//! their thickness in millimetres, as vessels do. Later organs overwrite earlier ones.

use common::ids::ClassId;
use common::rng::Rng;
use nalgebra::{Rotation3, Vector3};

use super::shape::Solid;

/// Half-axes of the mean trunk, mm.
pub(super) const HALF_AXES_MM: [f64; 3] = [140.0, 100.0, 160.0];
/// Organs end where the elliptic radius x² + y² reaches this.
const ORGAN_LIMIT: f64 = 0.80;

/// How far an organ lies from its mean place at most along each axis, mm. Wide enough that its mean mask says little: a
/// network has to look at the image.
const SHIFT_MM: f64 = 16.0;
/// As [`SHIFT_MM`], for each corner of a tube.
const BEND_MM: f64 = 10.0;
/// Factor of each radius of an ellipsoid.
const STRETCH: std::ops::RangeInclusive<f64> = 0.8..=1.2;
/// Largest tilt of an ellipsoid, degrees.
const TILT_DEG: f64 = 20.0;

/// How the bodies of a group of patients differ in size.
#[derive(Clone, Copy, Debug)]
pub struct SizeSpread {
    /// Range of the factor that all half-axes share.
    pub overall: (f64, f64),
    /// Range of the further factor of each of the half-axes x and y.
    pub across: (f64, f64),
    /// Range of the further factor of the half-axis z.
    pub along: (f64, f64),
}

/// What lies at a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tissue {
    /// Attenuation without noise, HU.
    pub(super) hu: f64,
    /// The organ, if the point is in one.
    pub(super) organ: Option<ClassId>,
}

/// Form of an organ in fractions of the half-axes.
enum Form {
    /// Centres and radii of overlapping ellipsoids.
    Ellipsoids(&'static [([f64; 3], [f64; 3])]),
    /// Corners of the middle line, and thickness/2 in mm.
    Tube(&'static [[f64; 3]], f64),
}

/// One row of the table of organs.
struct Organ {
    class: u8,
    hu: f64,
    /// Share of the scanner's contrast phase that this organ takes up.
    contrast: f64,
    form: Form,
}

/// Organs in painting order (rows of the recipe).
const ORGANS: [Organ; 12] = [
    organ(16, -800.0, Form::Ellipsoids(&[([0.45, 0.0, 0.95], [0.36, 0.62, 0.42])])),
    organ(17, -800.0, Form::Ellipsoids(&[([-0.45, 0.0, 0.95], [0.34, 0.62, 0.42])])),
    organ(7, 30.0, Form::Ellipsoids(&[([-0.32, 0.38, 0.28], [0.27, 0.32, 0.26])])),
    organ(1, 120.0, Form::Ellipsoids(&[([-0.62, -0.28, 0.34], [0.20, 0.34, 0.24])])),
    organ(
        6,
        105.0,
        Form::Ellipsoids(&[
            ([0.42, 0.02, 0.32], [0.40, 0.62, 0.36]),
            ([0.05, 0.40, 0.42], [0.38, 0.32, 0.20]),
        ]),
    ),
    organ(11, 85.0, Form::Tube(&[[0.16, 0.10, -0.06], [-0.08, 0.20, 0.02], [-0.48, -0.02, 0.14]], 13.0)),
    enhanced(2, 165.0, Form::Ellipsoids(&[([0.42, -0.42, -0.14], [0.19, 0.26, 0.30])])),
    enhanced(3, 165.0, Form::Ellipsoids(&[([-0.42, -0.42, -0.06], [0.19, 0.26, 0.30])])),
    organ(4, 8.0, Form::Ellipsoids(&[([0.36, 0.48, 0.0], [0.18, 0.22, 0.20])])),
    organ(9, 140.0, Form::Tube(&[[0.15, -0.22, 0.5], [0.14, -0.24, 0.0], [0.13, -0.26, -0.55]], 12.0)),
    enhanced(8, 200.0, Form::Tube(&[[-0.06, -0.26, 0.9], [-0.08, -0.24, 0.0], [-0.08, -0.26, -0.55]], 11.0)),
    organ(21, 5.0, Form::Ellipsoids(&[([0.0, 0.12, -0.78], [0.32, 0.38, 0.19])])),
];

const fn organ(class: u8, hu: f64, form: Form) -> Organ {
    Organ { class, hu, contrast: 0.0, form }
}

const fn enhanced(class: u8, hu: f64, form: Form) -> Organ {
    Organ { class, hu, contrast: 1.0, form }
}

/// One patient's trunk.
pub(super) struct Body {
    half_axes: Vector3<f64>,
    bowel: Vec<(Solid, f64)>,
    pelvis: [Solid; 2],
    organs: Vec<(ClassId, f64, Vec<Solid>)>,
}

impl Body {
    /// Draws a patient. `contrast_hu` is added to enhanced organs; the organ `missing`, if any, was never there.
    ///
    /// The draws for each organ happen whether or not it is missing: the rest of the patient does not depend on it.
    pub(super) fn sample(
        size: SizeSpread,
        contrast_hu: f64,
        missing: Option<ClassId>,
        rng: &mut impl Rng,
    ) -> Self {
        let half_axes = sample_half_axes(size, rng);
        let bowel = (0..14).map(|_| sample_bowel(&half_axes, rng)).collect();
        let pelvis = [0.62, -0.62].map(|x| {
            ellipsoid(
                &half_axes,
                [x, -0.1, -0.85],
                [0.13, 0.45, 0.28],
                Vector3::zeros(),
                Rotation3::identity(),
            )
        });
        let organs = ORGANS.iter().filter_map(|organ| {
            let solids = organ.sample(&half_axes, rng);
            let hu = organ.hu + organ.contrast * contrast_hu + rng.random_range(-8.0..8.0);
            let class = ClassId::new(organ.class).filter(|&class| Some(class) != missing)?;
            Some((class, hu, solids))
        });
        let organs = organs.collect();
        Self { half_axes, bowel, pelvis, organs }
    }

    /// Half-axes of the trunk, mm.
    pub(super) fn half_axes(&self) -> Vector3<f64> {
        self.half_axes
    }

    /// What lies at `point` (mm, body frame).
    pub(super) fn tissue_at(&self, point: &Vector3<f64>) -> Tissue {
        let radius2 = (point.x / self.half_axes.x).powi(2) + (point.y / self.half_axes.y).powi(2);
        if radius2 < ORGAN_LIMIT {
            let inside =
                |(_, _, solids): &&(ClassId, f64, Vec<Solid>)| solids.iter().any(|s| s.contains(point));
            if let Some(&(class, hu, _)) = self.organs.iter().rev().find(inside) {
                return Tissue { hu, organ: Some(class) };
            }
        }
        Tissue { hu: self.background_at(point, radius2), organ: None }
    }

    /// Attenuation of what is not an organ of the taxonomy: bone, bowel, fat, muscle, air.
    fn background_at(&self, point: &Vector3<f64>, radius2: f64) -> f64 {
        if radius2 < ORGAN_LIMIT && self.pelvis.iter().any(|bone| bone.contains(point)) {
            return 280.0;
        }
        let behind = point.y + 0.62 * self.half_axes.y;
        if point.x * point.x + behind * behind < 20.0 * 20.0 {
            return if point.z.rem_euclid(32.0) < 7.0 { 90.0 } else { 240.0 };
        }
        let shell = match radius2 {
            r if r < 0.76 => -90.0,
            r if r < 0.86 => 55.0,
            r if r < 1.0 => -100.0,
            _ => -1000.0,
        };
        let bowel = self.bowel.iter().rev().find(|(loop_, _)| radius2 < 0.76 && loop_.contains(point));
        bowel.map_or(shell, |&(_, hu)| hu)
    }
}

impl Organ {
    fn sample(&self, half_axes: &Vector3<f64>, rng: &mut impl Rng) -> Vec<Solid> {
        match self.form {
            Form::Ellipsoids(parts) => {
                let shift = Vector3::from_fn(|_, _| rng.random_range(-SHIFT_MM..=SHIFT_MM));
                let stretch: [f64; 3] = std::array::from_fn(|_| rng.random_range(STRETCH));
                let mut tilt = || rng.random_range(-TILT_DEG..=TILT_DEG).to_radians();
                let to_own = Rotation3::from_axis_angle(&Vector3::z_axis(), tilt())
                    * Rotation3::from_axis_angle(&Vector3::y_axis(), tilt());
                let part = |&(centre, radii): &([f64; 3], [f64; 3])| {
                    let radii = std::array::from_fn(|axis| radii[axis] * stretch[axis]);
                    ellipsoid(half_axes, centre, radii, shift, to_own)
                };
                parts.iter().map(part).collect()
            }
            Form::Tube(points, radius) => {
                let mut shifted = |point: &[f64; 3]| {
                    half_axes.component_mul(&Vector3::from(*point))
                        + Vector3::from_fn(|_, _| rng.random_range(-BEND_MM..=BEND_MM))
                };
                let points = points.iter().map(&mut shifted).collect();
                vec![Solid::Tube { points, radius: radius * rng.random_range(0.88..=1.12) }]
            }
        }
    }
}

fn sample_half_axes(size: SizeSpread, rng: &mut impl Rng) -> Vector3<f64> {
    let mut factor = |(low, high): (f64, f64)| rng.random_range(low..=high);
    let overall = factor(size.overall);
    let factors = Vector3::new(factor(size.across), factor(size.across), factor(size.along));
    overall * factors.component_mul(&Vector3::from(HALF_AXES_MM))
}

fn sample_bowel(half_axes: &Vector3<f64>, rng: &mut impl Rng) -> (Solid, f64) {
    let mut within = |low: f64, high: f64| rng.random_range(low..high);
    let centre = [within(-0.5, 0.5), within(-0.1, 0.5), within(-0.65, -0.05)];
    let radii = [within(0.08, 0.16), within(0.10, 0.20), within(0.06, 0.12)];
    let hu = within(20.0, 60.0);
    (ellipsoid(half_axes, centre, radii, Vector3::zeros(), Rotation3::identity()), hu)
}

/// An ellipsoid given in fractions of the half-axes, moved by `shift` mm.
fn ellipsoid(
    half_axes: &Vector3<f64>,
    centre: [f64; 3],
    radii: [f64; 3],
    shift: Vector3<f64>,
    to_own: Rotation3<f64>,
) -> Solid {
    Solid::Ellipsoid {
        centre: half_axes.component_mul(&Vector3::from(centre)) + shift,
        radii: half_axes.component_mul(&Vector3::from(radii)),
        to_own,
    }
}
