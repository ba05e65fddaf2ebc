//! Between the wire's words and the machine's: the two are kept apart, so each can change without the other.

use common::participant::Event;
use common::round::{self, RoundTask};
use common::wire::{DeclineReason, Notice, OfferedUpdate};

/// What a notice means to the machine; `None` for what concerns the connection alone, or nothing that goes on here.
pub fn event_of(notice: &Notice) -> Option<Event> {
    Some(match notice {
        Notice::StudyOffered { study, .. } => Event::StudyOffered { study: *study },
        Notice::RoundOpened(task) => Event::RoundOpened {
            task: RoundTask {
                study: task.study,
                round: task.round,
                base: task.base,
                steps: task.steps,
                remaining_ms: task.remaining_ms,
            },
        },
        Notice::RoundClosed { study, round, .. } => Event::RoundClosed { study: *study, round: *round },
        Notice::EvaluationRequested { study, round, model } => {
            Event::EvaluationRequested { study: *study, round: *round, model: *model }
        }
        Notice::StudyPaused { study, .. } => Event::StudyPaused { study: *study },
        Notice::StudyFinished { study, .. } => Event::StudyFinished { study: *study },
        Notice::Goodbye { .. } | Notice::Alive | Notice::ArtifactWanted { .. } => return None,
    })
}

/// The machine's reason in the wire's form.
pub fn decline_reason(reason: round::DeclineReason) -> DeclineReason {
    match reason {
        round::DeclineReason::NotApproved => DeclineReason::NotApproved,
        round::DeclineReason::Policy => DeclineReason::Policy,
        round::DeclineReason::TrainingFailed => DeclineReason::TrainingFailed,
        round::DeclineReason::Evaluator => DeclineReason::Evaluator,
        round::DeclineReason::NoData => DeclineReason::NoData,
        round::DeclineReason::DataError => DeclineReason::DataError,
        round::DeclineReason::Busy => DeclineReason::Busy,
    }
}

/// An offer with the manifest that the machine knows only by its digest.
pub fn offered_update(
    offer: &round::UpdateOffer,
    manifest: &common::artifact::ArtifactManifest,
) -> OfferedUpdate {
    OfferedUpdate {
        study: offer.study,
        round: offer.round,
        base: offer.base,
        attempt: offer.attempt,
        steps: offer.steps,
        manifest: manifest.into(),
    }
}
