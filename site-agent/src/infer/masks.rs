//! One bit per voxel and class: what thresholded sigmoids leave. Classes may overlap (an organ contains its tumour).

use common::ids::ClassId;

use crate::data::volume::{Grid, Volume};

/// Masks of all classes over one grid, packed: 32 classes of a whole-body scan fit where one float volume would.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassMasks {
    grid: Grid,
    classes: usize,
    /// `[voxel, byte]`; bit `c % 8` of byte `c / 8` is channel `c`.
    bits: Vec<u8>,
}

impl ClassMasks {
    /// Empty masks of `classes` channels.
    pub fn empty(grid: Grid, classes: usize) -> Self {
        let bits = vec![0; grid.len() * classes.div_ceil(8)];
        Self { grid, classes, bits }
    }

    /// The grid.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Number of channels.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Whether voxel `offset` (C order) belongs to `class`.
    pub fn contains(&self, class: ClassId, offset: usize) -> bool {
        let channel = class.channel();
        channel < self.classes && self.bits[offset * self.stride() + channel / 8] & (1 << (channel % 8)) != 0
    }

    /// Adds voxel `offset` to channel `channel`.
    pub fn insert(&mut self, channel: usize, offset: usize) {
        debug_assert!(channel < self.classes);
        let at = offset * self.stride() + channel / 8;
        self.bits[at] |= 1 << (channel % 8);
    }

    /// Mask of one class as a volume of its own.
    pub fn class(&self, class: ClassId) -> Volume<bool> {
        let voxels = (0..self.grid.len()).map(|offset| self.contains(class, offset)).collect();
        Volume::new(self.grid.clone(), voxels)
    }

    /// The masks at other voxels: voxel `i` of `grid` takes all classes of voxel `source[i]`, or none.
    pub fn gather(&self, grid: Grid, source: impl Iterator<Item = Option<usize>>) -> Self {
        let stride = self.stride();
        let mut bits = Vec::with_capacity(grid.len() * stride);
        for from in source {
            match from {
                Some(offset) => bits.extend_from_slice(&self.bits[offset * stride..][..stride]),
                None => bits.resize(bits.len() + stride, 0),
            }
        }
        assert_eq!(bits.len(), grid.len() * stride, "one source for each voxel");
        Self { grid, classes: self.classes, bits }
    }

    fn stride(&self) -> usize {
        self.classes.div_ceil(8)
    }
}
