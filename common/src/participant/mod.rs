//! A site's part in a study: [`ParticipantMachine`], driven by events and a supplied time, answering with actions.
//!
//! ```text
//!            RoundOpened              all fetched            Trained: durable in the outbox
//!   idle ───────────────► downloading ───────────► training ───────────────────────► uploading
//!    ▲                         │                       │                                 │
//!    └──── RoundClosed, a newer round, StudyFinished, StudyRefused; Receipt, Refused ────┘
//! ```
//!
//! An update that the disk lost or changed goes back from uploading to training, in the same attempt.
//!
//! Where a study takes late updates into the next round, training and uploading go on when their own round closes, and the
//! next round waits here until the coordinator has answered. A round of another study waits too, whatever is under way: it is
//! declined as `Busy`, so that nobody waits for this site, and accepted when it is its turn, if it is open still. Studies that run
//! at once have the site by turns, a round each. A finished update that the coordinator does not take makes way for them, and goes on
//! being offered meanwhile; so does a report, and a model that cannot be fetched, for those of other studies.
//!
//! Connections come and go in any phase: training goes on without one, the other steps are taken up again with the next.
//! After a restart the journal gives back the phase: what was trained is offered under the same attempt id, so that it counts
//! once; what was not is trained on from where the driver kept it, but not for ever: a process that dies in the midst of it again
//! and again, for more than an hour, gives it up. What was fetched and is damaged when it is used is fetched again.
//! An evaluator has no rounds but a queue of models (`evaluating`). What an event does in several phases is in `progress`.
//!
//! A site that has nothing to train on says so of its own accord, before it is asked.
//! A study that this site has not approved gets [`Action::AskApproval`], a declined round, and nothing else.
//!
//! A driver calls, in this order: [`ParticipantMachine::new`] or [`ParticipantMachine::replay`] and then
//! [`Event::Started`]; for each thing that happens it writes the event to its journal, calls [`ParticipantMachine::tick`],
//! then executes the actions; when it ends for anything but its work, it writes [`Event::Stopped`]. When to dial again is the driver's
//! matter.

mod downloading;
mod evaluating;
mod event;
mod idle;
mod phase;
mod progress;
mod retry;
#[cfg(test)]
mod tests;
mod training;
mod uploading;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Deserializer, Serialize};

use self::evaluating::Evaluations;
use self::idle::Studies;
use self::phase::Phase;
use self::uploading::Aside;
use crate::ids::{ArtifactHash, ModelHash, Role, RoundId, SiteId, StudyDigest};
use crate::journal::{self, Entry, RestoreError};
use crate::round::RoundTask;
use crate::time::Timestamp;

pub use event::{Action, DropReason, Event, Fact, Step, Timer};
pub use retry::{BETWEEN_INTERRUPTIONS, MOST_INTERRUPTIONS, timer_is_due};
pub use uploading::WITHHELD_CODE;

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
    /// Finished updates that made way for other studies. While a study has one, its own next round waits: one update of a study at a time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    aside: BTreeMap<StudyDigest, Aside>,
    evaluations: Evaluations,
    /// Trainings begun so far; makes each attempt id a new one.
    trainings: u64,
    /// Open rounds that wait until the work under way has ended, one of a study at most, in the order in which they came. The
    /// coordinator says them again at each connection.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty", deserialize_with = "one_or_many")]
    next: VecDeque<RoundTask>,
    /// The work under way is older than the connection, on which the coordinator has not named its round yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unconfirmed: bool,
    /// The round whose update was refused by the last thing that happened: a crash may have come before that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<(StudyDigest, RoundId)>,
    /// The process has ended in order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopped: bool,
    /// The round that was given up without a connection: the coordinator is told when it asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_up: Option<(StudyDigest, RoundId)>,
}

/// Snapshots of before several studies could wait have one task and no list.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VecDeque<RoundTask>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Kept {
        One(RoundTask),
        Many(VecDeque<RoundTask>),
    }
    Ok(match Kept::deserialize(deserializer)? {
        Kept::One(task) => [task].into(),
        Kept::Many(tasks) => tasks,
    })
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
    /// Updates and evaluations that wait for the coordinator while other studies have their turn.
    pub set_aside: BTreeSet<(StudyDigest, RoundId)>,
    /// Whether the coordinator has welcomed this connection.
    pub connected: bool,
    /// Studies of which nobody here has decided whether the site takes part.
    pub undecided: BTreeSet<StudyDigest>,
}

impl ParticipantMachine {
    /// A site that has not heard of any study.
    pub fn new(identity: Identity) -> Self {
        let (studies, phase, evaluations) = (Studies::default(), Phase::Idle, Evaluations::default());
        let (connected, unconfirmed, stopped, trainings, next) = (false, false, false, 0, VecDeque::new());
        let (refused, given_up, aside) = (None, None, BTreeMap::new());
        let state = State {
            identity,
            connected,
            studies,
            phase,
            aside,
            evaluations,
            trainings,
            next,
            unconfirmed,
            refused,
            stopped,
            given_up,
        };
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

    /// Continues from a snapshot, or from nothing, and the events since; [`Event::Started`] is to be ticked next.
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
            Event::Started | Event::Restarted => timers.clear(),
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
        let State { phase, aside, studies, evaluations, connected, .. } = &self.state;
        let updates = aside.iter().map(|(&study, Aside { update, .. })| (study, update.offer.round));
        Status {
            phase: phase.name(),
            work: phase.work().map(|(study, round, _)| (study, round)),
            evaluation: evaluations.step_name(),
            evaluations: evaluations.models(),
            set_aside: updates.chain(evaluations.set_aside()).collect(),
            connected: *connected,
            undecided: studies.undecided(),
        }
    }

    /// The studies that this site remembers, in any standing.
    pub fn studies(&self) -> BTreeSet<StudyDigest> {
        self.state.studies.known()
    }

    /// Whether this site takes part in a study, as far as it was told.
    pub fn has_approved(&self, study: StudyDigest) -> bool {
        self.state.studies.needs(study).is_some()
    }

    /// Artifacts that must stay: the base of the round under way, the models that are to be scored, and what each approved study needs
    /// beside its models.
    pub fn needed(&self) -> BTreeSet<ArtifactHash> {
        let base = self.state.phase.work().map(|(.., base)| base);
        let scored = self.state.evaluations.models().into_values();
        self.state.studies.all_needs().chain(base).chain(scored).collect()
    }

    fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        let round = self.state.phase.retry_at().map(|at| (Timer::Round, at));
        let aside = self.state.aside.values().filter_map(|aside| aside.update.retry.at).min();
        let outbox = aside.map(|at| (Timer::Outbox, at));
        let evaluation = self.state.evaluations.retry_at().map(|at| (Timer::Evaluation, at));
        round.into_iter().chain(outbox).chain(evaluation).collect()
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
