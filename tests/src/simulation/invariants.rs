//! What must hold after every step, checked against the harness's own books, not the machines'.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::aggregate::weights::{SiteCounts, Weighting, site_weights};
use common::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, SiteId};
use common::round::{Term, UpdateOffer};

use super::arithmetic::{aggregate, update_of};

/// Cap of a site's share in every simulated study.
pub(super) const MAX_SITE_WEIGHT: f64 = 0.5;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub(super) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The harness's books.
#[derive(Debug)]
pub(super) struct Books {
    quorum: usize,
    weighting: Weighting,
    /// Durable models by round; round 0 is the initial one.
    durable: BTreeMap<RoundId, ModelHash>,
    /// Durable updates.
    stored: BTreeSet<(SiteId, AttemptId, ArtifactHash)>,
    /// The round and base that each durable update says it is of.
    origins: BTreeSet<(AttemptId, ArtifactHash, RoundId, ModelHash)>,
    /// Manifests as they were when each round asked its sites.
    fixed: BTreeMap<RoundId, BTreeMap<SiteId, SiteCounts>>,
    /// What each round was aggregated from, as asked for last.
    terms: BTreeMap<RoundId, Vec<Term>>,
    /// Receipts given, by round and site.
    receipts: BTreeMap<(RoundId, SiteId), AttemptId>,
    /// Attempts that went into a durable model.
    counted: BTreeSet<AttemptId>,
    /// Sites that sent an update which is not of their own training, where a round could take it.
    liars: BTreeSet<SiteId>,
    pub(super) violation: Option<String>,
}

impl Books {
    pub(super) fn new(quorum: u32, weighting: Weighting, initial: ModelHash) -> Self {
        Self {
            quorum: usize::try_from(quorum).expect("small"),
            weighting,
            durable: [(RoundId(0), initial)].into(),
            stored: BTreeSet::new(),
            origins: BTreeSet::new(),
            fixed: BTreeMap::new(),
            terms: BTreeMap::new(),
            receipts: BTreeMap::new(),
            counted: BTreeSet::new(),
            liars: BTreeSet::new(),
            violation: None,
        }
    }

    pub(super) fn check(&mut self, holds: bool, broken: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            self.violation = Some(broken());
        }
    }

    /// A round asked these sites; who was asked before keeps the manifest of then.
    pub(super) fn asked(&mut self, round: RoundId, manifests: &BTreeMap<SiteId, SiteCounts>) {
        let fixed = self.fixed.entry(round).or_default();
        for (site, counts) in manifests {
            fixed.entry(site.clone()).or_insert_with(|| counts.clone());
        }
    }

    pub(super) fn stored(&mut self, site: SiteId, offer: &UpdateOffer) {
        let UpdateOffer { round, base, attempt, update, .. } = *offer;
        self.stored.insert((site, attempt, update));
        self.origins.insert((attempt, update, round, base));
    }

    /// Anything said to a site about a model.
    pub(super) fn announced(&mut self, model: ModelHash, what: &str) {
        let durable = self.durable.values().any(|known| *known == model);
        self.check(durable, || format!("{what} {model:?} was announced before it was durable"));
    }

    pub(super) fn receipt(
        &mut self,
        site: &SiteId,
        round: RoundId,
        attempt: AttemptId,
        update: ArtifactHash,
    ) {
        let durable = self.stored.contains(&(site.clone(), attempt, update));
        self.check(durable, || format!("{site} got a receipt for an update that is not durable"));
        let late = self.durable.contains_key(&round);
        let counts = self.terms.get(&round).into_iter().flatten().any(|term| term.attempt == attempt);
        self.check(!late || counts, || {
            format!("{site} got a receipt of round {round}, committed without it")
        });
        let first = *self.receipts.entry((round, site.clone())).or_insert(attempt);
        self.check(first == attempt, || format!("{site} got receipts for two updates of round {round}"));
    }

    /// Asked to aggregate: the summands are a quorum, of distinct sites, durable, with everything that has a receipt, and
    /// weighted by the manifests fixed when the round opened.
    pub(super) fn aggregating(&mut self, round: RoundId, base: ModelHash, terms: &[Term]) {
        let before = self.durable.get(&RoundId(round.0 - 1)).copied();
        self.check(before == Some(base), || {
            format!("round {round} starts from {base:?}, not from {before:?}")
        });
        let sites: BTreeSet<&SiteId> = terms.iter().map(|term| &term.site).collect();
        self.check(sites.len() == terms.len(), || format!("round {round} counts a site twice"));
        let quorum = self.quorum;
        self.check(terms.len() >= quorum, || format!("round {round} aggregates {} of {quorum}", terms.len()));
        for term in terms {
            let durable = self.stored.contains(&(term.site.clone(), term.attempt, term.update));
            self.check(durable, || format!("round {round} aggregates an update that is not durable"));
            let ours = self.origins.contains(&(term.attempt, term.update, round, base));
            self.check(ours, || format!("round {round} aggregates an update of another round or base"));
            let fresh = !self.counted.contains(&term.attempt);
            self.check(fresh, || format!("attempt {} counts in two rounds", term.attempt));
        }
        let receipts: Vec<_> =
            self.receipts.range((round, first_site())..).map(|(k, v)| (k.clone(), *v)).collect();
        for ((at, site), attempt) in receipts.into_iter().filter(|((at, _), _)| *at == round) {
            let there = terms.iter().any(|term| term.site == site && term.attempt == attempt);
            self.check(there, || format!("{site} has a receipt of round {at} that does not count"));
        }
        self.check_shares(round, terms);
        let again = self.terms.insert(round, terms.to_vec());
        self.check(again.is_none_or(|before| before == terms), || {
            format!("round {round} was aggregated twice, from different updates")
        });
    }

    fn check_shares(&mut self, round: RoundId, terms: &[Term]) {
        let expected = self.shares(round, terms);
        let got: BTreeMap<SiteId, f64> = terms.iter().map(|term| (term.site.clone(), term.share)).collect();
        self.check(got == expected, || {
            format!("round {round} has shares {got:?}, its manifests say {expected:?}")
        });
    }

    /// The shares that the manifests fixed for `round` give to the sites of `terms`.
    fn shares(&self, round: RoundId, terms: &[Term]) -> BTreeMap<SiteId, f64> {
        let fixed = self.fixed.get(&round).into_iter().flatten();
        let took_part = fixed.filter(|(site, _)| terms.iter().any(|term| term.site == **site));
        let responders = took_part.map(|(site, counts)| (site.clone(), counts.clone())).collect();
        site_weights(self.weighting, &responders, MAX_SITE_WEIGHT).shares
    }

    /// Sabotage: what its first site sent for the round before.
    pub(super) fn mix_rounds(&self, round: RoundId, terms: &mut [Term]) {
        let before = self.terms.get(&RoundId(round.0 - 1)).into_iter().flatten();
        for old in before {
            if let Some(term) = terms.iter_mut().find(|term| term.site == old.site) {
                (term.attempt, term.update) = (old.attempt, old.update);
            }
        }
    }

    /// A model became durable: it must be the one that a round without faults makes of the same sites.
    pub(super) fn committed(&mut self, round: RoundId, model: ModelHash) {
        let known = *self.durable.entry(round).or_insert(model);
        self.check(known == model, || format!("round {round} has two models"));
        let terms = self.terms.get(&round).cloned().unwrap_or_default();
        self.check(!terms.is_empty(), || format!("round {round} was committed without being aggregated"));
        let expected = self.fault_free(round, &terms);
        self.check(expected == Some(model), || {
            format!("round {round} made {model:?}; the same sites without faults make {expected:?}")
        });
        self.counted.extend(terms.iter().map(|term| term.attempt));
    }

    /// The model of a round without faults in which the same sites took part; a liar's update is taken for what it is.
    fn fault_free(&self, round: RoundId, terms: &[Term]) -> Option<ModelHash> {
        let base = self.durable.get(&RoundId(round.0 - 1)).copied()?;
        let shares = self.shares(round, terms);
        let summand = |term: &Term| {
            let honest = !self.liars.contains(&term.site);
            let update = if honest { update_of(&term.site, round, base) } else { term.update };
            Some((term.site.clone(), update, *shares.get(&term.site)?))
        };
        let summands: Option<Vec<_>> = terms.iter().map(summand).collect();
        Some(aggregate(base, summands?))
    }

    /// A site sent what is not of its own training.
    pub(super) fn lied(&mut self, site: SiteId) {
        self.liars.insert(site);
    }

    /// Whether all of so many rounds are durable, each made by these sites with these manifests, and none of them lied.
    pub(super) fn whole(&self, rounds: u32, sites: &BTreeMap<SiteId, SiteCounts>) -> bool {
        let full = |round: RoundId| {
            let all = self.terms.get(&round).is_some_and(|terms| terms.len() == sites.len());
            all && self.fixed.get(&round) == Some(sites) && self.durable.contains_key(&round)
        };
        self.liars.is_empty() && (1..=rounds).all(|round| full(RoundId(round)))
    }

    pub(super) fn rounds(&self) -> u32 {
        self.durable.keys().next_back().map_or(0, |round| round.0)
    }

    pub(super) fn model_of(&self, round: RoundId) -> Option<ModelHash> {
        self.durable.get(&round).copied()
    }

    /// The store lost an update that counted: its receipt is taken back, and the round is made of others.
    pub(super) fn lost(&mut self, round: RoundId, site: &SiteId) {
        self.receipts.remove(&(round, site.clone()));
        self.terms.remove(&round);
    }

    /// A counted update of a site in the last rounds, for a liar to imitate.
    pub(super) fn receipt_of(&self, site: &SiteId) -> Option<(RoundId, AttemptId)> {
        self.receipts.iter().rev().find(|((_, known), _)| known == site).map(|((round, _), at)| (*round, *at))
    }

    /// The first counted update of a site, for a liar to send again: round, attempt, base and update.
    pub(super) fn first_of(&self, site: &SiteId) -> Option<(RoundId, AttemptId, ModelHash, ArtifactHash)> {
        let first = self.receipts.iter().find(|((_, known), _)| known == site);
        first.and_then(|((round, _), attempt)| self.origin(*round, *attempt))
    }

    /// The last counted update of anybody else, for a liar to steal: round, attempt, base and update.
    pub(super) fn last_of_others(
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

fn first_site() -> SiteId {
    "0".parse().expect("a site name")
}
