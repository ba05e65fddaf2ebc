//! Distributing: the round is open and its sites were told. They answer, fetch the base model and begin to train; a fast
//! one may even send its update. Ends when all answered, or at the accept deadline: who is silent then is not waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::collecting::Collecting;
use super::event::Timer;
use super::fact::Fact;
use super::opened::{Answer, OpenedRound};
use super::phase::{Context, Phase};
use crate::ids::{ModelHash, RoundId};
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Distributing {
    pub(super) opened: OpenedRound,
    accept_by: Timestamp,
}

impl Distributing {
    /// Asks every ready site; participants and their counts are fixed here.
    pub(super) fn open(round: RoundId, base: ModelHash, cx: &mut Context<'_>) -> Self {
        let deadline = cx.now.after(cx.plan.quorum.deadline());
        let mut opened = OpenedRound::new(round, base, deadline);
        opened.invite(&cx.roster.ready);
        cx.report(Fact::RoundOpened { round, sites: cx.roster.sites() });
        cx.open_round(&opened, cx.roster.sites());
        Self { opened, accept_by: cx.now.after(cx.plan.quorum.accept()).min(deadline) }
    }

    pub(super) fn advance(&mut self, cx: &mut Context<'_>) -> Option<Phase> {
        if self.opened.any(&Answer::Invited) && cx.now < self.accept_by {
            return None;
        }
        let round = self.opened.round;
        for (site, participant) in &mut self.opened.participants {
            if participant.answer == Answer::Invited {
                participant.answer = Answer::Silent;
                cx.report(Fact::SiteSilent { site: site.clone(), round });
            }
        }
        Some(Phase::Collecting(Collecting::new(self.opened.clone())))
    }

    pub(super) fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        [(Timer::Accept, self.accept_by)].into()
    }

    pub(super) fn postpone(&mut self, by: Duration) {
        self.accept_by = self.accept_by.after(by);
        self.opened.deadline = self.opened.deadline.after(by);
    }
}
