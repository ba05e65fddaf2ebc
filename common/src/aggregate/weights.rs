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
    discounted_weights(weighting, responders, &BTreeMap::new(), max_site_weight)
}

/// As [`site_weights`], where the weights of some sites, `discounts`, are first multiplied by a factor above 0: their updates
/// came late.
pub fn discounted_weights(
    weighting: Weighting,
    responders: &BTreeMap<SiteId, SiteCounts>,
    discounts: &BTreeMap<SiteId, f64>,
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
    for (site, factor) in discounts {
        if let Some(share) = shares.get_mut(site) {
            *share *= factor;
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Weighting; 4] =
        [Weighting::Uniform, Weighting::Samples, Weighting::Annotations, Weighting::ClassBalanced];

    fn counts(volumes: u32, annotated: &[(u8, u32)]) -> SiteCounts {
        let class = |&(id, n): &(u8, u32)| (ClassId::new(id).unwrap(), n);
        SiteCounts { volumes, annotated: annotated.iter().map(class).collect() }
    }

    fn sites(counts: impl IntoIterator<Item = SiteCounts>) -> BTreeMap<SiteId, SiteCounts> {
        let named = |(index, counts)| (format!("site-{index}").parse().unwrap(), counts);
        counts.into_iter().enumerate().map(named).collect()
    }

    fn shares(weighting: Weighting, cap: f64, counts: impl IntoIterator<Item = SiteCounts>) -> Vec<f64> {
        site_weights(weighting, &sites(counts), cap).shares.into_values().collect()
    }

    /// The table of design §4 on one example, reckoned by hand.
    #[test]
    fn the_four_weightings_are_those_of_the_design() {
        let both = || [counts(30, &[(1, 30), (2, 10)]), counts(10, &[(2, 10), (3, 5), (4, 5)])];
        assert_eq!(shares(Weighting::Uniform, 1.0, both()), [0.5, 0.5]);
        assert_eq!(shares(Weighting::Samples, 1.0, both()), [0.75, 0.25]);
        assert_eq!(shares(Weighting::Annotations, 1.0, both()), [40.0 / 60.0, 20.0 / 60.0]);
        // Of four classes, a has one alone and half of another.
        assert_eq!(shares(Weighting::ClassBalanced, 1.0, both()), [1.5 / 4.0, 2.5 / 4.0]);
    }

    #[test]
    fn a_share_above_the_cap_is_lowered_and_said() {
        let three = [
            counts(1, &[(1, 1), (2, 1), (3, 1), (4, 1)]),
            counts(1, &[(5, 9), (6, 3)]),
            counts(1, &[(6, 1)]),
        ];
        let weighted = site_weights(Weighting::ClassBalanced, &sites(three), 0.5);
        let shares: Vec<f64> = weighted.shares.values().copied().collect();
        assert_eq!(shares[0], 0.5);
        // The others keep their proportion, 1.75 to 0.25.
        assert!((shares[1] / shares[2] - 7.0).abs() < 1e-12, "{shares:?}");
        assert_eq!(weighted.capped, ["site-0".parse().unwrap()].into());
    }

    #[test]
    fn a_discount_lowers_a_share_before_it_is_capped() {
        let both = sites([counts(30, &[]), counts(10, &[])]);
        let late = BTreeMap::from([("site-0".parse().unwrap(), 0.5)]);
        let weighted = discounted_weights(Weighting::Samples, &both, &late, 1.0);
        assert_eq!(weighted.shares.into_values().collect::<Vec<_>>(), [15.0 / 25.0, 10.0 / 25.0]);
        let three = sites([counts(1, &[(1, 1), (2, 1)]), counts(1, &[(3, 1)]), counts(1, &[(4, 1)])]);
        let weighted = discounted_weights(Weighting::ClassBalanced, &three, &late, 0.4);
        assert!(weighted.capped.is_empty(), "a third each");
    }

    #[test]
    fn a_cap_that_cannot_hold_gives_equal_shares() {
        let two = [counts(1, &[(1, 9)]), counts(1, &[(1, 1)])];
        assert_eq!(shares(Weighting::ClassBalanced, 0.1, two), [0.5, 0.5]);
        assert_eq!(shares(Weighting::ClassBalanced, 0.5, [counts(1, &[(1, 9)])]), [1.0]);
    }

    #[test]
    fn sites_without_any_weight_count_the_same_and_that_is_said() {
        let weighted = site_weights(Weighting::Annotations, &sites([counts(5, &[]), counts(5, &[])]), 0.5);
        assert!(weighted.fell_back_to_uniform);
        assert_eq!(weighted.shares.into_values().collect::<Vec<_>>(), [0.5, 0.5]);
        let nobody = site_weights(Weighting::Samples, &BTreeMap::new(), 0.5);
        assert!(nobody.shares.is_empty() && !nobody.fell_back_to_uniform);
    }

    fn any_counts() -> impl Strategy<Value = SiteCounts> {
        let annotated = prop::collection::btree_map(1u8..=32, 0u32..10_000, 0..6);
        (0u32..100_000, annotated)
            .prop_map(|(volumes, annotated)| counts(volumes, &annotated.into_iter().collect::<Vec<_>>()))
    }

    proptest! {
        #[test]
        fn the_total_weight_is_conserved_and_no_share_is_above_the_cap(
            all in prop::collection::vec(any_counts(), 1..12),
            cap in 0.01f64..1.0,
        ) {
            for weighting in ALL {
                let weighted = site_weights(weighting, &sites(all.clone()), cap);
                let total: f64 = weighted.shares.values().sum();
                prop_assert!((total - 1.0).abs() < 1e-9, "{weighting:?}: {total}");
                prop_assert!(weighted.shares.values().all(|share| (0.0..=1.0 + 1e-12).contains(share)));
                if weighting == Weighting::ClassBalanced {
                    let weighty = weighted.shares.values().filter(|&&share| share > 0.0).count();
                    let limit = cap.max(1.0 / weighty as f64);
                    prop_assert!(weighted.shares.values().all(|&share| share <= limit + 1e-9));
                } else {
                    prop_assert!(weighted.capped.is_empty());
                }
            }
        }

        #[test]
        fn class_balanced_gives_every_class_the_same_total(all in prop::collection::vec(any_counts(), 1..8)) {
            let responders = sites(all);
            let raw = class_balanced(&responders);
            let mut classes = BTreeMap::<ClassId, u64>::new();
            for (&class, &n) in responders.values().flat_map(|counts| &counts.annotated) {
                *classes.entry(class).or_default() += u64::from(n);
            }
            let annotated = classes.values().filter(|&&n| n > 0).count() as f64;
            prop_assert!((raw.values().sum::<f64>() - annotated).abs() < 1e-9);
        }
    }
}
