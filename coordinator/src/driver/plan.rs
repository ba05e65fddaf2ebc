//! A study's document as the machines want it, and the machines' words as the wire has them.

use common::aggregate::weights;
use common::round::{self, Fault, Gate, Late, Quorum, RoundPlan};
use common::study::{StudyDocument, sections};
use common::wire;

use crate::store;

/// What the round machine needs to know of the study.
pub(super) fn round_plan(document: &StudyDocument) -> RoundPlan {
    let study = document.study();
    RoundPlan {
        study: document.digest(),
        initial_model: study.initial_model,
        rounds: study.rounds,
        steps: study.training.steps_per_round,
        quorum: Quorum {
            sites: study.quorum.sites,
            sites_per_class: study.quorum.sites_per_class,
            class_floor: study.aggregation.strategy.class_floor(),
            deadline_s: u64::from(study.quorum.deadline_s),
            accept_s: u64::from(study.quorum.accept_s),
        },
        late: match study.quorum.late {
            sections::Late::Refuse => Late::Refuse,
            sections::Late::NextRound => Late::NextRound { weight: study.quorum.staleness_weight },
        },
        weighting: match study.aggregation.weights {
            sections::Weighting::Uniform => weights::Weighting::Uniform,
            sections::Weighting::Samples => weights::Weighting::Samples,
            sections::Weighting::Annotations => weights::Weighting::Annotations,
            sections::Weighting::ClassBalanced => weights::Weighting::ClassBalanced,
        },
        max_site_weight: study.aggregation.max_site_weight,
        server_lr: study.aggregation.server_lr,
        evaluate_every: study.evaluation.every_rounds,
        gate: gate(document),
        leave_out: study.participants.leave_out.iter().cloned().collect(),
        min_volumes: study.participants.min_volumes,
    }
}

/// The study's gate, if it has one.
pub(super) fn gate(document: &StudyDocument) -> Option<Gate> {
    let gate = document.study().evaluation.gate.as_ref()?;
    Some(Gate { evaluators: gate.evaluators.iter().cloned().collect(), timeout_s: u64::from(gate.timeout_s) })
}

pub(super) fn task(task: &round::RoundTask) -> wire::RoundTask {
    let round::RoundTask { study, round, base, steps, remaining_ms } = *task;
    wire::RoundTask { study, round, base, steps, remaining_ms }
}

pub(super) fn outcome(outcome: round::RoundOutcome) -> wire::RoundOutcome {
    match outcome {
        round::RoundOutcome::Committed => wire::RoundOutcome::Committed,
        round::RoundOutcome::Aborted => wire::RoundOutcome::Aborted,
    }
}

/// What a site said, in the machine's word.
pub(crate) fn decline(reason: wire::DeclineReason) -> round::DeclineReason {
    match reason {
        wire::DeclineReason::NotApproved => round::DeclineReason::NotApproved,
        wire::DeclineReason::Policy => round::DeclineReason::Policy,
        wire::DeclineReason::TrainingFailed => round::DeclineReason::TrainingFailed,
        wire::DeclineReason::Evaluator => round::DeclineReason::Evaluator,
        wire::DeclineReason::NoData => round::DeclineReason::NoData,
        wire::DeclineReason::DataError => round::DeclineReason::DataError,
        wire::DeclineReason::Busy => round::DeclineReason::Busy,
    }
}

/// Why a study is paused, with its operator's own words.
pub(super) fn pause_in_full(reason: round::PauseReason, words: Option<&str>) -> String {
    let reason = pause_words(reason);
    words.map_or_else(|| reason.to_owned(), |words| format!("{reason}: {words}"))
}

/// The state of a paused study, for our own operator.
pub(super) fn pause_state(reason: round::PauseReason, words: Option<&str>) -> String {
    let name = match reason {
        round::PauseReason::Aggregation(fault) | round::PauseReason::Commit(fault) => match fault {
            Fault::StorageFull => store::pause_name(store::DISK_FULL),
            Fault::StorageReadOnly => store::pause_name(store::DISK_READ_ONLY),
            Fault::Storage | Fault::Numbers => None,
        },
        round::PauseReason::Operator => None,
    };
    match name {
        Some(name) => format!("paused: {name}"),
        None => format!("paused ({})", pause_in_full(reason, words)),
    }
}

/// Words for a site's operator.
fn pause_words(reason: round::PauseReason) -> &'static str {
    match reason {
        round::PauseReason::Operator => "the coordinator's operator paused the study",
        round::PauseReason::Aggregation(Fault::StorageFull)
        | round::PauseReason::Commit(Fault::StorageFull) => "the coordinator's disk is full",
        round::PauseReason::Aggregation(Fault::StorageReadOnly)
        | round::PauseReason::Commit(Fault::StorageReadOnly) => "the coordinator's disk is read-only",
        round::PauseReason::Aggregation(_) => "the coordinator could not aggregate the round",
        round::PauseReason::Commit(_) => "the coordinator could not store the new model",
    }
}
