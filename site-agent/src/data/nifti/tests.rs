//! Real and odd files against what nibabel read in them, and hostile ones against our promises.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use common::ids::ClassId;
use common::label_map::LabelMap;
use common::taxonomy::Taxonomy;
use nalgebra::{Matrix3, Rotation3, Vector3};
use nifti::{NiftiObject, ReaderOptions};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::data::DataError;
use crate::data::dataset::{Case, Split};
use crate::data::error::CaseFault;
use crate::data::fixtures::shared;
use crate::data::geometry::Affine;
use crate::data::labels::LabelError;
use crate::data::orientation::to_ras;
use crate::data::prepared::PreparedCase;
use crate::data::preprocess::Preprocessing;

/// CRC-32 of the voxels as little-endian f32, x fastest: the order of a NIfTI file.
fn crc_in_file_order(volume: &Volume<f32>) -> String {
    let [nx, ny, nz] = volume.shape();
    let mut crc = flate2::Crc::new();
    for (z, y) in (0..nz).flat_map(|z| (0..ny).map(move |y| (z, y))) {
        (0..nx).for_each(|x| crc.update(&volume.at([x, y, z]).to_le_bytes()));
    }
    format!("{:08x}", crc.sum())
}

fn odd_files() -> Option<(PathBuf, Vec<Value>)> {
    let manifest = fs::read(shared("data/manifest.json")?).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    Some((shared("data/odd-nifti")?, manifest["odd_nifti"].as_array().unwrap().clone()))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Shape, affine, letters, statistics and CRC against what nibabel found.
fn assert_as_in_manifest(entry: &Value, image: &Image) {
    let file = &entry["file"];
    let (ras, turn) = to_ras(&image.volume);
    assert_eq!(
        crc_in_file_order(&ras),
        entry["ras"]["crc32_f32_le_fortran"],
        "{file}: CRC of the RAS volume"
    );
    assert_eq!(turn.orientation().to_string(), entry["on_disk"]["axcodes"], "{file}: letters");
    for (axis, size) in ras.shape().into_iter().enumerate() {
        assert_eq!(entry["ras"]["shape"][axis], size, "{file}: shape");
        let spacing = ras.grid().affine.spacing()[axis];
        assert!((spacing - number(&entry["ras"]["spacing"][axis])).abs() < 1e-4, "{file}: spacing {spacing}");
    }
    for (row, column) in (0..3).flat_map(|row| (0..4).map(move |column| (row, column))) {
        let ours = image.volume.grid().affine.matrix()[(row, column)];
        assert!((ours - number(&entry["affine"][row][column])).abs() < 1e-4, "{file}: affine");
    }
    let values = || ras.voxels().iter().map(|&value| f64::from(value));
    let mean = values().sum::<f64>() / ras.grid().len() as f64;
    let (min, max) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    for (name, ours) in [("mean", mean), ("min", min), ("max", max)] {
        let apart = (ours - number(&entry["ras"][name])).abs();
        assert!(apart <= 1e-9 * ours.abs().max(1.0), "{file}: {name} {ours}");
    }
}

/// What a site says of a file that the manifest calls an image or labels, if it refuses it; labels are read as those of
/// the plain scan.
fn refusal(folder: &Path, file: &str, role: &str) -> Option<String> {
    if role != "labels" {
        return read_image(&folder.join(file), &Limits::default()).err().map(|error| error.code().to_owned());
    }
    let taxonomy = Taxonomy::standard();
    let case = Case {
        name: format!("odd/{file}"),
        dataset: "odd".to_owned(),
        image: folder.join("plain-nii1.nii"),
        labels: folder.join(file),
        label_map: Arc::new(LabelMap::standard("universal").unwrap()),
        annotated: BTreeSet::from([ClassId::new(6).unwrap()]),
        patient: file.to_owned(),
        split: Split::Training,
        assume_hounsfield: false,
        assume_orientation: false,
        pseudo: false,
    };
    let code = |fault: &CaseFault| match fault {
        CaseFault::Geometry(mismatch) => mismatch.code().to_owned(),
        CaseFault::Labels(LabelError::Unlisted { file: named, unlisted }) => {
            assert_eq!(Path::new(named), case.labels);
            let beyond = |(value, count): (&i32, &usize)| !(0..=32).contains(value) && *count > 0;
            assert!(unlisted.iter().all(beyond), "{file}: {unlisted:?} are classes of the taxonomy");
            "unknown_label".to_owned()
        }
        other => panic!("{file}: {other}"),
    };
    match PreparedCase::read(&case, &Preprocessing::default(), &taxonomy) {
        Ok(_) => None,
        Err(DataError::Nifti(error)) => Some(error.code().to_owned()),
        Err(DataError::Case { fault, .. }) => Some(code(&fault)),
        Err(other) => panic!("{file}: {other}"),
    }
}

fn reason_allows(reason: &str, code: &str) -> bool {
    // The manifest joins alternatives with `_or_`, and leaves open how a fuzzer's file is malformed.
    reason == "malformed" || reason == code || reason.split("_or_").any(|one| one == code)
}

#[test]
fn every_odd_file_gets_its_expected_outcome() {
    let Some((folder, entries)) = odd_files() else { return };
    let mut walked = 0;
    for entry in &entries {
        let file = entry["file"].as_str().unwrap();
        let role = entry["role"].as_str().unwrap_or("image");
        let image = read_image(&folder.join(file), &Limits::default());
        let alternative =
            entry["alternative_outcome"].as_str().and_then(|text| text.strip_prefix("rejected: "));
        match entry["outcome"].as_str().unwrap() {
            "loads" => match (&image, alternative) {
                (Ok(image), _) => assert_as_in_manifest(entry, image),
                (Err(error), Some(reason)) => assert!(reason.starts_with(error.code()), "{error}"),
                (Err(error), None) => panic!("must load: {error}"),
            },
            "rejected" if entry["reason"] == "not_gzip_or_loads" => {
                let plain = read_image(&folder.join("plain-nii1.nii"), &Limits::default()).unwrap();
                assert_eq!(image.unwrap().volume, plain.volume, "{file}: content decides, not the name");
            }
            "rejected" => {
                let reason = entry["reason"].as_str().unwrap();
                let code = refusal(&folder, file, role).unwrap_or_else(|| panic!("{file} must be refused"));
                assert!(reason_allows(reason, &code), "{file}: refused as {code}, expected {reason}");
            }
            "no_crash" => drop(image),
            other => panic!("{file}: an outcome that this test does not know: {other}"),
        }
        walked += 1;
    }
    assert_eq!(walked, entries.len());
    assert!(walked >= 63, "the manifest has shrunk to {walked}");
}

/// Tells [`hostile_files_take_no_more_memory_than_is_promised`] how many KiB the process that it runs in may hold.
const LIMITED: &str = "CONSILIUM_TEST_MEMORY_KIB";

#[test]
fn hostile_files_take_no_more_memory_than_is_promised() {
    if let Ok(kib) = env::var(LIMITED) {
        let beyond = black_box(Vec::<u8>::new()).try_reserve_exact(kib.parse::<usize>().unwrap() << 10);
        assert!(beyond.is_err(), "the limit has no effect, so nothing would be proven");
        return;
    }
    // The bomb declares 128 MiB, which a vector that doubles may hold twice, and inflates to 400.
    assert_passes_within(320 << 10, "every_odd_file_gets_its_expected_outcome");
    // Here every limit is far below 1 MiB: the rest is the process itself.
    assert_passes_within(64 << 10, "a_damaged_header_never_panics_nor_takes_memory");
}

/// Runs a test of this file in a process that gets no more than `kib` KiB, next to the check that this is so. A reader
/// that believes a hostile file aborts there, or refuses the file for another reason than the expected one.
fn assert_passes_within(kib: usize, test: &str) {
    let (_crate, module) = module_path!().split_once("::").unwrap();
    let run = Command::new("sh")
        .args(["-c", &format!("ulimit -d {kib} && exec \"$0\" \"$@\"")])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "--test-threads=1", &format!("{module}::{test}")])
        .arg(format!("{module}::hostile_files_take_no_more_memory_than_is_promised"))
        .env(LIMITED, kib.to_string())
        // The stack of each worker counts.
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{test}, {kib} KiB: {}\n{said}\n{complained}", run.status);
    assert!(said.contains("2 passed"), "not both tests were found: {said}");
}

#[test]
fn labels_are_scaled_rounded_and_equal_in_any_orientation() {
    let Some((folder, entries)) = odd_files() else { return };
    let labels = |file: &str| read_labels(&folder.join(file), &Limits::default()).unwrap();
    let good = labels("labels-good.nii.gz");
    assert_eq!(labels("labels-float-0.9999.nii.gz"), good);
    assert_ne!(labels("labels-LPS.nii.gz").voxels(), good.voxels());
    assert_eq!(to_ras(&labels("labels-LPS.nii.gz")).0, good);
    assert_eq!(labels("labels-scl-slope2.nii.gz").voxels(), good.map(|label| 2 * label).voxels());
    for entry in entries.iter().filter(|entry| entry["role"] == "labels" && entry["outcome"] == "loads") {
        let file = entry["file"].as_str().unwrap();
        let expected = entry["label_validation"].as_str().map(|_| "unknown_label".to_owned());
        assert_eq!(refusal(&folder, file, "labels"), expected, "{file}");
    }
}

#[test]
fn either_half_of_a_pair_may_be_named() {
    let Some((folder, _)) = odd_files() else { return };
    let by = |file: &str| read_image(&folder.join(file), &Limits::default()).unwrap().volume;
    assert_eq!(by("pair.img"), by("pair.hdr"));

    let lonely = tempfile::tempdir().unwrap();
    fs::copy(folder.join("pair.hdr"), lonely.path().join("pair.hdr")).unwrap();
    let error = read_image(&lonely.path().join("pair.hdr"), &Limits::default()).unwrap_err();
    assert_eq!(error.code(), "missing_half");
}

#[test]
fn a_refusal_names_file_expectation_finding_and_hint() {
    let Some((folder, _)) = odd_files() else { return };
    let text = |file: &str| {
        let error = read_image(&folder.join(file), &Limits::default()).unwrap_err();
        error.to_string().replace(&folder.display().to_string(), "odd")
    };
    insta::assert_snapshot!(text("huge-dims-tiny-file.nii"), @r#"
    odd/huge-dims-tiny-file.nii: the header declares 70362301923326 bytes of voxels, the file can hold at most 15360

    hint: the copy is probably incomplete: copy or export the file again
    "#);
    insta::assert_snapshot!(text("truncated-gz.nii.gz"), @r#"
    odd/truncated-gz.nii.gz: the file ends after 7815 bytes, inside the voxels

    hint: the copy is probably incomplete: copy or export the file again
    "#);
    insta::assert_snapshot!(text("nan-inf-voxels.nii.gz"), @r#"
    odd/nan-inf-voxels.nii.gz: 4 of 7680 voxels are not finite numbers (NaN or infinite)

    hint: replace these voxels in the original, for example by -1024 outside of the scan
    "#);
    insta::assert_snapshot!(text("bad-magic.nii"), @r#"
    odd/bad-magic.nii: not a NIfTI file: the magic word is `xx1\x00`, expected n+1 or ni1

    hint: export the scan as NIfTI, for example with dcm2niix; DICOM, NRRD and ANALYZE are not read
    "#);
    insta::assert_snapshot!(text("real-nibabel-functional.nii"), @r#"
    odd/real-nibabel-functional.nii: expected one volume with three axes, found axes of [17, 21, 3, 20] voxels

    hint: split a series into one file for each volume
    "#);
}

/// 3×4×5 voxels of HU-like values, each different, on an oblique, anisotropic, left-handed grid.
fn small() -> Volume<f32> {
    let turned = Rotation3::from_euler_angles(0.1, -0.2, 0.3).matrix()
        * Matrix3::from_diagonal(&Vector3::new(-0.7, 0.8, 2.5));
    let affine = Affine::from_parts(turned, Vector3::new(12.5, -40.25, 300.0)).unwrap();
    Volume::new(Grid { shape: [3, 4, 5], affine }, (0..60).map(|i| i as f32 * 17.0 - 500.0).collect())
}

fn within_f32(ours: &Affine, files: &Affine) -> bool {
    let pairs = ours.matrix().iter().zip(files.matrix());
    pairs.into_iter().all(|(a, b)| (*a as f32).to_bits() == (*b as f32).to_bits())
}

#[test]
fn what_is_written_reads_back_on_the_same_grid() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["image.nii", "image.nii.gz"] {
        let path = folder.path().join(name);
        write_image_f32(&path, &small()).unwrap();
        let floats = read_image(&path, &Limits::default()).unwrap();
        assert_eq!(floats.placed_by, PlacedBy::Sform);
        assert_eq!(floats.volume.voxels(), small().voxels());
        assert!(within_f32(&small().grid().affine, &floats.volume.grid().affine));

        // A grid that came from a file goes back into one without any change.
        write_image_i16(&path, &floats.volume.map(|&value| value as i16)).unwrap();
        assert_eq!(read_image(&path, &Limits::default()).unwrap().volume, floats.volume);
        write_labels(&path, &floats.volume.map(|&value| (value > 0.0) as u8)).unwrap();
        let labels = read_labels(&path, &Limits::default()).unwrap();
        assert_eq!(labels, floats.volume.map(|&value| i32::from(value > 0.0)));
    }
    let left_over: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left_over.len(), 2, "temporary files are gone");
}

#[test]
fn a_name_that_says_no_format_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let error = write_image_f32(&folder.path().join("image.png"), &small()).unwrap_err();
    assert_eq!(error.code(), "bad_name");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn another_reader_finds_what_we_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.nii.gz");
    write_image_i16(&path, &small().map(|&value| value as i16)).unwrap();
    let object = ReaderOptions::new().read_file(&path).unwrap();
    let header = object.header();
    assert_eq!(header.dim[..4], [3, 3, 4, 5]);
    assert_eq!((header.qform_code, header.sform_code, header.datatype, header.bitpix), (1, 1, 4, 16));
    let srow = small().grid().affine.matrix().row(1).map(|value| value as f32);
    assert_eq!(header.srow_y, [srow[0], srow[1], srow[2], srow[3]]);
    let stored: Vec<i16> = object.into_volume().into_nifti_typed_data().unwrap();
    assert_eq!(stored[1], small().at([1, 0, 0]) as i16, "x is fastest in the file");
}

#[test]
fn qform_and_sform_of_a_written_file_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.nii");
    write_image_f32(&path, &small()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[254] = 0;
    fs::write(&path, bytes).unwrap();
    let by_qform = read_image(&path, &Limits::default()).unwrap();
    assert_eq!(by_qform.placed_by, PlacedBy::Qform);
    let apart = (by_qform.volume.grid().affine.matrix() - small().grid().affine.matrix()).amax();
    assert!(apart < 1e-4, "{apart}");
}

/// The bytes of a small `.nii`, changed and read again.
fn read_changed(change: impl FnOnce(&mut Vec<u8>), limits: &Limits) -> Result<Image, NiftiError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.nii");
    write_image_f32(&path, &small()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    read_image(&path, limits)
}

#[test]
fn units_of_length_become_millimetres() {
    let spacing = |unit: u8| {
        let image = read_changed(|bytes| bytes[123] = unit, &Limits::default());
        image.map(|image| image.volume.grid().affine.spacing()[2])
    };
    assert!((spacing(2).unwrap() - 2.5).abs() < 1e-6);
    assert!((spacing(0).unwrap() - 2.5).abs() < 1e-6);
    assert!((spacing(3).unwrap() - 0.0025).abs() < 1e-9);
    assert_eq!(spacing(1).unwrap_err().code(), "bad_affine", "voxels of 2.5 m are a mistake");
    assert_eq!(spacing(5).unwrap_err().code(), "bad_header");
}

#[test]
fn labels_that_are_no_whole_numbers_are_counted_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.nii");
    let mut labels = small().map(|_| 3.0f32);
    labels.voxels_mut()[7] = 2.5;
    labels.voxels_mut()[9] = 3.0e9;
    labels.voxels_mut()[11] = f32::NAN;
    write_image_f32(&path, &labels).unwrap();
    let error = read_labels(&path, &Limits::default()).unwrap_err();
    assert!(matches!(error.fault, Fault::NotALabel { value: 2.5, count: 3, total: 60 }), "{error}");
}

#[test]
fn limits_hold_before_voxels_are_read() {
    let tight = Limits { voxels: 59, ..Limits::default() };
    assert_eq!(read_changed(|_| (), &tight).unwrap_err().code(), "too_large");
    let tight = Limits { bytes: 60 * 12 - 1, ..Limits::default() };
    assert_eq!(read_changed(|_| (), &tight).unwrap_err().code(), "too_large");
    let enough = Limits { voxels: 60, bytes: 60 * 12 };
    assert!(read_changed(|_| (), &enough).is_ok());
}

#[test]
fn a_little_padding_is_tolerated_and_more_is_not() {
    let with = |extra: usize| read_changed(|bytes| bytes.resize(bytes.len() + extra, 0), &Limits::default());
    assert!(with(PADDING as usize).is_ok());
    assert_eq!(with(PADDING as usize + 1).unwrap_err().code(), "trailing_data");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["cut.nii", "cut.nii.gz"] {
        let path = folder.path().join(name);
        write_image_f32(&path, &small()).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = read_image(&path, &Limits::default()).unwrap_err();
            let expected = ["truncated", "dims_exceed_data", "bad_vox_offset"];
            assert!(expected.contains(&error.code()), "{name} cut at {length}: {error}");
        }
    }
}

proptest! {
    #[test]
    fn a_damaged_header_never_panics_nor_takes_memory(
        flips in prop::collection::vec((0usize..352, any::<u8>()), 1..12),
    ) {
        // With limits a hair above the honest file, success means that no more than this was held.
        let tight = Limits { voxels: 4096, bytes: 1 << 16 };
        let read = read_changed(|bytes| flips.iter().for_each(|&(at, value)| bytes[at] = value), &tight);
        if let Ok(image) = read {
            prop_assert!(image.volume.grid().len() <= 60 * 4 + PADDING as usize);
            prop_assert!(image.volume.voxels().iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn arbitrary_bytes_after_a_true_start_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700), two: bool) {
        let start = if two { 540u32.to_le_bytes() } else { 348u32.to_le_bytes() };
        let _refused_or_read = read_changed(|file| *file = [start.to_vec(), bytes].concat(), &Limits::default());
    }
}
