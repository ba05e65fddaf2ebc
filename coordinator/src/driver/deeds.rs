//! Doing what the machines ask for. Each deed is idempotent: after a restart the same may be asked again.

use std::collections::VecDeque;

use common::aggregate::{Contribution, Method};
use common::coverage::Coverage;
use common::evaluation;
use common::ids::{ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::report::EvaluationReport;
use common::round::{self, RoundOutcome, Term};
use common::signed::SignedDocument;
use common::taxonomy::ClassKind;
use common::wire::Notice;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::aggregation::{self, Done, Job, JobError};
use super::damage;
use super::disk;
use super::handle::{Claim, refuse_report, refuse_update};
use super::lost::{self, Look, Wanted};
use super::study_run::{Deed, Happening, TickError, TimerKey};
use super::{Driver, facts, plan};
use crate::clock;
use crate::progress::Line;
use crate::store::{self, Receipt, RoundRecord, Store, StoreError};

impl Driver {
    /// Does `deeds`, and what follows from them; then what a closed round leaves to do, as the next one is announced by then.
    pub(super) async fn execute(&mut self, study: StudyDigest, deeds: Vec<Deed>) {
        let mut queue = VecDeque::from(deeds);
        let mut closed = None;
        while let Some(deed) = queue.pop_front() {
            if let Deed::Round(round::Action::CloseRound { round, .. }) = &deed {
                closed = Some(*round);
            }
            let follows = match deed {
                Deed::Round(action) => self.do_round(study, action).await,
                Deed::Evaluation(action) => self.do_evaluation(study, action).await,
            };
            let Some(happening) = follows else { continue };
            let Some(run) = self.studies.get_mut(&study) else { continue };
            match run.tick(&self.store, happening.clone(), self.clock.now()).await {
                Ok(more) => queue.extend(more),
                Err(TickError::Store(error)) => {
                    self.note_fault(&error);
                    self.retries.push_back((study, happening));
                }
                Err(TickError::Command(error)) => tracing::warn!(%study, %error, "a command changed nothing"),
            }
        }
        self.shorten_journal(study, closed.is_some()).await;
        if let Some(round) = closed {
            self.remove_spent(study, round);
            self.count_traffic();
        }
    }

    async fn do_round(&mut self, study: StudyDigest, action: round::Action) -> Option<Happening> {
        use round::Action;
        match action {
            Action::OpenRound { task, to } => {
                let opened = self.store.open_round(&study, task.round, clock::now()).await;
                self.note(opened);
                let notice = Notice::RoundOpened(plan::task(&task));
                to.iter().for_each(|site| self.peers.tell(site, notice.clone()));
            }
            Action::CloseRound { round, model, outcome } => {
                self.close_round(study, round, model, outcome).await
            }
            Action::Acknowledge { site, round, attempt, update } => {
                let claim = Claim::Update(site.clone(), attempt);
                // Durable before it is given; a site that is not waiting any more asks again and finds it.
                let bytes = self.claims.get(&claim).map(|claimant| claimant.bytes)?;
                let receipt = Receipt { attempt, study, site, round, update, bytes, at: clock::now() };
                let kept = self.store.put_receipt(&receipt).await;
                if self.note(kept) {
                    link::failpoint::pass("coordinator.before-receipt");
                    self.settle(&claim, Ok(()));
                }
            }
            Action::Refuse { site, attempt, rejection } => {
                self.settle(&Claim::Update(site, attempt), Err(refuse_update(&rejection)));
            }
            Action::Aggregate { round, base, terms, server_lr } => {
                self.begin_aggregation(study, round, base, terms, server_lr);
            }
            // The model was made durable where it was computed; committing it is recording that it counts.
            Action::Commit { round, model } => return Some(self.commit(study, round, model).await),
            Action::Evaluate { round, model } => {
                return Some(Happening::Evaluation(evaluation::Event::Requested { round, model }));
            }
            Action::AnnouncePaused { reason, words, to } => {
                let reason = plan::pause_in_full(reason, words.as_deref()).into();
                let notice = Notice::StudyPaused { study, reason };
                to.iter().for_each(|site| self.peers.tell(site, notice.clone()));
            }
            Action::AnnounceFinished { .. } => {
                if let Some(run) = self.studies.get(&study) {
                    // As on a connection: whoever was away when the last round closed hears which it was.
                    for role in [Role::Trainer, Role::Evaluator]
                        .into_iter()
                        .filter(|role| run.rounds.is_over_for(*role))
                    {
                        let told = run.greeting(role);
                        told.iter().for_each(|notice| self.peers.tell_roles(|other| other == role, notice));
                    }
                    let last = run.rounds.status().round;
                    self.remove_spent(study, last);
                }
            }
            Action::SetTimer { timer, at } => self.set_timer(study, TimerKey::Round(timer), Some(at)),
            Action::ClearTimer(timer) => self.set_timer(study, TimerKey::Round(timer), None),
            Action::Report(fact) => {
                self.say(study, facts::of_rounds(&fact, |class| self.class_name(study, class)))
            }
        }
        None
    }

    async fn do_evaluation(&mut self, study: StudyDigest, action: evaluation::Action) -> Option<Happening> {
        use evaluation::Action;
        match action {
            Action::RequestEvaluation { to, round, model } => {
                self.peers.tell(&to, Notice::EvaluationRequested { study, round, model });
            }
            Action::OpenGate { model, .. } => {
                return Some(Happening::Round(round::Event::GateOpened { model }));
            }
            Action::Acknowledge { site, model, .. } => {
                if self.settle(&Claim::Report(site.clone(), model), Ok(())).is_some() {
                    self.say_scores(study, &site, model).await;
                }
            }
            Action::Refuse { site, model, rejection } => {
                self.settle(&Claim::Report(site, model), Err(refuse_report(&rejection)));
            }
            Action::SetTimer { timer, at } => self.set_timer(study, TimerKey::Evaluation(timer), Some(at)),
            Action::ClearTimer(timer) => self.set_timer(study, TimerKey::Evaluation(timer), None),
            Action::Report(fact) => self.say(study, facts::of_evaluation(&fact)),
        }
        None
    }

    fn set_timer(&mut self, study: StudyDigest, key: TimerKey, at: Option<common::time::Timestamp>) {
        let Some(run) = self.studies.get_mut(&study) else { return };
        match at {
            Some(at) => run.timers.insert(key, at),
            None => run.timers.remove(&key),
        };
    }

    fn begin_aggregation(
        &mut self,
        study: StudyDigest,
        round: RoundId,
        base: ModelHash,
        terms: Vec<Term>,
        server_lr: f64,
    ) {
        let Some(run) = self.studies.get(&study) else { return };
        let trainable = run.document.study().embeddings.trainable;
        let class_rows = trainable.then(|| run.rounds.annotating());
        let steps = run.rounds.plan().steps;
        let method = Method { server_lr, ..Method::of(&run.document.study().aggregation) };
        let stop = CancellationToken::new();
        if let Some(earlier) = self.jobs.insert(study, stop.clone()) {
            earlier.cancel();
        }
        let job = Job { study, round, base, terms, method, steps, class_rows, stop: stop.clone() };
        let name = run.document.study().name.clone();
        let line = move |(what, detail): (&str, String)| Line::Study {
            study: name.clone(),
            what: what.to_owned(),
            detail,
        };
        let (store, handle) = (self.store.clone(), self.handle.clone());
        self.work.spawn(async move {
            let files = store.clone();
            let result = tokio::task::spawn_blocking(move || aggregate(&files, &job)).await;
            let mut heard = result.unwrap_or_else(|error| {
                tracing::error!(%error, "aggregation panicked");
                let fault = round::Fault::Numbers;
                Heard::of(vec![round::Event::AggregationFailed { round, fault }])
            });
            // Before the model counts: what made it is not reckoned again after a restart.
            if !stop.is_cancelled()
                && !heard.contributions.is_empty()
                && let Err(error) = store.note_contributions(&study, round, &heard.contributions).await
            {
                heard = unnoted(&store, round, &error);
            }
            if let Some(words) = heard.damage {
                handle.artifact_damaged(base, words).await;
            }
            let lines = heard.lines.into_iter().map(line).collect();
            handle.aggregated(study, stop, lines, heard.events).await;
        });
    }

    async fn commit(&mut self, study: StudyDigest, round: RoundId, model: ModelHash) -> Happening {
        let record = self.round_record(study, round, Some(model), RoundOutcome::Committed);
        let kept = self.store.close_round(&study, &record).await;
        let event = match kept {
            Ok(()) => {
                link::failpoint::pass("coordinator.after-commit-before-announce");
                round::Event::Committed { round, model }
            }
            Err(error) => {
                let fault = disk::fault(&self.store, &error);
                self.note_fault(&error);
                round::Event::CommitFailed { round, fault }
            }
        };
        Happening::Round(event)
    }

    async fn close_round(
        &mut self,
        study: StudyDigest,
        round: RoundId,
        model: Option<ModelHash>,
        outcome: RoundOutcome,
    ) {
        if model.is_none() {
            // Its updates go now.
            if let Some(job) = self.jobs.remove(&study) {
                job.cancel();
            }
            let record = self.round_record(study, round, None, outcome);
            let kept = self.store.close_round(&study, &record).await;
            self.note(kept);
        }
        self.peers.tell_all(&Notice::RoundClosed { study, round, model, outcome: plan::outcome(outcome) });
    }

    /// Adds what was moved since the last time to the store, a commit for each site: while other things go on, unless that is
    /// waited for.
    pub(super) fn count_traffic(&mut self) -> JoinHandle<()> {
        let (store, moved) = (self.store.clone(), self.peers.take_traffic());
        self.work.spawn(async move {
            for (site, traffic) in moved {
                if let Err(error) = store.add_traffic(&site, traffic.received, traffic.sent).await {
                    tracing::error!(%site, error = &error as &dyn std::error::Error, "traffic is not counted");
                }
            }
        })
    }

    fn round_record(
        &self,
        study: StudyDigest,
        round: RoundId,
        model: Option<ModelHash>,
        outcome: RoundOutcome,
    ) -> RoundRecord {
        let status = self.studies.get(&study).map(|run| run.rounds.status());
        let (answers, late) = status.map(|status| (status.answers, status.late)).unwrap_or_default();
        let updated = answers.into_iter().filter(|(_, answer)| matches!(answer, round::Answer::Updated(_)));
        let now = clock::now();
        RoundRecord {
            round,
            opened_at: now,
            closed_at: Some(now),
            outcome: Some(plan::outcome(outcome).code().to_owned()),
            model,
            sites: updated.map(|(site, _)| site).chain(late).collect(),
        }
    }

    async fn shorten_journal(&mut self, study: StudyDigest, committed: bool) {
        let Some(run) = self.studies.get_mut(&study) else { return };
        let shortened = run.snapshot(&self.store, committed).await;
        self.note(shortened);
    }

    /// Notes a failure of the store; whether there was none.
    pub(super) fn note(&mut self, result: Result<(), StoreError>) -> bool {
        if let Err(error) = &result {
            self.note_fault(error);
        }
        result.is_ok()
    }

    fn say(&self, study: StudyDigest, fact: Option<(&'static str, String)>) {
        let (Some((what, detail)), Some(run)) = (fact, self.studies.get(&study)) else { return };
        let study = run.document.study().name.clone();
        self.progress.say(&Line::Study { study, what: what.to_owned(), detail });
    }

    /// Shows the scores of a report that has just been kept.
    async fn say_scores(&mut self, study: StudyDigest, site: &SiteId, model: ModelHash) {
        let stored = match self.store.report(&study, &model, site).await {
            Ok(stored) => stored,
            Err(error) => return self.note_fault(&error),
        };
        let report = stored.and_then(|stored| EvaluationReport::from_bytes(&stored.document).ok());
        let covered = match self.manifests(&study).await {
            Ok(manifests) => Coverage::of(&manifests.counting).covered(),
            Err(error) => return self.note_fault(&error),
        };
        let (Some(report), Some(run)) = (report, self.studies.get(&study)) else { return };
        let taxonomy = &run.document.study().taxonomy;
        let is_organ = |class| taxonomy.class(class).is_some_and(|class| class.kind == ClassKind::Organ);
        // What no trainer annotates nobody can have learnt: it would say nothing about the model in a mean.
        let is_trained = |class| covered.contains(&class);
        let present = report.classes.iter().filter_map(|c| Some((c.class, c.present.as_ref()?.mean_dice)));
        let (trained, untrained): (Vec<_>, Vec<_>) = present.partition(|(class, _)| is_trained(*class));
        self.progress.say(&Line::Scored {
            site: site.clone(),
            round: report.subject.round,
            organs: report.mean_dice(|class| is_trained(class) && is_organ(class)),
            lesions: report.mean_dice(|class| is_trained(class) && !is_organ(class)),
            classes: trained.into_iter().map(|(class, dice)| (taxonomy.name(class), dice)).collect(),
            untrained: untrained.into_iter().map(|(class, _)| taxonomy.name(class)).collect(),
        });
    }
}

/// What comes of an aggregation.
struct Heard {
    /// For the operator.
    lines: Vec<(&'static str, String)>,
    /// For the machine.
    events: Vec<round::Event>,
    /// What each update is in the model that was made.
    contributions: Vec<Contribution>,
    /// What is wrong with the model that the round begins from.
    damage: Option<String>,
}

impl Heard {
    /// Events, of which there is nothing more to say.
    fn of(events: Vec<round::Event>) -> Self {
        Self { lines: Vec::new(), events, contributions: Vec::new(), damage: None }
    }
}

/// Computes a round's model. Updates that turn out to be gone are asked for again, all of them: otherwise each would be
/// found missing only when the one before is back. Blocks.
fn aggregate(store: &Store, job: &Job) -> Heard {
    let Job { study, round, .. } = *job;
    let error = match aggregation::aggregate(store, job) {
        Ok(Done { model, clipped, contributions }) => {
            let lines = clipped.iter().map(|clipped| facts::of_clipping(round, clipped)).collect();
            let made = Heard::of(vec![round::Event::Aggregated { round, model }]);
            return Heard { lines, contributions, ..made };
        }
        // Its files may be gone already, and nobody asks what became of it.
        Err(_) if job.stop.is_cancelled() => return Heard::of(Vec::new()),
        Err(error) => error,
    };
    tracing::error!(error = &error as &dyn std::error::Error, "aggregation failed");
    let words = format!("round {round} could not be aggregated: {}", store::causes(&error));
    let lines = vec![("aggregation-failed", words)];
    let fault = match (&error, error.fault()) {
        (JobError::Store(error), _) => disk::fault(store, error),
        (_, fault) => fault,
    };
    let wanted = |term: &Term| {
        let (site, round, attempt, update) = (term.site.clone(), term.round, term.attempt, term.update);
        Wanted { study, round, site, attempt, update }
    };
    let lost = match fault {
        round::Fault::Storage => lost::missing(store, job.terms.iter().map(wanted).collect(), Look::Whole),
        _ => Vec::new(),
    };
    let events = match lost.is_empty() {
        true => vec![round::Event::AggregationFailed { round, fault }],
        false => lost.into_iter().map(Wanted::lost).collect(),
    };
    let damage = match fault {
        round::Fault::Storage => damage::damage(store, &job.base, Look::Whole),
        _ => None,
    };
    Heard { lines, damage, ..Heard::of(events) }
}

/// A model that was made, of which the database does not take what each site contributed: like one that it does not take.
fn unnoted(store: &Store, round: RoundId, error: &StoreError) -> Heard {
    tracing::error!(error = error as &dyn std::error::Error, "contributions are not noted");
    let words =
        format!("what sites contribute to round {round} could not be noted: {}", store::causes(error));
    let fault = disk::fault(store, error);
    let lines = vec![("aggregation-failed", words)];
    Heard { lines, ..Heard::of(vec![round::Event::AggregationFailed { round, fault }]) }
}
