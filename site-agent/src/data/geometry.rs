//! Voxel-to-world maps.

use nalgebra::{Matrix3, Matrix4};

/// A voxel-to-world map: finite, invertible, last row `0 0 0 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine(Matrix4<f64>);

impl Affine {
    /// Accepts a matrix only if it is finite and its 3×3 part can be inverted.
    pub fn new(matrix: Matrix4<f64>) -> Option<Self> {
        let linear: Matrix3<f64> = matrix.fixed_view::<3, 3>(0, 0).into();
        let usable = matrix.iter().all(|v| v.is_finite()) && linear.determinant().abs() > 1e-12;
        usable.then_some(Self(matrix))
    }

    /// The 4×4 matrix.
    pub fn matrix(&self) -> &Matrix4<f64> {
        &self.0
    }
}
