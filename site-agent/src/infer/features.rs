//! What a network holds for voxels of each class: the points of a picture of its embedding space (the paper's Figure 6).
//!
//! Voxels are drawn from the labels, each class as often as the others, and read in the window of inference that has them
//! nearest to its centre. A U-Net normalises by the window at hand, so that a voxel's features depend on the window too;
//! nothing is blended.

use std::collections::BTreeMap;

use common::ids::ClassId;
use common::label_map::painting_order;
use common::rng::Rng;
use common::taxonomy::Taxonomy;

use super::InferError;
use super::merge::paint;
use super::sliding_window::{Padded, WindowPlan};
use crate::data::prepared::PreparedCase;

/// A voxel: its class, and the numbers that the network holds for it.
#[derive(Clone, Debug, PartialEq)]
pub struct FeaturePoint {
    /// The class that the labels give it; of several, the one that is painted last.
    pub class: ClassId,
    /// A number for each channel.
    pub values: Vec<f32>,
}

/// Reads the features of some voxels of a patch `[x, y, z]`; a voxel is its place in the patch, C order.
pub type ReadFeatures<'a> = dyn Fn(&[f32], [usize; 3], &[usize]) -> Result<Vec<Vec<f32>>, InferError> + 'a;

/// Which voxels of a scan are looked at.
#[derive(Clone, Copy, Debug)]
pub struct VoxelChoice<'a> {
    /// The study's classes.
    pub taxonomy: &'a Taxonomy,
    /// The classes that are looked at, those that the scan annotates and shows.
    pub classes: &'a [ClassId],
    /// Voxels of each class; all, where it has fewer.
    pub voxels: usize,
}

/// The features of chosen voxels of a case, window by window.
///
/// # Errors
/// What `read` says.
///
/// # Panics
/// When `read` gives another number of lists than it was asked for: a mistake of the caller.
pub fn feature_points(
    case: &PreparedCase,
    plan: &WindowPlan,
    choice: &VoxelChoice<'_>,
    rng: &mut impl Rng,
    read: &ReadFeatures<'_>,
) -> Result<Vec<FeaturePoint>, InferError> {
    let padded = Padded::new(case.image.voxels(), case.image.shape(), plan.roi());
    let mut points = Vec::new();
    for (start, chosen) in by_window(case, plan, padded.before, choice.draw(case, rng)) {
        let places: Vec<usize> = chosen.iter().map(|&(_, place)| place).collect();
        let features = read(&padded.window(start, plan.roi()), plan.roi(), &places)?;
        assert_eq!(features.len(), chosen.len(), "each voxel has its features");
        let with_class = chosen.into_iter().zip(features);
        points.extend(with_class.map(|((class, _), values)| FeaturePoint { class, values }));
    }
    Ok(points)
}

/// `n` of these without repetition, or all of them if there are fewer.
pub fn draw<T>(mut from: Vec<T>, n: usize, rng: &mut impl Rng) -> Vec<T> {
    let n = n.min(from.len());
    for place in 0..n {
        let other = rng.random_range(place..from.len());
        from.swap(place, other);
    }
    from.truncate(n);
    from
}

impl VoxelChoice<'_> {
    /// Classes and offsets of the chosen voxels.
    fn draw(&self, case: &PreparedCase, rng: &mut impl Rng) -> Vec<(ClassId, usize)> {
        let mut painted = vec![0; case.image.grid().len()];
        for class in painting_order(self.taxonomy).filter(|class| case.present.contains(class)) {
            paint(&mut painted, class.get(), |offset| case.labels.contains(class, offset));
        }
        let mut offsets: BTreeMap<ClassId, Vec<usize>> = BTreeMap::new();
        for (offset, &id) in painted.iter().enumerate() {
            if let Some(class) = ClassId::new(id).filter(|class| self.classes.contains(class)) {
                offsets.entry(class).or_default().push(offset);
            }
        }
        let mut chosen = Vec::new();
        for (class, offsets) in offsets {
            chosen.extend(draw(offsets, self.voxels, rng).into_iter().map(|offset| (class, offset)));
        }
        chosen
    }
}

/// Class and place of voxels within the window that starts at the key.
type Windows = BTreeMap<[usize; 3], Vec<(ClassId, usize)>>;

fn by_window(
    case: &PreparedCase,
    plan: &WindowPlan,
    before: [usize; 3],
    voxels: Vec<(ClassId, usize)>,
) -> Windows {
    let ([_, ny, nz], roi, starts) = (case.image.shape(), plan.roi(), plan.starts(case.image.shape()));
    let mut windows = Windows::new();
    for (class, offset) in voxels {
        let index = [offset / (ny * nz), offset / nz % ny, offset % nz];
        let at: [usize; 3] = std::array::from_fn(|axis| index[axis] + before[axis]);
        let start: [usize; 3] = std::array::from_fn(|axis| nearest_start(&starts[axis], roi[axis], at[axis]));
        let [x, y, z]: [usize; 3] = std::array::from_fn(|axis| at[axis] - start[axis]);
        windows.entry(start).or_default().push((class, (x * roi[1] + y) * roi[2] + z));
    }
    windows
}

/// Of the windows that hold a place, the start of the one whose centre is nearest to it.
fn nearest_start(starts: &[usize], roi: usize, at: usize) -> usize {
    let holding = starts.iter().copied().filter(|&start| (start..start + roi).contains(&at));
    let nearest = holding.min_by_key(|&start| (start + roi / 2).abs_diff(at));
    nearest.expect("invariant: windows cover the volume and its padding")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use common::rng::KeyedRng;
    use nalgebra::Matrix4;

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::labels::{LabelledCase, MaskSource};
    use crate::data::volume::{Grid, Volume};

    fn class(id: u8) -> ClassId {
        ClassId::new(id).unwrap()
    }

    /// Every voxel's intensity is its offset. Liver (6) below the middle of the first axis, with a tumour (27) of six voxels
    /// in it; spleen (1) above.
    fn case() -> PreparedCase {
        let grid = Grid { shape: [12, 5, 7], affine: Affine::new(Matrix4::identity()).unwrap() };
        let offsets = grid.clone();
        let image = Volume::from_fn(grid.clone(), |index| offsets.offset(index) as f32);
        let raw = Volume::from_fn(grid, |[i, j, k]| match i {
            2 if j < 2 && k < 3 => 27,
            0..6 => 6,
            _ => 1,
        });
        let mapped = raw.map(|&value: &i32| if value == 1 { 1u8 } else { 6 });
        let masks = [
            (class(1), MaskSource::Mapped),
            (class(6), MaskSource::Mapped),
            (class(27), MaskSource::Raw(vec![27])),
        ];
        PreparedCase::new(image, LabelledCase::new(mapped, raw, BTreeMap::from(masks)))
    }

    fn points(classes: &[ClassId], voxels: usize, seed: u64) -> Vec<FeaturePoint> {
        let (taxonomy, plan) = (Taxonomy::standard(), WindowPlan::gaussian([4, 8, 4], 0.5));
        let choice = VoxelChoice { taxonomy: &taxonomy, classes, voxels };
        let read =
            |patch: &[f32], shape: [usize; 3], places: &[usize]| -> Result<Vec<Vec<f32>>, InferError> {
                assert_eq!((patch.len(), shape), (128, [4, 8, 4]));
                Ok(places.iter().map(|&place| vec![patch[place]]).collect())
            };
        feature_points(&case(), &plan, &choice, &mut KeyedRng::new(seed).rng(), &read).unwrap()
    }

    #[test]
    fn each_class_gives_as_many_voxels_and_each_is_read_where_it_lies() {
        let points = points(&[class(1), class(6), class(27)], 10, 7);
        let labels = case().labels;
        let mut seen = BTreeSet::new();
        for FeaturePoint { class: of, values } in &points {
            // The read intensity is the voxel's offset.
            let offset = values[0] as usize;
            assert!(seen.insert(offset), "{offset} came twice");
            assert!(labels.contains(*of, offset), "{of} at {offset}");
            assert!(
                of.get() != 6 || !labels.contains(class(27), offset),
                "a tumour's voxel stands for its organ"
            );
        }
        let count = |id| points.iter().filter(|point| point.class == class(id)).count();
        assert_eq!([1, 6, 27].map(count), [10, 10, 6]);
    }

    #[test]
    fn the_same_seed_draws_the_same_voxels_and_only_of_the_classes_asked_for() {
        assert_eq!(points(&[class(6)], 5, 1), points(&[class(6)], 5, 1));
        assert_ne!(points(&[class(6)], 5, 1), points(&[class(6)], 5, 2));
        assert!(points(&[class(6)], 5, 1).iter().all(|point| point.class == class(6)));
        assert!(points(&[class(11)], 5, 1).is_empty());
    }

    #[test]
    fn a_voxel_is_read_in_the_window_that_has_it_in_its_middle() {
        let starts = [0, 4, 8, 10];
        assert_eq!([0, 3, 6, 7, 12, 17].map(|at| nearest_start(&starts, 8, at)), [0, 0, 0, 4, 8, 10]);
    }
}
