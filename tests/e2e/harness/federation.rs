//! Two trainers and a coordinator as processes, for tests of what may be done to them without changing a bit of the model.

use common::ids::Role;

use super::consortium::{Consortium, Site};
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
        let consortium = Consortium::found("survivors");
        let trainer = |name: &str, hospital: &str| {
            let site = consortium.enrol(name, Role::Trainer);
            site.give_phantoms(&consortium.address, hospital);
            site
        };
        let (north, south) = (trainer("north", "site-a"), trainer("south", "site-b"));
        consortium.add_study(ROUNDS, 2);
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

    /// Waits for the end; the last model.
    pub(crate) fn finished(&mut self) -> String {
        let words = self.consortium.coordinator.until_study("finished", "model");
        words.rsplit(' ').next().expect("ends with the model").to_owned()
    }

    /// The model that the undisturbed study makes.
    pub(crate) fn undisturbed() -> String {
        let mut federation = Self::set_up();
        let _agents = [federation.north.run(), federation.south.run()];
        federation.finished()
    }

    /// Every round was made of the updates of both.
    pub(crate) fn assert_made_of_both(&self) {
        let report = self.consortium.report(NAME);
        assert_eq!((report.study.rounds_committed, report.study.state.as_str()), (ROUNDS, "finished"));
        for round in &report.rounds {
            let sites: Vec<_> = round.sites.iter().map(|site| site.as_str()).collect();
            assert_eq!(sites, ["north", "south"], "round {}", round.round);
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
