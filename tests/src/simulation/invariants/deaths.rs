//! What a site's deaths are held against: the work that it is in the midst of each time it dies, as the guides promise. The twelfth
//! that counts ends it, and no earlier one; what a process kept, or that it ended in order, makes the count begin anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::ids::{AttemptId, ModelHash, RoundId, SiteId, StudyDigest};
use common::participant::{Action, Event, Fact};
use common::round::DeclineReason;
use common::time::Timestamp;

use super::Books;
use crate::simulation::coverage::Transition;

/// Deaths that end a piece of work.
const MOST_DEATHS: u32 = 12;
/// Of those that follow each other within this time one counts.
const APART: Duration = Duration::from_secs(360);

/// A piece of work that can end its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::simulation) enum Suspect {
    Training(AttemptId),
    Scoring(ModelHash),
}

impl Suspect {
    /// What an action begins, or begins again.
    pub(in crate::simulation) fn begun_by(action: &Action) -> Option<Self> {
        match action {
            Action::Train { attempt, .. } => Some(Self::Training(*attempt)),
            Action::Evaluate { model, .. } => Some(Self::Scoring(*model)),
            _ => None,
        }
    }
}

/// An event that a site's machine took.
#[derive(Clone, Copy, Debug)]
pub(in crate::simulation) struct Taken<'a> {
    pub(in crate::simulation) site: &'a SiteId,
    pub(in crate::simulation) event: &'a Event,
    /// By the site's clock.
    pub(in crate::simulation) at: Timestamp,
    /// What the process before was in the midst of, where one starts.
    pub(in crate::simulation) midst: Option<Suspect>,
    pub(in crate::simulation) actions: &'a [Action],
    /// Its phase after.
    pub(in crate::simulation) to: &'static str,
}

/// What is held against a piece of work.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    deaths: u32,
    /// When the last one was that counts.
    last: Option<Timestamp>,
    /// Steps that are kept, as far as was said.
    kept: u32,
}

#[derive(Debug, Default)]
pub(super) struct Deaths {
    held: BTreeMap<(SiteId, Suspect), Held>,
    /// Sites whose process ended in order.
    stopped: BTreeSet<SiteId>,
    given_up: BTreeSet<(SiteId, Suspect)>,
    /// Rounds that were given up without a connection to say so on.
    unsaid: BTreeMap<SiteId, (StudyDigest, RoundId)>,
}

impl Books {
    /// Counts the deaths, and compares what the site does and says of them; what this means for the table of transitions.
    pub(in crate::simulation) fn suspects(&mut self, taken: &Taken<'_>) -> Option<Transition> {
        let site = taken.site;
        let row = match taken.event {
            Event::Started | Event::Restarted => self.started(taken),
            Event::Stopped => self.ended_in_order(site),
            Event::RoundKept { attempt, step } => self.said_kept(site, *attempt, *step),
            Event::RoundOpened { task } => self.asked_for(taken, task.study, task.round),
            Event::Disconnected | Event::StudyRefused { .. } => {
                self.deaths.given_up.retain(|(of, what)| of != site || matches!(what, Suspect::Training(_)));
                None
            }
            _ => None,
        };
        for begun in taken.actions.iter().filter_map(Suspect::begun_by) {
            let over = self.deaths.given_up.contains(&(site.clone(), begun));
            self.check(!over, || format!("{site} begins {begun:?} again, which it gave up"));
        }
        row.or(self.forgive_ended(taken))
    }

    /// A process goes on where the one before it ended.
    fn started(&mut self, taken: &Taken<'_>) -> Option<Transition> {
        let Taken { site, at, midst, actions, .. } = *taken;
        let begun = actions.iter().find_map(Suspect::begun_by);
        let said = actions.iter().find_map(|action| match action {
            Action::Report(Fact::Interrupted { times, .. }) => Some(*times),
            _ => None,
        });
        let in_order = self.deaths.stopped.remove(site);
        let Some(suspect) = midst.filter(|_| !in_order) else {
            self.check((begun, said) == (midst, None), || {
                format!("{site} did not die in {midst:?}: it goes on with {begun:?} and says {said:?} deaths")
            });
            return None;
        };
        let held = self.deaths.held.entry((site.clone(), suspect)).or_default();
        let from = if held.deaths == 0 { "clear" } else { "suspected" };
        let counts = held.last.is_none_or(|last| last > at || at.since(last) >= APART);
        if counts {
            (held.deaths, held.last) = (held.deaths + 1, Some(at));
        }
        let deaths = held.deaths;
        let is_over = deaths >= MOST_DEATHS;
        self.check((begun, said) == ((!is_over).then_some(suspect), Some(deaths)), || {
            format!("{site} died {deaths} times in {suspect:?}: it goes on with {begun:?} and says {said:?} deaths")
        });
        if is_over {
            self.gave_up_work(site, suspect, actions);
        }
        let event = if counts { "died" } else { "died-soon" };
        Some(row(from, event, if is_over { "given-up" } else { "suspected" }))
    }

    fn gave_up_work(&mut self, site: &SiteId, suspect: Suspect, actions: &[Action]) {
        self.deaths.given_up.insert((site.clone(), suspect));
        let declined = actions.iter().find_map(|action| match action {
            Action::DeclineRound { study, round, reason: DeclineReason::TrainingFailed } => {
                Some((*study, *round))
            }
            _ => None,
        });
        if let Suspect::Training(attempt) = suspect {
            self.check(declined.is_some(), || format!("{site} gives {attempt} up, and declines no round"));
        }
        // It has just started: nobody hears that.
        self.deaths.unsaid.extend(declined.map(|round| (site.clone(), round)));
    }

    /// Whoever stops a process may have mended what ends it.
    fn ended_in_order(&mut self, site: &SiteId) -> Option<Transition> {
        let Deaths { held, stopped, given_up, unsaid } = &mut self.deaths;
        stopped.insert(site.clone());
        given_up.retain(|(of, what)| of != site || matches!(what, Suspect::Training(_)));
        unsaid.remove(site);
        let mut forgiven = 0;
        for held in held.iter_mut().filter(|((of, _), _)| of == site).map(|(_, held)| held) {
            forgiven += held.deaths;
            (held.deaths, held.last) = (0, None);
        }
        (forgiven > 0).then(|| row("suspected", "stopped", "clear"))
    }

    fn said_kept(&mut self, site: &SiteId, attempt: AttemptId, step: u32) -> Option<Transition> {
        let held = self.deaths.held.entry((site.clone(), Suspect::Training(attempt))).or_default();
        if held.kept == step {
            return None;
        }
        let before = std::mem::replace(held, Held { kept: step, ..Held::default() });
        (before.deaths > 0).then(|| row("suspected", "kept", "clear"))
    }

    /// The coordinator hears that a round was given up as soon as it asks for it.
    fn asked_for(&mut self, taken: &Taken<'_>, study: StudyDigest, round: RoundId) -> Option<Transition> {
        let site = taken.site;
        let unsaid = self.deaths.unsaid.get(site).copied().filter(|(of, _)| *of == study)?;
        let said = taken.actions.iter().find_map(|action| match action {
            Action::DeclineRound { reason, .. } => Some(*reason),
            _ => None,
        });
        // Of a study in which the site takes no part any more it says that.
        if matches!(said, Some(DeclineReason::Policy | DeclineReason::NotApproved)) {
            return None;
        }
        self.deaths.unsaid.remove(site);
        if unsaid.1 != round {
            return None;
        }
        self.check(said == Some(DeclineReason::TrainingFailed), || {
            format!("{site} is asked for round {round}, which it gave up, and says {said:?}")
        });
        Some(row("given-up", "asked", "clear"))
    }

    /// Nothing is held against a step that has ended, should it be done once more.
    fn forgive_ended(&mut self, taken: &Taken<'_>) -> Option<Transition> {
        let Taken { site, event, to, .. } = *taken;
        let mut forgiven = 0;
        self.deaths.held.retain(|(of, suspect), held| {
            let goes_on = match suspect {
                Suspect::Training(_) => !matches!(to, "idle" | "uploading"),
                Suspect::Scoring(_) => to == "evaluating",
            };
            let stays = of != site || goes_on;
            forgiven += if stays { 0 } else { held.deaths };
            stays
        });
        let is_done = matches!(event, Event::Trained { .. } | Event::Evaluated { .. });
        (is_done && forgiven > 0).then(|| row("suspected", "done", "clear"))
    }
}

fn row(from: &'static str, event: &'static str, to: &'static str) -> Transition {
    Transition { machine: "deaths", from, event, to }
}
