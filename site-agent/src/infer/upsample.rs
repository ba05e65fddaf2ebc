//! Logits from the network's grid to the voxels of the scan, linearly, plane by plane.
//!
//! On a coarse grid the nearest voxel's answer is a staircase that the truth has not: interpolated logits put the
//! boundary between voxels, where the network means it to be. Two planes of logits are held, whatever the length of the scan.

use rayon::prelude::*;

use super::masks::ClassMasks;
use crate::data::preprocess::FinerAxes;
use crate::data::resample::Between;
use crate::data::volume::Grid;

/// Turns planes of logits into masks on a finer grid.
pub(super) struct Upsampler<'a> {
    axes: &'a FinerAxes,
    /// Voxels of a plane of logits along y and z.
    plane: [usize; 2],
    threshold: f32,
    /// The plane before.
    before: Vec<f32>,
    masks: ClassMasks,
}

impl<'a> Upsampler<'a> {
    /// For planes `[classes, y, z]` of logits; masks come on `grid`, whose axes `axes` describes.
    pub(super) fn new(
        axes: &'a FinerAxes,
        plane: [usize; 2],
        threshold: f32,
        grid: Grid,
        classes: usize,
    ) -> Self {
        Self { axes, plane, threshold, before: Vec::new(), masks: ClassMasks::empty(grid, classes) }
    }

    /// Takes the plane at `x`, the next after the last one taken.
    pub(super) fn push(&mut self, x: usize, logits: &[f32]) {
        let [nx, ny, nz] = &self.axes.0;
        let voxels = self.plane[0] * self.plane[1];
        for (i, along_x) in nx.iter().enumerate() {
            let Some(along_x) = along_x.filter(|between| between.high == x) else { continue };
            let low = if along_x.low == x { logits } else { &self.before };
            let planes = low.par_chunks_exact(voxels).zip(logits.par_chunks_exact(voxels));
            let found: Vec<Option<Vec<bool>>> =
                planes.map(|(low, high)| self.plane_mask(low, high, along_x.weight as f32)).collect();
            let first = i * ny.len() * nz.len();
            for (channel, flags) in found.into_iter().enumerate() {
                flags.into_iter().for_each(|flags| self.masks.insert(channel, first, flags.into_iter()));
            }
        }
        self.before.clear();
        self.before.extend_from_slice(logits);
    }

    /// The masks, when all planes were taken.
    pub(super) fn finish(self) -> ClassMasks {
        self.masks
    }

    /// One class between two planes; none if it is nowhere.
    fn plane_mask(&self, low: &[f32], high: &[f32], weight: f32) -> Option<Vec<bool>> {
        let mixed: Vec<f32> = low.iter().zip(high).map(|(&low, &high)| mix(low, high, weight)).collect();
        // An interpolated value is never above the largest.
        if !mixed.iter().any(|&logit| logit > self.threshold) {
            return None;
        }
        let [_, ny, nz] = &self.axes.0;
        let mut flags = vec![false; ny.len() * nz.len()];
        for (along_y, flags) in ny.iter().zip(flags.chunks_exact_mut(nz.len())) {
            let Some(along_y) = along_y else { continue };
            let row = |y: usize| &mixed[y * self.plane[1]..][..self.plane[1]];
            let (low, high, weight) = (row(along_y.low), row(along_y.high), along_y.weight as f32);
            let at = |z: usize| mix(low[z], high[z], weight);
            for (along_z, flag) in nz.iter().zip(flags) {
                let logit = |Between { low, high, weight }| mix(at(low), at(high), weight as f32);
                *flag = along_z.is_some_and(|along_z| logit(along_z) > self.threshold);
            }
        }
        Some(flags)
    }
}

/// From `low` (weight 0) to `high` (weight 1).
pub(super) fn mix(low: f32, high: f32, weight: f32) -> f32 {
    low + (high - low) * weight
}
