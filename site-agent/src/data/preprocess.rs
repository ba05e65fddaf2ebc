//! The road from a file's volume to what the network sees, and the way back: §4 and §12.4 of the specification.
//!
//! ```text
//! file ─ turn to RAS ─ resample ─ window (images) ─ crop to the patient ─► prepared
//! file ◄─ turn back ◄─ resample back (nearest) ◄─ paste into a fill value ◄─ prepared
//! ```
//! The [`Journey`] of an image remembers each step, so that labels and predictions go the same way. Checks of the
//! values are in [`super::intensity`], of the place of labels in [`super::geometry`].

use super::geometry::{GeometryMismatch, geometry_matches};
use super::intensity::{VoxelBox, foreground, window};
use super::nifti::Image;
use super::orientation::Reorientation;
use super::resample::{Between, ResampleError, Resampling};
use super::volume::{Grid, Volume};

/// What a study fixes about the network's view of a scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocessing {
    /// Voxel sizes along R, A, S.
    pub spacing_mm: [f64; 3],
    /// Hounsfield units that become 0 and 1.
    pub window_hu: (f32, f32),
}

/// The specification's own: 1.5 mm, −175..250 HU.
impl Default for Preprocessing {
    fn default() -> Self {
        Self { spacing_mm: [1.5; 3], window_hu: (-175.0, 250.0) }
    }
}

/// An image ready for the network, and how it came to be.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// 0..=1, axes R, A, S, at the study's spacing, cropped to the patient.
    pub image: Volume<f32>,
    /// The way from the file, for labels, and back to it, for predictions.
    pub journey: Journey,
}

/// The steps between a file's grid and the prepared grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Journey {
    turn: Reorientation,
    resampling: Resampling,
    crop: VoxelBox,
}

/// For each voxel of the file's volume along R, A and S: between which prepared voxels it lies, if it lies in the crop.
#[derive(Clone, Debug, PartialEq)]
pub struct FinerAxes(pub [Vec<Option<Between>>; 3]);

/// Prepares an image.
///
/// # Errors
/// A spacing at which the volume would not fit into memory.
pub fn preprocess_image(image: Image, settings: &Preprocessing) -> Result<Prepared, ResampleError> {
    let turn = Reorientation::of(image.volume.grid());
    let resampling = Resampling::plan(&turn.ras_grid(), settings.spacing_mm)?;
    let hounsfield = resampling.image(turn.to_ras(&image.volume));
    let windowed = window(hounsfield, settings.window_hu);
    let crop = foreground(&windowed);
    Ok(Prepared { image: cut(&windowed, crop), journey: Journey { turn, resampling, crop } })
}

/// Takes labels the way of their image; their file may store its axes differently.
///
/// # Errors
/// Labels that do not lie on the image.
pub fn preprocess_labels<T: Copy + Default + Send + Sync>(
    labels: &Volume<T>,
    journey: &Journey,
) -> Result<Volume<T>, GeometryMismatch> {
    geometry_matches(journey.file_grid(), labels.grid())?;
    let turned = Reorientation::of(labels.grid()).to_ras(labels);
    Ok(cut(&journey.resampling.labels(turned), journey.crop))
}

impl Journey {
    /// The grid of the image's file.
    pub fn file_grid(&self) -> &Grid {
        self.turn.file_grid()
    }

    /// The grid of the prepared image.
    pub fn prepared_grid(&self) -> Grid {
        boxed(self.resampling.grid(), self.crop)
    }

    /// Where the file's voxels lie between the prepared ones; none for a file whose axes are not at right angles.
    pub fn finer_axes(&self) -> Option<FinerAxes> {
        let mut axes = self.resampling.back_between()?.into_iter();
        let cropped = |axis: usize, between: Vec<Between>| {
            let (start, size) = (self.crop.start[axis], self.crop.shape[axis]);
            between.into_iter().map(|between| inside(between, start, size)).collect()
        };
        let mut next = |axis| axes.next().map(|between| cropped(axis, between));
        Some(FinerAxes([next(0)?, next(1)?, next(2)?]))
    }

    /// The grid of the file, turned to R, A, S.
    pub fn ras_grid(&self) -> Grid {
        self.turn.ras_grid()
    }

    /// A volume on [`Self::ras_grid`] in the order of the file.
    pub fn turn_back<T: Copy + Default + Send + Sync>(&self, volume: &Volume<T>) -> Volume<T> {
        self.turn.undo(volume)
    }

    /// Brings labels from the prepared grid to the grid of the image's file, with `fill` outside of the crop.
    ///
    /// # Panics
    /// When the volume has another shape than [`Self::prepared_grid`]: a mistake of the caller.
    pub fn restore<T: Copy + Default + Send + Sync>(&self, prepared: &Volume<T>, fill: T) -> Volume<T> {
        let pasted = paste(prepared, self.resampling.grid(), self.crop, fill);
        self.turn.undo(&self.resampling.back(pasted))
    }
}

/// The same place, counted from the start of a crop; none when the nearest voxel is not in it. Its border goes on.
fn inside(Between { low, high, weight }: Between, start: usize, size: usize) -> Option<Between> {
    let nearest = if weight > 0.5 { high } else { low };
    let last = size.checked_sub(1)?;
    (start..=start + last).contains(&nearest).then(|| {
        let clamped = |voxel: usize| voxel.saturating_sub(start).min(last);
        let (low, high) = (clamped(low), clamped(high));
        Between { low, high, weight: if low == high { 0.0 } else { weight } }
    })
}

fn boxed(grid: &Grid, crop: VoxelBox) -> Grid {
    Grid { shape: crop.shape, affine: grid.affine.shifted(crop.start) }
}

fn cut<T: Copy + Default + Send + Sync>(volume: &Volume<T>, crop: VoxelBox) -> Volume<T> {
    Volume::from_fn(boxed(volume.grid(), crop), |index| {
        volume.at([0, 1, 2].map(|axis| crop.start[axis] + index[axis]))
    })
}

fn paste<T: Copy + Default + Send + Sync>(
    volume: &Volume<T>,
    grid: &Grid,
    crop: VoxelBox,
    fill: T,
) -> Volume<T> {
    assert_eq!(volume.shape(), crop.shape, "a volume returns on the journey of its own image");
    Volume::from_fn(grid.clone(), |index| {
        // Below the box this wraps to a number beyond its end.
        let inside = [0, 1, 2].map(|axis| index[axis].wrapping_sub(crop.start[axis]));
        if (0..3).all(|axis| inside[axis] < crop.shape[axis]) { volume.at(inside) } else { fill }
    })
}

#[cfg(test)]
mod tests;
