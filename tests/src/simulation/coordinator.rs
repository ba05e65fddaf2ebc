//! The coordinator's process: its machines, its disk, and what it is doing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::evaluation::{self, EvaluationMachine};
use common::ids::{ArtifactHash, ModelHash, RoundId, SiteId};
use common::round::{Event, Gate, Late, Quorum, RoundMachine, RoundPlan, Snapshot, Timer};
use common::time::Timestamp;
use coordinator::clock::ClockWatch;

use super::arithmetic::{embeddings, initial_model, study};
use super::fuse::Fuse;
use super::invariants::MAX_SITE_WEIGHT;
use super::log::Log;
use super::sabotage::Sabotage;
use super::scenario::{MIN_VOLUMES, Scenario, site_id};

/// What a simulated study says of its rounds. The one place that makes a plan.
pub(super) fn plan(scenario: &Scenario, sabotage: Sabotage) -> RoundPlan {
    let sites = if sabotage == Sabotage::IgnoreQuorum { 1 } else { scenario.quorum };
    let sites_per_class = if sabotage == Sabotage::IgnoreClasses { 0 } else { scenario.sites_per_class };
    let min_volumes = if sabotage == Sabotage::IgnoreVolumes { 0 } else { MIN_VOLUMES };
    let left_out = if sabotage == Sabotage::IgnoreLeaveOut { 0..0 } else { 0..scenario.left_out };
    let evaluators = scenario.validation_ids().collect();
    RoundPlan {
        study: study(),
        initial_model: initial_model(),
        rounds: scenario.rounds,
        steps: STEPS,
        quorum: Quorum {
            sites,
            sites_per_class,
            class_floor: 0,
            deadline_s: scenario.deadline_s,
            accept_s: scenario.accept_s,
        },
        late: scenario.late.map_or(Late::Refuse, |weight| Late::NextRound { weight }),
        weighting: scenario.weighting,
        max_site_weight: MAX_SITE_WEIGHT,
        server_lr: 1.0,
        evaluate_every: 2,
        gate: scenario.gated.then_some(Gate { evaluators, timeout_s: 300 }),
        leave_out: left_out.map(site_id).collect(),
        min_volumes,
    }
}

/// Optimiser steps of a round.
pub(super) const STEPS: u32 = 10;

/// A stored update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob {
    pub(super) round: RoundId,
    /// What its file holds; the update's own name as long as nothing happened to it.
    pub(super) content: ArtifactHash,
}

/// An event that waits for a full disk.
#[derive(Debug)]
pub(super) enum Waiting {
    Round(Event),
    Evaluation(evaluation::Event),
}

impl Waiting {
    /// Whether nobody else would tell it again: sites come again with what they bring, and so does the operator.
    pub(super) fn is_ours(&self) -> bool {
        match self {
            Self::Round(event) => !matches!(
                event,
                Event::UpdateStored { .. }
                    | Event::Start
                    | Event::Pause
                    | Event::PauseFor { .. }
                    | Event::Resume
                    | Event::Abort
            ),
            Self::Evaluation(event) => !matches!(event, evaluation::Event::ReportStored { .. }),
        }
    }
}

/// The coordinator.
#[derive(Debug)]
pub(super) struct Coordinator {
    plan: RoundPlan,
    pub(super) rounds: RoundMachine,
    /// Fed with what the journal gives back, step by step: must equal `rounds`.
    shadow: RoundMachine,
    pub(super) evaluation: EvaluationMachine,
    // The disk.
    snapshot: Option<String>,
    journal: Log,
    evaluation_journal: Log,
    pub(super) artifacts: BTreeSet<ArtifactHash>,
    pub(super) spool: BTreeMap<(SiteId, ArtifactHash), Blob>,
    /// Stored updates that were found rotten and moved away.
    pub(super) quarantine: BTreeSet<(SiteId, ArtifactHash)>,
    /// Nothing can be written before.
    pub(super) full_until: Timestamp,
    /// No process that starts before can read the study.
    pub(super) unreadable_until: Timestamp,
    /// The time of the last line, also of one that a snapshot took the place of.
    pub(super) last_at: Timestamp,
    // The process: lost in a crash.
    pub(super) up: bool,
    pub(super) incarnation: u32,
    /// It could not read the study when it started, and goes on without.
    pub(super) lacks_study: bool,
    pub(super) started: Timestamp,
    /// What deadlines go by: the driver's own, fed with this harness's time.
    pub(super) clock: ClockWatch,
    pub(super) links: BTreeMap<usize, u32>,
    pub(super) timers: BTreeMap<Timer, Timestamp>,
    pub(super) gate_timer: Option<Timestamp>,
    /// A write failed for want of space, and none has succeeded since.
    pub(super) disk_failed: bool,
    pub(super) waiting: VecDeque<Waiting>,
    // For the table of transitions.
    pub(super) gate_closed: bool,
    pub(super) asked: Option<ModelHash>,
    // The faults.
    /// How far the clock of its machine is ahead, milliseconds.
    pub(super) wall_ms: i64,
    pub(super) fuse: Option<u32>,
    pub(super) write_fuse: Option<Fuse>,
}

impl Coordinator {
    pub(super) fn new(plan: RoundPlan) -> Self {
        let rounds = RoundMachine::new(plan.clone());
        Self {
            shadow: rounds.clone(),
            rounds,
            evaluation: EvaluationMachine::new(study(), plan.gate.clone()),
            snapshot: None,
            journal: Log::default(),
            evaluation_journal: Log::default(),
            artifacts: [plan.initial_model, embeddings()].into(),
            spool: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            full_until: Timestamp(0),
            unreadable_until: Timestamp(0),
            last_at: Timestamp(0),
            up: true,
            incarnation: 0,
            lacks_study: false,
            started: Timestamp(0),
            clock: ClockWatch::starting(Timestamp(0), Timestamp(0)),
            links: BTreeMap::new(),
            timers: BTreeMap::new(),
            gate_timer: None,
            disk_failed: false,
            waiting: VecDeque::new(),
            gate_closed: false,
            asked: None,
            wall_ms: 0,
            fuse: None,
            write_fuse: None,
            plan,
        }
    }

    /// Writes an event of the rounds to the journal.
    pub(super) fn write(&mut self, event: &Event, at: Timestamp) {
        let read = self.journal.append(event, at);
        let _ = self.shadow.tick(read.event, read.at);
        self.last_at = at;
    }

    /// Writes a part of its line.
    pub(super) fn tear(&mut self, event: &Event, at: Timestamp, cut: usize) {
        self.journal.tear(event, at, cut);
    }

    /// Writes an event of the evaluations to the journal.
    pub(super) fn write_evaluation(&mut self, event: &evaluation::Event, at: Timestamp) {
        self.evaluation_journal.append(event, at);
        self.last_at = at;
    }

    /// Writes a part of its line.
    pub(super) fn tear_evaluation(&mut self, event: &evaluation::Event, at: Timestamp, cut: usize) {
        self.evaluation_journal.tear(event, at, cut);
    }

    /// Puts a snapshot in the place of the events, in one transaction.
    pub(super) fn keep_snapshot(&mut self) {
        self.snapshot = Some(serde_json::to_string(&self.rounds.snapshot()).expect("a snapshot is JSON"));
        self.journal.clear();
    }

    pub(super) fn replay_agrees(&self) -> bool {
        self.shadow == self.rounds
    }

    /// The process is gone; the disk stays.
    pub(super) fn die(&mut self) -> BTreeMap<usize, u32> {
        (self.up, self.gate_timer, self.disk_failed) = (false, None, false);
        self.lacks_study = false;
        self.waiting.clear();
        (self.fuse, self.write_fuse) = (None, None);
        self.incarnation += 1;
        self.timers.clear();
        std::mem::take(&mut self.links)
    }

    /// Whether there is a process that has the study.
    pub(super) fn reads_study(&self) -> bool {
        self.up && !self.lacks_study
    }

    /// A new process that cannot read the study.
    pub(super) fn start_without_study(&mut self) {
        (self.up, self.lacks_study) = (true, true);
    }

    /// A new process on the old disk; whether it is what died.
    pub(super) fn revive(&mut self, keeps_torn_line: bool) -> bool {
        if !keeps_torn_line {
            self.journal.recover();
            self.evaluation_journal.recover();
        }
        let snapshot: Option<Snapshot> =
            self.snapshot.as_ref().map(|text| serde_json::from_str(text).expect("a snapshot reads back"));
        let (rounds, evaluations) =
            (self.journal.read::<Event>(), self.evaluation_journal.read::<evaluation::Event>());
        let (Ok(entries), Ok(evaluations)) = (rounds, evaluations) else {
            return false;
        };
        let rounds = RoundMachine::replay(self.plan.clone(), snapshot, entries).expect("its own snapshot");
        let evaluation = EvaluationMachine::replay(study(), self.plan.gate.clone(), None, evaluations)
            .expect("there is no snapshot to be of another study");
        let same = rounds == self.rounds && evaluation == self.evaluation;
        (self.shadow, self.rounds, self.evaluation) = (rounds.clone(), rounds, evaluation);
        self.up = true;
        same
    }

    /// Where the evaluations stand, for the table of transitions: their machine has no name for it.
    pub(super) fn evaluation_phase(&self) -> &'static str {
        let pending = |model: &ModelHash| !self.evaluation.pending(model).is_empty();
        match self.asked.as_ref() {
            _ if self.gate_closed => "gate-closed",
            Some(model) if pending(model) => "asking",
            _ => "settled",
        }
    }

    /// What the file of a stored update holds.
    pub(super) fn content_of(&self, site: &SiteId, update: ArtifactHash) -> Option<ArtifactHash> {
        self.spool.get(&(site.clone(), update)).map(|blob| blob.content)
    }
}
