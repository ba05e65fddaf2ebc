//! The coordinator's process: driven as the binary does, killed and rebuilt from its journal.

use common::evaluation;
use common::ids::{ModelHash, RoundId, SiteId};
use common::participant;
use common::rng::Rng;
use common::round::{Action, Answer, Event, Fact, Status};

use super::{CoordinatorWork, Happening, Reply, World};
use crate::simulation::arithmetic::study;
use crate::simulation::coordinator::Waiting;
use crate::simulation::coverage::{Transition, of_rounds};
use crate::simulation::fuse::{Fuse, Moment};
use crate::simulation::sabotage::Sabotage;

impl World {
    /// One more thing done; true when it was the process's last.
    pub(super) fn coordinator_burns(&mut self) -> bool {
        match &mut self.coordinator.fuse {
            Some(0) => {
                self.kill_coordinator();
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Where the line of the journal that is written next is cut, if the process dies within it.
    pub(super) fn coordinator_tears(&mut self) -> Option<usize> {
        let fuse = self.coordinator.write_fuse?;
        let tears = fuse.writes == 0 && fuse.moment == Moment::Torn;
        tears.then(|| self.cut_of_line())
    }

    /// Anywhere.
    pub(super) fn cut_of_line(&mut self) -> usize {
        self.tally.torn += 1;
        self.rng.random_range(0..1_000_000)
    }

    /// One durable write, by a rename or in a transaction: whether it took place and the process lives on. A process that
    /// dies in it is killed here, before or after `written`; on a full disk it lives and nothing is written.
    pub(super) fn coordinator_writes(&mut self, written: impl FnOnce(&mut Self)) -> bool {
        if self.disk_is_full() && self.sabotage != Sabotage::ActUnwritten {
            self.disk_failed();
            return false;
        }
        let dies = Fuse::burn(&mut self.coordinator.write_fuse);
        if dies.is_none_or(Moment::wrote) {
            written(self);
        }
        if dies.is_some() {
            self.tally.at_writes += 1;
            self.kill_coordinator();
        }
        dies.is_none()
    }

    pub(super) fn kill_coordinator(&mut self) {
        self.tally.crashes += 1;
        self.end_coordinator();
    }

    /// The process ends, and is started again.
    pub(super) fn end_coordinator(&mut self) {
        let links = self.coordinator.die();
        self.job = None;
        let delay = self.soon(60_000);
        self.at(delay, Happening::ReviveCoordinator);
        for (site, link) in links {
            self.cut_at(site, link);
        }
    }

    pub(super) fn revive_coordinator(&mut self) {
        self.start_clock();
        if self.now < self.coordinator.unreadable_until {
            return self.coordinator.start_without_study();
        }
        let same = self.coordinator.revive(self.sabotage == Sabotage::KeepTornRecord);
        self.books.check(same, || "the coordinator that came back is not the one that died".to_owned());
        self.miss_updates();
        self.feed(Event::Restarted);
        self.feed_evaluation(evaluation::Event::Restarted);
        self.expect_trainers();
    }

    pub(super) fn feed(&mut self, event: Event) {
        if self.stands_still() {
            return self.note_still(event.name());
        }
        if !self.coordinator.up || self.coordinator_burns() {
            return;
        }
        if self.waits_for_disk() && self.sabotage != Sabotage::ActUnwritten {
            return self.wait_for_disk(Waiting::Round(event));
        }
        self.take(event);
    }

    /// Journals an event, ticks, and does what follows.
    pub(super) fn take(&mut self, event: Event) {
        if let Some(cut) = self.coordinator_tears() {
            let now = self.coordinator_now();
            self.coordinator.tear(&event, now, cut);
        }
        let mut actions = Vec::new();
        if !self.coordinator_writes(|world| actions = world.tick(event)) {
            return;
        }
        for action in actions {
            if !self.coordinator.up || self.coordinator_burns() {
                return;
            }
            self.execute(action);
        }
    }

    /// Journal, then machine. The journal has the event, whether or not the process lives to execute the actions.
    fn tick(&mut self, event: Event) -> Vec<Action> {
        let forgotten =
            self.sabotage == Sabotage::ForgetUpdates && matches!(event, Event::UpdateStored { .. });
        let forgotten = forgotten || self.disk_is_full();
        let now = self.event_time();
        if !forgotten {
            self.coordinator.write(&event, now);
        }
        let name = event.name();
        let before = self.coordinator.rounds.status();
        let without_data = self.books.heard(&event);
        let lets_go = matches!(event, Event::TrainersExpected { .. });
        let widens = event == Event::Resume && before.phase == "quorum-missing" && before.paused.is_none();
        let actions = self.coordinator.rounds.tick(event, now).unwrap_or_default();
        let after = self.coordinator.rounds.status();
        let (from, to) = (of_rounds(&before), of_rounds(&after));
        self.coverage.note(Transition { machine: "rounds", from, event: name, to });
        let agrees = self.coordinator.replay_agrees();
        self.books.check(agrees, || "the coordinator's journal does not give its state".to_owned());
        self.books.excluded(without_data.as_ref(), &actions, &after);
        self.observe(&actions, widens, &after);
        if lets_go {
            let revoked = after.answers.iter().filter(|(_, answer)| **answer == Answer::Revoked);
            revoked.for_each(|(site, _)| self.books.let_go(after.round, site));
        }
        actions
    }

    /// Keeps the books.
    fn observe(&mut self, actions: &[Action], widens: bool, after: &Status) {
        for action in actions {
            match action {
                Action::Report(Fact::RoundOpened { round, .. }) => self.note_asked(*round),
                Action::Report(Fact::LateUpdateTaken { .. }) => self.tally.late += 1,
                Action::Report(Fact::SiteExcluded { .. }) => self.tally.excluded += 1,
                Action::Report(Fact::UpdateDuplicated { .. }) => self.tally.answered_again += 1,
                _ => {}
            }
        }
        if widens {
            self.note_asked(after.round);
            let absent = |(site, answer): &(&SiteId, &Answer)| match answer {
                Answer::Updated(_) | Answer::Revoked => false,
                Answer::Declined { .. } => true,
                Answer::Invited | Answer::Accepted | Answer::Silent => !after.ready.contains(*site),
            };
            let given_up = after.answers.iter().filter(absent).map(|(site, _)| site.clone()).collect();
            self.books.gave_up(after.round, given_up);
        }
    }

    fn note_asked(&mut self, round: RoundId) {
        let ready = self.coordinator.rounds.status().ready;
        let known = |site: &SiteId| Some((site.clone(), self.registered.get(site)?.clone()));
        let manifests = ready.iter().filter_map(known).collect();
        self.books.asked(round, &manifests);
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::OpenRound { task, to } => {
                self.books.announced(task.base, "a base");
                for site in to {
                    self.notice(&site, participant::Event::RoundOpened { task: task.clone() });
                }
            }
            Action::CloseRound { round, model, .. } => self.close_round(round, model),
            Action::Acknowledge { site, round, attempt, update } => {
                // The receipt is a row of the store before it is given.
                if self.coordinator_writes(|_| {}) {
                    self.books.receipt(&site, round, attempt, update);
                    self.notice(&site, participant::Event::Receipt { attempt });
                }
            }
            Action::Refuse { site, attempt, rejection } => {
                self.tally.refused += 1;
                let code = rejection.code().to_owned();
                self.notice(&site, participant::Event::Refused { attempt, code });
            }
            Action::Aggregate { round, base, mut terms, .. } => {
                if self.sabotage == Sabotage::CountTwice {
                    terms.extend(terms.first().cloned());
                }
                if self.sabotage == Sabotage::MixRounds {
                    self.books.mix_rounds(round, &mut terms);
                }
                if self.sabotage == Sabotage::WeighAgain {
                    self.weigh_again(&mut terms);
                }
                if self.sabotage == Sabotage::CountLateTwice {
                    self.books.count_late_again(round, &mut terms);
                }
                if self.sabotage == Sabotage::WeighLateInFull {
                    self.books.weigh_in_full(&mut terms);
                }
                if self.sabotage == Sabotage::SweepLate {
                    self.coordinator.spool.retain(|_, blob| blob.round >= round);
                }
                self.books.aggregating(round, base, &terms);
                self.work(CoordinatorWork::Aggregate { round, base, terms });
            }
            Action::Commit { round, model } => {
                if self.sabotage == Sabotage::AnnounceBeforeDurable {
                    self.close_round(round, Some(model));
                }
                self.work(CoordinatorWork::Commit { round, model });
            }
            Action::Evaluate { round, model } => {
                self.books.announced(model, "a candidate");
                self.feed_evaluation(evaluation::Event::Requested { round, model });
            }
            Action::AnnouncePaused { to, .. } => {
                for site in to {
                    self.notice(&site, participant::Event::StudyPaused { study: study() });
                }
            }
            Action::AnnounceFinished { model } => {
                self.books.announced(model, "the result");
                for site in self.coordinator.links.keys().copied().collect::<Vec<_>>() {
                    if self.coordinator.rounds.is_over_for(self.sites[site].identity.role) {
                        self.reply(site, Reply::Notice(participant::Event::StudyFinished { study: study() }));
                    }
                }
            }
            Action::SetTimer { .. } if self.sabotage == Sabotage::ForgetTimers => {}
            Action::SetTimer { timer, at } => {
                self.coordinator.timers.insert(timer, at);
                let delay = at.0.saturating_sub(self.coordinator_now().0);
                self.at(delay, Happening::RoundTimer { timer, at });
            }
            Action::ClearTimer(timer) => {
                self.coordinator.timers.remove(&timer);
            }
            Action::Report(_) => {}
        }
    }

    fn close_round(&mut self, round: RoundId, model: Option<ModelHash>) {
        if let Some(model) = model {
            self.books.announced(model, "a new model");
        }
        for site in self.coordinator.links.keys().copied().collect::<Vec<_>>() {
            self.reply(site, Reply::Notice(participant::Event::RoundClosed { study: study(), round }));
        }
        self.remove_spent(round);
    }
}
