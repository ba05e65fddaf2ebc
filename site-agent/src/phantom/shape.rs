//! Solids that organs are built from, in millimetres of the body's own frame.

use nalgebra::{Rotation3, Vector3};

/// A solid that can say whether a point lies inside it.
#[derive(Clone, Debug)]
pub(super) enum Solid {
    /// A tilted ellipsoid.
    Ellipsoid {
        /// Its middle, mm.
        centre: Vector3<f64>,
        /// Half-axes, mm.
        radii: Vector3<f64>,
        /// From the body's axes to its own.
        to_own: Rotation3<f64>,
    },
    /// A round tube along a line of points.
    Tube {
        /// Corners of its middle line, mm.
        points: Vec<Vector3<f64>>,
        /// Half its thickness, mm.
        radius: f64,
    },
}

impl Solid {
    /// Whether `point` (mm) lies inside.
    pub(super) fn contains(&self, point: &Vector3<f64>) -> bool {
        match self {
            Self::Ellipsoid { centre, radii, to_own } => {
                let from_centre = point - centre;
                let reach = radii.max();
                if from_centre.norm_squared() > reach * reach {
                    return false;
                }
                (to_own * from_centre).component_div(radii).norm_squared() < 1.0
            }
            Self::Tube { points, radius } => {
                points.windows(2).any(|ends| distance_squared(point, &ends[0], &ends[1]) < radius * radius)
            }
        }
    }
}

/// Squared distance of `point` from the segment between `from` and `to`.
fn distance_squared(point: &Vector3<f64>, from: &Vector3<f64>, to: &Vector3<f64>) -> f64 {
    let along = to - from;
    let share = ((point - from).dot(&along) / along.norm_squared()).clamp(0.0, 1.0);
    (point - from - along * share).norm_squared()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilted_ellipsoid_reaches_along_its_tilted_axis() {
        let quarter = Rotation3::from_axis_angle(&Vector3::z_axis(), std::f64::consts::FRAC_PI_2);
        let solid = Solid::Ellipsoid {
            centre: Vector3::new(1.0, 0.0, 0.0),
            radii: Vector3::new(10.0, 2.0, 2.0),
            to_own: quarter,
        };
        assert!(solid.contains(&Vector3::new(1.0, 9.0, 0.0)));
        assert!(!solid.contains(&Vector3::new(9.0, 0.0, 0.0)));
    }

    #[test]
    fn a_tube_ends_in_round_caps() {
        let points = vec![Vector3::zeros(), Vector3::new(0.0, 0.0, 10.0)];
        let solid = Solid::Tube { points, radius: 2.0 };
        assert!(solid.contains(&Vector3::new(1.9, 0.0, 5.0)));
        assert!(solid.contains(&Vector3::new(0.0, 0.0, 11.9)));
        assert!(!solid.contains(&Vector3::new(1.5, 0.0, 11.5)));
    }
}
