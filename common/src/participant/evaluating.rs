//! An evaluator's work: models to score, one at a time, the newest round first, since gates and people wait for it.
//!
//! The queue is bounded. When it is full the oldest round's model makes room and that is said; the coordinator asks again at
//! the next connection, so nothing is lost for good. A request that is queued or under way already changes nothing.
//!
//! One that the coordinator holds up, as its model cannot be fetched or its report is not taken, makes way for those of other studies. It goes
//! on being tried: that needs no device.

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
    /// Those that made way: none of them is being scored, and each is of another model, after which its report is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aside: Vec<Evaluating>,
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
        let begun = self.begun().map(|begun| &begun.request);
        if self.pending.iter().chain(&self.given_up).chain(begun).any(same) {
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
        self.make_way(cx);
        while self.current.is_none()
            && let Some(request) = self.newest()
        {
            self.pending.remove(&request);
            let Some(needs) = studies.needs(request.study) else { continue };
            let missing = needs.iter().copied().chain([request.model]).collect();
            let step = EvaluationStep::Fetching(Fetch::begin(missing, cx));
            self.current = Some(Evaluating { request, step, lost: 0 });
        }
    }

    /// The newest of those that can begin, and first of studies that have nothing aside.
    fn newest(&self) -> Option<Request> {
        let aside = || self.aside.iter().map(|aside| aside.request);
        let can_begin = |next: &&Request| aside().all(|aside| aside.model != next.model);
        let is_free = |next: &&Request| can_begin(next) && aside().all(|aside| aside.study != next.study);
        let newest_first = || self.pending.iter().rev();
        newest_first().find(is_free).or_else(|| newest_first().find(can_begin)).copied()
    }

    /// Sets aside what the coordinator holds up, where another study waits.
    fn make_way(&mut self, cx: &mut Context<'_>) {
        let Some(current) = &self.current else { return };
        let Request { study, round, .. } = current.request;
        let Some(step) = current.step.name().filter(|_| current.step.retry().makes_way()) else { return };
        if self.pending.iter().any(|next| next.study != study) {
            cx.report(Fact::SetAside { study, round, step });
            self.aside.extend(self.current.take());
        }
    }

    pub(super) fn stored(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        let mut ours = false;
        if let Some(current) = &mut self.current
            && let EvaluationStep::Fetching(fetch) = &mut current.step
        {
            ours = fetch.stored(artifact);
            if fetch.complete() {
                current.step = EvaluationStep::Scoring { retry: Retry::default() };
                current.ask(cx);
            }
        }
        // One that was set aside waits for its turn to be scored.
        let complete = self.aside.extract_if(.., |aside| match &mut aside.step {
            EvaluationStep::Fetching(fetch) => {
                ours |= fetch.stored(artifact);
                fetch.complete()
            }
            _ => false,
        });
        self.pending.extend(complete.map(|aside| aside.request));
        ours
    }

    pub(super) fn fetch_failed(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        self.begun_mut().fold(false, |ours, begun| match &mut begun.step {
            EvaluationStep::Fetching(fetch) => fetch.failed(artifact, cx) || ours,
            _ => ours,
        })
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
        let Some(begun) = self.begun_of(model) else { return false };
        let EvaluationStep::Sending { .. } = begun.step else { return false };
        let request = begun.request;
        match refusal {
            None => cx.report(Fact::ReportDelivered { round: request.round, model }),
            Some(code) => give_up(request, code, cx),
        }
        self.end(model);
        true
    }

    pub(super) fn report_failed(&mut self, model: ModelHash, cx: &mut Context<'_>) -> bool {
        let connected = cx.connected;
        match self.begun_of(model).map(|begun| &mut begun.step) {
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
        let Some(begun) = self.begun_of(model) else { return false };
        let EvaluationStep::Sending { .. } = begun.step else { return false };
        begun.lost = begun.lost.saturating_add(1);
        if begun.lost > MOST_FAILURES {
            give_up(begun.request, "report-damaged", cx);
            self.end(model);
            return true;
        }
        match self.current_of(model) {
            Some(current) => {
                current.step = EvaluationStep::Scoring { retry: Retry::default() };
                current.ask(cx);
            }
            None => {
                let lost = self.aside.extract_if(.., |aside| aside.request.model == model);
                self.pending.extend(lost.map(|aside| aside.request));
            }
        }
        true
    }

    /// Forgets the evaluations of a study.
    pub(super) fn leave(&mut self, study: StudyDigest, cx: &mut Context<'_>) {
        self.pending.retain(|request| request.study != study);
        self.given_up.retain(|request| request.study != study);
        let left = self.aside.extract_if(.., |aside| aside.request.study == study);
        let left = left.chain(self.current.take_if(|current| current.request.study == study));
        left.for_each(|left| left.cancel(cx));
    }

    /// Asks again for the steps at hand that do not wait for a timer.
    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        self.begun().filter(|begun| begun.step.retry().at.is_none()).for_each(|begun| begun.ask(cx));
    }

    /// Asks again for the steps that need the coordinator.
    pub(super) fn connected(&self, cx: &mut Context<'_>) {
        self.begun().filter(|begun| begun.step.name().is_some()).for_each(|begun| begun.ask(cx));
    }

    /// The steps that need the coordinator wait for the next connection.
    pub(super) fn disconnected(&mut self) {
        let waiting = self.begun_mut().filter(|begun| begun.step.name().is_some());
        waiting.for_each(|begun| begun.step.retry_mut().at = None);
    }

    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        self.begun().filter_map(|begun| begun.step.retry().at).min()
    }

    /// Asks for the steps whose time has come; false if there is none.
    pub(super) fn ask_due(&mut self, cx: &mut Context<'_>) -> bool {
        self.begun_mut().fold(false, |any, begun| {
            let is_due = begun.step.retry_mut().take_due(cx.now);
            if is_due {
                begun.ask(cx);
            }
            any || is_due
        })
    }

    /// Models that wait or are under way, by round.
    pub(super) fn models(&self) -> BTreeMap<RoundId, ModelHash> {
        let begun = self.begun().map(|begun| &begun.request);
        self.pending.iter().chain(begun).map(|request| (request.round, request.model)).collect()
    }

    /// Study and round of each that was set aside.
    pub(super) fn set_aside(&self) -> impl Iterator<Item = (StudyDigest, RoundId)> {
        self.aside.iter().map(|aside| (aside.request.study, aside.request.round))
    }

    /// Name of the step at hand, if only of one that was set aside.
    pub(super) fn step_name(&self) -> &'static str {
        match self.begun().next().map(|begun| &begun.step) {
            None => "idle",
            Some(EvaluationStep::Fetching(_)) => "downloading",
            Some(EvaluationStep::Scoring { .. }) => "evaluating",
            Some(EvaluationStep::Sending { .. }) => "reporting",
        }
    }

    fn current_of(&mut self, model: ModelHash) -> Option<&mut Evaluating> {
        self.current.as_mut().filter(|current| current.request.model == model)
    }

    /// The one under way, and those that were set aside.
    fn begun(&self) -> impl Iterator<Item = &Evaluating> {
        self.current.iter().chain(&self.aside)
    }

    fn begun_mut(&mut self) -> impl Iterator<Item = &mut Evaluating> {
        self.current.iter_mut().chain(&mut self.aside)
    }

    fn begun_of(&mut self, model: ModelHash) -> Option<&mut Evaluating> {
        self.begun_mut().find(|begun| begun.request.model == model)
    }

    /// What is begun about a model is over.
    fn end(&mut self, model: ModelHash) {
        self.current.take_if(|current| current.request.model == model);
        self.aside.retain(|aside| aside.request.model != model);
    }
}

impl EvaluationStep {
    /// Its name where it needs the coordinator.
    const fn name(&self) -> Option<Step> {
        match self {
            Self::Fetching(_) => Some(Step::Fetch),
            Self::Scoring { .. } => None,
            Self::Sending { .. } => Some(Step::Report),
        }
    }

    const fn retry(&self) -> &Retry {
        match self {
            Self::Fetching(fetch) => &fetch.retry,
            Self::Scoring { retry } | Self::Sending { retry, .. } => retry,
        }
    }

    const fn retry_mut(&mut self) -> &mut Retry {
        match self {
            Self::Fetching(fetch) => &mut fetch.retry,
            Self::Scoring { retry } | Self::Sending { retry, .. } => retry,
        }
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
