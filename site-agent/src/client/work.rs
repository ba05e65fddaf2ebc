//! The seam between the protocol and the site's heavy work, and the one thread that does it.
//!
//! Training and evaluation never run on the async runtime's threads, and never two at a time: one agent, one device.

use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::artifact::Dtype;
use common::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, StudyDigest};
use common::manifest::LabelManifest;
use common::report::EvaluationReport;
use common::round::RoundTask;
use common::study::sections::OptimizerState;
use common::study::{Study, StudyDocument};
use tokio::sync::mpsc;

use super::artifacts::ArtifactError;
use super::checkpointing::Unkept;
use super::files;
use super::outbox::{Finished, Outbox};
use super::residual::Residuals;
use crate::train::trainer::{Cancel, RoundOutcome, StepReport, TrainError};

/// How long a full disk is left alone: as long as the coordinator leaves its own.
pub(crate) const LOOK_FOR_ROOM: Duration = Duration::from_secs(5);
/// How often work that waits looks whether it is still wanted.
const LOOK_FOR_CANCEL: Duration = Duration::from_millis(100);

/// What a site can do with its data. Errors are for the site's own eyes and log.
pub trait Work: Send {
    /// Counts the labels of the site's training volumes.
    ///
    /// # Errors
    /// What is wrong with the data.
    fn count_labels(&mut self, study: &StudyDocument) -> anyhow::Result<LabelManifest>;

    /// Trains one round from the global model of `task`, or the rest of it where an earlier process was stopped in its
    /// midst.
    ///
    /// # Errors
    /// Why there is no update.
    fn train(
        &mut self,
        study: &StudyDocument,
        task: &RoundTask,
        attempt: AttemptId,
        progress: &mut dyn FnMut(StepReport),
        cancel: &Cancel,
    ) -> anyhow::Result<RoundOutcome>;

    /// Where the work tells why the round under way is not kept, for the operator.
    fn unkept(&self) -> Unkept {
        Unkept::default()
    }

    /// Makes durable, under `attempt`, what the optimiser remembers after the round that was just trained.
    ///
    /// # Errors
    /// The disk.
    fn keep_learnt(&mut self, _attempt: AttemptId) -> anyhow::Result<()> {
        Ok(())
    }

    /// What is kept of the round under way is of no use any more: its update is durable, or the round was left.
    fn leave_round(&mut self) {}

    /// The update of `attempt` came to nothing, and so did what the optimiser learnt with it.
    fn unlearn(&mut self, _attempt: AttemptId) {}

    /// The study is over, or refused here: nothing of it is remembered.
    fn forget(&mut self, _study: StudyDigest) {}

    /// Scores a global model on the site's own scans.
    ///
    /// # Errors
    /// Why there is no report.
    fn evaluate(
        &mut self,
        study: &StudyDocument,
        round: RoundId,
        model: ModelHash,
        cancel: &Cancel,
    ) -> anyhow::Result<EvaluationReport>;
}

/// One thing to do.
pub enum Job {
    /// [`Work::count_labels`].
    CountLabels(Box<StudyDocument>),
    /// [`Work::train`].
    Train(Box<StudyDocument>, RoundTask, AttemptId, Cancel),
    /// [`Work::unlearn`]; nothing comes of it.
    Unlearn(AttemptId),
    /// [`Work::forget`]; nothing comes of it.
    Forget(StudyDigest),
    /// [`Work::evaluate`].
    Evaluate(Box<StudyDocument>, RoundId, ModelHash, Cancel),
}

/// What came of it.
pub enum Outcome {
    /// The labels of a study's training volumes.
    Counted(Box<StudyDocument>, anyhow::Result<LabelManifest>),
    /// One optimiser step is done.
    Step(RoundTask, AttemptId, StepReport),
    /// A round was trained and its update is durable in the outbox (its name and the steps done), or not.
    Trained(AttemptId, anyhow::Result<(ArtifactHash, u32)>),
    /// What was trained waits for room on the disk, and why.
    Paused(String),
    /// A model was scored, or not.
    Evaluated(Box<StudyDocument>, ModelHash, anyhow::Result<EvaluationReport>),
}

/// The thread that works. Dropping it lets the job under way end; cancel that first.
pub struct Worker {
    jobs: Option<std_mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread; updates go to `outbox`, what rounding takes from them to `residuals`, outcomes to `out`.
    ///
    /// # Errors
    /// What the system says about a new thread.
    pub fn start(
        work: Box<dyn Work>,
        outbox: Outbox,
        residuals: Residuals,
        out: mpsc::Sender<Outcome>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = std_mpsc::channel();
        let thread = std::thread::Builder::new().name("work".to_owned());
        let thread = thread.spawn(move || run(work, &outbox, &residuals, &queue, &out))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job. The machine asks for one at a time, so the queue stays short.
    pub fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // Fails only when the thread has panicked; its panic is reported at the end.
            let _ = jobs.send(job);
        }
    }

    /// Waits until the job under way has ended; whether the thread ended in order.
    pub fn finish(mut self) -> bool {
        self.jobs = None;
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

fn run(
    mut work: Box<dyn Work>,
    outbox: &Outbox,
    residuals: &Residuals,
    queue: &std_mpsc::Receiver<Job>,
    out: &mpsc::Sender<Outcome>,
) {
    for job in queue {
        let outcome = match job {
            Job::CountLabels(study) => {
                let counted = work.count_labels(&study);
                Outcome::Counted(study, counted)
            }
            Job::Train(study, task, attempt, cancel) => {
                let mut shift = Shift { work: work.as_mut(), outbox, residuals, out };
                let trained = shift.train(&study, &task, attempt, &cancel);
                Outcome::Trained(attempt, trained.map(|Finished { update, steps }| (update, steps)))
            }
            Job::Unlearn(attempt) => {
                work.unlearn(attempt);
                continue;
            }
            Job::Forget(study) => {
                work.forget(study);
                continue;
            }
            Job::Evaluate(study, round, model, cancel) => {
                let evaluated = work.evaluate(&study, round, model, &cancel);
                Outcome::Evaluated(study, model, evaluated)
            }
        };
        if out.blocking_send(outcome).is_err() {
            return;
        }
    }
}

/// What a job has to do with.
struct Shift<'a> {
    work: &'a mut dyn Work,
    outbox: &'a Outbox,
    residuals: &'a Residuals,
    out: &'a mpsc::Sender<Outcome>,
}

impl Shift<'_> {
    /// Trains a round and keeps its update, unless it is in the outbox already: an earlier process can have ended between
    /// the two.
    fn train(
        &mut self,
        study: &StudyDocument,
        task: &RoundTask,
        attempt: AttemptId,
        cancel: &Cancel,
    ) -> anyhow::Result<Finished> {
        if let Some(finished) = self.outbox.find(attempt) {
            tracing::info!("round {}: its update is in the outbox from before", task.round);
            self.work.leave_round();
            return Ok(finished);
        }
        // Steps are news, not state: when the agent is behind, they are dropped.
        let mut progress = |step| drop(self.out.try_send(Outcome::Step(task.clone(), attempt, step)));
        let trained = self.work.train(study, task, attempt, &mut progress, cancel);
        let was_left = |error: &anyhow::Error| {
            matches!(error.downcast_ref(), Some(TrainError::Cancelled { .. })) && !cancel.is_suspended()
        };
        if trained.as_ref().is_err_and(was_left) {
            self.work.leave_round();
        }
        let kept = self.keep(study, task.round, attempt, &trained?, cancel);
        match &kept {
            Ok(_) => self.work.leave_round(),
            Err(_) => self.work.unlearn(attempt),
        }
        kept
    }

    /// Keeps what was trained. Where the disk is full it waits for room: hours of work are in memory.
    fn keep(
        &mut self,
        study: &StudyDocument,
        round: RoundId,
        attempt: AttemptId,
        outcome: &RoundOutcome,
        cancel: &Cancel,
    ) -> anyhow::Result<Finished> {
        let mut is_waiting = false;
        loop {
            let learnt = self.work.keep_learnt(attempt);
            let kept = learnt.and_then(|()| Ok(self.put(study, round, attempt, outcome)?));
            match &kept {
                Err(error) if files::disk_trouble(error).is_some() && !cancel.is_cancelled() => {
                    let need = (bytes_each(study.study()) * numbers_of(outcome)).div_ceil(1 << 20);
                    let name = files::disk_trouble(error).unwrap_or("disk");
                    let why = format!(
                        "{name}: {error:#}; {need} MiB are needed to keep the update of round {round}"
                    );
                    if !is_waiting {
                        let again = LOOK_FOR_ROOM.as_secs();
                        tracing::error!(
                            "paused: {why}; it stays in memory, and is tried again each {again} s"
                        );
                        tracing::error!("hint: {}; it goes on by itself then", files::DISK_HINT);
                    }
                    is_waiting = true;
                    // Not waited for: a later one says the same.
                    let _ = self.out.try_send(Outcome::Paused(why));
                    wait_for_room(cancel);
                }
                _ => return kept,
            }
        }
    }

    /// Puts an update into the outbox, in the study's format.
    fn put(
        &self,
        study: &StudyDocument,
        round: RoundId,
        attempt: AttemptId,
        outcome: &RoundOutcome,
    ) -> Result<Finished, ArtifactError> {
        match study.study().aggregation.update_dtype {
            Dtype::F32 => self.outbox.keep(attempt, outcome),
            Dtype::BF16 => {
                let rounding = self.residuals.begin(study.digest(), round, attempt, numbers_of(outcome))?;
                self.outbox.keep_rounded(attempt, outcome, rounding)
            }
        }
    }
}

/// What each number of an update takes on the disk: itself, where it is rounded what remains, and two moments where the next round
/// begins with them.
fn bytes_each(study: &Study) -> usize {
    let update = if study.aggregation.update_dtype.is_f32() { 4 } else { 6 };
    match study.training.optimizer_state {
        OptimizerState::Keep => update + 8,
        OptimizerState::Reset => update,
    }
}

fn numbers_of(outcome: &RoundOutcome) -> usize {
    outcome.delta.values().map(|tensor| tensor.values().len()).sum()
}

/// Lets some time pass, or as much of it as the job has.
fn wait_for_room(cancel: &Cancel) {
    let until = Instant::now() + LOOK_FOR_ROOM;
    while Instant::now() < until && !cancel.is_cancelled() {
        std::thread::sleep(LOOK_FOR_CANCEL);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use common::testing::example_study;

    use super::*;
    use crate::model::{HostTensor, NamedTensors};

    /// Finds no room for what the optimiser learnt, the first time.
    #[derive(Default)]
    struct Full {
        tries: u32,
    }

    impl Work for Full {
        fn count_labels(&mut self, _: &StudyDocument) -> anyhow::Result<LabelManifest> {
            anyhow::bail!("nobody asks")
        }

        fn train(
            &mut self,
            _: &StudyDocument,
            _: &RoundTask,
            _: AttemptId,
            _: &mut dyn FnMut(StepReport),
            _: &Cancel,
        ) -> anyhow::Result<RoundOutcome> {
            anyhow::bail!("nobody asks")
        }

        fn keep_learnt(&mut self, _: AttemptId) -> anyhow::Result<()> {
            self.tries += 1;
            match self.tries {
                1 => {
                    let path = Path::new("/state/optimizer/x.next");
                    Err(files::FileError::new("write", path, io::ErrorKind::StorageFull.into()).into())
                }
                _ => Ok(()),
            }
        }

        fn evaluate(
            &mut self,
            _: &StudyDocument,
            _: RoundId,
            _: ModelHash,
            _: &Cancel,
        ) -> anyhow::Result<EvaluationReport> {
            anyhow::bail!("nobody asks")
        }
    }

    #[test]
    fn a_trained_round_waits_for_room_and_is_kept_when_there_is_some() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&folder.path().join("outbox")).unwrap();
        let residuals = Residuals::open(&folder.path().join("residual")).unwrap();
        let study = example_study();
        let (out, mut outcomes) = mpsc::channel(4);
        let attempt = AttemptId::from_bytes([1; 16]);
        let tensor = HostTensor::new(vec![2], vec![1.0, 0.5]).unwrap();
        let delta = NamedTensors::from([("w".to_owned(), tensor)]);
        let outcome = RoundOutcome { delta, steps: 4, mean_loss: 0.5 };
        let (cancel, mut work) = (Cancel::default(), Full::default());
        let kept = std::thread::scope(|scope| {
            let keeping = scope.spawn(|| {
                let mut shift = Shift { work: &mut work, outbox: &outbox, residuals: &residuals, out: &out };
                shift.keep(&study, RoundId(3), attempt, &outcome, &cancel)
            });
            let Some(Outcome::Paused(why)) = outcomes.blocking_recv() else { panic!("expected a pause") };
            assert!(why.starts_with("disk full: cannot write /state/optimizer/x.next: "), "{why}");
            assert!(why.ends_with("; 1 MiB are needed to keep the update of round 3"), "{why}");
            // A stop ends the wait at once: what was trained is tried to be kept a last time.
            cancel.suspend();
            keeping.join().unwrap()
        });
        assert_eq!(outbox.find(attempt), Some(kept.unwrap()));
    }
}
