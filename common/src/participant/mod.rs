//! A site's part in a study: [`ParticipantMachine`], driven by events and a supplied time, answering with actions.
//!
//! ```text
//!            RoundOpened              all fetched            Trained: durable in the outbox
//!   idle ───────────────► downloading ───────────► training ───────────────────────► uploading
//!    ▲                         │                       │                                 │
//!    └──── RoundClosed, a newer round, StudyFinished, StudyRefused; Receipt, Refused ────┘
//! ```
//!
//! Where a study takes late updates into the next round, training and uploading go on when their own round closes, and the
//! next round waits here until the coordinator has answered.
//!
//! Connections come and go in any phase: training goes on without one, the other steps are taken up again with the next.
//! After a restart the journal gives back the phase: what was trained is offered under the same attempt id, so that it counts
//! once; what was not is trained on from where the driver kept it. An evaluator has no rounds but a queue of models
//! (`evaluating`).
//!
//! A site that has nothing to train on says so of its own accord, before it is asked.
//! A study that this site has not approved gets [`Action::AskApproval`], a declined round, and nothing else.
//!
//! A driver calls, in this order: [`ParticipantMachine::new`] or [`ParticipantMachine::replay`] and then
//! [`Event::Restarted`]; for each thing that happens it writes the event to its journal, calls [`ParticipantMachine::tick`],
//! then executes the actions. When to dial again is the driver's matter.

mod downloading;
mod evaluating;
mod event;
mod idle;
mod phase;
mod retry;
#[cfg(test)]
mod tests;
mod training;
mod uploading;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::downloading::{Downloading, Fetch};
use self::evaluating::{Evaluations, Request};
use self::idle::{Standing, Studies};
use self::phase::{Context, Phase};
use self::training::Training;
use self::uploading::Uploading;
use crate::ids::{ArtifactHash, AttemptId, Digest, ModelHash, Role, RoundId, SiteId, StudyDigest};
use crate::journal::{self, Entry, RestoreError};
use crate::round::{DeclineReason, RoundTask, UpdateOffer};
use crate::time::Timestamp;

pub use event::{Action, DropReason, Event, Fact, Step, Timer};

/// Format of [`Snapshot`].
pub const SNAPSHOT_VERSION: u32 = 1;

/// The machine's memory as it is kept on disk.
pub type Snapshot = journal::Snapshot<State>;

/// Who this participant is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The site's name.
    pub site: SiteId,
    /// What it is for.
    pub role: Role,
    /// Drawn at random when the site's state folder was made, and kept there: attempt ids of a site that lost its memory
    /// differ from those that it used before.
    pub installation: [u8; 16],
}

/// One site's part in the studies that it is offered. The module's text says how it behaves and how it is driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantMachine {
    state: State,
}

/// Everything that a machine remembers. Opaque; serialisable because it is the content of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    identity: Identity,
    connected: bool,
    studies: Studies,
    phase: Phase,
    evaluations: Evaluations,
    /// Trainings begun so far; makes each attempt id a new one.
    trainings: u64,
    /// The open round, which waits until an update of the one before has its answer. The coordinator says it again at each
    /// connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<RoundTask>,
    /// The work under way is older than the connection, on which the coordinator has not named its round yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unconfirmed: bool,
}

/// Where a site stands, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `idle`, `downloading`, `training` or `uploading`.
    pub phase: &'static str,
    /// Study and round of the work under way.
    pub work: Option<(StudyDigest, RoundId)>,
    /// `idle`, `downloading`, `evaluating` or `reporting`.
    pub evaluation: &'static str,
    /// Models that wait for their evaluation or are under it, by round.
    pub evaluations: BTreeMap<RoundId, ModelHash>,
    /// Whether the coordinator has welcomed this connection.
    pub connected: bool,
    /// Studies of which nobody here has decided whether the site takes part.
    pub undecided: BTreeSet<StudyDigest>,
}

impl ParticipantMachine {
    /// A site that has not heard of any study.
    pub fn new(identity: Identity) -> Self {
        let (studies, phase, evaluations) = (Studies::default(), Phase::Idle, Evaluations::default());
        let (connected, unconfirmed, trainings, next) = (false, false, 0, None);
        let state = State { identity, connected, studies, phase, evaluations, trainings, next, unconfirmed };
        Self { state }
    }

    /// Continues from a snapshot.
    ///
    /// # Errors
    /// [`RestoreError`] when the snapshot is of another format, site, role or installation.
    pub fn restore(identity: &Identity, snapshot: Snapshot) -> Result<Self, RestoreError> {
        let state = snapshot.open(SNAPSHOT_VERSION)?;
        if state.identity != *identity {
            let name = |identity: &Identity| format!("{} {}", identity.role, identity.site);
            return Err(RestoreError::Identity { expected: name(identity), got: name(&state.identity) });
        }
        Ok(Self { state })
    }

    /// Continues from a snapshot, or from nothing, and the events since; [`Event::Restarted`] is to be ticked next.
    ///
    /// # Errors
    /// As [`ParticipantMachine::restore`].
    pub fn replay(
        identity: &Identity,
        snapshot: Option<Snapshot>,
        entries: impl IntoIterator<Item = Entry<Event>>,
    ) -> Result<Self, RestoreError> {
        let mut machine = match snapshot {
            Some(snapshot) => Self::restore(identity, snapshot)?,
            None => Self::new(identity.clone()),
        };
        for entry in entries {
            machine.tick(entry.event, entry.at);
        }
        Ok(machine)
    }

    /// The memory, to be kept; worth taking whenever the phase is `idle` again.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { version: SNAPSHOT_VERSION, state: self.state.clone() }
    }

    /// Takes what happened at `now` and says what is to be done. Every event has an outcome in every phase.
    pub fn tick(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut timers = self.timers();
        match event {
            // The timers went with the process.
            Event::Restarted => timers.clear(),
            Event::TimerFired(timer) => {
                timers.remove(&timer);
            }
            _ => {}
        }
        let mut actions = Vec::new();
        self.state.apply(event, now, &mut actions);
        self.set_timers(&timers, &mut actions);
        actions
    }

    /// What is under way, to be asked for again after a restart or whenever the driver lost track.
    pub fn outstanding(&self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        self.state.clone().ask(now, &mut actions);
        self.set_timers(&BTreeMap::new(), &mut actions);
        actions
    }

    /// Where the site stands.
    pub fn status(&self) -> Status {
        let State { phase, studies, evaluations, connected, .. } = &self.state;
        Status {
            phase: phase.name(),
            work: phase.work().map(|(study, round, _)| (study, round)),
            evaluation: evaluations.step_name(),
            evaluations: evaluations.models(),
            connected: *connected,
            undecided: studies.undecided(),
        }
    }

    fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        let round = self.state.phase.retry_at().map(|at| (Timer::Round, at));
        let evaluation = self.state.evaluations.retry_at().map(|at| (Timer::Evaluation, at));
        round.into_iter().chain(evaluation).collect()
    }

    /// Sets and clears what differs from `before`, so that no phase can forget a timer.
    fn set_timers(&self, before: &BTreeMap<Timer, Timestamp>, actions: &mut Vec<Action>) {
        let after = self.timers();
        for (&timer, &at) in after.iter().filter(|(timer, at)| before.get(timer) != Some(at)) {
            actions.push(Action::SetTimer { timer, at });
        }
        for &timer in before.keys().filter(|timer| !after.contains_key(timer)) {
            actions.push(Action::ClearTimer(timer));
        }
    }
}

impl State {
    fn apply(&mut self, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        let name = event.name();
        // The connection's own events change what the context says.
        match event {
            Event::Connected => self.connected = true,
            Event::Disconnected | Event::Restarted => self.connected = false,
            _ => {}
        }
        let mut cx = Context { connected: self.connected, now, actions };
        if !self.handle(event, &mut cx) {
            cx.report(Fact::EventIgnored { event: name, phase: self.phase.name() });
        }
        self.evaluations.begin_next(&self.studies, &mut cx);
    }

    /// False when the event changes nothing here.
    fn handle(&mut self, event: Event, cx: &mut Context<'_>) -> bool {
        match event {
            Event::Restarted => {
                self.disconnected();
                self.ask(cx.now, cx.actions);
                true
            }
            Event::Connected => {
                self.unconfirmed = self.phase.work().is_some();
                self.phase.connected(cx);
                self.evaluations.connected(cx);
                true
            }
            Event::Disconnected => {
                self.disconnected();
                true
            }
            Event::StudyOffered { study } => self.offered(study, cx),
            Event::StudyApproved { study, needs, takes_late } => {
                self.approved(study, Standing::Approved { needs, takes_late }, cx)
            }
            Event::StudyRefused { study } => self.refused_study(study, cx),
            Event::DataUnusable { study, reason } => {
                cx.report(Fact::DataUnusable { study, reason });
                // Without a connection it is counted again at the next: the coordinator offers the study anew.
                if cx.connected {
                    cx.act(Action::DeclineRound { study, round: RoundId(0), reason });
                }
                true
            }
            Event::RoundOpened { task } => self.opened(task, cx),
            Event::RoundClosed { study, round } => self.closed(study, round, cx),
            Event::EvaluationRequested { study, round, model } => {
                let wanted = self.identity.role == Role::Evaluator && self.studies.needs(study).is_some();
                wanted && self.evaluations.request(Request { round, model, study }, cx)
            }
            Event::StudyPaused { .. } => {
                cx.report(Fact::StudyPaused);
                true
            }
            Event::StudyFinished { study } => self.finished(study, cx),
            Event::ModelStored { artifact } => {
                let downloaded = self.stored(artifact, cx);
                self.evaluations.stored(artifact, cx) || downloaded
            }
            Event::FetchFailed { artifact } => {
                let round = match &mut self.phase {
                    Phase::Downloading(phase) => phase.fetch.failed(artifact, cx),
                    _ => false,
                };
                self.evaluations.fetch_failed(artifact, cx) || round
            }
            Event::Trained { attempt, update, steps } => self.trained(attempt, update, steps, cx),
            Event::TrainingFailed { attempt } => self.training_failed(attempt, cx),
            Event::Receipt { attempt } => self.uploaded(attempt, DropReason::Counted, cx),
            Event::Refused { attempt, code } => self.refused_update(attempt, code, cx),
            Event::UploadFailed { attempt } => self.upload_failed(attempt, cx),
            Event::Evaluated { model, report } => self.evaluations.evaluated(model, report, cx),
            Event::EvaluationFailed { model } => self.evaluations.evaluation_failed(model, cx),
            Event::ReportReceipt { model } => self.evaluations.answered(model, None, cx),
            Event::ReportRefused { model, code } => self.evaluations.answered(model, Some(&code), cx),
            Event::ReportFailed { model } => self.evaluations.report_failed(model, cx),
            Event::TimerFired(Timer::Round) => {
                let due = self.phase.take_due(cx.now);
                if due {
                    self.phase.ask(cx);
                }
                due
            }
            Event::TimerFired(Timer::Evaluation) => {
                let due = self.evaluations.take_due(cx.now);
                if due {
                    self.evaluations.ask(cx);
                }
                due
            }
        }
    }

    fn disconnected(&mut self) {
        self.next = None;
        self.phase.disconnected();
        self.evaluations.disconnected();
    }

    /// Asks for what is under way and does not wait for a timer.
    fn ask(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let mut cx = Context { connected: self.connected, now, actions };
        cx.act(Action::PruneOutbox { keep: self.phase.attempt() });
        if self.phase.retry_at().is_none() {
            self.phase.ask(&mut cx);
        }
        if self.evaluations.retry_at().is_none() {
            self.evaluations.ask(&mut cx);
        }
    }

    fn offered(&mut self, study: StudyDigest, cx: &mut Context<'_>) -> bool {
        match self.studies.standing(study) {
            Some(Standing::Approved { .. }) => cx.act(Action::RegisterManifest { study }),
            Some(Standing::Refused) => return false,
            Some(Standing::Asked) => cx.act(Action::AskApproval { study }),
            None => {
                self.studies.set(study, Standing::Asked);
                cx.report(Fact::ApprovalNeeded { study });
                cx.act(Action::AskApproval { study });
            }
        }
        true
    }

    fn approved(&mut self, study: StudyDigest, standing: Standing, cx: &mut Context<'_>) -> bool {
        let news = self.studies.standing(study) != Some(&standing);
        self.studies.set(study, standing);
        // Also when it is no news: registering is idempotent, and the coordinator may have missed it.
        if cx.connected {
            cx.act(Action::RegisterManifest { study });
        }
        news
    }

    fn refused_study(&mut self, study: StudyDigest, cx: &mut Context<'_>) -> bool {
        let news = self.studies.standing(study) != Some(&Standing::Refused);
        self.studies.set(study, Standing::Refused);
        if let Some((working, round, _)) = self.phase.work()
            && working == study
        {
            decline(study, round, DeclineReason::Policy, cx);
        }
        self.leave_study(study, cx);
        self.evaluations.leave(study, cx);
        news
    }

    /// The study is past, but an evaluator that approved it may still owe the report on its last model.
    fn finished(&mut self, study: StudyDigest, cx: &mut Context<'_>) -> bool {
        let owes = self.identity.role == Role::Evaluator && self.studies.needs(study).is_some();
        let known = owes || self.studies.forget(study);
        if known {
            cx.report(Fact::StudyFinished);
            self.leave_study(study, cx);
        }
        known
    }

    fn leave_study(&mut self, study: StudyDigest, cx: &mut Context<'_>) {
        self.next.take_if(|next| next.study == study);
        if self.phase.work().is_some_and(|(working, ..)| working == study) {
            self.phase.leave(DropReason::StudyOver, cx);
        }
    }

    fn opened(&mut self, task: RoundTask, cx: &mut Context<'_>) -> bool {
        if self.identity.role != Role::Trainer {
            decline(task.study, task.round, DeclineReason::Evaluator, cx);
            return true;
        }
        let Some(needs) = self.studies.needs(task.study) else {
            decline(task.study, task.round, DeclineReason::NotApproved, cx);
            return true;
        };
        match self.phase.work() {
            Some(work) if work == (task.study, task.round, task.base) => {
                self.unconfirmed = false;
                cx.act(Action::AcceptRound { task });
                self.phase.reopened(cx);
                return true;
            }
            // A notice that was overtaken. On a connection that never named the later round it is none: the coordinator
            // was restored from a backup, and asks for what it does not remember.
            Some((study, round, _)) if study == task.study && round > task.round && !self.unconfirmed => {
                return false;
            }
            Some((study, round, _))
                if study == task.study && round.next() == task.round && self.ends_late() =>
            {
                self.wait_with(task, cx);
                return true;
            }
            Some(_) => self.phase.leave(DropReason::RoundClosed, cx),
            None => {}
        }
        (self.next, self.unconfirmed) = (None, false);
        let missing = needs.iter().copied().chain([task.base]).collect();
        cx.report(Fact::RoundStarted { round: task.round });
        cx.act(Action::AcceptRound { task: task.clone() });
        let fetch = Fetch::begin(missing, cx);
        self.phase = Phase::Downloading(Downloading { task, fetch });
        true
    }

    /// Whether the work under way, whose round is over, is worth its end: the study takes its update into the next round.
    fn ends_late(&self) -> bool {
        let begun = matches!(self.phase, Phase::Training(_) | Phase::Uploading(_));
        begun && self.phase.work().is_some_and(|(study, ..)| self.studies.takes_late(study))
    }

    /// Keeps the open round until the update of the one before has its answer, and says that nobody need wait.
    fn wait_with(&mut self, task: RoundTask, cx: &mut Context<'_>) {
        if self.next.as_ref().is_none_or(|next| next.round != task.round) {
            decline(task.study, task.round, DeclineReason::Busy, cx);
        }
        self.next = Some(task);
        // What the coordinator would not take between two rounds is welcome now.
        self.phase.reopened(cx);
    }

    /// Begins the round that waited, if one did.
    fn take_next(&mut self, cx: &mut Context<'_>) {
        if let Some(task) = self.next.take() {
            self.opened(task, cx);
        }
    }

    fn closed(&mut self, study: StudyDigest, round: RoundId, cx: &mut Context<'_>) -> bool {
        self.next.take_if(|next| next.study == study && next.round <= round);
        match self.phase.work() {
            Some((working, at, _)) if working == study && at == round && self.ends_late() => {
                cx.report(Fact::RoundMissed { round });
            }
            Some((working, at, _)) if working == study && at <= round => {
                self.phase.leave(DropReason::RoundClosed, cx);
            }
            _ => return false,
        }
        true
    }

    fn stored(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        let Phase::Downloading(phase) = &mut self.phase else { return false };
        let ours = phase.fetch.stored(artifact);
        if phase.fetch.complete() {
            let task = phase.task.clone();
            self.trainings = self.trainings.saturating_add(1);
            let attempt = self.identity.attempt(&task, self.trainings);
            self.phase = Phase::Training(Training::begin(task, attempt, cx));
        }
        ours
    }

    fn trained(
        &mut self,
        attempt: AttemptId,
        update: ArtifactHash,
        steps: u32,
        cx: &mut Context<'_>,
    ) -> bool {
        let phase = match &self.phase {
            Phase::Training(phase) if phase.attempt == attempt => phase,
            Phase::Uploading(phase) if phase.offer.attempt == attempt => return false,
            // It ended while it was being cancelled.
            _ => {
                cx.act(Action::DropUpdate { attempt, reason: DropReason::RoundClosed });
                return false;
            }
        };
        let RoundTask { study, round, base, .. } = phase.task;
        cx.report(Fact::UpdateReady { round, attempt });
        let offer = UpdateOffer { study, round, base, attempt, steps, update };
        self.phase = Phase::Uploading(Uploading::begin(offer, cx));
        true
    }

    fn training_failed(&mut self, attempt: AttemptId, cx: &mut Context<'_>) -> bool {
        let Phase::Training(phase) = &mut self.phase else { return false };
        if phase.attempt != attempt {
            return false;
        }
        if !phase.failed(cx) {
            decline(phase.task.study, phase.task.round, DeclineReason::TrainingFailed, cx);
            cx.act(Action::CancelTraining { attempt });
            self.phase = Phase::Idle;
            self.take_next(cx);
        }
        true
    }

    fn uploading(&mut self, attempt: AttemptId) -> Option<&mut Uploading> {
        match &mut self.phase {
            Phase::Uploading(phase) if phase.offer.attempt == attempt => Some(phase),
            _ => None,
        }
    }

    /// The coordinator's last word on the update.
    fn uploaded(&mut self, attempt: AttemptId, reason: DropReason, cx: &mut Context<'_>) -> bool {
        let Some(phase) = self.uploading(attempt).cloned() else { return false };
        self.phase = Phase::Idle;
        phase.drop_update(reason, cx);
        self.take_next(cx);
        true
    }

    fn refused_update(&mut self, attempt: AttemptId, code: String, cx: &mut Context<'_>) -> bool {
        if uploading::KEEP_CODES.contains(&code.as_str()) {
            return self.upload_failed(attempt, cx);
        }
        self.uploaded(attempt, DropReason::Refused(code), cx)
    }

    fn upload_failed(&mut self, attempt: AttemptId, cx: &mut Context<'_>) -> bool {
        let phase = self.uploading(attempt).filter(|phase| phase.offered);
        phase.map(|phase| phase.failed(cx)).is_some()
    }
}

impl Identity {
    /// The id of the `number`th training here. Random to everybody else, and the same again when the journal is replayed.
    fn attempt(&self, task: &RoundTask, number: u64) -> AttemptId {
        let text = format!("{} {} {} {} {number}", self.site, task.study, task.round, task.base);
        let digest =
            Digest::of(&[b"consilium attempt 1\0".as_slice(), &self.installation, text.as_bytes()].concat());
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_bytes()[..16]);
        AttemptId::from_bytes(id)
    }
}

fn decline(study: StudyDigest, round: RoundId, reason: DeclineReason, cx: &mut Context<'_>) {
    cx.report(Fact::RoundDeclined { round, reason });
    cx.act(Action::DeclineRound { study, round, reason });
}
