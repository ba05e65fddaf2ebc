//! A baseline that looks at no organ: where each structure lies, on average, in the training scans.
//!
//! The box around each scan's body, which air tells, is laid on one cube, where the annotated masks are averaged. A scan is
//! labelled by laying the means back on its own body. What a network scores above this it has learnt from the image.

use std::collections::BTreeMap;

use common::ids::{ClassId, Digest};
use common::taxonomy::Taxonomy;
use rayon::prelude::*;

use super::evaluate::read_scan;
use super::masks::ClassMasks;
use super::{InferError, Segmenter};
use crate::data::dataset::Case;
use crate::data::nifti::Image;
use crate::data::orientation::Reorientation;
use crate::data::volume::Volume;
use crate::train::trainer::Cancel;

/// Voxels along each side of the cube.
const SIDE: usize = 64;
/// What is denser belongs to the body, HU.
const BODY_HU: f32 = -300.0;
/// Thresholds that are tried for each class: multiples of 1 / this.
const THRESHOLDS: usize = 20;

/// The mean training mask of each class.
pub struct LocationAtlas {
    channels: usize,
    classes: BTreeMap<ClassId, MeanMask>,
}

/// Share of the scans in which a voxel of the cube belongs to a class.
struct MeanMask {
    share: Vec<f32>,
    /// A voxel is predicted when its share is strictly above.
    threshold: f32,
}

impl LocationAtlas {
    /// Averages the masks of `cases`, and chooses for each class the threshold with the best Dice on them.
    ///
    /// # Errors
    /// What is wrong with the first case that cannot be used, or a request to stop.
    pub fn learn(cases: &[Case], taxonomy: &Taxonomy, cancel: &Cancel) -> Result<Self, InferError> {
        let mut masks: BTreeMap<ClassId, Vec<Vec<bool>>> = BTreeMap::new();
        for case in cases {
            if cancel.is_cancelled() {
                return Err(InferError::Cancelled);
            }
            let (image, truth) = read_scan(case, taxonomy)?;
            let body = Body::of(&Reorientation::of(image.volume.grid()).to_ras(&image.volume));
            for class in truth.annotated() {
                masks.entry(class).or_default().push(body.to_cube(|offset| truth.contains(class, offset)));
            }
        }
        let classes = masks.into_par_iter().map(|(class, masks)| (class, MeanMask::of(&masks))).collect();
        Ok(Self { channels: taxonomy.len(), classes })
    }

    /// Digest of all that was learnt: of the same one, scans get the same labels.
    pub fn digest(&self) -> Digest {
        let mut learnt = blake3::Hasher::new();
        for (class, MeanMask { share, threshold }) in &self.classes {
            learnt.update(&[class.get()]);
            learnt.update(&threshold.to_le_bytes());
            learnt.update(&share.iter().flat_map(|share| share.to_le_bytes()).collect::<Vec<u8>>());
        }
        Digest::from_bytes(*learnt.finalize().as_bytes())
    }
}

impl Segmenter for LocationAtlas {
    fn segment(&self, image: Image) -> Result<ClassMasks, InferError> {
        let turn = Reorientation::of(image.volume.grid());
        let body = Body::of(&turn.to_ras(&image.volume));
        let cube = body.cube_offsets();
        let mut masks = ClassMasks::empty(turn.ras_grid(), self.channels);
        for (class, mean) in &self.classes {
            let inside = |offset: &Option<usize>| offset.is_some_and(|offset| mean.predicts(offset));
            masks.insert(class.channel(), 0, cube.iter().map(inside));
        }
        Ok(masks.moved(turn.file_grid().clone(), |plane| turn.undo(plane)))
    }
}

impl MeanMask {
    fn of(masks: &[Vec<bool>]) -> Self {
        let mut share = vec![0.0; SIDE.pow(3)];
        let part = 1.0 / masks.len() as f32;
        for mask in masks {
            share.iter_mut().zip(mask).filter(|(_, inside)| **inside).for_each(|(share, _)| *share += part);
        }
        let thresholds = (1..THRESHOLDS).map(|n| n as f32 / THRESHOLDS as f32);
        let scored = thresholds.map(|threshold| (mean_dice(&share, threshold, masks), threshold));
        let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
        Self { share, threshold: best.map_or(0.5, |(_, threshold)| threshold) }
    }

    fn predicts(&self, offset: usize) -> bool {
        self.share[offset] > self.threshold
    }
}

/// Mean Dice of the shares above `threshold` with the masks that are not empty.
fn mean_dice(share: &[f32], threshold: f32, masks: &[Vec<bool>]) -> f64 {
    let predicted = share.iter().filter(|share| **share > threshold).count();
    let dice = |mask: &Vec<bool>| {
        let size = mask.iter().filter(|inside| **inside).count();
        let both = share.iter().zip(mask).filter(|(share, inside)| **inside && **share > threshold).count();
        (size > 0).then(|| 2.0 * both as f64 / (predicted + size) as f64)
    };
    let all: Vec<f64> = masks.iter().filter_map(dice).collect();
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

/// The box around the body in a volume whose axes are R, A, S.
struct Body {
    shape: [usize; 3],
    first: [usize; 3],
    extent: [usize; 3],
}

impl Body {
    /// The box around all that is denser than air; the whole volume, if nothing is.
    fn of(hounsfield: &Volume<f32>) -> Self {
        let shape = hounsfield.shape();
        let (mut first, mut last) = (shape, [0; 3]);
        for (offset, _) in hounsfield.voxels().iter().enumerate().filter(|(_, hu)| **hu > BODY_HU) {
            let index = [offset / (shape[1] * shape[2]), offset / shape[2] % shape[1], offset % shape[2]];
            for axis in 0..3 {
                first[axis] = first[axis].min(index[axis]);
                last[axis] = last[axis].max(index[axis]);
            }
        }
        if first == shape {
            return Self { shape, first: [0; 3], extent: shape };
        }
        Self { shape, first, extent: std::array::from_fn(|axis| last[axis] - first[axis] + 1) }
    }

    /// What the voxel under the centre of each voxel of the cube is.
    fn to_cube(&self, inside: impl Fn(usize) -> bool) -> Vec<bool> {
        let along = |axis: usize, n: usize| self.first[axis] + (2 * n + 1) * self.extent[axis] / (2 * SIDE);
        let voxel = |offset: usize| {
            let [i, j, k] =
                [along(0, offset / (SIDE * SIDE)), along(1, offset / SIDE % SIDE), along(2, offset % SIDE)];
            (i * self.shape[1] + j) * self.shape[2] + k
        };
        (0..SIDE.pow(3)).map(|offset| inside(voxel(offset))).collect()
    }

    /// The voxel of the cube over the centre of each voxel of the volume; none outside of the body.
    fn cube_offsets(&self) -> Vec<Option<usize>> {
        let along = |axis: usize, n: usize| {
            let n = n.checked_sub(self.first[axis]).filter(|&n| n < self.extent[axis])?;
            Some((2 * n + 1) * SIDE / (2 * self.extent[axis]))
        };
        let [x, y, z]: [Vec<Option<usize>>; 3] =
            std::array::from_fn(|axis| (0..self.shape[axis]).map(|n| along(axis, n)).collect());
        let mut offsets = Vec::with_capacity(self.shape.iter().product());
        for i in &x {
            for j in &y {
                offsets.extend(z.iter().map(|k| Some(((*i)? * SIDE + (*j)?) * SIDE + (*k)?)));
            }
        }
        offsets
    }
}

#[cfg(test)]
mod tests {
    use nalgebra::Matrix4;

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::nifti::{Limits, read_image, write_image_i16};
    use crate::data::volume::Grid;

    const SHAPE: [usize; 3] = [40, 30, 20];
    const LIVER: usize = 5;

    fn grid(signs: [f64; 3]) -> Grid {
        let [x, y, z] = signs;
        let matrix = Matrix4::from_diagonal(&nalgebra::Vector4::new(x, y, z, 1.0));
        Grid { shape: SHAPE, affine: Affine::new(matrix).unwrap() }
    }

    /// A body of 20 × 15 × 10 voxels from `first` on, in air.
    fn body(grid: Grid, first: [usize; 3]) -> Volume<i16> {
        let size = [20, 15, 10];
        Volume::from_fn(grid, |index| {
            let inside = (0..3).all(|a| (first[a]..first[a] + size[a]).contains(&index[a]));
            if inside { 40 } else { -1000 }
        })
    }

    /// The right half of the body is liver in every scan, and in one of three also the rest of it.
    fn atlas() -> LocationAtlas {
        let half: Vec<bool> = (0..SIDE.pow(3)).map(|offset| offset / (SIDE * SIDE) >= SIDE / 2).collect();
        let mean = MeanMask::of(&[half.clone(), half, vec![true; SIDE.pow(3)]]);
        LocationAtlas { channels: 32, classes: [(ClassId::new(6).unwrap(), mean)].into() }
    }

    #[test]
    fn the_mean_follows_the_body_wherever_it_lies_and_however_it_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        for (name, signs, first) in [
            ("ras.nii", [1.0, 1.0, 1.0], [3, 4, 5]),
            ("moved.nii", [1.0, 1.0, 1.0], [17, 11, 8]),
            ("lps.nii", [-1.0, -1.0, 1.0], [9, 2, 0]),
        ] {
            let scan = body(grid(signs), first);
            write_image_i16(&folder.path().join(name), &scan).unwrap();
            let image = read_image(&folder.path().join(name), &Limits::default()).unwrap();
            let masks = atlas().segment(image).unwrap();
            let liver = masks.mask(ClassId::new(6).unwrap());
            // In L, P, S the patient's right comes first.
            let right = |i: usize| if signs[0] > 0.0 { i >= first[0] + 10 } else { i < first[0] + 10 };
            let expected =
                Volume::from_fn(scan.grid().clone(), |index| scan.at(index) == 40 && right(index[0]));
            assert_eq!(liver, expected.voxels(), "{name}");
        }
    }

    #[test]
    fn laying_a_mask_on_the_cube_and_back_keeps_it() {
        let body = Body { shape: SHAPE, first: [7, 3, 2], extent: [20, 15, 10] };
        let offsets = body.cube_offsets();
        let mask: Vec<bool> = (0..SHAPE.iter().product()).map(|n: usize| n % 7 < 3).collect();
        let cube = body.to_cube(|offset| mask[offset]);
        let inside = offsets.iter().zip(&mask).filter_map(|(cube, mask)| Some(((*cube)?, *mask)));
        assert_eq!(inside.clone().count(), 20 * 15 * 10);
        for (offset, mask) in inside {
            assert_eq!(cube[offset], mask);
        }
    }

    #[test]
    fn the_threshold_is_the_best_on_the_training_scans() {
        let mean = &atlas().classes[&ClassId::new(LIVER as u8 + 1).unwrap()];
        assert!((1.0 / 3.0..1.0).contains(&f64::from(mean.threshold)), "{}", mean.threshold);
        assert!(!mean.predicts(0) && mean.predicts(SIDE.pow(3) - 1));
    }

    #[test]
    fn a_scan_of_nothing_but_air_is_a_body_from_edge_to_edge() {
        let air = Volume::new(grid([1.0; 3]), vec![-1000.0; SHAPE.iter().product()]);
        assert_eq!(Body::of(&air).extent, SHAPE);
    }
}
