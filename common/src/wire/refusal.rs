//! Why the coordinator says no: a stable code for programs and words for the site's operator.

use std::fmt;

use bincode::{Decode, Encode};

use super::words::Words;

/// A refusal. Tells nothing of the coordinator's internals.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Refusal {
    /// The kind.
    pub code: RefusalCode,
    /// Words for the site's operator.
    pub detail: Words,
}

impl Refusal {
    /// A refusal with words of its own.
    pub fn new(code: RefusalCode, detail: impl Into<Words>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code.code())
    }
}

/// Kinds of refusal, with their stable names and what the site's operator can do about them.
macro_rules! refusal_codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $hint:literal;)*) => {
        /// The kind of a refusal. Append-only: the order is part of the wire format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub enum RefusalCode {
            $($(#[$doc])* $variant,)*
        }

        impl RefusalCode {
            /// All kinds, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Short stable name for logs, metrics and scripts.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The kind with this name: for the machines, whose rejections have the same names.
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.code() == code)
            }

            /// What the site's operator can do.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }

            /// Whether site and coordinator get over it by themselves, as the hint then says.
            pub fn passes(self) -> bool {
                self.hint().starts_with("nothing to do")
            }
        }
    };
}

refusal_codes! {
    /// The message is not well formed, or not expected here.
    BadRequest = "bad-request", "update site-agent; if it persists, tell the coordinator's operator";
    /// No common minor version.
    UnsupportedVersion = "unsupported-version", "update site-agent to the coordinator's version";
    /// Too many requests or connections for now.
    TooBusy = "too-busy", "nothing to do: site-agent tries again by itself";
    /// The coordinator failed; its log says more.
    Internal = "internal", "tell the coordinator's operator";
    /// The certificate names no site of this consortium.
    UnknownSite = "unknown-site", "ask the coordinator's operator for an invite and run `site-agent enroll`";
    /// The site was revoked.
    SiteRevoked = "site-revoked", "ask the coordinator's operator why, and for a new invite";
    /// The certificate is no longer, or not yet, valid.
    CertificateExpired = "certificate-expired", "ask the coordinator's operator for a new invite and run `site-agent enroll`";
    /// The site's role does not allow this.
    WrongRole = "wrong-role", "this needs a site of the other role: ask the coordinator's operator for another invite";
    /// No such study.
    UnknownStudy = "unknown-study", "nothing to do: the study was removed";
    /// The site has not approved the study.
    StudyNotApproved = "study-not-approved", "look at it with `site-agent study show` and run `site-agent study approve`";
    /// The study takes nothing more: finished, aborted or paused.
    StudyClosed = "study-closed", "nothing to do";
    /// The site has not registered a label manifest for the study.
    NoManifest = "no-manifest", "nothing to do: site-agent registers it when it connects anew";
    /// The label manifest is malformed, wrongly signed, or not of this site and taxonomy.
    BadManifest = "bad-manifest", "run `site-agent check`";
    /// No such artifact for this site.
    UnknownArtifact = "unknown-artifact", "nothing to do: it was replaced by a newer one";
    /// No such chunk.
    UnknownChunk = "unknown-chunk", "update site-agent; if it persists, tell the coordinator's operator";
    /// The round is over, or not open yet.
    RoundClosed = "round-closed", "nothing to do: the next round will come";
    /// The round is not open yet.
    RoundNotOpen = "round-not-open", "nothing to do: site-agent offers the update again when the round opens";
    /// The site does not take part in the round.
    NotParticipant = "not-participant", "nothing to do: the next round will come";
    /// Of another study than the one here.
    WrongStudy = "wrong-study", "nothing to do: the study was replaced";
    /// The study is over.
    StudyOver = "study-over", "nothing to do";
    /// The delta starts from another model than the round's.
    WrongBase = "wrong-base", "nothing to do: the next round starts from the current model";
    /// The round has another update of this site.
    AlreadyCounted = "already-counted", "nothing to do: the first update counts";
    /// The attempt was stored with other content.
    AttemptReused = "attempt-reused", "update site-agent; if it persists, tell the coordinator's operator";
    /// No update is offered under this attempt.
    UnknownAttempt = "unknown-attempt", "nothing to do: site-agent offers the update again";
    /// The manifest is no manifest, or not of the model's trainable tensors.
    WrongLayout = "wrong-layout", "check that site and study use the same model configuration";
    /// A chunk's length or content is not what the manifest says.
    BadChunk = "bad-chunk", "check the network and the disk; site-agent sends it again";
    /// The update has a number that is not finite.
    NotFinite = "not-finite", "training diverged: look at the loss, and at the data with `site-agent check`";
    /// The update is larger than the study allows.
    NormExceeded = "norm-exceeded", "training diverged: look at the loss, and at the data with `site-agent check`";
    /// Chunks are missing.
    Incomplete = "incomplete", "nothing to do: site-agent sends the rest";
    /// The number of steps is not the round's.
    WrongSteps = "wrong-steps", "update site-agent; if it persists, tell the coordinator's operator";
    /// The evaluation report is malformed, wrongly signed, or not of this study.
    BadReport = "bad-report", "update site-agent; if it persists, tell the coordinator's operator";
    /// The report is about a model that the study did not publish.
    UnknownModel = "unknown-model", "nothing to do: only published models are scored";
    /// The site is no evaluator of the study.
    NotEvaluator = "not-evaluator", "only the study's evaluators send reports: ask the coordinator's operator";
    /// The model is not promoted: a test site does not score it.
    Sealed = "sealed", "nothing to do: test sites score promoted models alone";
    /// The site has reported on the model, with another outcome.
    AlreadyReported = "already-reported", "nothing to do: the first report counts";
    /// The invite is not one of this coordinator.
    InviteUnknown = "invite-unknown", "check that the invite is the newest one for this site, complete and meant for this coordinator";
    /// The invite was used already.
    InviteUsed = "invite-used", "ask the coordinator's operator for a new invite";
    /// The invite is too old.
    InviteExpired = "invite-expired", "ask the coordinator's operator for a new invite";
    /// The certificate request is malformed, or its signature is wrong.
    BadCertificateRequest = "bad-certificate-request", "update site-agent and enrol again";
    /// The certificate is of another consortium.
    WrongConsortium = "wrong-consortium", "check the coordinator's address in site.toml";
    /// The study leaves the site out.
    LeftOut = "left-out", "nothing to do: the study is for the other sites to train";
    /// The manifest is kept, but the site has too little to train on to be asked.
    TooLittleData = "too-little-data", "`site-agent check` shows what counts as annotated training scans: add some, then start the agent again";
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
