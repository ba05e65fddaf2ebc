//! The machine's facts as lines for the site's log.

use common::ids::{RoundId, StudyDigest};
use common::participant::{BETWEEN_INTERRUPTIONS, DropReason, Fact, MOST_INTERRUPTIONS, Step};
use common::round::DeclineReason;
use common::wire::{Notice, RefusalCode};

/// An error and its causes in one line, each that its message does not repeat already.
pub(super) fn with_causes(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |said, cause| {
        let cause = cause.to_string();
        if said.contains(&cause) { said } else { format!("{said}: {cause}") }
    })
}

/// Says what a notice tells that the machine does not, such as words of the coordinator's operator.
pub(super) fn hear(notice: &Notice) {
    match notice {
        Notice::StudyPaused { study, reason } => {
            tracing::info!("study {} is paused: {reason}", study.short());
        }
        Notice::Goodbye { code } => tracing::info!("the coordinator says goodbye: {}", code.code()),
        _ => {}
    }
}

/// What became of an update that leaves the outbox and, as far as this site knows, does not count. Whoever closed the round may
/// have `delivered` all of it already, and count it: then only the receipt is missing.
fn of_drop(round: RoundId, reason: &DropReason, delivered: bool) -> String {
    let why = match reason {
        DropReason::RoundClosed if delivered => {
            return format!(
                "round {round} closed before the receipt came: the coordinator has the update, it is removed here"
            );
        }
        DropReason::RoundClosed => return of_late(round),
        DropReason::Refused(code) if code == RefusalCode::RoundClosed.code() => return of_late(round),
        DropReason::Refused(code) => code.as_str(),
        DropReason::Withheld => "withheld by this site's policy",
        DropReason::StudyOver => "the study is over, or refused here",
        DropReason::Counted => "it counts",
    };
    format!("round {round}: the update is dropped: {why}; nothing of it is kept here")
}

fn of_late(round: RoundId) -> String {
    format!("round {round} closed before the update arrived: the update is not needed, removed")
}

/// How near the work is to being given up, which ends the agent perhaps.
fn of_death(round: RoundId, step: Step, times: u32) -> String {
    let minutes = BETWEEN_INTERRUPTIONS.as_secs() / 60;
    format!(
        "round {round}: {step:?} was under way when the agent died ({times} of {MOST_INTERRUPTIONS}; deaths within \
         {minutes} minutes count once)"
    )
}

/// What waits for the coordinator, while other studies have their turn.
fn of_aside(study: StudyDigest, round: RoundId, step: Step) -> String {
    let what = match step {
        Step::Report => "the coordinator does not take the report for now: it is kept here",
        Step::Fetch => "the coordinator does not give the model for now: it is scored later",
        _ => "the coordinator does not take the update for now: it stays in the outbox",
    };
    let study = study.short();
    format!("study {study}, round {round}: {what}, and tried again by itself; other studies go on meanwhile")
}

/// Says a fact to the site's operator; `delivered`: the coordinator has all of the last update that was offered.
pub(super) fn say(fact: &Fact, delivered: bool) {
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
                "round {round} closed before the update arrived: it is finished all the same, and counts late in the next round"
            )
        }
        Fact::UpdateReady { round, .. } => {
            tracing::info!("round {round}: trained, the update waits in the outbox")
        }
        Fact::UpdateCounted { round } => tracing::info!("round {round}: the coordinator counts the update"),
        Fact::UpdateDropped { round, reason, .. } => {
            tracing::warn!("{}", of_drop(*round, reason, delivered));
        }
        Fact::SetAside { study, round, step } => {
            tracing::warn!("{}", of_aside(*study, *round, *step));
            tracing::warn!("hint: `site-agent study refuse {}` gives the study up", study.short());
        }
        Fact::RetryScheduled { step, failures, .. } => {
            tracing::warn!("{step:?} failed {failures} times; it is tried again");
        }
        Fact::Interrupted { step, round, times } => {
            tracing::warn!("{}", of_death(*round, *step, *times));
            tracing::warn!(
                "hint: `journalctl -k` says whether the system ran out of memory; the message of a panic is in this log"
            );
        }
        Fact::ReportDelivered { round, .. } => {
            tracing::info!("round {round}: the coordinator has the evaluation report")
        }
        Fact::EvaluationDropped { round, code, .. } => {
            tracing::warn!("round {round}: evaluation given up: {code}")
        }
        // The notice itself says why.
        Fact::StudyPaused => tracing::debug!("the study is paused"),
        Fact::StudyFinished { study } => tracing::info!("the study is over: {}", study.short()),
        Fact::EventIgnored { event, phase } => tracing::debug!(event, phase, "nothing to do"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_a_message_repeats_is_said_once() {
        let source = || std::io::Error::other("the disk is on fire");
        let repeats = crate::data::DataError::Io { path: "a/ct.nii".into(), source: source() };
        assert_eq!(with_causes(&repeats.into()), "a/ct.nii: the disk is on fire");
        let short = super::super::files::FileError::new("read", std::path::Path::new("a"), source());
        let short = anyhow::Error::from(short).context("counting");
        assert_eq!(with_causes(&short), "counting: cannot read a: the disk is on fire");
    }

    #[test]
    fn a_death_is_said_with_how_many_count_and_as_what() {
        let said = "round 7: Training was under way when the agent died (2 of 12; deaths within 6 minutes count once)";
        assert_eq!(of_death(RoundId(7), Step::Training, 2), said);
    }

    #[test]
    fn an_update_whose_round_closed_is_said_to_be_needless_and_no_more_than_is_known() {
        let round = RoundId(7);
        let closed = "round 7 closed before the update arrived: the update is not needed, removed";
        let refused = |code: &str| DropReason::Refused(code.to_owned());
        assert_eq!(of_drop(round, &DropReason::RoundClosed, false), closed);
        assert_eq!(
            of_drop(round, &refused("round-closed"), true),
            closed,
            "it was refused, so it does not count"
        );
        let delivered = of_drop(round, &DropReason::RoundClosed, true);
        assert!(delivered.contains("before the receipt came: the coordinator has the update"), "{delivered}");
        assert_eq!(
            of_drop(round, &refused("norm-exceeded"), false),
            "round 7: the update is dropped: norm-exceeded; nothing of it is kept here"
        );
        assert_eq!(
            of_drop(round, &DropReason::Withheld, false),
            "round 7: the update is dropped: withheld by this site's policy; nothing of it is kept here"
        );
    }
}
