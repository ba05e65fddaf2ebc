//! An evaluator's work: models to score, one at a time, the newest round first, since gates and people wait for it.
//!
//! The queue is bounded. When it is full the oldest round's model makes room and that is said; the coordinator asks again at
//! the next connection, so nothing is lost for good. A request that is queued or under way already changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::downloading::Fetch;
use super::event::{Action, Fact, Step};
use super::idle::Studies;
use super::phase::Context;
use super::retry::Retry;
use crate::ids::{ArtifactHash, Digest, ModelHash, RoundId, StudyDigest};
use crate::time::Timestamp;

/// Most models that wait.
pub(super) const MAX_PENDING: usize = 64;
/// Failures after which an evaluation is given up.
const MOST_FAILURES: u32 = 3;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Evaluations {
    /// Ascending by round. Keyed by model too: two rounds can have made the same.
    pending: BTreeSet<Request>,
    current: Option<Evaluating>,
    /// Models that ended the process again and again while they were scored: not begun again until a connection has ended and the
    /// process goes on.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    given_up: BTreeSet<Request>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    pub(super) round: RoundId,
    pub(super) model: ModelHash,
    pub(super) study: StudyDigest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluating {
    request: Request,
    step: EvaluationStep,
    /// How often something that it needs, or its report, was lost.
    #[serde(default, skip_serializing_if = "is_zero")]
    lost: u32,
}

// By reference because serde passes one.
pub(super) fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum EvaluationStep {
    Fetching(Fetch),
    Scoring { retry: Retry },
    Sending { report: Digest, retry: Retry },
}

impl Evaluations {
    /// Queues a request; false when it is queued or under way, or ends the process.
    pub(super) fn request(&mut self, request: Request, cx: &mut Context<'_>) -> bool {
        let same = |known: &Request| known.model == request.model && known.study == request.study;
        let current = self.current.iter().map(|current| &current.request);
        if self.pending.iter().chain(&self.given_up).chain(current).any(same) {
            return false;
        }
        self.pending.insert(request);
        if self.pending.len() > MAX_PENDING
            && let Some(oldest) = self.pending.pop_first()
        {
            give_up(oldest, "queue-full", cx);
        }
        true
    }

    /// Begins the next evaluation when none is under way.
    pub(super) fn begin_next(&mut self, studies: &Studies, cx: &mut Context<'_>) {
        while self.current.is_none()
            && let Some(request) = self.pending.pop_last()
        {
            let Some(needs) = studies.needs(request.study) else { continue };
            let missing = needs.iter().copied().chain([request.model]).collect();
            let step = EvaluationStep::Fetching(Fetch::begin(missing, cx));
            self.current = Some(Evaluating { request, step, lost: 0 });
        }
    }

    pub(super) fn stored(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        let Some(current) = &mut self.current else { return false };
        let EvaluationStep::Fetching(fetch) = &mut current.step else { return false };
        let ours = fetch.stored(artifact);
        if fetch.complete() {
            current.step = EvaluationStep::Scoring { retry: Retry::default() };
            current.ask(cx);
        }
        ours
    }

    pub(super) fn fetch_failed(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        match &mut self.current {
            Some(Evaluating { step: EvaluationStep::Fetching(fetch), .. }) => fetch.failed(artifact, cx),
            _ => false,
        }
    }

    /// Fetches again what the evaluation under way needs and has lost; not for ever.
    pub(super) fn lost(&mut self, artifact: ArtifactHash, studies: &Studies, cx: &mut Context<'_>) -> bool {
        let Some(current) = &mut self.current else { return false };
        let EvaluationStep::Scoring { .. } = current.step else { return false };
        let Request { study, model, .. } = current.request;
        if model != artifact && !studies.needs(study).is_some_and(|needs| needs.contains(&artifact)) {
            return false;
        }
        current.lost = current.lost.saturating_add(1);
        if current.lost > MOST_FAILURES {
            give_up(current.request, "model-damaged", cx);
            self.current = None;
        } else {
            current.step = EvaluationStep::Fetching(Fetch::begin([artifact].into(), cx));
        }
        true
    }

    pub(super) fn evaluated(&mut self, model: ModelHash, report: Digest, cx: &mut Context<'_>) -> bool {
        let Some(current) = self.current_of(model) else { return false };
        let EvaluationStep::Scoring { .. } = current.step else { return false };
        current.step = EvaluationStep::Sending { report, retry: Retry::default() };
        if cx.connected {
            current.ask(cx);
        }
        true
    }

    pub(super) fn evaluation_failed(&mut self, model: ModelHash, cx: &mut Context<'_>) -> bool {
        let Some(current) = self.current_of(model) else { return false };
        let EvaluationStep::Scoring { retry } = &mut current.step else { return false };
        if retry.failures + 1 < MOST_FAILURES {
            retry.fail(Step::Evaluation, cx.now, cx.actions);
            return true;
        }
        give_up(current.request, "evaluation-failed", cx);
        self.current = None;
        true
    }

    /// The process died: a model in the midst of whose scoring it does so again and again is given up, and the next has its turn.
    pub(super) fn interrupted(&mut self, cx: &mut Context<'_>) {
        let Some(Evaluating { request, step: EvaluationStep::Scoring { retry }, .. }) = &mut self.current
        else {
            return;
        };
        let request = *request;
        if retry.interrupted(Step::Evaluation, request.round, cx) {
            return;
        }
        give_up(request, "evaluation-failed", cx);
        self.current = None;
        self.given_up.insert(request);
        if self.given_up.len() > MAX_PENDING {
            self.given_up.pop_first();
        }
    }

    /// What was given up because it ended the process may be begun again.
    pub(super) fn forgive(&mut self) {
        self.given_up.clear();
    }

    /// Nor is anything held against the model under way.
    pub(super) fn forgive_all(&mut self) {
        self.forgive();
        if let Some(Evaluating { step: EvaluationStep::Scoring { retry }, .. }) = &mut self.current {
            retry.forgive();
        }
    }

    /// The coordinator's word on the report: a receipt, or the code of a refusal.
    pub(super) fn answered(&mut self, model: ModelHash, refusal: Option<&str>, cx: &mut Context<'_>) -> bool {
        let Some(current) = self.current_of(model) else { return false };
        let EvaluationStep::Sending { .. } = current.step else { return false };
        let request = current.request;
        match refusal {
            None => cx.report(Fact::ReportDelivered { round: request.round, model }),
            Some(code) => give_up(request, code, cx),
        }
        self.current = None;
        true
    }

    pub(super) fn report_failed(&mut self, model: ModelHash, cx: &mut Context<'_>) -> bool {
        let connected = cx.connected;
        match self.current_of(model).map(|current| &mut current.step) {
            Some(EvaluationStep::Sending { retry, .. }) => {
                if connected {
                    retry.fail(Step::Report, cx.now, cx.actions);
                }
                true
            }
            _ => false,
        }
    }

    /// Scores again what the disk has lost of it; not for ever: others wait.
    pub(super) fn report_lost(&mut self, model: ModelHash, cx: &mut Context<'_>) -> bool {
        let Some(current) = self.current_of(model) else { return false };
        let EvaluationStep::Sending { .. } = current.step else { return false };
        current.lost = current.lost.saturating_add(1);
        if current.lost > MOST_FAILURES {
            give_up(current.request, "report-damaged", cx);
            self.current = None;
        } else {
            current.step = EvaluationStep::Scoring { retry: Retry::default() };
            current.ask(cx);
        }
        true
    }

    /// Forgets the evaluations of a study.
    pub(super) fn leave(&mut self, study: StudyDigest, cx: &mut Context<'_>) {
        self.pending.retain(|request| request.study != study);
        self.given_up.retain(|request| request.study != study);
        if let Some(current) = self.current.take_if(|current| current.request.study == study) {
            current.cancel(cx);
        }
    }

    /// Asks for the step at hand again.
    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        if let Some(current) = &self.current {
            current.ask(cx);
        }
    }

    /// Asks again for a step that needs the coordinator.
    pub(super) fn connected(&self, cx: &mut Context<'_>) {
        match &self.current {
            Some(current) if !matches!(current.step, EvaluationStep::Scoring { .. }) => current.ask(cx),
            _ => {}
        }
    }

    /// The steps that need the coordinator wait for the next connection.
    pub(super) fn disconnected(&mut self) {
        match self.current.as_mut().map(|current| &mut current.step) {
            Some(EvaluationStep::Fetching(fetch)) => fetch.retry.at = None,
            Some(EvaluationStep::Sending { retry, .. }) => retry.at = None,
            Some(EvaluationStep::Scoring { .. }) | None => {}
        }
    }

    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        self.current.as_ref().and_then(|current| match &current.step {
            EvaluationStep::Fetching(fetch) => fetch.retry.at,
            EvaluationStep::Scoring { retry } | EvaluationStep::Sending { retry, .. } => retry.at,
        })
    }

    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        self.current.as_mut().is_some_and(|current| match &mut current.step {
            EvaluationStep::Fetching(fetch) => fetch.retry.take_due(now),
            EvaluationStep::Scoring { retry } | EvaluationStep::Sending { retry, .. } => retry.take_due(now),
        })
    }

    /// Models that wait or are under way, by round.
    pub(super) fn models(&self) -> BTreeMap<RoundId, ModelHash> {
        let current = self.current.iter().map(|current| &current.request);
        self.pending.iter().chain(current).map(|request| (request.round, request.model)).collect()
    }

    /// Name of the step at hand.
    pub(super) fn step_name(&self) -> &'static str {
        match self.current.as_ref().map(|current| &current.step) {
            None => "idle",
            Some(EvaluationStep::Fetching(_)) => "downloading",
            Some(EvaluationStep::Scoring { .. }) => "evaluating",
            Some(EvaluationStep::Sending { .. }) => "reporting",
        }
    }

    fn current_of(&mut self, model: ModelHash) -> Option<&mut Evaluating> {
        self.current.as_mut().filter(|current| current.request.model == model)
    }
}

impl Evaluating {
    fn ask(&self, cx: &mut Context<'_>) {
        let Request { study, round, model } = self.request;
        match &self.step {
            EvaluationStep::Fetching(fetch) => fetch.ask(cx),
            EvaluationStep::Scoring { .. } => cx.act(Action::Evaluate { study, round, model }),
            EvaluationStep::Sending { report, .. } => {
                if cx.connected {
                    cx.act(Action::SendReport { model, report: *report });
                }
            }
        }
    }

    fn cancel(&self, cx: &mut Context<'_>) {
        match &self.step {
            EvaluationStep::Fetching(fetch) => fetch.cancel(cx),
            _ => cx.act(Action::CancelEvaluation { model: self.request.model }),
        }
    }
}

fn give_up(request: Request, code: &str, cx: &mut Context<'_>) {
    let Request { round, model, .. } = request;
    cx.report(Fact::EvaluationDropped { round, model, code: code.to_owned() });
}
