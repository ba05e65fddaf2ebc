//! Golden fixture (i): the published preprocessing and its inverse, on four geometries.

use nalgebra::{Matrix3, Matrix4, Rotation3, Vector3};
use safetensors::SafeTensors;

use super::*;
use crate::data::geometry::Affine;
use crate::data::nifti::{Limits, PlacedBy, read_image, read_labels, write_labels};
use crate::data::orientation::to_ras;
use crate::golden;

const CASES: [&str; 4] = ["lps_oblique", "ras_plain", "permuted", "downsample"];

/// The files, the tensors and the JSON of the fixture.
struct Golden {
    files: golden::Golden,
    tensors: Vec<u8>,
    json: golden::Facts,
}

impl Golden {
    fn load() -> Option<Self> {
        let files = golden::Golden::open()?;
        let (tensors, json) = (files.bytes("i_preprocess.safetensors"), files.facts("i_preprocess.json"));
        Some(Self { files, tensors, json })
    }

    fn image(&self, case: &str) -> Image {
        read_image(&self.files.path(&format!("i_{case}_image.nii.gz")), &Limits::default()).unwrap()
    }

    fn labels(&self, case: &str) -> Volume<u8> {
        let path = self.files.path(&format!("i_{case}_label.nii.gz"));
        read_labels(&path, &Limits::default()).unwrap().map(|&label| u8::try_from(label).unwrap())
    }

    /// Shape without the channel axis, and little-endian values.
    fn tensor(&self, name: &str) -> ([usize; 3], &[u8]) {
        let tensor = SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).unwrap();
        let &[1, x, y, z] = tensor.shape() else { panic!("{name}: {:?}", tensor.shape()) };
        ([x, y, z], tensor.data())
    }

    fn assert_image(&self, name: &str, ours: &Volume<f32>, tolerance: f32) {
        let (shape, bytes) = self.tensor(name);
        assert_eq!(ours.shape(), shape, "{name}");
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let worst = golden::farthest(ours.voxels(), &values);
        println!("{name}: at most {worst:.1e} of {tolerance:.1e}");
        assert!(worst <= tolerance, "{name}: differs by {worst}");
    }

    fn assert_affine(&self, case: &str, name: &str, ours: &Grid) {
        for (row, column) in (0..3).flat_map(|row| (0..4).map(move |column| (row, column))) {
            let golden = self.json[case][name][row][column].as_f64().unwrap();
            let apart = (ours.affine.matrix()[(row, column)] - golden).abs();
            println!("{case} {name}: at most {apart:.1e} of 1e-4");
            assert!(apart < 1e-4, "{case} {name} [{row}, {column}]: {apart}");
        }
    }
}

/// Whether the voxel at `index` of the prepared grid lies, along some axis, half-way between voxels of the RAS grid:
/// there the oracle, which solves the affine in f32, may round the other way.
fn on_a_tie(journey: &Journey, index: [usize; 3]) -> bool {
    let ras = journey.turn.ras_grid();
    let map: Matrix4<f64> = ras.affine.voxels_of(&journey.prepared_grid().affine);
    let at = map.transform_point(&index.map(|v| v as f64).into());
    at.iter().any(|coordinate| (coordinate - coordinate.floor() - 0.5).abs() < 1e-4)
}

#[test]
fn every_golden_case_is_prepared_as_published() {
    let Some(golden) = Golden::load() else { return };
    for case in CASES {
        let file = golden.image(case);
        let (ras, _) = to_ras(&file.volume);
        golden.assert_image(&format!("{case}.oriented_image"), &ras, 0.0);
        golden.assert_affine(case, "oriented_affine", ras.grid());

        let plan = Resampling::plan(ras.grid(), Preprocessing::default().spacing_mm).unwrap();
        golden.assert_affine(case, "spaced_affine", plan.grid());
        // 1e-5 of the window's 425 HU.
        golden.assert_image(&format!("{case}.spaced_hu"), &plan.image(ras), 4.25e-3);

        let prepared = preprocess_image(file, &Preprocessing::default()).unwrap();
        let crop = prepared.journey.crop;
        let crop_end = [0, 1, 2].map(|axis| crop.start[axis] + crop.shape[axis]);
        assert_eq!(golden.json[case]["crop_start"], serde_json::json!(crop.start), "{case}");
        assert_eq!(golden.json[case]["crop_end"], serde_json::json!(crop_end), "{case}");
        golden.assert_image(&format!("{case}.image"), &prepared.image, 1e-5);
    }
}

#[test]
fn every_golden_label_goes_the_way_of_its_image() {
    let Some(golden) = Golden::load() else { return };
    for case in CASES {
        let prepared = preprocess_image(golden.image(case), &Preprocessing::default()).unwrap();
        let ours = preprocess_labels(&golden.labels(case), &prepared.journey).unwrap();
        let (shape, expected) = golden.tensor(&format!("{case}.label"));
        assert_eq!(ours.shape(), shape);
        let [nx, ny, nz] = shape;
        let mut ties = 0;
        for (i, j, k) in (0..nx).flat_map(|i| (0..ny).flat_map(move |j| (0..nz).map(move |k| (i, j, k)))) {
            if ours.at([i, j, k]) != expected[ours.grid().offset([i, j, k])] {
                assert!(on_a_tie(&prepared.journey, [i, j, k]), "{case}: differs at {i} {j} {k}");
                ties += 1;
            }
        }
        println!("{case}: {ties} labels differ on ties");
        assert!(ties <= 167, "{case}: an independent implementation has at most 167");
    }
}

#[test]
fn every_golden_prediction_returns_to_the_grid_of_its_file() {
    let Some(golden) = Golden::load() else { return };
    for case in CASES {
        let file = golden.image(case);
        let file_grid = file.volume.grid().clone();
        let journey = preprocess_image(file, &Preprocessing::default()).unwrap().journey;
        for what in ["pred", "label"] {
            let (shape, prepared) = golden.tensor(&format!("{case}.{what}"));
            let prepared = Volume::new(journey.prepared_grid(), prepared.to_vec());
            assert_eq!(prepared.shape(), shape);
            let restored = journey.restore(&prepared, 0);
            let (shape, expected) = golden.tensor(&format!("{case}.{what}_inverse"));
            assert_eq!((restored.shape(), restored.grid()), (shape, &file_grid));
            assert_eq!(restored.voxels(), expected, "{case}.{what}_inverse");
        }
    }
}

/// A warm ball in air, off-centre on each axis, on a grid with these axes.
fn phantom(linear: Matrix3<f64>) -> Image {
    let affine = Affine::from_parts(linear, Vector3::new(-40.0, 25.0, 7.0)).unwrap();
    let grid = Grid { shape: [21, 26, 17], affine };
    let volume = Volume::from_fn(grid, |[i, j, k]| {
        let off = [(i as f64 - 8.0) / 6.0, (j as f64 - 15.0) / 8.0, (k as f64 - 9.0) / 5.0];
        if off.iter().map(|v| v * v).sum::<f64>() < 1.0 { 60.0 } else { -1000.0 }
    });
    Image { volume, placed_by: PlacedBy::Sform }
}

#[test]
fn a_written_prediction_has_the_geometry_of_its_input() {
    let diagonal = |d: [f64; 3]| Matrix3::from_diagonal(&Vector3::from(d));
    let oblique = Rotation3::from_euler_angles(0.3, -0.2, 0.15).matrix() * diagonal([-1.2, -1.2, 2.0]);
    let inputs = [
        ("RAS", diagonal([1.5, 1.5, 1.5])),
        ("LPS", diagonal([-1.2, -1.2, 2.0])),
        ("LPS", oblique),
        ("RAS", diagonal([0.7, 0.7, 5.0])),
        ("PIR", Matrix3::new(0.0, 0.0, 1.1, -1.3, 0.0, 0.0, 0.0, -1.7, 0.0)),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (letters, linear) in inputs {
        let input = phantom(linear);
        let ball = input.volume.map(|&hu| u8::from(hu > 0.0));
        let prepared = preprocess_image(input.clone(), &Preprocessing::default()).unwrap();
        let predicted = preprocess_labels(&ball, &prepared.journey).unwrap();
        let restored = prepared.journey.restore(&predicted, 0);
        let path = folder.path().join("prediction.nii.gz");
        write_labels(&path, &restored).unwrap();

        let read = read_labels(&path, &Limits::default()).unwrap();
        assert_eq!(read.shape(), input.volume.shape());
        assert_eq!(Reorientation::of(read.grid()).orientation().to_string(), letters);
        assert!((read.grid().affine.matrix() - input.volume.grid().affine.matrix()).amax() < 1e-5);
        let ours = |v: &i32| *v == 1;
        let agree = read.voxels().iter().zip(ball.voxels()).filter(|(a, b)| ours(a) && **b == 1).count();
        let total = read.voxels().iter().filter(|v| ours(v)).count()
            + ball.voxels().iter().filter(|v| **v == 1).count();
        let dice = 2.0 * agree as f64 / total as f64;
        println!("{letters}: Dice {dice:.3}");
        assert!(dice > 0.85, "{letters}: Dice {dice}");
    }
}

#[test]
fn what_lies_outside_of_the_crop_gets_the_fill_value() {
    let input = phantom(Matrix3::identity());
    let prepared = preprocess_image(input, &Preprocessing::default()).unwrap();
    let restored = prepared.journey.restore(&prepared.image.map(|_| 1u8), 255);
    assert_eq!(restored.at([0, 0, 0]), 255);
    assert_eq!(restored.at([8, 15, 9]), 1);
}

#[test]
fn labels_of_another_place_are_refused() {
    let prepared = preprocess_image(phantom(Matrix3::identity()), &Preprocessing::default()).unwrap();
    let elsewhere = phantom(Matrix3::identity() * 1.1).volume;
    let mismatch = preprocess_labels(&elsewhere, &prepared.journey).unwrap_err();
    assert_eq!(mismatch.code(), "affine_mismatch");
}
