//! What can leave a site: this enum and nothing else. No variant can carry a voxel, a path or a name.

use common::ids::{ArtifactHash, AttemptId, Digest, RoundId, StudyDigest};
use common::wire::{DeclineReason, EnrollRequest, Manifest, OfferedUpdate, Request, SignedBytes};

/// One message about the site or its data, before policy, limits and ledger have seen it.
#[derive(Clone, Debug)]
pub enum Outbound {
    /// Public keys and the one-time token, at enrolment.
    Enrolment(EnrollRequest),
    /// The operator (or the policy) approved a study.
    Approval {
        /// The study.
        study: StudyDigest,
    },
    /// The site takes part in a round.
    Acceptance {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// The global model that it starts from.
        base: ArtifactHash,
    },
    /// The site does not take part in a round.
    Decline {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// One of a few fixed reasons.
        reason: DeclineReason,
    },
    /// What is annotated here and how many volumes show it, signed.
    LabelManifest {
        /// For which study.
        study: StudyDigest,
        /// The signed document.
        signed: SignedBytes,
    },
    /// Training loss and step count.
    Progress {
        /// The study.
        study: StudyDigest,
        /// The round.
        round: RoundId,
        /// Steps done.
        step: u32,
        /// Steps of the round.
        steps: u32,
        /// Mean training loss since the last report.
        loss: f32,
    },
    /// Weights: the delta from a global model.
    Update(OfferedUpdate),
    /// Metrics of a model on the site's own scans, signed.
    EvaluationReport {
        /// Of which study.
        study: StudyDigest,
        /// The signed document.
        signed: SignedBytes,
    },
    /// A model or embeddings that came from the coordinator, whose disk lost them: the same bytes.
    Model {
        /// The key for chunks and commit.
        attempt: AttemptId,
        /// The manifest, whose hash is the name.
        manifest: Manifest,
    },
}

/// The kind of an [`Outbound`], as policy and ledger name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Public keys and the one-time token.
    Enrolment,
    /// Approval, acceptance or decline.
    Answer,
    /// The signed label manifest.
    LabelManifest,
    /// Step count and loss.
    Progress,
    /// Weights.
    Update,
    /// Signed metrics.
    EvaluationReport,
    /// A published model, back to where it came from.
    Model,
}

impl Kind {
    /// The kinds that a policy may forbid. The others say of the data at most that it cannot be trained on, and without them
    /// there is no taking part.
    pub const GOVERNED: [Self; 5] =
        [Self::LabelManifest, Self::Progress, Self::Update, Self::EvaluationReport, Self::Model];

    /// The name in policy, ledger and documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enrolment => "enrolment",
            Self::Answer => "answer",
            Self::LabelManifest => "label-manifest",
            Self::Progress => "progress",
            Self::Update => "update",
            Self::EvaluationReport => "evaluation-report",
            Self::Model => "model",
        }
    }
}

/// What the ledger writes down about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its kind.
    pub kind: Kind,
    /// The study it belongs to, if any.
    pub study: Option<StudyDigest>,
    /// The round it belongs to, if any.
    pub round: Option<RoundId>,
    /// Digest of what is sent: of a document's exact bytes, of an update's or a model's manifest, of a small message's numbers.
    pub content: Digest,
    /// Bytes of content.
    pub bytes: u64,
}

impl Outbound {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Enrolment(_) => Kind::Enrolment,
            Self::Approval { .. } | Self::Acceptance { .. } | Self::Decline { .. } => Kind::Answer,
            Self::LabelManifest { .. } => Kind::LabelManifest,
            Self::Progress { .. } => Kind::Progress,
            Self::Update(_) => Kind::Update,
            Self::EvaluationReport { .. } => Kind::EvaluationReport,
            Self::Model { .. } => Kind::Model,
        }
    }

    /// What the ledger writes down.
    pub fn summary(&self) -> Summary {
        let (study, round) = self.concerns();
        let (content, bytes) = self.content();
        Summary { kind: self.kind(), study, round, content, bytes }
    }

    fn concerns(&self) -> (Option<StudyDigest>, Option<RoundId>) {
        match self {
            Self::Enrolment(_) | Self::Model { .. } => (None, None),
            Self::Approval { study }
            | Self::LabelManifest { study, .. }
            | Self::EvaluationReport { study, .. } => (Some(*study), None),
            Self::Acceptance { study, round, .. }
            | Self::Decline { study, round, .. }
            | Self::Progress { study, round, .. } => (Some(*study), Some(*round)),
            Self::Update(offer) => (Some(offer.study), Some(offer.round)),
        }
    }

    /// Digest and number of bytes of the content proper.
    fn content(&self) -> (Digest, u64) {
        let of = |bytes: &[u8]| (Digest::of(bytes), bytes.len() as u64);
        match self {
            // The token is a secret and stays out of the digest.
            Self::Enrolment(request) => of(&[request.csr_der.as_slice(), &request.signing_key].concat()),
            Self::Approval { study } => of(study.0.as_bytes()),
            Self::Acceptance { base, .. } => of(base.0.as_bytes()),
            Self::Decline { reason, .. } => of(reason.code().as_bytes()),
            Self::LabelManifest { signed, .. } | Self::EvaluationReport { signed, .. } => of(&signed.bytes),
            Self::Progress { step, steps, loss, .. } => {
                of(&[step.to_le_bytes(), steps.to_le_bytes(), loss.to_le_bytes()].concat())
            }
            Self::Update(OfferedUpdate { manifest, .. }) | Self::Model { manifest, .. } => {
                let bytes = manifest.tensors.iter().filter_map(common::artifact::TensorSpec::bytes);
                (artifact_digest(manifest), bytes.fold(0, u64::saturating_add))
            }
        }
    }

    /// The request that opens the exchange; `None` for enrolment, which has a protocol of its own.
    pub(super) fn into_request(self) -> Option<Request> {
        Some(match self {
            Self::Enrolment(_) => return None,
            Self::Approval { study } => Request::ApproveStudy { study },
            Self::Acceptance { study, round, base } => Request::AcceptRound { study, round, base },
            Self::Decline { study, round, reason } => Request::DeclineRound { study, round, reason },
            Self::LabelManifest { study, signed } => Request::RegisterManifest { study, manifest: signed },
            Self::Progress { study, round, step, steps, loss } => {
                Request::Progress { study, round, step, steps, loss }
            }
            Self::Update(offer) => Request::OfferUpdate(offer),
            Self::EvaluationReport { study, signed } => Request::PutReport { study, report: signed },
            Self::Model { attempt, manifest } => Request::ReturnArtifact { attempt, manifest },
        })
    }
}

/// The artifact's name, which the coordinator's receipt for an update repeats. Over the chunk hashes as they stand, so that it needs no
/// valid layout: an offer that the coordinator would refuse is still written down as what it is.
fn artifact_digest(manifest: &Manifest) -> Digest {
    match common::artifact::ArtifactManifest::try_from(manifest.clone()) {
        Ok(manifest) => manifest.hash().0,
        Err(_) => {
            let hashes: Vec<u8> = manifest.chunks.iter().flat_map(|c| *c.0.as_bytes()).collect();
            Digest::of(&hashes)
        }
    }
}
