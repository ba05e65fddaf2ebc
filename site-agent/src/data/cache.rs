//! Prepared cases on disk, under the digest of everything that they were made from.
//!
//! A file appears whole or not at all, ends in the digest of its content, and is made anew when that does not fit: the
//! cache can be deleted, shared by two runs or cut short by a full disk without changing what is trained on.
//!
//! A list for each user, of the files that it has a use for, lies beside them. What no list names goes when the next one is written: a
//! scan that was taken away must not stay here, where nobody could tell whose it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use common::ids::{ClassId, Digest, TaxonomyDigest};
use serde::{Deserialize, Serialize};

use super::DataError;
use super::dataset::Case;
use super::geometry::Affine;
use super::labels::{LabelledCase, MaskSource};
use super::nifti::files_of;
use super::prepared::PreparedCase;
use super::preprocess::Preprocessing;
use super::volume::{Grid, Volume};

/// Changes whenever preparation or this format changes.
const FORMAT: &str = "consilium prepared case 2";
const DIGEST_BYTES: usize = 32;
/// How the names of lists end.
const LIST: &str = ".list";
/// How the names of prepared cases end.
const CASE: &str = ".case";
/// How the names of files begin that a killed process was still writing.
const UNFINISHED: &str = ".tmp";

/// What a prepared case was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseKey(Digest);

impl CaseKey {
    /// The key of a case: content of its files, label map, annotated classes, taxonomy and preprocessing.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(case: &Case, settings: &Preprocessing, taxonomy: TaxonomyDigest) -> Result<Self, DataError> {
        let mut key = blake3::Hasher::new();
        key.update(FORMAT.as_bytes());
        for file in [&case.image, &case.labels].into_iter().flat_map(|path| files_of(path)) {
            let mut content = blake3::Hasher::new();
            let mut reader = File::open(&file).map_err(DataError::io(&file))?;
            std::io::copy(&mut reader, &mut content).map_err(DataError::io(&file))?;
            key.update(content.finalize().as_bytes());
        }
        let annotated: Vec<ClassId> = case.annotated.iter().copied().collect();
        // Shortest decimal forms read back exactly: equal text means equal settings.
        let rest = format!("{} {annotated:?} {taxonomy} {settings:?}", case.label_map.digest());
        key.update(rest.as_bytes());
        key.update(&[u8::from(case.assume_hounsfield), u8::from(case.assume_orientation)]);
        Ok(Self(Digest::from_bytes(*key.finalize().as_bytes())))
    }

    /// The digest.
    pub fn digest(&self) -> Digest {
        self.0
    }

    fn file_name(&self) -> String {
        format!("{}{CASE}", self.0)
    }
}

/// A folder of prepared cases, as one of its users sees it.
#[derive(Clone, Debug)]
pub struct CaseCache {
    folder: PathBuf,
    user: String,
}

impl CaseCache {
    /// Opens or makes the folder. Of those who use it, `user` names the one whose list is meant: a study, or a command.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn open(folder: &Path, user: &str) -> Result<Self, DataError> {
        fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        Ok(Self { folder: folder.to_owned(), user: user.to_owned() })
    }

    /// This user has a use for these cases, and for no other. Removes what nobody has one for, whether a scan was taken away or is
    /// prepared in another way now.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn keep_only(&self, keys: &[CaseKey]) -> Result<(), DataError> {
        let wanted: BTreeSet<String> = keys.iter().map(CaseKey::file_name).collect();
        let list = wanted.iter().fold(String::new(), |list, name| list + name + "\n");
        // First, as the list may need the room.
        self.remove_unlisted(wanted)?;
        self.write(&self.list(), list.as_bytes())
    }

    /// This user has a use for no case any more. They go when another says what it keeps, which may be the same: one study often
    /// follows another.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn forget(&self) -> Result<(), DataError> {
        remove(&self.list())
    }

    /// Removes what is neither `wanted` nor on the list of another user. A list that cannot be read names nothing: what it named is
    /// prepared again.
    fn remove_unlisted(&self, mut wanted: BTreeSet<String>) -> Result<(), DataError> {
        let listed = fs::read_dir(&self.folder).map_err(DataError::io(&self.folder))?;
        let names: Vec<String> =
            listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let own = self.list();
        let lists = names.iter().filter(|name| name.ends_with(LIST)).map(|name| self.folder.join(name));
        for list in lists.filter(|list| *list != own) {
            let text = fs::read_to_string(list).unwrap_or_default();
            wanted.extend(text.lines().map(str::to_owned));
        }
        let goes = |name: &&String| {
            name.starts_with(UNFINISHED) || (name.ends_with(CASE) && !wanted.contains(name.as_str()))
        };
        names.iter().filter(goes).try_for_each(|name| remove(&self.folder.join(name)))
    }

    fn list(&self) -> PathBuf {
        self.folder.join(format!("{}{LIST}", self.user))
    }

    /// The case under `key`; made by `prepare` and kept if it is absent or damaged.
    ///
    /// # Errors
    /// Those of `prepare`, and of writing.
    pub fn load_or(
        &self,
        key: CaseKey,
        prepare: impl FnOnce() -> Result<PreparedCase, DataError>,
    ) -> Result<PreparedCase, DataError> {
        let path = self.folder.join(key.file_name());
        if let Ok(bytes) = fs::read(&path) {
            match decode(&bytes) {
                Some(case) => return Ok(case),
                None => tracing::warn!(key = %key.0, "a prepared case is damaged and made anew"),
            }
        }
        let case = prepare()?;
        self.write(&path, &encode(&case))?;
        Ok(case)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), DataError> {
        let failed = DataError::io(path);
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder);
        let mut file = file.map_err(&failed)?;
        file.write_all(bytes).map_err(&failed)?;
        file.as_file().sync_all().map_err(&failed)?;
        match file.persist(path) {
            // Another process took it for one that a killed process had left: then it is not kept, and made again when it is asked for.
            Err(refused) if refused.error.kind() != io::ErrorKind::NotFound => Err(failed(refused.error)),
            _ => Ok(()),
        }
    }
}

/// Removes a file; another process may have done so.
fn remove(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DataError::io(path)(error)),
        _ => Ok(()),
    }
}

/// What precedes the voxels.
#[derive(Serialize, Deserialize)]
struct Header {
    shape: [usize; 3],
    /// Rows of the affine, bit patterns of f64: exact in any text.
    affine: Vec<u64>,
    /// Raw values of each annotated class; none where its mask is the mapped class.
    masks: BTreeMap<ClassId, Option<Vec<i32>>>,
}

/// Length of the header, header, image (f32), mapped classes (u8), raw labels (i32), digest of all before; little-endian.
fn encode(case: &PreparedCase) -> Vec<u8> {
    let grid = case.image.grid();
    let source = |source: &MaskSource| match source {
        MaskSource::Mapped => None,
        MaskSource::Raw(values) => Some(values.clone()),
    };
    let header = Header {
        shape: grid.shape,
        affine: grid.affine.matrix().transpose().iter().map(|v| v.to_bits()).collect(),
        masks: case.labels.masks().iter().map(|(class, mask)| (*class, source(mask))).collect(),
    };
    // Invariant: numbers, lists and a map with number keys always have a JSON form.
    let header = serde_json::to_vec(&header).expect("a header has a JSON form");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(case.image.voxels().iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend(case.labels.mapped().voxels());
    bytes.extend(case.labels.raw().voxels().iter().flat_map(|v| v.to_le_bytes()));
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// The case, unless the bytes are not exactly what [`encode`] wrote.
fn decode(bytes: &[u8]) -> Option<PreparedCase> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if blake3::hash(content).as_bytes() != digest {
        return None;
    }
    let (length, rest) = content.split_first_chunk()?;
    let (header, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: Header = serde_json::from_slice(header).ok()?;
    let rows: Vec<f64> = header.affine.into_iter().map(f64::from_bits).collect();
    let matrix = (rows.len() == 16).then(|| nalgebra::Matrix4::from_row_slice(&rows))?;
    let grid = Grid { shape: header.shape, affine: Affine::new(matrix)? };
    let voxels = header.shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis))?;
    let (image, rest) = rest.split_at_checked(voxels.checked_mul(4)?)?;
    let (mapped, raw) = rest.split_at_checked(voxels)?;
    let image = image.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let raw: Vec<i32> = raw.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
    let source = |values: Option<Vec<i32>>| values.map_or(MaskSource::Mapped, MaskSource::Raw);
    let masks = header.masks.into_iter().map(|(class, values)| (class, source(values))).collect();
    (raw.len() == voxels).then(|| {
        let mapped = Volume::new(grid.clone(), mapped.to_vec());
        let labels = LabelledCase::new(mapped, Volume::new(grid.clone(), raw), masks);
        PreparedCase::new(Volume::new(grid, image), labels)
    })
}

#[cfg(test)]
mod tests;
