//! Where a restored state is put together, and how it gets its name.
//!
//! Beside the state folder where there is none: one rename then brings it in whole. A folder that is there already may be a mount
//! point, which nothing can be renamed onto and beside which there may be no room: then inside it, from where the database moves up
//! last; without one nothing takes the folder for a coordinator's state.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::files;
use crate::store::DATABASE;

/// Folder that is being filled, in a state folder that is there already.
const UNFINISHED: &str = "restoring";
/// What a fresh file system has in its root.
const OF_THE_FILE_SYSTEM: &str = "lost+found";

/// A state folder to be.
pub(super) struct Landing {
    state: PathBuf,
    unfinished: PathBuf,
    /// While it is filled, where it lies beside the state folder.
    _held: Option<File>,
}

impl Landing {
    /// For the state folder `state`, which [`is_free`].
    ///
    /// # Errors
    /// The disk, when what an earlier try left cannot be removed.
    pub(super) fn at(state: &Path) -> io::Result<Self> {
        let unfinished = match state.is_dir() {
            true => state.join(UNFINISHED),
            false => super::beside(state),
        };
        super::remove_leftovers(state);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        files::create_private_dir(&unfinished)?;
        let held = super::hold(&unfinished);
        Ok(Self { state: state.to_owned(), unfinished, _held: held })
    }

    /// The folder to fill.
    pub(super) fn folder(&self) -> &Path {
        &self.unfinished
    }

    /// Gives what was filled, and is synced, its name.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn land(&self) -> io::Result<()> {
        if !self.unfinished.starts_with(&self.state) {
            fs::rename(&self.unfinished, &self.state)?;
            return files::sync_dir(files::parent(&self.state));
        }
        // Best effort, as it may be another's; the doctor looks at it.
        let _ = fs::set_permissions(&self.state, fs::Permissions::from_mode(0o700));
        let names = fs::read_dir(&self.unfinished)?.map(|entry| Ok(entry?.file_name()));
        for name in names.collect::<io::Result<Vec<_>>>()? {
            if name != DATABASE {
                fs::rename(self.unfinished.join(&name), self.state.join(&name))?;
            }
        }
        files::sync_dir(&self.state)?;
        fs::rename(self.unfinished.join(DATABASE), self.state.join(DATABASE))?;
        fs::remove_dir(&self.unfinished)?;
        files::sync_dir(&self.state)
    }

    /// Removes what was filled, after a failure.
    pub(super) fn clear(&self) {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_dir_all(&self.unfinished);
    }
}

/// Whether a state can be restored there: nothing lies in it but what a file system or a restore that was interrupted leaves.
///
/// # Errors
/// The disk.
pub(super) fn is_free(state: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if name != OF_THE_FILE_SYSTEM && name != UNFINISHED {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a restore was killed while it moved up what it had filled: the database comes last, so no coordinator has used it.
pub(super) fn is_half_landed(state: &Path) -> bool {
    state.join(UNFINISHED).is_dir() && !state.join(DATABASE).exists()
}
