//! Files that survive a crash: written beside their place, synced, renamed, and the folder synced too. What can be had again is not
//! synced, and says so in its name.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use link::write_back::BlockingWriteBack;
use nix::errno::Errno;
use nix::sys::statvfs::FsFlags;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::train::state::UNFINISHED;

/// For the owner alone.
const PRIVATE: u32 = 0o600;
/// For everybody whom the user's umask lets in.
const BY_UMASK: u32 = 0o666;

/// A file that could not be read or written, and what was tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct FileError {
    action: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

impl FileError {
    /// What was tried on which path, and what the file system said.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.display().to_string(), source }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// Whether the file is simply not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether the disk does not give what was written, and never will ([`is_unreadable`]).
    pub fn is_unreadable(&self) -> bool {
        is_unreadable(&self.source)
    }

    /// Whether this user may not do that with the file.
    pub fn is_denied(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether the file was read and is not what was written.
    pub fn is_damage(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
    }
}

/// Whether a file that is there cannot be read for good: the disk does not give what was written. Where it is forbidden, or the
/// process has too many files open or no memory, it is as it was.
pub fn is_unreadable(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, OutOfMemory, PermissionDenied};
    let too_many = [Errno::EMFILE, Errno::ENFILE].map(|errno| Some(errno as i32));
    !matches!(error.kind(), NotFound | OutOfMemory | PermissionDenied)
        && !too_many.contains(&error.raw_os_error())
}

/// Free bytes that are left alone: less is no room.
pub const SPARE_ROOM: u64 = 1 << 20;

/// What is wrong with the disk, in two words, where this came of something that passes when somebody sees to it.
pub fn disk_trouble(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).find_map(trouble_of)
}

/// The same of one cause.
pub fn trouble_of(cause: &io::Error) -> Option<&'static str> {
    match cause.kind() {
        _ if is_full(cause) => Some(DISK_FULL),
        io::ErrorKind::ReadOnlyFilesystem => Some(DISK_READ_ONLY),
        _ => None,
    }
}

/// Of a full disk, or a quota that is used up.
pub(super) const DISK_FULL: &str = "disk full";

/// Of a disk that nothing can be written to.
pub const DISK_READ_ONLY: &str = "disk read-only";

/// What to do about [`disk_trouble`], of either kind.
pub const DISK_HINT: &str = "make room, or have the disk writable again";

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How much of the disk that a path is on is free for us, in words.
pub fn free_space(path: &Path) -> String {
    match free_bytes(path) {
        Ok(free) => format!("{} MiB are free on the disk of {}", free >> 20, path.display()),
        Err(error) => format!("how much is free on the disk of {} cannot be told: {error}", path.display()),
    }
}

/// Whether so many bytes more have room in a folder. Where that cannot be told, it is for the writer to find out.
pub fn has_room(folder: &Path, bytes: u64) -> bool {
    free_bytes(folder).map_or(true, |free| free >= bytes.saturating_add(SPARE_ROOM))
}

/// The error that writing so many bytes into a folder would end with, before any was fetched.
///
/// # Errors
/// [`FileError`] of a full disk.
pub fn require_room(folder: &Path, bytes: u64) -> Result<(), FileError> {
    if has_room(folder, bytes) {
        return Ok(());
    }
    Err(FileError::new("write in", folder, io::ErrorKind::StorageFull.into()))
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(path)?;
    // As some network disks say that do not tell.
    if disk.blocks() == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Whether the disk of a path is mounted so that nothing can be written.
pub fn is_read_only(path: &Path) -> bool {
    nix::sys::statvfs::statvfs(path).is_ok_and(|disk| disk.flags().contains(FsFlags::ST_RDONLY))
}

/// Reads a whole file.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|source| FileError::new("read", path, source))
}

/// Reads a whole text file.
///
/// # Errors
/// [`FileError`], also when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError::new("read", path, source))
}

/// Replaces a file as a whole: after a crash the old content is there or the new, never a mixture. Only its owner can
/// read it.
///
/// # Errors
/// [`FileError`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    put(path, bytes, PRIVATE, |temporary, path| temporary.persist(path).map(drop).map_err(|e| e.error))
}

/// Replaces a file as a whole for whoever reads it, without waiting for the disk: after a loss of power it may be the old one,
/// or torn. For what can be had again. Only its owner can read it.
///
/// # Errors
/// [`FileError`].
pub fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = Unnamed::begin(&folder_of(path))?;
    file.write(bytes)?;
    file.temporary.persist(path).map(drop).map_err(|error| FileError::new("write", path, error.error))
}

/// Replaces a file as [`write()`] does; who else may read it is for the user's umask to say, as for label files.
///
/// # Errors
/// [`FileError`].
pub fn write_result(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    put(path, bytes, BY_UMASK, |temporary, path| temporary.persist(path).map(drop).map_err(|e| e.error))
}

/// Writes a file that must not exist yet; only its owner can read it.
///
/// # Errors
/// [`FileError`], also when it exists.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let place = |temporary: tempfile::NamedTempFile, path: &Path| {
        temporary.persist_noclobber(path).map(drop).map_err(|e| e.error)
    };
    put(path, bytes, PRIVATE, place)
}

fn put(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    place: impl FnOnce(tempfile::NamedTempFile, &Path) -> io::Result<()>,
) -> Result<(), FileError> {
    let folder = folder_of(path);
    let attempt = || {
        let permissions = fs::Permissions::from_mode(mode);
        let mut temporary =
            tempfile::Builder::new().prefix(UNFINISHED).permissions(permissions).tempfile_in(&folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        place(temporary, path)?;
        sync_folder(&folder)
    };
    attempt().map_err(|source| FileError::new("write", path, source))
}

/// A file that is written piece by piece and has no name until it is whole: what a crash leaves is not found.
#[derive(Debug)]
pub struct Unnamed {
    temporary: tempfile::NamedTempFile,
    folder: PathBuf,
    write_back: BlockingWriteBack,
}

impl Unnamed {
    /// Begins a file that will lie in `folder`; only its owner can read it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn begin(folder: &Path) -> Result<Self, FileError> {
        let permissions = fs::Permissions::from_mode(PRIVATE);
        let made = tempfile::Builder::new().prefix(UNFINISHED).permissions(permissions).tempfile_in(folder);
        let temporary = made.map_err(|source| FileError::new("write in", folder, source))?;
        Ok(Self { temporary, folder: folder.to_owned(), write_back: BlockingWriteBack::default() })
    }

    /// As [`Unnamed::begin`] in the folder of `spare`, a private file whose content nobody wants; over that, if it is there: the disk need
    /// neither take its blocks back nor find others.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn begin_over(spare: &Path) -> Result<Self, FileError> {
        let folder = folder_of(spare);
        let taken = tempfile::Builder::new().prefix(UNFINISHED).make_in(&folder, |path| {
            fs::rename(spare, path)?;
            let opened = fs::OpenOptions::new().write(true).open(path);
            opened.inspect_err(|_| drop(fs::remove_file(path)))
        });
        match taken {
            Ok(temporary) => Ok(Self { temporary, folder, write_back: BlockingWriteBack::default() }),
            // It need not be there, and nothing hangs on it.
            Err(_) => Self::begin(&folder),
        }
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let Self { temporary, write_back, .. } = self;
        let written = temporary.write_all(bytes);
        let written = written.and_then(|()| write_back.wrote(bytes.len() as u64, temporary.as_file()));
        written.map_err(|source| FileError::new("write in", &self.folder, source))
    }

    /// Puts the file in its place, instead of what was there: durable when it returns.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn place(self, path: &Path) -> Result<(), FileError> {
        let Self { temporary, folder, mut write_back } = self;
        let place = || {
            write_back.settle()?;
            // What it was written over may have been longer.
            let length = temporary.as_file().stream_position()?;
            temporary.as_file().set_len(length)?;
            temporary.as_file().sync_all()?;
            temporary.persist(path).map_err(|error| error.error)?;
            sync_folder(&folder)
        };
        place().map_err(|source| FileError::new("write", path, source))
    }
}

/// Reads a JSON file; `None` when there is none.
///
/// # Errors
/// [`FileError`], also when it is not what it should be.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    match read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            value.map(Some).map_err(|error| FileError::new("understand", path, error.into()))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a JSON file as [`write()`] does.
///
/// # Errors
/// [`FileError`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let bytes = serde_json::to_vec_pretty(value);
    write(path, &bytes.map_err(|error| FileError::new("write", path, error.into()))?)
}

/// Replaces a JSON file as [`write_unsynced`] does.
///
/// # Errors
/// [`FileError`].
pub fn write_json_unsynced<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let bytes = serde_json::to_vec_pretty(value);
    write_unsynced(path, &bytes.map_err(|error| FileError::new("write", path, error.into()))?)
}

/// Replaces a JSON file that is a picture of something, not the thing: as [`write_unsynced`] does, and on a full disk, which is
/// just what it may have to show, in the place that the old one has.
///
/// # Errors
/// [`FileError`].
pub fn show_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let fail = |source| FileError::new("write", path, source);
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| fail(error.into()))?;
    match write_unsynced(path, &bytes) {
        Err(error) if is_full(&error.source) => overwrite(path, &bytes).map_err(fail),
        written => written,
    }
}

/// Needs no more of the disk than the file has. Who reads meanwhile may see some of both.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

/// Whether a folder is there and this user may write in it. Nothing is written.
///
/// # Errors
/// [`FileError`].
pub fn require_writable(folder: &Path) -> Result<(), FileError> {
    let may = access(folder, AccessFlags::W_OK | AccessFlags::X_OK);
    may.map_err(|errno| FileError::new("write in", folder, errno.into()))
}

/// What lies in a folder; nothing in one that is not there.
///
/// # Errors
/// [`FileError`].
pub(super) fn list(folder: &Path) -> Result<Vec<fs::DirEntry>, FileError> {
    match fs::read_dir(folder) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(FileError::new("read", folder, source)),
        Ok(listed) => Ok(listed.flatten().collect()),
    }
}

/// Removes what a crash left half-written in a folder, if there is one: it can be as large as a model. For whoever alone writes there.
///
/// # Errors
/// [`FileError`].
pub fn remove_unfinished(folder: &Path) -> Result<(), FileError> {
    let listed = fs::read_dir(folder).into_iter().flatten().flatten();
    let unfinished = listed.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED));
    unfinished.map(|entry| entry.path()).try_for_each(|path| remove(&path))
}

/// Makes a folder that only its owner can enter, and those above it.
///
/// # Errors
/// [`FileError`].
pub fn make_private_folder(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| FileError::new("make the folder", path, source))
}

/// Removes a file; that there is none is fine.
///
/// # Errors
/// [`FileError`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// Removes a file as [`remove`] does: durable when it returns. For what nobody removes again after a loss of power.
///
/// # Errors
/// [`FileError`].
pub fn remove_durably(path: &Path) -> Result<(), FileError> {
    remove(path)?;
    sync_folder(&folder_of(path)).map_err(|source| FileError::new("remove", path, source))
}

/// Gives a whole file its name: durable when it returns.
///
/// # Errors
/// [`FileError`].
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    rename_unsynced(from, to)?;
    sync_folder(&folder_of(to)).map_err(|source| FileError::new("write", to, source))
}

/// Gives a file its name, without waiting for the disk. For what can be had again.
///
/// # Errors
/// [`FileError`].
pub fn rename_unsynced(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|source| FileError::new("write", to, source))
}

/// The folder that a file lies in, or is to.
pub fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
thread_local! {
    /// Whether a test says that the disk has no room: none for the names of files.
    pub(super) static IS_FULL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Makes the names of a folder's files durable.
///
/// # Errors
/// What the disk says.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    if IS_FULL.get() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_private_and_leaves_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_new(&path, b"one").unwrap();
        assert!(write_new(&path, b"two").is_err());
        write(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap(), b"three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let fail = |path: &str| {
            let opened = fs::OpenOptions::new().write(true).open(path);
            let written = opened.and_then(|mut file| file.write_all(b"x"));
            anyhow::Error::from(FileError::new("write", Path::new(path), written.unwrap_err()))
        };
        assert_eq!(disk_trouble(&fail("/dev/full")), Some(DISK_FULL));
        assert_eq!(disk_trouble(&fail("/dev/full").context("the round")), Some(DISK_FULL));
        assert_eq!(disk_trouble(&fail("/nowhere/file")), None);
        assert_eq!(disk_trouble(&anyhow::anyhow!("no space left, they say")), None);
        let read_only = FileError::new("write", Path::new("x"), io::ErrorKind::ReadOnlyFilesystem.into());
        assert_eq!(disk_trouble(&read_only.into()), Some("disk read-only"));
        let folder = tempfile::tempdir().unwrap();
        assert!(free_space(folder.path()).contains("MiB are free on the disk of"));
        assert!(require_room(folder.path(), 0).is_ok() && !has_room(folder.path(), u64::MAX));
        assert_eq!(disk_trouble(&require_room(folder.path(), u64::MAX).unwrap_err().into()), Some(DISK_FULL));
    }

    #[test]
    fn a_bad_sector_is_told_from_what_passes() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        assert!([Errno::EIO, Errno::EUCLEAN].iter().all(|&errno| is_unreadable(&error(errno))));
        assert!(is_unreadable(&io::ErrorKind::UnexpectedEof.into()));
        let passing =
            [Errno::ENOENT, Errno::EACCES, Errno::EPERM, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE];
        assert!(!passing.iter().any(|&errno| is_unreadable(&error(errno))));
    }

    #[test]
    fn a_picture_is_replaced_and_on_a_full_disk_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        show_json(&path, &"a long one").unwrap();
        show_json(&path, &"short").unwrap();
        assert_eq!(read_json::<String>(&path).unwrap().as_deref(), Some("short"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for text in ["\"a longer one than before\"", "\"s\""] {
            overwrite(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_folder_that_can_be_written_is_told_from_none() {
        let folder = tempfile::tempdir().unwrap();
        require_writable(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = require_writable(&folder.path().join("results")).unwrap_err();
        assert!(missing.is_not_found() && missing.path() == folder.path().join("results"), "{missing}");
    }

    #[test]
    fn a_missing_json_file_is_no_error_and_a_broken_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        write_json(&path, &7u32).unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), Some(7));
        write(&path, b"{").unwrap();
        assert!(read_json::<u32>(&path).is_err());
    }
}
