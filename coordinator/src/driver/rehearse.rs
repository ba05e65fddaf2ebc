//! Where a study stands by its journal, without a driver: for who looks at the store alone.

use std::collections::BTreeMap;

use common::evaluation::EvaluationMachine;
use common::ids::{RoundId, SiteId};
use common::round::{Counted, Status};
use common::study::StudyDocument;

use super::study_run::StudyRun;
use crate::store::{Store, StoreError, StoredStudy};

/// A study, rebuilt and not run.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    pub(crate) document: StudyDocument,
    pub(crate) status: Status,
    /// The updates that its open round counts, each with the round that it was trained for.
    pub(crate) counted: BTreeMap<SiteId, (RoundId, Counted)>,
    /// What its journal says of reports.
    pub(crate) evaluation: EvaluationMachine,
}

/// Rebuilds a study from what is stored of it.
///
/// # Errors
/// [`StoreError::Corrupt`] says which part of it does not fit; the database.
pub(crate) async fn rehearse(store: &Store, stored: StoredStudy) -> Result<Rehearsal, StoreError> {
    let run = StudyRun::restore(store, stored).await?;
    let (status, counted) = (run.rounds.status(), run.rounds.counted());
    Ok(Rehearsal { document: run.document, status, counted, evaluation: run.evaluation })
}
