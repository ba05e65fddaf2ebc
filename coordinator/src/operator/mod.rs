//! What the operator can ask, and the answers: the same over the socket of a running coordinator and without one.
//!
//! The socket speaks one JSON object a line, request and reply. It lies in the state folder with mode 0600: whoever can
//! open it owns the coordinator's files anyway. `socket` serves, [`client`] asks; the work is the driver's.

pub mod client;
mod gather;
mod socket;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::ids::{Role, SiteId};
use serde::{Deserialize, Serialize};

pub(crate) use gather::{gather, losses};
pub use socket::{MAX_SOCKET_PATH, OperatorSocket, SocketError, socket_path};

/// A request of the operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything at a glance.
    Status,
    /// Invites a site; the invite's text comes back and is kept nowhere.
    Invite {
        /// Whom.
        site: SiteId,
        /// For what.
        role: Role,
        /// How long the invite counts.
        hours: u32,
    },
    /// Ends a site's membership, and its connection with it.
    Revoke {
        /// Which.
        site: SiteId,
    },
    /// Adds a study.
    AddStudy {
        /// The study's TOML.
        file: PathBuf,
        /// Its initial model, safetensors.
        model: PathBuf,
        /// Its class embeddings, safetensors.
        embeddings: PathBuf,
        /// Its classes, TOML; the standard ones when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        taxonomy: Option<PathBuf>,
    },
    /// One study with its document.
    ShowStudy {
        /// Its digest, the first digits of it, or its name.
        study: String,
    },
    /// Starts, pauses, resumes or ends a study.
    Control {
        /// Its digest, the first digits of it, or its name.
        study: String,
        /// What.
        order: Order,
    },
    /// Pauses a study, with words that its sites are told.
    Pause {
        /// Its digest, the first digits of it, or its name.
        study: String,
        /// Why.
        reason: String,
    },
    /// Has the test sites of a study score a model.
    Promote {
        /// Its digest, the first digits of it, or its name.
        study: String,
        /// The round that made the model; the best by the validation sites when absent.
        round: Option<u32>,
    },
    /// Writes a global model of a study to a file.
    Export {
        /// Its digest, the first digits of it, or its name.
        study: String,
        /// The round that made the model, 0 for the initial one; the last committed one when absent.
        round: Option<u32>,
        /// The file, which must be new.
        out: PathBuf,
    },
    /// Brings back a model or embeddings that the disk has lost.
    AddArtifact {
        /// A copy of it, wherever it is from.
        copy: PathBuf,
    },
    /// Writes the report of a study.
    Report {
        /// Its digest, the first digits of it, or its name; the newest when absent.
        study: Option<String>,
        /// Into which folder.
        out: PathBuf,
    },
}

impl Request {
    /// Whether nothing in the store changes for it.
    pub(crate) fn only_looks(&self) -> bool {
        matches!(self, Self::Status | Self::ShowStudy { .. } | Self::Export { .. } | Self::Report { .. })
    }
}

/// What can be done with a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Open its first round when sites are ready.
    Start,
    /// Finish what is under way, begin nothing.
    Pause,
    /// Go on.
    Resume,
    /// End it; its last model stands.
    Abort,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Done {
        /// In words.
        words: String,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::ShowStudy`].
    Study {
        /// How it stands.
        line: StudyLine,
        /// Its exact document, JSON.
        document: String,
    },
    /// To [`Request::Invite`]: the text of the file.
    Invite {
        /// TOML.
        text: String,
    },
    /// To [`Request::AddStudy`].
    Added {
        /// The study's digest.
        study: String,
        /// What the operator should know of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remark: Option<String>,
    },
    /// To [`Request::Report`].
    Report {
        /// The page.
        page: PathBuf,
    },
    /// It was not done.
    Failed {
        /// Why.
        words: String,
        /// What to do.
        hint: Option<String>,
        /// What of it programs go by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<FailureCode>,
    },
}

/// A reason that a command acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCode {
    /// To [`Request::AddStudy`]: it is here already, and was aborted.
    StudyAborted,
}

impl Reply {
    /// A refusal.
    pub fn failed(words: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Failed { words: words.into(), hint: hint.map(str::to_owned), code: None }
    }
}

/// Everything at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The consortium.
    pub consortium: String,
    /// Whether a server runs; without one nobody can be connected.
    pub running: bool,
    /// What sites dial.
    pub address: Option<String>,
    /// What the store's failure is called, while it fails.
    pub fault: Option<String>,
    /// The same in words.
    #[serde(default)]
    pub fault_detail: Option<String>,
    /// The sites, by name.
    pub sites: Vec<SiteLine>,
    /// The studies, oldest first.
    pub studies: Vec<StudyLine>,
    /// Studies that cannot be rebuilt from what is kept of them.
    #[serde(default)]
    pub unreadable: Vec<UnreadableStudy>,
}

/// A study that stands still, because it is damaged or another version of this program wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnreadableStudy {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// What of it cannot be read.
    pub why: String,
}

/// One site of [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteLine {
    /// Its name.
    pub site: SiteId,
    /// Its role.
    pub role: Role,
    /// `active` or `revoked`.
    pub status: String,
    /// Its address, while it is connected.
    pub connected: Option<String>,
    /// End of its certificate, RFC 3339.
    pub certificate_until: Option<String>,
}

/// One study of [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyLine {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// Where it stands, in the machine's word; `paused: …` in front of it while paused.
    pub state: String,
    /// Whether it was started.
    pub started: bool,
    /// The round that it is at.
    pub round: u32,
    /// Of so many.
    pub rounds: u32,
    /// The last durable model.
    pub model: String,
    /// What it waits for, in words.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// Trainers that it leaves out.
    pub left_out: Vec<SiteId>,
    /// Trainers that are ready.
    pub ready: Vec<SiteId>,
    /// What came of asking each site of the open round; of one that is not asked, or that none is opened for want of, why.
    pub answers: BTreeMap<SiteId, String>,
    /// Evaluators that have scored the last durable model.
    pub scored_by: Vec<SiteId>,
    /// Classes that nobody who takes part annotates; none while nobody has registered.
    pub uncovered: Vec<String>,
}
