//! Late updates: what a site sends of a round that has closed without it.
//!
//! A study may take them into the next round, for less: a slow site's work then counts, and its delta is added though it
//! started from the model before. They are no part of a quorum, which is of updates of the round itself; and where the site
//! sends one of the round itself too, that counts in the late one's place. Before the next round is open, and while one is being
//! aggregated, a site is told to keep its update and offer it again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::UpdateOffer;
use super::opened::{Answer, Counted, OpenedRound};
use super::phase::Phase;
use super::plan::{Late, RoundPlan};
use super::rejection::{Rejection, UpdateExpectation};
use crate::aggregate::weights::SiteCounts;
use crate::ids::{ModelHash, RoundId, SiteId};

/// An update that came late and counts in the round after its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LateUpdate {
    /// Its own round.
    pub(super) round: RoundId,
    /// The model that it is a delta from.
    pub(super) base: ModelHash,
    pub(super) counted: Counted,
    /// Fixed when its own round opened.
    pub(super) counts: SiteCounts,
}

/// The last committed round, as far as late updates need it. Kept only where the study takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PreviousRound {
    pub(super) round: RoundId,
    base: ModelHash,
    /// The participants whose update does not count there, with the counts fixed then.
    missing: BTreeMap<SiteId, SiteCounts>,
    /// Late ones that counted there: a receipt that was lost is given again.
    late: BTreeMap<SiteId, LateUpdate>,
}

impl PreviousRound {
    /// What is to be remembered of a round that is committed.
    pub(super) fn of(opened: &OpenedRound, plan: &RoundPlan) -> Option<Self> {
        let Late::NextRound { .. } = plan.late else { return None };
        let missing = |answer: &Answer| !matches!(answer, Answer::Updated(_) | Answer::Revoked);
        let participants = opened.participants.iter().filter(|(_, participant)| missing(&participant.answer));
        Some(Self {
            round: opened.round,
            base: opened.base,
            missing: participants.map(|(site, known)| (site.clone(), known.counts.clone())).collect(),
            late: opened.late.clone(),
        })
    }

    /// Whether the site took part, and its update did not come in time.
    pub(super) fn awaits(&self, site: &SiteId) -> bool {
        self.missing.contains_key(site)
    }

    /// The site's late update, from what it offered. The caller has asked [`PreviousRound::expect`].
    pub(super) fn take(&self, site: &SiteId, offer: &UpdateOffer) -> Option<LateUpdate> {
        let counts = self.missing.get(site).filter(|_| offer.round == self.round)?.clone();
        let counted = Counted { attempt: offer.attempt, update: offer.update };
        Some(LateUpdate { round: self.round, base: self.base, counted, counts })
    }

    /// Whether an update of this round or the one before it is wanted; `None` when it is not a late one.
    pub(super) fn expect(
        &self,
        site: &SiteId,
        offer: &UpdateOffer,
        phase: &Phase,
        plan: &RoundPlan,
    ) -> Option<Result<UpdateExpectation, Rejection>> {
        if let Some(late) = self.late.get(site).filter(|late| late.round == offer.round) {
            return Some(late.counted.compare(offer));
        }
        if offer.round != self.round || !self.missing.contains_key(site) {
            return None;
        }
        if offer.base != self.base {
            let Self { round, base: expected, .. } = *self;
            return Some(Err(Rejection::WrongBase { round, expected, got: offer.base }));
        }
        if offer.steps != plan.steps {
            return Some(Err(Rejection::WrongSteps { expected: plan.steps, got: offer.steps }));
        }
        let Some(opened) = phase.opened() else {
            return Some(Err(Rejection::RoundNotOpen { round: self.round.next() }));
        };
        if let Some(late) = opened.late.get(site) {
            return Some(late.counted.compare(offer));
        }
        let has_newer = matches!(opened.answer_of(site), Some(Answer::Updated(_) | Answer::Revoked));
        let wanted = phase.taking().is_some() && !has_newer;
        wanted.then_some(Ok(UpdateExpectation::Wanted { base: self.base }))
    }

    /// Lets go of sites that are enrolled no more.
    pub(super) fn keep_sites(&mut self, enrolled: impl Fn(&SiteId) -> bool) {
        self.missing.retain(|site, _| enrolled(site));
    }
}

/// What a site is told that offers an update of `round` while that is being aggregated without it.
pub(super) fn too_late_for(round: RoundId, plan: &RoundPlan) -> Rejection {
    match plan.late {
        Late::NextRound { .. } if round.0 < plan.rounds => Rejection::RoundNotOpen { round: round.next() },
        _ => Rejection::RoundClosed { round, current: round },
    }
}
