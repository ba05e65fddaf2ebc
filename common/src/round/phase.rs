//! Where a study stands: one of the phases, and what they share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::aggregating::{Aggregating, Committing};
use super::collecting::Collecting;
use super::committed::{Committed, Over};
use super::coverage::{self, ClassShortage, SiteShortage};
use super::distributing::Distributing;
use super::event::{Action, Timer};
use super::exclusion::Exclusion;
use super::fact::Fact;
use super::opened::OpenedRound;
use super::plan::RoundPlan;
use super::waiting::Waiting;
use crate::aggregate::weights::SiteCounts;
use crate::ids::{ClassId, ModelHash, RoundId, SiteId};
use crate::time::Timestamp;

/// Where a study stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Waiting(Waiting),
    Distributing(Distributing),
    Collecting(Collecting),
    Aggregating(Aggregating),
    Committing(Committing),
    Committed(Committed),
    Finished(Over),
    Aborted(Over),
}

/// The trainers at hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Roster {
    /// Connected, approved, manifest registered.
    pub(super) ready: BTreeMap<SiteId, SiteCounts>,
    /// Enrolled, and not given up by an earlier wait.
    pub(super) expected: BTreeSet<SiteId>,
    /// Not asked for want of data. Outlives the connection: nobody waits for such a site.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) excluded: BTreeMap<SiteId, Exclusion>,
}

impl Roster {
    pub(super) fn sites(&self) -> BTreeSet<SiteId> {
        self.ready.keys().cloned().collect()
    }
}

/// What a phase decides with.
pub(super) struct Context<'a> {
    pub(super) plan: &'a RoundPlan,
    pub(super) roster: &'a mut Roster,
    pub(super) now: Timestamp,
    pub(super) actions: &'a mut Vec<Action>,
}

impl Context<'_> {
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn report(&mut self, fact: Fact) {
        self.actions.push(Action::Report(fact));
    }

    /// Counts on a site no more, and says so once.
    pub(super) fn exclude(&mut self, site: SiteId, reason: Exclusion) {
        self.roster.ready.remove(&site);
        self.roster.expected.remove(&site);
        if self.roster.excluded.insert(site.clone(), reason) != Some(reason) {
            self.report(Fact::SiteExcluded { site, reason });
        }
    }

    /// Sends the task to `to`, unless that is nobody.
    pub(super) fn open_round(&mut self, opened: &OpenedRound, to: BTreeSet<SiteId>) {
        if !to.is_empty() {
            let task = opened.task(self.plan, self.now);
            self.act(Action::OpenRound { task, to });
        }
    }
}

impl Phase {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Waiting(_) => "waiting",
            Self::Distributing(_) => "distributing",
            Self::Collecting(phase) if phase.quorum_missing() => "quorum-missing",
            Self::Collecting(_) => "collecting",
            Self::Aggregating(_) => "aggregating",
            Self::Committing(_) => "committing",
            Self::Committed(_) => "committed",
            Self::Finished(_) => "finished",
            Self::Aborted(_) => "aborted",
        }
    }

    /// The next phase, when time and answers allow it.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) -> Option<Self> {
        match self {
            Self::Waiting(phase) => phase.advance(cx),
            Self::Distributing(phase) => phase.advance(cx),
            Self::Collecting(phase) => phase.advance(cx),
            Self::Committed(phase) => phase.advance(cx),
            Self::Aggregating(_) | Self::Committing(_) | Self::Finished(_) | Self::Aborted(_) => None,
        }
    }

    /// The round that is open or under computation.
    pub(super) const fn opened(&self) -> Option<&OpenedRound> {
        match self {
            Self::Distributing(Distributing { opened, .. })
            | Self::Collecting(Collecting { opened, .. })
            | Self::Aggregating(Aggregating { opened, .. })
            | Self::Committing(Committing { opened, .. }) => Some(opened),
            Self::Waiting(_) | Self::Committed(_) | Self::Finished(_) | Self::Aborted(_) => None,
        }
    }

    /// The same, to let go of its sites.
    pub(super) const fn opened_mut(&mut self) -> Option<&mut OpenedRound> {
        match self {
            Self::Aggregating(phase) => Some(&mut phase.opened),
            Self::Committing(phase) => Some(&mut phase.opened),
            _ => self.taking_mut(),
        }
    }

    /// The round that takes answers and updates now.
    pub(super) const fn taking(&self) -> Option<&OpenedRound> {
        match self {
            Self::Distributing(_) | Self::Collecting(_) => self.opened(),
            _ => None,
        }
    }

    /// The same, to record them.
    pub(super) const fn taking_mut(&mut self) -> Option<&mut OpenedRound> {
        match self {
            Self::Distributing(phase) => Some(&mut phase.opened),
            Self::Collecting(phase) => Some(&mut phase.opened),
            _ => None,
        }
    }

    /// Whether nobody is at work on the model that this phase asked for; `None` where it asks for none.
    pub(super) const fn idle_mut(&mut self) -> Option<&mut bool> {
        match self {
            Self::Aggregating(phase) => Some(&mut phase.idle),
            Self::Committing(phase) => Some(&mut phase.idle),
            _ => None,
        }
    }

    /// The round that the study is at.
    pub(super) const fn round(&self) -> RoundId {
        match self {
            Self::Waiting(phase) => phase.round,
            Self::Distributing(Distributing { opened, .. })
            | Self::Collecting(Collecting { opened, .. })
            | Self::Aggregating(Aggregating { opened, .. })
            | Self::Committing(Committing { opened, .. }) => opened.round,
            Self::Committed(phase) => phase.round,
            Self::Finished(over) | Self::Aborted(over) => over.round,
        }
    }

    /// The last durable model and the round that made it.
    pub(super) const fn durable(&self) -> (RoundId, ModelHash) {
        match self {
            Self::Waiting(phase) => (before(phase.round), phase.base),
            Self::Distributing(Distributing { opened, .. })
            | Self::Collecting(Collecting { opened, .. })
            | Self::Aggregating(Aggregating { opened, .. })
            | Self::Committing(Committing { opened, .. }) => (before(opened.round), opened.base),
            Self::Committed(phase) => (phase.round, phase.model),
            Self::Finished(over) | Self::Aborted(over) => (over.round, over.model),
        }
    }

    /// The classes that the study waits for: to open a round, or to close one.
    pub(super) fn classes_short(
        &self,
        plan: &RoundPlan,
        ready: &BTreeMap<SiteId, SiteCounts>,
    ) -> BTreeMap<ClassId, ClassShortage> {
        match self {
            Self::Waiting(_) => coverage::short_at_hand(ready, &plan.quorum),
            Self::Collecting(phase) if phase.quorum_missing() => phase.opened.classes_short(plan),
            _ => BTreeMap::new(),
        }
    }

    /// How many sites the study waits for, whatever they annotate: to open a round, or to close one.
    pub(super) fn sites_short(
        &self,
        plan: &RoundPlan,
        ready: &BTreeMap<SiteId, SiteCounts>,
    ) -> Option<SiteShortage> {
        let have = match self {
            Self::Waiting(_) => ready.len(),
            Self::Collecting(phase) if phase.quorum_missing() => phase.opened.counted().len(),
            _ => return None,
        };
        let need = plan.quorum.fewest();
        (have < need).then_some(SiteShortage { have, need })
    }

    pub(super) fn timers(&self) -> BTreeMap<Timer, Timestamp> {
        match self {
            Self::Waiting(phase) => phase.timers(),
            Self::Distributing(phase) => phase.timers(),
            Self::Collecting(phase) => phase.timers(),
            _ => BTreeMap::new(),
        }
    }

    /// Moves the deadlines by a pause.
    pub(super) fn postpone(&mut self, by: Duration) {
        match self {
            Self::Waiting(phase) => phase.postpone(by),
            Self::Distributing(phase) => phase.postpone(by),
            Self::Collecting(phase) => phase.postpone(by),
            _ => {}
        }
    }
}

const fn before(round: RoundId) -> RoundId {
    RoundId(round.0.saturating_sub(1))
}
