//! What the agent hears from the coordinator, and in which order it acts on it.
//!
//! Answers come on the stream of the errand that asked, notices on one of their own. So the receipt of a round's last update and
//! the notice that the round is over, which the coordinator sends after it, may come in the other order; and so may, on a new
//! connection, the receipt of an update that was sent over the last one and the notice of the round that followed. Then the update would be
//! dropped as one that nobody answered for. While the coordinator owes an answer that may be a receipt, notices wait.
//!
//! [`Hearing`] decides that and knows no link, clock or disk; the agent brings it what comes, and acts on what it gives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::ids::{AttemptId, RoundId, StudyDigest};
use common::participant::Event;
use common::round::UpdateOffer;
use common::wire::Notice;

use super::connection::LinkEvent;
use super::driver::{Agent, Errand};
use super::translate::event_of;
use super::words;
use crate::egress::Stage;

/// The update that was offered last, and the notices that wait for what comes of it.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    offered: Option<(UpdateOffer, Arc<Delivery>)>,
    /// In the order in which they came.
    unheard: VecDeque<Notice>,
}

impl Hearing {
    /// An update is to be offered, for the first time or again; unless that `is_under_way` already, it begins anew. How far it
    /// comes is for the errand to note.
    pub(super) fn offer(&mut self, offer: &UpdateOffer, is_under_way: bool) -> Arc<Delivery> {
        let same = self.offered.take().filter(|(before, _)| before.attempt == offer.attempt);
        let delivery = same.map(|(_, delivery)| delivery).unwrap_or_default();
        if !is_under_way {
            delivery.begin();
        }
        self.offered = Some((offer.clone(), Arc::clone(&delivery)));
        delivery
    }

    /// A notice came.
    pub(super) fn take(&mut self, notice: Notice) {
        self.unheard.push_back(notice);
    }

    /// The notice to act on now, the oldest that need not wait. `is_under_way`: whether the update of an attempt is being
    /// offered; it is until what came of that is known here.
    pub(super) fn next(&mut self, is_under_way: impl Fn(AttemptId) -> bool) -> Option<Notice> {
        let owed = self.offered.as_ref().filter(|(offer, delivery)| {
            is_under_way(offer.attempt) && delivery.is_answer_owed.load(Ordering::Acquire)
        });
        let may_pass = |notice: &Notice| owed.is_none_or(|(offer, _)| need_not_wait(notice, offer));
        let next = self.unheard.iter().position(may_pass)?;
        self.unheard.remove(next)
    }

    /// The connection ended: the next one begins with what holds then.
    pub(super) fn hang_up(&mut self) {
        self.unheard.clear();
    }

    /// Whether the coordinator has all of the update that was offered last, and it is that of a study's `round`.
    pub(super) fn is_delivered(&self, study: StudyDigest, round: RoundId) -> bool {
        let offered = self.offered.as_ref().filter(|(offer, _)| (offer.study, offer.round) == (study, round));
        offered.is_some_and(|(_, delivery)| delivery.is_complete.load(Ordering::Acquire))
    }
}

/// Whether a notice need not wait for the answer to an offer, nor for the notices that do.
fn need_not_wait(notice: &Notice, offer: &UpdateOffer) -> bool {
    match notice {
        // That the round of the update is open drops nothing; but after the receipt it would be a round to begin.
        Notice::RoundOpened(task) => (task.study, task.round) == (offer.study, offer.round),
        // Of the connection alone, or of nothing that goes on here.
        Notice::Goodbye { .. } | Notice::Alive | Notice::ArtifactWanted { .. } => true,
        _ => false,
    }
}

/// How far the sending of an update has come.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// The coordinator may count it, and has not answered.
    is_answer_owed: AtomicBool,
    /// The coordinator has, or once had, all of it.
    is_complete: AtomicBool,
}

impl Delivery {
    /// It is about to be offered: over an earlier connection it may have been counted.
    fn begin(&self) {
        self.is_answer_owed.store(true, Ordering::Release);
    }

    /// Notes that a stage is reached.
    pub(super) fn reached(&self, stage: Stage) {
        match stage {
            Stage::Leaving => {}
            Stage::Wanted => self.is_answer_owed.store(false, Ordering::Release),
            Stage::Delivered => {
                self.is_answer_owed.store(true, Ordering::Release);
                self.is_complete.store(true, Ordering::Release);
            }
        }
    }
}

impl Agent {
    pub(super) fn heard(&mut self, event: LinkEvent) -> anyhow::Result<()> {
        match event {
            LinkEvent::Up { connection, welcome, lane } => {
                tracing::info!(
                    "connected to `{}` as {} `{}` {lane}",
                    welcome.consortium,
                    welcome.role,
                    welcome.site
                );
                self.connection = Some(connection);
                self.waiting.forget_unanswered();
                self.status.problem = None;
                self.status.lane = Some(lane);
                self.feed(Event::Connected)
            }
            LinkEvent::Notice(notice) => {
                self.hearing.take(notice);
                self.hear_what_waited()
            }
            LinkEvent::Down { problem, hint, passes, retry_in } => {
                let again = retry_in.as_secs();
                match passes {
                    true => tracing::warn!("not connected: {problem}; next attempt in {again} s"),
                    false => tracing::error!("not connected: {problem}; next attempt in {again} s"),
                }
                if let Some(hint) = hint {
                    tracing::warn!("hint: {hint}");
                }
                self.hearing.hang_up();
                self.status.problem = Some(problem);
                self.status.lane = None;
                if self.connection.take().is_some() {
                    self.feed(Event::Disconnected)
                } else {
                    self.write_status()
                }
            }
        }
    }

    /// Acts on the notices that need not wait (any more).
    pub(super) fn hear_what_waited(&mut self) -> anyhow::Result<()> {
        while let Some(notice) = self.next_notice() {
            words::hear(&notice);
            self.end_what_is_over(&notice);
            self.status.no_part.hear(&notice, jiff::Timestamp::now());
            if let Some(event) = event_of(&notice) {
                self.feed(event)?;
            }
            self.note_whether_over(&notice);
            self.hear_of_last_model(&notice)?;
            if let Notice::ArtifactWanted { artifact } = notice {
                self.return_artifact(artifact);
            }
        }
        Ok(())
    }

    /// What waits to be said of a round or a study that is over need not be said.
    fn end_what_is_over(&mut self, notice: &Notice) {
        let over = match *notice {
            Notice::RoundClosed { study, round, .. } => {
                [Errand::Accept(study, round), Errand::Decline(study, round)]
            }
            Notice::StudyFinished { study, .. } => [Errand::Study(study), Errand::Register(study)],
            _ => return,
        };
        over.into_iter().for_each(|errand| self.waiting.end(errand));
    }

    /// For people alone, so that a disk without room stops nothing: it is said anew on each connection.
    fn note_whether_over(&self, notice: &Notice) {
        let (study, last) = match *notice {
            Notice::StudyOffered { study, .. } => (study, None),
            Notice::StudyFinished { study, model } => (study, Some(model)),
            _ => return,
        };
        if let Err(error) = self.studies.note_over(study, last) {
            tracing::warn!("study {}: {:#}", study.short(), anyhow::Error::from(error));
        }
    }

    fn next_notice(&mut self) -> Option<Notice> {
        let errands = &self.errands;
        self.hearing.next(|attempt| errands.contains_key(&Errand::Offer(attempt)))
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{ArtifactHash, Digest};
    use common::wire::{GoodbyeCode, RoundOutcome, RoundTask};

    use super::*;

    const OURS: &str = "the study of the update";
    const OTHER: &str = "another study";

    fn study(name: &str) -> StudyDigest {
        StudyDigest(Digest::of(name.as_bytes()))
    }

    fn artifact(name: &str) -> ArtifactHash {
        ArtifactHash(Digest::of(name.as_bytes()))
    }

    fn update(round: u32, attempt: u8) -> UpdateOffer {
        let (round, attempt) = (RoundId(round), AttemptId::from_bytes([attempt; 16]));
        let (base, update) = (artifact("base"), artifact("update"));
        UpdateOffer { study: study(OURS), round, base, attempt, steps: 10, update }
    }

    fn opened(name: &str, round: u32) -> Notice {
        let (study, round, base) = (study(name), RoundId(round), artifact("base"));
        Notice::RoundOpened(RoundTask { study, round, base, steps: 10, remaining_ms: 60_000 })
    }

    fn closed(round: u32) -> Notice {
        let (study, round, model) = (study(OURS), RoundId(round), Some(artifact("model")));
        Notice::RoundClosed { study, round, model, outcome: RoundOutcome::Committed }
    }

    /// Every kind of notice that tells of more than the connection and an open round.
    fn news() -> Vec<Notice> {
        let (study, round, model) = (study(OURS), RoundId(7), artifact("model"));
        vec![
            Notice::StudyOffered { study, name: "demo".into() },
            closed(7),
            Notice::EvaluationRequested { study, round, model },
            Notice::StudyPaused { study, reason: "maintenance".into() },
            Notice::StudyFinished { study, model },
        ]
    }

    /// All that is heard while the updates of these attempts are being offered.
    fn heard(hearing: &mut Hearing, under_way: &[u8]) -> Vec<Notice> {
        let is_under_way = |attempt: AttemptId| under_way.contains(&attempt.as_bytes()[0]);
        std::iter::from_fn(|| hearing.next(is_under_way)).collect()
    }

    #[test]
    fn without_an_update_every_notice_is_heard_when_it_comes() {
        let mut hearing = Hearing::default();
        for notice in news().into_iter().chain([opened(OURS, 8), closed(8), opened(OTHER, 1)]) {
            hearing.take(notice.clone());
            assert_eq!(heard(&mut hearing, &[]), [notice]);
        }
    }

    #[test]
    fn notices_wait_while_the_answer_may_be_a_receipt() {
        let mut hearing = Hearing::default();
        let delivery = hearing.offer(&update(7, 1), false);
        // The offer itself may be answered with one: the update may have counted over an earlier connection.
        hearing.take(closed(1));
        assert_eq!(heard(&mut hearing, &[1]), []);
        delivery.reached(Stage::Leaving);
        hearing.take(closed(2));
        assert_eq!(heard(&mut hearing, &[1]), []);
        // Bytes are missing, so it does not count.
        delivery.reached(Stage::Wanted);
        assert_eq!(heard(&mut hearing, &[1]), [closed(1), closed(2)]);
        hearing.take(closed(3));
        assert_eq!(heard(&mut hearing, &[1]), [closed(3)]);
        // Asked to count it, the coordinator answers or the connection ends.
        delivery.reached(Stage::Delivered);
        hearing.take(closed(4));
        assert_eq!(heard(&mut hearing, &[1]), []);
    }

    #[test]
    fn what_waited_is_heard_in_its_order_once_it_is_known_what_came_of_the_offer() {
        let mut hearing = Hearing::default();
        hearing.offer(&update(7, 1), false).reached(Stage::Delivered);
        let came: Vec<Notice> = news().into_iter().chain([opened(OURS, 8)]).collect();
        for notice in &came {
            hearing.take(notice.clone());
            assert_eq!(heard(&mut hearing, &[1]), [], "{notice:?}");
        }
        // Whatever it was; only that attempt is waited for, and it is not under way any more.
        assert_eq!(heard(&mut hearing, &[2]), came);
        hearing.take(closed(8));
        assert_eq!(heard(&mut hearing, &[]), [closed(8)]);
    }

    #[test]
    fn an_offer_that_did_not_begin_holds_nothing_back() {
        let mut hearing = Hearing::default();
        hearing.offer(&update(7, 1), false);
        hearing.take(closed(7));
        // There is no connection, or it waits for the next day.
        assert_eq!(heard(&mut hearing, &[]), [closed(7)]);
    }

    #[test]
    fn that_the_round_of_the_update_is_open_passes_what_waits_and_no_other_round_does() {
        let mut hearing = Hearing::default();
        hearing.offer(&update(7, 1), false);
        let waiting = [news().remove(0), opened(OTHER, 7), opened(OURS, 6), opened(OURS, 8)];
        waiting.iter().for_each(|notice| hearing.take(notice.clone()));
        assert_eq!(heard(&mut hearing, &[1]), []);
        hearing.take(opened(OURS, 7));
        assert_eq!(heard(&mut hearing, &[1]), [opened(OURS, 7)]);
        assert_eq!(heard(&mut hearing, &[]), waiting);
    }

    #[test]
    fn a_goodbye_waits_for_nothing_and_neither_does_what_the_coordinator_lost() {
        let mut hearing = Hearing::default();
        hearing.offer(&update(7, 1), false);
        let wanted = Notice::ArtifactWanted { artifact: artifact("model") };
        let goodbye = Notice::Goodbye { code: GoodbyeCode::Stopping };
        [closed(7), wanted.clone(), goodbye.clone()].into_iter().for_each(|notice| hearing.take(notice));
        assert_eq!(heard(&mut hearing, &[1]), [wanted, goodbye]);
    }

    #[test]
    fn notices_go_with_their_connection_and_the_update_is_remembered() {
        let mut hearing = Hearing::default();
        hearing.offer(&update(7, 1), false).reached(Stage::Delivered);
        hearing.take(closed(7));
        hearing.hang_up();
        assert_eq!(heard(&mut hearing, &[]), []);
        assert!(hearing.is_delivered(study(OURS), RoundId(7)));
        // The next connection says it again, and may do so before it gives the receipt.
        hearing.offer(&update(7, 1), false);
        hearing.take(closed(7));
        assert_eq!(heard(&mut hearing, &[1]), []);
    }

    #[test]
    fn an_offer_begins_anew_unless_it_is_under_way() {
        let mut hearing = Hearing::default();
        let delivery = hearing.offer(&update(7, 1), false);
        delivery.reached(Stage::Wanted);
        assert!(Arc::ptr_eq(&delivery, &hearing.offer(&update(7, 1), true)));
        hearing.take(closed(1));
        assert_eq!(heard(&mut hearing, &[1]), [closed(1)], "bytes are missing still");
        assert!(Arc::ptr_eq(&delivery, &hearing.offer(&update(7, 1), false)));
        hearing.take(closed(2));
        assert_eq!(heard(&mut hearing, &[1]), []);
    }

    #[test]
    fn how_far_an_update_came_is_known_of_that_attempt_and_that_round() {
        let mut hearing = Hearing::default();
        assert!(!hearing.is_delivered(study(OURS), RoundId(7)), "none was offered");
        let first = hearing.offer(&update(7, 1), false);
        for stage in [Stage::Leaving, Stage::Wanted] {
            first.reached(stage);
            assert!(!hearing.is_delivered(study(OURS), RoundId(7)), "{stage:?}");
        }
        first.reached(Stage::Delivered);
        assert!(hearing.is_delivered(study(OURS), RoundId(7)));
        assert!(
            !hearing.is_delivered(study(OURS), RoundId(8)) && !hearing.is_delivered(study(OTHER), RoundId(7))
        );
        // Offered again it may lack bytes: the coordinator once had them all, and may count them.
        hearing.offer(&update(7, 1), false).reached(Stage::Wanted);
        assert!(hearing.is_delivered(study(OURS), RoundId(7)));

        let second = hearing.offer(&update(7, 2), false);
        assert!(!hearing.is_delivered(study(OURS), RoundId(7)), "it is another attempt");
        hearing.take(closed(7));
        first.reached(Stage::Wanted);
        assert_eq!(heard(&mut hearing, &[1, 2]), [], "the answer to the second is owed");
        second.reached(Stage::Wanted);
        assert_eq!(heard(&mut hearing, &[1, 2]), [closed(7)]);
    }
}
