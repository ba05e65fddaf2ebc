//! From a CT to one mask per class, on the grid of the CT's own file.

use common::ids::ClassId;
use common::study::Study;
use common::study::sections::Upsampling;

use super::masks::ClassMasks;
use super::postprocess::{Rules, postprocess};
use super::probabilities::Probabilities;
use super::sliding_window::{WindowPlan, sliding_window};
use super::upsample::Upsampler;
use super::{InferError, Predictor, Segmenter};
use crate::data::nifti::Image;
use crate::data::preprocess::{Preprocessing, preprocess_image};

/// How inference is done. All but post-processing and batch is fixed by a study.
#[derive(Clone, Debug)]
pub struct InferenceSettings {
    /// The network's grid and intensities.
    pub preprocessing: Preprocessing,
    /// Voxels of a window along `[x, y, z]`.
    pub window: [usize; 3],
    /// Part of a window that its neighbour shares, in `[0, 1)`.
    pub overlap: f64,
    /// Windows that the network sees at once: a matter of the device and its memory, not of the study.
    pub window_batch: usize,
    /// A voxel belongs to a class when its sigmoid is strictly above.
    pub threshold: f64,
    /// How the network's grid becomes the scan's.
    pub upsampling: Upsampling,
    /// How masks are cleaned: on the network's grid before they come back to the scan's, or on the scan's own where logits were
    /// brought to it. None leaves them as the network has them.
    pub postprocessing: Option<Rules>,
}

impl InferenceSettings {
    /// The settings of `study`, without post-processing, one window at a time.
    pub fn of(study: &Study) -> Self {
        let [low, high] = study.preprocessing.window_hu;
        Self {
            preprocessing: Preprocessing {
                spacing_mm: study.preprocessing.spacing_mm,
                window_hu: (low as f32, high as f32),
            },
            window: study.preprocessing.patch.map(|n| n as usize),
            overlap: study.evaluation.overlap,
            window_batch: 1,
            threshold: study.evaluation.threshold,
            upsampling: study.evaluation.upsampling,
            postprocessing: None,
        }
    }

    /// Masks with axes R, A, S, cleaned or not.
    fn cleaned(&self, raw: ClassMasks) -> ClassMasks {
        match &self.postprocessing {
            Some(rules) => postprocess(&raw, rules.classes(), rules),
            None => raw,
        }
    }

    /// The logit whose sigmoid is the threshold: comparing logits spares a sigmoid for each voxel and class.
    fn logit_threshold(&self) -> f32 {
        (self.threshold / (1.0 - self.threshold)).ln() as f32
    }
}

/// A network with the settings of its study.
pub struct NetworkSegmenter<'a> {
    /// Windows, thresholds, the network's grid.
    pub settings: InferenceSettings,
    /// The network.
    pub network: &'a dyn Predictor,
}

impl Segmenter for NetworkSegmenter<'_> {
    fn segment(&self, image: Image) -> Result<ClassMasks, InferError> {
        segment(image, &self.settings, self.network)
    }
}

/// What a network says of a scan, on the grid of its file.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The masks of all classes, post-processed if the settings say so.
    pub masks: ClassMasks,
    /// How sure the network is of the classes that were asked for.
    pub probabilities: Probabilities,
}

/// The masks of all classes on the grid of the image's file.
///
/// # Errors
/// As [`predict`].
pub fn segment(
    image: Image,
    settings: &InferenceSettings,
    network: &dyn Predictor,
) -> Result<ClassMasks, InferError> {
    Ok(predict(image, settings, network, &[])?.masks)
}

/// The masks of all classes, and the probabilities of the classes in `sure`: four bytes of memory for each of them and voxel
/// of the network's grid. All classes come from one pass over the windows.
///
/// # Errors
/// What the network says, or [`InferError::Resample`] for a scan that would not fit into memory.
pub fn predict(
    image: Image,
    settings: &InferenceSettings,
    network: &dyn Predictor,
    sure: &[ClassId],
) -> Result<Prediction, InferError> {
    let prepared = preprocess_image(image, &settings.preprocessing)?;
    let (journey, shape) = (&prepared.journey, prepared.image.shape());
    let (threshold, plane_voxels) = (settings.logit_threshold(), shape[1] * shape[2]);
    let plan = WindowPlan::gaussian(settings.window, settings.overlap).with_batch(settings.window_batch);
    let finer = match settings.upsampling {
        Upsampling::Nearest => None,
        Upsampling::Linear => journey.finer_axes(),
    };
    if settings.upsampling == Upsampling::Linear && finer.is_none() {
        tracing::warn!(
            "the axes of this scan's affine are not at right angles: its labels, not its logits, are brought back to its grid"
        );
    }
    let mut probabilities = Probabilities::empty(journey, finer.clone(), sure);
    let windows = |plane: &mut dyn FnMut(usize, &[f32])| {
        sliding_window(prepared.image.voxels(), shape, &plan, network, plane)
    };
    if let Some(axes) = &finer {
        let (plane, grid) = ([shape[1], shape[2]], journey.ras_grid());
        let mut fine = Upsampler::new(axes, plane, threshold, grid, network.classes());
        windows(&mut |x: usize, logits: &[f32]| {
            fine.push(x, logits);
            probabilities.push(x, logits);
        })?;
        let masks = settings.cleaned(fine.finish());
        let masks = masks.moved(journey.file_grid().clone(), |plane| journey.turn_back(plane));
        return Ok(Prediction { masks, probabilities });
    }
    let mut masks = ClassMasks::empty(journey.prepared_grid(), network.classes());
    windows(&mut |x: usize, logits: &[f32]| {
        for (channel, plane) in logits.chunks_exact(plane_voxels).enumerate() {
            masks.insert(channel, x * plane_voxels, plane.iter().map(|&logit| logit > threshold));
        }
        probabilities.push(x, logits);
    })?;
    Ok(Prediction { masks: settings.cleaned(masks).restore(journey), probabilities })
}

#[cfg(test)]
mod tests {
    use common::taxonomy::Taxonomy;
    use nalgebra::{Matrix4, Rotation3, Vector3};

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::nifti::{Limits, read_image, read_labels, write_image_i16, write_labels};
    use crate::data::orientation::Orientation;
    use crate::data::volume::{Grid, Volume};
    use crate::infer::merge::merge_labels;
    use crate::infer::testing::Bright;

    const LIVER: Bright = Bright(&[6]);

    fn settings(upsampling: Upsampling) -> InferenceSettings {
        let preprocessing = Preprocessing { spacing_mm: [1.5; 3], window_hu: (-175.0, 250.0) };
        InferenceSettings {
            preprocessing,
            window: [16; 3],
            overlap: 0.5,
            window_batch: 1,
            threshold: 0.5,
            upsampling,
            postprocessing: None,
        }
    }

    /// A body in air with a bright, asymmetric bar of 200 HU, given by world position (mm). The body is as far below the
    /// threshold of [`Bright`], 37.5 HU, as the bar is above: interpolation leaves the surface between them in its place.
    fn scan(grid: &Grid) -> Volume<i16> {
        let centre = grid.affine.apply(Vector3::from(grid.shape.map(|n| (n as f64 - 1.0) / 2.0)));
        Volume::from_fn(grid.clone(), |index| {
            let d = grid.affine.apply(Vector3::from(index.map(|i| i as f64))) - centre;
            match () {
                () if d.x > 2.0 && d.x < 12.0 && d.y.abs() < 6.0 && d.z > -3.0 && d.z < 9.0 => 200,
                () if d.norm() < 22.0 => -125,
                () => -1000,
            }
        })
    }

    fn grid(shape: [usize; 3], columns: [[f64; 3]; 3], origin: [f64; 3]) -> Grid {
        let mut matrix = Matrix4::identity();
        for (axis, column) in columns.iter().enumerate() {
            matrix.fixed_view_mut::<3, 1>(0, axis).copy_from(&Vector3::from(*column));
        }
        matrix.fixed_view_mut::<3, 1>(0, 3).copy_from(&Vector3::from(origin));
        Grid { shape, affine: Affine::new(matrix).unwrap() }
    }

    fn oblique() -> Grid {
        let turn = Rotation3::from_euler_angles(0.2, -0.15, 0.3);
        let scaled = [1.2, 1.6, 2.0].into_iter().enumerate().map(|(axis, mm)| {
            let column = turn * Vector3::ith(axis, mm);
            [column.x, column.y, column.z]
        });
        let columns: Vec<[f64; 3]> = scaled.collect();
        grid([40, 32, 26], columns.try_into().unwrap(), [-31.0, 12.5, 77.0])
    }

    #[test]
    fn a_prediction_lies_on_the_grid_of_its_file_whatever_the_orientation() {
        let ras =
            grid([44, 46, 42], [[1.2, 0.0, 0.0], [0.0, 1.2, 0.0], [0.0, 0.0, 1.2]], [-20.0, -30.0, 5.0]);
        let lps =
            grid([40, 38, 36], [[-1.3, 0.0, 0.0], [0.0, -1.3, 0.0], [0.0, 0.0, 1.5]], [25.0, 30.0, -9.0]);
        let thick =
            grid([52, 50, 11], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]], [-20.0, 3.0, 8.0]);
        let turned =
            grid([30, 48, 44], [[0.0, 0.0, -1.5], [1.1, 0.0, 0.0], [0.0, 1.2, 0.0]], [4.0, 5.0, 6.0]);
        let named =
            [("RAS", ras), ("LPS", lps), ("thick", thick), ("turned", turned), ("oblique", oblique())];
        for (name, grid) in named {
            for upsampling in [Upsampling::Nearest, Upsampling::Linear] {
                let (grid_moved, dice) = round_trip(&grid, &settings(upsampling));
                assert!(grid_moved < 1e-4, "{name}: the affine moved by {grid_moved}");
                assert!(dice > 0.8, "{name}, {upsampling:?}: Dice {dice}");
            }
        }
    }

    #[test]
    fn interpolated_logits_follow_the_anatomy_where_the_networks_grid_is_coarse() {
        let coarse = |upsampling| {
            let preprocessing = Preprocessing { spacing_mm: [5.0; 3], window_hu: (-175.0, 250.0) };
            round_trip(&oblique(), &InferenceSettings { preprocessing, ..settings(upsampling) }).1
        };
        let (nearest, linear) = (coarse(Upsampling::Nearest), coarse(Upsampling::Linear));
        assert!(linear > nearest + 0.03, "linear {linear}, nearest {nearest}");
    }

    /// Predicts a scan on `grid` through files: how far the affine moved, and the Dice of the bar.
    fn round_trip(grid: &Grid, settings: &InferenceSettings) -> (f64, f64) {
        let folder = tempfile::tempdir().unwrap();
        let ct = folder.path().join("ct.nii.gz");
        write_image_i16(&ct, &scan(grid)).unwrap();
        let image = read_image(&ct, &Limits::default()).unwrap();
        let stored = image.volume.grid().clone();
        let masks = segment(image, settings, &LIVER).unwrap();
        let out = folder.path().join("labels.nii.gz");
        write_labels(&out, &merge_labels(&masks, &Taxonomy::standard())).unwrap();

        let labels = read_labels(&out, &Limits::default()).unwrap();
        assert_eq!(labels.shape(), stored.shape);
        let orientation = |grid: &Grid| Orientation::of(&grid.affine).to_string();
        assert_eq!(orientation(labels.grid()), orientation(&stored));
        assert!(labels.voxels().iter().all(|&label| label == 0 || label == 6));

        let truth = scan(grid);
        let count = |wanted: bool, got: bool| {
            let both = truth.voxels().iter().zip(labels.voxels());
            both.filter(|(hu, label)| (**hu == 200) == wanted && (**label == 6) == got).count() as f64
        };
        let dice =
            2.0 * count(true, true) / (2.0 * count(true, true) + count(true, false) + count(false, true));
        ((labels.grid().affine.matrix() - stored.affine.matrix()).amax(), dice)
    }

    #[test]
    fn probabilities_lie_above_one_half_where_the_raw_mask_is() {
        let liver = ClassId::new(6).unwrap();
        for upsampling in [Upsampling::Nearest, Upsampling::Linear] {
            let folder = tempfile::tempdir().unwrap();
            let ct = folder.path().join("ct.nii");
            write_image_i16(&ct, &scan(&oblique())).unwrap();
            let image = read_image(&ct, &Limits::default()).unwrap();
            let Prediction { masks, probabilities } =
                predict(image, &settings(upsampling), &LIVER, &[liver]).unwrap();
            let sure = probabilities.of(liver).unwrap();
            assert_eq!(sure.grid(), masks.grid());
            let above: Vec<bool> = sure.voxels().iter().map(|&p| p > 0.5).collect();
            let inside = masks.mask(liver);
            // A logit within rounding of zero has a probability of one half.
            let apart = above.iter().zip(&inside).filter(|(a, b)| a != b).count();
            assert!(inside.contains(&true) && apart <= inside.len() / 1000, "{upsampling:?}: {apart}");
            assert!(probabilities.of(ClassId::new(1).unwrap()).is_none());
        }
    }

    #[test]
    fn post_processing_keeps_one_piece_of_an_organ_on_the_way_to_the_file() {
        let grid = oblique();
        let mut two = scan(&grid);
        // A second, smaller bright piece, away from the bar.
        let far = Volume::from_fn(grid.clone(), |[i, j, k]| {
            (8..12).contains(&i) && (14..18).contains(&j) && (11..14).contains(&k)
        });
        two.voxels_mut().iter_mut().zip(far.voxels()).filter(|(_, far)| **far).for_each(|(hu, _)| *hu = 200);
        let folder = tempfile::tempdir().unwrap();
        let ct = folder.path().join("ct.nii");
        write_image_i16(&ct, &two).unwrap();
        let liver = ClassId::new(6).unwrap();
        for upsampling in [Upsampling::Nearest, Upsampling::Linear] {
            let found = |postprocessing| {
                let settings = InferenceSettings { postprocessing, ..settings(upsampling) };
                let image = read_image(&ct, &Limits::default()).unwrap();
                let mask = segment(image, &settings, &LIVER).unwrap().mask(liver);
                let in_far = mask.iter().zip(far.voxels()).filter(|(inside, far)| **inside && **far).count();
                (in_far, mask.iter().filter(|inside| **inside).count() - in_far)
            };
            let (raw, cleaned) = (found(None), found(Some(Rules::of(&Taxonomy::standard()))));
            assert!(raw.0 > 0 && cleaned.0 == 0, "{upsampling:?}: {raw:?} {cleaned:?}");
            assert!(cleaned.1 > raw.1 / 2, "{upsampling:?}: {raw:?} {cleaned:?}");
        }
    }

    /// Two cubes that meet at a corner of 3 mm: one piece there, by 26 neighbours. Between the corners the interpolated logit is below
    /// the threshold, as six of eight neighbours are air: two pieces on voxels of 1 mm.
    #[test]
    fn pieces_are_those_of_the_grid_on_which_masks_are_cleaned() {
        let grid = grid([36; 3], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0; 3]);
        // Blocks of 3 mm around the points where the network's voxels are sampled.
        let is_in = |index: [usize; 3], blocks: std::ops::Range<usize>| {
            index.iter().all(|i| blocks.contains(&((i + 1) / 3)))
        };
        let ct = Volume::from_fn(grid, |index| match is_in(index, 2..5) || is_in(index, 5..7) {
            true => 60,
            false => -125,
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ct.nii");
        write_image_i16(&path, &ct).unwrap();
        let liver = ClassId::new(6).unwrap();
        // A voxel of the larger cube, and one of the smaller.
        let found = |upsampling, postprocessing| {
            let preprocessing = Preprocessing { spacing_mm: [3.0; 3], window_hu: (-175.0, 250.0) };
            let settings = InferenceSettings { preprocessing, postprocessing, ..settings(upsampling) };
            let image = read_image(&path, &Limits::default()).unwrap();
            let masks = segment(image, &settings, &LIVER).unwrap();
            [9, 18].map(|i| masks.contains(liver, (i * 36 + i) * 36 + i))
        };
        let rules = || Some(Rules::of(&Taxonomy::standard()));
        for upsampling in [Upsampling::Nearest, Upsampling::Linear] {
            assert_eq!(found(upsampling, None), [true, true], "{upsampling:?}");
        }
        assert_eq!(found(Upsampling::Nearest, rules()), [true, true]);
        assert_eq!(found(Upsampling::Linear, rules()), [true, false]);
    }

    #[test]
    fn the_threshold_is_that_of_the_sigmoid() {
        let with =
            |threshold| InferenceSettings { threshold, ..settings(Upsampling::Nearest) }.logit_threshold();
        assert_eq!(with(0.5), 0.0);
        assert!((1.0 / (1.0 + (-with(0.8)).exp()) - 0.8).abs() < 1e-6);
    }
}
