//! Two trainers and a coordinator as processes, for tests of what may be done to them without changing a bit of the model.

use common::ids::{ModelHash, Role};

use super::consortium::{Consortium, Site};
use super::process::Process;
use super::study::{NAME, STEPS};

/// Two trainers and a study of two rounds that waits for both in each.
pub(crate) struct Federation {
    pub(crate) consortium: Consortium,
    pub(crate) north: Site,
    pub(crate) south: Site,
}

pub(crate) const ROUNDS: u32 = 2;

impl Federation {
    /// Everything is set up, nothing runs but the coordinator; the study opens when both sites are ready.
    pub(crate) fn set_up() -> Self {
        Self::set_up_by("")
    }

    /// The same with a study of a strategy: its lines of the section `[aggregation]`.
    pub(crate) fn set_up_by(strategy: &str) -> Self {
        let consortium = Consortium::found("survivors");
        let trainer = |name, hospital| consortium.member(name, Role::Trainer, hospital);
        let (north, south) = (trainer("north", "site-a"), trainer("south", "site-b"));
        consortium.add_study_by(strategy, ROUNDS, 2);
        consortium.start_study();
        Self { consortium, north, south }
    }

    /// The same in a folder of its own, as if it had been set up anew; the coordinator here must be dead. That of the copy ends
    /// itself at `failpoint`.
    pub(crate) fn copy(&self, failpoint: Option<&str>) -> Self {
        let consortium = self.consortium.copy(failpoint);
        let (north, south) = (consortium.site(&self.north), consortium.site(&self.south));
        Self { consortium, north, south }
    }

    /// Starts a site and stops it in its tracks once it is ready, before the other one is started: so it has nothing to do yet, and
    /// a round that the other begins cannot end before it is resumed, however slow this test is.
    pub(crate) fn run_held(&self, site: &Site) -> Process {
        let agent = site.run();
        self.consortium.until_ready(site);
        agent.pause();
        agent
    }

    /// Waits for the end; the last model.
    pub(crate) fn finished(&mut self) -> ModelHash {
        // Until it listens, a command would open the store in its place.
        self.consortium.coordinator.until_listening();
        // A coordinator that was killed with the study's last word on its lips does not say it again.
        if self.consortium.report(NAME).study.state != "finished" {
            self.consortium.coordinator.until_study("finished", "model");
        }
        self.consortium.report(NAME).study.model
    }

    /// The model that the undisturbed study makes.
    pub(crate) fn undisturbed() -> ModelHash {
        let mut federation = Self::set_up();
        let _agents = [federation.north.run(), federation.south.run()];
        federation.finished()
    }

    /// Waits for the end, which must be that of a study that nobody disturbed: every round was made of both, and the model has its bits.
    pub(crate) fn assert_ends_undisturbed(&mut self) {
        let model = self.finished();
        self.assert_made_of_both();
        assert_eq!(model, Self::undisturbed());
    }

    /// Every round was made of the updates of both.
    pub(crate) fn assert_made_of_both(&self) {
        let report = self.consortium.report(NAME);
        assert_eq!((report.study.rounds_committed, report.study.state.as_str()), (ROUNDS, "finished"));
        for round in &report.rounds {
            let sites: Vec<_> = round.sites.iter().map(|site| site.as_str()).collect();
            assert_eq!(sites, ["north", "south"], "round {}", round.round);
            let told: Vec<_> = round.contributions.iter().map(|told| told.site.as_str()).collect();
            let shares: f64 = round.contributions.iter().map(|told| told.share).sum();
            assert_eq!(told, sites, "round {}", round.round);
            assert!((shares - 1.0).abs() < 1e-9, "{:?}", round.contributions);
            assert!(round.contributions.iter().all(|told| told.norm > 0.0), "{:?}", round.contributions);
        }
    }

    /// The same, and each was trained once.
    pub(crate) fn assert_each_counted_once(&self) {
        self.assert_made_of_both();
        for site in [&self.north, &self.south] {
            assert_eq!(site.trainings(), [STEPS; ROUNDS as usize], "{}", site.name);
        }
    }
}
