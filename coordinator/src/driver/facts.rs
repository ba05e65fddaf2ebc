//! The machines' facts in the operator's words.

use std::collections::BTreeMap;
use std::fmt::Display;

use common::aggregate::Clipped;
use common::evaluation;
use common::ids::{ClassId, RoundId};
use common::round::{ClassShortage, Fact};

/// Short name and words of a round's fact; `None` for what is only noise on a screen. `name` is the study's name of a class.
pub(super) fn of_rounds(fact: &Fact, name: impl Fn(ClassId) -> String) -> Option<(&'static str, String)> {
    Some(match fact {
        Fact::RoundOpened { round, sites } => {
            ("round-opened", format!("round {round} is open at {}", list(sites)))
        }
        Fact::SiteDeclined { site, round, reason } => {
            ("site-declined", format!("{site} does not take part in round {round}: {}", reason.code()))
        }
        Fact::SiteExcluded { site, reason } => ("site-excluded", format!("{site} is not asked: {reason}")),
        Fact::SiteSilent { site, round } => {
            ("site-silent", format!("{site} did not answer round {round} in time"))
        }
        Fact::UpdateCounted { site, round, .. } => {
            ("update-counted", format!("round {round} has the update of {site}"))
        }
        Fact::LateUpdateTaken { site, round, trained_for } => (
            "update-late",
            format!(
                "the update of {site} for round {trained_for} came late: it counts in round {round}, for less"
            ),
        ),
        Fact::UpdateRefused { site, code } => {
            ("update-refused", format!("an update of {site} does not count: {code}"))
        }
        Fact::LateUpdateLost { site, trained_for } => (
            "update-lost",
            format!("the late update of {site} from round {trained_for} is lost here: it counts no more"),
        ),
        Fact::UpdateLost { site, round } => (
            "update-lost",
            format!("the update of {site} in round {round} is lost here: {site} is asked again"),
        ),
        Fact::QuorumMissing { round, have, need, classes } => {
            let words = format!("round {round} has {have} of {need} updates and waits for more");
            let of =
                classes_missing(classes, name).map(|classes| format!(", from sites that annotate {classes}"));
            ("quorum-missing", words + &of.unwrap_or_default())
        }
        Fact::SiteRevoked { site, round } => {
            ("site-revoked", format!("round {round} goes on without {site}, which was revoked"))
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
        Fact::Paused { reason, words, .. } => {
            ("paused", format!("paused: {}", super::plan::pause_in_full(*reason, words.as_deref())))
        }
        Fact::Resumed => ("resumed", "goes on".to_owned()),
        Fact::StudyFinished { model } => ("finished", format!("finished with model {}", model.short())),
        Fact::StudyAborted { model } => ("aborted", format!("aborted; model {} stands", model.short())),
        Fact::SiteAccepted { .. }
        | Fact::UpdateDuplicated { .. }
        | Fact::RoundAggregating { .. }
        | Fact::EventIgnored { .. } => return None,
    })
}

/// As [`of_rounds`], of an update that counted scaled down.
pub(super) fn of_clipping(round: RoundId, clipped: &Clipped) -> (&'static str, String) {
    let Clipped { site, norm, bound } = clipped;
    let words = format!(
        "the update of {site} counts scaled down in round {round}: its norm is {norm:.4}, the bound {bound:.4}"
    );
    ("update-clipped", words)
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
        evaluation::Fact::EvaluatorLeft { site } => {
            let words = format!(
                "{site} is asked for no report: it is no evaluator here, or has trained in the study"
            );
            Some(("evaluator-left", words))
        }
        evaluation::Fact::ReportRefused { site, code } => {
            Some(("report-refused", format!("a report of {site} does not count: {code}")))
        }
        evaluation::Fact::ReportKept { .. } => None,
    }
}

/// The classes that a study waits for, by name with how many sites there are; `None` when it waits for none.
pub(super) fn classes_missing(
    classes: &BTreeMap<ClassId, ClassShortage>,
    name: impl Fn(ClassId) -> String,
) -> Option<String> {
    let words = |(&class, ClassShortage { have, need }): (&ClassId, &ClassShortage)| {
        format!("{} ({have} of {need})", name(class))
    };
    (!classes.is_empty()).then(|| list(classes.iter().map(words)))
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_quorum_names_its_classes() {
        let classes = |have| {
            [(6, have), (11, 0)]
                .map(|(id, have)| (ClassId::new(id).unwrap(), ClassShortage { have, need: 2 }))
        };
        let name = |class: ClassId| format!("organ {class}");
        let said = |classes| {
            let fact = Fact::QuorumMissing { round: RoundId(3), have: 2, need: 2, classes };
            of_rounds(&fact, name).unwrap().1
        };
        assert_eq!(said(BTreeMap::new()), "round 3 has 2 of 2 updates and waits for more");
        let words = "round 3 has 2 of 2 updates and waits for more, \
                     from sites that annotate organ 6 (1 of 2), organ 11 (0 of 2)";
        assert_eq!(said(classes(1).into()), words);
    }

    #[test]
    fn a_clipped_update_is_said_with_its_site_norm_and_bound() {
        let clipped = Clipped { site: "north".parse().unwrap(), norm: 50.0, bound: 12.5 };
        let (what, words) = of_clipping(RoundId(3), &clipped);
        assert_eq!(what, "update-clipped");
        assert_eq!(
            words,
            "the update of north counts scaled down in round 3: its norm is 50.0000, the bound 12.5000"
        );
    }
}
