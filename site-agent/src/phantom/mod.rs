//! CT-like phantoms with known labels, for demos and tests: no scan of a person is needed to see Consilium learn.
//!
//! A phantom is a `Body` of smooth solids in a `Pose`, seen by a [`Scanner`] on the grid of a
//! [`Hospital`]. It is a function of (seed, hospital, case) alone. [`write_hospital`] makes the files of a hospital. Phantoms
//! show that training, masking and federation work; they say nothing about accuracy on patients.

mod anatomy;
mod grid;
mod hospital;
mod pose;
mod scanner;
mod shape;
mod tumour;
mod write;

pub use anatomy::SizeSpread;
pub use hospital::{HOSPITALS, Hospital, PhantomDataset, RawLabel, StoredAxis};
pub use pose::PoseSpread;
pub use scanner::Scanner;
pub use write::write_hospital;

use anatomy::{Body, Tissue};
use common::ids::ClassId;
use common::rng::{KeyedRng, Rng};
use nalgebra::{Point3, Vector3};
use pose::Pose;
use rayon::prelude::*;

use crate::data::volume::{Grid, Volume};

/// Organs that surgery removes; the kidneys stay, for a data set that does not tell right from left needs both.
const REMOVABLE: [u8; 3] = [1, 4, 21];

/// One phantom on its native grid.
pub struct Phantom {
    /// The scan, HU.
    pub ct: Volume<i16>,
    /// The organ at each voxel, 0 outside; tumours belong to their organ.
    pub organs: Volume<u8>,
    /// The tumour at each voxel, 0 outside.
    pub tumours: Volume<u8>,
    /// The organ that this patient lacks.
    pub missing: Option<ClassId>,
}

/// Phantom number `case` of `hospital`. `spacing_mm` replaces the hospital's own voxel size.
pub fn generate(hospital: &Hospital, seed: u64, case: u32, spacing_mm: Option<[f64; 3]>) -> Phantom {
    let key = KeyedRng::new(seed).purpose("phantom").purpose(hospital.name).sample(case);
    let stream = |purpose| key.clone().purpose(purpose).rng();
    let missing = missing_organ(hospital, case, &mut stream("missing organ"));
    let contrast = hospital.scanner.contrast_hu;
    let body = Body::sample(hospital.size, contrast, missing, &mut stream("body"));
    let pose = Pose::sample(hospital.pose, &mut stream("pose"));
    let spacing_mm = spacing_mm.unwrap_or(hospital.spacing_mm);
    let extent = 2.0 * body.half_axes() + Vector3::new(40.0, 56.0, 0.0);
    let table = sample_table(&mut stream("table"));
    let grid = grid::stored_grid(extent, spacing_mm, hospital.stored_axes, table);

    let tissues = paint(&grid, &body, &pose, table);
    let organs = tissues.iter().map(|tissue| tissue.organ.map_or(0, ClassId::get)).collect();
    let organs = Volume::new(grid.clone(), organs);
    let mut hu: Vec<f32> = tissues.iter().map(|tissue| tissue.hu as f32).collect();
    let tumours = tumour::grow(&organs, &mut hu, &mut stream("tumours"));
    let stored_spacing = hospital.stored_axes.map(|(axis, _)| spacing_mm[axis]);
    let image = hospital.scanner.acquire(hu, grid.shape, stored_spacing, &mut stream("scanner"));
    Phantom { ct: Volume::new(grid, image), organs, tumours, missing }
}

/// Tissue at each voxel of `grid`; the body's origin lies at `table` in the world.
fn paint(grid: &Grid, body: &Body, pose: &Pose, table: Vector3<f64>) -> Vec<Tissue> {
    let [_, columns, rows] = grid.shape;
    let tissue = |offset: usize| {
        let index = [offset / (columns * rows), offset / rows % columns, offset % rows];
        body.tissue_at(&pose.to_body(&(world(grid, index) - table)))
    };
    (0..grid.len()).into_par_iter().map(tissue).collect()
}

/// World position of voxel `index`, mm.
fn world(grid: &Grid, index: [usize; 3]) -> Vector3<f64> {
    let index = Point3::from(index.map(|i| i as f64));
    grid.affine.matrix().transform_point(&index).coords
}

fn missing_organ(hospital: &Hospital, case: u32, rng: &mut impl Rng) -> Option<ClassId> {
    let every = hospital.missing_every?;
    let organ = REMOVABLE[rng.random_range(0..REMOVABLE.len())];
    (case % every == every - 1).then(|| ClassId::new(organ))?
}

/// Where the scanner's coordinates put the middle of the volume, mm: nowhere special.
fn sample_table(rng: &mut impl Rng) -> Vector3<f64> {
    Vector3::from_fn(|_, _| rng.random_range(-200.0_f64..200.0).round())
}

#[cfg(test)]
mod tests;
