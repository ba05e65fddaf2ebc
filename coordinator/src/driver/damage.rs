//! Published artifacts that the disk has changed or lost: the operator is told once, and `coordinator status` says it until one is
//! served whole again, or back.
//!
//! The updates that a model was made of are removed when it is durable. A site that holds the model may return it (`asking`); an
//! initial model and embeddings come back by their file too, any of them by a copy (`coordinator artifact add`), as the doctor says of
//! each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::ids::ArtifactHash;
use common::round::{self, Fault, PauseReason};

use super::Driver;
use super::asking::Asking;
use super::beside::{Outcome, Work};
use super::lost::Look;
use super::operate::Failure;
use super::study_run::{Happening, StudyRun};
use crate::operator::Reply;
use crate::progress::Line;
use crate::store::{ArtifactFile, CORRUPT, Store, StoreError, causes};

/// Of a copy that cannot be opened.
const A_COPY: &str = "a site's copy is two files beside each other, HASH.data and HASH.json; a backup's is the folder HASH. The coordinator reads \
                      them as its own user: are they there, and may that user read them?";
/// Of a copy whose bytes are not those that were published.
const TAKE_ANOTHER: &str = "take the copy of another site, or of a backup; nothing was changed here";

/// An artifact that cannot be served.
#[derive(Debug)]
pub(super) struct Damage {
    /// In words.
    words: String,
    pub(super) asking: Asking,
}

/// What is wrong with an artifact that should be here, in words; nothing where that cannot be told now. Blocks.
pub(super) fn damage(store: &Store, artifact: &ArtifactHash, look: Look) -> Option<String> {
    let looked = match store.artifacts().read(artifact) {
        Ok(Some(file)) if look == Look::Whole => file.verify(|_| {}),
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(StoreError::corrupt("artifact", "it is gone")),
        Err(error) => Err(error),
    };
    looked.err().filter(StoreError::is_damage).map(|error| causes(&error))
}

/// What an artifact that sites may ask for is to a study.
pub(super) fn use_in(run: &StudyRun, artifact: &ArtifactHash) -> Option<&'static str> {
    let study = run.document.study();
    Some(match artifact {
        known if *known == study.initial_model => "the initial model",
        known if *known == study.embeddings.artifact => "the class embeddings",
        known if *known == run.rounds.status().model => "the current model",
        known if !run.evaluation.pending(known).is_empty() => "a model to be scored",
        _ => return None,
    })
}

impl Driver {
    /// Notes that an artifact cannot be served, and tells it, if it is news.
    pub(super) fn note_damage(&mut self, artifact: ArtifactHash, words: &str) {
        if self.damaged.contains_key(&artifact) {
            return;
        }
        let what = self.use_of(&artifact).unwrap_or_else(|| format!("artifact {}", artifact.short()));
        let detail = format!(
            "{what} is lost or corrupt, and sites that ask for it are refused: {words}; a site that may return it is asked for it, and \
             `coordinator doctor` says how else it comes back"
        );
        self.progress.say(&Line::Fault { code: CORRUPT.to_owned(), detail: detail.clone() });
        self.damaged.insert(artifact, Damage { words: detail, asking: Asking::default() });
    }

    /// Notes that it was served whole.
    pub(super) fn note_whole(&mut self, artifact: &ArtifactHash) {
        if self.damaged.remove(artifact).is_some() {
            self.progress.say(&Line::Recovered { code: CORRUPT.to_owned() });
        }
    }

    /// What fails, for the status: the store as a whole, or what is damaged in it.
    pub(super) fn fault(&self) -> Option<(&'static str, Option<String>)> {
        if let Some(trouble) = &self.trouble {
            return Some((trouble.code, self.trouble_in_words()));
        }
        let words: Vec<&str> = self.damaged.values().map(|damage| damage.words.as_str()).collect();
        (!words.is_empty()).then(|| (CORRUPT, Some(words.join("; "))))
    }

    /// Brings an artifact back from a copy, which need not be trusted: its bytes say what it is.
    pub(super) async fn add_artifact(&self, copy: PathBuf) -> Result<Work, Failure> {
        let (published, artifacts) = (self.published().await?, self.store.artifacts().clone());
        Ok(Box::new(move || -> Result<Outcome, Failure> {
            let shown = copy.display().to_string();
            let copy = ArtifactFile::open_copy(&copy).map_err(|error| match error {
                StoreError::Corrupt { reason, .. } => Failure::new(reason, TAKE_ANOTHER),
                error => Failure::new(causes(&error), A_COPY),
            })?;
            let artifact = copy.manifest().hash();
            let what = published.get(&artifact).cloned().ok_or_else(|| {
                Failure::new(
                    format!("{shown} is artifact {artifact}, which no study here has published"),
                    "`coordinator doctor` names what is missing: the last part of a path is its hash",
                )
            })?;
            artifacts.keep_copy(&copy).map_err(|error| match error {
                StoreError::Corrupt { reason, .. } => Failure::new(reason, TAKE_ANOTHER),
                error => Failure::from(error),
            })?;
            Ok(Outcome::Artifact { artifact, what })
        }))
    }

    /// Notes that an artifact was brought back, which is `what` to a study.
    pub(super) async fn artifact_is_back(&mut self, artifact: &ArtifactHash, what: &str) -> Reply {
        self.note_whole(artifact);
        self.go_on_with(artifact).await;
        let words = format!(
            "{what} is here, and every byte is as it was published; sites that were refused ask again by themselves, and \
             a study that paused for want of it goes on"
        );
        Reply::Done { words }
    }

    /// Takes up the studies that paused for want of a model that is here again.
    pub(super) async fn go_on_with(&mut self, model: &ArtifactHash) {
        let waits = |run: &StudyRun| {
            let status = run.rounds.status();
            status.model == *model && status.paused == Some(PauseReason::Aggregation(Fault::Storage))
        };
        let studies = self.studies.iter().filter(|(_, run)| waits(run)).map(|(study, _)| *study);
        for study in studies.collect::<Vec<_>>() {
            self.take(study, Happening::Round(round::Event::Resume)).await;
        }
    }

    /// All that studies have ever published, each with what it is, or was, to one.
    async fn published(&self) -> Result<BTreeMap<ArtifactHash, String>, StoreError> {
        let mut published = BTreeMap::new();
        for (digest, run) in &self.studies {
            let study = run.document.study();
            for record in self.store.rounds(digest).await? {
                if let Some(model) = record.model {
                    published
                        .insert(model, format!("the model of round {} of `{}`", record.round, study.name));
                }
            }
            let in_use = [study.initial_model, study.embeddings.artifact, run.rounds.status().model];
            published.extend(in_use.map(|artifact| (artifact, String::new())));
        }
        for (artifact, what) in &mut published {
            if let Some(in_use) = self.use_of(artifact) {
                *what = in_use;
            }
        }
        Ok(published)
    }

    /// What an artifact that sites may ask for is, and to which study.
    pub(super) fn use_of(&self, artifact: &ArtifactHash) -> Option<String> {
        let (run, what) = self.user_of(artifact)?;
        Some(format!("{what} of `{}`", run.document.study().name))
    }

    /// Says something of an artifact to the operator, as a turn of the study that needs it.
    pub(super) fn say_of(&self, artifact: &ArtifactHash, what: &str, words: &str) {
        let Some((run, is)) = self.user_of(artifact) else { return };
        let study = run.document.study().name.clone();
        self.progress.say(&Line::Study { study, what: what.to_owned(), detail: format!("{is} {words}") });
    }

    fn user_of(&self, artifact: &ArtifactHash) -> Option<(&StudyRun, &'static str)> {
        self.studies.values().find_map(|run| Some((run, use_in(run, artifact)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use common::ids::{ArtifactHash, Digest};
    use common::round::{self, Fault, PauseReason};
    use common::testing::artifact_of_zeros;
    use tokio::sync::oneshot;

    use super::damage;
    use crate::driver::Driver;
    use crate::driver::handle::Command;
    use crate::driver::lost::Look;
    use crate::driver::lost::tests::driver;
    use crate::driver::study_run::Happening;
    use crate::fixture::{Fixture, change_a_byte, site, write};
    use crate::operator::{Reply, Request};
    use crate::store::Store;

    async fn add(driver: &mut Driver, copy: &Path) -> Reply {
        driver.operate(Request::AddArtifact { copy: copy.to_owned() }).await
    }

    #[tokio::test]
    async fn a_corrupt_model_is_in_the_status_by_its_use_until_it_is_whole() {
        let fixture = Fixture::new().await;
        let mut driver = driver(&fixture, fixture.store().await).await;
        assert_eq!(driver.fault(), None);
        let model = fixture.study.study().initial_model;
        driver.note_damage(model, "chunk 3 of data has changed");
        let (code, words) = driver.fault().unwrap();
        let words = words.unwrap();
        assert_eq!(code, "store-corrupt");
        assert!(words.starts_with("the initial model of `"), "{words}");
        assert!(words.contains("chunk 3") && words.contains("coordinator doctor"), "{words}");
        driver.note_whole(&model);
        assert_eq!(driver.fault(), None);
    }

    #[tokio::test]
    async fn a_changed_byte_is_seen_by_looking_at_the_whole_and_a_loss_by_name() {
        let fixture = Fixture::new().await;
        let (store, model) = (fixture.store().await, fixture.study.study().initial_model);
        assert_eq!(damage(&store, &model, Look::Whole), None);
        change_a_byte(&store.artifacts().folder(&model));
        assert_eq!(damage(&store, &model, Look::Name), None, "of the right size");
        assert!(damage(&store, &model, Look::Whole).unwrap().contains("chunk 0 of"));
        fs::remove_dir_all(store.artifacts().folder(&model)).unwrap();
        assert!(damage(&store, &model, Look::Name).unwrap().contains("it is gone"));
    }

    #[tokio::test]
    async fn an_aggregation_tells_of_the_corrupt_model_that_it_begins_from_and_goes_on_once_it_is_back() {
        let fixture = Fixture::new().await;
        let store = fixture.store().await;
        let mut driver = driver(&fixture, store.clone()).await;
        let (study, model) = (fixture.digest(), fixture.study.study().initial_model);
        let manifest = store.artifacts().read(&model).unwrap().unwrap().manifest().clone();
        change_a_byte(&store.artifacts().folder(&model));
        driver.take(study, Happening::Round(round::Event::Restarted)).await;
        let paused = |driver: &Driver| driver.studies[&study].rounds.status().paused;
        while paused(&driver).is_none() {
            let command = driver.inbox.recv().await.unwrap();
            driver.obey(command).await;
        }
        assert_eq!(paused(&driver), Some(PauseReason::Aggregation(Fault::Storage)));
        assert_eq!(driver.damaged.keys().collect::<Vec<_>>(), [&model]);

        assert_eq!(write(&store, &manifest), model);
        driver.artifact_returned(&site(), &model).await;
        assert_eq!(paused(&driver), None);
        assert!(driver.damaged.is_empty());
    }

    #[tokio::test]
    async fn of_what_is_not_here_only_what_a_study_has_published_is_lost() {
        let fixture = Fixture::new().await;
        let mut driver = driver(&fixture, fixture.store().await).await;
        let model = fixture.study.study().initial_model;
        for (artifact, published) in [(model, true), (ArtifactHash(Digest::of(b"another")), false)] {
            let (reply, answer) = oneshot::channel();
            driver.obey(Command::IsPublished { artifact, reply }).await;
            assert_eq!(answer.await.unwrap(), published);
        }
    }

    #[tokio::test]
    async fn a_lost_model_comes_back_from_the_files_of_a_site_once_every_byte_is_right() {
        let fixture = Fixture::new().await;
        let store = fixture.store().await;
        let mut driver = driver(&fixture, store.clone()).await;
        let model = fixture.study.study().initial_model;
        let (folder, site) = (store.artifacts().folder(&model), tempfile::tempdir().unwrap());
        // As a site keeps it, under any name.
        for (ours, theirs) in [("manifest.json", "m.json"), ("data", "m.data")] {
            fs::copy(folder.join(ours), site.path().join(theirs)).unwrap();
        }
        let copy = site.path().join("m.data");
        let whole = fs::read(&copy).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        driver.note_damage(model, "it is gone");

        let mut changed = whole.clone();
        changed[0] ^= 1;
        for wrong in [changed.as_slice(), &whole[1..]] {
            fs::write(&copy, wrong).unwrap();
            let Reply::Failed { words, hint, .. } = add(&mut driver, &copy).await else {
                panic!("it is another")
            };
            assert!(words.contains("m.data"), "{words}");
            assert!(hint.unwrap().contains("another site"));
        }
        assert!(!folder.exists() && driver.fault().is_some(), "nothing of it is kept");

        fs::write(&copy, &whole).unwrap();
        let Reply::Done { words } = add(&mut driver, &copy).await else { panic!("it is the model") };
        assert!(words.starts_with("the initial model of `"), "{words}");
        assert_eq!(fs::read(folder.join("data")).unwrap(), whole);
        assert_eq!(driver.fault(), None);
    }

    #[tokio::test]
    async fn a_corrupt_model_gives_way_to_the_folder_of_a_backup_and_a_strange_one_is_refused() {
        let fixture = Fixture::new().await;
        let store = fixture.store().await;
        let mut driver = driver(&fixture, store.clone()).await;
        let model = fixture.study.study().initial_model;
        let (folder, backup) = (store.artifacts().folder(&model), tempfile::tempdir().unwrap());
        for name in ["manifest.json", "data"] {
            fs::copy(folder.join(name), backup.path().join(name)).unwrap();
        }
        change_a_byte(&folder);
        assert!(matches!(add(&mut driver, backup.path()).await, Reply::Done { .. }));
        store.artifacts().read(&model).unwrap().unwrap().verify(|_| {}).unwrap();

        let other = Store::create(&backup.path().join("other")).await.unwrap();
        let strange = write(&other, &artifact_of_zeros(&[("a", &[2])]));
        let folder = other.artifacts().folder(&strange);
        let Reply::Failed { words, .. } = add(&mut driver, &folder).await else { panic!("it is strange") };
        assert!(words.contains("no study here has published"), "{words}");
        assert!(!store.artifacts().contains(&strange));
        let absent = add(&mut driver, &backup.path().join("no-such-copy")).await;
        assert!(matches!(absent, Reply::Failed { .. }), "{absent:?}");
    }
}
