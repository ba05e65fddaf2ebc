//! What happened in one federation, or in many: the proof that the troubles did come.

use std::ops::AddAssign;

/// What happened in one federation, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) rounds: u64,
    pub(crate) crashes: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) refused: u64,
    pub(crate) answered_again: u64,
    pub(crate) faults: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.rounds += other.rounds;
        self.crashes += other.crashes;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.refused += other.refused;
        self.answered_again += other.answered_again;
        self.faults += other.faults;
    }
}
