//! What happened in one federation, or in many: the proof that the troubles did come.

use std::ops::AddAssign;

use serde::Serialize;

/// What happened in one federation, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Federations.
    pub federations: u64,
    /// Their sites.
    pub sites: u64,
    /// Things that happened, one by one.
    pub steps: u64,
    /// Rounds committed.
    pub rounds: u64,
    /// Federations in which every trainer took part in every round: their model is that of the undisturbed run.
    pub whole: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Of these, at a durable write.
    pub at_writes: u64,
    /// Of these, with half a line in the journal.
    pub torn: u64,
    /// Agents stopped in order.
    pub stopped: u64,
    /// Trainings and evaluations given up because the process died in the midst of them.
    pub given_up: u64,
    /// Starts of a coordinator that cannot read the study.
    pub misread: u64,
    /// Messages lost, in partitions too.
    pub lost: u64,
    /// Messages that arrived twice.
    pub duplicated: u64,
    /// Sites cut off.
    pub partitioned: u64,
    /// Sites that left.
    pub left: u64,
    /// Updates that counted in the round after their own.
    pub late: u64,
    /// Updates refused.
    pub refused: u64,
    /// Updates sent again and answered.
    pub answered_again: u64,
    /// Disks that took nothing for a while.
    pub full: u64,
    /// Trainings, evaluations, aggregations and commits that failed.
    pub faults: u64,
    /// Stored updates that turned into something else and were found out.
    pub corrupt: u64,
    /// Lies told.
    pub lies: u64,
    /// Trainings that went on from what was kept.
    pub resumed: u64,
    /// Steps of the coordinator's clock.
    pub stepped: u64,
    /// Sites not asked for want of data.
    pub excluded: u64,
    /// Updates for rounds of another study.
    pub other: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        for ((_, mine), (_, its)) in self.fields_mut().into_iter().zip(other.fields()) {
            *mine += its;
        }
    }
}

impl Tally {
    /// Each number with its name.
    pub fn fields(mut self) -> [(&'static str, u64); 26] {
        self.fields_mut().map(|(name, number)| (name, *number))
    }

    fn fields_mut(&mut self) -> [(&'static str, &mut u64); 26] {
        [
            ("federations", &mut self.federations),
            ("sites", &mut self.sites),
            ("steps", &mut self.steps),
            ("rounds", &mut self.rounds),
            ("whole", &mut self.whole),
            ("crashes", &mut self.crashes),
            ("at durable writes", &mut self.at_writes),
            ("torn lines", &mut self.torn),
            ("agents stopped", &mut self.stopped),
            ("given up", &mut self.given_up),
            ("studies misread", &mut self.misread),
            ("messages lost", &mut self.lost),
            ("messages doubled", &mut self.duplicated),
            ("sites cut off", &mut self.partitioned),
            ("sites that left", &mut self.left),
            ("late updates", &mut self.late),
            ("updates refused", &mut self.refused),
            ("answered again", &mut self.answered_again),
            ("full disks", &mut self.full),
            ("faults", &mut self.faults),
            ("corrupt updates", &mut self.corrupt),
            ("lies", &mut self.lies),
            ("trainings resumed", &mut self.resumed),
            ("clock steps", &mut self.stepped),
            ("sites excluded", &mut self.excluded),
            ("for other studies", &mut self.other),
        ]
    }
}
