//! What a site asks: the first frame of each stream.

use bincode::{Decode, Encode};

use super::chunk::Manifest;
use super::codec::{Message, SizeClass};
use super::words::Words;
use crate::ids::{ArtifactHash, AttemptId, ModelHash, RoundId, StudyDigest};

/// Opens an exchange. Append-only: the order is part of the wire format.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Request {
    /// Opens the watch stream, once per connection: [`Reply::Welcome`](super::Reply::Welcome) or `Refused`; after
    /// Welcome, [`Notice`](super::Notice) frames from the coordinator for the life of the connection.
    Hello(Hello),
    /// Asks for a study document: `Study`.
    GetStudy {
        /// Which.
        study: StudyDigest,
    },
    /// Tells what the site has annotated, signed: `Done`.
    RegisterManifest {
        /// For which study.
        study: StudyDigest,
        /// A label manifest.
        manifest: SignedBytes,
    },
    /// Says that the site's operator (or policy) approved the study: `Done`.
    ApproveStudy {
        /// Which.
        study: StudyDigest,
    },
    /// Asks for an artifact's manifest: `Artifact`.
    GetArtifact {
        /// Which.
        artifact: ArtifactHash,
    },
    /// Asks for chunks: for each, in the order asked, `Chunk` and its raw bytes; then `Done`.
    GetChunks {
        /// Of which artifact.
        artifact: ArtifactHash,
        /// Which, ascending.
        indices: Vec<u32>,
    },
    /// Takes part in a round: `Done`.
    AcceptRound {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// The global model that it starts from.
        base: ModelHash,
    },
    /// Does not take part in a round: `Done`.
    DeclineRound {
        /// The study.
        study: StudyDigest,
        /// The round; 0 when no round was asked about.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// Says how far local training is: `Done`.
    Progress {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// Optimiser steps done.
        step: u32,
        /// Optimiser steps of the round.
        steps: u32,
        /// Mean training loss since the last report; not a number when there is none.
        loss: f32,
    },
    /// Offers an update: `UpdateWanted`, or `Receipt` when the coordinator has it.
    OfferUpdate(OfferedUpdate),
    /// Sends chunks of an offered update, or of an artifact that is returned: `count` times a [`ChunkHeader`](super::ChunkHeader) frame and its raw bytes;
    /// then `Stored`.
    PutChunks {
        /// Of which offered update.
        attempt: AttemptId,
        /// How many chunks follow.
        count: u32,
    },
    /// Says that all chunks are sent: `Receipt`, or `Done` of an artifact.
    CommitUpdate {
        /// Which offered update.
        attempt: AttemptId,
    },
    /// Sends an evaluation report, signed: `ReportReceipt`.
    PutReport {
        /// Of which study.
        study: StudyDigest,
        /// The report.
        report: SignedBytes,
    },
    /// Returns an artifact that the coordinator's disk lost and that it asked for
    /// ([`Notice::ArtifactWanted`](super::Notice::ArtifactWanted)): `UpdateWanted`, or `Done` when it has it again; then
    /// chunks and commit as of an update, the latter answered with `Done`.
    ReturnArtifact {
        /// The key for its chunks and its commit, another than that of any update.
        attempt: AttemptId,
        /// The artifact's manifest, whose hash is its name.
        manifest: Manifest,
    },
}

impl Message for Request {
    const SIZE: SizeClass = SizeClass::Document;
    const NAME: &'static str = "request";
}

impl Request {
    /// Short stable name for logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::GetStudy { .. } => "get-study",
            Self::RegisterManifest { .. } => "register-manifest",
            Self::ApproveStudy { .. } => "approve-study",
            Self::GetArtifact { .. } => "get-artifact",
            Self::GetChunks { .. } => "get-chunks",
            Self::AcceptRound { .. } => "accept-round",
            Self::DeclineRound { .. } => "decline-round",
            Self::Progress { .. } => "progress",
            Self::OfferUpdate(_) => "offer-update",
            Self::PutChunks { .. } => "put-chunks",
            Self::CommitUpdate { .. } => "commit-update",
            Self::PutReport { .. } => "put-report",
            Self::ReturnArtifact { .. } => "return-artifact",
        }
    }
}

/// Who is calling and what it speaks. The site's name is not here: it is in its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Lowest minor version that the site speaks.
    pub minor_min: u16,
    /// Highest minor version that the site speaks.
    pub minor_max: u16,
    /// Version of the site's program.
    pub agent_version: Words,
    /// Optional abilities, by name; unknown names are ignored.
    pub capabilities: Vec<Words>,
}

impl Hello {
    /// The ability to hear [`Notice::ArtifactWanted`](super::Notice::ArtifactWanted), of a site whose policy lets models leave.
    pub const RETURNS_ARTIFACTS: &str = "return-artifacts";

    /// Whether the site has an ability.
    pub fn can(&self, ability: &str) -> bool {
        self.capabilities.iter().any(|capability| capability.as_str() == ability)
    }
}

/// A document and the Ed25519 signature over its exact bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedBytes {
    /// The document.
    pub bytes: Vec<u8>,
    /// Made with the site's signing key.
    pub signature: [u8; 64],
}

/// An update as offered; [`crate::update::UpdateOffer`] is what it becomes when its manifest is one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OfferedUpdate {
    /// The study.
    pub study: StudyDigest,
    /// The round.
    pub round: RoundId,
    /// The global model that the delta starts from.
    pub base: ModelHash,
    /// Idempotency key.
    pub attempt: AttemptId,
    /// Optimiser steps done.
    pub steps: u32,
    /// The delta's tensors and chunk hashes.
    pub manifest: Manifest,
}

/// Why a site does not take part in a round. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum DeclineReason {
    /// Its operator has not approved the study.
    NotApproved,
    /// Its policy refuses something in the study, or its operator has refused it.
    Policy,
    /// Training failed more than once; its operator finds the reason in the site's log.
    TrainingFailed,
    /// It evaluates and never trains.
    Evaluator,
    /// No training scan of it annotates a class of the study. Said as soon as it knows, of round 0: it means all rounds
    /// until it registers a manifest.
    NoData,
    /// It cannot use its training scans; its operator finds the reason in the site's log. Said as `NoData` is.
    DataError,
    /// It is still at the round before, whose update counts late, or at a round of another study. It takes part after all if it
    /// is done in time.
    Busy,
}

impl DeclineReason {
    /// Short stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotApproved => "not-approved",
            Self::Policy => "policy",
            Self::TrainingFailed => "training-failed",
            Self::Evaluator => "evaluator",
            Self::NoData => "no-data",
            Self::DataError => "data-error",
            Self::Busy => "busy",
        }
    }
}
