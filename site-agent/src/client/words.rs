//! The machine's facts as lines for the site's log.

use common::participant::{DropReason, Fact};
use common::round::DeclineReason;
use common::wire::Notice;

/// Says what a notice tells in words of the coordinator's operator.
pub(super) fn hear(notice: &Notice) {
    if let Notice::StudyPaused { study, reason } = notice {
        tracing::info!("study {} is paused: {reason}", study.short());
    }
}

/// Says a fact to the site's operator.
pub(super) fn say(fact: &Fact) {
    match fact {
        Fact::ApprovalNeeded { study } => tracing::info!("study {} is offered to this site", study.short()),
        Fact::RoundStarted { round } => tracing::info!("round {round}: taking part"),
        Fact::RoundDeclined { round, reason } => {
            tracing::info!("round {round}: not taking part ({})", reason.code())
        }
        Fact::DataUnusable { study, reason } => {
            let why = match reason {
                DeclineReason::NoData => "no training scan of this site annotates a class of it",
                _ => "the training scans cannot be used",
            };
            tracing::error!("study {}: not taking part: {why}", study.short());
            tracing::error!("hint: `site-agent check` looks at every scan; then start the agent again");
        }
        Fact::RoundLeft { round } => tracing::info!("round {round}: left, it ended without this site"),
        Fact::RoundMissed { round } => {
            tracing::info!(
                "round {round}: it ended without this site, whose update is finished and counts in the next"
            )
        }
        Fact::UpdateReady { round, .. } => {
            tracing::info!("round {round}: trained, the update waits in the outbox")
        }
        Fact::UpdateCounted { round } => tracing::info!("round {round}: the coordinator counts the update"),
        Fact::UpdateDropped { round, reason } => {
            let why = match reason {
                DropReason::Counted => "it counts",
                DropReason::RoundClosed => "the round closed before it was sent",
                DropReason::Refused(code) if code == "round-closed" => "the round closed before it arrived",
                DropReason::Refused(code) => code,
                DropReason::StudyOver => "the study is over",
            };
            tracing::warn!("round {round}: the update is dropped: {why}; nothing of it is kept here");
        }
        Fact::RetryScheduled { step, failures, .. } => {
            tracing::warn!("{step:?} failed {failures} times; it is tried again");
        }
        Fact::ReportDelivered { round, .. } => {
            tracing::info!("round {round}: the coordinator has the evaluation report")
        }
        Fact::EvaluationDropped { round, code, .. } => {
            tracing::warn!("round {round}: evaluation given up: {code}")
        }
        // The notice itself says why.
        Fact::StudyPaused => tracing::debug!("the study is paused"),
        Fact::StudyFinished => tracing::info!("the study is over"),
        Fact::EventIgnored { event, phase } => tracing::debug!(event, phase, "nothing to do"),
    }
}
