//! What waits at this site, and goes on by itself as soon as it can.
//!
//! To the machine it is under way: it asks for nothing again, no failure is counted, and what it gives up leaves this list too.
//! Nothing is remembered over a restart: the machine asks anew, and what still has to wait comes here again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::participant::{Action, Event};

use super::driver::Errand;
use super::files;
use super::work::LOOK_FOR_ROOM;
use crate::egress::Summary;

/// How long it takes at most until something that had no answer is said again.
const LONGEST_AGAIN: Duration = Duration::from_secs(60);

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

impl Wait {
    /// For so many bytes of room in a folder, which `what` did not find.
    pub(super) fn for_room(what: &str, error: &anyhow::Error, folder: &Path, bytes: u64) -> Self {
        let name = files::disk_trouble(error).unwrap_or("disk");
        let need = bytes.saturating_add(files::SPARE_ROOM).div_ceil(1 << 20);
        let why = format!("{name}: {what}: {error:#}; {need} MiB are needed, {}", files::free_space(folder));
        Self { until: Until::Room { folder: folder.to_owned(), bytes }, why }
    }

    /// For the next try, which may have an answer.
    pub(super) fn again(why: String) -> Self {
        Self { until: Until::Again(LOOK_FOR_ROOM), why }
    }
}

/// When it can go on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Until {
    /// The policy lets so much more leave: on the next day.
    Allowance(Summary),
    /// The disk of a folder has room for so many bytes.
    Room { folder: PathBuf, bytes: u64 },
    /// So much time has passed.
    Again(Duration),
}

impl Until {
    /// Whether it is worth a try, `since` so long. What is left of a disk is known, but not all that may be wrong with it: so
    /// it is tried no more often than `least`.
    pub(super) fn has_room(&self, since: Duration, least: Duration) -> bool {
        match self {
            Self::Room { folder, bytes } => since >= least && files::has_room(folder, *bytes),
            Self::Allowance(_) | Self::Again(_) => false,
        }
    }
}

/// An errand that waits, and the action that begins it again.
pub(super) struct Held {
    pub(super) errand: Errand,
    pub(super) action: Action,
    pub(super) wait: Box<Wait>,
}

/// All that waits.
#[derive(Default)]
pub(super) struct Waiting {
    held: BTreeMap<Errand, (Held, Instant)>,
    /// What had no answer on this connection, and how long it waited for the next try.
    unanswered: BTreeMap<Errand, Duration>,
}

impl Waiting {
    /// Adds an errand, in the place of the same one. One that had no answer before waits twice as long.
    pub(super) fn add(&mut self, mut held: Held) {
        if let Until::Again(after) = &mut held.wait.until {
            if let Some(before) = self.unanswered.get(&held.errand) {
                *after = before.saturating_mul(2).min(LONGEST_AGAIN);
            }
            self.unanswered.insert(held.errand, *after);
        }
        self.held.insert(held.errand, (held, Instant::now()));
    }

    /// Forgets an errand: it is not wanted any more, or over.
    pub(super) fn end(&mut self, errand: Errand) {
        self.held.remove(&errand);
        self.unanswered.remove(&errand);
    }

    /// A connection begins: what had no answer over the last is asked for anew.
    pub(super) fn forget_unanswered(&mut self) {
        self.held.retain(|_, (held, _)| !matches!(held.wait.until, Until::Again(_)));
        self.unanswered.clear();
    }

    /// Whether an errand had no answer before.
    pub(super) fn is_unanswered(&self, errand: Errand) -> bool {
        self.unanswered.contains_key(&errand)
    }

    /// Whether an errand waits.
    pub(super) fn has(&self, errand: Errand) -> bool {
        self.held.contains_key(&errand)
    }

    /// Lets go of all that can go on now, by what it waits for and how long it has; the actions that begin it again.
    pub(super) fn take_ready(&mut self, mut can_go_on: impl FnMut(&Until, Duration) -> bool) -> Vec<Action> {
        let ready = self.held.extract_if(.., |_, (held, since)| can_go_on(&held.wait.until, since.elapsed()));
        ready.map(|(_, (held, _))| held.action).collect()
    }

    /// Why something is not sent today, in words; `None` when nothing waits for that.
    pub(super) fn for_allowance(&self) -> Option<String> {
        self.why(|until| matches!(until, Until::Allowance(_)))
    }

    /// What has no room on the disk, in words; `None` when nothing waits for that.
    pub(super) fn for_room(&self) -> Option<String> {
        self.why(|until| matches!(until, Until::Room { .. }))
    }

    fn why(&self, is_asked_for: impl Fn(&Until) -> bool) -> Option<String> {
        let mut waits = self.held.values().map(|(held, _)| &held.wait);
        waits.find(|wait| is_asked_for(&wait.until)).map(|wait| wait.why.clone())
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{ArtifactHash, AttemptId, Digest};

    use super::*;
    use crate::egress::Kind;

    fn held(text: &str) -> Held {
        let digest = Digest::of(text.as_bytes());
        let model = ArtifactHash(digest);
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
        assert_eq!(waiting.take_ready(|_, _| false), []);
        waiting.end(first);
        assert_eq!(waiting.for_allowance().as_deref(), Some("two"));
        assert_eq!(waiting.take_ready(|_, _| true), [action]);
        assert!(!waiting.has(second));
        assert_eq!(waiting.for_allowance(), None);
    }

    #[test]
    fn what_had_no_answer_is_said_again_ever_later_until_it_is_over_or_a_connection_begins() {
        let mut waiting = Waiting::default();
        let again = || Held { wait: Box::new(Wait::again("internal".to_owned())), ..held("accept") };
        let (errand, action) = (again().errand, again().action);
        let wait_once = |waiting: &mut Waiting| {
            let mut after = Duration::ZERO;
            waiting.add(again());
            let ready = waiting.take_ready(|until, _| {
                let Until::Again(wait) = until else { panic!("it has no answer") };
                after = *wait;
                true
            });
            assert_eq!(ready, std::slice::from_ref(&action));
            after.as_secs()
        };
        assert!(!waiting.is_unanswered(errand));
        let waits: Vec<_> = (0..6).map(|_| wait_once(&mut waiting)).collect();
        assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
        assert!(waiting.is_unanswered(errand) && !waiting.has(errand), "it is under way");
        waiting.end(errand);
        assert_eq!(wait_once(&mut waiting), 5, "it had an answer");

        waiting.add(again());
        waiting.add(held("another day"));
        waiting.forget_unanswered();
        assert!(!waiting.has(errand) && !waiting.is_unanswered(errand));
        assert_eq!(waiting.for_allowance().as_deref(), Some("another day"), "not of the connection");
    }

    #[test]
    fn what_has_no_room_is_tried_when_there_is_some_and_not_all_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let refused = anyhow::Error::from(files::require_room(folder.path(), u64::MAX).unwrap_err());
        let wait = |bytes| Wait::for_room("artifact 01234567", &refused, folder.path(), bytes);
        let why = wait(20 << 20).why;
        assert!(why.starts_with("disk full: artifact 01234567: cannot write in "), "{why}");
        assert!(
            why.contains("; 21 MiB are needed, ") && why.contains(" MiB are free on the disk of "),
            "{why}"
        );
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert!(wait(0).until.has_room(minute, minute));
        assert!(!wait(0).until.has_room(second, minute), "too soon");
        assert!(!wait(u64::MAX).until.has_room(minute, minute), "too full");
        let mut waiting = Waiting::default();
        waiting.add(Held { wait: Box::new(wait(0)), ..held("fetch") });
        assert!(waiting.for_room().is_some() && waiting.for_allowance().is_none());
    }
}
