//! A site's heavy work: training, its outbox, evaluating.

use common::ids::{ArtifactHash, AttemptId, ModelHash};
use common::participant::Event;
use common::round::{RoundTask, UpdateOffer};

use super::{Request, Work, World};
use crate::simulation::arithmetic::{artifact, embeddings, other_study, report_of, update_of};
use crate::simulation::invariants::Suspect;
use crate::simulation::sabotage::Sabotage;
use crate::simulation::site::Checkpoint;

/// Steps after which a round is kept, of the ten that it has.
const KEPT_AFTER: [u32; 2] = [4, 8];

impl World {
    pub(super) fn train(&mut self, site: usize, task: RoundTask, attempt: AttemptId) {
        let running = self.sites[site].training;
        self.books.check(running.is_none_or(|running| running == attempt), || {
            format!("site {site} trains {attempt} while it trains {running:?}")
        });
        if running != Some(attempt) {
            self.sites[site].training = Some(attempt);
            let whole = self.soon(120_000) + self.disk() + self.sites[site].slow_ms;
            if task.study == other_study() {
                self.may_die(site, Suspect::Training(attempt), whole / 2);
                return self.site_job_at(site, whole, Work::Train { task, attempt, from: None });
            }
            let from = self.take_up(site, &task);
            let done = from.map_or(0, |kept| kept.step);
            let RoundTask { round, base, steps, .. } = task;
            let delay = |step: u32| whole * u64::from(step - done) / u64::from(steps);
            if let Some(deadly) = self.sites[site].deadly {
                let step = deadly.step.clamp(done + 1, steps);
                self.may_die(site, Suspect::Training(attempt), delay(step));
            }
            if done > 0 {
                self.site_job_at(site, delay(done + 1), Work::SayKept { attempt, step: done });
            }
            for step in KEPT_AFTER.into_iter().filter(|step| *step > done) {
                let checkpoint = Checkpoint { round, base, step };
                self.site_job_at(site, delay(step), Work::Keep { attempt, checkpoint });
            }
            self.site_job_at(site, delay(steps), Work::Train { task, attempt, from });
        }
    }

    /// Where a training goes on: at what was kept of its own round.
    fn take_up(&mut self, site: usize, task: &RoundTask) -> Option<Checkpoint> {
        let kept = self.sites[site].checkpoint;
        let from = match self.sabotage {
            Sabotage::RepeatSteps => None,
            Sabotage::TakeAnyCheckpoint => kept,
            _ => kept.filter(|kept| kept.is_of(task)),
        };
        self.tally.resumed += u64::from(from.is_some());
        let done = from.map_or(0, |kept| kept.step);
        self.books.trains(&self.sites[site].identity.site, task, done);
        from
    }

    /// The file takes the place of the one before, by a rename.
    fn keep(&mut self, site: usize, attempt: AttemptId, checkpoint: Checkpoint) {
        if self.sites[site].training != Some(attempt) {
            return;
        }
        let lives = self.site_writes(site, |site| site.checkpoint = Some(checkpoint));
        if self.sites[site].checkpoint == Some(checkpoint) {
            self.books.kept(self.sites[site].identity.site.clone(), checkpoint);
        }
        if lives {
            self.say_kept(site, attempt, checkpoint.step);
        }
    }

    fn say_kept(&mut self, site: usize, attempt: AttemptId, step: u32) {
        if self.sites[site].training != Some(attempt) {
            return;
        }
        let event = Event::RoundKept { attempt, step };
        if self.sabotage == Sabotage::ForgetKept {
            return self.hold_unsaid(site, &event);
        }
        self.feed_site(site, event);
    }

    /// Offers what is in the outbox. A file that is not what it was cannot be sent: that is a failure, and the site trains
    /// again what it has lost, which gives the same bits.
    pub(super) fn offer(&mut self, site: usize, offer: UpdateOffer) {
        let attempt = offer.attempt;
        let there = self.sites[site].outbox.get(&attempt) == Some(&offer.update);
        self.books.check(there, || format!("site {site} offers what is not in its outbox"));
        if !self.sites[site].rotten.contains(&attempt) {
            return self.request(site, Request::Offer { offer }, Some(Event::UploadFailed { attempt }));
        }
        self.tally.faults += 1;
        self.site_job_at(site, 100, Work::GiveUp { failed: Event::UploadFailed { attempt } });
        if self.sites[site].mending.replace(attempt) != Some(attempt) {
            self.site_job(site, 120_000, Work::Mend { offer });
        }
    }

    pub(super) fn site_work(&mut self, site: usize, work: Work) {
        match work {
            Work::Approve { study } => {
                self.sites[site].approved = Some(true);
                let (needs, takes_late) = ([embeddings()].into(), self.scenario.late.is_some());
                self.feed_site(site, Event::StudyApproved { study, needs, takes_late });
            }
            Work::Train { task, attempt, from } => self.trained(site, &task, attempt, from),
            Work::Keep { attempt, checkpoint } => self.keep(site, attempt, checkpoint),
            Work::SayKept { attempt, step } => self.say_kept(site, attempt, step),
            Work::Die { suspect } => self.die_in(site, suspect),
            Work::Mend { offer } => self.mended(site, &offer),
            Work::Evaluate { model } => self.evaluated(site, model),
            Work::GiveUp { failed } => self.feed_site(site, failed),
        }
    }

    fn trained(&mut self, site: usize, task: &RoundTask, attempt: AttemptId, from: Option<Checkpoint>) {
        if self.sites[site].training.take_if(|running| *running == attempt).is_none() {
            return;
        }
        let needs = [task.base, embeddings()];
        // The other study needs nothing but its models.
        let needs = if task.study == other_study() { &needs[..1] } else { &needs[..] };
        if let Some(artifact) = self.loses(site, needs) {
            return self.feed_site(site, Event::ArtifactLost { artifact });
        }
        if self.fails(site) {
            return self.feed_site(site, Event::TrainingFailed { attempt });
        }
        let update = match from {
            Some(other) if !other.is_of(task) => artifact(&format!("from another round {attempt}")),
            _ => update_of(&self.sites[site].identity.site, task.round, task.base),
        };
        // What an earlier process left in the outbox is these very bits.
        let lives = self.site_writes(site, |site| {
            site.rotten.remove(&attempt);
            site.outbox.insert(attempt, update);
        });
        if lives {
            self.feed_site(site, Event::Trained { attempt, update, steps: task.steps });
        }
    }

    fn mended(&mut self, site: usize, offer: &UpdateOffer) {
        self.sites[site].mending.take_if(|running| *running == offer.attempt);
        if !self.sites[site].outbox.contains_key(&offer.attempt) {
            return;
        }
        let again = update_of(&self.sites[site].identity.site, offer.round, offer.base);
        self.books.check(again == offer.update, || format!("site {site} trained again and got other bits"));
        self.site_writes(site, |site| {
            site.rotten.remove(&offer.attempt);
        });
    }

    fn evaluated(&mut self, site: usize, model: ModelHash) {
        self.sites[site].evaluating.take_if(|running| *running == model);
        if let Some(artifact) = self.loses(site, &[model, embeddings()]) {
            return self.feed_site(site, Event::ArtifactLost { artifact });
        }
        if self.fails(site) {
            return self.feed_site(site, Event::EvaluationFailed { model });
        }
        let report = report_of(&self.sites[site].identity.site, model);
        // The signed report is a file of its own.
        if self.site_writes(site, |_| {}) {
            self.feed_site(site, Event::Evaluated { model, report });
        }
    }

    /// What a piece of work finds damaged of what it reads, if anything.
    fn loses(&mut self, site: usize, needs: &[ArtifactHash]) -> Option<ArtifactHash> {
        let lost = self.sites[site].find_lost(needs);
        self.tally.faults += u64::from(lost.is_some());
        lost
    }

    /// Whether the scenario wants this piece of work to fail.
    fn fails(&mut self, site: usize) -> bool {
        let failing = &mut self.sites[site].failing;
        let fails = *failing > 0;
        if fails {
            *failing -= 1;
            self.tally.faults += 1;
        }
        fails
    }
}
