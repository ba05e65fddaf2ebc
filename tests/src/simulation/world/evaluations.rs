//! The evaluation machine, beside the rounds.

use common::evaluation::{Action, Event};
use common::ids::{ModelHash, SiteId};
use common::participant;
use common::round;

use super::{Happening, World};
use crate::simulation::arithmetic::study;
use crate::simulation::coordinator::Waiting;
use crate::simulation::coverage::{Transition, name_of};
use crate::simulation::sabotage::Sabotage;

impl World {
    pub(super) fn feed_evaluation(&mut self, event: Event) {
        if self.stands_still() {
            return self.note_still(name_of(&event));
        }
        if !self.coordinator.up || self.coordinator_burns() {
            return;
        }
        if self.waits_for_disk() && self.sabotage != Sabotage::ActUnwritten {
            return self.wait_for_disk(Waiting::Evaluation(event));
        }
        self.take_evaluation(event);
    }

    /// Journals an event, ticks, and does what follows.
    pub(super) fn take_evaluation(&mut self, event: Event) {
        if let Some(cut) = self.coordinator_tears() {
            let now = self.coordinator_now();
            self.coordinator.tear_evaluation(&event, now, cut);
        }
        let mut actions = Vec::new();
        if !self.coordinator_writes(|world| actions = world.tick_evaluation(event)) {
            return;
        }
        for action in actions {
            if !self.coordinator.up || self.coordinator_burns() {
                return;
            }
            self.execute_evaluation(action);
        }
    }

    fn tick_evaluation(&mut self, event: Event) -> Vec<Action> {
        let now = self.event_time();
        let coordinator = &mut self.coordinator;
        coordinator.write_evaluation(&event, now);
        let (name, from) = (name_of(&event), coordinator.evaluation_phase());
        if let Event::Requested { model, .. } | Event::Promoted { model, .. } = event {
            coordinator.asked = Some(model);
        }
        if let Event::Promoted { model, .. } = event {
            self.books.promoted(model);
        }
        let actions = coordinator.evaluation.tick(event, now);
        for action in &actions {
            match action {
                Action::SetTimer { .. } => coordinator.gate_closed = true,
                Action::ClearTimer(_) => coordinator.gate_closed = false,
                _ => {}
            }
        }
        let to = coordinator.evaluation_phase();
        self.coverage.note(Transition { machine: "evaluations", from, event: name, to });
        actions
    }

    fn execute_evaluation(&mut self, action: Action) {
        match action {
            Action::RequestEvaluation { to, round, model } => {
                self.books.announced(model, "a model to evaluate");
                self.guard_seal(&to, model);
                self.notice(&to, participant::Event::EvaluationRequested { study: study(), round, model });
            }
            Action::OpenGate { model, .. } => self.feed(round::Event::GateOpened { model }),
            Action::Acknowledge { site, model, .. } => {
                self.guard_seal(&site, model);
                self.notice(&site, participant::Event::ReportReceipt { model });
            }
            Action::Refuse { site, model, rejection } => {
                let code = rejection.code().to_owned();
                self.notice(&site, participant::Event::ReportRefused { model, code });
            }
            Action::SetTimer { .. } if self.sabotage == Sabotage::ForgetTimers => {}
            Action::SetTimer { at, .. } => {
                self.coordinator.gate_timer = Some(at);
                let delay = at.0.saturating_sub(self.coordinator_now().0);
                self.at(delay, Happening::GateTimer { at });
            }
            Action::ClearTimer(_) => self.coordinator.gate_timer = None,
            Action::Report(_) => {}
        }
    }

    /// What a sealed evaluator hears of is promoted.
    fn guard_seal(&mut self, site: &SiteId, model: ModelHash) {
        if self.index(site).is_some_and(|site| self.scenario.is_sealed(site)) {
            self.books.unsealed(model);
        }
    }
}
