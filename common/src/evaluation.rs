//! Who is to score which model, and who has: keyed by model hash, beside the rounds.
//!
//! Each model that is asked for is asked of every evaluator once, and again at each of its connections until its report is
//! stored. Rounds do not wait for it, unless the study has a gate: then [`Action::OpenGate`] says when the next may open,
//! when all reports of the gate's evaluators are there, but for those that have left, or its time is up. A `test` evaluator is
//! sealed: it is asked about promoted models alone. The reports themselves are the driver's to keep; here are their digests.
//!
//! Driven as the rounds are ([`crate::round`]): journal, [`EvaluationMachine::tick`], execute; after a restart
//! [`EvaluationMachine::replay`], then [`Event::Restarted`].

mod event;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, ModelHash, RoundId, SiteId, StudyDigest};
use crate::journal::{self, Entry, RestoreError};
use crate::round::Gate;
use crate::time::Timestamp;

pub use event::{Action, EvaluatorKind, Event, Fact, Rejection, ReportExpectation, Timer};

/// Format of [`Snapshot`].
pub const SNAPSHOT_VERSION: u32 = 1;

/// Most models that reports are waited for; beyond, the one of the oldest round that is not promoted is forgotten.
pub const MAX_MODELS: usize = 256;

/// The machine's memory as it is kept on disk.
pub type Snapshot = journal::Snapshot<State>;

/// The evaluations of one study. The module's text says how it behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationMachine {
    gate: Option<Gate>,
    state: State,
}

/// Everything that a machine remembers. Opaque; serialisable because it is the content of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    study: StudyDigest,
    evaluators: BTreeMap<SiteId, Evaluator>,
    models: BTreeMap<ModelHash, Model>,
    /// The gate that the next round waits for.
    closed_gate: Option<ClosedGate>,
    /// Sites that the gate does not wait for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    left: BTreeSet<SiteId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluator {
    kind: EvaluatorKind,
    connected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    round: RoundId,
    promoted: bool,
    reports: BTreeMap<SiteId, Digest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClosedGate {
    model: ModelHash,
    open_by: Timestamp,
}

impl Evaluator {
    /// Whether this evaluator is to score `model`.
    const fn scores(self, model: &Model) -> bool {
        match self.kind {
            EvaluatorKind::Validation => true,
            EvaluatorKind::Test => model.promoted,
        }
    }
}

impl EvaluationMachine {
    /// A study without models.
    pub const fn new(study: StudyDigest, gate: Option<Gate>) -> Self {
        let state = State {
            study,
            evaluators: BTreeMap::new(),
            models: BTreeMap::new(),
            closed_gate: None,
            left: BTreeSet::new(),
        };
        Self { gate, state }
    }

    /// Continues from a snapshot.
    ///
    /// # Errors
    /// [`RestoreError`] when the snapshot is of another format or study.
    pub fn restore(study: StudyDigest, gate: Option<Gate>, snapshot: Snapshot) -> Result<Self, RestoreError> {
        let state = snapshot.open(SNAPSHOT_VERSION)?;
        if state.study != study {
            let (expected, got) = (format!("study {study}"), format!("study {}", state.study));
            return Err(RestoreError::Identity { expected, got });
        }
        Ok(Self { gate, state })
    }

    /// Continues from a snapshot, or a new study, and the events since; [`Event::Restarted`] is to be ticked next.
    ///
    /// # Errors
    /// As [`EvaluationMachine::restore`].
    pub fn replay(
        study: StudyDigest,
        gate: Option<Gate>,
        snapshot: Option<Snapshot>,
        entries: impl IntoIterator<Item = Entry<Event>>,
    ) -> Result<Self, RestoreError> {
        let mut machine = match snapshot {
            Some(snapshot) => Self::restore(study, gate, snapshot)?,
            None => Self::new(study, gate),
        };
        for entry in entries {
            machine.tick(entry.event, entry.at);
        }
        Ok(machine)
    }

    /// The memory, to be kept.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { version: SNAPSHOT_VERSION, state: self.state.clone() }
    }

    /// Takes what happened at `now` and says what is to be done. Every event has an outcome at any time.
    pub fn tick(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Restarted => {
                self.state.evaluators.values_mut().for_each(|evaluator| evaluator.connected = false);
                actions = self.outstanding();
            }
            Event::Requested { round, model } => self.request(round, model, now, &mut actions),
            Event::Promoted { round, model } => self.promote(round, model, &mut actions),
            Event::EvaluatorReady { site, kind } => self.greet(site, kind, &mut actions),
            Event::EvaluatorGone { site } => {
                if let Some(evaluator) = self.state.evaluators.get_mut(&site) {
                    evaluator.connected = false;
                }
            }
            Event::EvaluatorLeft { site } => {
                self.state.evaluators.remove(&site);
                if self.state.left.insert(site.clone()) {
                    actions.push(Action::Report(Fact::EvaluatorLeft { site }));
                }
            }
            Event::ReportStored { site, model, report } => {
                self.take_report(site, model, report, &mut actions)
            }
            // It may have fired early, when the clock was set; opening the gate clears it.
            Event::TimerFired(Timer::Gate) => self.set_timer(&mut actions),
        }
        self.open_gate(now, &mut actions);
        actions
    }

    /// What is under way: requests to those connected, and the gate's timer.
    pub fn outstanding(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for site in self.state.evaluators.keys() {
            self.ask(site, &mut actions);
        }
        self.set_timer(&mut actions);
        actions
    }

    /// Whether a report of `site` on `model` is wanted; `report` is the digest of its signed bytes. Changes nothing.
    ///
    /// # Errors
    /// [`Rejection`], to be answered to the site.
    pub fn expect_report(
        &self,
        site: &SiteId,
        model: &ModelHash,
        report: &Digest,
    ) -> Result<ReportExpectation, Rejection> {
        let evaluator = self.state.evaluators.get(site).ok_or(Rejection::NotEvaluator)?;
        let known = self.state.models.get(model).ok_or(Rejection::UnknownModel { model: *model })?;
        match known.reports.get(site) {
            Some(kept) if kept == report => Ok(ReportExpectation::AlreadyKept),
            Some(kept) => Err(Rejection::AlreadyReported { model: *model, kept: *kept }),
            None if !evaluator.scores(known) => Err(Rejection::Sealed { model: *model }),
            None => Ok(ReportExpectation::Wanted { round: known.round }),
        }
    }

    /// Evaluators whose report on `model` is still waited for; none when the model is unknown.
    pub fn pending(&self, model: &ModelHash) -> BTreeSet<SiteId> {
        let Some(known) = self.state.models.get(model) else { return BTreeSet::new() };
        let pending = |(site, evaluator): &(&SiteId, &Evaluator)| {
            evaluator.scores(known) && !known.reports.contains_key(*site)
        };
        self.state.evaluators.iter().filter(pending).map(|(site, _)| site.clone()).collect()
    }

    /// Evaluators whose report on `model` is kept.
    pub fn reported(&self, model: &ModelHash) -> BTreeSet<SiteId> {
        self.state.models.get(model).into_iter().flat_map(|known| known.reports.keys().cloned()).collect()
    }

    /// Digest of the signed bytes of a report that is kept; none of a model that was forgotten.
    pub fn report_of(&self, site: &SiteId, model: &ModelHash) -> Option<Digest> {
        self.state.models.get(model)?.reports.get(site).copied()
    }

    /// Sites whose reports are waited for, or will be: those that have been ready, and the gate's.
    pub fn counts_on(&self) -> BTreeSet<SiteId> {
        let of_gate = self.gate.iter().flat_map(|gate| &gate.evaluators);
        let sites = self.state.evaluators.keys().chain(of_gate);
        sites.filter(|site| !self.state.left.contains(*site)).cloned().collect()
    }

    /// Evaluators whose reports the next round waits for.
    pub fn gate_waits_for(&self) -> BTreeSet<SiteId> {
        let (Some(gate), Some(closed)) = (&self.gate, self.state.closed_gate) else { return BTreeSet::new() };
        let reports = self.state.models.get(&closed.model).map(|known| &known.reports);
        let there = |site: &&SiteId| reports.is_some_and(|reports| reports.contains_key(*site));
        let missing = gate.evaluators.iter().filter(|site| !there(site));
        missing.filter(|site| !self.state.left.contains(*site)).cloned().collect()
    }

    fn request(&mut self, round: RoundId, model: ModelHash, now: Timestamp, actions: &mut Vec<Action>) {
        self.know(round, model, actions);
        let Some(gate) = &self.gate else { return };
        let waiting = self.state.closed_gate.is_some_and(|closed| closed.model == model);
        if waiting {
            return;
        }
        // Asked again after its gate had opened, the same answer comes at once: the first may have been lost in a crash.
        let open_by = now.after(Duration::from_secs(gate.timeout_s));
        self.state.closed_gate = Some(ClosedGate { model, open_by });
        self.set_timer(actions);
    }

    fn set_timer(&self, actions: &mut Vec<Action>) {
        if let Some(closed) = self.state.closed_gate {
            actions.push(Action::SetTimer { timer: Timer::Gate, at: closed.open_by });
        }
    }

    fn promote(&mut self, round: RoundId, model: ModelHash, actions: &mut Vec<Action>) {
        self.know(round, model, actions);
        let Some(known) = self.state.models.get_mut(&model) else { return };
        known.promoted = true;
        for (site, evaluator) in &self.state.evaluators {
            if evaluator.kind == EvaluatorKind::Test {
                self.ask_about(site, model, actions);
            }
        }
    }

    /// Adds a model and asks about it; one that is known already is known by its first round.
    fn know(&mut self, round: RoundId, model: ModelHash, actions: &mut Vec<Action>) {
        if self.state.models.contains_key(&model) {
            return;
        }
        self.forget_beyond(MAX_MODELS - 1, actions);
        self.state.models.insert(model, Model { round, promoted: false, reports: BTreeMap::new() });
        for site in self.state.evaluators.keys() {
            self.ask_about(site, model, actions);
        }
    }

    fn forget_beyond(&mut self, most: usize, actions: &mut Vec<Action>) {
        while self.state.models.len() > most {
            let oldest = self.state.models.iter().min_by_key(|(_, known)| (known.promoted, known.round));
            let Some(model) = oldest.map(|(&model, _)| model) else { return };
            self.state.models.remove(&model);
            actions.push(Action::Report(Fact::ModelForgotten { model }));
        }
    }

    fn greet(&mut self, site: SiteId, kind: EvaluatorKind, actions: &mut Vec<Action>) {
        self.state.left.remove(&site);
        self.state.evaluators.insert(site.clone(), Evaluator { kind, connected: true });
        self.ask(&site, actions);
    }

    fn ask(&self, site: &SiteId, actions: &mut Vec<Action>) {
        for &model in self.state.models.keys() {
            self.ask_about(site, model, actions);
        }
    }

    fn ask_about(&self, site: &SiteId, model: ModelHash, actions: &mut Vec<Action>) {
        let Some(known) = self.state.models.get(&model) else { return };
        let connected = self.state.evaluators.get(site).is_some_and(|e| e.connected && e.scores(known));
        if connected && !known.reports.contains_key(site) {
            actions.push(Action::RequestEvaluation { to: site.clone(), round: known.round, model });
        }
    }

    fn take_report(&mut self, site: SiteId, model: ModelHash, report: Digest, actions: &mut Vec<Action>) {
        match self.expect_report(&site, &model, &report) {
            Ok(ReportExpectation::Wanted { .. }) => {
                if let Some(known) = self.state.models.get_mut(&model) {
                    known.reports.insert(site.clone(), report);
                }
                actions.push(Action::Report(Fact::ReportKept { site: site.clone(), model }));
                actions.push(Action::Acknowledge { site, model, report });
            }
            Ok(ReportExpectation::AlreadyKept) => actions.push(Action::Acknowledge { site, model, report }),
            Err(rejection) => {
                let code = rejection.code();
                actions.push(Action::Report(Fact::ReportRefused { site: site.clone(), code }));
                actions.push(Action::Refuse { site, model, rejection });
            }
        }
    }

    /// Opens the gate when the reports of all who have not left are there, or its time is up.
    fn open_gate(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(ClosedGate { model, open_by }) = self.state.closed_gate else { return };
        let missing: Vec<SiteId> = self.gate_waits_for().into_iter().collect();
        if !missing.is_empty() && now < open_by {
            return;
        }
        self.state.closed_gate = None;
        actions.push(Action::ClearTimer(Timer::Gate));
        if !missing.is_empty() {
            actions.push(Action::Report(Fact::GateTimedOut { model, missing: missing.clone() }));
        }
        actions.push(Action::OpenGate { model, missing });
    }
}
