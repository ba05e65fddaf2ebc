//! Files that are whole or absent: written beside, synced, renamed, and the folder synced too.
//!
//! A rename is durable only once the folder that holds it is; every writer of this crate goes through here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner alone (0600): keys, tokens.
    Private,
    /// Everybody (0644): certificates, reports.
    Public,
}

impl Access {
    const fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Writes `bytes` to `path` so that a crash at any instant leaves the old file or the new one.
///
/// # Errors
/// What the file system says; the half-written file beside is removed.
pub fn write_atomic(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let beside = beside(path);
    let written = write_synced(&beside, bytes, access).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_file(&beside);
    }
    written?;
    sync_dir(parent(path))
}

/// Like [`write_atomic`], but an existing `path` is an error: for what must never be replaced, such as a root key.
///
/// # Errors
/// `AlreadyExists`, or what the file system says.
pub fn write_new(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let beside = beside(path);
    // `hard_link` refuses an existing target, which `rename` would replace.
    let written = write_synced(&beside, bytes, access).and_then(|()| fs::hard_link(&beside, path));
    let _ = fs::remove_file(&beside);
    written?;
    sync_dir(parent(path))
}

/// Makes `path` and its parents, 0700: they hold keys and the names of hospitals.
///
/// # Errors
/// What the file system says.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the entries of `dir` durable.
///
/// # Errors
/// What the file system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What a file system has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this user may still write.
    pub available: u64,
    /// Mounted so that nothing can be written.
    pub read_only: bool,
}

/// What the file system of `path` has left.
///
/// # Errors
/// What the file system says.
pub fn space(path: &Path) -> io::Result<Space> {
    let stat = statvfs(path)?;
    let available = stat.blocks_available().saturating_mul(stat.fragment_size());
    Ok(Space { available, read_only: stat.flags().contains(FsFlags::ST_RDONLY) })
}

/// A size as people read it.
pub fn size_in_words(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The folder that holds `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn write_synced(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    // A leftover of an earlier crash may have wider permissions than asked for now.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_private_file_is_readable_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, b"1", Access::Private).unwrap();
        assert_eq!(mode(&path), 0o600);
        write_atomic(&path, b"2", Access::Private).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn what_must_be_new_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.key");
        write_new(&path, b"1", Access::Private).unwrap();
        let again = write_new(&path, b"2", Access::Private).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_fits() {
        let words = [0, 1023, 1024, 1536, 4 << 20, 3 << 40].map(size_in_words);
        assert_eq!(words, ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "4.0 MiB", "3.0 TiB"]);
    }

    #[test]
    fn a_folder_that_can_be_written_has_space() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path()).unwrap();
        assert!(space.available > 0 && !space.read_only, "{space:?}");
    }

    #[test]
    fn a_wide_open_leftover_does_not_widen_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(beside(&path), b"torn").unwrap();
        write_atomic(&path, b"1", Access::Private).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
