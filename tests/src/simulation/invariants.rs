//! What must hold after every step, checked against the harness's own books, not the machines'.

mod deaths;
mod exclusion;
mod forgery;
mod restarts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::aggregate::weights::{SiteCounts, Weighting, discounted_weights};
use common::ids::{ArtifactHash, AttemptId, ClassId, ModelHash, RoundId, SiteId};
use common::round::{Term, UpdateOffer};
use common::time::Timestamp;

use super::arithmetic::{aggregate, update_of};
use super::scenario::Scenario;
use super::site::Checkpoint;
use deaths::Deaths;

pub(super) use deaths::{Suspect, Taken};

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
    sites_per_class: usize,
    rounds: u32,
    /// What a late update weighs, where the study takes it.
    late: Option<f64>,
    weighting: Weighting,
    /// Durable models by round; round 0 is the initial one.
    durable: BTreeMap<RoundId, ModelHash>,
    /// Durable updates.
    stored: BTreeSet<(SiteId, AttemptId, ArtifactHash)>,
    /// The round and base that each durable update says it is of.
    origins: BTreeSet<(AttemptId, ArtifactHash, RoundId, ModelHash)>,
    /// Manifests as they were when each round asked its sites.
    fixed: BTreeMap<RoundId, BTreeMap<SiteId, SiteCounts>>,
    /// Sites that the operator let each round do without, though they annotate classes.
    given_up: BTreeMap<RoundId, BTreeSet<SiteId>>,
    /// What each round was aggregated from, as asked for last.
    terms: BTreeMap<RoundId, Vec<Term>>,
    /// Receipts given, by the round that was trained for, and site.
    receipts: BTreeMap<(RoundId, SiteId), AttemptId>,
    /// Attempts that went into a durable model.
    counted: BTreeSet<(SiteId, AttemptId)>,
    /// Sites that are not enrolled any more.
    left: BTreeSet<SiteId>,
    /// Updates that became durable after their site had left.
    stale: BTreeSet<(SiteId, AttemptId)>,
    /// Models that the operator promoted.
    promoted: BTreeSet<ModelHash>,
    /// Sites that sent an update which is not of their own training, where a round could take it.
    liars: BTreeSet<SiteId>,
    /// What each site kept last within a round.
    kept: BTreeMap<SiteId, Checkpoint>,
    /// The coordinator's process at its last event, when that was, and the time that it took it for.
    last_event: Option<(u32, Timestamp, Timestamp)>,
    /// Trainers that the study leaves out.
    left_out: BTreeSet<SiteId>,
    /// Sites that have too little to train on, by their own last word.
    without_data: BTreeSet<SiteId>,
    /// What the sites died in the midst of.
    deaths: Deaths,
    pub(super) violation: Option<String>,
}

impl Books {
    pub(super) fn new(scenario: &Scenario, initial: ModelHash) -> Self {
        let small = |number: u32| usize::try_from(number).expect("small");
        Self {
            quorum: small(scenario.quorum),
            sites_per_class: small(scenario.sites_per_class),
            rounds: scenario.rounds,
            late: scenario.late,
            weighting: scenario.weighting,
            durable: [(RoundId(0), initial)].into(),
            stored: BTreeSet::new(),
            origins: BTreeSet::new(),
            fixed: BTreeMap::new(),
            given_up: BTreeMap::new(),
            terms: BTreeMap::new(),
            receipts: BTreeMap::new(),
            counted: BTreeSet::new(),
            left: BTreeSet::new(),
            stale: BTreeSet::new(),
            promoted: BTreeSet::new(),
            liars: BTreeSet::new(),
            kept: BTreeMap::new(),
            last_event: None,
            left_out: scenario.left_out_ids().collect(),
            without_data: BTreeSet::new(),
            deaths: Deaths::default(),
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

    /// A site's place in the federation: what comes of one that left counts no more.
    pub(super) fn enrolled(&mut self, site: SiteId, enrolled: bool) {
        if enrolled {
            self.left.remove(&site);
        } else {
            self.left.insert(site);
        }
    }

    /// The round let go of a site that left: should it be asked again, then with the manifest of then.
    pub(super) fn let_go(&mut self, round: RoundId, site: &SiteId) {
        if let Some(fixed) = self.fixed.get_mut(&round) {
            fixed.remove(site);
        }
    }

    /// The operator had a round go on without these.
    pub(super) fn gave_up(&mut self, round: RoundId, sites: BTreeSet<SiteId>) {
        self.given_up.insert(round, sites);
    }

    pub(super) fn stored(&mut self, site: SiteId, offer: &UpdateOffer) {
        let UpdateOffer { round, base, attempt, update, .. } = *offer;
        // What comes twice came when it came first.
        if self.left.contains(&site) && !self.stored.contains(&(site.clone(), attempt, update)) {
            self.stale.insert((site.clone(), attempt));
        }
        self.stored.insert((site, attempt, update));
        self.origins.insert((attempt, update, round, base));
    }

    /// Anything said to a site about a model.
    pub(super) fn announced(&mut self, model: ModelHash, what: &str) {
        let durable = self.durable.values().any(|known| *known == model);
        self.check(durable, || format!("{what} {model:?} was announced before it was durable"));
    }

    pub(super) fn promoted(&mut self, model: ModelHash) {
        self.promoted.insert(model);
    }

    /// A sealed evaluator is asked about a model, or its report on it is kept.
    pub(super) fn unsealed(&mut self, model: ModelHash) {
        let promoted = self.promoted.contains(&model);
        self.check(promoted, || format!("{model:?} reached a sealed evaluator and is not promoted"));
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
        let over = self.durable.contains_key(&round);
        let counts = has(self.terms_of(round), site, attempt) || self.counts_late(site, round, attempt);
        self.check(!over || counts, || {
            format!("{site} got a receipt of round {round}, committed without it")
        });
        let first = *self.receipts.entry((round, site.clone())).or_insert(attempt);
        self.check(first == attempt, || format!("{site} got receipts for two updates of round {round}"));
    }

    fn terms_of(&self, round: RoundId) -> &[Term] {
        self.terms.get(&round).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether an update of a round that closed without it counts in the next, may yet, or made way for a newer one there.
    fn counts_late(&self, site: &SiteId, round: RoundId, attempt: AttemptId) -> bool {
        let next = round.next();
        let terms = self.terms_of(next);
        let counts = terms.is_empty() || has(terms, site, attempt) || has_newer(terms, site, next);
        self.late.is_some() && next.0 <= self.rounds && counts
    }

    /// Asked to aggregate: the summands are a quorum of the round's own and of its classes, of distinct sites, durable, with
    /// everything that has a receipt, and weighted by the manifests fixed when their round opened.
    pub(super) fn aggregating(&mut self, round: RoundId, base: ModelHash, terms: &[Term]) {
        let before = self.durable.get(&RoundId(round.0 - 1)).copied();
        self.check(before == Some(base), || {
            format!("round {round} starts from {base:?}, not from {before:?}")
        });
        let sites: BTreeSet<&SiteId> = terms.iter().map(|term| &term.site).collect();
        self.check(sites.len() == terms.len(), || format!("round {round} counts a site twice"));
        let (own, quorum) = (terms.iter().filter(|term| term.round == round).count(), self.quorum);
        self.check(own >= quorum, || format!("round {round} aggregates {own} of {quorum}"));
        self.check_classes(round, terms);
        for term in terms {
            let durable = self.stored.contains(&(term.site.clone(), term.attempt, term.update));
            self.check(durable, || format!("round {round} aggregates an update that is not durable"));
            let known = self.origins.contains(&(term.attempt, term.update, term.round, term.base));
            let ours = known && self.fits(round, base, term);
            self.check(ours, || format!("round {round} aggregates an update of another round or base"));
            let wanted = !self.left_out.contains(&term.site);
            self.check(wanted, || {
                format!("round {round} aggregates an update of {}, who is left out", term.site)
            });
            let in_time = !self.stale.contains(&(term.site.clone(), term.attempt));
            self.check(in_time, || format!("{} had left when its update came", term.site));
            let fresh = !self.counted.contains(&(term.site.clone(), term.attempt));
            self.check(fresh, || format!("attempt {} counts in two rounds", term.attempt));
        }
        let before = RoundId(round.0 - 1);
        let receipts: Vec<_> =
            self.receipts.range((before, first_site())..).map(|(k, v)| (k.clone(), *v)).collect();
        for ((at, site), attempt) in receipts {
            let newer =
                at == before && (has(self.terms_of(at), &site, attempt) || has_newer(terms, &site, round));
            let there = newer || has(terms, &site, attempt);
            self.check(there, || format!("{site} has a receipt of round {at} that does not count"));
        }
        self.check_shares(round, terms);
        let again = self.terms.insert(round, terms.to_vec());
        self.check(again.is_none_or(|before| before == terms), || {
            format!("round {round} was aggregated twice, from different updates")
        });
    }

    /// Whether an update may count in `round`: one of it, or of the round before where the study takes late ones.
    fn fits(&self, round: RoundId, base: ModelHash, term: &Term) -> bool {
        if term.round == round {
            return term.base == base;
        }
        let its_base = term.round.0.checked_sub(1).and_then(|before| self.model_of(RoundId(before)));
        self.late.is_some() && term.round.next() == round && its_base == Some(term.base)
    }

    /// Of each class that the round's sites annotate there are as many updates as the study wants, or as could come.
    fn check_classes(&mut self, round: RoundId, terms: &[Term]) {
        if self.sites_per_class == 0 {
            return;
        }
        let given_up = |site: &SiteId| self.given_up.get(&round).is_some_and(|sites| sites.contains(site));
        // Sites that could send one, and that did.
        let mut classes: BTreeMap<ClassId, (usize, usize)> = BTreeMap::new();
        for (site, counts) in self.fixed.get(&round).into_iter().flatten() {
            for &class in counts.annotated.keys() {
                let (could, did) = classes.entry(class).or_default();
                *could += usize::from(!given_up(site));
                *did += usize::from(has_newer(terms, site, round));
            }
        }
        let wanted = self.sites_per_class;
        let short = classes.into_iter().find(|(_, (could, did))| *did < wanted.min(*could));
        self.check(short.is_none(), || format!("round {round} is short of a class: {short:?}"));
    }

    fn check_shares(&mut self, round: RoundId, terms: &[Term]) {
        let expected = self.shares(round, terms);
        let got: BTreeMap<SiteId, f64> = terms.iter().map(|term| (term.site.clone(), term.share)).collect();
        self.check(got == expected, || {
            format!("round {round} has shares {got:?}, its manifests say {expected:?}")
        });
    }

    /// The shares that the manifests fixed for the rounds of `terms` give to their sites in `round`.
    fn shares(&self, round: RoundId, terms: &[Term]) -> BTreeMap<SiteId, f64> {
        let weight = self.late.unwrap_or(1.0);
        let late = terms.iter().filter(|term| term.round != round);
        let discounts = late.map(|term| (term.site.clone(), weight)).collect();
        discounted_weights(self.weighting, &self.counts_of(terms), &discounts, MAX_SITE_WEIGHT).shares
    }

    /// The manifests of those who sent `terms`, as they were when their round asked them.
    fn counts_of(&self, terms: &[Term]) -> BTreeMap<SiteId, SiteCounts> {
        let fixed = |term: &Term| {
            let counts = self.fixed.get(&term.round)?.get(&term.site)?;
            Some((term.site.clone(), counts.clone()))
        };
        terms.iter().filter_map(fixed).collect()
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
        self.counted.extend(terms.iter().map(|term| (term.site.clone(), term.attempt)));
    }

    /// The model of a round without faults in which the same sites took part; a liar's update is taken for what it is.
    fn fault_free(&self, round: RoundId, terms: &[Term]) -> Option<ModelHash> {
        let base = self.durable.get(&RoundId(round.0 - 1)).copied()?;
        let shares = self.shares(round, terms);
        let summand = |term: &Term| {
            let honest = !self.liars.contains(&term.site);
            let update = if honest { update_of(&term.site, term.round, term.base) } else { term.update };
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
            let terms = self.terms_of(round);
            let all = terms.len() == sites.len() && terms.iter().all(|term| term.round == round);
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

    /// The store lost an update of `trained_for` that counted in `round`: its receipt is taken back, and the round is made
    /// of others.
    pub(super) fn lost(&mut self, round: RoundId, trained_for: RoundId, site: &SiteId) {
        self.receipts.remove(&(trained_for, site.clone()));
        self.terms.remove(&round);
    }
}

/// Whether this very update is among the summands.
fn has(terms: &[Term], site: &SiteId, attempt: AttemptId) -> bool {
    terms.iter().any(|term| term.site == *site && term.attempt == attempt)
}

/// Whether one that the site trained in `round` is.
fn has_newer(terms: &[Term], site: &SiteId, round: RoundId) -> bool {
    terms.iter().any(|term| term.site == *site && term.round == round)
}

fn first_site() -> SiteId {
    "0".parse().expect("a site name")
}
