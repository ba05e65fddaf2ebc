//! The voxel grid of a phantom's files: anisotropic, and with axes stored the hospital's way.

use nalgebra::{Matrix4, Vector3};

use super::hospital::StoredAxis;
use crate::data::geometry::Affine;
use crate::data::volume::Grid;

/// A grid whose middle is at `centre` (world, mm) and that spans `extent_mm` along R, A and S.
pub(super) fn stored_grid(
    extent_mm: Vector3<f64>,
    spacing_mm: [f64; 3],
    stored_axes: [StoredAxis; 3],
    centre: Vector3<f64>,
) -> Grid {
    let shape = stored_axes.map(|(axis, _)| (extent_mm[axis] / spacing_mm[axis]).round().max(1.0) as usize);
    let mut matrix = Matrix4::identity();
    matrix.fixed_view_mut::<3, 3>(0, 0).fill(0.0);
    let mut origin = centre;
    for (stored, (axis, direction)) in stored_axes.into_iter().enumerate() {
        let step = direction * spacing_mm[axis];
        matrix[(axis, stored)] = step;
        origin[axis] -= step * (shape[stored] as f64 - 1.0) / 2.0;
    }
    matrix.fixed_view_mut::<3, 1>(0, 3).copy_from(&origin);
    // Each world axis occurs once, with a non-zero step: the matrix is a scaled signed permutation.
    let affine = Affine::new(matrix).expect("stored axes are a signed permutation of R, A, S");
    Grid { shape, affine }
}
