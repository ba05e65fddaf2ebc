//! A round with its participants, from opening to commit: the state that four phases hand on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::coverage::{self, ClassShortage};
use super::event::{DeclineReason, RoundTask, Term, UpdateOffer};
use super::late::LateUpdate;
use super::plan::RoundPlan;
use super::rejection::{Rejection, UpdateExpectation};
use crate::aggregate::weights::{SiteCounts, WeightedSites, discounted_weights};
use crate::ids::{ArtifactHash, AttemptId, ClassId, ModelHash, RoundId, SiteId};
use crate::time::Timestamp;

/// A round, its base and the sites that were asked, with the counts that their weights follow from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenedRound {
    pub(super) round: RoundId,
    pub(super) base: ModelHash,
    pub(super) deadline: Timestamp,
    pub(super) participants: BTreeMap<SiteId, Participant>,
    /// Those that the operator gave up when a quorum was missing: what they alone annotate holds the round up no more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    given_up: BTreeSet<SiteId>,
    /// Updates of the round before that came late and count here, for less, where the site sends none of this round.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) late: BTreeMap<SiteId, LateUpdate>,
}

/// One site in one round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Participant {
    /// Fixed when the site was asked.
    pub(super) counts: SiteCounts,
    pub(super) answer: Answer,
}

/// What came of asking a site. Serialisable as part of a round's snapshot and status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Nothing yet.
    Invited,
    /// It takes part; the round waits for it.
    Accepted,
    /// Nothing in time; the round does not wait for it, but takes its update.
    Silent,
    /// It takes no part; the round does not wait for it, but takes its update.
    Declined {
        /// Why.
        reason: DeclineReason,
    },
    /// Its update counts.
    Updated(Counted),
    /// It was revoked before it sent its update: the round does not wait for it and takes nothing of it.
    Revoked,
}

/// The update of a site that counts in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Idempotency key.
    pub attempt: AttemptId,
    /// The stored update.
    pub update: ArtifactHash,
}

impl Counted {
    /// What an offer of a site that has this one counted deserves.
    pub(super) fn compare(self, offer: &UpdateOffer) -> Result<UpdateExpectation, Rejection> {
        match (self.attempt == offer.attempt, self.update == offer.update) {
            (true, true) => Ok(UpdateExpectation::AlreadyCounted),
            (true, false) => Err(Rejection::AttemptReused { attempt: offer.attempt }),
            (false, _) => Err(Rejection::AlreadyCounted { round: offer.round, counted: self.attempt }),
        }
    }
}

impl OpenedRound {
    /// A round without participants.
    pub(super) fn new(round: RoundId, base: ModelHash, deadline: Timestamp) -> Self {
        let (participants, late) = (BTreeMap::new(), BTreeMap::new());
        Self { round, base, deadline, participants, given_up: BTreeSet::new(), late }
    }

    /// Adds the ready sites that are not asked yet, or that were revoked and have come back.
    pub(super) fn invite(&mut self, ready: &BTreeMap<SiteId, SiteCounts>) {
        for (site, counts) in ready {
            if matches!(self.answer_of(site), None | Some(Answer::Revoked)) {
                let invited = Participant { counts: counts.clone(), answer: Answer::Invited };
                self.participants.insert(site.clone(), invited);
            }
        }
    }

    /// Lets go of the participants that are enrolled no more. What counts of theirs stays; the others come back.
    pub(super) fn revoke_others(&mut self, enrolled: &BTreeSet<SiteId>) -> Vec<SiteId> {
        let mut revoked = Vec::new();
        for (site, participant) in &mut self.participants {
            let over = matches!(participant.answer, Answer::Updated(_) | Answer::Revoked);
            if !over && !enrolled.contains(site) {
                participant.answer = Answer::Revoked;
                revoked.push(site.clone());
            }
        }
        revoked
    }

    /// Counts no more on what those annotate who are not at hand, or have declined.
    pub(super) fn give_up_absent(&mut self, ready: &BTreeMap<SiteId, SiteCounts>) {
        let absent = |(site, participant): &(&SiteId, &Participant)| match participant.answer {
            Answer::Updated(_) | Answer::Revoked => false,
            Answer::Declined { .. } => true,
            _ => !ready.contains_key(*site),
        };
        self.given_up = self.participants.iter().filter(absent).map(|(site, _)| site.clone()).collect();
    }

    /// What came of asking a site; `None` when it was not asked.
    pub(super) fn answer_of(&self, site: &SiteId) -> Option<&Answer> {
        self.participants.get(site).map(|participant| &participant.answer)
    }

    /// The late updates of sites that have sent none of this round.
    pub(super) fn late(&self) -> impl Iterator<Item = (&SiteId, &LateUpdate)> {
        let newer = move |site: &SiteId| matches!(self.answer_of(site), Some(Answer::Updated(_)));
        self.late.iter().filter(move |(site, _)| !newer(site))
    }

    /// Whether any site has this answer.
    pub(super) fn any(&self, answer: &Answer) -> bool {
        self.participants.values().any(|participant| participant.answer == *answer)
    }

    /// The update of this round of each site that has one: what a quorum is made of.
    pub(super) fn counted(&self) -> BTreeMap<SiteId, Counted> {
        let counted = |(site, participant): (&SiteId, &Participant)| match participant.answer {
            Answer::Updated(counted) => Some((site.clone(), counted)),
            _ => None,
        };
        self.participants.iter().filter_map(counted).collect()
    }

    /// Whether as many updates are there as the study's quorum says, in all and of each class.
    pub(super) fn has_quorum(&self, plan: &RoundPlan) -> bool {
        self.counted().len() >= plan.quorum.fewest() && self.classes_short(plan).is_empty()
    }

    /// The classes of which too few updates are there.
    pub(super) fn classes_short(&self, plan: &RoundPlan) -> BTreeMap<ClassId, ClassShortage> {
        let counted_on = |(site, participant): &(&SiteId, &Participant)| {
            participant.answer != Answer::Revoked && !self.given_up.contains(*site)
        };
        let counted = |participant: &&Participant| matches!(participant.answer, Answer::Updated(_));
        let most = self.participants.iter().filter(counted_on).map(|(_, participant)| &participant.counts);
        let have = self.participants.values().filter(counted).map(|participant| &participant.counts);
        let (most, have) = (coverage::annotators(most), coverage::annotators(have));
        coverage::short_of_updates(&most, &have, &plan.quorum)
    }

    /// The connected sites that have not sent their update.
    pub(super) fn unanswered(&self, ready: &BTreeMap<SiteId, SiteCounts>) -> BTreeSet<SiteId> {
        let open = |(_, participant): &(&SiteId, &Participant)| {
            !matches!(participant.answer, Answer::Updated(_) | Answer::Revoked)
        };
        let connected = |site: &&SiteId| ready.contains_key(*site);
        self.participants.iter().filter(open).map(|(site, _)| site).filter(connected).cloned().collect()
    }

    /// Records an answer; false when it changes nothing: of a stranger, a duplicate, or after the update.
    pub(super) fn answer(&mut self, site: &SiteId, answer: Answer) -> bool {
        match self.participants.get_mut(site) {
            Some(Participant { answer: Answer::Updated(_) | Answer::Revoked, .. }) | None => false,
            Some(known) => {
                let news = known.answer != answer;
                known.answer = answer;
                news
            }
        }
    }

    /// Whether this very update of `site` counts.
    pub(super) fn counts(&self, site: &SiteId, attempt: AttemptId) -> bool {
        let answer = self.participants.get(site).map(|participant| &participant.answer);
        matches!(answer, Some(Answer::Updated(counted)) if counted.attempt == attempt)
    }

    /// Takes back an update that is lost. Its site is waited for until `deadline`: the loss is not its own.
    pub(super) fn lose(&mut self, site: &SiteId, attempt: AttemptId, deadline: Timestamp) -> bool {
        let lost = self.counts(site, attempt);
        if let Some(known) = self.participants.get_mut(site).filter(|_| lost) {
            known.answer = Answer::Accepted;
            self.deadline = self.deadline.max(deadline);
        }
        lost
    }

    /// The task as it reads at `now`.
    pub(super) fn task(&self, plan: &RoundPlan, now: Timestamp) -> RoundTask {
        let remaining = self.deadline.since(now).as_millis();
        RoundTask {
            study: plan.study,
            round: self.round,
            base: self.base,
            steps: plan.steps,
            remaining_ms: u64::try_from(remaining).unwrap_or(u64::MAX),
        }
    }

    /// Whether the offer is one for this round, while it takes updates.
    pub(super) fn expect(
        &self,
        site: &SiteId,
        offer: &UpdateOffer,
        plan: &RoundPlan,
    ) -> Result<UpdateExpectation, Rejection> {
        if offer.base != self.base {
            return Err(Rejection::WrongBase { round: self.round, expected: self.base, got: offer.base });
        }
        if offer.steps != plan.steps {
            return Err(Rejection::WrongSteps { expected: plan.steps, got: offer.steps });
        }
        match self.answer_of(site) {
            None | Some(Answer::Revoked) => Err(Rejection::NotParticipant { round: self.round }),
            Some(Answer::Updated(counted)) => counted.compare(offer),
            Some(_) => Ok(UpdateExpectation::Wanted { base: self.base }),
        }
    }

    /// The shares of the sites whose updates count, from the counts fixed when they were asked.
    pub(super) fn weights(&self, plan: &RoundPlan) -> WeightedSites {
        let counted = |participant: &Participant| matches!(participant.answer, Answer::Updated(_));
        let responders = self.participants.iter().filter(|(_, participant)| counted(participant));
        let responders = responders.map(|(site, participant)| (site.clone(), participant.counts.clone()));
        let late = self.late().map(|(site, late)| (site.clone(), late.counts.clone()));
        let discounts = self.late().map(|(site, _)| (site.clone(), plan.late.weight())).collect();
        let responders = responders.chain(late).collect();
        discounted_weights(plan.weighting, &responders, &discounts, plan.max_site_weight)
    }

    /// The sites of the aggregate that annotate each class, from the counts fixed when they were asked.
    pub(super) fn annotating(&self) -> BTreeMap<ClassId, BTreeSet<SiteId>> {
        let counted =
            |(_, participant): &(&SiteId, &Participant)| matches!(participant.answer, Answer::Updated(_));
        let own = self.participants.iter().filter(counted);
        let own = own.map(|(site, participant)| (site, &participant.counts));
        let late = self.late().map(|(site, late)| (site, &late.counts));
        let mut annotating: BTreeMap<ClassId, BTreeSet<SiteId>> = BTreeMap::new();
        for (site, counts) in own.chain(late) {
            for (&class, _) in counts.annotated.iter().filter(|&(_, &volumes)| volumes > 0) {
                annotating.entry(class).or_default().insert(site.clone());
            }
        }
        annotating
    }

    /// The summands of the aggregate, ascending by site.
    pub(super) fn terms(&self, plan: &RoundPlan) -> Vec<Term> {
        let shares = self.weights(plan).shares;
        let term = |(site, (round, base, counted)): (SiteId, (RoundId, ModelHash, Counted))| {
            let share = shares.get(&site).copied()?;
            Some(Term { site, round, base, attempt: counted.attempt, update: counted.update, share })
        };
        self.summands().into_iter().filter_map(term).collect()
    }

    /// Whatever is summed of each site, late updates too: the round that it was trained for, its base, and which it is.
    pub(super) fn summands(&self) -> BTreeMap<SiteId, (RoundId, ModelHash, Counted)> {
        let own = self.counted().into_iter().map(|(site, counted)| (site, (self.round, self.base, counted)));
        let late = self.late().map(|(site, late)| (site.clone(), (late.round, late.base, late.counted)));
        own.chain(late).collect()
    }
}
