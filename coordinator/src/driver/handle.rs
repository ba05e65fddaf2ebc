//! How the rest of the process talks to the driver: typed questions over one bounded channel.

use common::evaluation::{self, ReportExpectation};
use common::ids::{ArtifactHash, AttemptId, Digest, ModelHash, RoundId, SiteId, StudyDigest};
use common::round::{self, UpdateExpectation, UpdateOffer};
use common::wire::{Refusal, RefusalCode};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::beside::Outcome;
use super::operate::Failure;
use super::peers::Peer;
use super::study_run::Happening;
use crate::operator;
use crate::progress::Line;

/// Commands that may wait; who sends more waits with them.
const COMMANDS: usize = 256;

/// What the driver is asked. Those with a `reply` are answered once it is durable.
pub(super) enum Command {
    Connected {
        site: SiteId,
        peer: Peer,
        reply: oneshot::Sender<u64>,
    },
    Disconnected {
        site: SiteId,
        id: u64,
    },
    /// A site answered a study: it may be ready now.
    Answered {
        study: StudyDigest,
        site: SiteId,
    },
    /// Sites were enrolled.
    SitesChanged(Line),
    Happened {
        study: StudyDigest,
        happening: Happening,
    },
    /// An aggregation ended. One that was cancelled does not count.
    Aggregated {
        study: StudyDigest,
        job: CancellationToken,
        lines: Vec<Line>,
        events: Vec<round::Event>,
    },
    MayFetch {
        site: SiteId,
        artifact: ArtifactHash,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    ExpectProgress {
        study: StudyDigest,
        site: SiteId,
        round: RoundId,
        steps: u32,
        reply: oneshot::Sender<bool>,
    },
    ExpectUpdate {
        site: SiteId,
        offer: UpdateOffer,
        reply: oneshot::Sender<Result<UpdateExpectation, Refusal>>,
    },
    UpdateStored {
        site: SiteId,
        offer: UpdateOffer,
        bytes: u64,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    ExpectReport {
        study: StudyDigest,
        site: SiteId,
        model: ModelHash,
        report: Digest,
        reply: oneshot::Sender<Result<ReportExpectation, Refusal>>,
    },
    ReportStored {
        study: StudyDigest,
        site: SiteId,
        model: ModelHash,
        report: Digest,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    Operate {
        request: operator::Request,
        reply: oneshot::Sender<operator::Reply>,
    },
    /// Work beside the loop is over, which the operator asked for.
    Worked {
        outcome: Result<Outcome, Failure>,
        reply: oneshot::Sender<operator::Reply>,
    },
    /// Whether a study has published an artifact, as far as sites may still ask for it.
    IsPublished {
        artifact: ArtifactHash,
        reply: oneshot::Sender<bool>,
    },
    /// A published artifact cannot be served.
    ArtifactDamaged {
        artifact: ArtifactHash,
        words: String,
    },
    /// One that could not be was.
    ArtifactWhole {
        artifact: ArtifactHash,
    },
    /// Whether an artifact that a site would return is one that the disk lost.
    WantsArtifact {
        site: SiteId,
        artifact: ArtifactHash,
        reply: oneshot::Sender<bool>,
    },
    /// A site returned one.
    ArtifactReturned {
        site: SiteId,
        artifact: ArtifactHash,
    },
    Say(Line),
}

/// Talks to the driver. Cheap to clone.
#[derive(Clone)]
pub struct DriverHandle {
    commands: mpsc::Sender<Command>,
}

impl DriverHandle {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Command>) {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        (Self { commands }, inbox)
    }

    /// A site is connected; the number names this connection.
    pub(crate) async fn connected(&self, site: SiteId, peer: Peer) -> Result<u64, Refusal> {
        self.ask(|reply| Command::Connected { site, peer, reply }).await
    }

    /// Its connection ended.
    pub(crate) async fn disconnected(&self, site: SiteId, id: u64) {
        self.tell(Command::Disconnected { site, id }).await;
    }

    /// A site approved a study or registered its manifest; the store has it.
    pub(crate) async fn answered(&self, study: StudyDigest, site: SiteId) {
        self.tell(Command::Answered { study, site }).await;
    }

    /// A site was enrolled; the store has it.
    pub(crate) async fn sites_changed(&self, line: Line) {
        self.tell(Command::SitesChanged(line)).await;
    }

    /// A site's word on a round.
    pub(crate) async fn round_event(&self, study: StudyDigest, event: round::Event) {
        self.tell(Command::Happened { study, happening: Happening::Round(event) }).await;
    }

    /// What came of an aggregation, all at once: the first of its events may begin the next.
    pub(super) async fn aggregated(
        &self,
        study: StudyDigest,
        job: CancellationToken,
        lines: Vec<Line>,
        events: Vec<round::Event>,
    ) {
        self.tell(Command::Aggregated { study, job, lines, events }).await;
    }

    /// Whether an evaluator may fetch an artifact.
    pub(crate) async fn may_fetch(&self, site: SiteId, artifact: ArtifactHash) -> Result<(), Refusal> {
        self.ask(|reply| Command::MayFetch { site, artifact, reply }).await?
    }

    /// Whether the site may be training for a round of so many steps.
    pub(crate) async fn expect_progress(
        &self,
        study: StudyDigest,
        site: SiteId,
        round: RoundId,
        steps: u32,
    ) -> Result<bool, Refusal> {
        self.ask(|reply| Command::ExpectProgress { study, site, round, steps, reply }).await
    }

    /// Whether the update is wanted.
    pub(crate) async fn expect_update(
        &self,
        site: SiteId,
        offer: UpdateOffer,
    ) -> Result<UpdateExpectation, Refusal> {
        self.ask(|reply| Command::ExpectUpdate { site, offer, reply }).await?
    }

    /// The update is verified and its files are durable: count it.
    pub(crate) async fn update_stored(
        &self,
        site: SiteId,
        offer: UpdateOffer,
        bytes: u64,
    ) -> Result<(), Refusal> {
        self.ask(|reply| Command::UpdateStored { site, offer, bytes, reply }).await?
    }

    /// Whether the report is wanted.
    pub(crate) async fn expect_report(
        &self,
        study: StudyDigest,
        site: SiteId,
        model: ModelHash,
        report: Digest,
    ) -> Result<ReportExpectation, Refusal> {
        self.ask(|reply| Command::ExpectReport { study, site, model, report, reply }).await?
    }

    /// The report is verified and durable: count it.
    pub(crate) async fn report_stored(
        &self,
        study: StudyDigest,
        site: SiteId,
        model: ModelHash,
        report: Digest,
    ) -> Result<(), Refusal> {
        self.ask(|reply| Command::ReportStored { study, site, model, report, reply }).await?
    }

    /// Does what the operator asks.
    pub async fn operate(&self, request: operator::Request) -> operator::Reply {
        match self.ask(|reply| Command::Operate { request, reply }).await {
            Ok(reply) => reply,
            Err(_) => operator::Reply::failed("the coordinator is stopping", None),
        }
    }

    /// What work beside the loop has come to, which the operator asked for.
    pub(super) async fn worked(
        &self,
        outcome: Result<Outcome, Failure>,
        reply: oneshot::Sender<operator::Reply>,
    ) {
        self.tell(Command::Worked { outcome, reply }).await;
    }

    /// Whether a study has published an artifact, as far as sites may still ask for it.
    pub(crate) async fn is_published(&self, artifact: ArtifactHash) -> Result<bool, Refusal> {
        self.ask(|reply| Command::IsPublished { artifact, reply }).await
    }

    /// A published artifact is lost or corrupt on the disk.
    pub(crate) async fn artifact_damaged(&self, artifact: ArtifactHash, words: String) {
        self.tell(Command::ArtifactDamaged { artifact, words }).await;
    }

    /// It was served whole.
    pub(crate) async fn artifact_whole(&self, artifact: ArtifactHash) {
        self.tell(Command::ArtifactWhole { artifact }).await;
    }

    /// Whether an artifact that a site would return is one that the disk lost.
    pub(crate) async fn wants_artifact(&self, site: SiteId, artifact: ArtifactHash) -> Result<bool, Refusal> {
        self.ask(|reply| Command::WantsArtifact { site, artifact, reply }).await
    }

    /// A site returned it, every byte; it is durable.
    pub(crate) async fn artifact_returned(&self, site: SiteId, artifact: ArtifactHash) {
        self.tell(Command::ArtifactReturned { site, artifact }).await;
    }

    /// Shows the operator something.
    pub(crate) async fn say(&self, line: Line) {
        self.tell(Command::Say(line)).await;
    }

    /// A driver that is gone is stopping: nobody is left to tell.
    async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Refusal> {
        let stopping = || Refusal::new(RefusalCode::TooBusy, "the coordinator is stopping");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

/// A machine's rejection as the site is told it.
pub(super) fn refuse_update(rejection: &round::Rejection) -> Refusal {
    refusal(rejection.code(), rejection)
}

/// As [`refuse_update`], of reports.
pub(super) fn refuse_report(rejection: &evaluation::Rejection) -> Refusal {
    refusal(rejection.code(), rejection)
}

fn refusal(code: &str, words: &impl std::fmt::Display) -> Refusal {
    let code = RefusalCode::from_code(code).unwrap_or(RefusalCode::BadRequest);
    Refusal::new(code, words.to_string())
}

/// Which waiting site an acknowledgement is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    Update(SiteId, AttemptId),
    Report(SiteId, ModelHash),
}

/// A site that waits for its receipt.
pub(super) struct Claimant {
    pub(super) reply: oneshot::Sender<Result<(), Refusal>>,
    /// Size of the update.
    pub(super) bytes: u64,
}
