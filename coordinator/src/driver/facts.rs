//! The machines' facts in the operator's words.

use std::fmt::Display;

use common::evaluation;
use common::round::Fact;

/// Short name and words of a round's fact; `None` for what is only noise on a screen.
pub(super) fn of_rounds(fact: &Fact) -> Option<(&'static str, String)> {
    Some(match fact {
        Fact::RoundOpened { round, sites } => {
            ("round-opened", format!("round {round} is open at {}", list(sites)))
        }
        Fact::SiteDeclined { site, round, reason } => {
            ("site-declined", format!("{site} does not take part in round {round}: {}", reason.code()))
        }
        Fact::SiteSilent { site, round } => {
            ("site-silent", format!("{site} did not answer round {round} in time"))
        }
        Fact::UpdateCounted { site, round, .. } => {
            ("update-counted", format!("round {round} has the update of {site}"))
        }
        Fact::UpdateRefused { site, code } => {
            ("update-refused", format!("an update of {site} does not count: {code}"))
        }
        Fact::QuorumMissing { round, have, need } => {
            ("quorum-missing", format!("round {round} has {have} of {need} updates and waits for more"))
        }
        Fact::ShareCapped { site, max_site_weight } => {
            ("share-capped", format!("the share of {site} was lowered to {max_site_weight}"))
        }
        Fact::FellBackToUniform { round } => {
            ("fell-back-to-uniform", format!("no site of round {round} has any weight: all count the same"))
        }
        Fact::RoundCommitted { round, model } => {
            ("round-committed", format!("round {round} made model {}", model.short()))
        }
        Fact::Paused { reason, .. } => ("paused", format!("paused: {}", super::plan::pause_words(*reason))),
        Fact::Resumed => ("resumed", "goes on".to_owned()),
        Fact::StudyFinished { model } => ("finished", format!("finished with model {}", model.short())),
        Fact::StudyAborted { model } => ("aborted", format!("aborted; model {} stands", model.short())),
        Fact::SiteAccepted { .. }
        | Fact::UpdateDuplicated { .. }
        | Fact::RoundAggregating { .. }
        | Fact::EventIgnored { .. } => return None,
    })
}

/// As [`of_rounds`], of evaluations.
pub(super) fn of_evaluation(fact: &evaluation::Fact) -> Option<(&'static str, String)> {
    match fact {
        evaluation::Fact::ModelForgotten { model } => {
            Some(("model-forgotten", format!("reports on model {} are no longer asked for", model.short())))
        }
        evaluation::Fact::GateTimedOut { model, missing } => {
            let words =
                format!("the next round opens without the reports of {} on {}", list(missing), model.short());
            Some(("gate-timed-out", words))
        }
        evaluation::Fact::ReportRefused { site, code } => {
            Some(("report-refused", format!("a report of {site} does not count: {code}")))
        }
        evaluation::Fact::ReportKept { .. } => None,
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
