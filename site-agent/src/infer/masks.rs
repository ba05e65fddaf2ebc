//! What thresholded sigmoids leave: a mask per class. Masks may overlap (an organ contains its tumour).

use common::ids::ClassId;

use crate::data::preprocess::Journey;
use crate::data::volume::{Grid, Volume};

/// Masks of all classes over one grid, eight to a byte: 32 classes take the space of one `f32` volume.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassMasks {
    grid: Grid,
    classes: usize,
    /// Bit `c % 8` of volume `c / 8` is channel `c`.
    planes: Vec<Volume<u8>>,
}

impl ClassMasks {
    /// Empty masks of `classes` channels.
    pub fn empty(grid: Grid, classes: usize) -> Self {
        let plane = || Volume::new(grid.clone(), vec![0; grid.len()]);
        let planes = (0..classes.div_ceil(8)).map(|_| plane()).collect();
        Self { grid, classes, planes }
    }

    /// The grid.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Number of channels.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Whether voxel `offset` (C order) belongs to `class`; never, if there is no such channel.
    #[inline]
    pub fn contains(&self, class: ClassId, offset: usize) -> bool {
        let channel = class.channel();
        channel < self.classes && self.planes[channel / 8].voxels()[offset] & (1 << (channel % 8)) != 0
    }

    /// Adds the voxels from `first` on whose flag is set to channel `channel`.
    ///
    /// # Panics
    /// When there is no such channel, or `first` lies beyond the grid: a mistake of the caller.
    pub fn insert(&mut self, channel: usize, first: usize, flags: impl Iterator<Item = bool>) {
        assert!(channel < self.classes, "channel {channel} of {}", self.classes);
        let bit = 1 << (channel % 8);
        let voxels = &mut self.planes[channel / 8].voxels_mut()[first..];
        voxels.iter_mut().zip(flags).filter(|(_, flag)| *flag).for_each(|(voxel, _)| *voxel |= bit);
    }

    /// Makes `flags`, C order over the grid, the whole mask of `class`.
    ///
    /// # Panics
    /// When there is no such channel: a mistake of the caller.
    pub fn replace(&mut self, class: ClassId, flags: impl Iterator<Item = bool>) {
        let channel = class.channel();
        assert!(channel < self.classes, "channel {channel} of {}", self.classes);
        let bit = 1 << (channel % 8);
        for (voxel, flag) in self.planes[channel / 8].voxels_mut().iter_mut().zip(flags) {
            *voxel = if flag { *voxel | bit } else { *voxel & !bit };
        }
    }

    /// Mask of one class, C order.
    pub fn mask(&self, class: ClassId) -> Vec<bool> {
        (0..self.grid.len()).map(|offset| self.contains(class, offset)).collect()
    }

    /// The masks on the grid of the image's file; outside of the crop nothing belongs to any class.
    pub fn restore(&self, journey: &Journey) -> Self {
        let planes = self.planes.iter().map(|plane| journey.restore(plane, 0)).collect();
        Self { grid: journey.file_grid().clone(), classes: self.classes, planes }
    }

    /// The masks with their volumes passed through `f`, which keeps every voxel's value and only moves it.
    pub fn moved(&self, grid: Grid, f: impl Fn(&Volume<u8>) -> Volume<u8>) -> Self {
        Self { grid, classes: self.classes, planes: self.planes.iter().map(f).collect() }
    }
}

#[cfg(test)]
mod tests {
    use nalgebra::Matrix4;

    use super::*;
    use crate::data::geometry::Affine;

    #[test]
    fn classes_overlap_without_disturbing_one_another() {
        let grid = Grid { shape: [1, 2, 3], affine: Affine::new(Matrix4::identity()).unwrap() };
        let mut masks = ClassMasks::empty(grid, 9);
        masks.insert(0, 0, [true, true].into_iter());
        masks.insert(7, 1, [true, false, true].into_iter());
        masks.insert(8, 0, [false, true].into_iter());
        let of = |id| masks.mask(ClassId::new(id).unwrap());
        assert_eq!(of(1), [true, true, false, false, false, false]);
        assert_eq!(of(8), [false, true, false, true, false, false]);
        assert_eq!(of(9), [false, true, false, false, false, false]);
        assert_eq!(of(10), [false; 6]);
    }

    #[test]
    fn a_replaced_mask_keeps_nothing_of_the_old_and_leaves_its_neighbours() {
        let grid = Grid { shape: [1, 1, 3], affine: Affine::new(Matrix4::identity()).unwrap() };
        let mut masks = ClassMasks::empty(grid, 8);
        masks.insert(2, 0, [true, true, true].into_iter());
        masks.insert(3, 0, [true, false, true].into_iter());
        masks.replace(ClassId::new(4).unwrap(), [false, true, false].into_iter());
        assert_eq!(masks.mask(ClassId::new(3).unwrap()), [true; 3]);
        assert_eq!(masks.mask(ClassId::new(4).unwrap()), [false, true, false]);
    }
}
