//! The evaluation machine, beside the rounds.

use super::*;

impl World {
    pub(super) fn feed_evaluation(&mut self, event: evaluation::Event) {
        if !self.coordinator.up || self.coordinator_burns() {
            return;
        }
        let line = serde_json::to_string(&Entry { at: self.now, event: event.clone() }).expect("JSON");
        self.coordinator.evaluation_journal.push(line);
        for action in self.coordinator.evaluation.tick(event, self.now) {
            if !self.coordinator.up || self.coordinator_burns() {
                return;
            }
            self.execute_evaluation(action);
        }
    }

    pub(super) fn execute_evaluation(&mut self, action: evaluation::Action) {
        match action {
            evaluation::Action::RequestEvaluation { to, round, model } => {
                self.books.announced(model, "a model to evaluate");
                self.notice(&to, participant::Event::EvaluationRequested { study: study(), round, model });
            }
            evaluation::Action::OpenGate { model, .. } => self.feed(Event::GateOpened { model }),
            evaluation::Action::Acknowledge { site, model, .. } => {
                self.notice(&site, participant::Event::ReportReceipt { model });
            }
            evaluation::Action::Refuse { site, model, rejection } => {
                let code = rejection.code().to_owned();
                self.notice(&site, participant::Event::ReportRefused { model, code });
            }
            evaluation::Action::SetTimer { at, .. } => {
                self.coordinator.gate_timer = Some(at);
                self.at(at.since(self.now).as_millis() as u64, Happening::GateTimer { at });
            }
            evaluation::Action::ClearTimer(_) => self.coordinator.gate_timer = None,
            evaluation::Action::Report(_) => {}
        }
    }
}
