//! The agent: one loop that feeds the participant machine and executes what it says.
//!
//! ```text
//! link, worker, errands, timers, decisions ──► event ──► journal (synced) ──► tick ──► actions ──► execute
//! ```
//! Nothing is decided here. An event is in the journal before its actions begin; all actions are idempotent, so a crash
//! between the two costs at most the work under way. What the actions do is in `actions`, when nothing is done in `pauses`.

mod pauses;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::ids::{ArtifactHash, AttemptId, ModelHash, Role, RoundId, SiteId, StudyDigest};
use common::participant::{self, Action, Event, ParticipantMachine, Timer};
use common::round::RoundTask;
use common::signed::SigningKey;
use common::time::Timestamp;
use common::wire::SignedBytes;
use link::{Connection, failpoint};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::artifacts::ArtifactFolder;
use super::checkpointing::Unkept;
use super::config::SiteConfig;
use super::connection::{Dial, LinkEvent};
use super::errands::StoredReport;
use super::files;
use super::hearing::Hearing;
use super::identity::Identity;
use super::journal::Journal;
use super::last_model::LastModels;
use super::outbox::{Finished, Outbox};
use super::residual::Residuals;
use super::state::{AgentStatus, StateFolder};
use super::studies::{Decision, StudyFolder};
use super::waiting::{Held, Waiting};
use super::words;
use super::work::{LOOK_FOR_ROOM, Outcome, Work, Worker};
use crate::egress::{Egress, Kind};
use crate::train::trainer::Cancel;

/// How often decisions of `site-agent study approve` and `refuse` are looked for.
const LOOK_FOR_DECISIONS: Duration = Duration::from_secs(1);
/// How long the loop sleeps at most before it looks at the clock again.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// How long work under way may take to stop at the end.
const DRAIN: Duration = Duration::from_secs(20);

/// Something done over the link; at most one of each is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Errand {
    /// Fetching an artifact.
    Fetch(ArtifactHash),
    /// Fetching a study document.
    Study(StudyDigest),
    /// Approving and registering.
    Register(StudyDigest),
    /// Sending an update.
    Offer(AttemptId),
    /// Sending a report.
    Report(ModelHash),
    /// Saying that this site takes part in a round.
    Accept(StudyDigest, RoundId),
    /// Saying that it does not.
    Decline(StudyDigest, RoundId),
    /// Returning an artifact that the coordinator's disk lost.
    Return(ArtifactHash),
}

/// What an errand came to.
pub(super) enum News {
    /// It is over; the event tells the machine, if it must know.
    Done(Errand, Option<Event>),
    /// It has to wait.
    Waits(Box<Held>),
    /// A study document is here: it can be judged.
    StudyHere(StudyDigest),
}

/// One thing to do for the machine.
enum Todo {
    /// Journal an event and tick.
    Take(Event),
    /// Execute an action of one that was taken.
    Execute(Action),
    /// Keep the signed report on a model: then there is an event to take.
    Keep(ModelHash, StoredReport),
}

/// A running site.
pub struct Agent {
    pub(super) site: SiteId,
    pub(super) role: Role,
    pub(super) signing: SigningKey,
    pub(super) state: StateFolder,
    pub(super) studies: StudyFolder,
    pub(super) artifacts: ArtifactFolder,
    pub(super) outbox: Outbox,
    pub(super) residuals: Residuals,
    pub(super) egress: Arc<Egress>,
    pub(super) worker: Worker,
    pub(super) connection: Option<Connection>,
    pub(super) timers: BTreeMap<Timer, Timestamp>,
    pub(super) errands: BTreeMap<Errand, CancellationToken>,
    pub(super) tasks: JoinSet<()>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) manifests: BTreeMap<StudyDigest, SignedBytes>,
    pub(super) counting: BTreeSet<StudyDigest>,
    /// What was decided about each study, as it was acted on last.
    pub(super) decisions: BTreeMap<StudyDigest, Option<Decision>>,
    /// When their folder was changed last, before all of them were read and none was new.
    looked_at: Option<SystemTime>,
    /// Studies whose document is not here any more, and work under way waits for it.
    pub(super) unread: BTreeSet<StudyDigest>,
    pub(super) training: Option<(AttemptId, Cancel)>,
    /// Steps of it that are kept, as far as the machine was told in this process.
    pub(super) kept_step: u32,
    pub(super) evaluating: Option<(ModelHash, Cancel)>,
    pub(super) progress_said: Option<jiff::Timestamp>,
    pub(super) status: AgentStatus,
    pub(super) waiting: Waiting,
    pub(super) hearing: Hearing,
    pub(super) last_models: LastModels,
    /// Held by the one errand that returns an artifact: the coordinator takes one at a time of a site.
    pub(super) returning: Arc<Mutex<()>>,
    machine: ParticipantMachine,
    journal: Journal,
    /// Whether the round under way is kept.
    unkept: Unkept,
    /// The status as it was written last.
    said: Option<AgentStatus>,
    /// What is still to be done, in order.
    todo: VecDeque<Todo>,
    /// Nothing is done until the disk has room.
    is_halted: bool,
    dial: Option<Dial>,
    inbox: mpsc::Receiver<News>,
    outcomes: mpsc::Receiver<Outcome>,
}

impl Agent {
    /// Opens the site's state and starts its worker. Nothing is dialled yet.
    ///
    /// # Errors
    /// A state folder, ledger or journal that cannot be used.
    pub fn open(
        config: &SiteConfig,
        identity: &Identity,
        egress: Egress,
        state: StateFolder,
        work: Box<dyn Work>,
    ) -> anyhow::Result<Self> {
        state.remove_unfinished()?;
        let membership = &identity.membership;
        let installation = state.installation()?;
        let (site, role) = (membership.site.clone(), membership.role);
        let who = participant::Identity { site: site.clone(), role, installation };
        let (journal, machine) = Journal::open(&state.journal(), &who)?;
        let (news, inbox) = mpsc::channel(64);
        let (out, outcomes) = mpsc::channel(64);
        let (outbox, residuals) = (state.outbox()?, state.residuals()?);
        let unkept = work.unkept();
        // What would be kept here need not be asked for.
        let returns_artifacts = egress.policy().permit_kind(Kind::Model).is_ok();
        let dial = Dial { returns_artifacts, ..Dial::new(config.network()?, identity) };
        Ok(Self {
            site,
            role,
            signing: identity.signing.clone(),
            studies: state.studies().mending(),
            artifacts: state.artifacts(),
            worker: Worker::start(work, outbox.clone(), residuals.clone(), out)?,
            outbox,
            residuals,
            egress: Arc::new(egress),
            connection: None,
            timers: BTreeMap::new(),
            errands: BTreeMap::new(),
            tasks: JoinSet::new(),
            news,
            manifests: BTreeMap::new(),
            counting: BTreeSet::new(),
            decisions: BTreeMap::new(),
            looked_at: None,
            unread: BTreeSet::new(),
            training: None,
            kept_step: 0,
            evaluating: None,
            progress_said: None,
            status: AgentStatus::of(&machine.status()),
            waiting: Waiting::default(),
            hearing: Hearing::default(),
            last_models: LastModels::default(),
            returning: Arc::default(),
            machine,
            journal,
            unkept,
            said: None,
            todo: VecDeque::new(),
            is_halted: false,
            dial: Some(dial),
            inbox,
            outcomes,
            state,
        })
    }

    /// Runs until `stop`; then lets go of what is under way and returns.
    ///
    /// # Errors
    /// A disk that fails: an agent that cannot remember must not act. On one that is merely full it waits. And a part of it that
    /// panicked: it would be connected, and do nothing.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let (out, mut link) = mpsc::channel(64);
        let link_stop = CancellationToken::new();
        let mut linking = JoinSet::new();
        if let Some(dial) = self.dial.take() {
            linking.spawn(dial.keep_connected(out, link_stop.clone()));
        }
        let mut look = tokio::time::interval(LOOK_FOR_DECISIONS);
        let started = self.start();
        let ended = match self.or_pause(started) {
            Ok(()) => self.serve(&mut link, &mut look, &stop).await,
            failed => failed,
        };
        self.note_end(&ended);
        link_stop.cancel();
        self.drain(linking).await;
        ended
    }

    async fn serve(
        &mut self,
        link: &mut mpsc::Receiver<LinkEvent>,
        look: &mut tokio::time::Interval,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            if self.is_halted {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(LOOK_FOR_ROOM) => self.look_for_room()?,
                }
                continue;
            }
            let due = next_due(&self.timers, now());
            let wait = due.map_or(LONGEST_SLEEP, |(wait, ..)| wait.min(LONGEST_SLEEP));
            let done = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // Until the drain, nothing stops in order that others wait for.
                event = link.recv() => match event {
                    Some(event) => self.heard(event),
                    None => Err(panicked("the task that keeps the connection")),
                },
                outcome = self.outcomes.recv() => match outcome {
                    Some(outcome) => self.worked(outcome),
                    None => Err(WorkerPanicked.into()),
                },
                Some(news) = self.inbox.recv() => self.learnt(news),
                () = tokio::time::sleep(wait), if due.is_some() => self.wake_up(due),
                _ = look.tick() => self.look_around(),
                // Ended tasks are let go; each has told its news already.
                Some(ended) = self.tasks.join_next() => ended.map_err(|_| panicked("an errand")),
            };
            self.or_pause(done)?;
            let heard = self.hear_what_waited();
            self.or_pause(heard)?;
        }
    }

    fn wake_up(&mut self, due: Option<(Duration, Timestamp, Timer)>) -> anyhow::Result<()> {
        match due {
            Some((_, at, timer)) if participant::timer_is_due(at, now()) => {
                self.timers.remove(&timer);
                self.feed(Event::TimerFired(timer))
            }
            _ => Ok(()),
        }
    }

    /// Takes up what was under way when the agent stopped, and what was decided meanwhile: a policy may have changed.
    fn start(&mut self) -> anyhow::Result<()> {
        self.take_finished()?;
        self.feed(Event::Started)?;
        self.look_for_decisions(self.studies.list()?)?;
        // Now it is known what each study needs.
        Ok(self.prune_artifacts()?)
    }

    /// Takes the update that an earlier process finished and did not live to note, before that death is held against the training: what
    /// is in the outbox is not given up.
    fn take_finished(&mut self) -> anyhow::Result<()> {
        let finished = self.under_way().into_iter().find_map(|action| match action {
            Action::Train { attempt, .. } => Some((attempt, self.outbox.find(attempt)?)),
            _ => None,
        });
        let Some((attempt, Finished { update, steps })) = finished else { return Ok(()) };
        // Of no use any more, as in the worker.
        if let Err(error) = files::remove(&self.state.checkpoint()) {
            tracing::warn!("{:#}", anyhow::Error::from(error));
        }
        self.feed(Event::Trained { attempt, update, steps })
    }

    /// Journals an event, ticks, executes; and so on with what the actions gave at once.
    pub(super) fn feed(&mut self, event: Event) -> anyhow::Result<()> {
        self.todo.push_back(Todo::Take(event));
        self.go_on()
    }

    /// What is under way, to be done again.
    pub(super) fn under_way(&self) -> Vec<Action> {
        self.machine.outstanding(now())
    }

    /// Artifacts that must stay.
    pub(super) fn needed(&self) -> BTreeSet<ArtifactHash> {
        self.machine.needed()
    }

    /// Whether this site takes part in a study.
    pub(super) fn has_approved(&self, study: StudyDigest) -> bool {
        self.machine.has_approved(study)
    }

    /// Whether the round of `task` is what this site is at.
    pub(super) fn is_at(&self, task: &RoundTask) -> bool {
        self.machine.status().work == Some((task.study, task.round))
    }

    /// Executes actions of before once more.
    pub(super) fn go_on_with(&mut self, actions: Vec<Action>) -> anyhow::Result<()> {
        self.todo.extend(actions.into_iter().map(Todo::Execute));
        self.go_on()
    }

    /// Keeps the report on a model, at once or when the disk has room: all scans were scored for it.
    pub(super) fn keep(&mut self, model: ModelHash, report: StoredReport) -> anyhow::Result<()> {
        self.todo.push_back(Todo::Keep(model, report));
        self.go_on()
    }

    /// Does what is to be done, unless or until the disk is full: then all that is left stays, in its order.
    fn go_on(&mut self) -> anyhow::Result<()> {
        while !self.is_halted
            && let Some(next) = self.todo.pop_front()
        {
            let done = match &next {
                Todo::Take(event) => self.take(event),
                Todo::Execute(action) => self.execute(action).map(|event| {
                    self.todo.extend(event.map(Todo::Take));
                }),
                // Before what waits, as that is later: it could ask for the evaluation again.
                Todo::Keep(model, report) => self.keep_report(*model, report).map(|event| {
                    self.todo.push_front(Todo::Take(event));
                }),
            };
            match done {
                Err(error) if files::disk_trouble(&error).is_some() => {
                    self.todo.push_front(next);
                    self.pause(&error);
                }
                done => {
                    done?;
                    self.compact()?;
                }
            }
        }
        self.write_status()
    }

    fn take(&mut self, event: &Event) -> anyhow::Result<()> {
        let now = now();
        before_journal(event);
        // First: once the journal has the receipt, nobody asks again whether the update counts.
        if let Event::Receipt { attempt } = event {
            self.residuals.counted(*attempt)?;
        }
        self.journal.record(event, now)?;
        after_journal(event);
        if let Event::ModelStored { artifact } = event {
            self.note_last_model(*artifact);
        }
        let actions = self.machine.tick(event.clone(), now);
        // Before what waits: those are of later events.
        actions.into_iter().rev().for_each(|action| self.todo.push_front(Todo::Execute(action)));
        Ok(())
    }

    /// Shortens the journal once nothing of it is still to be done. A full disk is no reason to stop: it is only longer.
    fn compact(&mut self) -> anyhow::Result<()> {
        if !self.todo.is_empty() {
            return Ok(());
        }
        match self.journal.compact(&self.machine).map_err(anyhow::Error::from) {
            Err(error) if files::disk_trouble(&error).is_some() => {
                tracing::warn!("the journal stays long: {error:#}");
                Ok(())
            }
            compacted => compacted,
        }
    }

    fn learnt(&mut self, news: News) -> anyhow::Result<()> {
        match news {
            News::Done(errand, event) => {
                let given_up = self.errands.remove(&errand).is_some_and(|cancel| cancel.is_cancelled());
                self.waiting.end(errand);
                // The study ended with the very model that was fetched for its next round, which nobody trains any more.
                if let Errand::Fetch(artifact) = errand
                    && given_up
                    && event.is_none()
                    && self.last_models.contains(artifact)
                {
                    return self.go_on_with(vec![Action::FetchArtifact { artifact }]);
                }
                // Wanted again while it was being given up, it was not begun anew: the machine asks once more.
                let event = event.or(match errand {
                    Errand::Fetch(artifact) => Some(Event::FetchFailed { artifact }),
                    _ => None,
                });
                event.map_or(Ok(()), |event| self.feed(event))
            }
            News::Waits(held) => {
                let ended = self.errands.remove(&held.errand);
                // Given up meanwhile: nobody wants it to wait.
                match ended.is_some_and(|errand| errand.is_cancelled()) {
                    true => self.learnt(News::Done(held.errand, None)),
                    false => self.hold(*held),
                }
            }
            News::StudyHere(study) => {
                self.errands.remove(&Errand::Study(study));
                self.judge(study)?.map_or(Ok(()), |event| self.feed(event))?;
                if !self.unread.remove(&study) {
                    return Ok(());
                }
                let again = self.under_way();
                self.go_on_with(again)
            }
        }
    }

    fn look_around(&mut self) -> anyhow::Result<()> {
        let anew = self.decided_anew()?;
        self.look_for_decisions(anew)?;
        // Whether they can be written was said when they came.
        let _ = self.egress.write_owed();
        self.take_up_what_waited()
    }

    /// Studies about which something else was decided meanwhile; it may be the contrary of before. Nothing is read where nothing was
    /// written.
    fn decided_anew(&mut self) -> anyhow::Result<Vec<StudyDigest>> {
        let changed = self.studies.settled_at();
        if changed.is_some() && changed == self.looked_at {
            return Ok(Vec::new());
        }
        let mut anew = Vec::new();
        for study in self.machine.studies() {
            let decision = self.studies.decision(study)?;
            if self.decisions.get(&study) != Some(&decision) {
                anew.push(study);
            }
        }
        // Else they are looked at again: what follows of a decision may find no room.
        if anew.is_empty() {
            self.looked_at = changed;
        }
        Ok(anew)
    }

    fn look_for_decisions(&mut self, about: impl IntoIterator<Item = StudyDigest>) -> anyhow::Result<()> {
        for study in about {
            if let Some(event) = self.decided(study)? {
                self.feed(event)?;
            }
        }
        Ok(())
    }

    /// For `site-agent status`. A status that cannot be written stops nothing.
    pub(super) fn write_status(&mut self) -> anyhow::Result<()> {
        let machine = AgentStatus::of(&self.machine.status());
        let AgentStatus { problem, lane, paused, steps, no_part, .. } = self.status.clone();
        let last_models = self.last_models.studies();
        self.status = AgentStatus { problem, lane, paused, steps, no_part, last_models, ..machine };
        // What the worker or the journal waits for is ours to say first; the rest goes on meanwhile.
        let paused = self.status.paused.clone().or_else(|| self.waiting.for_room());
        let paused = paused.or_else(|| self.unkept.why());
        let status = AgentStatus { paused, waiting: self.waiting.for_allowance(), ..self.status.clone() };
        let is_news = |said: &AgentStatus| AgentStatus { at: said.at, ..status.clone() } != *said;
        if self.said.as_ref().is_none_or(is_news) {
            match files::show_json(&self.state.status(), &status) {
                Ok(()) => self.said = Some(status),
                Err(error) => tracing::warn!("status: {error:#}"),
            }
        }
        Ok(())
    }

    /// So that the next start knows that nobody's work ended this process. Only the worker's panic is held against the work.
    fn note_end(&mut self, ended: &anyhow::Result<()>) {
        if ended.as_ref().is_err_and(|error| error.is::<WorkerPanicked>()) {
            return;
        }
        if let Err(error) = self.take(&Event::Stopped) {
            tracing::warn!("the next start takes this end for a crash: {error:#}");
        }
    }

    /// Stops what is under way; the journal knows where to go on.
    async fn drain(mut self, mut linking: JoinSet<()>) {
        tracing::info!("stopping; what is under way goes on at the next start");
        if let Some((_, training)) = self.training.take() {
            training.suspend();
        }
        if let Some((_, evaluating)) = self.evaluating.take() {
            evaluating.cancel();
        }
        self.errands.values().for_each(CancellationToken::cancel);
        self.outcomes.close();
        let worker = self.worker;
        let finished = tokio::task::spawn_blocking(move || worker.finish());
        let tasks = &mut self.tasks;
        let all = async {
            while tasks.join_next().await.is_some() {}
            while linking.join_next().await.is_some() {}
            finished.await
        };
        match tokio::time::timeout(DRAIN, all).await {
            Ok(Ok(true)) => tracing::info!("stopped"),
            Ok(_) => tracing::error!("the worker panicked; its message is above"),
            Err(_) => tracing::warn!("the work under way did not stop within {} s", DRAIN.as_secs()),
        }
        if let Err(error) = self.egress.write_owed() {
            let error = anyhow::Error::from(error);
            tracing::error!("the last answers are not in the ledger: {error:#}");
        }
        let mut status = self.status;
        (status.connected, status.paused, status.waiting) = (false, None, None);
        status.problem = Some("the agent is stopped".to_owned());
        if let Err(error) = files::show_json(&self.state.status(), &status) {
            tracing::warn!("status: {error:#}");
        }
    }

    pub(super) fn report(&self, fact: &participant::Fact) {
        let delivered = match fact {
            participant::Fact::UpdateDropped { study, round, .. } => {
                self.hearing.is_delivered(*study, *round)
            }
            _ => false,
        };
        words::say(fact, delivered);
    }
}

/// Why the agent ends when its worker did.
#[derive(Debug, thiserror::Error)]
#[error("the worker panicked; its message is above; what is under way goes on at the next start")]
struct WorkerPanicked;

/// Why the agent ends when another part of it did. A service manager starts it again.
fn panicked(what: &str) -> anyhow::Error {
    anyhow::anyhow!("{what} panicked; its message is above; what is under way goes on at the next start")
}

/// The timer that is due next, when it was set to, and how long until then.
fn next_due(timers: &BTreeMap<Timer, Timestamp>, now: Timestamp) -> Option<(Duration, Timestamp, Timer)> {
    let wait = |at: Timestamp| {
        if participant::timer_is_due(at, now) { Duration::ZERO } else { at.since(now) }
    };
    timers.iter().map(|(&timer, &at)| (wait(at), at, timer)).min()
}

/// Where a test may end the process: something has come, and the journal does not know.
fn before_journal(event: &Event) {
    match event {
        Event::ModelStored { .. } => failpoint::pass("site.after-download"),
        Event::Receipt { .. } => failpoint::pass("site.after-receipt-before-journal"),
        Event::ReportReceipt { .. } => failpoint::pass("site.after-report-receipt"),
        _ => {}
    }
}

/// Where a test may end the process: the journal knows, and nothing was done.
fn after_journal(event: &Event) {
    match event {
        Event::Trained { .. } => failpoint::pass("site.after-journal-trained"),
        Event::Evaluated { .. } => failpoint::pass("site.after-journal-evaluated"),
        _ => {}
    }
}

/// The clock, read in one place.
pub(super) fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests;
