//! One site's process: its machine, its disk, and what it is doing.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, Role};
use common::journal::Entry;
use common::participant::{Event, Identity, ParticipantMachine, Snapshot, Timer};
use common::time::Timestamp;

use crate::scenario::site_id;

/// One site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) identity: Identity,
    pub(crate) machine: ParticipantMachine,
    /// Fed with what the journal gives back, step by step: must equal `machine`.
    shadow: ParticipantMachine,
    // The disk.
    snapshot: Option<String>,
    journal: Vec<String>,
    pub(crate) artifacts: BTreeSet<ArtifactHash>,
    pub(crate) outbox: BTreeMap<AttemptId, ArtifactHash>,
    // The process: lost in a crash.
    pub(crate) up: bool,
    pub(crate) incarnation: u32,
    /// Number of the connection, if there is one.
    pub(crate) link: Option<u32>,
    pub(crate) timers: BTreeMap<Timer, Timestamp>,
    pub(crate) training: Option<AttemptId>,
    pub(crate) evaluating: Option<ModelHash>,
    pub(crate) dialing: bool,
    // The operator and the faults.
    pub(crate) manifest: u32,
    pub(crate) failing_trainings: u32,
    /// The process is killed after so many more actions.
    pub(crate) fuse: Option<u32>,
}

impl Site {
    pub(crate) fn new(index: usize, role: Role) -> Self {
        let mut installation = [0; 16];
        installation.copy_from_slice(&Digest::of(&index.to_le_bytes()).as_bytes()[..16]);
        let identity = Identity { site: site_id(index), role, installation };
        let machine = ParticipantMachine::new(identity.clone());
        Self {
            identity,
            shadow: machine.clone(),
            machine,
            snapshot: None,
            journal: vec![],
            artifacts: BTreeSet::new(),
            outbox: BTreeMap::new(),
            up: true,
            incarnation: 0,
            link: None,
            timers: BTreeMap::new(),
            training: None,
            evaluating: None,
            dialing: false,
            manifest: 0,
            failing_trainings: 0,
            fuse: None,
        }
    }

    /// Writes the event to the journal, and now and then a snapshot in its place.
    pub(crate) fn write(&mut self, event: &Event, at: Timestamp) {
        let line = serde_json::to_string(&Entry { at, event: event.clone() }).expect("an event is JSON");
        let read: Entry<Event> = serde_json::from_str(&line).expect("a journal line is an event");
        self.shadow.tick(read.event, read.at);
        self.journal.push(line);
    }

    pub(crate) fn snapshot_when_idle(&mut self) {
        if self.journal.len() > 20 && self.machine.status().phase == "idle" {
            self.snapshot =
                Some(serde_json::to_string(&self.machine.snapshot()).expect("a snapshot is JSON"));
            self.journal.clear();
        }
    }

    pub(crate) fn replay_agrees(&self) -> bool {
        self.shadow == self.machine
    }

    /// The process is gone; the disk stays.
    pub(crate) fn die(&mut self) {
        self.up = false;
        self.incarnation += 1;
        self.timers.clear();
        (self.link, self.training, self.evaluating, self.fuse, self.dialing) =
            (None, None, None, None, false);
    }

    /// A new process on the old disk; false when it is not what died.
    pub(crate) fn revive(&mut self) -> bool {
        let snapshot: Option<Snapshot> =
            self.snapshot.as_ref().map(|text| serde_json::from_str(text).expect("a snapshot reads back"));
        let entries =
            self.journal.iter().map(|line| serde_json::from_str(line).expect("a journal line reads back"));
        let replayed = ParticipantMachine::replay(&self.identity, snapshot, entries.collect::<Vec<_>>());
        let machine = replayed.expect("the site's own snapshot");
        let same = machine == self.machine;
        self.machine = machine;
        self.up = true;
        same
    }

    /// Nothing left to do.
    pub(crate) fn at_rest(&self) -> bool {
        let status = self.machine.status();
        self.up
            && status.connected
            && status.phase == "idle"
            && status.evaluation == "idle"
            && self.outbox.is_empty()
    }
}
