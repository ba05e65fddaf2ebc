//! The sites' processes: driven as the binary does, killed and rebuilt from their journals.

use common::participant::{Action, Event};
use common::round::DeclineReason;
use common::time::Timestamp;

use super::{Happening, Request, Work, World};
use crate::simulation::arithmetic::study;
use crate::simulation::coverage::{Transition, of_site};
use crate::simulation::fuse::{Fuse, Moment};
use crate::simulation::invariants::{Suspect, Taken};
use crate::simulation::sabotage::Sabotage;
use crate::simulation::site::{Fetched, Site};

impl World {
    fn site_burns(&mut self, site: usize) -> bool {
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

    /// One durable write by a rename: whether it took place and the process lives on. A process that dies in it is killed
    /// here, before or after `written`.
    pub(super) fn site_writes(&mut self, site: usize, written: impl FnOnce(&mut Site)) -> bool {
        let dies = Fuse::burn(&mut self.sites[site].write_fuse);
        if dies.is_none_or(Moment::wrote) {
            written(&mut self.sites[site]);
        }
        if dies.is_some() {
            self.tally.at_writes += 1;
            self.kill_site(site);
        }
        dies.is_none()
    }

    fn kill_site(&mut self, site: usize) {
        self.tally.crashes += 1;
        self.end_site(site, None);
    }

    /// The process ends, and is back after so long; any time where that does not matter.
    pub(super) fn end_site(&mut self, site: usize, back_ms: Option<u64>) {
        if let Some(link) = self.sites[site].link {
            let delay = self.soon(60_000);
            self.at(delay, Happening::LinkDead { site, link });
        }
        self.sites[site].die();
        let delay = back_ms.unwrap_or_else(|| self.soon(120_000));
        self.at(delay, Happening::ReviveSite { site });
    }

    pub(super) fn revive_site(&mut self, site: usize) {
        let keeps_torn_line = self.sabotage == Sabotage::KeepTornLine;
        if let Err(broken) = self.sites[site].revive(keeps_torn_line) {
            return self.books.check(false, || broken);
        }
        self.take_finished(site);
        let started = if self.sabotage == Sabotage::ForgetDeaths { Event::Restarted } else { Event::Started };
        self.feed_site(site, started);
        // The driver looks at what was decided meanwhile.
        match self.sites[site].approved {
            Some(true) => self.approve(site),
            Some(false) => self.feed_site(site, Event::StudyRefused { study: study() }),
            None => {}
        }
        self.dial_in(site, 10_000);
    }

    /// The site's own clock.
    pub(super) fn site_now(&self, site: usize) -> Timestamp {
        Timestamp(self.now.0.saturating_add_signed(self.sites[site].clock))
    }

    pub(super) fn feed_site(&mut self, site: usize, event: Event) {
        if !self.sites[site].up || self.site_burns(site) {
            return;
        }
        if self.waits_at_site(site) && self.sabotage != Sabotage::ActUnwritten {
            return self.wait_at_site(site, event);
        }
        self.take_at_site(site, event);
    }

    /// Journals an event, ticks, and does what follows.
    pub(super) fn take_at_site(&mut self, site: usize, event: Event) {
        let now = self.site_now(site);
        // A line of the journal is the one write that a kill can leave in part.
        let dies = Fuse::burn(&mut self.sites[site].write_fuse);
        let actions = match dies {
            Some(Moment::Before) => vec![],
            Some(Moment::Torn) => {
                let cut = self.cut_of_line();
                self.sites[site].tear(&event, now, cut);
                vec![]
            }
            Some(Moment::After) | None => self.tick_site(site, event, now),
        };
        if dies.is_some() {
            self.tally.at_writes += 1;
            return self.kill_site(site);
        }
        for action in actions {
            if !self.sites[site].up || self.site_burns(site) {
                return;
            }
            self.execute_site(site, action);
        }
        if self.sites[site].up && self.sites[site].wants_snapshot() {
            self.site_writes(site, Site::keep_snapshot);
        }
    }

    /// Journal, then machine.
    fn tick_site(&mut self, index: usize, event: Event, now: Timestamp) -> Vec<Action> {
        let site = &mut self.sites[index];
        let name = event.name();
        let starts = matches!(event, Event::Started | Event::Restarted);
        let midst = if starts { site.midst(now) } else { None };
        let (machine, from) = of_site(&site.machine, site.evaluates());
        if self.now >= site.full_until {
            site.write(&event, now);
        }
        let actions = site.machine.tick(event.clone(), now);
        let (_, to) = of_site(&site.machine, site.evaluates());
        let agrees = site.replay_agrees();
        let id = site.identity.site.clone();
        self.hold(&Taken { site: &id, event: &event, at: now, midst, actions: &actions, to });
        self.coverage.note(Transition { machine, from, event: name, to });
        self.books.check(agrees, || format!("the journal of site {index} does not give its state"));
        actions
    }

    fn execute_site(&mut self, site: usize, action: Action) {
        match action {
            action if Self::is_for_other(&action) => {}
            Action::AskApproval { study } => self.site_job(site, 60_000, Work::Approve { study }),
            Action::RegisterManifest { study } if self.sites[site].scans == Some(0) => {
                let spoilt = self.sites[site].spoilt;
                let reason = if spoilt { DeclineReason::DataError } else { DeclineReason::NoData };
                self.feed_site(site, Event::DataUnusable { study, reason });
            }
            Action::RegisterManifest { .. } => {
                let mut counts = self.scenario.counts(site, self.sites[site].manifest);
                counts.volumes = self.sites[site].scans.unwrap_or(counts.volumes);
                self.request(site, Request::Register { counts }, None);
            }
            Action::AcceptRound { task } => self.request(site, Request::Accept { round: task.round }, None),
            Action::DeclineRound { round, reason, .. } => {
                self.request(site, Request::Decline { round, reason }, None);
            }
            Action::FetchArtifact { artifact } => {
                let state = self.sites[site].artifacts.get(&artifact);
                if state.is_some_and(|state| *state != Fetched::Gone) {
                    self.feed_site(site, Event::ModelStored { artifact });
                } else {
                    self.request(site, Request::Fetch { artifact }, Some(Event::FetchFailed { artifact }));
                }
            }
            Action::Train { task, attempt } => self.train(site, task, attempt),
            Action::CancelTraining { .. } if self.sabotage == Sabotage::KeepTraining => {}
            Action::CancelTraining { attempt } => {
                self.sites[site].training.take_if(|running| *running == attempt);
                self.sites[site].outbox.remove(&attempt);
            }
            Action::OfferUpdate { offer } => self.offer(site, offer),
            Action::DropUpdate { attempt, reason } => {
                self.guard_kept(site, &reason);
                self.sites[site].outbox.remove(&attempt);
            }
            Action::PruneOutbox { keep } => {
                self.sites[site].outbox.retain(|attempt, _| keep.contains(attempt));
            }
            Action::Evaluate { model, .. } => {
                let there = self.sites[site].artifacts.contains_key(&model);
                self.books.check(there, || format!("site {site} evaluates what it does not have"));
                if self.sites[site].evaluating.replace(model) != Some(model) {
                    let delay = self.soon(120_000) + self.disk();
                    self.may_die(site, Suspect::Scoring(model), delay / 2);
                    self.site_job_at(site, delay, Work::Evaluate { model });
                }
            }
            Action::SendReport { model, .. } if self.sites[site].rots_report => {
                self.sites[site].rots_report = false;
                self.tally.faults += 1;
                self.site_job_at(site, 100, Work::GiveUp { failed: Event::ReportLost { model } });
            }
            Action::SendReport { model, report } => {
                let failed = Event::ReportFailed { model };
                self.request(site, Request::Report { model, report }, Some(failed));
            }
            Action::SetTimer { .. } if self.sabotage == Sabotage::ForgetTimers => {}
            Action::SetTimer { timer, at } => {
                self.sites[site].timers.insert(timer, at);
                let delay = at.0.saturating_sub(self.site_now(site).0);
                self.at(delay, Happening::SiteTimer { site, timer, at });
            }
            Action::ClearTimer(timer) => {
                self.sites[site].timers.remove(&timer);
            }
            Action::CancelFetch { .. }
            | Action::ForgetLearnt { .. }
            | Action::ForgetStudy { .. }
            | Action::CancelEvaluation { .. }
            | Action::Report(_) => {}
        }
    }

    /// Sends a request; what it means when no answer comes is fed after a while, answered or not: late failures are ignored.
    pub(super) fn request(&mut self, site: usize, request: Request, failed: Option<Event>) {
        let Some(link) = self.sites[site].link else { return };
        self.send(site, link, request);
        if let Some(failed) = failed {
            self.site_job_at(site, 200_000, Work::GiveUp { failed });
        }
    }

    pub(super) fn site_job(&mut self, site: usize, longest_ms: u64, work: Work) {
        let delay = self.soon(longest_ms) + self.disk();
        self.site_job_at(site, delay, work);
    }

    pub(super) fn site_job_at(&mut self, site: usize, delay: u64, work: Work) {
        let incarnation = self.sites[site].incarnation;
        self.at(delay, Happening::SiteWork { site, incarnation, work });
    }
}
