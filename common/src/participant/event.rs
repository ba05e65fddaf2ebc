//! What happens at a site ([`Event`]) and what is to be done about it ([`Action`]).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{ArtifactHash, AttemptId, Digest, ModelHash, RoundId, StudyDigest};
use crate::round::{DeclineReason, RoundTask, UpdateOffer};
use crate::time::Timestamp;

/// Something that happened. Serialisable because the site's journal is a list of these, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The agent started from its journal: it is not connected. The answer is whatever was under way. Without [`Event::Stopped`] before
    /// it, the process of before died.
    Started,
    /// The same in the journals of earlier programs, which did not write [`Event::Stopped`]: it says nothing of how the process ended.
    Restarted,
    /// The agent ends in order, told to or by an error of its own: what it is at is not why.
    Stopped,
    /// Welcomed by the coordinator, which now says again whatever concerns this site.
    Connected,
    /// The connection ended.
    Disconnected,
    /// Notice: the coordinator runs this study.
    StudyOffered {
        /// The study.
        study: StudyDigest,
    },
    /// The operator or a policy rule of this site approved the study.
    StudyApproved {
        /// The study.
        study: StudyDigest,
        /// Artifacts that every task of the study needs beside its model, such as the embeddings.
        needs: BTreeSet<ArtifactHash>,
        /// An update whose round has closed counts in the next one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        takes_late: bool,
    },
    /// The operator or a policy rule of this site refused the study, or took the approval back.
    StudyRefused {
        /// The study.
        study: StudyDigest,
    },
    /// Counting the labels of the training scans ended without a manifest: this site cannot train in the study.
    DataUnusable {
        /// The study.
        study: StudyDigest,
        /// `NoData` or `DataError`.
        reason: DeclineReason,
    },
    /// Notice: a round is open.
    RoundOpened {
        /// The task.
        task: RoundTask,
    },
    /// Notice: a round ended.
    RoundClosed {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
    },
    /// Notice: a report on this model is wanted.
    EvaluationRequested {
        /// The study.
        study: StudyDigest,
        /// The round that made the model.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// Notice: the study is paused. What is under way goes on; nothing new will be asked.
    StudyPaused {
        /// The study.
        study: StudyDigest,
    },
    /// Notice: the study is over.
    StudyFinished {
        /// The study.
        study: StudyDigest,
    },
    /// An artifact is complete and checked here. It need not outlive a loss of power: it can be fetched again.
    ModelStored {
        /// The artifact.
        artifact: ArtifactHash,
    },
    /// An artifact could not be fetched.
    FetchFailed {
        /// The artifact.
        artifact: ArtifactHash,
    },
    /// An artifact that was here is damaged or gone, as it turned out when it was to be used; what was left of it is out of
    /// the way.
    ArtifactLost {
        /// The artifact.
        artifact: ArtifactHash,
    },
    /// Training ended and its update is durable in the outbox.
    Trained {
        /// The attempt.
        attempt: AttemptId,
        /// Digest of the update's manifest.
        update: ArtifactHash,
        /// Optimiser steps done.
        steps: u32,
    },
    /// Training goes on, and a process that ends now repeats nothing up to this step.
    RoundKept {
        /// The attempt.
        attempt: AttemptId,
        /// Steps of the round that are durable here.
        step: u32,
    },
    /// Training failed.
    TrainingFailed {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The coordinator counts the update.
    Receipt {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The coordinator does not want the update, with the code it gave ([`crate::round::Rejection::code`]); or it may not leave
    /// ([`super::WITHHELD_CODE`]).
    Refused {
        /// The attempt.
        attempt: AttemptId,
        /// The code; one that this version does not know is final.
        code: String,
    },
    /// The update could not be sent, for a reason other than the coordinator's refusal.
    UploadFailed {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Evaluation ended and its report is signed and durable here.
    Evaluated {
        /// The model.
        model: ModelHash,
        /// Digest of the signed bytes.
        report: Digest,
    },
    /// Evaluation failed.
    EvaluationFailed {
        /// The model.
        model: ModelHash,
    },
    /// The coordinator has the report.
    ReportReceipt {
        /// The model.
        model: ModelHash,
    },
    /// The coordinator does not want the report; final.
    ReportRefused {
        /// The model.
        model: ModelHash,
        /// The code it gave.
        code: String,
    },
    /// The report could not be sent, for a reason other than the coordinator's refusal.
    ReportFailed {
        /// The model.
        model: ModelHash,
    },
    /// The report is damaged or gone, as it turned out when it was to be sent.
    ReportLost {
        /// The model.
        model: ModelHash,
    },
    /// A timer set by [`Action::SetTimer`] is due.
    TimerFired(Timer),
}

/// A wake-up of the machine; at most one of each is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// Try the failed step of the round again.
    Round,
    /// Offer an update again that made way for other studies.
    Outbox,
    /// Try the failed step of the evaluation again.
    Evaluation,
}

/// Something to do. All are idempotent: one that is under way or done is not begun again.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Fetch the study document, if it is not here, and ask the policy and then the operator; comes back as
    /// `StudyApproved` or `StudyRefused`, some day.
    AskApproval {
        /// The study.
        study: StudyDigest,
    },
    /// Tell the coordinator that this site approves the study, and register the signed label manifest (trainer).
    RegisterManifest {
        /// The study.
        study: StudyDigest,
    },
    /// Tell the coordinator that this site takes part.
    AcceptRound {
        /// The task.
        task: RoundTask,
    },
    /// Tell the coordinator that this site does not take part.
    DeclineRound {
        /// The study.
        study: StudyDigest,
        /// The round; 0 for all rounds, until a manifest is registered.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// Have the artifact here, complete and checked; comes back as `ModelStored` (also when it is here already) or
    /// `FetchFailed`.
    FetchArtifact {
        /// The artifact.
        artifact: ArtifactHash,
    },
    /// Stop fetching what is not needed any more; what is here may stay.
    CancelFetch {
        /// The artifact.
        artifact: ArtifactHash,
    },
    /// Train; comes back as `Trained` or `TrainingFailed`. An attempt that was interrupted goes on where it
    /// was kept; one whose update is in the outbox already is `Trained`.
    Train {
        /// The task.
        task: RoundTask,
        /// Idempotency key of the update that comes of it.
        attempt: AttemptId,
    },
    /// Stop training; nothing of it is wanted, not even what an earlier process left of it in the outbox.
    CancelTraining {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Offer the update of the outbox and send what is wanted of it; comes back as `Receipt`, `Refused` or
    /// `UploadFailed`.
    OfferUpdate {
        /// What to offer.
        offer: UpdateOffer,
    },
    /// Remove the update from the outbox.
    DropUpdate {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        reason: DropReason,
    },
    /// Forget what the optimiser learnt in a round: its update was refused. Asked for again after a restart, for as long as the
    /// refusal is the last thing that happened.
    ForgetLearnt {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
    },
    /// Forget what the optimiser learnt and what rounding left in the study, in all rounds: it is over, or not approved any more.
    /// Asked for whenever that is said, also of a study that is not known here: a crash may have come before.
    ForgetStudy {
        /// The study.
        study: StudyDigest,
    },
    /// Remove every update from the outbox but these: what a crash may have left there.
    PruneOutbox {
        /// Those that are still wanted, as far as they are there.
        keep: BTreeSet<AttemptId>,
    },
    /// Evaluate the model; comes back as `Evaluated` or `EvaluationFailed`.
    Evaluate {
        /// The study.
        study: StudyDigest,
        /// The round that made the model.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// Stop evaluating; nothing of it is wanted.
    CancelEvaluation {
        /// The model.
        model: ModelHash,
    },
    /// Send the signed report; comes back as `ReportReceipt`, `ReportRefused`, `ReportFailed` or
    /// `ReportLost`.
    SendReport {
        /// The model.
        model: ModelHash,
        /// Digest of the signed bytes.
        report: Digest,
    },
    /// Send `TimerFired(timer)` at `at`; replaces an earlier setting.
    SetTimer {
        /// Which.
        timer: Timer,
        /// When.
        at: Timestamp,
    },
    /// Forget a timer.
    ClearTimer(Timer),
    /// Say it to the site's operator.
    Report(Fact),
}

/// Why an update leaves the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// The coordinator counts it.
    Counted,
    /// The round ended without it.
    RoundClosed,
    /// The coordinator refused it with this code.
    Refused(String),
    /// This site's own policy keeps it here. It may have left before, under another policy.
    Withheld,
    /// The study is over, or not approved any more.
    StudyOver,
}

/// Something worth a line to the site's operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The study waits for this site's approval.
    ApprovalNeeded {
        /// The study.
        study: StudyDigest,
    },
    /// This site takes part in the round.
    RoundStarted {
        /// The round.
        round: RoundId,
    },
    /// This site takes no part in the round.
    RoundDeclined {
        /// The round.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// This site takes no part in the study for want of data.
    DataUnusable {
        /// The study.
        study: StudyDigest,
        /// Why.
        reason: DeclineReason,
    },
    /// Work on the round was given up, because it ended or a later one of its study opened.
    RoundLeft {
        /// The round.
        round: RoundId,
    },
    /// The round closed without this site, whose update is finished all the same: it counts in the next round.
    RoundMissed {
        /// The round.
        round: RoundId,
    },
    /// The update is in the outbox.
    UpdateReady {
        /// The round.
        round: RoundId,
        /// The attempt.
        attempt: AttemptId,
    },
    /// The update counts.
    UpdateCounted {
        /// The round.
        round: RoundId,
    },
    /// The update was dropped and does not count.
    UpdateDropped {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// Why.
        reason: DropReason,
    },
    /// A step failed time and again: it goes on being tried, and meanwhile other studies have their turn.
    SetAside {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// `Upload`, `Report` or `Fetch`.
        step: Step,
    },
    /// A step failed and is tried again.
    RetryScheduled {
        /// Which.
        step: Step,
        /// How often it failed in a row.
        failures: u32,
        /// When it is tried again.
        at: Timestamp,
    },
    /// The process died in the midst of a step.
    Interrupted {
        /// Which.
        step: Step,
        /// The round.
        round: RoundId,
        /// How often, without anything newer kept, of [`super::MOST_INTERRUPTIONS`]; deaths within
        /// [`super::BETWEEN_INTERRUPTIONS`] count once.
        times: u32,
    },
    /// The coordinator has this site's report.
    ReportDelivered {
        /// The round.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// An evaluation was given up; the coordinator asks again at the next connection.
    EvaluationDropped {
        /// The round.
        round: RoundId,
        /// The model.
        model: ModelHash,
        /// A stable short reason.
        code: String,
    },
    /// The study is paused by the coordinator.
    StudyPaused,
    /// The study is over.
    StudyFinished {
        /// The study.
        study: StudyDigest,
    },
    /// An event that changes nothing here: late, duplicate or not for this site.
    EventIgnored {
        /// [`Event::name`].
        event: &'static str,
        /// Name of the phase.
        phase: &'static str,
    },
}

/// A step that can fail and be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Fetching an artifact.
    Fetch,
    /// Training.
    Training,
    /// Sending an update.
    Upload,
    /// Evaluating.
    Evaluation,
    /// Sending a report.
    Report,
}

impl Event {
    /// A stable short name, for logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Restarted => "restarted",
            Self::Stopped => "stopped",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::StudyOffered { .. } => "study-offered",
            Self::StudyApproved { .. } => "study-approved",
            Self::StudyRefused { .. } => "study-refused",
            Self::DataUnusable { .. } => "data-unusable",
            Self::RoundOpened { .. } => "round-opened",
            Self::RoundClosed { .. } => "round-closed",
            Self::EvaluationRequested { .. } => "evaluation-requested",
            Self::StudyPaused { .. } => "study-paused",
            Self::StudyFinished { .. } => "study-finished",
            Self::ModelStored { .. } => "model-stored",
            Self::FetchFailed { .. } => "fetch-failed",
            Self::ArtifactLost { .. } => "artifact-lost",
            Self::Trained { .. } => "trained",
            Self::RoundKept { .. } => "round-kept",
            Self::TrainingFailed { .. } => "training-failed",
            Self::Receipt { .. } => "receipt",
            Self::Refused { .. } => "refused",
            Self::UploadFailed { .. } => "upload-failed",
            Self::Evaluated { .. } => "evaluated",
            Self::EvaluationFailed { .. } => "evaluation-failed",
            Self::ReportReceipt { .. } => "report-receipt",
            Self::ReportRefused { .. } => "report-refused",
            Self::ReportFailed { .. } => "report-failed",
            Self::ReportLost { .. } => "report-lost",
            Self::TimerFired(_) => "timer-fired",
        }
    }
}
