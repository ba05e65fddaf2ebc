//! The sites' processes: driven as the binary does, killed and rebuilt from their journals.

use super::*;

impl World {
    pub(super) fn site_burns(&mut self, site: usize) -> bool {
        match &mut self.sites[site].fuse {
            Some(0) => {
                self.kill_site(site);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    pub(super) fn kill_site(&mut self, site: usize) {
        self.tally.crashes += 1;
        if let Some(link) = self.sites[site].link {
            let delay = self.soon(60_000);
            self.at(delay, Happening::LinkDead { site, link });
        }
        self.sites[site].die();
        let delay = self.soon(120_000);
        self.at(delay, Happening::ReviveSite { site });
    }

    pub(super) fn revive_site(&mut self, site: usize) {
        let same = self.sites[site].revive();
        self.books.check(same, || format!("site {site} that came back is not the one that died"));
        self.feed_site(site, participant::Event::Restarted);
        self.dial_in(site, 10_000);
    }

    pub(super) fn feed_site(&mut self, site: usize, event: participant::Event) {
        if !self.sites[site].up || self.site_burns(site) {
            return;
        }
        let now = self.now;
        self.sites[site].write(&event, now);
        for action in self.sites[site].machine.tick(event, now) {
            if !self.sites[site].up || self.site_burns(site) {
                return;
            }
            self.execute_site(site, action);
        }
        self.sites[site].snapshot_when_idle();
    }

    pub(super) fn execute_site(&mut self, site: usize, action: participant::Action) {
        use participant::{Action, Event};
        match action {
            Action::AskApproval { study } => self.site_job(site, 60_000, Work::Approve { study }),
            Action::RegisterManifest { .. } => {
                let counts = counts(site, self.sites[site].manifest);
                self.request(site, Request::Register { counts }, None);
            }
            Action::AcceptRound { task } => self.request(site, Request::Accept { round: task.round }, None),
            Action::DeclineRound { round, reason, .. } => {
                self.request(site, Request::Decline { round, reason }, None);
            }
            Action::FetchArtifact { artifact } => {
                if self.sites[site].artifacts.contains(&artifact) {
                    self.feed_site(site, Event::ModelStored { artifact });
                } else {
                    self.request(site, Request::Fetch { artifact }, Some(Event::FetchFailed { artifact }));
                }
            }
            Action::Train { task, attempt } => {
                let running = self.sites[site].training;
                self.books.check(running.is_none_or(|running| running == attempt), || {
                    format!("site {site} trains {attempt} while it trains {running:?}")
                });
                if running != Some(attempt) {
                    self.sites[site].training = Some(attempt);
                    self.site_job(site, 120_000, Work::Train { task, attempt });
                }
            }
            Action::CancelTraining { .. } if self.sabotage == Sabotage::KeepTraining => {}
            Action::CancelTraining { attempt } => {
                self.sites[site].training.take_if(|running| *running == attempt);
                self.sites[site].outbox.remove(&attempt);
            }
            Action::OfferUpdate { offer } => {
                let attempt = offer.attempt;
                let there = self.sites[site].outbox.get(&attempt) == Some(&offer.update);
                self.books.check(there, || format!("site {site} offers what is not in its outbox"));
                self.request(site, Request::Offer { offer }, Some(Event::UploadFailed { attempt }));
            }
            Action::DropUpdate { attempt, .. } => {
                self.sites[site].outbox.remove(&attempt);
            }
            Action::PruneOutbox { keep } => {
                self.sites[site].outbox.retain(|attempt, _| Some(*attempt) == keep)
            }
            Action::Evaluate { model, .. } => {
                let there = self.sites[site].artifacts.contains(&model);
                self.books.check(there, || format!("site {site} evaluates what it does not have"));
                if self.sites[site].evaluating.replace(model) != Some(model) {
                    self.site_job(site, 120_000, Work::Evaluate { model });
                }
            }
            Action::SendReport { model, report } => {
                let failed = Event::ReportFailed { model };
                self.request(site, Request::Report { model, report }, Some(failed));
            }
            Action::SetTimer { timer, at } => {
                self.sites[site].timers.insert(timer, at);
                self.at(at.since(self.now).as_millis() as u64, Happening::SiteTimer { site, timer, at });
            }
            Action::ClearTimer(timer) => {
                self.sites[site].timers.remove(&timer);
            }
            Action::CancelFetch { .. } | Action::CancelEvaluation { .. } | Action::Report(_) => {}
        }
    }

    /// Sends a request; what it means when no answer comes is fed after a while, answered or not: late failures are ignored.
    pub(super) fn request(&mut self, site: usize, request: Request, failed: Option<participant::Event>) {
        let Some(link) = self.sites[site].link else { return };
        self.send(site, link, request);
        if let Some(failed) = failed {
            let incarnation = self.sites[site].incarnation;
            let work = Work::GiveUp { failed };
            self.at(200_000, Happening::SiteWork { site, incarnation, work });
        }
    }

    pub(super) fn site_job(&mut self, site: usize, longest_ms: u64, work: Work) {
        let (delay, incarnation) = (self.soon(longest_ms), self.sites[site].incarnation);
        self.at(delay, Happening::SiteWork { site, incarnation, work });
    }

    pub(super) fn site_work(&mut self, site: usize, work: Work) {
        use participant::Event;
        match work {
            Work::Approve { study } => {
                let needs = [artifact("embeddings")].into();
                self.feed_site(site, Event::StudyApproved { study, needs, takes_late: false });
            }
            Work::Train { task, attempt } => {
                if self.sites[site].training.take_if(|running| *running == attempt).is_none() {
                    return;
                }
                if self.sites[site].failing_trainings > 0 {
                    self.sites[site].failing_trainings -= 1;
                    self.tally.faults += 1;
                    return self.feed_site(site, Event::TrainingFailed { attempt });
                }
                // Training again after a crash need not give the same numbers; what is in the outbox stands.
                let content = artifact(&format!("{attempt} {}", self.sites[site].incarnation));
                let update = *self.sites[site].outbox.entry(attempt).or_insert(content);
                self.feed_site(site, Event::Trained { attempt, update, steps: task.steps });
            }
            Work::Evaluate { model } => {
                self.sites[site].evaluating.take_if(|running| *running == model);
                let report = report_of(&self.sites[site].identity.site, model);
                self.feed_site(site, Event::Evaluated { model, report });
            }
            Work::GiveUp { failed } => self.feed_site(site, failed),
        }
    }
}
