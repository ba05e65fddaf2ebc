//! Studies that this site was offered, and what was decided about each.
//!
//! The agent writes the documents; `site-agent study approve` writes decisions, also while the agent runs, which looks
//! for them. A decision is about a digest: any change of the study asks again.

use std::path::{Path, PathBuf};

use common::config::Diagnostics;
use common::ids::StudyDigest;
use common::study::{Study, StudyDocument};
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use crate::egress::StudyTerms;

/// The studies below one folder.
#[derive(Clone, Debug)]
pub struct StudyFolder(PathBuf);

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
    /// No study, or several, start with these digits.
    #[error("{count} studies here start with `{prefix}`")]
    Ambiguous {
        /// As typed.
        prefix: String,
        /// How many.
        count: usize,
    },
}

impl StudyFolder {
    /// Opens the folder and makes it if need be.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        files::make_private_folder(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
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

    /// The document of a study, if it is here.
    ///
    /// # Errors
    /// [`StudyError`].
    pub fn document(&self, study: StudyDigest) -> Result<Option<StudyDocument>, StudyError> {
        match files::read(&self.document_path(study)) {
            Ok(bytes) => parse(study, bytes).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Digests of all studies here.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn list(&self) -> Result<Vec<StudyDigest>, FileError> {
        let listed = std::fs::read_dir(&self.0).map_err(|source| FileError::new("read", &self.0, source))?;
        let names = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut digests: Vec<_> =
            names.filter_map(|name| name.strip_suffix(".study.json")?.parse().ok()).collect();
        digests.sort();
        Ok(digests)
    }

    /// The one study whose digest starts with `prefix`.
    ///
    /// # Errors
    /// [`StudyError::Ambiguous`] unless there is exactly one.
    pub fn find(&self, prefix: &str) -> Result<StudyDigest, StudyError> {
        let matching = |digest: &StudyDigest| digest.to_string().starts_with(&prefix.to_lowercase());
        let found: Vec<_> = self.list()?.into_iter().filter(matching).collect();
        match found.as_slice() {
            [one] => Ok(*one),
            _ => Err(StudyError::Ambiguous { prefix: prefix.to_owned(), count: found.len() }),
        }
    }

    /// What was decided about a study, if anything was.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn decision(&self, study: StudyDigest) -> Result<Option<Decision>, FileError> {
        files::read_json(&self.decision_path(study))
    }

    /// Writes a decision down.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn decide(&self, study: StudyDigest, approved: bool, by: &str) -> Result<(), FileError> {
        let decision = Decision { approved, by: by.to_owned(), at: jiff::Timestamp::now() };
        files::write_json(&self.decision_path(study), &decision)
    }

    fn document_path(&self, study: StudyDigest) -> PathBuf {
        self.0.join(format!("{study}.study.json"))
    }

    fn decision_path(&self, study: StudyDigest) -> PathBuf {
        self.0.join(format!("{study}.decision.json"))
    }
}

fn parse(expected: StudyDigest, bytes: Vec<u8>) -> Result<StudyDocument, StudyError> {
    let document = StudyDocument::parse(bytes)?;
    if document.digest() != expected {
        return Err(StudyError::Digest { expected, got: document.digest() });
    }
    Ok(document)
}

/// What the policy's rules look at.
pub fn terms_of(document: &StudyDocument) -> StudyTerms {
    let Study { rounds, training, quorum, aggregation, .. } = document.study();
    StudyTerms {
        digest: document.digest(),
        rounds: *rounds,
        steps_per_round: training.steps_per_round,
        quorum_sites: quorum.sites,
        norm_bounded: aggregation.max_update_norm.is_some(),
    }
}
