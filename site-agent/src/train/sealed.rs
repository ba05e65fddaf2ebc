//! Files of tensors that are replaced as a whole and refused when damaged: safetensors, and a digest of all that at the end.
//!
//! Written from where the tensors are and read back one by one: beside them there is a piece in memory, not a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::model::record::{read_safetensors_from, write_safetensors_to};
use crate::model::{LiveTensor, NamedTensors};

const DIGEST_BYTES: usize = 32;
/// How the names of files begin that are not whole yet.
pub const UNFINISHED: &str = ".writing-";

/// Puts tensors and a note in the place of a file; on return they survive a loss of power.
///
/// # Errors
/// The disk's refusal: then what was there before is still there.
pub(super) fn write_sealed(
    path: &Path,
    tensors: &BTreeMap<String, &LiveTensor>,
    note: Option<&str>,
) -> io::Result<()> {
    replace(path, |file| {
        let mut hashed = Hashed { file, hasher: blake3::Hasher::new() };
        write_safetensors_to(&mut hashed, tensors, note)?;
        let digest = hashed.hasher.finalize();
        hashed.file.write_all(digest.as_bytes())
    })
}

/// Tensors and note of a file; `None` for anything but what [`write_sealed`] wrote.
///
/// # Errors
/// The disk's refusal.
pub(super) fn read_sealed(path: &Path) -> io::Result<Option<(NamedTensors, Option<String>)>> {
    let mut file = File::open(path)?;
    // Looked at as a whole before any of it is believed.
    let Some(content) = intact(&mut file)? else { return Ok(None) };
    file.rewind()?;
    match read_safetensors_from(&mut file, content) {
        Ok(read) => Ok(Some(read)),
        Err(other) if is_about_content(&other) => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// Bytes before the digest, if the digest is of these.
fn intact(file: &mut File) -> io::Result<Option<u64>> {
    let Some(content) = file.metadata()?.len().checked_sub(DIGEST_BYTES as u64) else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(Read::take(&mut *file, content))?;
    let mut digest = [0; DIGEST_BYTES];
    file.read_exact(&mut digest)?;
    Ok((*hasher.finalize().as_bytes() == digest).then_some(content))
}

fn is_about_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Replaces a file as a whole: after a crash the old content is there or the new, and what `write` left of a new one has
/// the name of an unfinished file.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|refused| refused.error)?;
    File::open(folder)?.sync_all()
}

/// Hashes what goes into a file.
struct Hashed<'a> {
    file: &'a mut File,
    hasher: blake3::Hasher,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
