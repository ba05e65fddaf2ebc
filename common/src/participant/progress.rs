//! How each event changes a site's part: what of [`super::ParticipantMachine`] is the same in several phases.

use std::collections::BTreeSet;

use super::downloading::{Downloading, Fetch};
use super::evaluating::Request;
use super::event::{Action, DropReason, Event, Fact, Step, Timer};
use super::idle::Standing;
use super::phase::{Context, Phase};
use super::training::Training;
use super::uploading::{self, Aside, Uploading};
use super::{Identity, State};
use crate::ids::{ArtifactHash, AttemptId, Digest, Role, RoundId, StudyDigest};
use crate::round::{DeclineReason, RoundTask, UpdateOffer};
use crate::time::Timestamp;

impl State {
    /// Takes an event.
    pub(super) fn apply(&mut self, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        let name = event.name();
        // The connection's own events change what the context says.
        match event {
            Event::Connected => self.connected = true,
            Event::Disconnected | Event::Started | Event::Restarted => self.connected = false,
            _ => {}
        }
        // What follows of an event is done before the next is taken, unless the process ends between.
        if !matches!(event, Event::Started | Event::Restarted | Event::Stopped) {
            self.refused = None;
        }
        let mut cx = Context { connected: self.connected, now, actions };
        if !self.handle(event, &mut cx) {
            cx.report(Fact::EventIgnored { event: name, phase: self.phase.name() });
        }
        self.make_way(&mut cx);
        self.offer_next(&mut cx);
        self.evaluations.begin_next(&self.studies, &mut cx);
    }

    /// False when the event changes nothing here.
    fn handle(&mut self, event: Event, cx: &mut Context<'_>) -> bool {
        match event {
            Event::Started => {
                self.disconnected();
                if !std::mem::take(&mut self.stopped) {
                    self.died(cx);
                }
                self.ask(cx.now, cx.actions);
                true
            }
            Event::Restarted => {
                self.disconnected();
                self.ask(cx.now, cx.actions);
                true
            }
            Event::Stopped => {
                self.stopped();
                true
            }
            Event::Connected => {
                self.unconfirmed = self.phase.work().is_some();
                self.aside.values_mut().for_each(|aside| aside.unconfirmed = true);
                self.phase.connected(cx);
                self.evaluations.connected(cx);
                true
            }
            Event::Disconnected => {
                self.disconnected();
                // The coordinator asks again for what was given up, and the process has outlived it.
                self.evaluations.forgive();
                true
            }
            Event::StudyOffered { study } => self.offered(study, cx),
            Event::StudyApproved { study, needs, takes_late } => {
                self.approved(study, Standing::Approved { needs, takes_late }, cx)
            }
            Event::StudyRefused { study } => self.refused_study(study, cx),
            Event::DataUnusable { study, reason } => {
                cx.report(Fact::DataUnusable { study, reason });
                // Without a connection it is counted again at the next: the coordinator offers the study anew.
                if cx.connected {
                    cx.act(Action::DeclineRound { study, round: RoundId(0), reason });
                }
                true
            }
            Event::RoundOpened { task } => self.opened(task, cx),
            Event::RoundClosed { study, round } => self.closed(study, round, cx),
            Event::EvaluationRequested { study, round, model } => {
                let wanted = self.identity.role == Role::Evaluator && self.studies.needs(study).is_some();
                wanted && self.evaluations.request(Request { round, model, study }, cx)
            }
            Event::StudyPaused { .. } => {
                cx.report(Fact::StudyPaused);
                true
            }
            Event::StudyFinished { study } => self.finished(study, cx),
            Event::ModelStored { artifact } => {
                let downloaded = self.stored(artifact, cx);
                self.evaluations.stored(artifact, cx) || downloaded
            }
            Event::FetchFailed { artifact } => {
                let round = match &mut self.phase {
                    Phase::Downloading(Downloading { fetch, .. })
                    | Phase::Training(Training { fetch: Some(fetch), .. }) => fetch.failed(artifact, cx),
                    _ => false,
                };
                self.evaluations.fetch_failed(artifact, cx) || round
            }
            Event::ArtifactLost { artifact } => {
                let round = self.lost(artifact, cx);
                self.evaluations.lost(artifact, &self.studies, cx) || round
            }
            Event::Trained { attempt, update, steps } => self.trained(attempt, update, steps, cx),
            Event::RoundKept { attempt, step } => match &mut self.phase {
                Phase::Training(phase) if phase.attempt == attempt => phase.kept(step),
                _ => false,
            },
            Event::TrainingFailed { attempt } => self.training_failed(attempt, cx),
            Event::Receipt { attempt } => self.uploaded(attempt, DropReason::Counted, cx),
            Event::Refused { attempt, code } => self.refused_update(attempt, code, cx),
            Event::UploadFailed { attempt } => self.upload_failed(attempt, cx),
            Event::Evaluated { model, report } => self.evaluations.evaluated(model, report, cx),
            Event::EvaluationFailed { model } => self.evaluations.evaluation_failed(model, cx),
            Event::ReportReceipt { model } => self.evaluations.answered(model, None, cx),
            Event::ReportRefused { model, code } => self.evaluations.answered(model, Some(&code), cx),
            Event::ReportFailed { model } => self.evaluations.report_failed(model, cx),
            Event::ReportLost { model } => self.evaluations.report_lost(model, cx),
            Event::TimerFired(Timer::Round) => {
                let due = self.phase.take_due(cx.now);
                if due {
                    self.phase.ask(cx);
                }
                due
            }
            Event::TimerFired(Timer::Outbox) => {
                let mut due = false;
                for aside in self.aside.values_mut() {
                    due |= aside.update.retry.take_due(cx.now);
                }
                due
            }
            Event::TimerFired(Timer::Evaluation) => self.evaluations.ask_due(cx),
        }
    }

    fn disconnected(&mut self) {
        self.next.clear();
        self.phase.disconnected();
        self.aside.values_mut().for_each(|aside| aside.update.disconnected());
        self.evaluations.disconnected();
    }

    /// The process ends in order: what it was at did not end it, and before the next one whatever did may be mended.
    fn stopped(&mut self) {
        self.stopped = true;
        self.given_up = None;
        if let Phase::Training(phase) = &mut self.phase {
            phase.retry.forgive();
        }
        self.evaluations.forgive_all();
    }

    /// The process before this one died: what it was at is suspected, and given up where that was so too often.
    fn died(&mut self, cx: &mut Context<'_>) {
        if let Phase::Training(phase) = &mut self.phase
            && !phase.interrupted(cx)
        {
            self.give_up_training(cx);
        }
        self.evaluations.interrupted(cx);
    }

    /// Asks for what is under way and does not wait for a timer.
    pub(super) fn ask(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let mut cx = Context { connected: self.connected, now, actions };
        if let Some((study, round)) = self.refused {
            cx.act(Action::ForgetLearnt { study, round });
        }
        cx.act(Action::PruneOutbox { keep: self.attempts() });
        if self.phase.retry_at().is_none() {
            self.phase.ask(&mut cx);
        }
        self.offer_next(&mut cx);
        self.evaluations.ask(&mut cx);
    }

    /// The attempts whose update is in the outbox, or may get there.
    fn attempts(&self) -> BTreeSet<AttemptId> {
        let aside = self.aside.values().map(|aside| aside.update.offer.attempt);
        self.phase.attempt().into_iter().chain(aside).collect()
    }

    /// The finished updates, those set aside first: they are older, and the next round of their study waits for the answer.
    fn updates(&mut self) -> impl Iterator<Item = &mut Uploading> {
        let under_way = match &mut self.phase {
            Phase::Uploading(phase) => Some(phase),
            _ => None,
        };
        self.aside.values_mut().map(|aside| &mut aside.update).chain(under_way)
    }

    /// Offers the update whose turn it is: the coordinator takes one of a site at a time.
    fn offer_next(&mut self, cx: &mut Context<'_>) {
        if !cx.connected || self.updates().any(|update| update.offered) {
            return;
        }
        if let Some(update) = self.updates().find(|update| update.retry.at.is_none()) {
            update.offer(cx);
        }
    }

    /// Sets an update aside that is not taken time and again, where another study waits for its turn.
    fn make_way(&mut self, cx: &mut Context<'_>) {
        let Phase::Uploading(Uploading { offer, retry, offered: false, .. }) = &self.phase else { return };
        let (study, round) = (offer.study, offer.round);
        let may_begin = |next: &RoundTask| next.study != study && !self.aside.contains_key(&next.study);
        if !retry.makes_way() || !self.next.iter().any(may_begin) {
            return;
        }
        if let Phase::Uploading(update) = std::mem::take(&mut self.phase) {
            self.aside.insert(study, Aside { update, unconfirmed: self.unconfirmed });
        }
        cx.report(Fact::SetAside { study, round, step: Step::Upload });
        self.take_next(cx);
    }

    fn offered(&mut self, study: StudyDigest, cx: &mut Context<'_>) -> bool {
        match self.studies.standing(study) {
            Some(Standing::Approved { .. }) => cx.act(Action::RegisterManifest { study }),
            Some(Standing::Refused) => return false,
            Some(Standing::Asked) => cx.act(Action::AskApproval { study }),
            None => {
                self.studies.set(study, Standing::Asked);
                cx.report(Fact::ApprovalNeeded { study });
                cx.act(Action::AskApproval { study });
            }
        }
        true
    }

    fn approved(&mut self, study: StudyDigest, standing: Standing, cx: &mut Context<'_>) -> bool {
        let news = self.studies.standing(study) != Some(&standing);
        self.studies.set(study, standing);
        // Also when it is no news: registering is idempotent, and the coordinator may have missed it.
        if cx.connected {
            cx.act(Action::RegisterManifest { study });
        }
        news
    }

    fn refused_study(&mut self, study: StudyDigest, cx: &mut Context<'_>) -> bool {
        let news = self.studies.standing(study) != Some(&Standing::Refused);
        self.studies.set(study, Standing::Refused);
        let under_way =
            self.phase.work().filter(|(working, ..)| *working == study).map(|(_, round, _)| round);
        let aside = self.aside.get(&study).map(|aside| aside.update.offer.round);
        if let Some(round) = under_way.or(aside) {
            decline(study, round, DeclineReason::Policy, cx);
        }
        self.leave_study(study, cx);
        self.evaluations.leave(study, cx);
        news
    }

    /// The study is past, but an evaluator that approved it may still owe the report on its last model.
    fn finished(&mut self, study: StudyDigest, cx: &mut Context<'_>) -> bool {
        let owes = self.identity.role == Role::Evaluator && self.studies.needs(study).is_some();
        let known = owes || self.studies.forget(study);
        if known {
            cx.report(Fact::StudyFinished { study });
        }
        self.leave_study(study, cx);
        known
    }

    fn leave_study(&mut self, study: StudyDigest, cx: &mut Context<'_>) {
        self.next.retain(|next| next.study != study);
        if self.phase.work().is_some_and(|(working, ..)| working == study) {
            self.phase.leave(DropReason::StudyOver, cx);
        }
        self.drop_aside(study, DropReason::StudyOver, cx);
        // After its update was dropped, which could leave something.
        cx.act(Action::ForgetStudy { study });
        self.take_next(cx);
    }

    fn opened(&mut self, task: RoundTask, cx: &mut Context<'_>) -> bool {
        if self.identity.role != Role::Trainer {
            decline(task.study, task.round, DeclineReason::Evaluator, cx);
            return true;
        }
        let Some(needs) = self.studies.needs(task.study).cloned() else {
            // The word that was said of the round in which it was refused: nobody is to look for an approval.
            let is_refused = self.studies.standing(task.study) == Some(&Standing::Refused);
            let reason = if is_refused { DeclineReason::Policy } else { DeclineReason::NotApproved };
            decline(task.study, task.round, reason, cx);
            return true;
        };
        let given_up = self.given_up.take_if(|(study, _)| *study == task.study);
        if given_up == Some((task.study, task.round)) {
            decline(task.study, task.round, DeclineReason::TrainingFailed, cx);
            return true;
        }
        if let Some(is_news) = self.opened_beside(&task, cx) {
            return is_news;
        }
        match self.phase.work() {
            Some(work) if work == (task.study, task.round, task.base) => {
                self.unconfirmed = false;
                cx.act(Action::AcceptRound { task });
                self.phase.reopened();
                return true;
            }
            // Each study would undo what was done for the other. But for a download that is older than the connection, whose
            // round the coordinator may not have any more: it would be waited for without end.
            Some((study, ..))
                if study != task.study
                    && !(self.unconfirmed && matches!(self.phase, Phase::Downloading(_))) =>
            {
                return self.wait_with(task, cx);
            }
            // A notice that was overtaken. On a connection that never named the later round it is none: the coordinator
            // was restored from a backup, and asks for what it does not remember.
            Some((study, round, _)) if study == task.study && round > task.round && !self.unconfirmed => {
                return false;
            }
            Some((study, round, _))
                if study == task.study && round.next() == task.round && self.ends_late() =>
            {
                self.wait_with(task, cx);
                // What the coordinator would not take between two rounds is welcome now.
                self.phase.reopened();
                return true;
            }
            Some(_) => self.phase.leave(DropReason::RoundClosed, cx),
            None => {}
        }
        self.next.retain(|next| next.study != task.study);
        self.unconfirmed = false;
        let missing = needs.into_iter().chain([task.base]).collect();
        cx.report(Fact::RoundStarted { round: task.round });
        cx.act(Action::AcceptRound { task: task.clone() });
        let fetch = Fetch::begin(missing, cx);
        self.phase = Phase::Downloading(Downloading { task, fetch });
        true
    }

    /// What an open round means for an update of its study that was set aside: as for one that is under way. `None` where there is none,
    /// or none any more.
    fn opened_beside(&mut self, task: &RoundTask, cx: &mut Context<'_>) -> Option<bool> {
        let takes_late = self.studies.takes_late(task.study);
        let Aside { update, unconfirmed } = self.aside.get_mut(&task.study)?;
        let UpdateOffer { round, base, .. } = update.offer;
        if (round, base) == (task.round, task.base) {
            *unconfirmed = false;
            update.hurry();
            cx.act(Action::AcceptRound { task: task.clone() });
            return Some(true);
        }
        if round > task.round && !*unconfirmed {
            return Some(false);
        }
        if round.next() == task.round && takes_late {
            update.hurry();
            self.wait_with(task.clone(), cx);
            return Some(true);
        }
        self.drop_aside(task.study, DropReason::RoundClosed, cx);
        None
    }

    /// Lets go of a study's update that was set aside, if there is one.
    fn drop_aside(&mut self, study: StudyDigest, reason: DropReason, cx: &mut Context<'_>) {
        if let Some(Aside { update, .. }) = self.aside.remove(&study) {
            cx.report(Fact::RoundLeft { round: update.offer.round });
            update.drop_update(reason, cx);
        }
    }

    /// Whether the work under way, whose round is over, is worth its end: the study takes its update into the next round.
    fn ends_late(&self) -> bool {
        let begun = matches!(self.phase, Phase::Training(_) | Phase::Uploading(_));
        begun && self.phase.work().is_some_and(|(study, ..)| self.studies.takes_late(study))
    }

    /// Keeps an open round until the work under way has ended, and says, once, that nobody need wait. False for a notice that was
    /// overtaken.
    fn wait_with(&mut self, task: RoundTask, cx: &mut Context<'_>) -> bool {
        let known = self.next.iter_mut().find(|next| next.study == task.study);
        let before = known.as_ref().map(|next| next.round);
        if before.is_some_and(|before| before > task.round) {
            return false;
        }
        if before != Some(task.round) {
            decline(task.study, task.round, DeclineReason::Busy, cx);
        }
        match known {
            Some(next) => *next = task,
            None => self.next.push_back(task),
        }
        true
    }

    /// Begins the round that waits longest, if nothing is under way: of a study that has no update set aside, as what it learnt and what
    /// rounding left of it depend on that.
    fn take_next(&mut self, cx: &mut Context<'_>) {
        while self.phase.work().is_none()
            && let Some(at) = self.next.iter().position(|next| !self.aside.contains_key(&next.study))
            && let Some(task) = self.next.remove(at)
        {
            self.opened(task, cx);
        }
    }

    fn closed(&mut self, study: StudyDigest, round: RoundId, cx: &mut Context<'_>) -> bool {
        let waiting = self.next.len();
        self.next.retain(|next| next.study != study || next.round > round);
        match self.aside.get(&study).map(|aside| aside.update.offer.round) {
            Some(at) if at == round && self.studies.takes_late(study) => {
                cx.report(Fact::RoundMissed { round });
                return true;
            }
            Some(at) if at <= round => {
                self.drop_aside(study, DropReason::RoundClosed, cx);
                self.take_next(cx);
                return true;
            }
            _ => {}
        }
        match self.phase.work() {
            Some((working, at, _)) if working == study && at == round && self.ends_late() => {
                cx.report(Fact::RoundMissed { round });
            }
            Some((working, at, _)) if working == study && at <= round => {
                self.phase.leave(DropReason::RoundClosed, cx);
                self.take_next(cx);
            }
            _ => return self.next.len() != waiting,
        }
        true
    }

    fn stored(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        if let Phase::Training(phase) = &mut self.phase {
            return phase.stored(artifact, cx);
        }
        let Phase::Downloading(phase) = &mut self.phase else { return false };
        let ours = phase.fetch.stored(artifact);
        if phase.fetch.complete() {
            let task = phase.task.clone();
            self.trainings = self.trainings.saturating_add(1);
            let attempt = self.identity.attempt(&task, self.trainings);
            self.phase = Phase::Training(Training::begin(task, attempt, cx));
        }
        ours
    }

    fn trained(
        &mut self,
        attempt: AttemptId,
        update: ArtifactHash,
        steps: u32,
        cx: &mut Context<'_>,
    ) -> bool {
        if self.uploading(attempt).is_some() {
            return false;
        }
        let phase = match &self.phase {
            Phase::Training(phase) if phase.attempt == attempt => phase,
            // It ended while it was being cancelled.
            _ => {
                cx.act(Action::DropUpdate { attempt, reason: DropReason::RoundClosed });
                return false;
            }
        };
        let RoundTask { study, round, base, .. } = phase.task;
        let failures = phase.retry.failures;
        cx.report(Fact::UpdateReady { round, attempt });
        let offer = UpdateOffer { study, round, base, attempt, steps, update };
        self.phase = Phase::Uploading(Uploading::new(offer, failures));
        true
    }

    fn training_failed(&mut self, attempt: AttemptId, cx: &mut Context<'_>) -> bool {
        let Phase::Training(phase) = &mut self.phase else { return false };
        if phase.attempt != attempt {
            return false;
        }
        if !phase.failed(cx) {
            self.give_up_training(cx);
        }
        true
    }

    fn lost(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        let Phase::Training(phase) = &mut self.phase else { return false };
        let needs = self.studies.needs(phase.task.study);
        if phase.task.base != artifact && !needs.is_some_and(|needs| needs.contains(&artifact)) {
            return false;
        }
        if !phase.lost(artifact, cx) {
            self.give_up_training(cx);
        }
        true
    }

    fn give_up_training(&mut self, cx: &mut Context<'_>) {
        if let Phase::Training(phase) = std::mem::take(&mut self.phase) {
            self.give_up(phase, cx);
        }
    }

    /// Declines the round: it was tried often enough.
    fn give_up(&mut self, phase: Training, cx: &mut Context<'_>) {
        let RoundTask { study, round, .. } = phase.task;
        decline(study, round, DeclineReason::TrainingFailed, cx);
        if !cx.connected {
            self.given_up = Some((study, round));
        }
        phase.leave(cx);
        self.take_next(cx);
    }

    fn uploading(&mut self, attempt: AttemptId) -> Option<&mut Uploading> {
        self.updates().find(|update| update.offer.attempt == attempt)
    }

    /// Takes out an update, whether it is that of the work under way or was set aside.
    fn take_update(&mut self, attempt: AttemptId) -> Option<Uploading> {
        let update = self.uploading(attempt).cloned()?;
        match self.phase.attempt() == Some(attempt) {
            true => self.phase = Phase::Idle,
            false => drop(self.aside.remove(&update.offer.study)),
        }
        Some(update)
    }

    /// The coordinator's last word on the update.
    fn uploaded(&mut self, attempt: AttemptId, reason: DropReason, cx: &mut Context<'_>) -> bool {
        let Some(phase) = self.take_update(attempt) else { return false };
        let UpdateOffer { study, round, .. } = phase.offer;
        let is_refused = matches!(reason, DropReason::Refused(_));
        phase.drop_update(reason, cx);
        if is_refused {
            self.refused = Some((study, round));
            cx.act(Action::ForgetLearnt { study, round });
        }
        self.take_next(cx);
        true
    }

    fn refused_update(&mut self, attempt: AttemptId, code: String, cx: &mut Context<'_>) -> bool {
        if uploading::KEEP_CODES.contains(&code.as_str()) {
            return self.upload_failed(attempt, cx);
        }
        if code == uploading::DAMAGED_CODE {
            return self.train_again(attempt, cx);
        }
        if code == uploading::WITHHELD_CODE {
            return self.withheld(attempt, cx);
        }
        self.uploaded(attempt, DropReason::Refused(code), cx)
    }

    /// Drops the update, and takes back that the round was accepted: nobody need wait for this site.
    fn withheld(&mut self, attempt: AttemptId, cx: &mut Context<'_>) -> bool {
        let Some(Uploading { offer, .. }) = self.uploading(attempt) else { return false };
        let (study, round) = (offer.study, offer.round);
        decline(study, round, DeclineReason::Policy, cx);
        self.uploaded(attempt, DropReason::Withheld, cx)
    }

    /// Goes back to training in the same attempt: the driver looks at what it kept of it, and makes it anew where it is damaged.
    /// A disk that loses it again and again does not keep the next one either; and one that was set aside is not worth a wait for its turn.
    fn train_again(&mut self, attempt: AttemptId, cx: &mut Context<'_>) -> bool {
        let Some(Uploading { offer, failures, .. }) = self.take_update(attempt) else { return false };
        let UpdateOffer { study, round, base, steps, .. } = offer;
        // Training does not ask how much time is left.
        let task = RoundTask { study, round, base, steps, remaining_ms: 0 };
        let phase = Training::after(failures.saturating_add(1), task, attempt);
        if phase.goes_on() && self.phase.work().is_none() {
            phase.ask(cx);
            self.phase = Phase::Training(phase);
        } else {
            self.give_up(phase, cx);
        }
        true
    }

    fn upload_failed(&mut self, attempt: AttemptId, cx: &mut Context<'_>) -> bool {
        let phase = self.uploading(attempt).filter(|phase| phase.offered);
        phase.map(|phase| phase.failed(cx)).is_some()
    }
}

impl Identity {
    /// The id of the `number`th training here. Random to everybody else, and the same again when the journal is replayed.
    pub(super) fn attempt(&self, task: &RoundTask, number: u64) -> AttemptId {
        let text = format!("{} {} {} {} {number}", self.site, task.study, task.round, task.base);
        let digest =
            Digest::of(&[b"consilium attempt 1\0".as_slice(), &self.installation, text.as_bytes()].concat());
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_bytes()[..16]);
        AttemptId::from_bytes(id)
    }
}

fn decline(study: StudyDigest, round: RoundId, reason: DeclineReason, cx: &mut Context<'_>) {
    cx.report(Fact::RoundDeclined { round, reason });
    cx.act(Action::DeclineRound { study, round, reason });
}
