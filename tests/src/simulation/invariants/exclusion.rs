//! Sites that have too little to train on: they count nowhere, and the operator knows. Sites that the study leaves out, which
//! count nowhere whatever they have.

use common::ids::SiteId;
use common::round::{Action, DeclineReason, Event, Fact, Status};

use super::Books;
use crate::simulation::scenario::MIN_VOLUMES;

impl Books {
    /// What a site says of its data; which one has too little since this event.
    pub(in crate::simulation) fn heard(&mut self, event: &Event) -> Option<SiteId> {
        let without = match event {
            Event::SiteReady { site, counts } if counts.volumes >= MIN_VOLUMES => {
                self.without_data.remove(site);
                return None;
            }
            Event::SiteReady { site, .. }
            | Event::RoundDeclined {
                site, reason: DeclineReason::NoData | DeclineReason::DataError, ..
            } => site,
            Event::TrainersExpected { sites } => {
                self.without_data.retain(|site| sites.contains(site));
                return None;
            }
            _ => return None,
        };
        if self.left_out.contains(without) {
            return None;
        }
        self.without_data.insert(without.clone()).then(|| without.clone())
    }

    /// Who has too little is not at hand, for a quorum of sites or of a class, and nobody else is shown as such. The one that
    /// is new is told.
    pub(in crate::simulation) fn excluded(
        &mut self,
        new: Option<&SiteId>,
        actions: &[Action],
        status: &Status,
    ) {
        let (without, left_out) = (self.without_data.clone(), self.left_out.clone());
        self.check(left_out.is_disjoint(&status.ready), || {
            format!("of {left_out:?}, who are left out, some are at hand: {:?}", status.ready)
        });
        self.check(without.is_disjoint(&status.ready), || {
            format!("of {without:?}, who have too few scans, some are at hand: {:?}", status.ready)
        });
        self.check(status.excluded.keys().eq(&without), || {
            format!("{without:?} have too few scans; the operator sees {:?}", status.excluded)
        });
        let mut told = actions.iter().filter_map(|action| match action {
            Action::Report(Fact::SiteExcluded { site, .. }) => Some(site),
            _ => None,
        });
        let is_told = new.is_none_or(|new| told.any(|site| site == new));
        self.check(is_told, || format!("{new:?} is excluded, and nobody is told"));
    }
}
