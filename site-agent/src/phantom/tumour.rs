//! Tumours: round, inside their organ, of another attenuation.

use common::rng::Rng;
use nalgebra::Vector3;

use super::world;
use crate::data::volume::Volume;

/// A kind of tumour and where it grows.
struct Kind {
    class: u8,
    organs: &'static [u8],
    radius_mm: (f64, f64),
    hu: f64,
}

const KINDS: [Kind; 2] = [
    Kind { class: 27, organs: &[6], radius_mm: (13.0, 22.0), hu: 50.0 },
    Kind { class: 26, organs: &[2, 3], radius_mm: (11.0, 18.0), hu: 70.0 },
];

/// Share of patients with tumours of a kind.
const PREVALENCE: f64 = 0.75;

/// Grows tumours in some of the organs; changes the attenuation there and returns the tumour at each voxel.
pub(super) fn grow(organs: &Volume<u8>, hu: &mut [f32], rng: &mut impl Rng) -> Volume<u8> {
    let mut tumours = organs.map(|_| 0);
    for kind in &KINDS {
        if !rng.random_bool(PREVALENCE) {
            continue;
        }
        let tumour_hu = (kind.hu + rng.random_range(-10.0..10.0)) as f32;
        let home: Vec<usize> =
            (0..hu.len()).filter(|&voxel| kind.organs.contains(&organs.voxels()[voxel])).collect();
        for _ in 0..rng.random_range(1..=2) {
            let radius = rng.random_range(kind.radius_mm.0..kind.radius_mm.1);
            if home.is_empty() {
                continue;
            }
            let centre = position(organs, home[rng.random_range(0..home.len())]);
            for &voxel in &home {
                if (position(organs, voxel) - centre).norm_squared() < radius * radius {
                    tumours.voxels_mut()[voxel] = kind.class;
                    hu[voxel] = tumour_hu;
                }
            }
        }
    }
    tumours
}

/// World position of the voxel at `offset`, mm.
fn position(volume: &Volume<u8>, offset: usize) -> Vector3<f64> {
    let [_, columns, rows] = volume.shape();
    world(volume.grid(), [offset / (columns * rows), offset / rows % columns, offset % rows])
}
