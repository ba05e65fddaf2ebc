//! What the store did not take and nobody else would tell us again: it waits for the disk, in order.
//!
//! A disk may be full for days, while sites come and go and say the same every few seconds. Of what a site says again only the last
//! word is kept, so that the queue is as long as the consortium is large, however long it waits.

use std::collections::{VecDeque, vec_deque};

use common::evaluation;
use common::ids::{SiteId, StudyDigest};
use common::round;

use super::study_run::Happening;

/// Happenings that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Retries(VecDeque<(StudyDigest, Happening)>);

/// What a happening is about. Of two about the same the later says all that is still true.
#[derive(PartialEq, Eq)]
enum Topic<'a> {
    /// Whether a site is there.
    Presence(&'a SiteId),
    /// What a site says to being asked.
    Answer(&'a SiteId),
    /// Who is enrolled.
    Trainers,
}

impl Retries {
    /// Puts it last, in the place of what it makes stale.
    pub(super) fn push_back(&mut self, (study, happening): (StudyDigest, Happening)) {
        let topic = topic(&happening);
        self.0.retain(|(of, waiting)| {
            let said = *waiting == happening || topic.is_some() && self::topic(waiting) == topic;
            *of != study || !said
        });
        self.0.push_back((study, happening));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Retries {
    type Item = (StudyDigest, Happening);
    type IntoIter = vec_deque::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn topic(happening: &Happening) -> Option<Topic<'_>> {
    match happening {
        Happening::Round(round::Event::SiteReady { site, .. } | round::Event::SiteGone { site })
        | Happening::Evaluation(
            evaluation::Event::EvaluatorReady { site, .. } | evaluation::Event::EvaluatorGone { site },
        ) => Some(Topic::Presence(site)),
        Happening::Round(
            round::Event::RoundAccepted { site, .. } | round::Event::RoundDeclined { site, .. },
        ) => Some(Topic::Answer(site)),
        Happening::Round(round::Event::TrainersExpected { .. }) => Some(Topic::Trainers),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use common::aggregate::weights::SiteCounts;
    use common::ids::{ArtifactHash, Digest, RoundId};

    use super::*;

    fn study(name: &str) -> StudyDigest {
        StudyDigest(Digest::of(name.as_bytes()))
    }

    fn site(name: &str) -> SiteId {
        name.parse().unwrap()
    }

    fn ready(name: &str) -> Happening {
        Happening::Round(round::Event::SiteReady { site: site(name), counts: SiteCounts::default() })
    }

    fn gone(name: &str) -> Happening {
        Happening::Round(round::Event::SiteGone { site: site(name) })
    }

    fn accepted(name: &str, round: u32) -> Happening {
        Happening::Round(round::Event::RoundAccepted { site: site(name), round: RoundId(round) })
    }

    fn committed() -> Happening {
        let model = ArtifactHash(Digest::of(b"one"));
        Happening::Round(round::Event::Committed { round: RoundId(1), model })
    }

    #[test]
    fn sites_that_come_and_go_for_days_do_not_make_the_queue_longer() {
        let mut retries = Retries::default();
        retries.push_back((study("s"), committed()));
        for round in 0..10_000 {
            for name in ["a", "b"] {
                for happening in [ready(name), accepted(name, round), gone(name)] {
                    retries.push_back((study("s"), happening));
                }
            }
        }
        let left: Vec<_> = retries.into_iter().map(|(_, happening)| happening).collect();
        let last = 9_999;
        assert_eq!(left, [committed(), accepted("a", last), gone("a"), accepted("b", last), gone("b")]);
    }

    #[test]
    fn our_own_results_are_all_kept_in_order_and_studies_apart() {
        let mut retries = Retries::default();
        let timer = |timer| Happening::Round(round::Event::TimerFired(timer));
        let happenings = [timer(round::Timer::Retry), committed(), timer(round::Timer::Deadline), ready("a")];
        for happening in happenings.clone() {
            retries.push_back((study("s"), happening.clone()));
            retries.push_back((study("t"), happening));
        }
        let (of_s, of_t): (Vec<_>, Vec<_>) = retries.into_iter().partition(|(of, _)| *of == study("s"));
        for of in [of_s, of_t] {
            let kept: Vec<_> = of.into_iter().map(|(_, happening)| happening).collect();
            assert_eq!(kept, happenings);
        }
    }
}
