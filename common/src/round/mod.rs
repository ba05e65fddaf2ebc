//! The rounds of a study: [`RoundMachine`], driven by events and a supplied time, answering with actions.
//!
//! ```text
//!             Start, quorum ready           all answered            all updated, or deadline;
//!             (and the expected,            or accept deadline      a quorum of updates
//!              or a little later)
//!   waiting ───────────────────► distributing ──────► collecting ──────────────► aggregating
//!      ▲                                               │      ▲                       │ Aggregated
//!      │                                deadline, too  ▼      │ enough updates        ▼
//!      │                                few updates    quorum-missing             committing
//!      │   rounds left (and the gate is open)                                         │ Committed: durable
//!      └──────────────────────────────────────────────────── committed ◄──────────────┘
//!                                             last round ───►  finished
//!
//!   aggregating ── UpdateLost ──► collecting
//!   any ── Pause, AggregationFailed, CommitFailed ──► the same, paused ── Resume, or a timer ──► the same
//!   any ── Abort ──► aborted
//! ```
//!
//! Each phase says in its own file, in three lines, what it waits for and how it ends. What holds in all of them:
//! * participants and their counts are fixed when the round opens; nothing below quorum (`coverage`) is aggregated;
//! * nothing is announced before it is durable (`Committed`), no receipt is given before the update is (`UpdateStored`);
//! * an update counts once; one that comes again is answered, one that comes late is refused with a stable code, or, if the
//!   study says so, counts in the next round (`late`);
//! * a trainer with too little to train on (`exclusion`) is not at hand until it registers a better manifest;
//! * a trainer that the study leaves out is never at hand: it is not asked, nor waited for, and its update is refused;
//! * an update that counted and is lost (a disk, not a site, lost it) is taken back, and its site is asked again;
//! * a site that returns is told again whatever concerns it, so that neither side needs memory of the connection.
//!
//! A driver calls, in this order: [`RoundMachine::new`] or [`RoundMachine::replay`] and then [`Event::Restarted`]; for each
//! thing that happens it writes the event to its journal, calls [`RoundMachine::tick`], then executes the actions. Before
//! it accepts the bytes of an update it asks [`RoundMachine::expect_update`]. Evaluation is beside: [`crate::evaluation`].

mod aggregating;
mod collecting;
mod committed;
mod coverage;
mod distributing;
mod event;
mod exclusion;
mod fact;
mod late;
mod opened;
mod paused;
mod phase;
mod plan;
mod progress;
mod rejection;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::late::PreviousRound;
use self::opened::OpenedRound;
use self::paused::Pause;
use self::phase::{Context, Phase, Roster};
use self::progress::Progress;
use self::waiting::Waiting;
use crate::ids::{ClassId, ModelHash, Role, RoundId, SiteId, StudyDigest};
use crate::journal::{self, Entry, RestoreError};
use crate::study::LeftOut;
use crate::time::Timestamp;

pub use coverage::{ClassShortage, SiteShortage};
pub use event::{
    Action, DeclineReason, Event, Fault, PauseReason, RoundOutcome, RoundTask, Term, Timer, UpdateOffer,
};
pub use exclusion::Exclusion;
pub use fact::Fact;
pub use opened::{Answer, Counted};
pub use plan::{Gate, Late, Quorum, RoundPlan};
pub use rejection::{Rejection, UpdateExpectation};

/// Format of [`Snapshot`].
pub const SNAPSHOT_VERSION: u32 = 1;

/// The machine's memory as it is kept on disk.
pub type Snapshot = journal::Snapshot<State>;

/// The rounds of one study. The module's text says how it behaves and how it is driven.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundMachine {
    plan: RoundPlan,
    state: State,
}

/// Everything that a machine remembers. Opaque; serialisable because it is the content of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    study: StudyDigest,
    roster: Roster,
    phase: Phase,
    pause: Option<Pause>,
    /// Faults since the last success.
    failures: u32,
    /// The updates of the last committed round: a receipt that was lost is given again.
    last_counted: BTreeMap<SiteId, Counted>,
    /// The last committed round, where the study takes late updates of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<PreviousRound>,
}

/// A command that makes no sense now; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The study was started before.
    #[error("the study is started already")]
    AlreadyStarted,
    /// The operator paused it before.
    #[error("the study is paused already")]
    AlreadyPaused,
    /// There is nothing to resume.
    #[error("the study is neither paused nor short of a quorum")]
    NothingToResume,
    /// It is finished or aborted.
    #[error("the study is over")]
    StudyOver,
}

/// Where a study stands, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// `waiting`, `distributing`, `collecting`, `quorum-missing`, `aggregating`, `committing`, `committed`, `finished` or
    /// `aborted`.
    pub phase: &'static str,
    /// The operator has started it.
    pub started: bool,
    /// The round that it is at.
    pub round: RoundId,
    /// Rounds in all.
    pub rounds: u32,
    /// The last durable model.
    pub model: ModelHash,
    /// The round that made it; 0 for the initial model.
    pub model_round: RoundId,
    /// Trainers at hand.
    pub ready: BTreeSet<SiteId>,
    /// What came of asking each site of the open round.
    pub answers: BTreeMap<SiteId, Answer>,
    /// Sites of which an update of the round before counts in the open one, because it came late.
    pub late: BTreeSet<SiteId>,
    /// Trainers that are not asked, and why.
    pub excluded: BTreeMap<SiteId, Exclusion>,
    /// How many sites the study waits for, whatever they annotate.
    pub sites_short: Option<SiteShortage>,
    /// Classes that the study waits for: of sites that annotate them to open a round, of their updates to close it.
    pub classes_short: BTreeMap<ClassId, ClassShortage>,
    /// Why it is paused, if it is.
    pub paused: Option<PauseReason>,
    /// The operator's own words for it.
    pub pause_words: Option<String>,
    /// The next wake-ups.
    pub timers: BTreeMap<Timer, Timestamp>,
}

impl RoundMachine {
    /// A study that nobody has started.
    pub fn new(plan: RoundPlan) -> Self {
        let state = State {
            study: plan.study,
            roster: Roster::default(),
            phase: Phase::Waiting(Waiting::new(RoundId(1), plan.initial_model, false)),
            pause: None,
            failures: 0,
            last_counted: BTreeMap::new(),
            previous: None,
        };
        Self { plan, state }
    }

    /// Continues from a snapshot.
    ///
    /// # Errors
    /// [`RestoreError`] when the snapshot is of another format or study.
    pub fn restore(plan: RoundPlan, snapshot: Snapshot) -> Result<Self, RestoreError> {
        let state = snapshot.open(SNAPSHOT_VERSION)?;
        if state.study != plan.study {
            let (expected, got) = (format!("study {}", plan.study), format!("study {}", state.study));
            return Err(RestoreError::Identity { expected, got });
        }
        Ok(Self { plan, state })
    }

    /// Continues from a snapshot and the events since; with no snapshot, from a new study. The actions of those events were
    /// executed or are asked for again by [`Event::Restarted`], which is to be ticked next.
    ///
    /// # Errors
    /// As [`RoundMachine::restore`].
    pub fn replay(
        plan: RoundPlan,
        snapshot: Option<Snapshot>,
        entries: impl IntoIterator<Item = Entry<Event>>,
    ) -> Result<Self, RestoreError> {
        let mut machine = match snapshot {
            Some(snapshot) => Self::restore(plan, snapshot)?,
            None => Self::new(plan),
        };
        for entry in entries {
            // A command that was refused then is refused now, and changes nothing.
            let _ = machine.tick(entry.event, entry.at);
        }
        Ok(machine)
    }

    /// The memory, to be kept; worth taking after each `Committed`.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { version: SNAPSHOT_VERSION, state: self.state.clone() }
    }

    /// Takes what happened at `now` and says what is to be done.
    ///
    /// # Errors
    /// [`CommandError`] when an operator's command makes no sense now; every other event has an outcome in every phase.
    pub fn tick(&mut self, event: Event, now: Timestamp) -> Result<Vec<Action>, CommandError> {
        let mut timers = self.timers();
        if let Event::TimerFired(timer) = event {
            timers.remove(&timer);
        }
        let mut actions = Vec::new();
        self.apply(event, now, &mut actions)?;
        self.advance(now, &mut actions);
        self.set_timers(&timers, &mut actions);
        Ok(actions)
    }

    /// What is under way, to be asked for again after a restart or whenever the driver lost track.
    pub fn outstanding(&self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut copy = self.clone();
        copy.with_context(now, &mut actions, |state, cx| {
            let (round, model) = state.phase.durable();
            if round.0 > 0 && cx.plan.evaluates(round) {
                cx.act(Action::Evaluate { round, model });
            }
            if state.pause.is_none() {
                state.ask(cx);
            }
        });
        self.set_timers(&BTreeMap::new(), &mut actions);
        actions
    }

    /// Whether the update that `site` offers is wanted. Changes nothing: ask as often as you like.
    ///
    /// # Errors
    /// [`Rejection`], to be answered to the site.
    pub fn expect_update(&self, site: &SiteId, offer: &UpdateOffer) -> Result<UpdateExpectation, Rejection> {
        let State { phase, last_counted, .. } = &self.state;
        if offer.study != self.plan.study {
            return Err(Rejection::WrongStudy { expected: self.plan.study, got: offer.study });
        }
        if self.plan.leave_out.contains(site) {
            return Err(LeftOut { site: site.clone() }.into());
        }
        if let Some(counted) = last_counted.get(site).filter(|_| offer.round == phase.durable().0) {
            return counted.compare(offer);
        }
        let current = phase.round();
        if matches!(phase, Phase::Finished(_) | Phase::Aborted(_)) {
            return Err(Rejection::StudyOver);
        }
        if offer.round > current || matches!(phase, Phase::Waiting(_)) && offer.round == current {
            return Err(Rejection::RoundNotOpen { round: offer.round });
        }
        let previous = self.state.previous.as_ref();
        if let Some(late) = previous.and_then(|previous| previous.expect(site, offer, phase, &self.plan)) {
            return late;
        }
        match phase.opened().filter(|_| offer.round == current) {
            None => Err(Rejection::RoundClosed { round: offer.round, current }),
            Some(opened) => {
                let expectation = opened.expect(site, offer, &self.plan)?;
                if expectation == UpdateExpectation::AlreadyCounted || phase.taking().is_some() {
                    return Ok(expectation);
                }
                Err(late::too_late_for(current, &self.plan))
            }
        }
    }

    /// Whether `site` may be training for `round`, whose steps are so many: it was asked, and the round is open or still takes its update
    /// late.
    pub fn expects_progress(&self, site: &SiteId, round: RoundId, steps: u32) -> bool {
        let State { phase, previous, .. } = &self.state;
        let opened = phase.opened().filter(|opened| opened.round == round);
        let is_asked = opened.is_some_and(|opened| opened.answer_of(site).is_some());
        let is_late = self.takes_late(round) && previous.as_ref().is_some_and(|before| before.awaits(site));
        steps == self.plan.steps && (is_asked || is_late)
    }

    /// Whether an update of `round`, which has closed, may still come to count: what is stored of it is to be kept.
    pub fn takes_late(&self, round: RoundId) -> bool {
        let over = matches!(self.state.phase, Phase::Finished(_) | Phase::Aborted(_));
        !over && self.state.previous.as_ref().is_some_and(|previous| previous.round == round)
    }

    /// The updates that the open round's model is still to be made of, each with the round that it was trained for: the one before,
    /// if it came late. Until the model is made, they must be in the store.
    pub fn counted(&self) -> BTreeMap<SiteId, (RoundId, Counted)> {
        let summands = match &self.state.phase {
            Phase::Committing(_) => BTreeMap::new(),
            phase => phase.opened().map(OpenedRound::summands).unwrap_or_default(),
        };
        summands.into_iter().map(|(site, (round, _, counted))| (site, (round, counted))).collect()
    }

    /// Which sites of the open round's aggregate annotate each class, by the manifests that it opened with: one that comes while it
    /// is under way speaks for the next.
    pub fn annotating(&self) -> BTreeMap<ClassId, BTreeSet<SiteId>> {
        self.state.phase.opened().map(OpenedRound::annotating).unwrap_or_default()
    }

    /// The study's plan.
    pub const fn plan(&self) -> &RoundPlan {
        &self.plan
    }

    /// Whether a site of this role has no part in the study any more. A finished one may still want its last model scored.
    pub const fn is_over_for(&self, role: Role) -> bool {
        match self.state.phase {
            Phase::Aborted(_) => true,
            Phase::Finished(_) => matches!(role, Role::Trainer),
            _ => false,
        }
    }

    /// Where the study stands.
    pub fn status(&self) -> Status {
        let State { phase, roster, pause, .. } = &self.state;
        let (model_round, model) = phase.durable();
        let answers = phase.opened().into_iter().flat_map(|opened| &opened.participants);
        Status {
            phase: phase.name(),
            started: !matches!(phase, Phase::Waiting(waiting) if !waiting.started),
            round: phase.round(),
            rounds: self.plan.rounds,
            model,
            model_round,
            ready: roster.sites(),
            answers: answers.map(|(site, known)| (site.clone(), known.answer.clone())).collect(),
            late: phase
                .opened()
                .into_iter()
                .flat_map(|opened| opened.late())
                .map(|(site, _)| site.clone())
                .collect(),
            excluded: roster.excluded.clone(),
            sites_short: phase.sites_short(&self.plan, &roster.ready),
            classes_short: phase.classes_short(&self.plan, &roster.ready),
            paused: pause.as_ref().map(|pause| pause.reason),
            pause_words: pause.as_ref().and_then(|pause| pause.words.clone()),
            timers: self.timers(),
        }
    }

    fn with_context<T>(
        &mut self,
        now: Timestamp,
        actions: &mut Vec<Action>,
        run: impl FnOnce(&mut Progress<'_>, &mut Context<'_>) -> T,
    ) -> T {
        let Self { plan, state } = self;
        let State { roster, phase, pause, failures, last_counted, previous, .. } = state;
        let mut cx = Context { plan, roster, now, actions };
        run(&mut Progress { phase, pause, failures, last_counted, previous }, &mut cx)
    }

    /// Records the event.
    fn apply(&mut self, event: Event, now: Timestamp, actions: &mut Vec<Action>) -> Result<(), CommandError> {
        if let Event::Restarted = event {
            self.state.roster.ready.clear();
            // What was under way ended with the process; in a pause it is not asked for again before that ends.
            let paused = self.state.pause.is_some();
            self.state.phase.idle_mut().into_iter().for_each(|idle| *idle = paused);
            actions.extend(self.outstanding(now));
            return Ok(());
        }
        if let Event::UpdateStored { site, offer } = event {
            let verdict = self.expect_update(&site, &offer);
            self.with_context(now, actions, |state, cx| state.take_update(site, &offer, verdict, cx));
            return Ok(());
        }
        self.with_context(now, actions, |state, cx| state.apply(event, cx))
    }

    /// Moves on as far as time and answers allow.
    fn advance(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.with_context(now, actions, |state, cx| {
            if state.pause.as_ref().and_then(|pause| pause.retry_at).is_some_and(|at| at <= cx.now) {
                state.resume(cx);
            }
            while state.pause.is_none()
                && let Some(next) = state.phase.advance(cx)
            {
                *state.phase = next;
            }
        });
    }

    fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        match &self.state.pause {
            Some(pause) => pause.timers(),
            None => self.state.phase.timers(),
        }
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
