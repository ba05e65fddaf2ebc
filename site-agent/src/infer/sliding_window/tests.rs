use std::cell::{Cell, RefCell};

use safetensors::SafeTensors;

use super::*;
use crate::golden;

struct Golden {
    /// Looks at its end whether everything was opened.
    _files: golden::Golden,
    bytes: Vec<u8>,
    facts: golden::Facts,
}

impl Golden {
    fn load() -> Option<Self> {
        let files = golden::Golden::open()?;
        let (bytes, facts) =
            (files.bytes("h_sliding_window.safetensors"), files.facts("h_sliding_window.json"));
        Some(Self { _files: files, bytes, facts })
    }

    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let numbers = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (view.shape().to_vec(), numbers.collect())
    }

    fn triple(&self, case: &str, key: &str) -> [usize; 3] {
        serde_json::from_value(self.facts[case][key].clone()).unwrap()
    }
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    let far = golden::farthest(got, want);
    println!("{what}: at most {far:.1e} of 1e-5");
    assert!(far <= 1e-5, "{what}: off by {far}");
}

/// The predictor of the fixtures: three channels that depend on value, patch mean and place in the window.
struct FixturePredictor;

impl Predictor for FixturePredictor {
    fn classes(&self) -> usize {
        3
    }

    fn logits(&self, patch: &[f32], [nx, ny, nz]: [usize; 3]) -> Result<Vec<f32>, InferError> {
        let mean = (patch.iter().map(|&v| f64::from(v)).sum::<f64>() / patch.len() as f64) as f32;
        let places = (0..nx).flat_map(|i| (0..ny).flat_map(move |j| (0..nz).map(move |k| i + 2 * j + 3 * k)));
        let place: Vec<f32> = places.map(|p| p as f32).collect();
        let mut out: Vec<f32> = patch.iter().zip(&place).map(|(p, at)| 2.0 * p - 1.0 + 0.01 * at).collect();
        out.extend(patch.iter().map(|p| p * p + mean));
        out.extend(place.iter().map(|at| mean + 0.1 * at));
        Ok(out)
    }
}

/// All planes joined to `[classes, x, y, z]`.
fn whole(image: &[f32], shape: [usize; 3], plan: &WindowPlan, network: &dyn Predictor) -> Vec<f32> {
    let plane_voxels = shape[1] * shape[2];
    let mut out = vec![f32::NAN; network.classes() * shape[0] * plane_voxels];
    let mut next = 0;
    sliding_window(image, shape, plan, network, |x, logits| {
        assert_eq!(x, next, "planes arrive in order, each once");
        next += 1;
        for (class, values) in logits.chunks(plane_voxels).enumerate() {
            out[(class * shape[0] + x) * plane_voxels..][..plane_voxels].copy_from_slice(values);
        }
    })
    .unwrap();
    assert_eq!(next, shape[0], "every plane arrives");
    out
}

#[test]
fn importance_maps_equal_the_reference() {
    let Some(golden) = Golden::load() else { return };
    for roi in [[8, 8, 8], [6, 8, 10], [16, 16, 16]] {
        let (name, map) = (format!("map_{}x{}x{}", roi[0], roi[1], roi[2]), gaussian_importance(roi));
        assert_close(&map, &golden.tensor(&name).1, &name);
        assert_map_is_as_told(&golden.facts[&name], &map, roi);
    }
    let map = gaussian_importance([96; 3]);
    assert_map_is_as_told(&golden.facts["map_96x96x96"], &map, [96; 3]);
    let at = |i: usize, j: usize, k: usize| map[(i * 96 + j) * 96 + k];
    let line: Vec<f32> = (0..96).map(|i| at(i, 48, 48)).collect();
    let diagonal: Vec<f32> = (0..96).map(|i| at(i, i, i)).collect();
    let eighth = |n: usize| (n * 8) % 96;
    let sub: Vec<f32> = (0..1728).map(|n| at(eighth(n / 144), eighth(n / 12), eighth(n))).collect();
    assert_close(&line, &golden.tensor("map_96_axis0_line").1, "line through the centre");
    assert_close(&diagonal, &golden.tensor("map_96_diag").1, "diagonal");
    assert_close(&sub, &golden.tensor("map_96_sub8").1, "every eighth voxel");
}

/// Where the largest weight is, how many were raised to the floor, and their sum.
fn assert_map_is_as_told(facts: &serde_json::Value, map: &[f32], [nx, ny, nz]: [usize; 3]) {
    let largest = (0..map.len()).max_by(|&a, &b| map[a].total_cmp(&map[b])).unwrap();
    let place = [largest / (ny * nz), largest / nz % ny, largest % nz];
    assert_eq!(facts["argmax"], serde_json::json!(place), "{nx} {ny} {nz}");
    let floor = facts["clamp_min"].as_f64().unwrap() as f32;
    let raised = map.iter().filter(|&&weight| weight == floor).count();
    assert_eq!(facts["n_clamped"], serde_json::json!(raised), "{nx} {ny} {nz}");
    let (sum, told): (f64, _) = (map.iter().copied().map(f64::from).sum(), facts["sum"].as_f64().unwrap());
    assert!((sum - told).abs() <= 1e-6 * told, "{nx} {ny} {nz}: {sum} {told}");
}

#[test]
fn windows_start_where_the_reference_starts_them() {
    let Some(golden) = Golden::load() else { return };
    for tag in ["big", "aniso", "small_padded", "exact", "batch2"] {
        for mode in ["gaussian", "constant"] {
            let case = format!("{tag}_{mode}");
            let overlap = golden.facts[&case]["overlap"].as_f64().unwrap();
            let plan = WindowPlan::gaussian(golden.triple(&case, "roi"), overlap);
            let [xs, ys, zs] = plan.starts(golden.triple(&case, "image"));
            let mut got = Vec::new();
            for &x in &xs {
                for &y in &ys {
                    got.extend(zs.iter().map(|&z| [x, y, z]));
                }
            }
            let want: Vec<[usize; 3]> =
                serde_json::from_value(golden.facts[&case]["starts"].clone()).unwrap();
            assert_eq!(got, want, "{case}");
        }
    }
}

#[test]
fn blended_logits_equal_the_reference() {
    let Some(golden) = Golden::load() else { return };
    for tag in ["big", "aniso", "small_padded", "exact", "batch2"] {
        for mode in ["gaussian", "constant"] {
            let case = format!("{tag}_{mode}");
            let roi = golden.triple(&case, "roi");
            let mut plan = WindowPlan::gaussian(roi, golden.facts[&case]["overlap"].as_f64().unwrap());
            if mode == "constant" {
                plan.importance.fill(1.0);
            }
            let (dims, input) = golden.tensor(&format!("{tag}.input"));
            let shape: [usize; 3] = dims[2..].try_into().unwrap();
            let voxels = shape.iter().product();
            let got: Vec<f32> = input
                .chunks(voxels)
                .flat_map(|image| whole(image, shape, &plan, &FixturePredictor))
                .collect();
            assert_close(&got, &golden.tensor(&format!("{tag}.out_{mode}")).1, &case);
        }
    }
}

/// The predictor of the fixtures, which keeps what it was told and asked for.
#[derive(Default)]
struct Witness {
    begun: RefCell<Vec<usize>>,
    batches: RefCell<Vec<usize>>,
}

impl Predictor for Witness {
    fn classes(&self) -> usize {
        FixturePredictor.classes()
    }

    fn logits(&self, patch: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        FixturePredictor.logits(patch, shape)
    }

    fn batch_logits(&self, patches: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        self.batches.borrow_mut().push(patches.len() / shape.iter().product::<usize>());
        FixturePredictor.batch_logits(patches, shape)
    }

    fn begin(&self, windows: usize) {
        self.begun.borrow_mut().push(windows);
    }
}

#[test]
fn a_batch_is_of_windows_that_begin_at_one_x_and_changes_no_bit() {
    // Sixteen windows begin at each of four x.
    let (shape, plan) = ([10, 13, 9], WindowPlan::gaussian([4, 6, 4], 0.5));
    let image: Vec<f32> = (0..10 * 13 * 9).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
    let one_by_one = whole(&image, shape, &plan, &FixturePredictor);
    for (batch, of_row) in [(1, vec![1; 16]), (2, vec![2; 8]), (5, vec![5, 5, 5, 1]), (100, vec![16])] {
        let witness = Witness::default();
        assert!(whole(&image, shape, &plan.clone().with_batch(batch), &witness) == one_by_one, "{batch}");
        assert_eq!(witness.begun.take(), [64], "it is told beforehand, once");
        assert_eq!(witness.batches.take(), of_row.repeat(4));
    }
}

#[test]
fn more_overlap_is_more_windows() {
    let windows = |overlap| WindowPlan::gaussian([32; 3], overlap).windows([96; 3]);
    assert_eq!([0.0, 0.5, 0.75, 0.9].map(windows), [27, 125, 729, 12_167]);
}

#[test]
fn a_predictor_that_miscounts_its_logits_is_reported() {
    struct Short;
    impl Predictor for Short {
        fn classes(&self) -> usize {
            2
        }
        fn logits(&self, _: &[f32], _: [usize; 3]) -> Result<Vec<f32>, InferError> {
            Ok(vec![0.0; 5])
        }
    }
    let plan = WindowPlan::gaussian([2; 3], 0.5);
    let error = sliding_window(&[0.0; 27], [3; 3], &plan, &Short, |_, _| ()).unwrap_err();
    assert!(matches!(error, InferError::Logits { expected: 16, got: 5 }));
    let three = plan.with_batch(3);
    let error = sliding_window(&[0.0; 27], [3; 3], &three, &Short, |_, _| ()).unwrap_err();
    assert!(matches!(error, InferError::Logits { expected: 48, got: 15 }));
}

#[test]
fn logits_that_are_no_numbers_are_reported_and_not_taken_for_an_empty_scan() {
    struct Damaged(f32);
    impl Predictor for Damaged {
        fn classes(&self) -> usize {
            1
        }
        fn logits(&self, patch: &[f32], _: [usize; 3]) -> Result<Vec<f32>, InferError> {
            Ok(patch.iter().map(|&value| if value > 0.5 { self.0 } else { -1.0 }).collect())
        }
    }
    let plan = WindowPlan::gaussian([2; 3], 0.5);
    let mut image = [0.0; 27];
    image[26] = 1.0;
    for logit in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = sliding_window(&image, [3; 3], &plan, &Damaged(logit), |_, _| ()).unwrap_err();
        assert!(matches!(error, InferError::NotFinite { count: 1 }), "{error}");
    }
}

#[test]
fn cancelling_stops_before_the_next_window() {
    struct Once(Cell<u32>);
    impl Predictor for Once {
        fn classes(&self) -> usize {
            1
        }
        fn logits(&self, patch: &[f32], _: [usize; 3]) -> Result<Vec<f32>, InferError> {
            self.0.set(self.0.get() + 1);
            if self.0.get() == 2 { Err(InferError::Cancelled) } else { Ok(patch.to_vec()) }
        }
    }
    let network = Once(Cell::new(0));
    let plan = WindowPlan::gaussian([2; 3], 0.5);
    let error = sliding_window(&[0.0; 64], [4; 3], &plan, &network, |_, _| ()).unwrap_err();
    assert!(matches!(error, InferError::Cancelled));
    assert_eq!(network.0.get(), 2);
}
