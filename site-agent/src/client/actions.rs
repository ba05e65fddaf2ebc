//! What the agent does when the machine says so, and what it makes of what came of it.

use std::sync::Arc;

use common::ids::{AttemptId, ModelHash, RoundId, StudyDigest};
use common::manifest::LabelManifest;
use common::participant::{Action, DropReason, Event, Fact};
use common::report::EvaluationReport;
use common::round::{DeclineReason, RoundTask};
use common::signed::Signed;
use common::study::StudyDocument;
use common::wire::SignedBytes;
use link::quic::Connection;
use tokio_util::sync::CancellationToken;

use super::artifacts::lost_artifact;
use super::driver::{Agent, Errand, News};
use super::errands::{self, StoredReport};
use super::files::{self, FileError};
use super::last_model;
use super::studies::NewestModel;
use super::translate::decline_reason;
use super::waiting::{Came, Held, Until};
use super::words;
use super::work::{Job, LOOK_FOR_ROOM, Outcome};
use crate::egress::{Egress, Outbound};
use crate::train::trainer::{Cancel, StepReport, TrainError};

/// Of what is here in part, and nothing under way needs, so many are kept: the model and the embeddings of a round that was left, or of
/// before a restart. The next round may ask for the same, and a slow link must not begin anew.
const UNFINISHED_ARTIFACTS: usize = 2;

impl Agent {
    /// Begins an action, or finishes it at once; an event is what came of it.
    pub(super) fn execute(&mut self, action: &Action) -> anyhow::Result<Option<Event>> {
        match *action {
            Action::AskApproval { study } => return self.ask_approval(study),
            Action::RegisterManifest { study } => self.register(study, action)?,
            Action::AcceptRound { task: RoundTask { study, round, base, .. } } => {
                // An earlier word on the round, if it waits still, must not come after this one.
                self.cancel(Errand::Decline(study, round));
                let accepted = Outbound::Acceptance { study, round, base };
                self.begin(Errand::Accept(study, round), action, move |connection, egress| async move {
                    errands::tell(&connection, &egress, accepted).await
                });
            }
            Action::DeclineRound { study, round, reason } => {
                self.cancel(Errand::Accept(study, round));
                let declined = Outbound::Decline { study, round, reason: decline_reason(reason) };
                self.begin(Errand::Decline(study, round), action, move |connection, egress| async move {
                    errands::tell(&connection, &egress, declined).await
                });
            }
            Action::FetchArtifact { artifact } => {
                if self.artifacts.has(artifact) {
                    return Ok(Some(Event::ModelStored { artifact }));
                }
                let folder = self.artifacts.clone();
                let is_last = self.last_models.contains(artifact) && !self.needed().contains(&artifact);
                self.begin(Errand::Fetch(artifact), action, move |connection, egress| async move {
                    let came = errands::fetch(&connection, &egress, &folder, artifact).await;
                    if is_last { last_model::of_its_own(came) } else { came }
                });
            }
            Action::CancelFetch { artifact } => {
                self.cancel(Errand::Fetch(artifact));
                self.prune_artifacts()?;
            }
            Action::Train { ref task, attempt } => return self.train(task.clone(), attempt),
            Action::CancelTraining { attempt } => {
                match self.training.take_if(|(under_way, _)| *under_way == attempt) {
                    // The worker removes what it kept of the round.
                    Some((_, cancel)) => cancel.cancel(),
                    None if self.training.is_none() => files::remove(&self.state.checkpoint())?,
                    None => {}
                }
                // It may have ended just now: then the next round must not begin with what it learnt.
                self.worker.submit(Job::Unlearn(attempt));
                self.outbox.remove(attempt)?;
                files::remove(&self.state.optimizer_after(attempt))?;
                // Trained again, it was offered before: where the answer was lost it may count.
                self.residuals.unanswered(attempt)?;
                self.prune_artifacts()?;
            }
            Action::OfferUpdate { ref offer } => {
                let (errand, offer) = (Errand::Offer(offer.attempt), offer.clone());
                let delivery = self.hearing.offer(&offer, self.errands.contains_key(&errand));
                let (outbox, state) = (self.outbox.updates().clone(), self.state.clone());
                self.begin(errand, action, move |connection, egress| async move {
                    errands::offer_update(&connection, &egress, &outbox, &state, &offer, &delivery).await
                });
            }
            Action::DropUpdate { attempt, ref reason } => {
                self.cancel(Errand::Offer(attempt));
                files::remove(&self.state.optimizer_after(attempt))?;
                self.outbox.remove(attempt)?;
                match reason {
                    DropReason::Counted => {}
                    DropReason::Refused(_) => self.residuals.not_counted(attempt)?,
                    DropReason::RoundClosed | DropReason::StudyOver | DropReason::Withheld => {
                        self.residuals.unanswered(attempt)?;
                    }
                }
                if *reason == DropReason::StudyOver {
                    self.give_up_spare();
                }
                if *reason != DropReason::Counted {
                    self.worker.submit(Job::Unlearn(attempt));
                }
                self.prune_artifacts()?;
            }
            Action::ForgetLearnt { study, round } => {
                self.residuals.refused(study, round)?;
                self.state.demote_optimizer(study, round)?;
            }
            Action::ForgetStudy { study } => {
                // Of a study that is merely over, an evaluator may still be asked for scores.
                if !self.has_approved(study) {
                    self.cancel(Errand::Register(study));
                }
                self.worker.submit(Job::Forget(study));
                self.state.forget_optimizer(study)?;
                self.residuals.forget(study)?;
            }
            Action::PruneOutbox { ref keep } => {
                self.state.prune_optimizer(keep)?;
                self.residuals.prune(keep)?;
                self.outbox.prune(keep)?;
                if keep.is_empty() {
                    files::remove(&self.state.checkpoint())?;
                }
            }
            Action::Evaluate { study, round, model } => return self.evaluate(study, round, model),
            Action::CancelEvaluation { model } => {
                self.cancel(Errand::Report(model));
                if let Some((_, cancel)) = self.evaluating.take_if(|(under_way, _)| *under_way == model) {
                    cancel.cancel();
                }
            }
            Action::SendReport { model, report } => {
                let state = self.state.clone();
                self.begin(Errand::Report(model), action, move |connection, egress| async move {
                    errands::send_report(&connection, &egress, &state, model, report).await
                });
            }
            Action::SetTimer { timer, at } => drop(self.timers.insert(timer, at)),
            Action::ClearTimer(timer) => drop(self.timers.remove(&timer)),
            Action::Report(ref fact) => {
                if matches!(fact, Fact::StudyFinished { .. }) {
                    self.give_up_spare();
                }
                self.report(fact);
            }
        }
        Ok(None)
    }

    /// Removes what was fetched and is not wanted any more, whether a round ended with an update or without. The newest model of
    /// each study stays, also when the study is over: it is what `site-agent predict` has of it.
    pub(super) fn prune_artifacts(&self) -> Result<(), FileError> {
        let mut wanted = self.needed();
        let newest = self.studies.newest_models()?.into_iter();
        wanted.extend(newest.flat_map(|newest| [newest.model, newest.embeddings]));
        wanted.extend(self.last_models.models());
        self.artifacts.prune(&wanted, UNFINISHED_ARTIFACTS)
    }

    /// Runs an errand in a task of its own, unless one like it is under way or waits, or there is no connection: the machine
    /// asks again when there is one. `action` begins it again where it has to wait.
    pub(super) fn begin<F>(
        &mut self,
        errand: Errand,
        action: &Action,
        work: impl FnOnce(Connection, Arc<Egress>) -> F + Send + 'static,
    ) where
        F: Future<Output = Came> + Send,
    {
        let action = action.clone();
        self.run_errand(errand, move |connection, egress| async move {
            match work(connection, egress).await {
                Came::Event(event) => News::Done(errand, Some(event)),
                Came::Nothing => News::Done(errand, None),
                Came::Waits(wait) => News::Waits(Box::new(Held { errand, action, wait })),
            }
        });
    }

    /// As [`Agent::begin`], of an errand that says itself what the agent is to know.
    pub(super) fn run_errand<F>(
        &mut self,
        errand: Errand,
        work: impl FnOnce(Connection, Arc<Egress>) -> F + Send + 'static,
    ) where
        F: Future<Output = News> + Send,
    {
        let Some(connection) = self.connection.clone() else { return };
        if self.errands.contains_key(&errand) || self.waiting.has(errand) {
            return;
        }
        let cancel = CancellationToken::new();
        self.errands.insert(errand, cancel.clone());
        let (news, egress) = (self.news.clone(), self.egress.clone());
        self.tasks.spawn(async move {
            let told = tokio::select! {
                told = work(connection, egress) => told,
                () = cancel.cancelled() => News::Done(errand, None),
            };
            // Fails only when the agent is gone.
            let _ = news.send(told).await;
        });
    }

    /// An errand has to wait; nobody is told but the operator.
    pub(super) fn hold(&mut self, held: Held) -> anyhow::Result<()> {
        let why = &held.wait.why;
        match held.wait.until {
            Until::Allowance(_) => tracing::warn!("waiting: {why}; it is kept, and sent by itself then"),
            // Said once: it is tried again and again.
            Until::Again(_) if self.waiting.is_unanswered(held.errand) => {}
            Until::Again(_) => tracing::warn!("no answer yet: {why}; it is tried again until there is one"),
            Until::Room { .. } => {
                self.make_room();
                tracing::error!("paused: {why}; it is tried again each {} s", LOOK_FOR_ROOM.as_secs());
                tracing::error!("hint: {}; it goes on by itself then", files::DISK_HINT);
            }
        }
        self.waiting.add(held);
        self.write_status()
    }

    /// Begins again what waited and can go on.
    pub(super) fn take_up_what_waited(&mut self) -> anyhow::Result<()> {
        let egress = self.egress.clone();
        let mut is_news = false;
        let ready = self.waiting.take_ready(|until, since| {
            let goes_on = match until {
                // By today's sum and not by the time: a clock that steps must not hold anything up.
                Until::Allowance(message) => egress.may_leave(message, jiff::Timestamp::now()),
                Until::Room { .. } => until.has_room(since, LOOK_FOR_ROOM),
                Until::Again(after) => return since >= *after,
            };
            is_news |= goes_on;
            goes_on
        });
        if ready.is_empty() {
            return Ok(());
        }
        if is_news {
            tracing::info!("what waited goes on");
        }
        self.go_on_with(ready)
    }

    fn cancel(&mut self, errand: Errand) {
        self.waiting.end(errand);
        if let Some(cancel) = self.errands.get(&errand) {
            cancel.cancel();
        }
    }

    /// Sends a message whose answer changes nothing here.
    fn say(&mut self, outbound: Outbound) {
        if let Some(connection) = self.connection.clone() {
            self.tasks.spawn(errands::say_owned(connection, self.egress.clone(), outbound));
        }
    }

    /// Says that the study is approved; a trainer says too what it has, once that is counted.
    fn register(&mut self, study: StudyDigest, action: &Action) -> anyhow::Result<()> {
        let Some(document) = self.studies.document(study)? else {
            self.fetch_study(study);
            return Ok(());
        };
        let manifest = self.manifests.get(&study).cloned();
        if self.role == common::ids::Role::Trainer && manifest.is_none() {
            if self.counting.insert(study) {
                self.worker.submit(Job::CountLabels(Box::new(document)));
            }
            return Ok(());
        }
        // Of a time when there was nothing to register.
        self.cancel(Errand::Decline(study, RoundId(0)));
        self.begin(Errand::Register(study), action, move |connection, egress| async move {
            errands::register(&connection, &egress, study, manifest).await
        });
        Ok(())
    }

    fn train(&mut self, task: RoundTask, attempt: AttemptId) -> anyhow::Result<Option<Event>> {
        if self.training.as_ref().is_some_and(|(under_way, _)| *under_way == attempt) {
            return Ok(None);
        }
        let Some(document) = self.studies.document(task.study)? else {
            self.wait_for_study(task.study);
            return Ok(None);
        };
        // A round begins with the model of the one before.
        self.note_model(&document, RoundId(task.round.0.saturating_sub(1)), task.base)?;
        if let Some(refused) = self.refuse_too_large(&document, task.base)? {
            return Ok(Some(refused));
        }
        let cancel = Cancel::default();
        (self.training, self.kept_step) = (Some((attempt, cancel.clone())), 0);
        self.worker.submit(Job::Train(Box::new(document), task, attempt, cancel));
        Ok(None)
    }

    /// Notes whose a model is before it is used: its artifact does not say.
    fn note_model(&self, study: &StudyDocument, round: RoundId, model: ModelHash) -> Result<(), FileError> {
        let embeddings = study.study().embeddings.artifact;
        self.studies.note_model(study.digest(), NewestModel { round, model, embeddings })
    }

    /// The disk lost a study document that work under way needs. That is no failure of the work, which begins when it is here again.
    fn wait_for_study(&mut self, study: StudyDigest) {
        self.unread.insert(study);
        self.fetch_study(study);
    }

    fn evaluate(
        &mut self,
        study: StudyDigest,
        round: RoundId,
        model: ModelHash,
    ) -> anyhow::Result<Option<Event>> {
        if self.evaluating.as_ref().is_some_and(|(under_way, _)| *under_way == model) {
            return Ok(None);
        }
        let Some(document) = self.studies.document(study)? else {
            self.wait_for_study(study);
            return Ok(None);
        };
        self.note_model(&document, round, model)?;
        // An evaluator has no updates with which old models go.
        self.prune_artifacts()?;
        tracing::info!("evaluating the model of round {round}");
        let cancel = Cancel::default();
        self.evaluating = Some((model, cancel.clone()));
        self.worker.submit(Job::Evaluate(Box::new(document), round, model, cancel));
        Ok(None)
    }

    /// Takes what the worker did.
    pub(super) fn worked(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        match outcome {
            Outcome::Counted(study, counted) => self.counted(&study, counted),
            Outcome::Step(task, attempt, step) => self.stepped(&task, attempt, step),
            Outcome::Paused(why) => {
                self.make_room();
                self.status.paused = Some(why);
                self.write_status()
            }
            Outcome::Trained(attempt, trained) => {
                self.training.take_if(|(under_way, _)| *under_way == attempt);
                (self.status.steps, self.status.paused) = (None, None);
                match trained {
                    Ok((update, steps)) => self.feed(Event::Trained { attempt, update, steps }),
                    Err(error) if was_cancelled(&error) => Ok(()),
                    Err(error) if files::disk_trouble(&error).is_some() => self.wait_with_work(&error),
                    Err(error) => self.feed(failure("training", &error, Event::TrainingFailed { attempt })),
                }
            }
            Outcome::Evaluated(study, model, evaluated) => {
                self.evaluating.take_if(|(under_way, _)| *under_way == model);
                match evaluated {
                    Ok(report) => {
                        let signed = self.sign_report(&study, &report);
                        self.keep(model, signed)
                    }
                    Err(error) if was_cancelled(&error) => Ok(()),
                    Err(error) if files::disk_trouble(&error).is_some() => self.wait_with_work(&error),
                    Err(error) => self.feed(failure("evaluation", &error, Event::EvaluationFailed { model })),
                }
            }
        }
    }

    /// The disk had no room for what the worker did: it is done again when there is some, and no failure is counted.
    fn wait_with_work(&mut self, error: &anyhow::Error) -> anyhow::Result<()> {
        self.pause(error);
        let again = self.under_way();
        self.go_on_with(again)
    }

    fn counted(
        &mut self,
        study: &StudyDocument,
        counted: anyhow::Result<LabelManifest>,
    ) -> anyhow::Result<()> {
        self.counting.remove(&study.digest());
        // Refused while they were counted: neither what is here nor that nothing is here is for anybody to know.
        if !self.has_approved(study.digest()) {
            return Ok(());
        }
        // What the coordinator would refuse, such as a name that it has no rule for, is not sent to it.
        match counted.and_then(|manifest| Ok(manifest.checked()?)) {
            Ok(manifest) if manifest.classes.is_empty() => self.cannot_train(
                study.digest(),
                DeclineReason::NoData,
                "no training scan annotates a class of the study",
            ),
            Ok(manifest) => {
                tracing::info!(
                    scans = manifest.volumes,
                    classes = manifest.classes.len(),
                    "counted the labels"
                );
                let signed = Signed::sign(&manifest, &self.signing);
                let signed = SignedBytes { bytes: signed.bytes().to_vec(), signature: *signed.signature() };
                self.manifests.insert(study.digest(), signed);
                let study = study.digest();
                self.register(study, &Action::RegisterManifest { study })
            }
            Err(error) if files::disk_trouble(&error).is_some() => {
                self.pause(&error);
                self.go_on_with(vec![Action::RegisterManifest { study: study.digest() }])
            }
            Err(error) => {
                tracing::error!("the training scans cannot be used: {}", words::with_causes(&error));
                self.cannot_train(
                    study.digest(),
                    DeclineReason::DataError,
                    "the training scans cannot be used",
                )
            }
        }
    }

    /// Says that this site has nothing to train on, here and to the coordinator: neither is left to wonder.
    fn cannot_train(&mut self, study: StudyDigest, reason: DeclineReason, why: &str) -> anyhow::Result<()> {
        self.status.no_part.lacks_data(study, why);
        self.feed(Event::DataUnusable { study, reason })
    }

    fn stepped(&mut self, task: &RoundTask, attempt: AttemptId, step: StepReport) -> anyhow::Result<()> {
        // Said before the round was left.
        if !self.is_at(task) {
            return Ok(());
        }
        self.status.steps = Some((step.step, step.steps));
        let is_under_way = self.training.as_ref().is_some_and(|(under_way, _)| *under_way == attempt);
        if is_under_way && step.kept > self.kept_step {
            self.kept_step = step.kept;
            self.feed(Event::RoundKept { attempt, step: step.kept })?;
        }
        let now = jiff::Timestamp::now();
        let every = i64::try_from(self.egress.policy().quota().progress_every_s).unwrap_or(i64::MAX);
        // Less than nothing is a clock that stepped back.
        let due =
            self.progress_said.is_none_or(|said| !(0..every).contains(&now.duration_since(said).as_secs()));
        if due {
            self.progress_said = Some(now);
            let RoundTask { study, round, .. } = *task;
            tracing::info!("round {round}: step {} of {}, loss {:.4}", step.step, step.steps, step.loss);
            let loss = step.loss as f32;
            self.say(Outbound::Progress { study, round, step: step.step, steps: step.steps, loss });
            self.write_status()?;
        }
        Ok(())
    }

    fn sign_report(&self, study: &StudyDocument, report: &EvaluationReport) -> StoredReport {
        let signed = Signed::sign(report, &self.signing);
        StoredReport {
            study: study.digest(),
            // A report is JSON, which is UTF-8.
            document: String::from_utf8_lossy(signed.bytes()).into_owned(),
            signature: data_encoding::HEXLOWER.encode(signed.signature()),
        }
    }

    /// Keeps a signed report; the event that it is there.
    pub(super) fn keep_report(&self, model: ModelHash, report: &StoredReport) -> anyhow::Result<Event> {
        files::write_json(&self.state.report(model), report)?;
        link::failpoint::pass("site.after-report-kept");
        Ok(Event::Evaluated { model, report: report.digest() })
    }
}

/// What it means that work came to nothing: it waits for an artifact that a crash or the disk damaged, or it failed.
fn failure(what: &str, error: &anyhow::Error, failed: Event) -> Event {
    let told = words::with_causes(error);
    match lost_artifact(error) {
        Some(artifact) => {
            tracing::warn!("{what} waits: {told}; it is fetched again");
            Event::ArtifactLost { artifact }
        }
        None => {
            tracing::error!("{what} failed: {told}");
            failed
        }
    }
}

fn was_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(TrainError::Cancelled { .. }))
        || matches!(error.downcast_ref(), Some(crate::infer::InferError::Cancelled))
}
