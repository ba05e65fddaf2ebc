//! Quorum by class coverage: a round without the only site that annotates a class would teach the model to forget it.
//!
//! A round needs `sites_per_class` updates for each class that its own participants annotate: a class that nobody in the
//! round annotates is none of its business, so a site that left the study long ago holds nothing up. A round opens when the
//! sites at hand could fulfil that. Once it is open, a participant that was revoked, or that the operator gave up, is
//! counted on no more: where that leaves fewer sites for a class than the study names, those that are left are enough, unless
//! the study's rule leaves sites out (`class_floor`): an average of fewer would not know the class. Such a round waits until more
//! sites that annotate the class are there, or all of them are given up and none has sent its update.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plan::Quorum;
use crate::aggregate::weights::SiteCounts;
use crate::ids::{ClassId, SiteId};

/// A class with too few sites, or updates of sites, that annotate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassShortage {
    /// There.
    pub have: u32,
    /// Needed.
    pub need: u32,
}

/// Too few sites at hand to open a round, or updates of sites to close it, in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SiteShortage {
    /// There.
    pub have: usize,
    /// Needed.
    pub need: usize,
}

/// Of each class, how many of these sites annotate it.
pub(super) fn annotators<'a>(sites: impl Iterator<Item = &'a SiteCounts>) -> BTreeMap<ClassId, u32> {
    let mut found = BTreeMap::new();
    for (&class, _) in sites.flat_map(|counts| &counts.annotated).filter(|&(_, &volumes)| volumes > 0) {
        *found.entry(class).or_default() += 1;
    }
    found
}

/// The classes for which the sites at hand are too few to open a round.
pub(super) fn short_at_hand(
    ready: &BTreeMap<SiteId, SiteCounts>,
    quorum: &Quorum,
) -> BTreeMap<ClassId, ClassShortage> {
    let shortage = |have| ClassShortage { have, need: quorum.sites_per_class };
    let classes = annotators(ready.values()).into_iter().map(|(class, have)| (class, shortage(have)));
    classes.filter(|(_, class)| class.have < class.need).collect()
}

/// The classes for which the updates of `responders` are too few, where `counted_on` are all that may still respond.
pub(super) fn short_of_updates(
    counted_on: &BTreeMap<ClassId, u32>,
    responders: &BTreeMap<ClassId, u32>,
    quorum: &Quorum,
) -> BTreeMap<ClassId, ClassShortage> {
    let of = |sites: &BTreeMap<ClassId, u32>, class: &ClassId| sites.get(class).copied().unwrap_or(0);
    let shortage = |class: &ClassId| {
        let need = quorum.sites_per_class.min(of(counted_on, class)).max(quorum.class_floor);
        (*class, ClassShortage { have: of(responders, class), need })
    };
    // A site that was given up may have sent its update since.
    let classes = counted_on.keys().chain(responders.keys()).map(shortage);
    classes.filter(|(_, class)| class.have < class.need).collect()
}
