//! One site's process: its machine, its disk, and what it is doing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, Role, RoundId};
use common::participant::{Event, Identity, ParticipantMachine, Snapshot, Timer};
use common::round::RoundTask;
use common::time::Timestamp;

use super::fuse::Fuse;
use super::invariants::Suspect;
use super::log::Log;
use super::scenario::site_id;

/// Events after which a snapshot is worth its writing; a real site waits for more.
const EVENTS_PER_SNAPSHOT: usize = 20;

/// How far a training is, as its file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) round: RoundId,
    pub(super) base: ModelHash,
    /// Steps done.
    pub(super) step: u32,
}

impl Checkpoint {
    /// Whether training for this task may go on from it.
    pub(super) fn is_of(&self, task: &RoundTask) -> bool {
        (self.round, self.base) == (task.round, task.base)
    }
}

/// What was fetched, as the disk has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    Whole,
    /// It turned into something else, which nobody knows before it is used.
    Damaged,
    /// It was found damaged, and what was left of it is out of the way.
    Gone,
}

/// What ends a site's process in the midst of its work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadly {
    /// How often it will.
    pub(super) times: u32,
    /// In which step of a training, the next time.
    pub(super) step: u32,
    /// How many steps further each time.
    pub(super) further: u32,
    /// How long it takes until the process is back.
    pub(super) back_ms: u64,
}

/// One site.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) identity: Identity,
    pub(super) machine: ParticipantMachine,
    /// Fed with what the journal gives back, step by step: must equal `machine`.
    shadow: ParticipantMachine,
    // The disk.
    snapshot: Option<String>,
    journal: Log,
    events: usize,
    pub(super) artifacts: BTreeMap<ArtifactHash, Fetched>,
    pub(super) outbox: BTreeMap<AttemptId, ArtifactHash>,
    /// Attempts whose file in the outbox is not what it was.
    pub(super) rotten: BTreeSet<AttemptId>,
    /// The next report turns into something else on its disk before it is sent.
    pub(super) rots_report: bool,
    /// What was kept last within a round. Nobody removes it: a driver can fail at that.
    pub(super) checkpoint: Option<Checkpoint>,
    /// Nothing can be written before.
    pub(super) full_until: Timestamp,
    /// What its operator decided about the study, if anything.
    pub(super) approved: Option<bool>,
    // The process: lost in a crash.
    pub(super) up: bool,
    pub(super) incarnation: u32,
    /// Number of the connection, if there is one.
    pub(super) link: Option<u32>,
    pub(super) timers: BTreeMap<Timer, Timestamp>,
    pub(super) training: Option<AttemptId>,
    /// What is trained again because its file is rotten.
    pub(super) mending: Option<AttemptId>,
    pub(super) evaluating: Option<ModelHash>,
    pub(super) dialing: bool,
    /// What waits for a full disk.
    pub(super) todo: VecDeque<Event>,
    // The operators and the faults.
    /// Rounds of the other study that it was asked for.
    pub(super) other_rounds: u32,
    /// Whether the coordinator lets it in.
    pub(super) enrolled: bool,
    pub(super) manifest: u32,
    /// How many scans it has left, where it lost some.
    pub(super) scans: Option<u32>,
    /// Where it has none left: they are there, and cannot be used.
    pub(super) spoilt: bool,
    pub(super) failing: u32,
    pub(super) deadly: Option<Deadly>,
    /// It is told to stop after so many more events.
    pub(super) stops_after: Option<u32>,
    /// How much longer its trainings take.
    pub(super) slow_ms: u64,
    /// How far this site's clock is ahead, milliseconds.
    pub(super) clock: i64,
    /// The process is killed after so many more actions.
    pub(super) fuse: Option<u32>,
    /// The process is killed at a durable write.
    pub(super) write_fuse: Option<Fuse>,
}

impl Site {
    pub(super) fn new(index: usize, role: Role) -> Self {
        let mut installation = [0; 16];
        installation.copy_from_slice(&Digest::of(&index.to_le_bytes()).as_bytes()[..16]);
        let identity = Identity { site: site_id(index), role, installation };
        let machine = ParticipantMachine::new(identity.clone());
        Self {
            identity,
            shadow: machine.clone(),
            machine,
            snapshot: None,
            journal: Log::default(),
            events: 0,
            artifacts: BTreeMap::new(),
            outbox: BTreeMap::new(),
            rotten: BTreeSet::new(),
            rots_report: false,
            checkpoint: None,
            full_until: Timestamp(0),
            up: true,
            incarnation: 0,
            link: None,
            timers: BTreeMap::new(),
            training: None,
            mending: None,
            evaluating: None,
            dialing: false,
            todo: VecDeque::new(),
            other_rounds: 0,
            enrolled: true,
            manifest: 0,
            scans: None,
            spoilt: false,
            approved: None,
            failing: 0,
            deadly: None,
            stops_after: None,
            slow_ms: 0,
            clock: 0,
            fuse: None,
            write_fuse: None,
        }
    }

    pub(super) fn evaluates(&self) -> bool {
        self.identity.role == Role::Evaluator
    }

    /// The first of these artifacts that work cannot read; what is left of it goes.
    pub(super) fn find_lost(&mut self, needs: &[ArtifactHash]) -> Option<ArtifactHash> {
        let lost = |artifact: &&ArtifactHash| self.artifacts.get(*artifact) != Some(&Fetched::Whole);
        let lost = needs.iter().find(lost).copied()?;
        self.artifacts.insert(lost, Fetched::Gone);
        Some(lost)
    }

    /// Writes the event to the journal.
    pub(super) fn write(&mut self, event: &Event, at: Timestamp) {
        let read = self.journal.append(event, at);
        self.shadow.tick(read.event, read.at);
        self.events += 1;
    }

    /// Writes a part of the event's line, and is killed.
    pub(super) fn tear(&mut self, event: &Event, at: Timestamp, cut: usize) {
        self.journal.tear(event, at, cut);
    }

    pub(super) fn wants_snapshot(&self) -> bool {
        self.events > EVENTS_PER_SNAPSHOT && self.machine.status().phase == "idle"
    }

    /// Puts a snapshot in the place of the events. The real files change over by one rename.
    pub(super) fn keep_snapshot(&mut self) {
        self.snapshot = Some(serde_json::to_string(&self.machine.snapshot()).expect("a snapshot is JSON"));
        self.journal.clear();
        self.events = 0;
    }

    pub(super) fn replay_agrees(&self) -> bool {
        self.shadow == self.machine
    }

    /// The process is gone; the disk stays.
    pub(super) fn die(&mut self) {
        self.up = false;
        self.incarnation += 1;
        self.timers.clear();
        self.todo.clear();
        (self.link, self.training, self.mending, self.evaluating) = (None, None, None, None);
        (self.fuse, self.write_fuse, self.dialing) = (None, None, false);
    }

    /// A new process on the old disk; it must be what died.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn revive(&mut self, keeps_torn_line: bool) -> Result<(), String> {
        let name = &self.identity.site;
        if !keeps_torn_line {
            self.journal.recover();
        }
        let snapshot: Option<Snapshot> =
            self.snapshot.as_ref().map(|text| serde_json::from_str(text).expect("a snapshot reads back"));
        let entries = self.journal.read::<Event>();
        let entries = entries.map_err(|error| format!("the journal of {name} cannot be read: {error}"))?;
        let replayed = ParticipantMachine::replay(&self.identity, snapshot, entries);
        let machine = replayed.map_err(|error| format!("{name} cannot go on: {error}"))?;
        let same = machine == self.machine;
        self.machine = machine;
        self.up = true;
        if same { Ok(()) } else { Err(format!("{} came back as another than it was", self.identity.site)) }
    }

    /// What the process is in the midst of, and would begin again.
    pub(super) fn midst(&self, now: Timestamp) -> Option<Suspect> {
        self.machine.outstanding(now).iter().find_map(Suspect::begun_by)
    }

    /// Nothing left to do.
    pub(super) fn at_rest(&self) -> bool {
        let status = self.machine.status();
        self.up
            && status.connected
            && status.phase == "idle"
            && status.evaluation == "idle"
            && self.outbox.is_empty()
            && self.todo.is_empty()
    }
}
