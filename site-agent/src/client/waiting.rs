//! What waits at this site, and goes on by itself as soon as it can.
//!
//! To the machine it is under way: it asks for nothing again, no failure is counted, and what it gives up leaves this list too.
//! Nothing is remembered over a restart: the machine asks anew, and what still has to wait comes here again.

use std::collections::BTreeMap;

use common::participant::{Action, Event};

use super::driver::Errand;
use crate::egress::Summary;

/// What came of an errand.
pub(super) enum Came {
    /// Something that the machine must know.
    Event(Event),
    /// Nothing of the kind.
    Nothing,
    /// It has to wait.
    Waits(Box<Wait>),
}

/// What is waited for, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wait {
    pub(super) until: Until,
    /// In words for the operator.
    pub(super) why: String,
}

/// When it can go on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Until {
    /// The policy lets so much more leave: on the next day.
    Allowance(Summary),
}

/// An errand that waits, and the action that begins it again.
pub(super) struct Held {
    pub(super) errand: Errand,
    pub(super) action: Action,
    pub(super) wait: Box<Wait>,
}

/// All that waits.
#[derive(Default)]
pub(super) struct Waiting(BTreeMap<Errand, Held>);

impl Waiting {
    /// Adds an errand, in the place of the same one.
    pub(super) fn add(&mut self, held: Held) {
        self.0.insert(held.errand, held);
    }

    /// Forgets an errand: it is not wanted any more.
    pub(super) fn end(&mut self, errand: Errand) {
        self.0.remove(&errand);
    }

    /// Whether an errand waits.
    pub(super) fn has(&self, errand: Errand) -> bool {
        self.0.contains_key(&errand)
    }

    /// Lets go of all that can go on now; the actions that begin it again.
    pub(super) fn take_ready(&mut self, mut can_go_on: impl FnMut(&Until) -> bool) -> Vec<Action> {
        let ready = self.0.extract_if(.., |_, held| can_go_on(&held.wait.until));
        ready.map(|(_, held)| held.action).collect()
    }

    /// Why something is not sent today, in words; `None` when nothing waits for that.
    pub(super) fn for_allowance(&self) -> Option<String> {
        let mut waits = self.0.values().map(|held| &held.wait);
        waits.find(|wait| matches!(wait.until, Until::Allowance(_))).map(|wait| wait.why.clone())
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{AttemptId, Digest, ModelHash};

    use super::*;
    use crate::egress::Kind;

    fn held(text: &str) -> Held {
        let digest = Digest::of(text.as_bytes());
        let model = ModelHash(digest);
        let message =
            Summary { kind: Kind::EvaluationReport, study: None, round: None, content: digest, bytes: 7 };
        let wait = Box::new(Wait { until: Until::Allowance(message), why: text.to_owned() });
        Held { errand: Errand::Report(model), action: Action::SendReport { model, report: digest }, wait }
    }

    #[test]
    fn what_waits_goes_on_when_it_can_and_not_when_it_is_given_up() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.for_allowance(), None);
        let (one, two) = (held("one"), held("two"));
        let (first, second, action) = (one.errand, two.errand, two.action.clone());
        waiting.add(one);
        waiting.add(two);
        assert!(waiting.has(first) && !waiting.has(Errand::Offer(AttemptId::from_bytes([1; 16]))));
        assert_eq!(waiting.take_ready(|_| false), []);
        waiting.end(first);
        assert_eq!(waiting.for_allowance().as_deref(), Some("two"));
        assert_eq!(waiting.take_ready(|_| true), [action]);
        assert!(!waiting.has(second));
        assert_eq!(waiting.for_allowance(), None);
    }
}
