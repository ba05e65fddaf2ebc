//! The last model of a study that is over. No round begins with it, so a site that trained in the study fetches it for its own people,
//! for `site-agent predict` and its like.
//!
//! The machine is done with the study by then, and nothing of this is remembered over a restart: at each connection the coordinator says
//! again which studies are over and with which model. What is here of one is not fetched anew.

use std::collections::BTreeMap;

use common::ids::{ArtifactHash, ModelHash, Role, RoundId, StudyDigest};
use common::participant::{Action, Event};
use common::wire::Notice;

use super::driver::Agent;
use super::files::FileError;
use super::studies::NewestModel;
use super::waiting::{Came, Wait};

/// Last models that this site lacks.
#[derive(Debug, Default)]
pub(super) struct LastModels {
    /// The round that closed last, and its model: the notice that a study is over names no round, and follows that of its last one.
    closed: Option<(StudyDigest, RoundId, ModelHash)>,
    /// What is to be noted of each study once its last model is here.
    wanted: BTreeMap<StudyDigest, NewestModel>,
}

impl LastModels {
    /// What a notice tells: a study that is over, its last model, and the round that made it.
    fn hear(&mut self, notice: &Notice) -> Option<(StudyDigest, RoundId, ModelHash)> {
        match *notice {
            Notice::RoundClosed { study, round, model: Some(model), .. } => {
                self.closed = Some((study, round, model));
                None
            }
            // A coordinator that was restored from a backup goes on with it.
            Notice::StudyOffered { study, .. } => {
                self.wanted.remove(&study);
                None
            }
            Notice::StudyFinished { study, model } => {
                self.closed.filter(|(of, _, made)| (*of, *made) == (study, model))
            }
            _ => None,
        }
    }

    /// Whether an artifact is one of them.
    pub(super) fn contains(&self, artifact: ArtifactHash) -> bool {
        self.models().any(|model| model == artifact)
    }

    pub(super) fn models(&self) -> impl Iterator<Item = ModelHash> {
        self.wanted.values().map(|last| last.model)
    }

    /// The studies whose last models are on their way.
    pub(super) fn studies(&self) -> Vec<StudyDigest> {
        self.wanted.keys().copied().collect()
    }
}

impl Agent {
    /// Has the last model of a study here, if a notice says that it is over. For people alone, so that a note that the disk does not
    /// give stops nothing.
    pub(super) fn hear_of_last_model(&mut self, notice: &Notice) -> anyhow::Result<()> {
        let Some((study, round, model)) = self.last_models.hear(notice) else { return Ok(()) };
        self.last_models.wanted.remove(&study);
        match self.lacks_last_model(study, round, model) {
            Ok(Some(last)) => {
                self.last_models.wanted.insert(study, last);
                self.go_on_with(vec![Action::FetchArtifact { artifact: model }])
            }
            Ok(None) => Ok(()),
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!("study {}: its last model is not fetched: {error:#}", study.short());
                Ok(())
            }
        }
    }

    /// What is to be noted once the last model of a study is here; `None` where it is, or this site did not train in the study, takes no
    /// part in it any more, or has a model of a later round, from before its coordinator was restored.
    fn lacks_last_model(
        &self,
        study: StudyDigest,
        round: RoundId,
        model: ModelHash,
    ) -> Result<Option<NewestModel>, FileError> {
        let decision = self.studies.decision(study)?;
        if self.role != Role::Trainer || !decision.is_some_and(|decision| decision.approved) {
            return Ok(None);
        }
        // Noted when training begins.
        let Some(newest) = self.studies.newest_model(study)?.filter(|newest| newest.round <= round) else {
            return Ok(None);
        };
        let last = NewestModel { round, model, ..newest };
        let is_here = newest == last && self.artifacts.has(model);
        Ok((!is_here).then_some(last))
    }

    /// Notes a last model that has come as the newest of its study.
    pub(super) fn note_last_model(&mut self, artifact: ArtifactHash) {
        let came: Vec<_> = self.last_models.wanted.extract_if(.., |_, last| last.model == artifact).collect();
        for (study, last) in came {
            let noted = self.studies.note_model(study, last).map_err(anyhow::Error::from);
            let (study, round) = (study.short(), last.round);
            match noted {
                Ok(()) => tracing::info!(
                    "study {study}: its last model, of round {round}, is here: `site-agent predict --study {study}` uses it"
                ),
                Err(error) => tracing::warn!(
                    "study {study}: its last model is here and not noted: {error:#}; it is tried again at the next connection"
                ),
            }
        }
    }
}

/// What came of fetching a last model, for which no machine waits: it is asked for again here, and where the disk has no room, nothing
/// else makes way for it.
pub(super) fn of_its_own(came: Came) -> Came {
    match came {
        Came::Event(Event::FetchFailed { artifact }) => {
            let why = format!("artifact {}, the last model of a study that is over", artifact.short());
            Came::Waits(Box::new(Wait::again(why)))
        }
        Came::Waits(wait) => {
            tracing::warn!(
                "the last model of a study that is over is fetched at the next connection: {}",
                wait.why
            );
            Came::Nothing
        }
        came => came,
    }
}

#[cfg(test)]
mod tests {
    use common::ids::Digest;
    use common::wire::RoundOutcome;

    use super::super::waiting::Until;
    use super::*;

    fn study(name: &str) -> StudyDigest {
        StudyDigest(Digest::of(name.as_bytes()))
    }

    fn model(name: &str) -> ModelHash {
        ArtifactHash(Digest::of(name.as_bytes()))
    }

    fn closed(study: StudyDigest, round: u32, model: Option<ModelHash>) -> Notice {
        let outcome = model.map_or(RoundOutcome::Aborted, |_| RoundOutcome::Committed);
        Notice::RoundClosed { study, round: RoundId(round), model, outcome }
    }

    #[test]
    fn the_last_model_is_of_the_round_that_closed_with_it() {
        let (ours, other) = (study("ours"), study("other"));
        let over = Notice::StudyFinished { study: ours, model: model("last") };
        let last = Some((ours, RoundId(31), model("last")));
        let hear = |notices: &[Notice]| {
            let mut models = LastModels::default();
            notices.iter().fold(None, |_, notice| models.hear(notice))
        };
        assert_eq!(hear(&[closed(ours, 31, Some(model("last"))), over.clone()]), last);
        let aborted = [closed(ours, 31, Some(model("last"))), closed(ours, 32, None), over.clone()];
        assert_eq!(hear(&aborted), last, "the round under way made none");
        // Of an earlier coordinator, by a site that was away at the end: which round made it is not known.
        assert_eq!(hear(std::slice::from_ref(&over)), None);
        assert_eq!(hear(&[closed(other, 31, Some(model("last"))), over.clone()]), None);
        assert_eq!(hear(&[closed(ours, 31, Some(model("earlier"))), over]), None);
    }

    #[test]
    fn a_last_model_that_has_no_room_makes_nothing_go_and_one_that_failed_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let full = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let waits = Came::Waits(Box::new(Wait::for_room("artifact", &full, folder.path(), 1)));
        assert!(matches!(of_its_own(waits), Came::Nothing));
        let artifact = model("last");
        let failed = Came::Event(Event::FetchFailed { artifact });
        let Came::Waits(wait) = of_its_own(failed) else { panic!("it is tried again") };
        assert!(matches!(wait.until, Until::Again(_)));
        let stored = Came::Event(Event::ModelStored { artifact });
        assert!(matches!(of_its_own(stored), Came::Event(Event::ModelStored { .. })));
    }
}
