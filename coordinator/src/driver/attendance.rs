//! Who is there, and who is ready: connections that come and go, and what the machines are told of their sites.

use std::collections::BTreeSet;

use common::evaluation::{self, EvaluatorKind};
use common::ids::{Role, SiteId, StudyDigest};
use common::round;
use common::wire::Notice;

use super::Driver;
use super::manifests::{counts, read_manifest};
use super::peers::Peer;
use super::study_run::{Happening, StudyRun};
use crate::progress::Line;
use crate::store::{SiteRecord, SiteStatus, StoreError};

impl Driver {
    /// Enters a connection, and tells its site of every study; the number names it.
    pub(super) async fn connect(&mut self, site: SiteId, peer: Peer) -> u64 {
        let role = peer.role;
        let (id, replaced) = self.peers.add(site.clone(), peer);
        if let Some(traffic) = replaced {
            self.add_traffic(&site, traffic).await;
        }
        self.progress.say(&Line::Connected { site: site.clone(), role });
        let greetings = self.studies.values().flat_map(|run| run.greeting(role));
        greetings.for_each(|notice| self.peers.tell(&site, notice));
        self.ask_for_lost(Some(&site)).await;
        id
    }

    /// Says that a study goes on, by offering it anew: sites that are asked for nothing would go on telling of its pause.
    pub(super) fn tell_resumed(&self, study: StudyDigest) {
        if let Some(run) = self.studies.get(&study) {
            let name = run.document.study().name.as_str().into();
            let goes_on = |role| !run.rounds.is_over_for(role);
            self.peers.tell_roles(goes_on, &Notice::StudyOffered { study, name });
        }
    }

    /// Forgets a connection, and tells the machines that its site is gone.
    pub(super) async fn disconnect(&mut self, site: SiteId, id: u64) {
        let Some((role, traffic)) = self.peers.remove(&site, id) else { return };
        self.add_traffic(&site, traffic).await;
        self.progress.say(&Line::Gone { site: site.clone() });
        for study in self.studies.keys().copied().collect::<Vec<_>>() {
            let site = site.clone();
            let gone = match role {
                Role::Trainer => Happening::Round(round::Event::SiteGone { site }),
                Role::Evaluator => Happening::Evaluation(evaluation::Event::EvaluatorGone { site }),
            };
            self.take(study, gone).await;
        }
    }

    /// Tells the machines that a connected site is ready, once it has approved (and, to train, registered).
    pub(super) async fn greet(&mut self, study: StudyDigest, site: SiteId) {
        // It went while the store took its word, and says it again when it comes back.
        if !self.peers.has(&site) {
            return;
        }
        match self.readiness(study, &site).await {
            Ok(Some(happening)) => self.take(study, happening).await,
            Ok(None) => {}
            Err(error) => self.note_fault(&error),
        }
    }

    /// What the machines are told of a site that is ready; `None` when it is not.
    ///
    /// # Errors
    /// The store.
    pub(super) async fn readiness(
        &self,
        study: StudyDigest,
        site: &SiteId,
    ) -> Result<Option<Happening>, StoreError> {
        let Some(SiteRecord { role, status: SiteStatus::Active, .. }) = self.store.site(site).await? else {
            return Ok(None);
        };
        if !self.store.approvals(&study).await?.contains(site) {
            return Ok(None);
        }
        let site = site.clone();
        if role == Role::Evaluator {
            // A site may be revoked as a trainer and enrol again: what it scores would be what it trained.
            let has_trained =
                self.store.rounds(&study).await?.iter().any(|round| round.sites.contains(&site));
            let kind = self.evaluator_kind(&study, &site);
            return Ok(Some(Happening::Evaluation(match has_trained {
                true => evaluation::Event::EvaluatorLeft { site },
                false => evaluation::Event::EvaluatorReady { site, kind },
            })));
        }
        let (Some(run), Some(stored)) = (self.studies.get(&study), self.store.manifest(&study, &site).await?)
        else {
            return Ok(None);
        };
        // One that does not count is told elsewhere (`manifests`).
        let manifest = read_manifest(&stored.document, &site, run.document.study()).ok();
        Ok(manifest
            .map(|manifest| Happening::Round(round::Event::SiteReady { site, counts: counts(&manifest) })))
    }

    /// A site that the study seals scores promoted models alone; every other evaluator helps to choose them.
    fn evaluator_kind(&self, study: &StudyDigest, site: &SiteId) -> EvaluatorKind {
        let sealed = |run: &StudyRun| run.document.study().evaluation.test.contains(site);
        if self.studies.get(study).is_some_and(sealed) {
            EvaluatorKind::Test
        } else {
            EvaluatorKind::Validation
        }
    }

    /// Tells the machines who takes part: the trainers that are enrolled, and of the evaluators that they count on, who is none
    /// any more.
    pub(super) async fn expect_sites(&mut self) {
        let known = match self.store.sites().await {
            Ok(known) => known,
            Err(error) => return self.note_fault(&error),
        };
        let (trainers, evaluators) = (members(&known, Role::Trainer), members(&known, Role::Evaluator));
        let all: BTreeSet<SiteId> = known.into_iter().map(|site| site.site).collect();
        let no_evaluators = &all - &evaluators;
        for study in self.studies.keys().copied().collect::<Vec<_>>() {
            let event = round::Event::TrainersExpected { sites: trainers.clone() };
            self.take(study, Happening::Round(event)).await;
            let run = self.studies.get(&study);
            let counts_on = run.map(|run| run.evaluation.counts_on()).unwrap_or_default();
            for site in counts_on.intersection(&no_evaluators).cloned() {
                self.take(study, Happening::Evaluation(evaluation::Event::EvaluatorLeft { site })).await;
            }
        }
    }

    async fn add_traffic(&mut self, site: &SiteId, traffic: link::quic::Traffic) {
        if let Err(error) = self.store.add_traffic(site, traffic.received, traffic.sent).await {
            self.note_fault(&error);
        }
    }
}

/// The sites that take part now as `role`.
pub(super) fn members(known: &[SiteRecord], role: Role) -> BTreeSet<SiteId> {
    let is_member = |site: &&SiteRecord| site.role == role && site.status == SiteStatus::Active;
    known.iter().filter(is_member).map(|site| site.site.clone()).collect()
}
