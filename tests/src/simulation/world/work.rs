//! The coordinator's heavy work: aggregating and committing, on a disk that can be slow, full or rotten.

use common::aggregate::weights::site_weights;
use common::ids::{ArtifactHash, ModelHash, RoundId, SiteId};
use common::round::{Answer, Event, Fault, Status, Term};

use super::{CoordinatorWork, Happening, World};
use crate::simulation::arithmetic::aggregate;
use crate::simulation::invariants::MAX_SITE_WEIGHT;
use crate::simulation::sabotage::Sabotage;

impl World {
    /// One job at a time. Asked for again while it runs, it is not begun again; another takes its place, and what comes of
    /// it then is not wanted any more.
    pub(super) fn work(&mut self, work: CoordinatorWork) {
        if self.job.as_ref() != Some(&work) {
            self.job = Some(work.clone());
            let delay = self.soon(20_000) + self.disk();
            let incarnation = self.coordinator.incarnation;
            self.at(delay, Happening::CoordinatorWork { incarnation, work });
        }
    }

    pub(super) fn coordinator_work(&mut self, work: CoordinatorWork) {
        match work {
            CoordinatorWork::Aggregate { round, base, terms } => self.aggregate(round, base, &terms),
            CoordinatorWork::Commit { round, .. } if self.failing_commits > 0 => {
                self.failing_commits -= 1;
                self.tally.faults += 1;
                self.feed(Event::CommitFailed { round, fault: Fault::StorageFull });
            }
            CoordinatorWork::Commit { round, model } => self.commit(round, model),
        }
    }

    fn aggregate(&mut self, round: RoundId, base: ModelHash, terms: &[Term]) {
        if let Some(fault) = self.failing_aggregation.take() {
            self.tally.faults += 1;
            return self.feed(Event::AggregationFailed { round, fault });
        }
        // An aborted study's updates are gone already; nobody waits for its model.
        if self.coordinator.rounds.status().phase != "aggregating" {
            return;
        }
        // What is stored is checked again as it is read: a restart or a disk may lie between.
        let rotten = |term: &&Term| self.coordinator.content_of(&term.site, term.update) != Some(term.update);
        let rotten: Vec<Term> = terms.iter().filter(rotten).cloned().collect();
        for Term { site, update, .. } in &rotten {
            self.must_be_stored(site, *update);
        }
        if !rotten.is_empty() && self.sabotage != Sabotage::TrustTheDisk {
            self.tally.corrupt += 1;
            return self.miss(round, rotten);
        }
        let summand = |term: &Term| -> (SiteId, ArtifactHash, f64) {
            let content = self.coordinator.content_of(&term.site, term.update);
            (term.site.clone(), content.unwrap_or(term.update), term.share)
        };
        let model = aggregate(base, terms.iter().map(summand));
        // The model's file is durable here; whether it counts is for the commit.
        if self.coordinator_writes(|_| {}) {
            self.feed(Event::Aggregated { round, model });
        } else {
            self.feed(Event::AggregationFailed { round, fault: Fault::StorageFull });
        }
    }

    /// Moves what is rotten away, and has the sites asked again.
    fn miss(&mut self, round: RoundId, rotten: Vec<Term>) {
        for Term { site, round: trained_for, attempt, update, .. } in rotten {
            let lives = self.coordinator_writes(|world| {
                world.coordinator.spool.remove(&(site.clone(), update));
                world.coordinator.quarantine.insert((site.clone(), update));
            });
            if !lives {
                return self.feed(Event::AggregationFailed { round, fault: Fault::StorageFull });
            }
            self.books.lost(round, trained_for, &site);
            self.feed(Event::UpdateLost { site, round: trained_for, attempt });
        }
    }

    /// The driver removes nothing that a round is still to be made of; what is rotten goes to the quarantine.
    fn must_be_stored(&mut self, site: &SiteId, update: ArtifactHash) {
        let stored = self.coordinator.content_of(site, update).is_some();
        let known = stored || self.coordinator.quarantine.contains(&(site.clone(), update));
        self.books.check(known, || format!("the update of {site} counts and was removed from the store"));
    }

    /// What was moved away before the last crash is told as soon as the coordinator is back, as the binary does.
    pub(super) fn miss_updates(&mut self) {
        let Status { phase, round, answers, .. } = self.coordinator.rounds.status();
        // Of a model that is made already nothing is missing.
        for (site, answer) in answers.into_iter().filter(|_| phase != "committing") {
            let Answer::Updated(counted) = answer else { continue };
            if self.coordinator.content_of(&site, counted.update).is_none() {
                self.must_be_stored(&site, counted.update);
                self.books.lost(round, round, &site);
                self.feed(Event::UpdateLost { site, round, attempt: counted.attempt });
            }
        }
    }

    /// What is stored of a round that is over goes, once it cannot count in the next either.
    pub(super) fn remove_spent(&mut self, round: RoundId) {
        let kept = self.coordinator.rounds.takes_late(round);
        self.coordinator.spool.retain(|_, blob| blob.round > round || kept && blob.round == round);
    }

    fn commit(&mut self, round: RoundId, model: ModelHash) {
        if self.sabotage == Sabotage::CommitBeforeDurable {
            self.feed(Event::Committed { round, model });
        }
        let lives = self.coordinator_writes(|world| {
            world.books.committed(round, model);
            world.coordinator.artifacts.insert(model);
        });
        if lives {
            self.feed(Event::Committed { round, model });
        } else {
            self.feed(Event::CommitFailed { round, fault: Fault::StorageFull });
        }
        if self.coordinator.up {
            self.coordinator_writes(|world| world.coordinator.keep_snapshot());
        }
    }

    /// Sabotage: the shares that today's manifests give.
    pub(super) fn weigh_again(&self, terms: &mut [Term]) {
        let known = |term: &Term| Some((term.site.clone(), self.registered.get(&term.site)?.clone()));
        let responders = terms.iter().filter_map(known).collect();
        let shares = site_weights(self.scenario.weighting, &responders, MAX_SITE_WEIGHT).shares;
        for term in terms {
            term.share = shares.get(&term.site).copied().unwrap_or_default();
        }
    }
}
