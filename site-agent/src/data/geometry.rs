//! Voxel-to-world maps, and whether an image and its labels lie in the same place.
//!
//! All arithmetic is `f64`. How axes are named and turned is in [`super::orientation`]; how grids of another spacing are
//! made is in [`super::resample`].

use nalgebra::{Matrix3, Matrix4, Vector3, Vector4};
use thiserror::Error;

use super::orientation::Reorientation;
use super::volume::Grid;

/// A voxel-to-world map: finite, invertible, last row `0 0 0 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine(Matrix4<f64>);

impl Affine {
    /// Accepts a matrix only if it is finite, its last row is `0 0 0 1` and its 3×3 part can be inverted.
    ///
    /// Invertible means here: the unit vectors along the voxel axes span a volume above 1e-6, whatever the voxel size.
    pub fn new(matrix: Matrix4<f64>) -> Option<Self> {
        if !matrix.iter().all(|v| v.is_finite()) || matrix.row(3) != Vector4::w().transpose() {
            return None;
        }
        let candidate = Self(matrix);
        let spacing = candidate.spacing();
        let volume = candidate.linear().determinant().abs();
        let usable = spacing.iter().all(|&s| s > 0.0) && volume / spacing.iter().product::<f64>() > 1e-6;
        usable.then_some(candidate)
    }

    /// Joins a 3×3 part (columns: one voxel step along each axis, mm) and the world position of voxel `[0, 0, 0]`.
    pub fn from_parts(linear: Matrix3<f64>, origin: Vector3<f64>) -> Option<Self> {
        let mut matrix = Matrix4::identity();
        matrix.fixed_view_mut::<3, 3>(0, 0).copy_from(&linear);
        matrix.fixed_view_mut::<3, 1>(0, 3).copy_from(&origin);
        Self::new(matrix)
    }

    /// The 4×4 matrix.
    pub fn matrix(&self) -> &Matrix4<f64> {
        &self.0
    }

    /// The 3×3 part: column `i` is one voxel step along axis `i`, in mm.
    pub fn linear(&self) -> Matrix3<f64> {
        self.0.fixed_view::<3, 3>(0, 0).into()
    }

    /// World position (RAS, mm) of the centre of voxel `[0, 0, 0]`.
    pub fn origin(&self) -> Vector3<f64> {
        self.0.fixed_view::<3, 1>(0, 3).into()
    }

    /// Distance between voxel centres along each voxel axis, in mm.
    pub fn spacing(&self) -> [f64; 3] {
        let linear = self.linear();
        [0, 1, 2].map(|axis| linear.column(axis).norm())
    }

    /// World position (RAS, mm) of a point given in voxels.
    pub fn apply(&self, voxel: Vector3<f64>) -> Vector3<f64> {
        self.linear() * voxel + self.origin()
    }

    /// The same map with its origin moved to the voxel `start`.
    pub fn shifted(&self, start: [usize; 3]) -> Self {
        let origin = self.apply(Vector3::from(start.map(|v| v as f64)));
        let mut matrix = self.0;
        matrix.fixed_view_mut::<3, 1>(0, 3).copy_from(&origin);
        Self(matrix)
    }

    /// The map from voxels of `other` to voxels of `self`, through the world: `self⁻¹ · other`.
    pub fn voxels_of(&self, other: &Self) -> Matrix4<f64> {
        // Solved in two parts, because inverting the 4×4 matrix mixes millimetres of the origin into the rotation.
        let linear = self.linear();
        let inverse = linear.try_inverse().expect("the constructor accepts invertible maps alone");
        let mut matrix = Matrix4::identity();
        matrix.fixed_view_mut::<3, 3>(0, 0).copy_from(&(inverse * other.linear()));
        matrix.fixed_view_mut::<3, 1>(0, 3).copy_from(&(inverse * (other.origin() - self.origin())));
        matrix
    }
}

impl Grid {
    /// The centres of the eight corner voxels, in voxels; the first is `[0, 0, 0]`.
    pub fn corners(&self) -> [Vector3<f64>; 8] {
        std::array::from_fn(|corner| {
            Vector3::from_fn(|axis, _| {
                let last = self.shape[axis].saturating_sub(1) as f64;
                if corner >> axis & 1 == 1 { last } else { 0.0 }
            })
        })
    }
}

/// How far labels may lie from their image, in voxels of the image: rounding of files, never a different place.
const MISPLACED: f64 = 0.1;

/// Labels that do not lie on their image.
#[derive(Debug, Error, PartialEq)]
pub enum GeometryMismatch {
    /// The numbers of voxels differ, along the axes R, A, S.
    #[error("the labels have {labels:?} voxels along R, A, S where the image has {image:?}")]
    Shape {
        /// Voxels of the image.
        image: [usize; 3],
        /// Voxels of the labels.
        labels: [usize; 3],
    },
    /// A corner of the labels lies elsewhere in the world than that corner of the image.
    #[error(
        "the labels lie {apart_mm:.3} mm away from the image (at most {allowed_mm:.3} mm is rounding): \
         voxel {voxel:?} is at {labels_mm:.3?} in the labels and at {image_mm:.3?} in the image (RAS, mm)"
    )]
    Place {
        /// The corner where the distance is largest, in RAS voxels.
        voxel: [usize; 3],
        /// Its place in the image's world, mm.
        image_mm: [f64; 3],
        /// Its place in the labels' world, mm.
        labels_mm: [f64; 3],
        /// The distance, mm.
        apart_mm: f64,
        /// The largest distance taken for rounding, mm.
        allowed_mm: f64,
    },
}

impl GeometryMismatch {
    /// A stable short name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Shape { .. } => "shape_mismatch",
            Self::Place { .. } => "affine_mismatch",
        }
    }
}

/// Whether labels lie on the image they belong to, once both are turned to RAS: files may store their axes differently.
///
/// # Errors
/// Another shape, or any corner of the volume more than a tenth of the image's smallest voxel side away.
pub fn geometry_matches(image: &Grid, labels: &Grid) -> Result<(), GeometryMismatch> {
    let image = Reorientation::of(image).ras_grid();
    let labels = Reorientation::of(labels).ras_grid();
    if image.shape != labels.shape {
        return Err(GeometryMismatch::Shape { image: image.shape, labels: labels.shape });
    }
    let allowed_mm = MISPLACED * image.affine.spacing().into_iter().fold(f64::INFINITY, f64::min);
    let places = image.corners().map(|voxel| (voxel, image.affine.apply(voxel), labels.affine.apply(voxel)));
    for (voxel, at, labels_at) in places {
        let apart_mm = (at - labels_at).norm();
        if apart_mm > allowed_mm {
            return Err(GeometryMismatch::Place {
                voxel: [voxel.x, voxel.y, voxel.z].map(|v| v as usize),
                image_mm: at.into(),
                labels_mm: labels_at.into(),
                apart_mm,
                allowed_mm,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(shape: [usize; 3], diagonal: [f64; 3], origin: [f64; 3]) -> Grid {
        let linear = Matrix3::from_diagonal(&Vector3::from(diagonal));
        Grid { shape, affine: Affine::from_parts(linear, Vector3::from(origin)).unwrap() }
    }

    #[test]
    fn an_affine_that_cannot_be_inverted_is_refused() {
        let flat = Matrix3::new(1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0);
        assert_eq!(Affine::from_parts(flat, Vector3::zeros()), None);
        assert_eq!(Affine::from_parts(Matrix3::identity() * f64::NAN, Vector3::zeros()), None);
        let mut projective = Matrix4::identity();
        projective[(3, 0)] = 0.1;
        assert_eq!(Affine::new(projective), None);
        assert!(Affine::from_parts(Matrix3::identity() * 1e-3, Vector3::zeros()).is_some());
    }

    #[test]
    fn labels_stored_with_other_axes_match_their_image() {
        let image = grid([4, 5, 6], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]);
        let labels = grid([4, 5, 6], [-1.0, -2.0, 3.0], [3.0, 8.0, 0.0]);
        assert_eq!(geometry_matches(&image, &labels), Ok(()));
    }

    #[test]
    fn a_mismatch_says_what_differs() {
        let image = grid([4, 5, 6], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]);
        let shape = geometry_matches(&image, &grid([4, 5, 7], [1.0, 2.0, 3.0], [0.0; 3])).unwrap_err();
        assert_eq!(shape, GeometryMismatch::Shape { image: [4, 5, 6], labels: [4, 5, 7] });
        let flipped = geometry_matches(&image, &grid([4, 5, 6], [-1.0, 2.0, 3.0], [0.0; 3])).unwrap_err();
        assert!(
            matches!(flipped, GeometryMismatch::Place { apart_mm, .. } if apart_mm == 3.0),
            "{flipped:?}"
        );
        let scaled = geometry_matches(&image, &grid([4, 5, 6], [1.0, 2.0, 3.1], [0.0; 3])).unwrap_err();
        assert_eq!(scaled.code(), "affine_mismatch");
        assert_eq!(geometry_matches(&image, &grid([4, 5, 6], [1.0, 2.0, 3.001], [0.05, 0.0, 0.0])), Ok(()));
    }
}
