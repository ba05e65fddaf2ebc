//! What the agent hears from the coordinator, and in which order it acts on it.
//!
//! Answers come on the stream of the errand that asked, notices on one of their own. So the receipt of a round's last update and
//! the notice that the round is over, which the coordinator sends after it, may come in the other order; and so may, on a new
//! connection, the receipt of an update that was sent over the last one and the notice of the round that followed. Then the update would be
//! dropped as one that nobody answered for. While the coordinator owes an answer that may be a receipt, notices wait.

use std::sync::atomic::{AtomicBool, Ordering};

use common::participant::Event;
use common::wire::Notice;

use super::connection::LinkEvent;
use super::driver::{Agent, Errand};
use super::translate::event_of;
use super::words;
use crate::egress::Stage;

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
    pub(super) fn begin(&self) {
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

    /// Whether the coordinator has all of it.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
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
                self.status.problem = None;
                self.status.lane = Some(lane);
                self.feed(Event::Connected)
            }
            LinkEvent::Notice(Notice::Goodbye { code }) => {
                tracing::info!("the coordinator says goodbye: {}", code.code());
                Ok(())
            }
            LinkEvent::Notice(notice) if self.unheard.is_empty() && self.names_the_offered_round(&notice) => {
                self.act_on(&notice)
            }
            LinkEvent::Notice(notice) => {
                self.unheard.push_back(notice);
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
                // The next connection begins with what holds then.
                self.unheard.clear();
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

    /// Acts on the notices that waited, once no answer is owed any more.
    pub(super) fn hear_what_waited(&mut self) -> anyhow::Result<()> {
        while !self.is_answer_owed()
            && let Some(notice) = self.unheard.pop_front()
        {
            self.act_on(&notice)?;
        }
        Ok(())
    }

    fn act_on(&mut self, notice: &Notice) -> anyhow::Result<()> {
        words::hear(notice);
        event_of(notice).map_or(Ok(()), |event| self.feed(event))
    }

    /// Whether it says that the round of the update is open. That drops nothing; but after the receipt, which may come later, it
    /// would be a round to begin.
    fn names_the_offered_round(&self, notice: &Notice) -> bool {
        let Notice::RoundOpened(task) = notice else { return false };
        self.offered.as_ref().is_some_and(|(offer, _)| (offer.study, offer.round) == (task.study, task.round))
    }

    /// Until what came of it is known here: the errand is one until then.
    fn is_answer_owed(&self) -> bool {
        self.offered.as_ref().is_some_and(|(offer, delivery)| {
            self.errands.contains_key(&Errand::Offer(offer.attempt))
                && delivery.is_answer_owed.load(Ordering::Acquire)
        })
    }
}
