//! The database: whether it is whole, and whether every study in it can be rebuilt from what is written there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::aggregate::Method;
use common::ids::{ArtifactHash, ModelHash, RoundId, SiteId, StudyDigest};
use common::report::EvaluationReport;
use common::signed::SignedDocument;
use common::study::StudyDocument;

use super::files::{corrupt, move_away};
use super::moments::Needed;
use super::{Examination, Level, signatures};
use crate::driver::{Rehearsal, rehearse};
use crate::files;
use crate::store::{
    MomentsName, RoundRecord, Store, StoreError, StoredStudy, UpdateName, causes, name_failure, pause_name,
};

const RESTORE: &str =
    "restore the state folder: `coordinator restore BACKUP` into an empty one, beside this one";

const UNREADABLE: &str = "the other studies go on without it. A program of the version that wrote it may read it; otherwise restore the \
     state folder: `coordinator restore BACKUP` into an empty one, beside this one";

/// What the records say that must be among the files.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) studies: Vec<KnownStudy>,
    pub(super) artifacts: BTreeMap<ArtifactHash, Use>,
    /// The updates that open rounds count.
    pub(super) counted: BTreeSet<UpdateName>,
    /// The moments that rounds to come start from.
    pub(super) moments: BTreeMap<MomentsName, Needed>,
    /// Rounds that have ended.
    pub(super) ended: BTreeSet<(StudyDigest, RoundId)>,
}

/// A study as far as files go.
#[derive(Debug)]
pub(super) struct KnownStudy {
    pub(super) model: ModelHash,
    pub(super) leaves_out: Vec<SiteId>,
    /// Whether another round is to come.
    pub(super) goes_on: bool,
}

/// What an artifact is for; of several uses, the one by which it is most easily had again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Initial { study: String },
    Embeddings { study: String },
    Current { study: String, round: RoundId },
    Past { study: String, round: RoundId },
}

impl Use {
    /// What it is, in words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Initial { study } => format!("the initial model of `{study}`"),
            Self::Embeddings { study } => format!("the class embeddings of `{study}`"),
            Self::Current { study, round } => format!("the current model of `{study}`, of round {round}"),
            Self::Past { study, round } => format!("the model of `{study}` of round {round}"),
        }
    }

    /// How it is had again once it is gone.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Initial { .. } | Self::Embeddings { .. } => {
                "give the same file again: `coordinator study add` with the same study, model and embeddings puts it back"
            }
            Self::Current { .. } => {
                "the study cannot go on without it, and the updates that it was made of are gone since it was durable: \
                 a running coordinator asks the sites for it whose policy lets models leave, and goes on by itself once one \
                 returned it; else take a copy from a site (the two files of this name in its state/artifacts, .data and .json) or \
                 a backup (the folder of this name in its state/artifacts), and `coordinator artifact add COPY`"
            }
            Self::Past { .. } => {
                "the study goes on; for its scores, take a copy from a site (the two files of this name in its \
                 state/artifacts, .data and .json) or a backup (the folder of this name), and `coordinator artifact add COPY`"
            }
        }
    }
}

/// Says that the database, or a folder beside it, cannot be read.
pub(super) fn unreadable(database: &Path, error: &StoreError, examination: &mut Examination<'_>) {
    const SEE_TO_IT: &str = "see to the disk, and to who may read it, then run the doctor again";
    let code = name_failure(files::parent(database), error);
    match (pause_name(code), error) {
        (Some(name), _) => {
            let words = format!("cannot be opened, {name}: {}", causes(error));
            examination.find(Level::Bad, database, words, "see to the disk first, then run the doctor again");
        }
        (None, StoreError::File { path, source }) => {
            examination.find(Level::Bad, path, format!("{source} ({code})"), SEE_TO_IT);
        }
        // It may be whole: a restored one would be without all that came since the backup.
        (None, error) if error.is_out_of_reach() => {
            examination.find(Level::Bad, database, format!("{} ({code})", causes(error)), SEE_TO_IT);
        }
        (None, _) => examination.find(Level::Bad, database, format!("{} ({code})", causes(error)), RESTORE),
    }
}

/// Looks at the database as a whole.
///
/// # Errors
/// The database.
pub(super) async fn database(store: &Store, examination: &mut Examination<'_>) -> Result<(), StoreError> {
    let path = store.database();
    let problems = store.integrity().await?;
    for problem in &problems {
        examination.find(Level::Bad, &path, problem.clone(), RESTORE);
    }
    if problems.is_empty() {
        examination.good(&path, "SQLite finds it whole");
    }
    mark(store, examination).await;
    let (found, newest) = store.schema().await?;
    if found == newest {
        examination.good(&path, format!("schema version {found}"));
    } else if found < newest {
        let words = format!("schema version {found}; the next start brings it to {newest}, and keeps a copy");
        examination.good(&path, words);
    } else {
        let words = format!("schema version {found}; this program knows up to {newest}");
        examination.find(Level::Bad, &path, words, "install the newer program again");
    }
    Ok(())
}

/// Looks whether the database is behind its mark. A mark that is damaged says nothing of it.
async fn mark(store: &Store, examination: &mut Examination<'_>) {
    let marks = match store.marks() {
        Ok(marks) => marks,
        Err(error) => {
            let path = store.mark_file();
            let (level, words) = match move_away(store, &path, &error, examination) {
                None => (Level::Warn, corrupt(&error, None)),
                moved => (Level::Repaired, corrupt(&error, moved)),
            };
            let remedy = "nothing: nothing is lost, and when the next round is committed another is written";
            return examination.find(level, &path, words, remedy);
        }
    };
    let path = store.database();
    match store.check_marks(&marks).await {
        Ok(()) => examination.good(&path, "every journal has come as far as it ever had"),
        Err(error) => examination.find(Level::Bad, &path, causes(&error), RESTORE),
    }
}

/// Rebuilds every study.
///
/// # Errors
/// The database.
pub(super) async fn studies(store: &Store, examination: &mut Examination<'_>) -> Result<Known, StoreError> {
    let mut known = Known::default();
    for stored in store.studies().await? {
        let name = format!("study `{}` ({})", stored.name, stored.digest.short());
        match rebuilt(store, &stored).await {
            Ok((study, rounds)) => {
                let phase = study.status.phase;
                examination
                    .good(&name, format!("its journal replays: {phase}, round {}", study.status.round));
                signatures::examine(store, &study, &name, examination).await?;
                known.add(&stored, &study, rounds);
            }
            Err(error) => examination.find(Level::Bad, &name, causes(&error), UNREADABLE),
        }
    }
    Ok(known)
}

async fn rebuilt(store: &Store, stored: &StoredStudy) -> Result<(Rehearsal, Vec<RoundRecord>), StoreError> {
    let document =
        StudyDocument::parse(stored.document.clone()).map_err(|e| StoreError::corrupt("study", e))?;
    if document.digest() != stored.digest {
        return Err(StoreError::corrupt("study", "its document has another digest than its name"));
    }
    for report in store.reports(&stored.digest).await? {
        let read = EvaluationReport::from_bytes(&report.document);
        read.map_err(|e| StoreError::corrupt("report", format!("{}: {e}", report.site)))?;
    }
    Ok((rehearse(store, stored.clone()).await?, store.rounds(&stored.digest).await?))
}

impl Known {
    pub(super) fn add(&mut self, stored: &StoredStudy, study: &Rehearsal, rounds: Vec<RoundRecord>) {
        let (settings, status) = (study.document.study(), &study.status);
        let name = || stored.name.clone();
        self.needs(settings.initial_model, Use::Initial { study: name() });
        self.needs(settings.embeddings.artifact, Use::Embeddings { study: name() });
        self.needs(status.model, Use::Current { study: name(), round: status.model_round });
        for record in rounds {
            if let Some(model) = record.model {
                self.needs(model, Use::Past { study: name(), round: record.round });
            }
            if record.closed_at.is_some() {
                self.ended.insert((stored.digest, record.round));
            }
        }
        for (site, (round, counted)) in &study.counted {
            let (round, site, update) = (*round, site.clone(), counted.update);
            self.counted.insert(UpdateName { study: stored.digest, round, site, update });
        }
        let goes_on = !matches!(status.phase, "finished" | "aborted");
        let names = Method::of(&settings.aggregation).rule.moments();
        // The first round starts from zeros; after the last there is none.
        if goes_on && !names.is_empty() && (1..status.rounds).contains(&status.model_round.0) {
            let (study, round, model) = (stored.digest, status.model_round, status.model);
            self.moments.insert(MomentsName { study, round, model }, Needed { study: name(), names });
        }
        self.studies.push(KnownStudy {
            model: status.model,
            leaves_out: settings.participants.leave_out.clone(),
            goes_on,
        });
    }

    fn needs(&mut self, artifact: ArtifactHash, what: Use) {
        self.artifacts.entry(artifact).or_insert(what);
    }
}
