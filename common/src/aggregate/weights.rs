//! How much each site's update counts: the four weightings of design §4, from manifests fixed at round start.
//!
//! Weights come back as shares that sum to 1, so that a cap on a share means what it says. The sites' order is the order
//! of their names: the same responders give the same bits.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{ClassId, SiteId};

pub use crate::study::sections::Weighting;

/// What a site's manifest says it trains on. Serialisable because a round's snapshot fixes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteCounts {
    /// Training volumes, `n_s`.
    pub volumes: u32,
    /// Training volumes annotated for each class, `n_sc`; classes that the site does not annotate are absent or 0.
    pub annotated: BTreeMap<ClassId, u32>,
}

/// The shares of the responders of one round.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedSites {
    /// Share of each site, 0 to 1; together 1 (none when nobody responded).
    pub shares: BTreeMap<SiteId, f64>,
    /// Sites whose share was lowered to the cap; never silent: the round reports them.
    pub capped: BTreeSet<SiteId>,
    /// No responder has any weight under this weighting, so all count the same.
    pub fell_back_to_uniform: bool,
}

/// The share of each responder.
///
/// `max_site_weight` caps the shares of [`Weighting::ClassBalanced`] alone; what a capped site loses goes to the others in
/// proportion. A cap below `1 / k` with `k` weighted sites cannot hold and counts as `1 / k`.
pub fn site_weights(
    weighting: Weighting,
    responders: &BTreeMap<SiteId, SiteCounts>,
    max_site_weight: f64,
) -> WeightedSites {
    let mut shares: BTreeMap<SiteId, f64> = match weighting {
        Weighting::Uniform => responders.keys().map(|site| (site.clone(), 1.0)).collect(),
        Weighting::Samples => each(responders, |counts| f64::from(counts.volumes)),
        Weighting::Annotations => {
            each(responders, |counts| counts.annotated.values().map(|&n| f64::from(n)).sum())
        }
        Weighting::ClassBalanced => class_balanced(responders),
    };
    let fell_back_to_uniform = !responders.is_empty() && shares.values().sum::<f64>() <= 0.0;
    if fell_back_to_uniform {
        shares.values_mut().for_each(|share| *share = 1.0);
    }
    normalise(&mut shares);
    let capped = match weighting {
        Weighting::ClassBalanced => cap(&mut shares, max_site_weight),
        _ => BTreeSet::new(),
    };
    WeightedSites { shares, capped, fell_back_to_uniform }
}

fn each(
    responders: &BTreeMap<SiteId, SiteCounts>,
    weight: impl Fn(&SiteCounts) -> f64,
) -> BTreeMap<SiteId, f64> {
    responders.iter().map(|(site, counts)| (site.clone(), weight(counts))).collect()
}

/// `Σ_{c∈A_s} n_sc / Σ_t n_tc`; dividing by the number of classes is left to the normalisation.
fn class_balanced(responders: &BTreeMap<SiteId, SiteCounts>) -> BTreeMap<SiteId, f64> {
    let mut totals: BTreeMap<ClassId, f64> = BTreeMap::new();
    for (&class, &n) in responders.values().flat_map(|counts| &counts.annotated) {
        *totals.entry(class).or_default() += f64::from(n);
    }
    let part = |(class, &n): (&ClassId, &u32)| match totals.get(class) {
        Some(&total) if total > 0.0 => f64::from(n) / total,
        _ => 0.0,
    };
    each(responders, |counts| counts.annotated.iter().map(part).sum())
}

fn normalise(shares: &mut BTreeMap<SiteId, f64>) {
    let total: f64 = shares.values().sum();
    shares.values_mut().for_each(|share| *share /= total);
}

/// Lowers shares above `limit` to it and gives the excess to the others in proportion, until none is above.
fn cap(shares: &mut BTreeMap<SiteId, f64>, limit: f64) -> BTreeSet<SiteId> {
    let weighted = shares.values().filter(|&&share| share > 0.0).count();
    let limit = limit.max(1.0 / weighted.max(1) as f64);
    let mut capped = BTreeSet::new();
    // Each pass caps at least one more site, so this ends.
    while let Some(over) =
        shares.iter().find(|(site, share)| !capped.contains(*site) && **share > limit + 1e-12)
    {
        capped.insert(over.0.clone());
        let left = 1.0 - limit * capped.len() as f64;
        let free: f64 =
            shares.iter().filter(|(site, _)| !capped.contains(*site)).map(|(_, share)| share).sum();
        for (site, share) in shares.iter_mut() {
            *share = if capped.contains(site) { limit } else { *share * left / free };
        }
    }
    capped
}
