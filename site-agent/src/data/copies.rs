//! The guard against a scan that is trained on under one name and held out under another. Public data sets hold each other's scans, and
//! a site that has two of them would score too well.
//!
//! Copies differ in how their files are packed and in how their axes are turned, so voxels are compared by value alone. Only scans whose
//! headers agree are read for that. Those can be most of many scans, or all of a data set on one grid, so each is read once, and again
//! only when its file changes. Copies that were resampled or cropped, or whose values were scaled otherwise, are not found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;

use super::DataError;
use super::dataset::{Case, Split};
use super::nifti::{Image, Limits, files_of, read_grid, read_image};
use super::volume::{Grid, Volume};

/// How far the voxel sizes of copies may differ: what rounding in a header can do.
const SPACING_TOLERANCE: f64 = 0.01;

/// Voxels and their size in mm, axis by axis.
type Frame = [(usize, f64); 3];

/// Fingerprints of scans that were compared, so that none is read again as long as its file stays as it is.
#[derive(Debug, Default)]
pub struct Fingerprints(BTreeMap<PathBuf, (Version, u64)>);

/// Length of each of a scan's files, and when it was written.
type Version = Vec<(u64, SystemTime)>;

/// Refuses training scans that are validation scans too, under another name.
///
/// What cannot be read is no copy here: whoever uses it tells what is wrong with it.
///
/// # Errors
/// [`DataError::Copies`] names all of them.
pub fn refuse_copies(cases: &[Case], known: &mut Fingerprints) -> Result<(), DataError> {
    let held_out = with_frames(cases, Split::Validation);
    if held_out.is_empty() {
        return Ok(());
    }
    let trained = with_frames(cases, Split::Training);
    let mut alike: Vec<(&Case, &Case)> = Vec::new();
    for &(held_out, frame) in &held_out {
        let others = trained.iter().filter(|(_, other)| is_alike(&frame, other));
        alike.extend(others.map(|&(trained, _)| (trained, held_out)));
    }
    let images = alike.iter().flat_map(|(one, other)| [one.image.as_path(), other.image.as_path()]);
    known.read(&images.collect());
    let are_copies = |&(one, other): &(&Case, &Case)| {
        let print = known.of(one);
        print.is_some() && print == known.of(other)
    };
    let named = |(trained, held_out): (&Case, &Case)| {
        format!("`{}` (training) and `{}` (validation)", trained.name, held_out.name)
    };
    let pairs: Vec<String> = alike.into_iter().filter(are_copies).map(named).collect();
    if pairs.is_empty() { Ok(()) } else { Err(DataError::Copies { pairs }) }
}

impl Fingerprints {
    /// Reads a scan as its user does, and notes what it is, so that it need not be read for this too.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn read_scan(&mut self, case: &Case) -> Result<Image, DataError> {
        // Before it is read: what is written meanwhile is another version.
        let version = version(&case.image);
        let image = case.read_scan()?;
        if let Some(version) = version {
            self.0.insert(case.image.clone(), (version, fingerprint(&image.volume)));
        }
        Ok(image)
    }

    /// Reads what is not known yet, one after the other, as each fills the memory of a whole scan. What cannot be read stays unknown.
    fn read(&mut self, images: &BTreeSet<&Path>) {
        self.0.retain(|image, known| version(image).as_ref() == Some(&known.0));
        let new: Vec<&Path> = images.iter().copied().filter(|image| !self.0.contains_key(*image)).collect();
        if new.is_empty() {
            return;
        }
        tracing::info!(
            scans = new.len(),
            "comparing scans whose headers agree: none may be trained on and held out"
        );
        for image in new {
            // As above.
            let version = version(image);
            let read = read_image(image, &Limits::default()).ok();
            if let Some(known) = version.zip(read.map(|read| fingerprint(&read.volume))) {
                self.0.insert(image.to_owned(), known);
            }
        }
    }

    fn of(&self, case: &Case) -> Option<u64> {
        self.0.get(&case.image).map(|known| known.1)
    }
}

fn version(image: &Path) -> Option<Version> {
    let of_file = |file: PathBuf| {
        let found = fs::metadata(file).ok()?;
        Some((found.len(), found.modified().ok()?))
    };
    files_of(image).into_iter().map(of_file).collect()
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
    use std::fs::File;
    use std::time::Duration;

    use common::taxonomy::Taxonomy;

    use super::*;
    use crate::data::dataset::read_datasets;
    use crate::data::fixtures::split_into_pair;
    use crate::data::nifti::write_image_f32;
    use crate::data::orientation::to_ras;
    use crate::phantom::{Hospital, write_hospital};

    /// A training scan and a validation scan.
    fn two_scans() -> (tempfile::TempDir, Vec<Case>) {
        let folder = tempfile::tempdir().unwrap();
        let hospital = Hospital::named("site-c").unwrap();
        let datasets = write_hospital(folder.path(), hospital, 1, 2, Some([12.0, 14.0, 16.0])).unwrap();
        let mut cases = read_datasets(&datasets, folder.path(), &Taxonomy::standard()).unwrap();
        cases[1].split = Split::Validation;
        (folder, cases)
    }

    #[test]
    fn a_scan_is_not_trained_on_and_held_out_under_two_names() {
        let (folder, mut cases) = two_scans();
        let refuse = |cases: &[Case]| refuse_copies(cases, &mut Fingerprints::default());
        refuse(&cases).unwrap();

        // In another format, and turned.
        let image = read_image(&cases[0].image, &Limits::default()).unwrap().volume;
        let (turned, _) = to_ras(&image);
        assert_ne!(turned, image);
        cases[1].image = folder.path().join("copy.nii");
        write_image_f32(&cases[1].image, &turned).unwrap();
        let Err(DataError::Copies { pairs }) = refuse(&cases) else { panic!("a copy is held out") };
        let expected = format!("`{}` (training) and `{}` (validation)", cases[0].name, cases[1].name);
        assert_eq!(pairs, [expected]);

        let mut other = turned;
        other.voxels_mut()[0] += 1.0;
        write_image_f32(&cases[1].image, &other).unwrap();
        refuse(&cases).unwrap();
        write_image_f32(&cases[1].image, &image).unwrap();
        cases[1].split = Split::Training;
        refuse(&cases).unwrap();
        cases[1].split = Split::Excluded;
        refuse(&cases).unwrap();
    }

    #[test]
    fn a_scan_is_read_again_only_when_its_file_has_changed() {
        let (folder, mut cases) = two_scans();
        let image = read_image(&cases[0].image, &Limits::default()).unwrap().volume;
        let mut other = image.clone();
        other.voxels_mut()[0] += 1.0;
        let held_out = folder.path().join("held-out.nii");
        cases[1].image.clone_from(&held_out);
        let write = |image: &Volume<f32>, second| {
            write_image_f32(&held_out, image).unwrap();
            let file = File::options().write(true).open(&held_out).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
        };
        write(&image, 1);
        let mut read_before = Fingerprints::default();
        for case in &cases {
            read_before.read_scan(case).unwrap();
        }
        write(&other, 1);
        assert!(refuse_copies(&cases, &mut read_before).is_err(), "its user had read it");
        let mut known = Fingerprints::default();
        let mut is_copy = || refuse_copies(&cases, &mut known).is_err();
        write(&image, 1);
        assert!(is_copy());
        write(&other, 1);
        assert!(is_copy(), "a file of the same length and time was read again");
        write(&other, 2);
        assert!(!is_copy());
    }
    #[test]
    fn a_pair_is_read_again_when_its_voxels_have_changed() {
        let (folder, mut cases) = two_scans();
        let image = read_image(&cases[0].image, &Limits::default()).unwrap().volume;
        let mut other = image.clone();
        other.voxels_mut()[0] += 1.0;
        let held_out = folder.path().join("held-out.nii");
        cases[1].image = held_out.with_extension("hdr");
        let write = |image: &Volume<f32>, second| {
            write_image_f32(&held_out, image).unwrap();
            split_into_pair(&held_out, ["hdr", "img"]);
            for (half, second) in [("hdr", 1), ("img", second)] {
                let file = File::options().write(true).open(held_out.with_extension(half)).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
            }
        };
        let mut known = Fingerprints::default();
        let mut is_copy = || refuse_copies(&cases, &mut known).is_err();
        write(&image, 1);
        assert!(is_copy());
        write(&other, 2);
        assert!(!is_copy());
    }
}
