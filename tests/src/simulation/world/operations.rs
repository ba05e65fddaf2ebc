//! What the scenario does to the federation.

use std::collections::BTreeSet;

use common::evaluation;
use common::ids::RoundId;
use common::participant;
use common::round::Event;

use super::{Happening, World};
use crate::simulation::arithmetic::{artifact, embeddings, study};
use crate::simulation::fuse::Fuse;
use crate::simulation::operation::Op;
use crate::simulation::sabotage::Sabotage;
use crate::simulation::site::{Deadly, Fetched};

impl World {
    pub(super) fn next_op(&mut self) {
        let Some(op) = self.scenario.ops.get(self.next_op).cloned() else { return self.calm() };
        self.next_op += 1;
        let delay = if let Op::Advance { ms } = op { ms } else { 0 };
        self.at(delay, Happening::NextOp);
        match op {
            Op::Advance { .. } => {}
            Op::Weather { lose, double, delay_ms } => {
                (self.lose, self.double, self.delay_ms) = (lose, double, delay_ms);
            }
            Op::Disconnect { site } => self.cut(site),
            Op::Partition { sites, ms } => self.cut_off(&sites, ms),
            Op::CrashSiteAfter { site, actions } => self.sites[site].fuse = Some(actions),
            Op::CrashCoordinatorAfter { actions } => self.coordinator.fuse = Some(actions),
            Op::CrashSiteAtWrite { site, writes, moment } => {
                self.sites[site].write_fuse = Some(Fuse { writes, moment });
            }
            Op::CrashCoordinatorAtWrite { writes, moment } => {
                self.coordinator.write_fuse = Some(Fuse { writes, moment });
            }
            Op::SlowSite { site, ms } => self.sites[site].slow_ms = ms,
            Op::FailWork { site, times } => self.sites[site].failing = times,
            Op::DieInWork { site, times, step, further, back_ms } => {
                self.sites[site].deadly = Some(Deadly { times, step, further, back_ms });
            }
            Op::MisreadStudy { ms } => self.misread_study(ms),
            Op::StopSiteAfter { site, events } => self.sites[site].stops_after = Some(events),
            Op::FillStorage { times } => self.failing_commits = times,
            Op::FillDisk { ms } => self.fill_disk(ms),
            Op::FillSiteDisk { site, ms } => self.fill_site_disk(site, ms),
            Op::FailAggregation { fault } => self.failing_aggregation = Some(fault),
            Op::CorruptUpdate { pick } => self.corrupt_update(pick),
            Op::CorruptOutbox { site } => {
                let site = &mut self.sites[site];
                site.rotten = site.outbox.keys().copied().collect();
                site.rots_report = site.evaluates();
            }
            Op::RotArtifacts { site } => {
                let whole = self.sites[site].artifacts.values_mut().filter(|state| **state == Fetched::Whole);
                whole.for_each(|state| *state = Fetched::Damaged);
            }
            Op::SlowDisk { ms } => self.disk_ms = ms,
            Op::StepClock { site, ms } => self.sites[site].clock = ms,
            Op::StepCoordinatorClock { ms } => self.step_clock(ms),
            Op::Pause => self.feed(Event::Pause),
            Op::PauseFor => self.feed(Event::PauseFor { words: "the servers move".to_owned() }),
            Op::Resume => self.feed(Event::Resume),
            Op::Abort => self.feed(Event::Abort),
            Op::Promote => self.promote(),
            Op::ChangeManifest { site } => self.sites[site].manifest += 1,
            // What an evaluator has is no matter of the rounds.
            Op::LoseScans { site, .. } | Op::SpoilScans { site } if self.sites[site].evaluates() => {}
            Op::LoseScans { site, left } => {
                (self.sites[site].scans, self.sites[site].spoilt) = (Some(left), false);
            }
            Op::SpoilScans { site } => {
                (self.sites[site].scans, self.sites[site].spoilt) = (Some(0), true);
            }
            Op::AskForOther { site } => self.ask_for_other(site),
            Op::Withdraw { site } => {
                self.sites[site].approved = Some(false);
                self.feed_site(site, participant::Event::StudyRefused { study: study() });
            }
            Op::Approve { site } => self.approve(site),
            Op::Leave { site } => self.leave(site),
            Op::Join { site } => self.join(site),
            Op::Hostile { site, lie } => self.lie(site, lie),
        }
    }

    /// The faults stop, and the operators put right what is theirs to put right.
    fn calm(&mut self) {
        self.calm_since.get_or_insert(self.now);
        (self.lose, self.double, self.delay_ms, self.disk_ms) = (0, 0, 200, 0);
        self.cut_off.clear();
        self.failing_aggregation = None;
        self.coordinator.full_until = self.now;
        self.coordinator.unreadable_until = self.now;
        self.study_readable();
        self.disk_has_room();
        let status = self.coordinator.rounds.status();
        // Of a round whose sites all withdrew, too: it asks those that came later.
        let stuck = status.paused.is_some() || status.phase == "quorum-missing";
        if self.coordinator.up && stuck {
            self.feed(Event::Resume);
        }
        // At the end the model is promoted, for those to score who may not see another.
        if status.phase == "finished" && self.scenario.sealed > 0 && !self.scored() {
            self.promote();
        }
        for site in 0..self.sites.len() {
            self.join(site);
            self.sites[site].slow_ms = 0;
            self.sites[site].full_until = self.now;
            self.site_has_room(site);
            // It counts them again when it connects.
            if self.sites[site].scans.take().is_some() {
                self.cut(site);
            }
            if self.sites[site].up && self.sites[site].approved == Some(false) {
                self.approve(site);
            }
            self.ask_again(site);
        }
        self.at(600_000, Happening::NextOp);
    }

    pub(super) fn approve(&mut self, site: usize) {
        self.sites[site].approved = Some(true);
        let (needs, takes_late) = ([embeddings()].into(), self.scenario.late.is_some());
        self.feed_site(site, participant::Event::StudyApproved { study: study(), needs, takes_late });
    }

    /// An evaluator that gave a model up is asked about it at its next connection alone: its operator starts it again.
    fn ask_again(&mut self, site: usize) {
        let idle = self.sites[site].machine.status().evaluation == "idle";
        let Some(model) = self.books.model_of(RoundId(self.scenario.rounds)) else { return };
        let owes = self.coordinator.evaluation.pending(&model).contains(&self.sites[site].identity.site);
        if idle && owes {
            self.cut(site);
        }
    }

    /// A site is revoked: the coordinator ends its connection and counts on it no more.
    fn leave(&mut self, site: usize) {
        if !self.sites[site].enrolled {
            return;
        }
        self.tally.left += 1;
        self.sites[site].enrolled = false;
        self.books.enrolled(self.sites[site].identity.site.clone(), false);
        if self.sabotage == Sabotage::KeepRevoked {
            return;
        }
        if self.coordinator.links.contains_key(&site) {
            self.gone(site);
        }
        self.cut(site);
        self.expect_trainers();
    }

    /// A site is enrolled, for the first time or again.
    fn join(&mut self, site: usize) {
        if !self.sites[site].enrolled {
            self.sites[site].enrolled = true;
            self.books.enrolled(self.sites[site].identity.site.clone(), true);
            self.expect_trainers();
        }
    }

    /// Tells the machines which trainers are enrolled and which evaluators have left, as the coordinator does at every change
    /// and at its start.
    pub(super) fn expect_trainers(&mut self) {
        let enrolled = self.sites.iter().filter(|site| site.enrolled && !site.evaluates());
        let sites = enrolled.map(|site| site.identity.site.clone()).collect();
        self.feed(Event::TrainersExpected { sites });
        let left = self.sites.iter().filter(|site| !site.enrolled && site.evaluates());
        let left: BTreeSet<_> = left.map(|site| site.identity.site.clone()).collect();
        for site in self.coordinator.evaluation.counts_on().intersection(&left).cloned() {
            self.feed_evaluation(evaluation::Event::EvaluatorLeft { site });
        }
    }

    /// The operator promotes the last durable model, if there is one.
    fn promote(&mut self) {
        let round = RoundId(self.books.rounds());
        if let Some(model) = self.books.model_of(round).filter(|_| round.0 > 0) {
            self.feed_evaluation(evaluation::Event::Promoted { round, model });
        }
    }

    /// One of the stored updates of the open round, or of the round before, is not what it was.
    fn corrupt_update(&mut self, pick: usize) {
        let round = self.coordinator.rounds.status().round;
        let open = self.coordinator.spool.values_mut().filter(|blob| blob.round.next() >= round);
        let mut open: Vec<_> = open.collect();
        if !open.is_empty() {
            let pick = pick % open.len();
            open[pick].content = artifact(&format!("rot {}", self.sequence));
        }
    }
}
