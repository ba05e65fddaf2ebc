//! The one way out of a hospital: policy, limits, ledger, transport, in that order.
//!
//! A message about the site or its data is an [`Outbound`] value; [`Egress`] is the only thing that can send one. It is
//! written to the ledger, on the disk, before its first byte is sent, and the coordinator's answer after; an answer that the
//! disk does not take is given all the same, and written before anything else leaves. What merely asks for something (a
//! study, a model) goes through `ask` and carries nothing.

pub mod bandwidth;
mod ledger;
mod limits;
mod outbound;
mod policy;
mod require;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use common::artifact::ArtifactManifest;
use common::ids::{AttemptId, Digest};
use common::wire::{EnrollReply, EnrollRequest, OfferedUpdate, Receipt, Refusal, Reply, Request};
use link::LinkError;
use link::quic::Connection;
use link::transfer::ChunkSource;

pub use ledger::{Entry, Ledger, LedgerError, LedgerEvent, Verified, verify};
use limits::{Limit, Spent};
pub use outbound::{Kind, Outbound, Summary};
pub use policy::{Approve, Policy, PolicyRefusal, Quota, StudyTerms, Verdict};
use transport::Pace;
pub(crate) use transport::{Carrier, ChunkCarrier, Line, ask};

use self::bandwidth::Bandwidth;

/// Why a message did not arrive, or is not known to have.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// This site's own policy keeps it here.
    #[error("kept here by the policy: {0}")]
    Withheld(#[source] PolicyRefusal),
    /// This site's own policy keeps it here today; on another day it may leave.
    #[error("kept here for today by the policy: {refusal}")]
    Waits {
        /// The rule.
        #[source]
        refusal: PolicyRefusal,
        /// What waits.
        message: Box<Summary>,
    },
    /// The ledger cannot be written, so nothing may leave.
    #[error("nothing may leave unrecorded")]
    Ledger(#[from] LedgerError),
    /// The coordinator said no.
    #[error("the coordinator refused: {0}")]
    Refused(Refusal),
    /// The link broke before an answer.
    #[error("{0}")]
    Link(#[source] LinkError),
}

/// How a site uses its line for what is large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Streams of one transfer, 1 to [`link::transfer::MAX_STREAMS`].
    pub streams: usize,
    /// The caps.
    pub bandwidth: Bandwidth,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { streams: 2, bandwidth: Bandwidth::default() }
    }
}

/// Policy, limits and ledger of one site. Shared by all its tasks.
#[derive(Debug)]
pub struct Egress {
    policy: Policy,
    books: Mutex<Books>,
    streams: usize,
    pace: Arc<Pace>,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    spent: Spent,
    /// What became of messages and is not in the ledger yet, in its order.
    owed: VecDeque<(jiff::Timestamp, Summary, LedgerEvent)>,
}

impl Books {
    /// Writes down what is owed.
    fn write_owed(&mut self) -> Result<(), LedgerError> {
        while let Some((at, message, event)) = self.owed.front() {
            self.ledger.append(*at, message, event.clone())?;
            self.owed.pop_front();
        }
        Ok(())
    }
}

impl Egress {
    /// Opens the ledger at `path` and reads from it what has left today.
    ///
    /// # Errors
    /// [`LedgerError`] when it was tampered with or cannot be written.
    pub fn open(policy: Policy, path: &Path) -> Result<Self, LedgerError> {
        let mut spent = Spent::default();
        let ledger = Ledger::open(path, |entry| spent.note(entry))?;
        let Traffic { streams, bandwidth } = Traffic::default();
        let pace = Arc::new(Pace::new(bandwidth));
        let books = Mutex::new(Books { ledger, spent, owed: VecDeque::new() });
        Ok(Self { policy, books, streams, pace })
    }

    /// With streams and caps of the site's own.
    #[must_use]
    pub fn with_traffic(self, traffic: Traffic) -> Self {
        Self { streams: traffic.streams, pace: Arc::new(Pace::new(traffic.bandwidth)), ..self }
    }

    /// What is large goes over `connection` this way.
    pub(crate) fn line(&self, connection: &Connection) -> Line {
        Line::new(connection.clone(), self.streams, self.pace.clone())
    }

    /// The site's policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a message that was kept here could leave at `now`. Writes nothing down.
    pub(crate) fn may_leave(&self, message: &Summary, now: jiff::Timestamp) -> bool {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.spent.permit(&self.policy, message, now).is_ok()
    }

    /// Whether an update of so many bytes may leave, on some day: known before it is trained.
    ///
    /// # Errors
    /// The rule of the policy that keeps it here.
    pub(crate) fn permit_update(&self, bytes: u64) -> Result<(), PolicyRefusal> {
        self.policy.permit_kind(Kind::Update)?;
        limits::permit_some_day(&self.policy, Kind::Update, bytes)
    }

    /// Writes down the answers that the disk did not take when they came.
    ///
    /// # Errors
    /// [`LedgerError`]: they are owed still, and are written before anything else leaves.
    pub(crate) fn write_owed(&self) -> Result<(), LedgerError> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).write_owed()
    }

    /// Sends a message and waits for the coordinator's answer. An [`Outbound::Update`] goes through
    /// [`Egress::send_update`] instead, an [`Outbound::Model`] through [`Egress::return_model`].
    ///
    /// # Errors
    /// [`EgressError`]; after [`EgressError::Withheld`] and [`EgressError::Waits`] not a byte has left.
    pub(crate) async fn send(&self, line: &impl Carrier, outbound: Outbound) -> Result<Reply, EgressError> {
        let summary = outbound.summary();
        self.release(&summary)?;
        let Some(request) = outbound.into_request() else {
            unreachable!("enrolment has its own door: `enrol`")
        };
        let reply = line.exchange(&request).await;
        self.settle(&summary, reply)
    }

    /// Offers an update, sends the chunks that the coordinator misses, and waits for its receipt. `reached` is called at each stage
    /// before what follows it: where it fails, nothing follows.
    ///
    /// # Errors
    /// [`EgressError`]. After a broken link the same call sends only what is still missing.
    pub(crate) async fn send_update<S: ChunkSource + Clone + Send + 'static>(
        &self,
        line: &impl ChunkCarrier,
        offer: OfferedUpdate,
        manifest: &ArtifactManifest,
        source: S,
        reached: impl Fn(Stage) -> io::Result<()> + Send + Sync,
    ) -> Result<Receipt, EgressError> {
        let outbound = Outbound::Update(offer.clone());
        let summary = outbound.summary();
        self.release(&summary)?;
        let receipt =
            deliver(line, offer, manifest, source, |stage| reached(stage).map_err(LinkError::Io)).await;
        match self.settle(&summary, receipt.map(Reply::Receipt))? {
            Reply::Receipt(receipt) => Ok(receipt),
            _ => Err(EgressError::Link(unexpected("a receipt"))),
        }
    }

    /// Returns a model that the coordinator's disk lost: it says what it misses of it, and gets that. Whether it was wanted still is all
    /// the same.
    ///
    /// # Errors
    /// [`EgressError`]; after [`EgressError::Withheld`] and [`EgressError::Waits`] not a byte has left.
    pub(crate) async fn return_model<S: ChunkSource + Clone + Send + 'static>(
        &self,
        line: &impl ChunkCarrier,
        attempt: AttemptId,
        manifest: &ArtifactManifest,
        source: S,
    ) -> Result<(), EgressError> {
        let outbound = Outbound::Model { attempt, manifest: manifest.into() };
        let summary = outbound.summary();
        self.release(&summary)?;
        let returned = hand_back(line, attempt, manifest, source).await;
        self.settle(&summary, returned.map(|()| Reply::Done)).map(drop)
    }

    /// Asks policy and limits, and writes down that the message is about to leave.
    fn release(&self, message: &Summary) -> Result<(), EgressError> {
        let now = jiff::Timestamp::now();
        // Poisoning means that a panic interrupted bookkeeping; the ledger's own file is consistent line by line.
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.write_owed()?;
        let permitted = self.policy.permit_kind(message.kind).map_err(Limit::Never);
        let permitted = permitted.and_then(|()| books.spent.permit(&self.policy, message, now));
        if let Err(limit) = permitted {
            let (Limit::Never(refusal) | Limit::Today(refusal) | Limit::TooSoon(refusal)) = &limit;
            // Progress is thinned out all the time, and nobody waits for it: that is no event.
            let is_event = message.kind != Kind::Progress || matches!(limit, Limit::Never(_));
            if is_event {
                books.ledger.append(now, message, LedgerEvent::Withheld { rule: refusal.to_string() })?;
            }
            return Err(match limit {
                Limit::Today(refusal) => EgressError::Waits { refusal, message: Box::new(*message) },
                Limit::Never(refusal) | Limit::TooSoon(refusal) => EgressError::Withheld(refusal),
            });
        }
        let entry = books.ledger.append(now, message, LedgerEvent::Sending)?;
        books.spent.note(&entry);
        Ok(())
    }

    /// Writes down what became of a message. It has left by then: the answer is given, also where the disk does not take its line.
    fn settle(&self, message: &Summary, reply: Result<Reply, LinkError>) -> Result<Reply, EgressError> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.owed.push_back((jiff::Timestamp::now(), *message, event_of(&reply)));
        if let Err(error) = books.write_owed() {
            let error = anyhow::Error::from(error);
            tracing::warn!(
                "an answer cannot be written down yet: {error:#}; nothing else leaves before it is"
            );
        }
        reply.map_err(EgressError::from)
    }
}

/// Enrols: public keys and the one-time token leave, recorded like everything else. There is no policy to ask yet; the
/// operator's command is the permission.
///
/// # Errors
/// [`EgressError`]; a refusal comes as [`EgressError::Refused`].
pub(crate) async fn enrol(
    line: &impl Carrier,
    ledger: &mut Ledger,
    request: EnrollRequest,
) -> Result<common::wire::Enrolled, EgressError> {
    let summary = Outbound::Enrolment(request.clone()).summary();
    ledger.append(jiff::Timestamp::now(), &summary, LedgerEvent::Sending)?;
    let reply = match line.enrol(&request).await {
        Ok(EnrollReply::Enrolled(enrolled)) => Ok(enrolled),
        Ok(EnrollReply::Refused(refusal)) => Err(LinkError::Refused(refusal)),
        Err(error) => Err(error),
    };
    let event = event_of(&reply.as_ref().map(|_| Reply::Done));
    ledger.append(jiff::Timestamp::now(), &summary, event)?;
    Ok(reply?)
}

/// How far an update has come that is being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It may leave, and no byte of it has.
    Leaving,
    /// The coordinator has said what it lacks.
    Wanted,
    /// The coordinator has all of it, and was not asked to count it.
    Delivered,
}

async fn deliver<S: ChunkSource + Clone + Send + 'static>(
    line: &impl ChunkCarrier,
    offer: OfferedUpdate,
    manifest: &ArtifactManifest,
    source: S,
    reached: impl Fn(Stage) -> Result<(), LinkError> + Send + Sync,
) -> Result<Receipt, LinkError> {
    let attempt = offer.attempt;
    reached(Stage::Leaving)?;
    let missing = match line.exchange(&Request::OfferUpdate(offer)).await? {
        Reply::Receipt(receipt) => {
            let receipt = checked(receipt, attempt)?;
            reached(Stage::Delivered)?;
            return Ok(receipt);
        }
        Reply::UpdateWanted { missing } => missing,
        _ => return Err(unexpected("what is missing of the update")),
    };
    reached(Stage::Wanted)?;
    if !missing.is_empty() {
        line.put_chunks(attempt, manifest, &missing, source).await?;
    }
    reached(Stage::Delivered)?;
    match line.exchange(&Request::CommitUpdate { attempt }).await? {
        Reply::Receipt(receipt) => checked(receipt, attempt),
        _ => Err(unexpected("a receipt")),
    }
}

async fn hand_back<S: ChunkSource + Clone + Send + 'static>(
    line: &impl ChunkCarrier,
    attempt: AttemptId,
    manifest: &ArtifactManifest,
    source: S,
) -> Result<(), LinkError> {
    let offered = Request::ReturnArtifact { attempt, manifest: manifest.into() };
    let missing = match line.exchange(&offered).await? {
        // It came from elsewhere meanwhile.
        Reply::Done => return Ok(()),
        Reply::UpdateWanted { missing } => missing,
        _ => return Err(unexpected("what is missing of the model")),
    };
    if !missing.is_empty() {
        line.put_chunks(attempt, manifest, &missing, source).await?;
    }
    match line.exchange(&Request::CommitUpdate { attempt }).await? {
        Reply::Done => Ok(()),
        _ => Err(unexpected("that the model is kept")),
    }
}

/// A receipt for another attempt proves nothing.
fn checked(receipt: Receipt, attempt: AttemptId) -> Result<Receipt, LinkError> {
    if receipt.attempt == attempt { Ok(receipt) } else { Err(unexpected("a receipt for this update")) }
}

fn unexpected(expected: &'static str) -> LinkError {
    LinkError::Unexpected { expected, got: "another reply" }
}

fn event_of<E: std::borrow::Borrow<LinkError>>(reply: &Result<Reply, E>) -> LedgerEvent {
    match reply {
        Ok(reply) => LedgerEvent::Received { receipt: receipt_of(reply) },
        Err(error) => match error.borrow() {
            LinkError::Refused(refusal) => LedgerEvent::Refused { code: refusal.code.code().to_owned() },
            _ => LedgerEvent::Unanswered,
        },
    }
}

fn receipt_of(reply: &Reply) -> Option<Digest> {
    match reply {
        Reply::Receipt(receipt) => Some(receipt.update.0),
        Reply::ReportReceipt { report } => Some(*report),
        _ => None,
    }
}

impl From<LinkError> for EgressError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Refused(refusal) => Self::Refused(refusal),
            other => Self::Link(other),
        }
    }
}
