//! What the operator asks for that reads or writes whole models: it is done beside the loop, so that sites are answered and
//! deadlines kept meanwhile. What it comes to comes back as a command, and the loop alone makes a change of it.

use std::path::{Path, PathBuf};

use common::ids::ArtifactHash;
use common::study::{Study, StudyDocument, StudyDraft};
use common::taxonomy::Taxonomy;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::Driver;
use super::operate::Failure;
use crate::error_report;
use crate::import::{import_safetensors, note};
use crate::operator::Reply;
use crate::store::Artifacts;

/// Longest note of a file that is shown.
const SHOWN_NOTE: usize = 100;

/// Such work, with all that it needs. Blocks.
pub(super) type Work = Box<dyn FnOnce() -> Result<Outcome, Failure> + Send>;

/// What work has come to.
pub(super) enum Outcome {
    /// A study, whose artifacts are kept.
    Study {
        document: Box<StudyDocument>,
        /// Whether its embeddings are of the kind that it says.
        kind: Result<(), Failure>,
    },
    /// An artifact is back that was lost; what it is to a study.
    Artifact { artifact: ArtifactHash, what: String },
    /// Something outside of the state.
    Done { words: String },
}

/// The files of a study that is to be added.
pub(super) struct StudyFiles {
    pub(super) study: PathBuf,
    pub(super) model: PathBuf,
    pub(super) embeddings: PathBuf,
    pub(super) taxonomy: Option<PathBuf>,
}

impl Driver {
    /// Begins `work`; `reply` hears of it once the loop has made a change of what it has come to. One at a time: more would have
    /// the threads of transfers.
    pub(super) fn do_beside(&self, work: Work, reply: oneshot::Sender<Reply>) {
        let (turn, stop, handle) = (self.beside.clone(), self.stop.clone(), self.handle.clone());
        self.work.spawn(async move {
            // One that stops begins nothing more; who waits for `reply` hears that it does.
            let Some(_turn) = stop.run_until_cancelled(turn.lock()).await else { return };
            let outcome = spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()));
            handle.worked(outcome, reply).await;
        });
    }

    /// Makes a change of what work has come to.
    pub(super) async fn complete(&mut self, outcome: Result<Outcome, Failure>) -> Reply {
        let done = match outcome {
            Ok(Outcome::Study { document, kind }) => self.add_study(*document, kind).await,
            Ok(Outcome::Artifact { artifact, what }) => Ok(self.artifact_is_back(&artifact, &what).await),
            Ok(Outcome::Done { words }) => Ok(Reply::Done { words }),
            Err(failure) => Err(failure),
        };
        done.unwrap_or_else(Failure::into_reply)
    }
}

/// Reads a study, and keeps its model and its embeddings among `artifacts`.
pub(super) fn read_study(files: StudyFiles, artifacts: Artifacts) -> Work {
    Box::new(move || -> Result<Outcome, Failure> {
        let StudyFiles { study: file, model, embeddings, taxonomy } = files;
        let taxonomy = match taxonomy {
            Some(file) => Taxonomy::parse(&file.display().to_string(), &read_text(&file)?)?,
            None => Taxonomy::standard(),
        };
        let text = read_text(&file)?;
        let draft = StudyDraft::parse(&file.display().to_string(), &text, &taxonomy)?;
        let model = import_safetensors(&model, &artifacts)?;
        let table = import_safetensors(&embeddings, &artifacts)?;
        let document = draft.into_document(taxonomy, &model, &table)?;
        let kind = check_kind(&file, document.study(), &embeddings);
        Ok(Outcome::Study { document: Box::new(document), kind })
    })
}

/// The kind of the embeddings is pinned and reported: it must be what their file says, if that says anything.
fn check_kind(file: &Path, study: &Study, embeddings: &Path) -> Result<(), Failure> {
    let (kind, made) = (&study.embeddings.kind, note(embeddings)?);
    let Some(made) = made.filter(|made| !kind.agrees_with(made)) else { return Ok(()) };
    let one_line: String = made.chars().filter(|c| !c.is_control()).take(SHOWN_NOTE).collect();
    let (file, embeddings) = (file.display(), embeddings.display());
    Err(Failure::new(
        format!("{file}: `embeddings.kind`: `{kind}`, and {embeddings} was made as `{one_line}`"),
        "write the kind that the file has (`one-hot`, `few-hot`, else `imported:NAME`), or name the embeddings that are meant",
    ))
}

fn read_text(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|e| Failure::new(format!("{}: {e}", file.display()), error_report::READS_AS_ITS_USER))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use common::testing::EXAMPLE_STUDY;
    use nix::sys::stat::Mode;

    use super::super::lost::tests::driver;
    use super::*;
    use crate::fixture::Fixture;
    use crate::operator::Request;

    #[tokio::test]
    async fn the_loop_goes_on_while_a_model_is_read() {
        let (fixture, folder) = (Fixture::new().await, tempfile::tempdir().unwrap());
        let mut driver = driver(&fixture, fixture.store().await).await;
        let [file, model, embeddings] =
            ["study.toml", "model", "embeddings"].map(|name| folder.path().join(name));
        std::fs::write(&file, EXAMPLE_STUDY).unwrap();
        // It is not even opened before somebody writes it.
        nix::unistd::mkfifo(&model, Mode::S_IRWXU).unwrap();

        let (reply, mut added) = oneshot::channel();
        let add = Request::AddStudy { file, model: model.clone(), embeddings, taxonomy: None };
        driver.begin(add, reply).await;
        assert!(matches!(driver.operate(Request::Status).await, Reply::Status(_)));
        assert!(added.try_recv().is_err(), "the model is still being read");

        let writer = spawn_blocking(move || File::options().write(true).open(model));
        drop(writer.await.unwrap().unwrap());
        let worked = driver.inbox.recv().await.unwrap();
        driver.obey(worked).await;
        let Reply::Failed { words, .. } = added.await.unwrap() else { panic!("it was empty") };
        assert!(words.contains("model"), "{words}");
    }

    #[tokio::test]
    async fn what_waits_for_its_turn_is_not_begun_when_the_coordinator_stops() {
        let fixture = Fixture::new().await;
        let driver = driver(&fixture, fixture.store().await).await;
        let _others_turn = driver.beside.clone().lock_owned().await;
        let (reply, answer) = oneshot::channel();
        driver.do_beside(Box::new(|| -> Result<Outcome, Failure> { panic!("it is begun") }), reply);
        driver.stop.cancel();
        driver.work.close();
        driver.work.wait().await;
        assert!(answer.await.is_err(), "nobody answers any more");
    }
}
