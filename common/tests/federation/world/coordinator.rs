//! The coordinator's process: driven as the binary does, killed and rebuilt from its journal.

use super::*;

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

    pub(super) fn kill_coordinator(&mut self) {
        self.tally.crashes += 1;
        let Coordinator { up, incarnation, links, timers, gate_timer, working, fuse, .. } =
            &mut self.coordinator;
        (*up, *gate_timer, *working, *fuse) = (false, None, false, None);
        *incarnation += 1;
        timers.clear();
        let links = std::mem::take(links);
        let delay = self.soon(60_000);
        self.at(delay, Happening::ReviveCoordinator);
        for (site, link) in links {
            self.cut_at(site, link);
        }
    }

    pub(super) fn revive_coordinator(&mut self) {
        let plan = plan(&self.scenario, self.sabotage);
        let coordinator = &mut self.coordinator;
        let snapshot: Option<Snapshot> = coordinator
            .snapshot
            .as_ref()
            .map(|text| serde_json::from_str(text).expect("a snapshot reads back"));
        let read =
            |line: &String| serde_json::from_str::<Entry<Event>>(line).expect("a journal line reads back");
        let entries: Vec<_> = coordinator.journal.iter().map(read).collect();
        let rounds = RoundMachine::replay(plan.clone(), snapshot, entries).expect("its own snapshot");
        let same = rounds == coordinator.rounds;
        let read =
            |line: &String| serde_json::from_str::<Entry<evaluation::Event>>(line).expect("reads back");
        let entries: Vec<_> = coordinator.evaluation_journal.iter().map(read).collect();
        let evaluation = EvaluationMachine::replay(study(), plan.gate, None, entries).expect("no snapshot");
        let same = same && evaluation == coordinator.evaluation;
        (coordinator.shadow, coordinator.rounds, coordinator.evaluation) =
            (rounds.clone(), rounds, evaluation);
        coordinator.up = true;
        self.books.check(same, || "the coordinator that came back is not the one that died".to_owned());
        self.feed_evaluation(evaluation::Event::Restarted);
        self.feed(Event::Restarted);
    }

    pub(super) fn feed(&mut self, event: Event) {
        if !self.coordinator.up || self.coordinator_burns() {
            return;
        }
        let forgotten =
            self.sabotage == Sabotage::ForgetUpdates && matches!(event, Event::UpdateStored { .. });
        if !forgotten {
            let line = serde_json::to_string(&Entry { at: self.now, event: event.clone() }).expect("JSON");
            let read: Entry<Event> = serde_json::from_str(&line).expect("a journal line is an event");
            let _ = self.coordinator.shadow.tick(read.event, read.at);
            self.coordinator.journal.push(line);
        }
        let before = self.coordinator.rounds.status();
        let widens = event == Event::Resume && before.phase == "quorum-missing" && before.paused.is_none();
        let actions = self.coordinator.rounds.tick(event, self.now).unwrap_or_default();
        self.observe(&actions, widens);
        for action in actions {
            if !self.coordinator.up || self.coordinator_burns() {
                return;
            }
            self.execute(action);
        }
    }

    pub(super) fn note_asked(&mut self, round: RoundId) {
        let ready = self.coordinator.rounds.status().ready;
        let known = |site: &SiteId| Some((site.clone(), self.registered.get(site)?.clone()));
        let manifests = ready.iter().filter_map(known).collect();
        self.books.asked(round, &manifests);
    }

    pub(super) fn execute(&mut self, action: Action) {
        match action {
            Action::OpenRound { task, to } => {
                self.books.announced(task.base, "a base");
                for site in to {
                    self.notice(&site, participant::Event::RoundOpened { task: task.clone() });
                }
            }
            Action::CloseRound { round, model, .. } => self.close_round(round, model),
            Action::Acknowledge { site, round, attempt, update } => {
                self.books.receipt(&site, round, attempt, update);
                self.notice(&site, participant::Event::Receipt { attempt });
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
                self.books.aggregating(round, base, &terms);
                self.work(CoordinatorWork::Aggregate { round, terms });
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
            Action::SetTimer { timer, at } => {
                if self.sabotage != Sabotage::ForgetTimers {
                    self.coordinator.timers.insert(timer, at);
                    self.at(at.since(self.now).as_millis() as u64, Happening::RoundTimer { timer, at });
                }
            }
            Action::ClearTimer(timer) => {
                self.coordinator.timers.remove(&timer);
            }
            Action::Report(_) => {}
        }
    }

    /// Keeps the books: the journal has the event, whether or not the process lives to execute the actions.
    pub(super) fn observe(&mut self, actions: &[Action], widens: bool) {
        for action in actions {
            match action {
                Action::Report(Fact::RoundOpened { round, .. }) => self.note_asked(*round),
                Action::Report(Fact::UpdateDuplicated { .. }) => self.tally.answered_again += 1,
                _ => {}
            }
        }
        if widens {
            self.note_asked(self.coordinator.rounds.status().round);
        }
    }

    pub(super) fn close_round(&mut self, round: RoundId, model: Option<ModelHash>) {
        if let Some(model) = model {
            self.books.announced(model, "a new model");
        }
        let links: Vec<_> = self.coordinator.links.keys().copied().collect();
        for site in links {
            self.reply(site, Reply::Notice(participant::Event::RoundClosed { study: study(), round }));
        }
    }

    /// One job at a time; asked for again while it runs, it is not begun again.
    pub(super) fn work(&mut self, work: CoordinatorWork) {
        if !self.coordinator.working {
            self.coordinator.working = true;
            let (delay, incarnation) = (self.soon(20_000), self.coordinator.incarnation);
            self.at(delay, Happening::CoordinatorWork { incarnation, work });
        }
    }

    pub(super) fn coordinator_work(&mut self, work: CoordinatorWork) {
        match work {
            CoordinatorWork::Aggregate { round, .. } if self.failing_aggregations > 0 => {
                self.failing_aggregations -= 1;
                self.tally.faults += 1;
                self.feed(Event::AggregationFailed { round, fault: Fault::Numbers });
            }
            CoordinatorWork::Aggregate { round, terms } => {
                let model = artifact(&format!("{round} {terms:?}"));
                self.feed(Event::Aggregated { round, model });
            }
            CoordinatorWork::Commit { round, .. } if self.failing_commits > 0 => {
                self.failing_commits -= 1;
                self.tally.faults += 1;
                self.feed(Event::CommitFailed { round, fault: Fault::StorageFull });
            }
            CoordinatorWork::Commit { round, model } => {
                self.books.committed(round, model);
                self.coordinator.artifacts.insert(model);
                self.feed(Event::Committed { round, model });
                if self.coordinator.up {
                    let snapshot = serde_json::to_string(&self.coordinator.rounds.snapshot()).expect("JSON");
                    self.coordinator.snapshot = Some(snapshot);
                    self.coordinator.journal.clear();
                }
            }
        }
    }

    /// Sabotage: the shares that today's manifests give.
    pub(super) fn weigh_again(&self, terms: &mut [Term]) {
        let known = |term: &Term| Some((term.site.clone(), self.registered.get(&term.site)?.clone()));
        let responders = terms.iter().filter_map(known).collect();
        let shares = site_weights(self.scenario.weighting, &responders, 0.5).shares;
        for term in terms {
            term.share = shares.get(&term.site).copied().unwrap_or_default();
        }
    }
}
