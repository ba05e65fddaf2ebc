//! Volumes on a grid of another spacing, and back: §4 of the specification.
//!
//! Rotation and origin are kept, shear is dropped. Images are interpolated linearly (before any windowing), labels take
//! their nearest voxel; outside of the volume its border goes on. Coordinates are `f64`; each voxel of the result is
//! computed on its own, so the number of threads changes no bit.

use nalgebra::{Matrix3, Matrix4, Vector3};
use thiserror::Error;

use super::geometry::Affine;
use super::volume::{Grid, Volume};

/// Most voxels of a resampled volume: 2 GiB as `f32`.
const MOST_VOXELS: f64 = (1u64 << 29) as f64;

/// Entries of two affines closer than this are the same grid: then nothing is resampled.
const SAME_GRID: f64 = 1e-3;

/// A spacing that cannot be had.
#[derive(Debug, Error, PartialEq)]
pub enum ResampleError {
    /// Zero, negative or not a number.
    #[error("voxels of {0:?} mm cannot be made, expected three sizes above zero")]
    BadSpacing([f64; 3]),
    /// The grid would not fit into memory.
    #[error(
        "a volume of {shape:?} voxels resampled to {spacing:?} mm would have {voxels:.0}, above the limit of {}",
        MOST_VOXELS
    )]
    TooLarge {
        /// Voxels of the volume that was to be resampled.
        shape: [usize; 3],
        /// The spacing asked for, mm.
        spacing: [f64; 3],
        /// Voxels that the result would have.
        voxels: f64,
    },
}

/// The way from one grid to a grid of another spacing, and back.
#[derive(Clone, Debug, PartialEq)]
pub struct Resampling {
    from: Grid,
    to: Grid,
}

impl Resampling {
    /// The grid of `spacing` (mm) that covers `from`, with its rotation.
    ///
    /// # Errors
    /// A spacing that is not above zero, or so small that the result would exceed 2²⁹ voxels.
    pub fn plan(from: &Grid, spacing: [f64; 3]) -> Result<Self, ResampleError> {
        if !spacing.iter().all(|size| size.is_finite() && *size > 0.0) {
            return Err(ResampleError::BadSpacing(spacing));
        }
        let linear = without_shear(&from.affine.linear()) * Matrix3::from_diagonal(&spacing.into());
        let bad = || ResampleError::BadSpacing(spacing);
        let at_origin = Affine::from_parts(linear, from.affine.origin()).ok_or_else(bad)?;

        let (low, high) = bounds(&at_origin.voxels_of(&from.affine), from);
        let extent = (high - low).map(|range| (range + 1.0).round_ties_even());
        let voxels = extent.product();
        if voxels > MOST_VOXELS {
            return Err(ResampleError::TooLarge { shape: from.shape, spacing, voxels });
        }
        let shape = [extent.x, extent.y, extent.z].map(|size| size as usize);
        // Without shear no corner lies below voxel 0 and the origin stays, exactly.
        let origin = if low.min() > -1e-6 { from.affine.origin() } else { at_origin.apply(low) };
        let affine = Affine::from_parts(linear, origin).ok_or_else(bad)?;
        let to = Grid { shape, affine };
        let unchanged = same_grid(from, &to);
        Ok(Self { from: from.clone(), to: if unchanged { from.clone() } else { to } })
    }

    /// The grid of the new spacing.
    pub fn grid(&self) -> &Grid {
        &self.to
    }

    /// An image on the new grid, linear between voxels.
    ///
    /// # Panics
    /// When the volume has another shape than the grid that the plan was made for: a mistake of the caller.
    pub fn image(&self, volume: Volume<f32>) -> Volume<f32> {
        assert_eq!(volume.shape(), self.from.shape, "a volume is resampled by its own plan");
        if self.to == self.from {
            return volume;
        }
        let lookup = Lookup::new(&self.from, &self.to, between);
        Volume::from_fn(self.to.clone(), |index| trilinear(&volume, lookup.at(index)))
    }

    /// Labels on the new grid: the nearest voxel's, the even one when two are as near.
    ///
    /// # Panics
    /// As [`Self::image`].
    pub fn labels<T: Copy + Default + Send + Sync>(&self, volume: Volume<T>) -> Volume<T> {
        assert_eq!(volume.shape(), self.from.shape, "a volume is resampled by its own plan");
        nearest(volume, &self.from, &self.to)
    }

    /// For each voxel of the grid that the plan was made for, where it lies between those of the new grid, axis by axis;
    /// none where the axes of the two do not run along each other (a sheared affine).
    pub fn back_between(&self) -> Option<[Vec<Between>; 3]> {
        match Lookup::new(&self.to, &self.from, between) {
            Lookup::Straight(axes) => Some(axes),
            Lookup::Oblique { .. } => None,
        }
    }

    /// Labels on the new grid, brought back to the grid that the plan was made for.
    ///
    /// # Panics
    /// When the volume has another shape than [`Self::grid`]: a mistake of the caller.
    pub fn back<T: Copy + Default + Send + Sync>(&self, volume: Volume<T>) -> Volume<T> {
        assert_eq!(volume.shape(), self.to.shape, "a volume is brought back by its own plan");
        nearest(volume, &self.to, &self.from)
    }
}

fn nearest<T: Copy + Default + Send + Sync>(volume: Volume<T>, from: &Grid, to: &Grid) -> Volume<T> {
    if to == from {
        return volume;
    }
    let lookup = Lookup::new(from, to, closest);
    Volume::from_fn(to.clone(), |index| volume.at(lookup.at(index)))
}

/// The rotation `Q` of `R = Q U`, with `U` upper triangular and positive on its diagonal: voxel axis 0 keeps its direction.
fn without_shear(linear: &Matrix3<f64>) -> Matrix3<f64> {
    let gram = linear.transpose() * linear;
    let lower = gram
        .cholesky()
        .expect("the columns of an affine are independent, so RᵀR is positive definite")
        .unpack();
    let upper = lower.transpose().try_inverse().expect("a Cholesky factor has no zero on its diagonal");
    linear * upper
}

/// The smallest and largest coordinates that the corners of `grid` have through `map`.
fn bounds(map: &Matrix4<f64>, grid: &Grid) -> (Vector3<f64>, Vector3<f64>) {
    let corners = grid.corners().map(|corner| map.transform_point(&corner.into()).coords);
    let [first, ..] = corners;
    corners.iter().fold((first, first), |(low, high), corner| (low.inf(corner), high.sup(corner)))
}

fn same_grid(a: &Grid, b: &Grid) -> bool {
    a.shape == b.shape && (a.affine.matrix() - b.affine.matrix()).amax() <= SAME_GRID
}

/// Two neighbouring voxels along an axis, and how far from the first to the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// The first.
    pub low: usize,
    /// The second; the first again at the end of the axis.
    pub high: usize,
    /// 0 at the first, 1 at the second.
    pub weight: f64,
}

fn between(coordinate: f64, size: usize) -> Between {
    let last = size.saturating_sub(1);
    let clamped = coordinate.clamp(0.0, last as f64);
    let low = clamped as usize;
    Between { low, high: (low + 1).min(last), weight: clamped - low as f64 }
}

fn closest(coordinate: f64, size: usize) -> usize {
    let last = size.saturating_sub(1) as f64;
    coordinate.clamp(0.0, last).round_ties_even() as usize
}

fn trilinear(volume: &Volume<f32>, [x, y, z]: [Between; 3]) -> f32 {
    let mix = |a: f64, b: f64, weight: f64| a + (b - a) * weight;
    let along_z =
        |i, j| mix(f64::from(volume.at([i, j, z.low])), f64::from(volume.at([i, j, z.high])), z.weight);
    let along_y = |i| mix(along_z(i, y.low), along_z(i, y.high), y.weight);
    mix(along_y(x.low), along_y(x.high), x.weight) as f32
}

/// Off-diagonal parts of a map that move no voxel further than this many voxels are rounding: a file holds the rows of a rotated
/// affine as `f32`, which over 512 voxels is a shear of some 1e-5.
const STRAIGHT: f64 = 1e-3;

/// For each voxel of one grid, where to look along each axis of another.
enum Lookup<T> {
    /// The axes of both grids run along each other, so one table for each axis says it all.
    Straight([Vec<T>; 3]),
    /// They do not: each voxel goes through the map.
    Oblique { map: Matrix4<f64>, shape: [usize; 3], look: fn(f64, usize) -> T },
}

impl<T: Copy> Lookup<T> {
    /// `look` turns a coordinate along an axis of `from`, and the size of that axis, into where to look.
    fn new(from: &Grid, to: &Grid, look: fn(f64, usize) -> T) -> Self {
        let map = from.affine.voxels_of(&to.affine);
        let mut crossing = map.fixed_view::<3, 3>(0, 0).into_owned();
        crossing.fill_diagonal(0.0);
        let longest = to.shape.into_iter().max().unwrap_or(0) as f64;
        if crossing.amax() * longest > STRAIGHT {
            return Self::Oblique { map, shape: from.shape, look };
        }
        Self::Straight([0, 1, 2].map(|axis| {
            let coordinate = |index: usize| map[(axis, axis)] * index as f64 + map[(axis, 3)];
            (0..to.shape[axis]).map(|index| look(coordinate(index), from.shape[axis])).collect()
        }))
    }

    #[inline]
    fn at(&self, [i, j, k]: [usize; 3]) -> [T; 3] {
        match self {
            Self::Straight([x, y, z]) => [x[i], y[j], z[k]],
            Self::Oblique { map, shape, look } => {
                let point = map.transform_point(&[i as f64, j as f64, k as f64].into());
                [look(point.x, shape[0]), look(point.y, shape[1]), look(point.z, shape[2])]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nalgebra::Rotation3;
    use proptest::prelude::*;

    use super::*;

    fn grid(shape: [usize; 3], spacing: [f64; 3], angle: f64) -> Grid {
        let linear = Rotation3::from_euler_angles(angle, 0.5 * angle, -angle).matrix()
            * Matrix3::from_diagonal(&spacing.into());
        Grid { shape, affine: Affine::from_parts(linear, Vector3::new(-7.0, 3.0, 11.0)).unwrap() }
    }

    /// An image whose value is a linear function of the place in the world: resampling must reproduce it.
    fn world_ramp(grid: Grid) -> Volume<f32> {
        let affine = grid.affine;
        Volume::from_fn(grid, |index| {
            let at = affine.apply(Vector3::from(index.map(|v| v as f64)));
            (3.0 * at.x - 2.0 * at.y + 0.5 * at.z) as f32
        })
    }

    #[test]
    fn sizes_round_half_to_even() {
        let shape =
            |n| Resampling::plan(&grid([n, 1, 1], [0.5, 1.0, 1.0], 0.0), [1.0; 3]).unwrap().grid().shape[0];
        // (n − 1)/2 + 1 voxels.
        assert_eq!([shape(1), shape(2), shape(3), shape(4), shape(6)], [1, 2, 2, 2, 4]);
    }

    #[test]
    fn the_grid_asked_for_passes_through() {
        let same = grid([4, 5, 6], [1.5; 3], 0.4);
        let plan = Resampling::plan(&same, [1.5; 3]).unwrap();
        assert_eq!(plan.grid(), &same);
        assert_eq!(plan.image(world_ramp(same.clone())), world_ramp(same));
    }

    #[test]
    fn spacings_that_cannot_be_had_are_refused() {
        let from = grid([400, 400, 400], [100.0; 3], 0.0);
        assert!(matches!(Resampling::plan(&from, [0.1; 3]), Err(ResampleError::TooLarge { .. })));
        assert!(matches!(Resampling::plan(&from, [1.0, 0.0, 1.0]), Err(ResampleError::BadSpacing(_))));
        assert!(matches!(Resampling::plan(&from, [1.0, f64::NAN, 1.0]), Err(ResampleError::BadSpacing(_))));
    }

    #[test]
    fn shear_is_dropped_and_the_volume_stays_covered() {
        let sheared = Matrix3::new(1.0, 0.4, 0.0, 0.0, 1.0, 0.3, 0.0, 0.0, 2.0);
        let from = Grid { shape: [9, 8, 7], affine: Affine::from_parts(sheared, Vector3::zeros()).unwrap() };
        let to = Resampling::plan(&from, [1.0; 3]).unwrap();
        let linear = to.grid().affine.linear();
        assert!((linear.transpose() * linear - Matrix3::identity()).amax() < 1e-12);
        let (low, high) = bounds(&to.grid().affine.voxels_of(&from.affine), &from);
        let shape = Vector3::from(to.grid().shape.map(|n| n as f64));
        assert!(low.min() > -1e-9 && (shape - high).min() > 0.49, "{low} {high} {shape}");
    }

    #[test]
    fn axes_run_along_each_other_however_a_file_rounds_a_rotated_affine() {
        for tilt in 1..=20 {
            let exact = grid([512, 512, 300], [0.78, 0.78, 2.5], f64::from(tilt).to_radians());
            let linear = exact.affine.linear().map(|entry| f64::from(entry as f32));
            let stored = Grid { affine: Affine::from_parts(linear, exact.affine.origin()).unwrap(), ..exact };
            assert!(Resampling::plan(&stored, [1.5; 3]).unwrap().back_between().is_some(), "{tilt} degrees");
        }
        let tilted_gantry = Matrix3::new(0.78, 0.0, 0.0, 0.0, 0.78, 0.05, 0.0, 0.0, 2.5);
        let affine = Affine::from_parts(tilted_gantry, Vector3::zeros()).unwrap();
        let sheared = Grid { shape: [512, 512, 300], affine };
        assert!(Resampling::plan(&sheared, [1.5; 3]).unwrap().back_between().is_none());
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let volume = world_ramp(grid([9, 10, 11], [0.7, 1.1, 2.5], 0.3));
        let plan = Resampling::plan(volume.grid(), [1.5; 3]).unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| plan.image(volume.clone()))
        };
        assert_eq!(with(1), with(3));
    }

    proptest! {
        #[test]
        fn a_linear_image_is_reproduced_wherever_the_grids_overlap(
            angle in prop_oneof![Just(0.0), -0.5..0.5f64],
            x in 0.6..3.0f64, y in 0.6..3.0f64, z in 0.6..3.0f64, spacing in 0.6..3.0f64,
        ) {
            let image = world_ramp(grid([8, 9, 10], [x, y, z], angle));
            let plan = Resampling::plan(image.grid(), [spacing, spacing * 1.25, spacing * 0.8]).unwrap();
            let (ours, expected) = (plan.image(image.clone()), world_ramp(plan.grid().clone()));
            let map = image.grid().affine.voxels_of(&plan.grid().affine);
            let [nx, ny, nz] = ours.shape();
            for (i, j, k) in (0..nx).flat_map(|i| (0..ny).flat_map(move |j| (0..nz).map(move |k| (i, j, k)))) {
                let at = map.transform_point(&[i as f64, j as f64, k as f64].into());
                let inside = (0..3).all(|axis| (0.0..=(image.shape()[axis] - 1) as f64).contains(&at[axis]));
                let apart = (ours.at([i, j, k]) - expected.at([i, j, k])).abs();
                prop_assert!(!inside || apart < 1e-3, "{apart} at {i} {j} {k}");
            }
        }

        #[test]
        fn there_and_back_keeps_shape_and_label_set(angle in -0.5..0.5f64, spacing in 0.4..0.9f64) {
            let from = grid([6, 7, 8], [1.0, 1.5, 2.0], angle);
            let labels = Volume::from_fn(from.clone(), |[i, j, k]| (i / 3 + 2 * (j / 4) + 4 * (k / 4)) as u8);
            let plan = Resampling::plan(&from, [spacing; 3]).unwrap();
            let finer = plan.labels(labels.clone());
            // Finer voxels than the file's lose none of them.
            prop_assert_eq!(plan.back(finer), labels);
        }
    }
}
