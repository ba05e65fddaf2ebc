//! The bytes behind a file name: plain or gzip by content, one file or a pair, and never more of them than asked for.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::error::Fault;

/// Deflate cannot expand more than this: a match of 258 bytes takes two bits at least.
const MOST_EXPANSION: u64 = 1032;

/// Bytes of one file, decompressed where they are gzip.
pub(super) struct Source {
    reader: Box<dyn Read>,
    gzip: bool,
    taken: u64,
    /// No more than this can come, so no more than this is ever asked memory for.
    pub(super) at_most: u64,
}

impl Source {
    /// Opens a file and looks at its first two bytes; its name does not matter.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        if !path.metadata()?.is_file() {
            return Err(Fault::Io(io::Error::new(io::ErrorKind::InvalidInput, "not a file")));
        }
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut start = Vec::new();
        file.by_ref().take(2).read_to_end(&mut start)?;
        file.rewind()?;
        let file = BufReader::with_capacity(1 << 16, file);
        Ok(if start == [0x1f, 0x8b] {
            let at_most = length.saturating_mul(MOST_EXPANSION);
            Self { reader: Box::new(MultiGzDecoder::new(file)), gzip: true, taken: 0, at_most }
        } else {
            Self { reader: Box::new(file), gzip: false, taken: 0, at_most: length }
        })
    }

    /// Up to `most` bytes: fewer only when the file ends. Memory grows with what comes.
    pub(super) fn take(&mut self, most: u64, part: &'static str) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        let done = self.reader.as_mut().take(most).read_to_end(&mut bytes);
        self.taken += bytes.len() as u64;
        done.map_err(|error| self.explain(error, part))?;
        Ok(bytes)
    }

    /// Goes forward to byte `to`; false when the file ends before.
    pub(super) fn skip_to(&mut self, to: u64) -> Result<bool, Fault> {
        let mut gap = self.reader.as_mut().take(to.saturating_sub(self.taken));
        let done = io::copy(&mut gap, &mut io::sink());
        let skipped = done.map_err(|error| self.explain(error, "what precedes the voxels"))?;
        self.taken += skipped;
        Ok(self.taken >= to)
    }

    fn explain(&self, error: io::Error, part: &'static str) -> Fault {
        match error.kind() {
            _ if !self.gzip => Fault::Io(error),
            io::ErrorKind::UnexpectedEof => Fault::Truncated { part, found: self.taken },
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Fault::CorruptGzip(error),
            _ => Fault::Io(error),
        }
    }
}

/// The header's file for a path: of a pair, either half may be named.
pub(super) fn header_path(path: &Path) -> Result<PathBuf, Fault> {
    other_half(path, ".img", ".hdr", "header").unwrap_or_else(|| Ok(path.to_owned()))
}

/// The file that holds the voxels of a pair, given its header's file.
pub(super) fn image_path(header: &Path) -> Result<PathBuf, Fault> {
    other_half(header, ".hdr", ".img", "image").unwrap_or_else(|| {
        let expected = "n+1 or n+2 in a file not named .hdr";
        Err(Fault::BadMagic { expected, found: "that of a .hdr/.img pair".into() })
    })
}

/// The files that hold what is read by this path: itself and, of a pair, the other half, where that is there.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    let halves = [other_half(path, ".hdr", ".img", "image"), other_half(path, ".img", ".hdr", "header")];
    let other = halves.into_iter().flatten().find_map(Result::ok);
    std::iter::once(path.to_owned()).chain(other).collect()
}

/// The existing file named as `path` with its ending `from` replaced by `to`, plain or with `.gz`, in small letters or in capitals; none if
/// `path` ends otherwise.
fn other_half(path: &Path, from: &str, to: &str, missing: &'static str) -> Option<Result<PathBuf, Fault>> {
    let name = path.file_name()?.to_str()?;
    let small = name.to_ascii_lowercase();
    let length = small.strip_suffix(".gz").unwrap_or(&small).strip_suffix(from)?.len();
    let stem = name.get(..length)?;
    let beside = |ending: &str| path.with_file_name(format!("{stem}{ending}"));
    let endings = [to.to_owned(), format!("{to}.gz")];
    let mut candidates =
        endings.iter().flat_map(|ending| [beside(ending), beside(&ending.to_ascii_uppercase())]);
    let found = candidates.find(|candidate| candidate.is_file());
    Some(found.ok_or_else(|| Fault::MissingHalf { missing, looked_for: beside(to) }))
}
