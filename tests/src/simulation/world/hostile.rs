//! The liar among the sites: it sends, past its own machine, what nobody asked it for.

use common::ids::{AttemptId, Digest, ModelHash, RoundId, StudyDigest};
use common::round::{DeclineReason, UpdateOffer};

use super::{Request, World};
use crate::simulation::arithmetic::{artifact, report_of, short, study};
use crate::simulation::coordinator::STEPS;
use crate::simulation::operation::Lie;

impl World {
    pub(super) fn lie(&mut self, site: usize, lie: Lie) {
        let early = self.scenario.is_sealed(site) && matches!(lie, Lie::Report);
        let lies = site < self.scenario.trainers || early;
        let (Some(link), true) = (self.sites[site].link, lies) else { return };
        for request in self.lies(site, lie) {
            self.tally.lies += 1;
            self.send(site, link, request);
        }
    }

    fn lies(&mut self, site: usize, lie: Lie) -> Vec<Request> {
        let status = self.coordinator.rounds.status();
        let (round, base) = (status.round, status.model);
        let reason = DeclineReason::Policy;
        let update = match lie {
            Lie::Accept => return vec![Request::Accept { round }],
            Lie::Decline => return vec![Request::Decline { round, reason }],
            Lie::Spam => {
                let others = [0, round.0.saturating_sub(1), round.0 + 1, round.0 + 7].map(RoundId);
                let spam = |round| [Request::Accept { round }, Request::Decline { round, reason }];
                return others.into_iter().flat_map(spam).collect();
            }
            Lie::Report => {
                let report = report_of(&self.sites[site].identity.site, base);
                return vec![Request::Report { model: base, report }];
            }
            _ => self.false_update(site, lie, round, base),
        };
        update.map(|offer| Request::Push { offer }).into_iter().collect()
    }

    fn false_update(
        &mut self,
        site: usize,
        lie: Lie,
        round: RoundId,
        base: ModelHash,
    ) -> Option<UpdateOffer> {
        let id = self.sites[site].identity.site.clone();
        let unique = format!("lie {} {site}", self.sequence);
        let attempt = AttemptId::from_bytes(short(&unique));
        let update = artifact(&unique);
        let mut offer = UpdateOffer { study: study(), round, base, attempt, steps: STEPS, update };
        match lie {
            Lie::Study => offer.study = StudyDigest(Digest::of(b"another")),
            Lie::Round => {
                offer.round = round.next();
                // Late enough, it is of an open round and of its base.
                self.books.lied(id);
            }
            Lie::Late => {
                let before = round.0.checked_sub(2)?;
                (offer.round, offer.base) = (RoundId(before + 1), self.books.model_of(RoundId(before))?);
                self.books.lied(id);
            }
            Lie::Base => offer.base = artifact("another base"),
            Lie::Steps => offer.steps = STEPS - 1,
            Lie::HugeSteps => offer.steps = u32::MAX,
            // Where a disk has lost the first one meanwhile, these count.
            Lie::Content => {
                (offer.round, offer.attempt) = self.books.receipt_of(&id)?;
                self.books.lied(id);
            }
            Lie::Second => {
                offer.round = self.books.receipt_of(&id)?.0;
                self.books.lied(id);
            }
            Lie::Replay => {
                (offer.round, offer.attempt, offer.base, offer.update) = self.books.first_of(&id)?;
            }
            Lie::Stolen => {
                (offer.round, offer.attempt, offer.base, offer.update) = self.books.last_of_others(&id)?;
                // It may well count, as this site's own: nobody can tell whose numbers they are.
                self.books.lied(id);
            }
            Lie::Accept | Lie::Decline | Lie::Spam | Lie::Report => return None,
        }
        Some(offer)
    }
}
