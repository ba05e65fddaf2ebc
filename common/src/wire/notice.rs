//! What the coordinator tells a connected site on its watch stream.

use std::time::Duration;

use bincode::{Decode, Encode};

use super::codec::{Message, SizeClass};
use super::words::Words;
use crate::ids::{ArtifactHash, ModelHash, RoundId, StudyDigest};

/// News for a site. After Welcome all that concerns the site now is sent again, so a site needs no memory of earlier
/// notices. Append-only: the order is part of the wire format.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Notice {
    /// A study wants the site; it takes part only once approved.
    StudyOffered {
        /// The study.
        study: StudyDigest,
        /// Its name, for people.
        name: Words,
    },
    /// A round is open for the site.
    RoundOpened(RoundTask),
    /// A round is over: its updates are no longer wanted, unless the study takes late ones into the next round.
    RoundClosed {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// The new global model, if the round made one.
        model: Option<ModelHash>,
        /// How it ended.
        outcome: RoundOutcome,
    },
    /// A global model is to be scored.
    EvaluationRequested {
        /// The study.
        study: StudyDigest,
        /// The round that made the model; 0 is the initial one.
        round: RoundId,
        /// The model.
        model: ModelHash,
    },
    /// No more rounds for now.
    StudyPaused {
        /// The study.
        study: StudyDigest,
        /// The operator's words.
        reason: Words,
    },
    /// All rounds are done.
    StudyFinished {
        /// The study.
        study: StudyDigest,
        /// The last global model.
        model: ModelHash,
    },
    /// The coordinator is about to close the connection.
    Goodbye {
        /// Why.
        code: GoodbyeCode,
    },
    /// The coordinator is there, and has nothing to say. Over TCP alone, to a site that speaks [`Notice::ALIVE_SINCE`].
    Alive,
    /// The coordinator's disk lost an artifact: a site that holds it may return it. To a site alone that
    /// [`can`](super::Hello::RETURNS_ARTIFACTS).
    ArtifactWanted {
        /// Which.
        artifact: ArtifactHash,
    },
}

impl Notice {
    /// First minor version with [`Notice::Alive`].
    pub const ALIVE_SINCE: u16 = 1;
    /// How long a coordinator says nothing at most where it says [`Notice::Alive`].
    pub const ALIVE_EVERY: Duration = Duration::from_secs(30);
}

impl Message for Notice {
    const SIZE: SizeClass = SizeClass::Control;
    const NAME: &'static str = "notice";
}

/// What to do in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RoundTask {
    /// The study.
    pub study: StudyDigest,
    /// The round.
    pub round: RoundId,
    /// The global model to start from.
    pub base: ModelHash,
    /// Optimiser steps to do, equal at every site.
    pub steps: u32,
    /// Milliseconds until the round's deadline: a span, because the clocks of two sites differ.
    pub remaining_ms: u64,
}

/// How a round ended. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RoundOutcome {
    /// A new global model is committed.
    Committed,
    /// The study was aborted.
    Aborted,
}

impl RoundOutcome {
    /// Short stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        }
    }
}

/// Why a connection ends. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum GoodbyeCode {
    /// The coordinator is stopping: connect again later.
    Stopping,
    /// The same site connected anew.
    Replaced,
    /// The site was revoked.
    Revoked,
    /// The site's certificate expired.
    CertificateExpired,
}

impl GoodbyeCode {
    /// Short stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::Replaced => "replaced",
            Self::Revoked => "site-revoked",
            Self::CertificateExpired => "certificate-expired",
        }
    }
}
