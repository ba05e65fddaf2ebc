//! The coordinator's one loop: something happens, it is journalled, the machines say what to do, it is done.
//!
//! What to do is decided in [`common::round`] and [`common::evaluation`]; here nothing looks at a phase. Connections
//! ([`crate::network`]) and operator ([`crate::operator`]) talk to the loop through [`DriverHandle`]. An event that the
//! store does not take did not happen: a site is told to try again, and the coordinator's own results wait in a queue
//! (`retries`) until the `disk` takes them. What a disk took is looked for in `lost`, or told in `damage` and asked for in `asking`;
//! `spent` tidies up behind a round.

mod added;
mod aggregation;
mod asking;
mod attendance;
mod beside;
mod damage;
mod deeds;
mod disk;
mod facts;
mod handle;
mod lost;
mod manifests;
mod operate;
mod peers;
mod plan;
mod rehearse;
mod retries;
mod seal;
mod seats;
mod spent;
mod standing;
mod study_run;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::evaluation;
use common::ids::{ArtifactHash, StudyDigest};
use common::round;
use common::time::Timestamp;
use common::wire::{GoodbyeCode, Refusal, RefusalCode};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::aggregation::position;
use self::damage::Damage;
pub(crate) use self::disk::{RETRY, space_in_words};
pub use self::handle::DriverHandle;
use self::handle::{Claim, Claimant, Command, refuse_report, refuse_update};
pub(crate) use self::manifests::{check_manifest, counts, read_manifest};
use self::peers::Peers;
pub(crate) use self::peers::{NOTICES, Peer};
pub(crate) use self::plan::decline;
pub(crate) use self::rehearse::{Rehearsal, rehearse};
use self::retries::Retries;
pub(crate) use self::seats::SEATS;
pub use self::seats::Seats;
use self::spent::Spent;
use self::study_run::{Happening, StudyRun, TickError};
use crate::clock::SteadyClock;
use crate::operator::UnreadableStudy;
use crate::pki::Authority;
use crate::progress::{Line, Progress};
use crate::store::{Failing, Store, StoreError};

/// Longest time between two looks at the clocks.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a site is told that has something for a study in `unreadable`.
const UNREADABLE_TO_SITES: &str =
    "the coordinator cannot read this study now, and its operator knows: try again later";

/// What the driver needs of the rest.
pub struct Parts {
    /// The state folder, locked.
    pub store: Store,
    /// The certificates.
    pub authority: Arc<Authority>,
    /// What invites name; `None` when no address is configured and no server runs.
    pub address: Option<String>,
    /// Where lines for the operator go.
    pub progress: Progress,
    /// Cancelled when the process is to stop.
    pub stop: CancellationToken,
}

/// Owns all that changes.
pub struct Driver {
    store: Store,
    authority: Arc<Authority>,
    address: Option<String>,
    progress: Progress,
    stop: CancellationToken,
    studies: BTreeMap<StudyDigest, StudyRun>,
    /// Those that cannot be rebuilt: they stand still, and all that is kept of them stays.
    unreadable: BTreeMap<StudyDigest, UnreadableStudy>,
    peers: Peers,
    seats: Seats,
    handle: DriverHandle,
    inbox: mpsc::Receiver<Command>,
    /// Sites that wait for a receipt.
    claims: BTreeMap<Claim, Claimant>,
    /// Our own results that the store did not take yet.
    retries: Retries,
    /// Artifacts that cannot be served.
    damaged: BTreeMap<ArtifactHash, Damage>,
    /// How the store fails; `None` while it works.
    trouble: Option<Failing>,
    /// When the disk is tried again, while it fails.
    try_at: Timestamp,
    /// What deadlines go by.
    clock: SteadyClock,
    work: TaskTracker,
    /// Whose turn it is to work for the operator beside the loop.
    beside: Arc<Mutex<()>>,
    /// The last aggregation of each study. Cancelled where another begins, the study is aborted, or the driver is dropped: it ends
    /// soon, and what it comes to is dropped.
    jobs: BTreeMap<StudyDigest, CancellationToken>,
    /// Files that can go.
    spent: Spent,
    /// Whether a server runs on this.
    serving: bool,
}

impl Driver {
    /// Rebuilds all studies from the store; one that cannot be read keeps no other from going on. Nothing is asked of anybody
    /// until [`Driver::run`].
    ///
    /// # Errors
    /// The store.
    pub async fn open(parts: Parts) -> Result<Self, StoreError> {
        let (handle, inbox) = DriverHandle::channel();
        let (mut studies, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for stored in parts.store.studies().await? {
            let (digest, name) = (stored.digest, stored.name.clone());
            match StudyRun::restore(&parts.store, stored).await {
                Ok(run) => drop(studies.insert(run.digest(), run)),
                Err(error @ StoreError::Corrupt { .. }) => {
                    let why = error.to_string();
                    unreadable.insert(digest, UnreadableStudy { name, digest: digest.to_string(), why });
                }
                Err(error) => return Err(error),
            }
        }
        let last = studies.values().map(StudyRun::last_time).max().unwrap_or_default();
        Ok(Self {
            store: parts.store,
            authority: parts.authority,
            address: parts.address,
            progress: parts.progress,
            stop: parts.stop,
            studies,
            unreadable,
            peers: Peers::default(),
            seats: Seats::default(),
            handle,
            inbox,
            claims: BTreeMap::new(),
            retries: Retries::default(),
            damaged: BTreeMap::new(),
            trouble: None,
            try_at: Timestamp::default(),
            clock: SteadyClock::starting_after(last),
            work: TaskTracker::new(),
            beside: Arc::default(),
            jobs: BTreeMap::new(),
            spent: Spent::default(),
            serving: false,
        })
    }

    /// To talk to it.
    pub fn handle(&self) -> DriverHandle {
        self.handle.clone()
    }

    /// Where every connection of a site is entered.
    pub fn seats(&self) -> Seats {
        self.seats.clone()
    }

    /// Runs until told to stop; then ends all connections and waits for the work under way.
    pub async fn run(mut self) {
        self.serving = true;
        let mut failing = self.store.health().listen();
        self.tell_unreadable();
        self.miss_updates().await;
        self.look_for_artifacts().await;
        self.sweep_spool().await;
        for study in self.studies.keys().copied().collect::<Vec<_>>() {
            self.take(study, Happening::Round(round::Event::Restarted)).await;
            self.take(study, Happening::Evaluation(evaluation::Event::Restarted)).await;
        }
        self.expect_sites().await;
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            self.look_at_the_clocks();
            let wait = self.next_wake_up();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => self.wake_up().await,
                // The store that we hold is what tells: it cannot be gone.
                Ok(()) = failing.changed() => {
                    let heard = failing.borrow_and_update().clone();
                    self.hear_of_fault(heard);
                }
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
            }
        }
        self.drain().await;
    }

    fn tell_unreadable(&self) {
        for UnreadableStudy { name, why, .. } in self.unreadable.values() {
            tracing::error!(study = %name, %why, "a study cannot be read");
            let detail = format!("cannot be read, and stands still: {why}");
            self.progress.say(&Line::Study { study: name.clone(), what: "unreadable".to_owned(), detail });
        }
    }

    async fn drain(&mut self) {
        self.peers.close_all(GoodbyeCode::Stopping);
        self.count_traffic();
        self.work.close();
        let (work, mut finished) = (self.work.clone(), Vec::new());
        // What work ends with is journalled, so that it need not be done again; the inbox is emptied meanwhile, or
        // work would wait for room in it.
        let mut waiting = std::pin::pin!(work.wait());
        loop {
            tokio::select! {
                () = &mut waiting => break,
                command = self.inbox.recv() => finished.extend(command),
            }
        }
        finished.extend(std::iter::from_fn(|| self.inbox.try_recv().ok()));
        let mut results = Vec::new();
        for command in finished {
            match command {
                Command::Happened { study, happening } => results.push((study, happening)),
                Command::Aggregated { study, job, events, .. } if !job.is_cancelled() => {
                    results.extend(events.into_iter().map(|event| (study, Happening::Round(event))));
                }
                _ => {}
            }
        }
        // What waited for the disk comes first, as it happened first.
        let waited = std::mem::take(&mut self.retries);
        for (study, happening) in waited.into_iter().chain(results) {
            self.take(study, happening).await;
        }
    }

    fn next_wake_up(&self) -> Duration {
        let now = self.clock.now();
        let timers = self.studies.values().flat_map(|run| run.timers.values());
        let asks = self.damaged.values().map(|damage| damage.asking.next_at());
        let soonest = timers.copied().chain(asks).min();
        let soonest = soonest.map_or(LONGEST_WAIT, |at| at.since(now)).min(LONGEST_WAIT);
        match self.trouble {
            // What is due waits for the disk too.
            Some(_) => self.try_at.since(now),
            None => soonest,
        }
    }

    fn look_at_the_clocks(&mut self) {
        if let Some(step) = self.clock.look() {
            self.progress.say(&Line::ClockStepped { seconds: step.seconds(), detail: step.to_string() });
        }
    }

    async fn wake_up(&mut self) {
        if !self.disk_takes_files().await {
            return;
        }
        let now = self.clock.now();
        let mut due = Vec::new();
        for (study, run) in &mut self.studies {
            due.extend(run.timers.extract_if(.., |_, at| *at <= now).map(|(key, _)| (*study, key.fired())));
        }
        // One that fails again stands first, and all after it queue up behind.
        let retries = std::mem::take(&mut self.retries);
        for (study, happening) in retries.into_iter().chain(due) {
            self.take(study, happening).await;
        }
        self.end_trouble().await;
        self.ask_for_lost(None).await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Connected { site, peer, reply } => {
                let id = self.connect(site, peer).await;
                let _ = reply.send(id);
            }
            Command::Disconnected { site, id } => self.disconnect(site, id).await,
            Command::Answered { study, site } => self.greet(study, site).await,
            Command::SitesChanged(line) => {
                self.progress.say(&line);
                self.expect_sites().await;
            }
            Command::Happened { study, happening } => self.take(study, happening).await,
            Command::Aggregated { study, job, lines, events } if !job.is_cancelled() => {
                lines.iter().for_each(|line| self.progress.say(line));
                for event in events {
                    self.take(study, Happening::Round(event)).await;
                }
            }
            Command::Aggregated { study, .. } => {
                tracing::debug!(%study, "dropped what a cancelled aggregation came to");
            }
            Command::MayFetch { site, artifact, reply } => {
                let _ = reply.send(self.may_fetch(&site, &artifact));
            }
            Command::ExpectProgress { study, site, round, steps, reply } => {
                let run = self.studies.get(&study);
                let _ = reply.send(run.is_some_and(|run| run.rounds.expects_progress(&site, round, steps)));
            }
            Command::ExpectUpdate { site, offer, reply } => {
                let answer = self
                    .study_of_site(&offer.study)
                    .and_then(|run| run.rounds.expect_update(&site, &offer).map_err(|e| refuse_update(&e)));
                let _ = reply.send(answer);
            }
            Command::UpdateStored { site, offer, bytes, reply } => {
                let claim = Claim::Update(site.clone(), offer.attempt);
                let study = offer.study;
                let happening = Happening::Round(round::Event::UpdateStored { site, offer });
                self.take_claim(study, happening, claim, Claimant { reply, bytes }).await;
            }
            Command::ExpectReport { study, site, model, report, reply } => {
                let answer = self.study_of_site(&study).and_then(|run| {
                    run.evaluation.expect_report(&site, &model, &report).map_err(|e| refuse_report(&e))
                });
                let _ = reply.send(answer);
            }
            Command::ReportStored { study, site, model, report, reply } => {
                let claim = Claim::Report(site.clone(), model);
                let happening =
                    Happening::Evaluation(evaluation::Event::ReportStored { site, model, report });
                self.take_claim(study, happening, claim, Claimant { reply, bytes: 0 }).await;
            }
            Command::Operate { request, reply } => self.begin(request, reply).await,
            Command::Worked { outcome, reply } => {
                let answer = self.complete(outcome).await;
                let _ = reply.send(answer);
            }
            Command::IsPublished { artifact, reply } => {
                let _ = reply.send(self.use_of(&artifact).is_some());
            }
            Command::ArtifactDamaged { artifact, words } => self.note_damage(artifact, &words),
            Command::ArtifactWhole { artifact } => self.note_whole(&artifact),
            Command::WantsArtifact { site, artifact, reply } => {
                let _ = reply.send(self.wants_artifact(&site, &artifact));
            }
            Command::ArtifactReturned { site, artifact } => self.artifact_returned(&site, &artifact).await,
            Command::Say(line) if self.is_echo(&line) => tracing::debug!(%line, "said before"),
            Command::Say(line) => self.progress.say(&line),
        }
    }

    /// The study that a site has something for.
    ///
    /// # Errors
    /// There is none, and the site drops what it has; or it cannot be read now, and the site keeps that and asks again.
    fn study_of_site(&self, study: &StudyDigest) -> Result<&StudyRun, Refusal> {
        self.studies.get(study).ok_or_else(|| match self.unreadable.contains_key(study) {
            true => Refusal::new(RefusalCode::Internal, UNREADABLE_TO_SITES),
            false => Refusal::new(RefusalCode::UnknownStudy, "the coordinator has no such study"),
        })
    }

    /// Takes an event and does what follows. One that the store does not take waits, if it is our own, and so does what
    /// comes after it: machines hear of things in the order in which they happened.
    async fn take(&mut self, study: StudyDigest, happening: Happening) {
        if !self.retries.is_empty() && is_ours(&happening) {
            return self.retries.push_back((study, happening));
        }
        match self.try_take(study, happening.clone()).await {
            Ok(()) => {}
            Err(TickError::Store(error)) => {
                self.note_fault(&error);
                if is_ours(&happening) {
                    self.retries.push_back((study, happening));
                }
            }
            Err(TickError::Command(error)) => tracing::warn!(%study, %error, "a command changed nothing"),
        }
    }

    async fn try_take(&mut self, study: StudyDigest, happening: Happening) -> Result<(), TickError> {
        let Some(run) = self.studies.get_mut(&study) else { return Ok(()) };
        let deeds = run.tick(&self.store, happening, self.clock.now()).await?;
        self.execute(study, deeds).await;
        Ok(())
    }

    /// As [`Driver::take`], with a site that waits for what comes of it.
    async fn take_claim(
        &mut self,
        study: StudyDigest,
        happening: Happening,
        claim: Claim,
        claimant: Claimant,
    ) {
        self.claims.insert(claim.clone(), claimant);
        // Behind what waits for the disk nothing is counted.
        if self.retries.is_empty()
            && let Err(TickError::Store(error)) = self.try_take(study, happening).await
        {
            self.note_fault(&error);
        }
        // Still there: the machine did not answer, or never heard of it.
        let refusal = self.refusal_of_trouble();
        self.settle(&claim, Err(refusal));
    }

    fn settle(&mut self, claim: &Claim, answer: Result<(), Refusal>) -> Option<u64> {
        let claimant = self.claims.remove(claim)?;
        let _ = claimant.reply.send(answer);
        Some(claimant.bytes)
    }
}

/// After `drain` no aggregation is under way. Dropped without it, as where the state folder was taken away, the process would
/// wait for one, for minutes perhaps, and hold the lock meanwhile; what it makes has no place any more.
impl Drop for Driver {
    fn drop(&mut self) {
        self.jobs.values().for_each(CancellationToken::cancel);
    }
}

/// Whether nobody else would tell us again: sites repeat themselves, our own results do not.
fn is_ours(happening: &Happening) -> bool {
    match happening {
        Happening::Round(event) => !matches!(
            event,
            round::Event::UpdateStored { .. }
                | round::Event::Start
                | round::Event::Pause
                | round::Event::PauseFor { .. }
                | round::Event::Resume
                | round::Event::Abort
        ),
        Happening::Evaluation(event) => !matches!(event, evaluation::Event::ReportStored { .. }),
    }
}
