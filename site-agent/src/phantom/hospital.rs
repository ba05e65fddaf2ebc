//! The phantom hospitals: who scans how, and who annotates what under which numbers.
//!
//! Three train on partial labels; the fourth annotates everything, trains on nothing, and lies outside the others'
//! range: larger and smaller patients, another pose, another scanner, and now and then an organ removed.

use super::anatomy::SizeSpread;
use super::pose::PoseSpread;
use super::scanner::Scanner;

/// Direction of a stored axis: the world axis (0 = R, 1 = A, 2 = S) and whether it runs that way or against it.
pub type StoredAxis = (usize, f64);

const R: StoredAxis = (0, 1.0);
const L: StoredAxis = (0, -1.0);
const A: StoredAxis = (1, 1.0);
const P: StoredAxis = (1, -1.0);
const S: StoredAxis = (2, 1.0);
const I: StoredAxis = (2, -1.0);

/// One hospital.
#[derive(Clone, Copy, Debug)]
pub struct Hospital {
    /// Its folder, and part of the key of its random draws.
    pub name: &'static str,
    /// How its files store the axes.
    pub stored_axes: [StoredAxis; 3],
    /// Voxel size along R, A and S, mm.
    pub spacing_mm: [f64; 3],
    /// Its scanner.
    pub scanner: Scanner,
    /// Its patients' sizes.
    pub size: SizeSpread,
    /// How they lie.
    pub pose: PoseSpread,
    /// Every how many cases an organ is missing.
    pub missing_every: Option<u32>,
    /// Its data sets; case `i` belongs to data set `i` modulo their number.
    pub datasets: &'static [PhantomDataset],
}

/// A data set: its own numbers for the structures that it annotates.
#[derive(Debug)]
pub struct PhantomDataset {
    /// Name, and folder.
    pub name: &'static str,
    /// Raw values in its label files.
    pub labels: &'static [RawLabel],
}

/// One raw value of a data set.
#[derive(Debug)]
pub struct RawLabel {
    /// The value in the file.
    pub value: u8,
    /// What the data set calls it.
    pub name: &'static str,
    /// The classes whose voxels carry it; two where the data set does not tell right from left.
    pub classes: &'static [u8],
}

const fn label(value: u8, name: &'static str, classes: &'static [u8]) -> RawLabel {
    RawLabel { value, name, classes }
}

/// Narrower than the held-out hospital's, whose smallest and largest patients nobody trained on.
const TRAINERS_SIZE: SizeSpread =
    SizeSpread { overall: (0.86, 1.14), across: (0.94, 1.06), along: (0.95, 1.05) };
const TRAINERS_POSE: PoseSpread = PoseSpread { shift_mm: 8.0, turn_deg: 6.0 };

/// The hospitals `site-a`, `site-b` and `site-c`, which train, and `site-d`, which is held out.
pub const HOSPITALS: [Hospital; 4] = [
    Hospital {
        name: "site-a",
        stored_axes: [L, P, S],
        spacing_mm: [4.0, 4.0, 6.0],
        scanner: scanner(10.0, 0.0, 1.0, 1.5, -20.0),
        size: TRAINERS_SIZE,
        pose: TRAINERS_POSE,
        missing_every: None,
        datasets: &[PhantomDataset {
            name: "upper-abdomen",
            labels: &[
                label(1, "liver", &[6]),
                label(2, "liver tumour", &[27]),
                label(3, "spleen", &[1]),
                label(4, "gall bladder", &[4]),
                label(5, "right lung", &[16]),
                label(6, "left lung", &[17]),
            ],
        }],
    },
    Hospital {
        name: "site-b",
        stored_axes: [R, A, S],
        spacing_mm: [4.5, 4.5, 5.0],
        scanner: scanner(16.0, 10.0, 0.95, 3.4, 20.0),
        size: TRAINERS_SIZE,
        pose: TRAINERS_POSE,
        missing_every: None,
        datasets: &[PhantomDataset {
            name: "kidneys-and-vessels",
            labels: &[
                label(1, "kidney", &[2, 3]),
                label(2, "kidney tumour", &[26]),
                label(3, "aorta", &[8]),
                label(4, "inferior vena cava", &[9]),
                label(5, "urinary bladder", &[21]),
            ],
        }],
    },
    Hospital {
        name: "site-c",
        stored_axes: [A, R, I],
        spacing_mm: [3.5, 3.5, 7.0],
        scanner: scanner(12.0, -12.0, 1.05, 2.4, 0.0),
        size: TRAINERS_SIZE,
        pose: TRAINERS_POSE,
        missing_every: None,
        datasets: &[
            PhantomDataset {
                name: "digestive",
                labels: &[label(1, "liver", &[6]), label(2, "stomach", &[7]), label(3, "pancreas", &[11])],
            },
            PhantomDataset {
                name: "left-abdomen",
                labels: &[
                    label(1, "pancreas", &[11]),
                    label(2, "spleen", &[1]),
                    label(3, "left kidney", &[3]),
                    label(4, "stomach", &[7]),
                ],
            },
        ],
    },
    Hospital {
        name: "site-d",
        stored_axes: [S, L, A],
        spacing_mm: [4.0, 4.0, 5.0],
        scanner: scanner(18.0, 14.0, 1.06, 3.8, 25.0),
        size: SizeSpread { overall: (0.8, 1.2), across: (0.96, 1.04), along: (0.98, 1.02) },
        pose: PoseSpread { shift_mm: 12.0, turn_deg: 9.0 },
        missing_every: Some(5),
        datasets: &[PhantomDataset {
            name: "whole-trunk",
            labels: &[
                label(1, "right lung", &[16]),
                label(2, "left lung", &[17]),
                label(3, "liver", &[6]),
                label(4, "gall bladder", &[4]),
                label(5, "spleen", &[1]),
                label(6, "pancreas", &[11]),
                label(7, "stomach", &[7]),
                label(8, "kidney", &[2, 3]),
                label(9, "aorta", &[8]),
                label(10, "inferior vena cava", &[9]),
                label(11, "urinary bladder", &[21]),
                label(12, "liver tumour", &[27]),
                label(13, "kidney tumour", &[26]),
            ],
        }],
    },
];

const fn scanner(noise_hu: f64, offset_hu: f64, gain: f64, blur_mm: f64, contrast_hu: f64) -> Scanner {
    Scanner { noise_hu, offset_hu, gain, blur_mm, contrast_hu }
}

impl Hospital {
    /// The hospital of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        HOSPITALS.iter().find(|hospital| hospital.name == name)
    }
}
