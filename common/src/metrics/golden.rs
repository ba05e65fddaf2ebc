//! The metrics against the reference's own numbers (golden set k).

use serde_json::Value;

use super::*;
use crate::testing::shared_file;

const SHAPE: [usize; 3] = [20, 16, 14];

/// A mask of the golden file, which is safetensors: header length, JSON header, data.
fn mask(file: &[u8], name: &str) -> Vec<bool> {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let offset = |end: usize| 8 + header + entries[name]["data_offsets"][end].as_u64().unwrap() as usize;
    assert_eq!(entries[name]["shape"], serde_json::json!(SHAPE));
    file[offset(0)..offset(1)].iter().map(|&voxel| voxel != 0).collect()
}

fn masks_and_numbers() -> Option<(Vec<bool>, Vec<bool>, Value)> {
    let file = shared_file("golden/k_postprocess.safetensors")?;
    let numbers: Value = serde_json::from_slice(&shared_file("golden/k_postprocess.json")?).unwrap();
    Some((mask(&file, "metric.a"), mask(&file, "metric.b"), numbers["metrics"].clone()))
}

/// The order of the reference's numbers.
fn reference_row(overlap: &Overlap) -> [Option<f64>; 4] {
    [Some(overlap.smoothed_dice()), overlap.recall(), overlap.precision(), overlap.specificity()]
}

fn assert_row(overlap: &Overlap, expected: &Value, name: &str) {
    for (index, ours) in reference_row(overlap).into_iter().enumerate() {
        match (ours, expected[index].as_f64()) {
            (Some(ours), Some(theirs)) => {
                let apart = (ours - theirs).abs();
                println!("{name}: at most {apart:.1e} of 1e-6");
                assert!(apart < 1e-6, "{name}[{index}]: {ours} {theirs}")
            }
            (None, None) => {}
            (ours, theirs) => panic!("{name}[{index}]: {ours:?} {theirs:?}"),
        }
    }
}

#[test]
fn overlap_counts_give_the_reference_numbers() {
    let Some((a, b, numbers)) = masks_and_numbers() else { return };
    let none = vec![false; a.len()];
    let pairs = [
        ("overlap", &a, &b),
        ("identical", &a, &a),
        ("pred_empty", &none, &b),
        ("label_empty", &a, &none),
        ("both_empty", &none, &none),
    ];
    for (name, prediction, truth) in pairs {
        let overlap = Overlap::of(prediction.iter().copied(), truth.iter().copied());
        let expected = &numbers[format!("dice_{name}")];
        assert!(expected.is_array(), "no dice_{name}");
        assert_row(&overlap, expected, name);
    }
    let compared = numbers.as_object().unwrap().keys().filter(|name| name.starts_with("dice_")).count();
    assert_eq!(compared, pairs.len(), "every case of the file is compared");
}

#[test]
fn plain_dice_differs_from_the_reference_by_the_one_in_the_denominator() {
    let Some((a, b, numbers)) = masks_and_numbers() else { return };
    let overlap = Overlap::of(a.iter().copied(), b.iter().copied());
    let sizes = (2 * overlap.true_positive + overlap.false_positive + overlap.false_negative) as f64;
    let theirs = numbers["dice_overlap"][0].as_f64().unwrap();
    assert!((overlap.dice().unwrap() - theirs * (sizes + 1.0) / sizes).abs() < 1e-6);
}

#[test]
fn surface_distances_are_the_reference_numbers() {
    let Some((a, b, numbers)) = masks_and_numbers() else { return };
    for (spacing, spacing_mm) in [("1.5", [1.5; 3]), ("_1_0.8_3", [1.0, 0.8, 3.0])] {
        let grid = Grid { shape: SHAPE, spacing_mm };
        for tau_mm in [0.0, 1.0, 1.5, 2.0, 3.0, 5.0] {
            let name = format!("nsd_tol{tau_mm:.1}_spacing{spacing}");
            let expected = numbers[&name].as_f64().unwrap_or_else(|| panic!("no {name}"));
            let ours = normalised_surface_distance(&a, &b, &grid, tau_mm).unwrap();
            let apart = (ours - expected).abs();
            println!("{name}: at most {apart:.1e} of 1e-6");
            assert!(apart < 1e-6, "{name}: {ours} {expected}");
        }
    }
}
