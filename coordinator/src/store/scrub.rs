//! Looking at everything that is kept, and moving away what is not what it should be. Used by [`crate::doctor`].
//!
//! Nothing is deleted here: what is corrupt goes to the folder `quarantine`, for a person to look at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::ids::{ArtifactHash, ModelHash, RoundId, SiteId, StudyDigest};
use common::time::Timestamp;
use sqlx::Row;

use super::artifacts::{ArtifactFile, Artifacts, UNFINISHED};
use super::server_state::{self, ServerStates};
use super::spool::{ARRIVING, SPARE, Spool};
use super::{DATABASE, Store, StoreError, schema};
use crate::{clock, files};

/// Where what is corrupt is moved to.
pub const QUARANTINE: &str = "quarantine";

/// Something in the folders of artifacts, updates and moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: PathBuf,
    /// What its name says that it is.
    pub kind: Kind,
}

/// What something in the folders is, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model or embeddings.
    Artifact(ArtifactHash),
    /// A whole update.
    Update(UpdateName),
    /// What a strategy keeps beside a model.
    Moments(MomentsName),
    /// Being written, or left over from that.
    Unfinished,
    /// Nothing that we make.
    Stranger,
}

/// Which update a folder of the spool holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateName {
    /// Of this study.
    pub study: StudyDigest,
    /// For this round.
    pub round: RoundId,
    /// Of this site.
    pub site: SiteId,
    /// The digest of its manifest.
    pub update: ArtifactHash,
}

/// Which moments a folder of server states holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MomentsName {
    /// Of this study.
    pub study: StudyDigest,
    /// The round that made them.
    pub round: RoundId,
    /// The model that they lie beside.
    pub model: ModelHash,
}

impl Artifacts {
    /// Everything in the folder, by name.
    ///
    /// # Errors
    /// The disk.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let kind = |name: &str| match name.parse() {
            Ok(hash) => Kind::Artifact(hash),
            Err(_) if name.starts_with(UNFINISHED) => Kind::Unfinished,
            Err(_) => Kind::Stranger,
        };
        list(&self.dir, kind)
    }
}

impl Spool {
    /// Everything in the folder, by name.
    ///
    /// # Errors
    /// The disk.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        for round in list(&self.dir, |name| if name == SPARE { Kind::Unfinished } else { Kind::Stranger })? {
            let Some((study, number)) = round_of(&round.path) else {
                entries.push(round);
                continue;
            };
            entries.extend(self.of_round(study, number)?);
        }
        Ok(entries)
    }

    /// What lies in the folder of a round, by name; nothing where it has none.
    pub(super) fn of_round(&self, study: StudyDigest, round: RoundId) -> Result<Vec<Entry>, StoreError> {
        let kind = |name: &str| match update_name(study, round, name) {
            Some(update) => Kind::Update(update),
            None if name.ends_with(ARRIVING) => Kind::Unfinished,
            None => Kind::Stranger,
        };
        list(&self.round_folder(&study, round), kind)
    }

    /// The rounds that have a folder.
    ///
    /// # Errors
    /// The disk.
    pub fn rounds(&self) -> Result<Vec<(StudyDigest, RoundId)>, StoreError> {
        let folders = list(&self.dir, |_| Kind::Stranger)?;
        Ok(folders.iter().filter_map(|folder| round_of(&folder.path)).collect())
    }
}

impl ServerStates {
    /// Everything in the folder, by name.
    ///
    /// # Errors
    /// The disk.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        for study in list(&self.dir, |_| Kind::Stranger)? {
            let name = study.path.file_name().and_then(|name| name.to_str());
            let Some(digest) = name.and_then(|name| name.parse::<StudyDigest>().ok()) else {
                entries.push(study);
                continue;
            };
            let kind = |name: &str| match moments_name(digest, name) {
                Some(moments) => Kind::Moments(moments),
                None if name.starts_with(server_state::UNFINISHED) => Kind::Unfinished,
                None => Kind::Stranger,
            };
            entries.extend(list(&study.path, kind)?);
        }
        Ok(entries)
    }
}

impl ArtifactFile {
    /// Reads it whole and checks every byte; `seen` hears how many bytes were read each time. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names the first chunk that is wrong; the disk.
    pub fn verify(&self, mut seen: impl FnMut(u64)) -> Result<(), StoreError> {
        for (index, span) in self.manifest().layout().spans().iter().enumerate() {
            self.read_chunk(index)?;
            seen(u64::from(span.len));
        }
        Ok(())
    }
}

impl Store {
    /// What SQLite finds wrong with the database, in its words; nothing when all is well.
    ///
    /// # Errors
    /// The database.
    pub async fn integrity(&self) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query("PRAGMA integrity_check(20)").fetch_all(&self.pool).await?;
        let read = |row: &sqlx::sqlite::SqliteRow| row.try_get::<String, _>(0);
        let mut problems = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        problems.retain(|problem| problem != "ok");
        let orphans = sqlx::query("PRAGMA foreign_key_check").fetch_all(&self.pool).await?;
        for row in &orphans {
            let table: String = row.try_get(0)?;
            problems.push(format!("a row of `{table}` refers to one that is not there"));
        }
        Ok(problems)
    }

    /// The database's schema version, and the last that this program knows.
    ///
    /// # Errors
    /// The database.
    pub async fn schema(&self) -> Result<(usize, usize), StoreError> {
        let mut connection = self.pool.acquire().await?;
        Ok((schema::version(&mut connection).await?, schema::STEPS.len()))
    }

    /// The state folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database's file.
    pub fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// Moves a folder of the store into [`QUARANTINE`]; where it is now.
    ///
    /// # Errors
    /// The disk.
    pub fn quarantine(&self, folder: &Path, at: Timestamp) -> Result<PathBuf, StoreError> {
        quarantine(&self.dir, folder, at)
    }
}

/// Moves `folder`, which lies in the state folder `state`, into its quarantine.
pub(super) fn quarantine(state: &Path, folder: &Path, at: Timestamp) -> Result<PathBuf, StoreError> {
    let inside = folder.strip_prefix(state).unwrap_or(folder);
    let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy()).collect();
    let name = format!("{}-{}", clock::file_stamp(at), parts.join("-"));
    let dir = state.join(QUARANTINE);
    files::create_private_dir(&dir).map_err(StoreError::file(&dir))?;
    let mut to = dir.join(&name);
    let mut number = 1;
    while to.exists() {
        number += 1;
        to = dir.join(format!("{name}.{number}"));
    }
    fs::rename(folder, &to).map_err(StoreError::file(folder))?;
    for changed in [dir.as_path(), files::parent(folder)] {
        files::sync_dir(changed).map_err(StoreError::file(changed))?;
    }
    Ok(to)
}

/// What lies in `dir`, in order of name; nothing where it is absent. A backup has no empty folders, so a restored state lacks them
/// until it is started; one from before strategies had moments has no folder of them; and that of a round goes while we look.
fn list(dir: &Path, kind: impl Fn(&str) -> Kind) -> Result<Vec<Entry>, StoreError> {
    let found = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(StoreError::file(dir))?,
    };
    let mut entries = Vec::new();
    for entry in found {
        let entry = entry.map_err(StoreError::file(dir))?;
        entries.push(Entry { path: entry.path(), kind: kind(&entry.file_name().to_string_lossy()) });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// Study and round of a folder of the spool.
fn round_of(folder: &Path) -> Option<(StudyDigest, RoundId)> {
    let (study, round) = folder.file_name()?.to_str()?.rsplit_once('-')?;
    Some((study.parse().ok()?, RoundId(round.parse().ok()?)))
}

fn update_name(study: StudyDigest, round: RoundId, name: &str) -> Option<UpdateName> {
    let (site, update) = name.rsplit_once('.')?;
    Some(UpdateName { study, round, site: site.parse().ok()?, update: update.parse().ok()? })
}

fn moments_name(study: StudyDigest, name: &str) -> Option<MomentsName> {
    let (round, model) = name.split_once('-')?;
    Some(MomentsName { study, round: RoundId(round.parse().ok()?), model: model.parse().ok()? })
}
