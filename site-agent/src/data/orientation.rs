//! Which way the voxel axes run through the patient, and turning a volume to RAS and back without touching a value.
//!
//! Only permutations and flips of axes: an oblique volume keeps its angle, and its closest axes are taken. The rule is
//! that of nibabel's `io_orientation`, so that files turn here as they do in the tools which hospitals use.

use std::fmt;

use nalgebra::Matrix3;

use super::geometry::Affine;
use super::nifti::PlacedBy;
use super::volume::{Grid, Volume};

/// For each voxel axis, the world axis that it runs closest to, and whether against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation([Direction; 3]);

/// The way one voxel axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Direction {
    /// 0: left–right, 1: posterior–anterior, 2: inferior–superior.
    world: usize,
    /// Towards left, posterior or inferior.
    reversed: bool,
}

impl Orientation {
    /// The orientation closest to an affine.
    ///
    /// The columns, scaled to unit length, are replaced by the closest orthogonal matrix (so that shear favours no
    /// axis); then the column that is nearest to a world axis chooses first.
    pub fn of(affine: &Affine) -> Self {
        let mut closest = closest_orthogonal(&affine.linear());
        let mut by_certainty = [0, 1, 2];
        let largest = [0, 1, 2].map(|axis| closest.column(axis).amax());
        by_certainty.sort_by(|&a, &b| largest[b].total_cmp(&largest[a]));

        let mut directions = [Direction { world: 0, reversed: false }; 3];
        for axis in by_certainty {
            let column = closest.column(axis);
            let world = column.iamax();
            directions[axis] = Direction { world, reversed: column[world] < 0.0 };
            closest.row_mut(world).fill(0.0);
        }
        Self(directions)
    }

    /// The voxel axis that runs along a world axis.
    fn axis_along(&self, world: usize) -> usize {
        self.0.iter().position(|d| d.world == world).expect("every world axis is given to one voxel axis")
    }
}

/// As three letters, the way in which each voxel index grows: `LPS` is what DICOM stores, `RAS` is our own.
impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [[char; 2]; 3] = [['R', 'L'], ['A', 'P'], ['S', 'I']];
        self.0.iter().try_for_each(|d| write!(f, "{}", LETTERS[d.world][usize::from(d.reversed)]))
    }
}

/// The orthogonal matrix closest to the directions of the columns: `U Vᵀ` of their singular value decomposition.
pub(super) fn closest_orthogonal(linear: &Matrix3<f64>) -> Matrix3<f64> {
    let mut directions = *linear;
    directions.column_iter_mut().for_each(|mut column| {
        column.normalize_mut();
    });
    let svd = directions.svd(true, true);
    let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else { return directions };
    u * v_t
}

/// A file that does not say how the patient lies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the file has no orientation (qform_code and sform_code are 0): left and right may be exchanged\n\n\
     hint: export the scan again, with its orientation. If you know that its voxels run to the left, to the front and \
     to the head (LAS), write `orientation = \"assume\"` for this case in cases.toml; `predict` has --assume-orientation"
)]
pub struct NoOrientation;

/// Whether the file says how the patient lies in it. Readers guess differently where it does not, and a wrong guess makes
/// a right kidney of a left one.
///
/// # Errors
/// [`NoOrientation`], with the setting by which the site takes the responsibility.
pub fn check_orientation(placed_by: PlacedBy) -> Result<(), NoOrientation> {
    match placed_by {
        PlacedBy::Sform | PlacedBy::Qform => Ok(()),
        PlacedBy::Assumed => Err(NoOrientation),
    }
}

/// A turn from a file's own axes to RAS, and the way back.
#[derive(Clone, Debug, PartialEq)]
pub struct Reorientation {
    file: Grid,
    orientation: Orientation,
}

impl Reorientation {
    /// The turn that a volume on `file` needs.
    pub fn of(file: &Grid) -> Self {
        Self { file: file.clone(), orientation: Orientation::of(&file.affine) }
    }

    /// The grid of the file, to which [`Self::undo`] returns.
    pub fn file_grid(&self) -> &Grid {
        &self.file
    }

    /// How the file's axes run.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The same voxels with axes in the order and direction R, A, S.
    pub fn ras_grid(&self) -> Grid {
        let axes = [0, 1, 2].map(|world| self.orientation.axis_along(world));
        let steps = self.file.affine.linear();
        let mut linear = Matrix3::zeros();
        let mut origin = self.file.affine.origin();
        for (world, &axis) in axes.iter().enumerate() {
            let reversed = self.orientation.0[axis].reversed;
            let last = self.file.shape[axis].saturating_sub(1) as f64;
            linear.set_column(world, &(steps.column(axis) * if reversed { -1.0 } else { 1.0 }));
            origin += steps.column(axis) * if reversed { last } else { 0.0 };
        }
        let affine = Affine::from_parts(linear, origin).expect("turning axes keeps an affine invertible");
        Grid { shape: axes.map(|axis| self.file.shape[axis]), affine }
    }

    /// Turns a volume with the file's axes to RAS.
    ///
    /// # Panics
    /// When the volume has another shape than the file: a mistake of the caller.
    pub fn to_ras<T: Copy + Default + Send + Sync>(&self, volume: &Volume<T>) -> Volume<T> {
        assert_eq!(volume.shape(), self.file.shape, "a volume is turned by the turn of its own file");
        let axes = [0, 1, 2].map(|world| self.orientation.axis_along(world));
        let walk = axes.map(|axis| (axis, self.orientation.0[axis].reversed));
        rearrange(volume, self.ras_grid(), walk)
    }

    /// Turns a volume in RAS back to the file's axes, exactly.
    ///
    /// # Panics
    /// When the volume has another shape than [`Self::ras_grid`]: a mistake of the caller.
    pub fn undo<T: Copy + Default + Send + Sync>(&self, volume: &Volume<T>) -> Volume<T> {
        assert_eq!(volume.shape(), self.ras_grid().shape, "a volume is turned back by its own turn");
        let walk = self.orientation.0.map(|d| (d.world, d.reversed));
        rearrange(volume, self.file.clone(), walk)
    }
}

/// Turns a volume to RAS; the second part of the result turns volumes of that shape back.
pub fn to_ras<T: Copy + Default + Send + Sync>(volume: &Volume<T>) -> (Volume<T>, Reorientation) {
    let turn = Reorientation::of(volume.grid());
    (turn.to_ras(volume), turn)
}

/// The source on `grid`, with axis `i` walking along axis `walk[i].0` of the source, from its end if `walk[i].1`.
fn rearrange<T: Copy + Default + Send + Sync>(
    source: &Volume<T>,
    grid: Grid,
    walk: [(usize, bool); 3],
) -> Volume<T> {
    let shape = source.shape();
    Volume::from_fn(grid, |index| {
        let mut from = [0; 3];
        for ((axis, reversed), at) in walk.into_iter().zip(index) {
            from[axis] = if reversed { shape[axis] - 1 - at } else { at };
        }
        source.at(from)
    })
}

#[cfg(test)]
mod tests {
    use nalgebra::{Rotation3, Vector3};
    use proptest::prelude::*;

    use super::*;

    /// 2×3×4 voxels, each with a value of its own.
    fn asymmetric(linear: Matrix3<f64>) -> Volume<u16> {
        let affine = Affine::from_parts(linear, Vector3::new(10.0, -20.0, 30.0)).unwrap();
        Volume::new(Grid { shape: [2, 3, 4], affine }, (0..24).collect())
    }

    /// The 48 ways to lay voxel axes along world axes, each with spacing 1, 2, 3 mm along its voxel axes.
    fn axis_aligned() -> Vec<Matrix3<f64>> {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let laid = |order: [usize; 3], signs: usize| {
            let mut linear = Matrix3::zeros();
            for (axis, world) in order.into_iter().enumerate() {
                let sign = if signs >> axis & 1 == 1 { -1.0 } else { 1.0 };
                linear[(world, axis)] = sign * (axis + 1) as f64;
            }
            linear
        };
        orders.into_iter().flat_map(|order| (0..8).map(move |signs| laid(order, signs))).collect()
    }

    /// The world position of every value, sorted by value.
    fn places(volume: &Volume<u16>) -> Vec<(u16, [f64; 3])> {
        let [nx, ny, nz] = volume.shape();
        let mut places = Vec::new();
        for (x, y, z) in (0..nx).flat_map(|x| (0..ny).flat_map(move |y| (0..nz).map(move |z| (x, y, z)))) {
            let at = volume.grid().affine.apply(Vector3::new(x as f64, y as f64, z as f64));
            places.push((volume.at([x, y, z]), at.into()));
        }
        places.sort_by_key(|(value, _)| *value);
        places
    }

    #[test]
    fn the_letters_say_where_each_index_grows() {
        let lps = Matrix3::from_diagonal(&Vector3::new(-1.0, -1.0, 1.0));
        assert_eq!(Reorientation::of(asymmetric(lps).grid()).orientation().to_string(), "LPS");
        let pir = Matrix3::new(0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0);
        assert_eq!(Reorientation::of(asymmetric(pir).grid()).orientation().to_string(), "PIR");
    }

    #[test]
    fn every_axis_aligned_volume_turns_to_ras_and_back_exactly() {
        for linear in axis_aligned() {
            let file = asymmetric(linear);
            let (ras, turn) = to_ras(&file);
            assert_eq!(Orientation::of(&ras.grid().affine).to_string(), "RAS");
            assert_eq!(places(&ras), places(&file), "every value stays where it is in the world");
            assert_eq!(turn.undo(&ras), file);
        }
    }

    proptest! {
        #[test]
        fn oblique_volumes_keep_every_voxel_in_its_place(
            which in 0usize..48, roll in -0.7..0.7f64, pitch in -0.7..0.7f64, yaw in -0.7..0.7f64,
        ) {
            let rotation = Rotation3::from_euler_angles(roll, pitch, yaw);
            let file = asymmetric(rotation.matrix() * axis_aligned()[which]);
            let (ras, turn) = to_ras(&file);
            prop_assert_eq!(turn.undo(&ras), file.clone());
            for ((_, ours), (_, files)) in places(&ras).iter().zip(places(&file)) {
                prop_assert!((0..3).all(|i| (ours[i] - files[i]).abs() < 1e-9));
            }
        }

        #[test]
        fn small_tilts_and_shears_do_not_change_the_letters(which in 0usize..48, tilt in -0.3..0.3f64, shear in -0.3..0.3f64) {
            let straight = axis_aligned()[which];
            let tilted = Rotation3::from_euler_angles(tilt, -tilt, tilt).matrix() * straight;
            let sheared = straight * Matrix3::new(1.0, shear, 0.0, 0.0, 1.0, shear, 0.0, 0.0, 1.0);
            let letters = |m| Reorientation::of(asymmetric(m).grid()).orientation();
            prop_assert_eq!(letters(tilted), letters(straight));
            prop_assert_eq!(letters(sheared), letters(straight));
        }
    }
}
