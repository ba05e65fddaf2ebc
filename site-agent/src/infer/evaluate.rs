//! A model against a site's own labels, scan by scan: Dice and surface distance where the class is there, false-positive
//! volume where it is not.
//!
//! Everything is measured on the label file's own voxels (turned to R, A, S, which moves no voxel): a coarse network pays
//! for what resampling loses. Only annotated classes are scored; nobody knows the truth of the others. Summaries over
//! scans are [`common::report`]'s; the scores of single scans stay here.

use std::collections::BTreeMap;
use std::path::Path;

use common::ids::ClassId;
use common::label_map::painting_order;
use common::metrics::{self, Overlap, normalised_surface_distance};
use common::report::{CaseOutcome, CaseScore};
use common::taxonomy::Taxonomy;
use rayon::prelude::*;

use super::masks::ClassMasks;
use super::merge::paint;
use super::overlay::{self, Overlay, OverlayFiles};
use super::{InferError, Segmenter};
use crate::data::DataError;
use crate::data::dataset::Case;
use crate::data::error::CaseFault;
use crate::data::geometry::geometry_matches;
use crate::data::labels::LabelledCase;
use crate::data::nifti::{Image, Limits, read_labels};
use crate::data::orientation::{Reorientation, to_ras};
use crate::data::volume::{Grid, Volume};

/// How an evaluation is done, apart from scans and network.
pub struct Evaluation<'a> {
    /// Hounsfield units that are black and white in pictures.
    pub window_hu: (f32, f32),
    /// The study's classes.
    pub taxonomy: &'a Taxonomy,
    /// Tolerance of the surface distance for each class, mm.
    pub tau_mm: &'a (dyn Fn(ClassId) -> f64 + Sync),
    /// Where pictures of prediction and truth go; they stay in this site's own folder.
    pub overlays: Option<&'a OverlayFiles>,
}

/// Scores of one scan by class.
pub type ScanScores = BTreeMap<ClassId, CaseOutcome>;

impl Evaluation<'_> {
    /// Whether a case can be read: scan and labels, as [`Self::score_case`] reads them.
    ///
    /// # Errors
    /// What is wrong with the case.
    pub fn check_case(&self, case: &Case) -> Result<(), DataError> {
        read_scan(case, self.taxonomy).map(drop)
    }

    /// Scores one case, and draws it if overlays are wanted.
    ///
    /// # Errors
    /// What is wrong with the case.
    pub fn score_case(&self, case: &Case, segmenter: &dyn Segmenter) -> Result<ScanScores, InferError> {
        let (image, truth) = read_scan(case, self.taxonomy)?;
        let turn = Reorientation::of(image.volume.grid());
        let file = self.overlays.and_then(|files| files.of(case));
        let picture = file.map(|file| (file, turn.to_ras(&image.volume)));
        let prediction = segmenter.segment(image)?;
        let prediction = prediction.moved(turn.ras_grid(), |plane| turn.to_ras(plane));
        if let Some((file, image)) = picture {
            self.draw(file, case, &image, &truth, &prediction)?;
        }
        Ok(score(&truth, &prediction, self.tau_mm))
    }

    fn draw(
        &self,
        file: &Path,
        case: &Case,
        image: &Volume<f32>,
        truth: &LabelledCase,
        prediction: &ClassMasks,
    ) -> Result<(), InferError> {
        let merged = |belongs: &dyn Fn(ClassId, usize) -> bool| {
            let mut voxels = vec![0; image.grid().len()];
            for class in painting_order(self.taxonomy).filter(|class| case.annotated.contains(class)) {
                paint(&mut voxels, class.get(), |offset| belongs(class, offset));
            }
            voxels
        };
        let truth = merged(&|class, offset| truth.contains(class, offset));
        let prediction = merged(&|class, offset| prediction.contains(class, offset));
        let overlay = Overlay { image, truth: &truth, prediction: &prediction, window_hu: self.window_hu };
        Ok(overlay::write(file, &overlay)?)
    }
}

/// The scores of scans as a report summarises them: numbers for scans and patients, in the order in which they come.
pub fn numbered<'a>(scans: impl Iterator<Item = (&'a Case, &'a ScanScores)>) -> Vec<CaseScore> {
    let mut patients: BTreeMap<&str, u32> = BTreeMap::new();
    let mut numbered = Vec::new();
    for (scan, (case, scores)) in (0..).zip(scans) {
        let next = u32::try_from(patients.len()).unwrap_or(u32::MAX);
        let patient = *patients.entry(&case.patient).or_insert(next);
        numbered.extend(scores.iter().map(|(&class, &outcome)| CaseScore { patient, scan, class, outcome }));
    }
    numbered
}

/// A scan as its file has it, and its labels turned to R, A, S.
pub(super) fn read_scan(case: &Case, taxonomy: &Taxonomy) -> Result<(Image, LabelledCase), DataError> {
    let image = case.read_scan()?;
    let labels = read_labels(&case.labels, &Limits::default())?;
    geometry_matches(image.volume.grid(), labels.grid()).map_err(in_case(case))?;
    let (raw, _) = to_ras(&labels);
    let file = case.labels.display().to_string();
    let truth = LabelledCase::transfer(raw, &case.label_map, &case.annotated, taxonomy, &file);
    Ok((image, truth.map_err(in_case(case))?))
}

/// Names the case that a fault was found in.
fn in_case<F: Into<CaseFault>>(case: &Case) -> impl Fn(F) -> DataError + '_ {
    |fault| DataError::Case { case: case.name.clone(), fault: Box::new(fault.into()) }
}

/// Scores each annotated class of a scan; truth and prediction lie on the same voxels.
fn score(
    truth: &LabelledCase,
    prediction: &ClassMasks,
    tau_mm: &(dyn Fn(ClassId) -> f64 + Sync),
) -> ScanScores {
    let classes: Vec<ClassId> = truth.annotated().collect();
    let outcome = |&class: &ClassId| {
        let (predicted, true_) = (prediction.mask(class), truth.mask(class).unwrap_or_default());
        (class, outcome(&predicted, &true_, truth.grid(), tau_mm(class)))
    };
    classes.par_iter().map(outcome).collect()
}

fn outcome(predicted: &[bool], truth: &[bool], grid: &Grid, tau_mm: f64) -> CaseOutcome {
    let overlap = Overlap::of(predicted.iter().copied(), truth.iter().copied());
    let spacing_mm = grid.affine.spacing();
    if !overlap.truth_is_present() {
        return CaseOutcome::Absent {
            false_positive_volume_ml: overlap.false_positive_volume_ml(spacing_mm),
        };
    }
    let (predicted, truth, shape) = cut_to_content(predicted, truth, grid.shape);
    let cut = metrics::Grid { shape, spacing_mm };
    // The truth is not empty, so both figures exist.
    let nsd = normalised_surface_distance(&predicted, &truth, &cut, tau_mm).unwrap_or(0.0);
    let predicted_ml = overlap.predicted_volume_ml(spacing_mm);
    CaseOutcome::Present { dice: overlap.dice().unwrap_or(0.0), nsd, predicted_ml, voxels: Some(overlap) }
}

/// Both masks cut to the box around their content and one voxel more: surfaces and distances stay the same, and a small
/// organ in a large scan costs little.
fn cut_to_content(a: &[bool], b: &[bool], shape: [usize; 3]) -> (Vec<bool>, Vec<bool>, [usize; 3]) {
    let (mut low, mut high) = (shape, [0; 3]);
    let index =
        |offset: usize| [offset / (shape[1] * shape[2]), offset / shape[2] % shape[1], offset % shape[2]];
    for (offset, _) in a.iter().zip(b).enumerate().filter(|(_, (a, b))| **a || **b) {
        for (axis, i) in index(offset).into_iter().enumerate() {
            low[axis] = low[axis].min(i);
            high[axis] = high[axis].max(i);
        }
    }
    let start = low.map(|i| i.saturating_sub(1));
    let size: [usize; 3] =
        std::array::from_fn(|axis| ((high[axis] + 2).min(shape[axis])).saturating_sub(start[axis]));
    let cut = |mask: &[bool]| {
        let mut part = Vec::with_capacity(size.iter().product());
        for i in start[0]..start[0] + size[0] {
            for j in start[1]..start[1] + size[1] {
                part.extend_from_slice(&mask[(i * shape[1] + j) * shape[2] + start[2]..][..size[2]]);
            }
        }
        part
    };
    (cut(a), cut(b), size)
}

#[cfg(test)]
mod tests {
    use nalgebra::Matrix4;

    use super::*;
    use crate::data::geometry::Affine;

    fn grid(shape: [usize; 3], spacing: [f64; 3]) -> Grid {
        let [x, y, z] = spacing;
        let matrix = Matrix4::from_diagonal(&nalgebra::Vector4::new(x, y, z, 1.0));
        Grid { shape, affine: Affine::new(matrix).unwrap() }
    }

    fn cube(shape: [usize; 3], from: [usize; 3], to: [usize; 3]) -> Vec<bool> {
        let inside = |index: [usize; 3]| (0..3).all(|a| (from[a]..to[a]).contains(&index[a]));
        let mut mask = Vec::new();
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                mask.extend((0..shape[2]).map(|k| inside([i, j, k])));
            }
        }
        mask
    }

    #[test]
    fn a_class_that_is_there_is_scored_by_dice_and_surface_distance() {
        let (shape, grid) = ([12, 10, 9], grid([12, 10, 9], [1.0, 1.0, 2.0]));
        let truth = cube(shape, [2, 2, 2], [6, 6, 6]);
        let shifted = cube(shape, [3, 2, 2], [7, 6, 6]);
        let CaseOutcome::Present { dice, nsd, predicted_ml, voxels } = outcome(&shifted, &truth, &grid, 1.0)
        else {
            panic!("present")
        };
        let counts =
            Overlap { true_positive: 48, false_positive: 16, false_negative: 16, true_negative: 1000 };
        assert_eq!(voxels, Some(counts), "of the whole scan, not of the box around both");
        assert!((predicted_ml - 4.0 * 4.0 * 4.0 * 2.0 / 1000.0).abs() < 1e-12);
        assert!((dice - 0.75).abs() < 1e-12);
        assert!((nsd - 1.0).abs() < 1e-6);
        let CaseOutcome::Present { nsd, .. } = outcome(&shifted, &truth, &grid, 0.5) else {
            panic!("present")
        };
        assert!(nsd < 1.0);
        let nothing = vec![false; truth.len()];
        let missed = outcome(&nothing, &truth, &grid, 1.0);
        let voxels = Some(Overlap { false_negative: 64, true_negative: 1016, ..Overlap::default() });
        assert_eq!(missed, CaseOutcome::Present { dice: 0.0, nsd: 0.0, predicted_ml: 0.0, voxels });
    }

    #[test]
    fn a_class_that_is_not_there_is_scored_by_what_was_predicted_all_the_same() {
        let (shape, grid) = ([12, 10, 9], grid([12, 10, 9], [1.0, 1.0, 2.0]));
        let predicted = cube(shape, [0, 0, 0], [5, 10, 10]);
        let nothing = vec![false; predicted.len()];
        let expected = 5.0 * 10.0 * 9.0 * 2.0 / 1000.0;
        let got = outcome(&predicted, &nothing, &grid, 1.0);
        assert_eq!(got, CaseOutcome::Absent { false_positive_volume_ml: expected });
    }

    #[test]
    fn cutting_to_the_content_changes_no_surface_distance() {
        let shape = [14, 13, 11];
        let whole = metrics::Grid { shape, spacing_mm: [1.0, 1.5, 2.0] };
        for (a, b) in [
            (cube(shape, [0, 3, 4], [4, 9, 9]), cube(shape, [1, 4, 4], [6, 9, 11])),
            (cube(shape, [5, 5, 5], [6, 6, 6]), cube(shape, [8, 6, 5], [9, 9, 7])),
        ] {
            let (cut_a, cut_b, cut_shape) = cut_to_content(&a, &b, shape);
            assert!(cut_shape.iter().product::<usize>() < a.len());
            let cut = metrics::Grid { shape: cut_shape, ..whole };
            for tau in [0.0, 1.0, 2.5] {
                let expected = normalised_surface_distance(&a, &b, &whole, tau);
                assert_eq!(normalised_surface_distance(&cut_a, &cut_b, &cut, tau), expected);
            }
        }
    }
}
