//! Reference files for the tests of this folder.

use std::path::PathBuf;

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
