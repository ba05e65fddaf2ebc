//! The moments of a strategy that has some, beside the model that they go with.
//!
//! `server-state/<study>/<round>-<model>/` holds `state.json`, which names the moments, and each of them as an artifact. The
//! round is in the name because two rounds may end with the same model and other moments. A folder appears under its name only when
//! it is whole and synced; where one is made anew, its moments are laid beside those that are there, and `state.json` is replaced at
//! once, so a crash at any instant leaves the old state or the new. The state of the round before stays until a round is committed, so a round that is aggregated again
//! after a crash starts from the same numbers. All calls block.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::artifact::TensorLayout;
use common::ids::{ArtifactHash, ModelHash, RoundId, StudyDigest};
use serde::{Deserialize, Serialize};

use super::artifacts::{ArtifactFile, ArtifactWriter, Artifacts};
use super::{Health, Kind, StoreError, scrub};
use crate::clock;
use crate::files::{self, Access};

const STATE: &str = "state.json";
/// Prefix of folders that are being written.
pub(super) const UNFINISHED: &str = "new-";

/// The folder of all server states. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerStates {
    pub(super) dir: PathBuf,
    health: Health,
}

/// What lies in a state's folder.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    moments: Vec<Moment>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Moment {
    name: String,
    artifact: ArtifactHash,
}

/// The moments beside one model, read chunk by chunk.
#[derive(Debug)]
pub struct ServerState {
    moments: Vec<ArtifactFile>,
}

/// Takes the chunks of new moments, in order. Dropped before [`ServerStateWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct ServerStateWriter {
    states: ServerStates,
    study: StudyDigest,
    folder: PathBuf,
    moments: Vec<(&'static str, ArtifactWriter)>,
    finished: bool,
}

impl ServerStates {
    /// Opens `dir`, making it if need be, and removes what a crash left unfinished.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn open(dir: &Path, health: Health) -> Result<Self, StoreError> {
        files::create_private_dir(dir).map_err(StoreError::file(dir))?;
        for study in folders(dir)? {
            for (folder, name) in named_folders(&study)? {
                if name.starts_with(UNFINISHED) {
                    fs::remove_dir_all(&folder).map_err(StoreError::file(&folder))?;
                }
            }
        }
        Ok(Self::at(dir, health))
    }

    /// Those of `dir`, to be looked at alone.
    pub(super) fn at(dir: &Path, health: Health) -> Self {
        Self { dir: dir.to_owned(), health }
    }

    /// Opens the moments called `names` beside the model that `round` made.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when they are not here, or not what they were: a round must not start from zeros in
    /// their place; the disk.
    pub fn read(
        &self,
        study: &StudyDigest,
        round: RoundId,
        model: &ModelHash,
        names: &[&str],
    ) -> Result<ServerState, StoreError> {
        let moments = self.moments(study, round, model)?;
        if !moments.iter().map(|(name, _)| name.as_str()).eq(names.iter().copied()) {
            let path = self.folder(study, round, model).join(STATE);
            let reason = format!("{}: its moments are not {}", path.display(), names.join(", "));
            return Err(StoreError::corrupt("server state", reason));
        }
        Ok(ServerState { moments: moments.into_iter().map(|(_, moment)| moment).collect() })
    }

    /// The moments beside the model that `round` made, whatever they are, with their names.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when they are not here, or not what they were; the disk.
    pub fn moments(
        &self,
        study: &StudyDigest,
        round: RoundId,
        model: &ModelHash,
    ) -> Result<Vec<(String, ArtifactFile)>, StoreError> {
        let folder = self.folder(study, round, model);
        if !folder.is_dir() {
            let reason = format!("that of round {round}, beside model {}, is missing", model.short());
            return Err(StoreError::corrupt("server state", reason));
        }
        let path = folder.join(STATE);
        let corrupt =
            |reason: String| StoreError::corrupt("server state", format!("{}: {reason}", path.display()));
        let bytes = fs::read(&path).map_err(StoreError::file(&path))?;
        let file: StateFile = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let open = |Moment { name, artifact }: Moment| {
            let opened = ArtifactFile::open(&folder.join(artifact.to_string()), &artifact);
            opened.map(|moment| (name, moment))
        };
        file.moments.into_iter().map(open).collect()
    }

    /// Starts new moments called `names`, each of the model's layout.
    ///
    /// # Errors
    /// The disk.
    pub fn write(
        &self,
        study: StudyDigest,
        layout: &TensorLayout,
        names: &[&'static str],
    ) -> Result<ServerStateWriter, StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = self.study_folder(&study).join(format!("{UNFINISHED}{number}"));
        let artifacts = Artifacts::open(&folder, self.health.clone())?;
        let mut writer =
            ServerStateWriter { states: self.clone(), study, folder, moments: Vec::new(), finished: false };
        for name in names {
            writer.moments.push((*name, artifacts.write(layout.clone())?));
        }
        Ok(writer)
    }

    /// Removes the states that rounds before `round` made.
    ///
    /// # Errors
    /// The disk.
    pub fn forget_before(&self, study: &StudyDigest, round: RoundId) -> Result<(), StoreError> {
        for (folder, name) in named_folders(&self.study_folder(study))? {
            let made_by = name.split_once('-').and_then(|(made_by, _)| made_by.parse::<u32>().ok());
            if made_by.is_some_and(|made_by| made_by < round.0) {
                fs::remove_dir_all(&folder).map_err(StoreError::file(&folder))?;
            }
        }
        Ok(())
    }

    /// The files of all states that are whole.
    ///
    /// # Errors
    /// The disk.
    pub fn files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut files = Vec::new();
        let states = self.entries()?.into_iter().filter(|entry| matches!(entry.kind, Kind::Moments(_)));
        for state in states.map(|entry| entry.path) {
            files.push(state.join(STATE));
            for moment in folders(&state)? {
                let entries = match fs::read_dir(&moment) {
                    // Two rounds have ended while we looked.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    entries => entries.map_err(StoreError::file(&moment))?,
                };
                for entry in entries {
                    files.push(entry.map_err(StoreError::file(&moment))?.path());
                }
            }
        }
        Ok(files)
    }

    fn study_folder(&self, study: &StudyDigest) -> PathBuf {
        self.dir.join(study.to_string())
    }

    /// Where the state lies, or would.
    pub fn folder(&self, study: &StudyDigest, round: RoundId, model: &ModelHash) -> PathBuf {
        self.study_folder(study).join(format!("{round}-{model}"))
    }
}

impl ServerState {
    /// Reads chunk `index` of each moment into `chunks`, compared with its manifest.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when there is no such chunk or its bytes changed; the disk.
    pub fn read_chunk(&self, index: usize, chunks: &mut [Vec<u8>]) -> Result<(), StoreError> {
        for (moment, chunk) in self.moments.iter().zip(chunks) {
            *chunk = moment.read_chunk(index)?;
        }
        Ok(())
    }
}

impl ServerStateWriter {
    /// Appends the next chunk of each moment.
    ///
    /// # Errors
    /// As [`ArtifactWriter::push_chunk`].
    pub fn push_chunk(&mut self, chunks: &[Vec<u8>]) -> Result<(), StoreError> {
        for ((_, moment), chunk) in self.moments.iter_mut().zip(chunks) {
            moment.push_chunk(chunk)?;
        }
        Ok(())
    }

    /// Makes the moments durable beside the model that `round` made, in the place of what an earlier try left there.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when chunks are missing; the disk.
    pub fn finish(mut self, round: RoundId, model: &ModelHash) -> Result<(), StoreError> {
        let mut file = StateFile { moments: Vec::new() };
        for (name, moment) in std::mem::take(&mut self.moments) {
            file.moments.push(Moment { name: name.to_owned(), artifact: moment.finish()? });
        }
        let json = serde_json::to_vec(&file).map_err(|e| StoreError::corrupt("server state", e))?;
        let to = self.states.folder(&self.study, round, model);
        if to.is_dir() {
            self.replace(&to, &file, &json)?;
        } else {
            let path = self.folder.join(STATE);
            files::write_atomic(&path, &json, Access::Private).map_err(StoreError::file(&path))?;
            fs::rename(&self.folder, &to).map_err(StoreError::file(&to))?;
            self.finished = true;
        }
        // Also of one that was there: its name may be of a try that failed at this.
        for folder in [files::parent(&to), self.states.dir.as_path()] {
            files::sync_dir(folder).map_err(StoreError::file(folder))?;
        }
        Ok(())
    }

    /// Makes the state in `to` the new one, which `json` describes.
    fn replace(&self, to: &Path, file: &StateFile, json: &[u8]) -> Result<(), StoreError> {
        for Moment { artifact, .. } in &file.moments {
            self.bring(artifact, &to.join(artifact.to_string()))?;
        }
        files::sync_dir(to).map_err(StoreError::file(to))?;
        let path = to.join(STATE);
        files::write_atomic(&path, json, Access::Private).map_err(StoreError::file(&path))?;
        for (folder, name) in named_folders(to)? {
            if !file.moments.iter().any(|moment| moment.artifact.to_string() == name) {
                fs::remove_dir_all(&folder).map_err(StoreError::file(&folder))?;
            }
        }
        Ok(())
    }

    /// Lays a moment where its state is. One that is there stays, if it is whole.
    fn bring(&self, artifact: &ArtifactHash, to: &Path) -> Result<(), StoreError> {
        let from = self.folder.join(artifact.to_string());
        // Two moments of the same numbers are one artifact: the second finds it brought.
        if ArtifactFile::open(to, artifact).and_then(|moment| moment.verify(|_| {})).is_ok() {
            return Ok(());
        }
        if to.exists() {
            let moved = scrub::quarantine(files::parent(&self.states.dir), to, clock::now())?;
            tracing::warn!(%artifact, moved = %moved.display(), "a corrupt moment is replaced");
        }
        fs::rename(&from, to).map_err(StoreError::file(to))
    }
}

impl Drop for ServerStateWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the next start removes it too.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The folders in `dir`; none when it is absent.
fn folders(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    Ok(named_folders(dir)?.into_iter().map(|(folder, _)| folder).collect())
}

/// The folders in `dir` with their names; none when it is absent.
fn named_folders(dir: &Path) -> Result<Vec<(PathBuf, String)>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(StoreError::file(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::file(dir))?;
        if entry.path().is_dir() {
            found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use common::artifact::{ArtifactManifest, Dtype, TensorSpec};
    use common::ids::Digest;

    use super::*;

    fn layout() -> TensorLayout {
        TensorLayout::new(vec![TensorSpec { name: "w".to_owned(), dtype: Dtype::F32, shape: vec![2] }])
            .unwrap()
    }

    fn model(fill: u8) -> ModelHash {
        ArtifactManifest::of(layout(), &[fill; 8]).hash()
    }

    fn write(states: &ServerStates, round: u32, model: &ModelHash, fill: u8) {
        let study = StudyDigest(Digest::of(b"study"));
        let mut writer = states.write(study, &layout(), &["m", "v"]).unwrap();
        writer.push_chunk(&[vec![fill; 8], vec![fill + 1; 8]]).unwrap();
        writer.finish(RoundId(round), model).unwrap();
    }

    fn read(
        states: &ServerStates,
        round: u32,
        model: &ModelHash,
        names: &[&str],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let study = StudyDigest(Digest::of(b"study"));
        let state = states.read(&study, RoundId(round), model, names)?;
        let mut chunks = vec![Vec::new(); names.len()];
        state.read_chunk(0, &mut chunks)?;
        Ok(chunks)
    }

    #[test]
    fn moments_read_back_beside_the_round_and_model_that_they_go_with() {
        let dir = tempfile::tempdir().unwrap();
        let states = ServerStates::open(dir.path(), Health::new()).unwrap();
        // Two rounds with the same model: their moments are kept apart.
        write(&states, 1, &model(0), 10);
        write(&states, 2, &model(0), 20);
        write(&states, 2, &model(0), 30);
        let states = ServerStates::open(dir.path(), Health::new()).unwrap();
        assert_eq!(read(&states, 1, &model(0), &["m", "v"]).unwrap(), [[10; 8], [11; 8]]);
        assert_eq!(read(&states, 2, &model(0), &["m", "v"]).unwrap(), [[30; 8], [31; 8]], "the later try");
    }

    #[test]
    fn a_missing_or_changed_state_is_said_and_never_zero() {
        let dir = tempfile::tempdir().unwrap();
        let states = ServerStates::open(dir.path(), Health::new()).unwrap();
        write(&states, 1, &model(0), 10);
        let words = |round, model: &ModelHash, names: &[&str]| {
            let error = read(&states, round, model, names).unwrap_err();
            assert_eq!(error.code(), "store-corrupt");
            error.to_string()
        };
        assert!(words(2, &model(0), &["m", "v"]).contains("that of round 2"));
        assert!(words(1, &model(1), &["m", "v"]).contains("is missing"));
        assert!(words(1, &model(0), &["velocity"]).contains("its moments are not velocity"));

        let folder = states.folder(&StudyDigest(Digest::of(b"study")), RoundId(1), &model(0));
        let moment = ArtifactManifest::of(layout(), &[10; 8]).hash();
        fs::write(folder.join(moment.to_string()).join("data"), [9u8; 8]).unwrap();
        assert!(words(1, &model(0), &["m", "v"]).contains("has changed"));
        fs::write(folder.join(STATE), b"{").unwrap();
        assert!(words(1, &model(0), &["m", "v"]).contains(STATE));
    }

    #[test]
    fn a_state_is_replaced_so_that_a_crash_leaves_the_old_or_the_new() {
        let dir = tempfile::tempdir().unwrap();
        let states = ServerStates::open(&dir.path().join("server-state"), Health::new()).unwrap();
        write(&states, 1, &model(0), 10);
        let folder = states.folder(&StudyDigest(Digest::of(b"study")), RoundId(1), &model(0));
        // What cannot be written stops the new one in the middle: the old one is there as it was.
        let state = fs::read(folder.join(STATE)).unwrap();
        fs::remove_file(folder.join(STATE)).unwrap();
        fs::create_dir(folder.join(STATE)).unwrap();
        let study = StudyDigest(Digest::of(b"study"));
        let mut writer = states.write(study, &layout(), &["m", "v"]).unwrap();
        writer.push_chunk(&[vec![20; 8], vec![21; 8]]).unwrap();
        assert!(writer.finish(RoundId(1), &model(0)).is_err());
        fs::remove_dir(folder.join(STATE)).unwrap();
        fs::write(folder.join(STATE), state).unwrap();
        let states = ServerStates::open(&states.dir, Health::new()).unwrap();
        assert_eq!(read(&states, 1, &model(0), &["m", "v"]).unwrap(), [[10; 8], [11; 8]]);

        // Half of it is there already, and half of that has changed.
        let moment = folder.join(ArtifactManifest::of(layout(), &[20; 8]).hash().to_string());
        fs::write(moment.join("data"), [9u8; 8]).unwrap();
        write(&states, 1, &model(0), 20);
        assert_eq!(read(&states, 1, &model(0), &["m", "v"]).unwrap(), [[20; 8], [21; 8]]);
        assert_eq!(named_folders(&folder).unwrap().len(), 2, "the old moments are gone");
        assert_eq!(fs::read_dir(dir.path().join(scrub::QUARANTINE)).unwrap().count(), 1);
    }

    #[test]
    fn states_of_rounds_long_past_are_removed_and_so_are_unfinished_ones() {
        let dir = tempfile::tempdir().unwrap();
        let states = ServerStates::open(dir.path(), Health::new()).unwrap();
        let study = StudyDigest(Digest::of(b"study"));
        states.forget_before(&study, RoundId(5)).unwrap();
        for round in 8..=10 {
            write(&states, round, &model(0), 0);
        }
        std::mem::forget(states.write(study, &layout(), &["m"]).unwrap()); // as `kill -9` would
        drop(states.write(study, &layout(), &["m"]).unwrap());
        let count = || named_folders(&states.study_folder(&study)).unwrap().len();
        assert_eq!(count(), 4);
        ServerStates::open(dir.path(), Health::new()).unwrap();
        assert_eq!(count(), 3);
        states.forget_before(&study, RoundId(9)).unwrap();
        assert_eq!(count(), 2);
        assert!(read(&states, 9, &model(0), &["m", "v"]).is_ok());
    }
}
