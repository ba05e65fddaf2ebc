//! Another study of a trainer, whose rounds take its time: whichever is under way is ended first, and a round that has to wait is
//! declined as busy. That study's machine is not here: it asks one trainer at a time, and counts whatever it brings.

use std::collections::BTreeSet;

use common::ids::{RoundId, SiteId};
use common::participant::{Action, Event};
use common::round::{RoundTask, UpdateOffer};

use super::World;
use crate::simulation::arithmetic::{artifact, other_study};
use crate::simulation::coordinator::STEPS;

impl World {
    /// Opens the next round of the other study, where there is a connection to say so on.
    pub(super) fn ask_for_other(&mut self, site: usize) {
        if self.sites[site].evaluates() || self.sites[site].link.is_none() {
            return;
        }
        self.sites[site].other_rounds += 1;
        let (study, round) = (other_study(), RoundId(self.sites[site].other_rounds));
        let base = artifact(&format!("other model {site} {round}"));
        self.coordinator.artifacts.insert(base);
        self.feed_site(site, Event::StudyApproved { study, needs: BTreeSet::new(), takes_late: false });
        let task = RoundTask { study, round, base, steps: STEPS, remaining_ms: 600_000 };
        self.feed_site(site, Event::RoundOpened { task });
    }

    /// Whether an action is a word to the other study, which needs no answer.
    pub(super) fn is_for_other(action: &Action) -> bool {
        let study = match action {
            Action::RegisterManifest { study } | Action::DeclineRound { study, .. } => *study,
            Action::AcceptRound { task } => task.study,
            _ => return false,
        };
        study == other_study()
    }

    /// The other study's answer to an update for it.
    pub(super) fn count_for_other(&mut self, site: &SiteId, offer: &UpdateOffer) {
        self.tally.other += 1;
        self.notice(site, Event::Receipt { attempt: offer.attempt });
    }
}
