//! How sure the network is: the sigmoid of each voxel of a class, on the grid of the scan's file.
//!
//! Logits wait on the network's grid, four bytes for each voxel and class; a class becomes a volume on the file's grid
//! when it is asked for, so that only one of those exists at a time. Raw: post-processing removes voxels from masks, not from these.

use std::collections::BTreeMap;

use common::ids::ClassId;

use super::upsample::mix;
use crate::data::preprocess::{FinerAxes, Journey};
use crate::data::resample::Between;
use crate::data::volume::Volume;

/// The logits of some classes of one scan.
#[derive(Clone, Debug)]
pub struct Probabilities {
    journey: Journey,
    /// How logits are interpolated; none where each voxel takes the nearest.
    finer: Option<FinerAxes>,
    logits: BTreeMap<ClassId, Volume<f32>>,
}

impl Probabilities {
    /// Room for the logits of `classes`.
    pub(super) fn empty(journey: &Journey, finer: Option<FinerAxes>, classes: &[ClassId]) -> Self {
        let grid = journey.prepared_grid();
        let volume = |&class: &ClassId| (class, Volume::new(grid.clone(), vec![0.0; grid.len()]));
        Self { journey: journey.clone(), finer, logits: classes.iter().map(volume).collect() }
    }

    /// Takes the plane at `x`, logits `[classes, y, z]`. A class without a channel keeps logit 0.
    pub(super) fn push(&mut self, x: usize, logits: &[f32]) {
        for (class, volume) in &mut self.logits {
            let [_, ny, nz] = volume.shape();
            let plane = logits.chunks_exact((ny * nz).max(1)).nth(class.channel());
            if let Some(plane) = plane {
                volume.voxels_mut()[x * ny * nz..][..ny * nz].copy_from_slice(plane);
            }
        }
    }

    /// The probabilities of a class, 0 outside of what the network saw; none for a class that was not kept.
    pub fn of(&self, class: ClassId) -> Option<Volume<f32>> {
        let logits = self.logits.get(&class)?;
        let Some(FinerAxes([x, y, z])) = &self.finer else {
            return Some(self.journey.restore(&logits.map(|&logit| sigmoid(logit)), 0.0));
        };
        let fine = Volume::from_fn(self.journey.ras_grid(), |[i, j, k]| match (x[i], y[j], z[k]) {
            (Some(x), Some(y), Some(z)) => sigmoid(interpolated(logits, x, y, z)),
            _ => 0.0,
        });
        Some(self.journey.turn_back(&fine))
    }
}

/// The order of interpolation is that of the masks: both agree to the bit.
fn interpolated(logits: &Volume<f32>, x: Between, y: Between, z: Between) -> f32 {
    let along = |low, high, between: Between| mix(low, high, between.weight as f32);
    let at = |j, k| along(logits.at([x.low, j, k]), logits.at([x.high, j, k]), x);
    let row = |k| along(at(y.low, k), at(y.high, k), y);
    along(row(z.low), row(z.high), z)
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}
