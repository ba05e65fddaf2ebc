//! A coordinator that cannot read the study when it starts, of another version say: the study stands still, whoever wants something
//! of it is told to come again, and all that is kept of it stays. A later start reads it, and goes on where it stood.

use common::ids::SiteId;
use common::participant::{DropReason, Event};
use common::time::Timestamp;
use common::wire::RefusalCode;

use super::{Happening, Reply, Request, World};
use crate::simulation::arithmetic::other_study;
use crate::simulation::coverage::Transition;
use crate::simulation::sabotage::Sabotage;

impl World {
    /// The coordinator is started anew, and reads the study so much later.
    pub(super) fn misread_study(&mut self, ms: u64) {
        self.tally.misread += 1;
        let until = Timestamp(self.now.0 + ms);
        self.coordinator.unreadable_until = self.coordinator.unreadable_until.max(until);
        self.at(ms, Happening::StudyReadable);
        if self.coordinator.reads_study() {
            self.end_coordinator();
        }
    }

    /// Somebody put it right, and starts the coordinator anew.
    pub(super) fn study_readable(&mut self) {
        let is_readable = self.now >= self.coordinator.unreadable_until;
        if is_readable && self.stands_still() {
            self.end_coordinator();
        }
    }

    /// Whether the coordinator runs without the study.
    pub(super) fn stands_still(&self) -> bool {
        self.coordinator.up && !self.coordinator.reads_study()
    }

    /// Something comes for the study, and changes nothing.
    pub(super) fn note_still(&mut self, event: &'static str) {
        self.coverage.note(Transition { machine: "study", from: "unreadable", event, to: "unreadable" });
    }

    /// The coordinator's answer to what a site asks meanwhile.
    pub(super) fn turn_away(&mut self, site: usize, id: &SiteId, request: Request) {
        let denies = self.sabotage == Sabotage::DenyStudy;
        let code = RefusalCode::UnknownStudy.code().to_owned();
        let (name, answer) = match request {
            Request::Offer { offer } if offer.study == other_study() => {
                return self.count_for_other(id, &offer);
            }
            Request::Offer { offer } if denies => ("offer", Event::Refused { attempt: offer.attempt, code }),
            // What is refused so may be taken later: the site keeps it, and tries again.
            Request::Offer { offer } => ("offer", Event::UploadFailed { attempt: offer.attempt }),
            Request::Report { model, .. } if denies => ("report", Event::ReportRefused { model, code }),
            Request::Report { model, .. } => ("report", Event::ReportFailed { model }),
            // The study may seal any evaluator.
            Request::Fetch { artifact } if self.sites[site].evaluates() => {
                ("fetch", Event::FetchFailed { artifact })
            }
            Request::Fetch { artifact } => return self.serve(site, artifact),
            Request::Accept { .. } | Request::Decline { .. } => return self.note_still("answer"),
            // Nobody is asked to register, and what was not offered is not wanted.
            Request::Register { .. } | Request::Push { .. } => return,
        };
        self.note_still(name);
        self.reply(site, Reply::Notice(answer));
    }

    /// A site removes an update: not because nobody could read what it is for.
    pub(super) fn guard_kept(&mut self, site: usize, reason: &DropReason) {
        let is_denied =
            matches!(reason, DropReason::Refused(code) if code == RefusalCode::UnknownStudy.code());
        self.books.check(!is_denied, || {
            format!("site {site} removes its update of a study that the coordinator has and cannot read")
        });
    }
}
