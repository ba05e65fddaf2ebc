//! Studies that this site was offered, and what was decided about each.
//!
//! The agent writes the documents; `site-agent study approve` writes decisions, also while the agent runs, which looks
//! for them. A decision is about a digest: any change of the study asks again.
//!
//! What the disk has damaged counts as absent, and the agent sets it aside: a document is fetched again, a decision made anew. Who only
//! looks changes nothing.
//!
//! Artifacts have the names of their content. Which of them is the newest model of a study is noted here, as nothing in a
//! model says whose it is: studies of one architecture have tensors of the same names and shapes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::config::Diagnostics;
use common::ids::{ArtifactHash, ModelHash, RoundId, StudyDigest};
use common::study::{Study, StudyDocument};
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use super::owner;
use crate::egress::StudyTerms;

const DOCUMENT: &str = ".study.json";
const MODEL: &str = ".model.json";

/// Longer than an instant of any disk's clock.
const SETTLES_IN: Duration = Duration::from_secs(2);

/// How the name of a file ends that the disk damaged, and that nobody reads.
const SET_ASIDE: &str = "damaged";

/// The studies below one folder.
#[derive(Clone, Debug)]
pub struct StudyFolder {
    folder: PathBuf,
    /// Whether what is damaged is set aside.
    mends: bool,
}

/// What was decided about a study.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Whether this site takes part.
    pub approved: bool,
    /// `operator` or `policy`.
    pub by: String,
    /// When.
    pub at: jiff::Timestamp,
}

/// The newest model of a study that this site began a round with, was to score, or fetched as the last, and what it is of no use
/// without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewestModel {
    /// The round that made it; 0 for the initial model.
    pub round: RoundId,
    /// The model.
    pub model: ModelHash,
    /// The study's class embeddings.
    pub embeddings: ArtifactHash,
}

/// Why a study cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// A document that is no study, or not the one of this digest.
    #[error("the study document")]
    Document(#[from] Diagnostics),
    /// A document under another's name.
    #[error("study {expected}: the document is of {got}")]
    Digest {
        /// What was asked for.
        expected: StudyDigest,
        /// What the document is.
        got: StudyDigest,
    },
    /// No study, or several, may be meant.
    #[error("{}", in_words(.wanted, *.count))]
    Ambiguous {
        /// As typed.
        wanted: String,
        /// How many.
        count: usize,
    },
}

impl StudyFolder {
    /// The folder as it is: nothing is made, and what is damaged stays where it is.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), mends: false }
    }

    /// The same for the agent, which sets aside what is damaged.
    pub(super) fn mending(self) -> Self {
        Self { mends: true, ..self }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Reads a document as it came, and keeps it.
    ///
    /// # Errors
    /// [`StudyError::Document`] or [`StudyError::Digest`] when it is not the study that it should be.
    pub fn store(&self, expected: StudyDigest, bytes: Vec<u8>) -> Result<StudyDocument, StudyError> {
        let document = parse(expected, bytes)?;
        files::write(&self.document_path(expected), document.bytes())?;
        Ok(document)
    }

    /// The document of a study, if it is here and whole.
    ///
    /// # Errors
    /// [`StudyError::File`].
    pub fn document(&self, study: StudyDigest) -> Result<Option<StudyDocument>, StudyError> {
        let path = self.document_path(study);
        let damage = match files::read(&path) {
            Ok(bytes) => match parse(study, bytes) {
                Ok(document) => return Ok(Some(document)),
                Err(damage) => anyhow::Error::from(damage),
            },
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_unreadable() => error.into(),
            Err(error) => return Err(error.into()),
        };
        let then = match self.set_aside(&path)? {
            Some(aside) => format!("it is set aside as {aside}, and fetched again"),
            None => "the agent fetches it again".to_owned(),
        };
        tracing::warn!("{} is no study document any more: {damage:#}; {then}", path.display());
        Ok(None)
    }

    /// Digests of all studies here.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn list(&self) -> Result<Vec<StudyDigest>, FileError> {
        self.with_a_file(DOCUMENT)
    }

    /// Digests of the studies that have a file whose name ends so.
    fn with_a_file(&self, ending: &str) -> Result<Vec<StudyDigest>, FileError> {
        let listed = files::list(&self.folder)?.into_iter();
        let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
        let mut digests: Vec<_> = names.filter_map(|name| name.strip_suffix(ending)?.parse().ok()).collect();
        digests.sort();
        Ok(digests)
    }

    /// The one study whose digest starts with `wanted`, or else the one of that name.
    ///
    /// # Errors
    /// [`StudyError::Ambiguous`] unless there is exactly one.
    pub fn find(&self, wanted: &str) -> Result<StudyDigest, StudyError> {
        let starts_so = |digest: &StudyDigest| digest.to_string().starts_with(&wanted.to_lowercase());
        let mut found: Vec<_> = self.list()?.into_iter().filter(starts_so).collect();
        if found.is_empty() {
            for digest in self.list()? {
                let is_named_so = self.document(digest)?.is_some_and(|study| study.study().name == wanted);
                found.extend(is_named_so.then_some(digest));
            }
        }
        match found.as_slice() {
            [one] => Ok(*one),
            _ => Err(StudyError::Ambiguous { wanted: wanted.to_owned(), count: found.len() }),
        }
    }

    /// What was decided about a study, if anything was and can be read.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn decision(&self, study: StudyDigest) -> Result<Option<Decision>, FileError> {
        let path = self.decision_path(study);
        self.usable(study, files::read_json(&path))
    }

    /// What was read of a decision. In a folder of others, what this user may not read is theirs.
    fn usable(
        &self,
        study: StudyDigest,
        read: Result<Option<Decision>, FileError>,
    ) -> Result<Option<Decision>, FileError> {
        match read {
            Err(error) if error.is_unreadable() || error.is_denied() && owner::is_own(&self.folder) => {
                let aside = self.set_aside(&self.decision_path(study))?;
                let aside = aside.map_or(String::new(), |aside| format!("; it is set aside as {aside}"));
                let (short, error, user) = (study.short(), anyhow::Error::from(error), owner::user());
                tracing::warn!(
                    "what was decided about study {short} is lost: {error:#}{aside}; decide again, as `{user}`: `site-agent study approve {short}`, or `refuse`"
                );
                Ok(None)
            }
            read => read,
        }
    }

    /// Whether a decision about a study was lost to the disk, and nobody decided since.
    pub fn is_decision_lost(&self, study: StudyDigest) -> bool {
        let path = self.decision_path(study);
        path.with_extension(SET_ASIDE).exists() && !path.exists()
    }

    /// When anything in the folder got its name last, as each decision does. `None` where that cannot be told, or is so recent that more
    /// may have followed in the same instant of the disk's clock.
    pub(super) fn settled_at(&self) -> Option<SystemTime> {
        let changed = std::fs::metadata(&self.folder).and_then(|folder| folder.modified()).ok()?;
        changed.elapsed().is_ok_and(|age| age >= SETTLES_IN).then_some(changed)
    }

    /// Writes a decision down.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn decide(&self, study: StudyDigest, approved: bool, by: &str) -> Result<Decision, FileError> {
        let decision = Decision { approved, by: by.to_owned(), at: jiff::Timestamp::now() };
        files::write_json(&self.decision_path(study), &decision)?;
        Ok(decision)
    }

    /// Notes that a model is one of a study, unless a newer one is noted: an evaluator is asked about old ones, too.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn note_model(&self, study: StudyDigest, newest: NewestModel) -> Result<(), FileError> {
        match self.newest_model(study)? {
            Some(known) if known == newest || known.round > newest.round => Ok(()),
            _ => files::write_json(&self.model_path(study), &newest),
        }
    }

    /// The newest model of a study, if one is noted and the note can be read; whether the model is still here, the artifacts say.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn newest_model(&self, study: StudyDigest) -> Result<Option<NewestModel>, FileError> {
        match files::read_json(&self.model_path(study)) {
            Err(error) if error.is_unreadable() => {
                tracing::warn!("{:#}; the next round notes it anew", anyhow::Error::from(error));
                Ok(None)
            }
            read => read,
        }
    }

    /// The newest model of each study, where one is noted.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn newest_models(&self) -> Result<Vec<NewestModel>, FileError> {
        let noted = self.with_a_file(MODEL)?.into_iter().map(|study| self.newest_model(study));
        noted.filter_map(Result::transpose).collect()
    }

    /// Notes that a study that is here is over, and with which model, or that it is not: for people.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn note_over(&self, study: StudyDigest, last: Option<ModelHash>) -> Result<(), FileError> {
        let path = self.over_path(study);
        let Some(last) = last else { return files::remove(&path) };
        if self.last_model(study) == Some(last) || !self.document_path(study).exists() {
            return Ok(());
        }
        files::write(&path, last.to_string().as_bytes())
    }

    /// Whether the coordinator said that a study is over: finished or aborted.
    pub fn is_over(&self, study: StudyDigest) -> bool {
        self.over_path(study).exists()
    }

    /// The last model of a study that is over, by the coordinator's word; agents of earlier versions did not note it.
    pub fn last_model(&self, study: StudyDigest) -> Option<ModelHash> {
        let noted = files::read(&self.over_path(study)).ok()?;
        std::str::from_utf8(&noted).ok()?.parse().ok()
    }

    /// Whether a model is the last of a study that is over; `None` while it goes on. Where the last was not noted, by the number of rounds.
    pub fn is_last(
        &self,
        study: &StudyDocument,
        NewestModel { round, model, .. }: NewestModel,
    ) -> Option<bool> {
        let by_number = || round.0 >= study.study().rounds;
        let is_last = || self.last_model(study.digest()).map_or_else(by_number, |last| last == model);
        self.is_over(study.digest()).then(is_last)
    }

    /// Puts a damaged file where nobody looks for it, in the place of an earlier one; says where. Who only looks leaves it.
    fn set_aside(&self, path: &Path) -> Result<Option<String>, FileError> {
        if !self.mends {
            return Ok(None);
        }
        let aside = path.with_extension(SET_ASIDE);
        files::rename(path, &aside)?;
        Ok(Some(aside.display().to_string()))
    }

    fn document_path(&self, study: StudyDigest) -> PathBuf {
        self.folder.join(format!("{study}{DOCUMENT}"))
    }

    fn model_path(&self, study: StudyDigest) -> PathBuf {
        self.folder.join(format!("{study}{MODEL}"))
    }

    fn over_path(&self, study: StudyDigest) -> PathBuf {
        self.folder.join(format!("{study}.over"))
    }

    fn decision_path(&self, study: StudyDigest) -> PathBuf {
        self.folder.join(format!("{study}.decision.json"))
    }
}

/// Why it is not plain which study is meant.
fn in_words(wanted: &str, count: usize) -> String {
    match (wanted, count) {
        ("", 0) => "no study is here".to_owned(),
        ("", count) => format!("{count} studies are here: one must be named"),
        (wanted, 0) => format!("no study here is called `{wanted}`, or has a digest that starts so"),
        (wanted, count) => {
            format!("{count} studies here are called `{wanted}`, or have digests that start so")
        }
    }
}

fn parse(expected: StudyDigest, bytes: Vec<u8>) -> Result<StudyDocument, StudyError> {
    let document = StudyDocument::parse(bytes)?;
    if document.digest() != expected {
        return Err(StudyError::Digest { expected, got: document.digest() });
    }
    Ok(document)
}

/// What the policy's rules look at, for a site that takes part as `role`.
pub fn terms_of(document: &StudyDocument, role: common::ids::Role) -> StudyTerms {
    let Study { rounds, training, quorum, aggregation, .. } = document.study();
    StudyTerms {
        digest: document.digest(),
        rounds: *rounds,
        steps_per_round: training.steps_per_round,
        quorum_sites: quorum.sites,
        norm_bounded: aggregation.max_update_norm.is_some(),
        trains: role == common::ids::Role::Trainer,
        settings: document.study().settings(),
    }
}

#[cfg(test)]
mod tests {
    use common::ids::Digest;
    use common::testing::example_study;

    use super::*;

    fn flip_a_byte(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x80;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_damaged_document_is_set_aside_and_can_be_stored_again() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path()).mending();
        let (study, bytes) = (example_study().digest(), example_study().bytes().to_vec());
        studies.store(study, bytes.clone()).unwrap();
        // The same length, and no JSON; then JSON, and another study.
        flip_a_byte(&studies.document_path(study));
        assert!(studies.document(study).unwrap().is_none());
        assert_eq!(studies.list().unwrap(), []);
        let other = common::testing::example_study_with(|draft| draft.name = "another".to_owned());
        std::fs::write(studies.document_path(study), other.bytes()).unwrap();
        assert!(studies.document(study).unwrap().is_none());
        assert_eq!(
            std::fs::read(folder.path().join(format!("{study}.study.damaged"))).unwrap(),
            other.bytes()
        );

        studies.store(study, bytes).unwrap();
        assert_eq!(studies.document(study).unwrap().unwrap().digest(), study);
    }

    #[test]
    fn the_newest_model_of_a_study_is_that_of_its_highest_round_in_whatever_order_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path());
        let digest = |name: &str| Digest::of(name.as_bytes());
        let [study, other] = ["study", "other"].map(|name| StudyDigest(digest(name)));
        let of = |round: u32, name: &str| NewestModel {
            round: RoundId(round),
            model: ArtifactHash(digest(name)),
            embeddings: ArtifactHash(digest("embeddings")),
        };
        let note = |newest| {
            studies.note_model(study, newest).unwrap();
            studies.newest_model(study).unwrap()
        };
        assert_eq!(studies.newest_model(study).unwrap(), None);
        // An evaluator that was away scores the newest first. The last: after its coordinator was restored.
        let newest = of(40, "forty");
        assert_eq!([newest, of(35, "older"), newest].map(note), [Some(newest); 3]);
        assert_eq!(note(of(40, "forty again")), Some(of(40, "forty again")));
        assert_eq!(studies.newest_model(other).unwrap(), None);
        studies.note_model(other, of(2, "two")).unwrap();
        let all = studies.newest_models().unwrap();
        let both = [of(40, "forty again"), of(2, "two")];
        assert!(all.len() == 2 && both.iter().all(|noted| all.contains(noted)), "{all:?}");
        assert_eq!(studies.list().unwrap(), [], "a note is no document");

        std::fs::write(studies.model_path(study), "{").unwrap();
        assert_eq!(studies.newest_models().unwrap(), [of(2, "two")]);
        assert_eq!(note(of(3, "three")), Some(of(3, "three")), "no note is older than any");
    }

    #[test]
    fn a_damaged_decision_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path()).mending();
        let study = example_study().digest();
        studies.decide(study, true, "operator").unwrap();
        flip_a_byte(&studies.decision_path(study));
        assert!(!studies.is_decision_lost(study), "nobody looked");
        assert_eq!(studies.decision(study).unwrap(), None);
        assert!(studies.is_decision_lost(study));
        studies.decide(study, false, "operator").unwrap();
        assert!(!studies.is_decision_lost(study));
        assert!(!studies.decision(study).unwrap().unwrap().approved);
    }

    #[test]
    fn who_only_looks_leaves_what_is_damaged_to_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path());
        let (study, bytes) = (example_study().digest(), example_study().bytes().to_vec());
        studies.store(study, bytes).unwrap();
        studies.decide(study, true, "operator").unwrap();
        let paths = [studies.document_path(study), studies.decision_path(study)];
        paths.iter().for_each(|path| flip_a_byte(path));
        let names = || {
            let listed = std::fs::read_dir(folder.path()).unwrap();
            listed.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
        };
        let before = names();
        assert!(studies.document(study).unwrap().is_none() && studies.decision(study).unwrap().is_none());
        assert_eq!(names(), before);
        let agents = studies.mending();
        assert!(agents.document(study).unwrap().is_none() && agents.decision(study).unwrap().is_none());
        assert!(!paths.iter().any(|path| path.exists()), "they are set aside");
    }

    #[test]
    fn a_study_is_found_by_its_first_digits_or_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path());
        let not_found = |wanted: &str| studies.find(wanted).unwrap_err().to_string();
        assert_eq!(not_found(""), "no study is here");
        let [first, again, other] = [("liver", 1), ("liver", 2), ("spleen", 1)].map(|(name, seed)| {
            common::testing::example_study_with(|draft| (draft.name, draft.seed) = (name.to_owned(), seed))
        });
        studies.store(first.digest(), first.bytes().to_vec()).unwrap();
        assert_eq!(studies.find("").unwrap(), first.digest());
        assert_eq!(studies.find("liver").unwrap(), first.digest());
        for study in [&again, &other] {
            studies.store(study.digest(), study.bytes().to_vec()).unwrap();
        }
        assert_eq!(studies.find("spleen").unwrap(), other.digest());
        assert_eq!(studies.find(&again.digest().to_string()[..16]).unwrap(), again.digest());
        assert_eq!(not_found(""), "3 studies are here: one must be named");
        assert!(not_found("liver").starts_with("2 studies here are called `liver`"));
        assert!(not_found("splean").starts_with("no study here is called `splean`"));
    }

    #[test]
    fn a_decision_that_another_user_left_stops_nothing_and_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path()).mending();
        let study = example_study().digest();
        studies.decide(study, true, "operator").unwrap();
        let denied = std::io::ErrorKind::PermissionDenied.into();
        let denied = FileError::new("read", &studies.decision_path(study), denied);
        assert_eq!(studies.usable(study, Err(denied)).unwrap(), None);
        assert!(studies.is_decision_lost(study), "the policy does not decide in a person's place");
        assert_eq!(studies.decision(study).unwrap(), None, "and is out of the way");
    }
}
