//! The guard against a scan that is trained on under one name and held out under another. Public data sets hold each other's scans, and
//! a site that has two of them would score too well.
//!
//! Copies differ in how their files are written and in how their axes are turned, so voxels are compared by value alone. Only scans whose
//! headers agree are read for that, which among different CTs is rare. Copies that were resampled or cropped are not found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::DataError;
use super::dataset::{Case, Split};
use super::nifti::{Limits, read_grid, read_image};
use super::volume::{Grid, Volume};

/// How far the voxel sizes of copies may differ: what rounding in a header can do.
const SPACING_TOLERANCE: f64 = 0.01;

/// Voxels and their size in mm, axis by axis.
type Frame = [(usize, f64); 3];

/// Refuses training scans that are validation scans too, under another name.
///
/// What cannot be read is no copy here: whoever uses it tells what is wrong with it.
///
/// # Errors
/// [`DataError::Copies`] names all of them.
pub fn refuse_copies(cases: &[Case]) -> Result<(), DataError> {
    let held_out = with_frames(cases, Split::Validation);
    if held_out.is_empty() {
        return Ok(());
    }
    let trained = with_frames(cases, Split::Training);
    let mut known: BTreeMap<PathBuf, Option<u64>> = BTreeMap::new();
    let mut print_of = |case: &Case| {
        let print =
            || read_image(&case.image, &Limits::default()).ok().map(|image| fingerprint(&image.volume));
        *known.entry(case.image.clone()).or_insert_with(print)
    };
    let mut pairs = Vec::new();
    for &(held_out, frame) in &held_out {
        for &(trained, _) in trained.iter().filter(|(_, other)| is_alike(&frame, other)) {
            let (one, other) = (print_of(trained), print_of(held_out));
            if one.is_some() && one == other {
                pairs.push(format!("`{}` (training) and `{}` (validation)", trained.name, held_out.name));
            }
        }
    }
    if pairs.is_empty() { Ok(()) } else { Err(DataError::Copies { pairs }) }
}

fn with_frames(cases: &[Case], split: Split) -> Vec<(&Case, Frame)> {
    let of_split = cases.iter().filter(|case| case.split == split);
    of_split.filter_map(|case| Some((case, frame(&read_grid(&case.image).ok()?)))).collect()
}

/// The same whichever way the axes are turned.
fn frame(grid: &Grid) -> Frame {
    let spacing_mm = grid.affine.spacing();
    let mut axes = [0, 1, 2].map(|axis| (grid.shape[axis], spacing_mm[axis]));
    axes.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    axes
}

fn is_alike(one: &Frame, other: &Frame) -> bool {
    let is_near = |a: f64, b: f64| (a - b).abs() <= SPACING_TOLERANCE * a;
    one.iter().zip(other).all(|(a, b)| a.0 == b.0 && is_near(a.1, b.1))
}

/// The sum of a hash of each value: addition knows no order, so it is the same whichever way the axes are turned.
fn fingerprint(image: &Volume<f32>) -> u64 {
    // Plus 0: there are two zeros, and only one way to say so.
    let hashes = image.voxels().par_iter().map(|value| mix(u64::from((value + 0.0).to_bits())));
    hashes.reduce(|| 0, u64::wrapping_add)
}

/// SplitMix64 (Steele, Lea and Flood 2014): one step from `state`.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use common::taxonomy::Taxonomy;

    use super::*;
    use crate::data::dataset::read_datasets;
    use crate::data::nifti::write_image_f32;
    use crate::data::orientation::to_ras;
    use crate::phantom::{Hospital, write_hospital};

    #[test]
    fn a_scan_is_not_trained_on_and_held_out_under_two_names() {
        let folder = tempfile::tempdir().unwrap();
        let hospital = Hospital::named("site-c").unwrap();
        let datasets = write_hospital(folder.path(), hospital, 1, 2, Some([12.0, 14.0, 16.0])).unwrap();
        let mut cases = read_datasets(&datasets, folder.path(), &Taxonomy::standard()).unwrap();
        cases[1].split = Split::Validation;
        refuse_copies(&cases).unwrap();

        // In another format, and turned.
        let image = read_image(&cases[0].image, &Limits::default()).unwrap().volume;
        let (turned, _) = to_ras(&image);
        assert_ne!(turned, image);
        cases[1].image = folder.path().join("copy.nii");
        write_image_f32(&cases[1].image, &turned).unwrap();
        let Err(DataError::Copies { pairs }) = refuse_copies(&cases) else { panic!("a copy is held out") };
        let expected = format!("`{}` (training) and `{}` (validation)", cases[0].name, cases[1].name);
        assert_eq!(pairs, [expected]);

        let mut other = turned;
        other.voxels_mut()[0] += 1.0;
        write_image_f32(&cases[1].image, &other).unwrap();
        refuse_copies(&cases).unwrap();
        write_image_f32(&cases[1].image, &image).unwrap();
        cases[1].split = Split::Training;
        refuse_copies(&cases).unwrap();
        cases[1].split = Split::Excluded;
        refuse_copies(&cases).unwrap();
    }
}
