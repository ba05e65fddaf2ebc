//! A 3-D array with its place in the world: the type that every step of the data path takes and returns.

use rayon::prelude::*;

use super::geometry::Affine;

/// Where the voxels of a volume lie: their number along each axis, and the map from voxel index to world.
///
/// World coordinates are millimetres in RAS: +x to the patient's right, +y anterior, +z superior.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Voxels along axes 0, 1 and 2.
    pub shape: [usize; 3],
    /// Voxel index → world (RAS, mm).
    pub affine: Affine,
}

impl Grid {
    /// Number of voxels.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the grid holds no voxel at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Offset of voxel `[i, j, k]` in a C-ordered array over this grid.
    #[inline]
    pub fn offset(&self, [i, j, k]: [usize; 3]) -> usize {
        (i * self.shape[1] + j) * self.shape[2] + k
    }
}

/// Voxels over a [`Grid`], C order: axis 2 is fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume<T> {
    grid: Grid,
    voxels: Vec<T>,
}

impl<T> Volume<T> {
    /// Joins a grid and its voxels.
    ///
    /// # Panics
    /// When the number of voxels is not that of the grid: a mistake of the caller, never of a file.
    pub fn new(grid: Grid, voxels: Vec<T>) -> Self {
        assert_eq!(grid.len(), voxels.len(), "voxels must fill the grid {:?}", grid.shape);
        Self { grid, voxels }
    }

    /// The grid.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Voxels along each axis.
    pub fn shape(&self) -> [usize; 3] {
        self.grid.shape
    }

    /// The voxels, C order.
    pub fn voxels(&self) -> &[T] {
        &self.voxels
    }

    /// The voxels, C order, to be changed in place.
    pub fn voxels_mut(&mut self) -> &mut [T] {
        &mut self.voxels
    }

    /// Gives up the grid and keeps the voxels.
    pub fn into_voxels(self) -> Vec<T> {
        self.voxels
    }

    /// The same grid with each voxel passed through `f`.
    pub fn map<U>(&self, f: impl FnMut(&T) -> U) -> Volume<U> {
        Volume { grid: self.grid.clone(), voxels: self.voxels.iter().map(f).collect() }
    }
}

impl<T: Copy + Default + Send> Volume<T> {
    /// The volume whose voxel at each index is `value(index)`; computed in parallel, equal for any number of threads.
    pub fn from_fn(grid: Grid, value: impl Fn([usize; 3]) -> T + Sync) -> Self {
        let [_, ny, nz] = grid.shape;
        let mut voxels = vec![T::default(); grid.len()];
        let fill = |i: usize, slab: &mut [T]| {
            let rows = slab.chunks_exact_mut(nz.max(1)).enumerate();
            rows.for_each(|(j, row)| {
                row.iter_mut().enumerate().for_each(|(k, voxel)| *voxel = value([i, j, k]))
            });
        };
        voxels.par_chunks_mut((ny * nz).max(1)).enumerate().for_each(|(i, slab)| fill(i, slab));
        Self { grid, voxels }
    }
}

impl<T: Copy> Volume<T> {
    /// Voxel at `[i, j, k]`.
    #[inline]
    pub fn at(&self, index: [usize; 3]) -> T {
        self.voxels[self.grid.offset(index)]
    }
}
