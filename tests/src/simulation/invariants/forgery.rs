//! What a broken driver and a liar make of the books.

use common::aggregate::weights::site_weights;
use common::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, SiteId};
use common::round::Term;

use super::{Books, MAX_SITE_WEIGHT};

impl Books {
    /// Sabotage: what its first site sent for the round before.
    pub(in crate::simulation) fn mix_rounds(&self, round: RoundId, terms: &mut [Term]) {
        let before = self.terms.get(&RoundId(round.0 - 1)).into_iter().flatten();
        for old in before {
            if let Some(term) = terms.iter_mut().find(|term| term.site == old.site) {
                (term.attempt, term.update) = (old.attempt, old.update);
            }
        }
    }

    /// Sabotage: the late updates that counted in the round before.
    pub(in crate::simulation) fn count_late_again(&self, round: RoundId, terms: &mut Vec<Term>) {
        let before = RoundId(round.0 - 1);
        let late = self.terms_of(before).iter().filter(|term| term.round != before);
        terms.extend(late.cloned());
    }

    /// Sabotage: shares as if nothing had come late.
    pub(in crate::simulation) fn weigh_in_full(&self, terms: &mut [Term]) {
        let shares = site_weights(self.weighting, &self.counts_of(terms), MAX_SITE_WEIGHT).shares;
        for term in terms {
            term.share = shares.get(&term.site).copied().unwrap_or_default();
        }
    }

    /// A counted update of a site in the last rounds, for a liar to imitate.
    pub(in crate::simulation) fn receipt_of(&self, site: &SiteId) -> Option<(RoundId, AttemptId)> {
        self.receipts.iter().rev().find(|((_, known), _)| known == site).map(|((round, _), at)| (*round, *at))
    }

    /// The first counted update of a site, for a liar to send again: round, attempt, base and update.
    pub(in crate::simulation) fn first_of(
        &self,
        site: &SiteId,
    ) -> Option<(RoundId, AttemptId, ModelHash, ArtifactHash)> {
        let first = self.receipts.iter().find(|((_, known), _)| known == site);
        first.and_then(|((round, _), attempt)| self.origin(*round, *attempt))
    }

    /// The last counted update of anybody else, for a liar to steal: round, attempt, base and update.
    pub(in crate::simulation) fn last_of_others(
        &self,
        site: &SiteId,
    ) -> Option<(RoundId, AttemptId, ModelHash, ArtifactHash)> {
        let last = self.receipts.iter().rev().find(|((_, known), _)| known != site);
        last.and_then(|((round, _), attempt)| self.origin(*round, *attempt))
    }

    fn origin(
        &self,
        round: RoundId,
        attempt: AttemptId,
    ) -> Option<(RoundId, AttemptId, ModelHash, ArtifactHash)> {
        let ours =
            |(of, _, at, _): &&(AttemptId, ArtifactHash, RoundId, ModelHash)| *of == attempt && *at == round;
        self.origins.iter().find(ours).map(|&(_, update, _, base)| (round, attempt, base, update))
    }
}
