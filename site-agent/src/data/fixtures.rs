//! Reference files for the tests of this folder.

use std::path::{Path, PathBuf};

/// The reference files beside the project, or `None`, said loudly, where they are absent.
///
/// # Panics
/// When they are absent and `CONSILIUM_REQUIRE_SHARED=1` says that they must not be.
pub(super) fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(part);
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var_os("CONSILIUM_REQUIRE_SHARED").is_some_and(|value| value == "1");
    assert!(!required, "reference files are absent: {}", path.display());
    println!("SKIPPED: no reference files at {}", path.display());
    None
}
