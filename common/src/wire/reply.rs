//! What the coordinator answers on the stream of a request.

use bincode::{Decode, Encode};

use super::chunk::{ChunkHeader, Manifest};
use super::codec::{Message, SizeClass};
use super::refusal::Refusal;
use super::words::Words;
use crate::ids::{ArtifactHash, AttemptId, Digest, Role, RoundId, SiteId, StudyDigest};

/// Answers a [`Request`](super::Request). Append-only: the order is part of the wire format.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Reply {
    /// No, and why. May stand in place of any other reply.
    Refused(Refusal),
    /// Done; nothing to tell.
    Done,
    /// The site is connected.
    Welcome(Welcome),
    /// A study document, whose digest is the one asked for.
    Study {
        /// Its exact bytes.
        bytes: Vec<u8>,
    },
    /// An artifact's manifest, whose hash is the one asked for.
    Artifact {
        /// The manifest.
        manifest: Manifest,
    },
    /// One chunk; its raw bytes follow.
    Chunk(ChunkHeader),
    /// The offer stands; these chunks are missing, ascending.
    UpdateWanted {
        /// Their indices.
        missing: Vec<u32>,
    },
    /// The chunks sent are kept.
    Stored {
        /// How many.
        chunks: u32,
    },
    /// The update is verified, durable, and will be counted.
    Receipt(Receipt),
    /// The evaluation report is verified and durable.
    ReportReceipt {
        /// Digest of the report's exact bytes.
        report: Digest,
    },
}

impl Message for Reply {
    const SIZE: SizeClass = SizeClass::Document;
    const NAME: &'static str = "reply";
}

/// Who the coordinator takes the site for, and the minor version to speak.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The site's name, from its certificate.
    pub site: SiteId,
    /// The site's role, from its certificate.
    pub role: Role,
    /// The consortium's name.
    pub consortium: Words,
    /// Minor version of the protocol.
    pub minor: u16,
}

/// Proof for the site's ledger of what the coordinator has.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Receipt {
    /// The study.
    pub study: StudyDigest,
    /// The round.
    pub round: RoundId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The update's name.
    pub update: ArtifactHash,
}
