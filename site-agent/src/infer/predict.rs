//! From a CT to one mask per class, on the grid of the CT's own file.

use common::ids::ClassId;
use common::study::Study;
use common::study::sections::Upsampling;
use common::taxonomy::{ClassKind, Taxonomy};

use super::masks::ClassMasks;
use super::sliding_window::{WindowPlan, sliding_window};
use super::upsample::Upsampler;
use super::{InferError, Predictor, Segmenter};
use crate::data::nifti::Image;
use crate::data::preprocess::{Preprocessing, preprocess_image};
use crate::data::volume::Volume;

/// What a study fixes about inference.
#[derive(Clone, Debug)]
pub struct InferenceSettings {
    /// The network's grid and intensities.
    pub preprocessing: Preprocessing,
    /// Voxels of a window along `[x, y, z]`.
    pub window: [usize; 3],
    /// Part of a window that its neighbour shares, in `[0, 1)`.
    pub overlap: f64,
    /// A voxel belongs to a class when its sigmoid is strictly above.
    pub threshold: f64,
    /// How the network's grid becomes the scan's.
    pub upsampling: Upsampling,
}

impl InferenceSettings {
    /// The settings of `study`.
    pub fn of(study: &Study) -> Self {
        let [low, high] = study.preprocessing.window_hu;
        Self {
            preprocessing: Preprocessing {
                spacing_mm: study.preprocessing.spacing_mm,
                window_hu: (low as f32, high as f32),
            },
            window: study.preprocessing.patch.map(|n| n as usize),
            overlap: study.evaluation.overlap,
            threshold: study.evaluation.threshold,
            upsampling: study.evaluation.upsampling,
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

/// The masks of all classes on the grid of the image's file. All classes come from one pass over the windows.
///
/// # Errors
/// What the network says, or [`InferError::Resample`] for a scan that would not fit into memory.
pub fn segment(
    image: Image,
    settings: &InferenceSettings,
    network: &dyn Predictor,
) -> Result<ClassMasks, InferError> {
    let prepared = preprocess_image(image, &settings.preprocessing)?;
    let shape = prepared.image.shape();
    let plane_voxels = shape[1] * shape[2];
    let threshold = settings.logit_threshold();
    let plan = WindowPlan::gaussian(settings.window, settings.overlap);
    let journey = &prepared.journey;
    let finer = journey.finer_axes().filter(|_| settings.upsampling == Upsampling::Linear);
    if let Some(axes) = finer {
        let classes = network.classes();
        let mut finer = Upsampler::new(&axes, [shape[1], shape[2]], threshold, journey.ras_grid(), classes);
        sliding_window(prepared.image.voxels(), shape, &plan, network, |x, logits| finer.push(x, logits))?;
        return Ok(finer.finish().moved(journey.file_grid().clone(), |plane| journey.turn_back(plane)));
    }
    let mut masks = ClassMasks::empty(prepared.journey.prepared_grid(), network.classes());
    sliding_window(prepared.image.voxels(), shape, &plan, network, |x, logits| {
        for (channel, plane) in logits.chunks_exact(plane_voxels).enumerate() {
            masks.insert(channel, x * plane_voxels, plane.iter().map(|&logit| logit > threshold));
        }
    })?;
    Ok(masks.restore(&prepared.journey))
}

/// One class per voxel, by its id; 0 where there is none. Tumours and cysts are painted over the organs around them.
pub fn merge_labels(masks: &ClassMasks, taxonomy: &Taxonomy) -> Volume<u8> {
    let mut merged = vec![0; masks.grid().len()];
    for class in painting_order(taxonomy) {
        paint(&mut merged, class, |offset| masks.contains(class, offset));
    }
    Volume::new(masks.grid().clone(), merged)
}

/// Organs first, then what may lie in them; each kind in order of id.
pub(super) fn painting_order(taxonomy: &Taxonomy) -> impl Iterator<Item = ClassId> + '_ {
    let of = |organs: bool| {
        let chosen =
            taxonomy.classes().iter().filter(move |class| (class.kind == ClassKind::Organ) == organs);
        chosen.map(|class| class.id)
    };
    of(true).chain(of(false))
}

/// Gives the voxels that belong to `class` its id.
pub(super) fn paint(merged: &mut [u8], class: ClassId, belongs: impl Fn(usize) -> bool) {
    let voxels = merged.iter_mut().enumerate().filter(|(offset, _)| belongs(*offset));
    voxels.for_each(|(_, voxel)| *voxel = class.get());
}

#[cfg(test)]
mod tests {
    use nalgebra::{Matrix4, Rotation3, Vector3};

    use super::*;
    use crate::data::geometry::Affine;
    use crate::data::nifti::{Limits, read_image, read_labels, write_image_i16, write_labels};
    use crate::data::orientation::Orientation;
    use crate::data::volume::Grid;

    /// Liver (class 6) where the windowed intensity is above 0.5; no other class.
    struct Bright;

    impl Predictor for Bright {
        fn classes(&self) -> usize {
            32
        }

        fn logits(&self, patch: &[f32], _: [usize; 3]) -> Result<Vec<f32>, InferError> {
            let mut logits = vec![-1.0; 32 * patch.len()];
            logits[5 * patch.len()..6 * patch.len()].iter_mut().zip(patch).for_each(|(l, p)| *l = p - 0.5);
            Ok(logits)
        }
    }

    fn settings(upsampling: Upsampling) -> InferenceSettings {
        let preprocessing = Preprocessing { spacing_mm: [1.5; 3], window_hu: (-175.0, 250.0) };
        InferenceSettings { preprocessing, window: [16; 3], overlap: 0.5, threshold: 0.5, upsampling }
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
        let masks = segment(image, settings, &Bright).unwrap();
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
    fn tumours_are_painted_over_their_organ() {
        let grid = grid([1, 1, 2], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0; 3]);
        let mut masks = ClassMasks::empty(grid, 32);
        masks.insert(26, 1, [true].into_iter());
        masks.insert(5, 0, [true, true].into_iter());
        assert_eq!(merge_labels(&masks, &Taxonomy::standard()).voxels(), [6, 27]);
    }

    #[test]
    fn the_threshold_is_that_of_the_sigmoid() {
        let with =
            |threshold| InferenceSettings { threshold, ..settings(Upsampling::Nearest) }.logit_threshold();
        assert_eq!(with(0.5), 0.0);
        assert!((1.0 / (1.0 + (-with(0.8)).exp()) - 0.8).abs() < 1e-6);
    }
}
