//! Reference files for the tests of this folder, and what may be wrong with a file.

use std::path::{Path, PathBuf};

use common::testing::shared_dir;

/// A reference file or folder, or `None`, said loudly, where there are none.
///
/// # Panics
/// When they are absent and `CONSILIUM_REQUIRE_SHARED=1`, and when they are there without this one.
pub(super) fn shared(part: &str) -> Option<PathBuf> {
    let path = shared_dir()?.join(part);
    assert!(path.exists(), "{} is missing among the reference files", path.display());
    Some(path)
}

/// Takes qform and sform out of a `.nii` file: nothing in it says any more how the patient lies.
pub(crate) fn forget_orientation(file: &Path) {
    assert!(file.extension().is_some_and(|ending| ending == "nii"), "the header is not compressed");
    let mut bytes = std::fs::read(file).unwrap();
    bytes[252..256].fill(0);
    std::fs::write(file, bytes).unwrap();
}

/// Makes a pair of a `.nii` file of ours: its header and its voxels, with these endings.
pub(crate) fn split_into_pair(file: &Path, endings: [&str; 2]) {
    let bytes = std::fs::read(file).unwrap();
    let (header, voxels) = bytes.split_at(352);
    let mut header = header[..348].to_vec();
    // Voxels begin their file, and the magic word says that they have one.
    header[108..112].fill(0);
    header[344..].copy_from_slice(b"ni1\0");
    for (ending, half) in endings.into_iter().zip([&header[..], voxels]) {
        std::fs::write(file.with_extension(ending), half).unwrap();
    }
    std::fs::remove_file(file).unwrap();
}
