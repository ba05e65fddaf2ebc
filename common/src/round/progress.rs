//! How each event changes a study: the part of [`super::RoundMachine`] that is the same in several phases.

use std::collections::{BTreeMap, BTreeSet};

use super::CommandError;
use super::aggregating::Committing;
use super::collecting::Collecting;
use super::committed::{Committed, Over};
use super::event::{Action, DeclineReason, Event, PauseReason, UpdateOffer};
use super::exclusion::Exclusion;
use super::fact::Fact;
use super::late::PreviousRound;
use super::opened::{Answer, Counted, OpenedRound};
use super::paused::Pause;
use super::phase::{Context, Phase};
use super::rejection::{Rejection, UpdateExpectation};
use crate::aggregate::weights::SiteCounts;
use crate::ids::{AttemptId, ModelHash, RoundId, SiteId};

/// The machine's state without the roster, which [`Context`] carries.
pub(super) struct Progress<'a> {
    pub(super) phase: &'a mut Phase,
    pub(super) pause: &'a mut Option<Pause>,
    pub(super) failures: &'a mut u32,
    pub(super) last_counted: &'a mut BTreeMap<SiteId, Counted>,
    pub(super) previous: &'a mut Option<PreviousRound>,
}

impl Progress<'_> {
    /// Records the event; `Restarted` and `UpdateStored` are the machine's own.
    pub(super) fn apply(&mut self, event: Event, cx: &mut Context<'_>) -> Result<(), CommandError> {
        let name = event.name();
        let known = match event {
            Event::Start => return self.start(),
            Event::Pause => return self.pause_by_operator(None, cx),
            Event::PauseFor { words } => return self.pause_by_operator(Some(words), cx),
            Event::Resume => return self.resume_by_operator(cx),
            Event::Abort => return self.abort(cx),
            Event::TrainersExpected { sites } => {
                self.expect_trainers(sites, cx);
                true
            }
            Event::SiteReady { site, .. } if cx.plan.leave_out.contains(&site) => false,
            Event::SiteReady { site, counts } => {
                self.greet(site, counts, cx);
                true
            }
            Event::SiteGone { site } => cx.roster.ready.remove(&site).is_some(),
            Event::RoundAccepted { site, round } => self.accept(site, round, cx),
            Event::RoundDeclined { site, round, reason } => self.decline(site, round, reason, cx),
            Event::UpdateLost { site, round, attempt } => self.lose_update(&site, round, attempt, cx),
            Event::Aggregated { round, model } => self.aggregated(round, model, cx),
            Event::Committed { round, model } => self.committed(round, model, cx),
            Event::AggregationFailed { round, fault } => {
                let here = matches!(self.phase, Phase::Aggregating(phase) if phase.opened.round == round);
                here && self.fail(PauseReason::Aggregation(fault), cx)
            }
            Event::CommitFailed { round, fault } => {
                let here = matches!(self.phase, Phase::Committing(phase) if phase.opened.round == round);
                here && self.fail(PauseReason::Commit(fault), cx)
            }
            Event::GateOpened { model } => self.open_gate(model),
            // What is due follows from the time alone; a timer is only a reason to look.
            Event::TimerFired(_) => true,
            Event::Restarted | Event::UpdateStored { .. } => false,
        };
        if !known {
            cx.report(Fact::EventIgnored { event: name, phase: self.phase.name() });
        }
        Ok(())
    }

    /// Counts a stored update once, and answers it whatever it is.
    pub(super) fn take_update(
        &mut self,
        site: SiteId,
        offer: &UpdateOffer,
        verdict: Result<UpdateExpectation, Rejection>,
        cx: &mut Context<'_>,
    ) {
        let UpdateOffer { round, attempt, update, .. } = *offer;
        match verdict {
            Ok(UpdateExpectation::Wanted { .. }) => {
                if !self.take_late(&site, offer, cx) {
                    self.answer(&site, round, Answer::Updated(Counted { attempt, update }));
                    cx.report(Fact::UpdateCounted { site: site.clone(), round, attempt });
                }
                cx.act(Action::Acknowledge { site, round, attempt, update });
            }
            Ok(UpdateExpectation::AlreadyCounted) => {
                cx.report(Fact::UpdateDuplicated { site: site.clone(), round });
                cx.act(Action::Acknowledge { site, round, attempt, update });
            }
            Err(rejection) => {
                cx.report(Fact::UpdateRefused { site: site.clone(), code: rejection.code() });
                cx.act(Action::Refuse { site, attempt, rejection });
            }
        }
    }

    /// Takes an update of the round before; false when it is none.
    fn take_late(&mut self, site: &SiteId, offer: &UpdateOffer, cx: &mut Context<'_>) -> bool {
        let late = self.previous.as_ref().and_then(|previous| previous.take(site, offer));
        let (Some(late), Some(opened)) = (late, self.phase.taking_mut()) else { return false };
        let (round, trained_for) = (opened.round, late.round);
        opened.late.insert(site.clone(), late);
        cx.report(Fact::LateUpdateTaken { site: site.clone(), round, trained_for });
        true
    }

    /// Takes back an update that the store has lost, also one that is being aggregated, and asks its site again.
    fn lose_update(
        &mut self,
        site: &SiteId,
        round: RoundId,
        attempt: AttemptId,
        cx: &mut Context<'_>,
    ) -> bool {
        if self.lose_late(site, round, attempt, cx) {
            return true;
        }
        if let Phase::Aggregating(phase) = &*self.phase
            && phase.opened.round == round
            && phase.opened.counts(site, attempt)
        {
            *self.phase = Phase::Collecting(Collecting::new(phase.opened.clone()));
            // What could not be aggregated is on its way again.
            self.end_fault();
        }
        let deadline = cx.now.after(cx.plan.quorum.deadline());
        let Some(opened) = self.phase.taking_mut().filter(|opened| opened.round == round) else {
            return false;
        };
        if !opened.lose(site, attempt, deadline) {
            return false;
        }
        cx.report(Fact::UpdateLost { site: site.clone(), round });
        if self.pause.is_none() && cx.roster.ready.contains_key(site) {
            cx.open_round(opened, BTreeSet::from([site.clone()]));
        }
        true
    }

    /// As [`Progress::lose_update`], of a late one; false when it is none.
    fn lose_late(
        &mut self,
        site: &SiteId,
        trained_for: RoundId,
        attempt: AttemptId,
        cx: &mut Context<'_>,
    ) -> bool {
        let is_here = |opened: &OpenedRound| {
            let late = opened.late.get(site);
            late.is_some_and(|late| late.round == trained_for && late.counted.attempt == attempt)
        };
        if let Phase::Aggregating(phase) = &*self.phase
            && is_here(&phase.opened)
        {
            *self.phase = Phase::Collecting(Collecting::new(phase.opened.clone()));
            self.end_fault();
        }
        let Some(opened) = self.phase.taking_mut().filter(|opened| is_here(opened)) else { return false };
        opened.late.remove(site);
        cx.report(Fact::LateUpdateLost { site: site.clone(), trained_for });
        true
    }

    /// Asks again for what this phase waits for.
    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        match &*self.phase {
            Phase::Distributing(_) | Phase::Collecting(_) => {
                if let Some(opened) = self.phase.taking() {
                    cx.open_round(opened, opened.unanswered(&cx.roster.ready));
                }
            }
            Phase::Aggregating(phase) => phase.ask(cx),
            Phase::Committing(phase) => phase.ask(cx),
            Phase::Waiting(_) | Phase::Committed(_) | Phase::Finished(_) | Phase::Aborted(_) => {}
        }
    }

    /// Ends the pause: deadlines move by its length, and what it held back is asked for.
    pub(super) fn resume(&mut self, cx: &mut Context<'_>) {
        let Some(pause) = self.pause.take() else { return };
        self.phase.postpone(cx.now.since(pause.since));
        cx.report(Fact::Resumed);
        // A model in the making went on all the while.
        if self.phase.idle_mut().is_none_or(std::mem::take) {
            self.ask(cx);
        }
    }

    fn start(&mut self) -> Result<(), CommandError> {
        match self.phase {
            Phase::Waiting(waiting) if !waiting.started => {
                waiting.started = true;
                Ok(())
            }
            Phase::Finished(_) | Phase::Aborted(_) => Err(CommandError::StudyOver),
            _ => Err(CommandError::AlreadyStarted),
        }
    }

    fn refuse_when_over(&self) -> Result<(), CommandError> {
        match self.phase {
            Phase::Finished(_) | Phase::Aborted(_) => Err(CommandError::StudyOver),
            _ => Ok(()),
        }
    }

    fn pause_by_operator(&mut self, words: Option<String>, cx: &mut Context<'_>) -> Result<(), CommandError> {
        self.refuse_when_over()?;
        let since = match self.pause {
            Some(Pause { reason: PauseReason::Operator, .. }) => return Err(CommandError::AlreadyPaused),
            // A fault paused it: the operator's word keeps it from trying again by itself.
            Some(pause) => pause.since,
            None => cx.now,
        };
        self.set_pause(Pause::by_operator(since, words), cx);
        Ok(())
    }

    fn resume_by_operator(&mut self, cx: &mut Context<'_>) -> Result<(), CommandError> {
        self.refuse_when_over()?;
        if self.pause.is_some() {
            self.resume(cx);
            return Ok(());
        }
        match self.phase {
            Phase::Collecting(phase) if phase.quorum_missing() => {
                phase.widen(cx);
                Ok(())
            }
            _ => Err(CommandError::NothingToResume),
        }
    }

    fn abort(&mut self, cx: &mut Context<'_>) -> Result<(), CommandError> {
        self.refuse_when_over()?;
        *self.pause = None;
        *self.phase = Phase::Aborted(Over::abort(self.phase, cx));
        Ok(())
    }

    fn fail(&mut self, reason: PauseReason, cx: &mut Context<'_>) -> bool {
        *self.failures = self.failures.saturating_add(1);
        self.phase.idle_mut().into_iter().for_each(|idle| *idle = true);
        match self.pause {
            // The operator paused it while it was under way: his pause stands, and resuming tries again.
            Some(Pause { reason: PauseReason::Operator, .. }) => {}
            _ => self.set_pause(Pause::by_fault(reason, *self.failures, cx.now), cx),
        }
        true
    }

    fn set_pause(&mut self, pause: Pause, cx: &mut Context<'_>) {
        let (reason, words, retry_at) = (pause.reason, pause.words.clone(), pause.retry_at);
        *self.pause = Some(pause);
        cx.report(Fact::Paused { reason, words: words.clone(), retry_at });
        cx.act(Action::AnnouncePaused { reason, words, to: cx.roster.sites() });
    }

    /// The trainers that are enrolled: the others are let go.
    fn expect_trainers(&mut self, mut sites: BTreeSet<SiteId>, cx: &mut Context<'_>) {
        cx.roster.ready.retain(|site, _| sites.contains(site));
        // One that is under computation too: it may take updates again, and its late ones count in the next.
        if let Some(opened) = self.phase.opened_mut() {
            let round = opened.round;
            for site in opened.revoke_others(&sites) {
                cx.report(Fact::SiteRevoked { site, round });
            }
        }
        if let Some(previous) = self.previous.as_mut() {
            previous.keep_sites(|site| sites.contains(site));
        }
        cx.roster.excluded.retain(|site, _| sites.contains(site));
        sites.retain(|site| !cx.plan.leave_out.contains(site) && !cx.roster.excluded.contains_key(site));
        cx.roster.expected = sites;
    }

    /// Tells a site that has just become ready whatever concerns it.
    fn greet(&self, site: SiteId, counts: SiteCounts, cx: &mut Context<'_>) {
        if let Some(reason) = cx.plan.exclusion(&counts) {
            return cx.exclude(site, reason);
        }
        cx.roster.excluded.remove(&site);
        cx.roster.ready.insert(site.clone(), counts);
        cx.roster.expected.insert(site.clone());
        let to = BTreeSet::from([site]);
        if let Some(pause) = &*self.pause {
            let (reason, words) = (pause.reason, pause.words.clone());
            return cx.act(Action::AnnouncePaused { reason, words, to });
        }
        if let Some(opened) = self.phase.taking() {
            let to = opened.unanswered(&cx.roster.ready).intersection(&to).cloned().collect();
            cx.open_round(opened, to);
        }
    }

    fn accept(&mut self, site: SiteId, round: RoundId, cx: &mut Context<'_>) -> bool {
        let accepted = self.answer(&site, round, Answer::Accepted);
        if accepted {
            cx.report(Fact::SiteAccepted { site, round });
        }
        accepted
    }

    /// A word on one round, or about the site's data, which holds for all.
    fn decline(&mut self, site: SiteId, round: RoundId, reason: DeclineReason, cx: &mut Context<'_>) -> bool {
        let declined = self.answer(&site, round, Answer::Declined { reason });
        if declined {
            cx.report(Fact::SiteDeclined { site: site.clone(), round, reason });
        }
        match Exclusion::declared(reason).filter(|_| !cx.plan.leave_out.contains(&site)) {
            Some(reason) => {
                cx.exclude(site, reason);
                true
            }
            None => declined,
        }
    }

    fn answer(&mut self, site: &SiteId, round: RoundId, answer: Answer) -> bool {
        let opened = self.phase.taking_mut().filter(|opened| opened.round == round);
        opened.is_some_and(|opened| opened.answer(site, answer))
    }

    fn aggregated(&mut self, round: RoundId, model: ModelHash, cx: &mut Context<'_>) -> bool {
        let Phase::Aggregating(phase) = &*self.phase else { return false };
        if phase.opened.round != round {
            return false;
        }
        *self.phase = Phase::Committing(Committing::begin(phase.opened.clone(), model, cx));
        self.end_fault();
        true
    }

    fn committed(&mut self, round: RoundId, model: ModelHash, cx: &mut Context<'_>) -> bool {
        let Phase::Committing(phase) = &*self.phase else { return false };
        if phase.opened.round != round || phase.model != model {
            return false;
        }
        *self.last_counted = phase.opened.counted();
        *self.previous = PreviousRound::of(&phase.opened, cx.plan);
        *self.phase = Phase::Committed(Committed::announce(round, model, cx));
        self.end_fault();
        true
    }

    /// What failed has succeeded: only the operator's own pause outlives that.
    fn end_fault(&mut self) {
        *self.failures = 0;
        self.pause.take_if(|pause| pause.reason != PauseReason::Operator);
    }

    fn open_gate(&mut self, model: ModelHash) -> bool {
        match self.phase {
            Phase::Committed(phase) if phase.model == model && !phase.gate_open => {
                phase.gate_open = true;
                true
            }
            _ => false,
        }
    }
}
