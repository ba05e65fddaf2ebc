//! Downloading: the base model, and whatever else the study needs, comes in. What is missing is fetched again at each
//! connection and, after a failure, on a timer. Ends when all is here, or with the round.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::event::{Action, Step};
use super::phase::Context;
use super::retry::Retry;
use crate::ids::ArtifactHash;
use crate::round::RoundTask;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Downloading {
    pub(super) task: RoundTask,
    pub(super) fetch: Fetch,
}

/// Artifacts on their way here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fetch {
    missing: BTreeSet<ArtifactHash>,
    pub(super) retry: Retry,
}

impl Fetch {
    pub(super) fn begin(missing: BTreeSet<ArtifactHash>, cx: &mut Context<'_>) -> Self {
        let fetch = Self { missing, retry: Retry::default() };
        fetch.ask(cx);
        fetch
    }

    pub(super) fn ask(&self, cx: &mut Context<'_>) {
        if cx.connected {
            cx.actions.extend(self.missing.iter().map(|&artifact| Action::FetchArtifact { artifact }));
        }
    }

    /// True when `artifact` was missing.
    pub(super) fn stored(&mut self, artifact: ArtifactHash) -> bool {
        self.missing.remove(&artifact)
    }

    pub(super) fn complete(&self) -> bool {
        self.missing.is_empty()
    }

    pub(super) fn failed(&mut self, artifact: ArtifactHash, cx: &mut Context<'_>) -> bool {
        let ours = self.missing.contains(&artifact);
        if ours && cx.connected {
            self.retry.fail(Step::Fetch, cx.now, cx.actions);
        }
        ours
    }

    pub(super) fn cancel(&self, cx: &mut Context<'_>) {
        cx.actions.extend(self.missing.iter().map(|&artifact| Action::CancelFetch { artifact }));
    }
}
