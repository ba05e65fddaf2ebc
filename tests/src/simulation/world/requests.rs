//! What the coordinator answers to what a site asks.

use common::evaluation::{self, EvaluatorKind, ReportExpectation};
use common::ids::{ArtifactHash, Digest, ModelHash, Role, SiteId};
use common::participant;
use common::round::{Event, UpdateExpectation, UpdateOffer};

use super::{Happening, Reply, Request, World};
use crate::simulation::arithmetic::other_study;
use crate::simulation::coordinator::Blob;
use crate::simulation::sabotage::Sabotage;

impl World {
    /// A message of a dead connection may still be read by the coordinator's end, unless a newer one took its place.
    pub(super) fn arrives(&mut self, site: usize, link: u32, request: Request) {
        if !self.coordinator.up || self.coordinator.links.get(&site) != Some(&link) {
            return;
        }
        if self.is_cut_off(site) {
            self.tally.lost += 1;
            return;
        }
        let id = self.sites[site].identity.site.clone();
        if self.stands_still() {
            return self.turn_away(site, &id, request);
        }
        match request {
            Request::Register { counts } if self.sites[site].identity.role == Role::Trainer => {
                // The manifest is a row of the store. A site that is told to come again has nothing else to do here.
                let kept = self.coordinator_writes(|world| {
                    world.registered.insert(id.clone(), counts.clone());
                });
                if kept {
                    self.feed(Event::SiteReady { site: id, counts });
                } else if self.coordinator.up {
                    self.cut_at(site, link);
                }
            }
            Request::Register { .. } => {
                let sealed = self.scenario.is_sealed(site) && self.sabotage != Sabotage::AskSealed;
                let kind = if sealed { EvaluatorKind::Test } else { EvaluatorKind::Validation };
                self.feed_evaluation(evaluation::Event::EvaluatorReady { site: id, kind });
            }
            Request::Accept { round } => self.feed(Event::RoundAccepted { site: id, round }),
            Request::Decline { round, reason } => self.feed(Event::RoundDeclined { site: id, round, reason }),
            Request::Fetch { artifact } => self.serve(site, artifact),
            Request::Offer { offer } if offer.study == other_study() => self.count_for_other(&id, &offer),
            Request::Offer { offer } => self.offered(site, &id, offer),
            Request::Push { offer } => self.pushed(id, offer),
            Request::Report { model, report } => self.reported(site, id, model, report),
        }
    }

    pub(super) fn serve(&mut self, site: usize, artifact: ArtifactHash) {
        let there = self.coordinator.artifacts.contains(&artifact);
        let stored = participant::Event::ModelStored { artifact };
        let failed = participant::Event::FetchFailed { artifact };
        self.reply(site, Reply::Notice(if there { stored } else { failed }));
    }

    fn offered(&mut self, site: usize, id: &SiteId, offer: UpdateOffer) {
        let attempt = offer.attempt;
        if self.sabotage == Sabotage::ReceiptBeforeDurable {
            self.books.receipt(id, offer.round, attempt, offer.update);
            return self.notice(id, participant::Event::Receipt { attempt });
        }
        match self.coordinator.rounds.expect_update(id, &offer) {
            Ok(UpdateExpectation::Wanted { .. }) => self.reply(site, Reply::Wanted { offer }),
            Ok(UpdateExpectation::AlreadyCounted) => {
                self.tally.answered_again += 1;
                self.notice(id, participant::Event::Receipt { attempt });
            }
            Err(rejection) => {
                self.tally.refused += 1;
                let code = rejection.code().to_owned();
                self.notice(id, participant::Event::Refused { attempt, code });
            }
        }
    }

    /// The bytes are here; a slow disk has them later.
    fn pushed(&mut self, site: SiteId, offer: UpdateOffer) {
        let (delay, incarnation) = (self.disk(), self.coordinator.incarnation);
        if delay == 0 {
            return self.store(site, offer);
        }
        self.at(delay, Happening::Stored { incarnation, site, offer });
    }

    /// The file gets its name when all of it is on the disk; then the journal is told.
    pub(super) fn store(&mut self, site: SiteId, offer: UpdateOffer) {
        let lives = self.coordinator_writes(|world| {
            let blob = Blob { round: offer.round, content: offer.update };
            world.coordinator.spool.insert((site.clone(), offer.update), blob);
            world.books.stored(site.clone(), &offer);
        });
        if lives {
            self.feed(Event::UpdateStored { site, offer });
        }
    }

    fn reported(&mut self, site: usize, id: SiteId, model: ModelHash, report: Digest) {
        match self.coordinator.evaluation.expect_report(&id, &model, &report) {
            Ok(ReportExpectation::Wanted { .. }) => {
                // The report is a row of the store; its digest is in the journal.
                if self.coordinator_writes(|_| {}) {
                    self.feed_evaluation(evaluation::Event::ReportStored { site: id, model, report });
                }
            }
            Ok(ReportExpectation::AlreadyKept) => {
                self.reply(site, Reply::Notice(participant::Event::ReportReceipt { model }));
            }
            Err(rejection) => {
                let code = rejection.code().to_owned();
                self.reply(site, Reply::Notice(participant::Event::ReportRefused { model, code }));
            }
        }
    }
}
