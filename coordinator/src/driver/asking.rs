//! Who is asked for an artifact that the disk lost: of the sites that may hold it one at a time, the next when that one had its
//! time (docs/decisions/0024). A site that has it not, or keeps it, says nothing.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use common::ids::{ArtifactHash, Role, SiteId};
use common::time::Timestamp;
use common::wire::Notice;
use tokio::task::spawn_blocking;

use super::Driver;
use super::damage::{Damage, damage, use_in};
use super::lost::Look;
use crate::store::StoreError;

/// How long a turn lasts: the site that was asked begins meanwhile to return the artifact.
const ANSWER: Duration = Duration::from_secs(10 * 60);
/// How long a turn lasts in which it began. No site can make it longer, whatever it says and however often it connects.
const RETURN: Duration = Duration::from_secs(60 * 60);

/// Who was asked for an artifact last, and when the next one is.
#[derive(Debug, Default)]
pub(super) struct Asking {
    last: Option<SiteId>,
    /// When the turn began.
    since: Timestamp,
    next_at: Timestamp,
}

impl Asking {
    /// When the next turn begins.
    pub(super) fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// A turn begins; whom to ask of those who may hold the artifact: the one after the last.
    fn begin_turn(&mut self, holders: &BTreeSet<SiteId>, now: Timestamp) -> Option<SiteId> {
        let after =
            |last: &SiteId| holders.range::<SiteId, _>((Bound::Excluded(last), Bound::Unbounded)).next();
        self.last = self.last.as_ref().and_then(after).or_else(|| holders.first()).cloned();
        (self.since, self.next_at) = (now, now.after(ANSWER));
        self.last.clone()
    }

    /// Whether a site that has just come is to be asked in the turn under way: it was before, or who was is gone.
    fn is_for(&self, came: &SiteId, is_here: impl Fn(&SiteId) -> bool) -> bool {
        let is_under_way = self.next_at != Timestamp::default();
        is_under_way && self.last.as_ref().is_none_or(|last| last == came || !is_here(last))
    }

    /// It is asked for what is left of the turn.
    fn ask(&mut self, site: &SiteId) -> SiteId {
        self.last.insert(site.clone()).clone()
    }

    /// A site begins to return it.
    fn begins(&mut self, site: &SiteId) {
        if self.last.as_ref() == Some(site) {
            self.next_at = self.since.after(RETURN);
        }
    }
}

impl Driver {
    /// Looks, by name and size, for what studies that go on need and the disk lost since the last run.
    pub(super) async fn look_for_artifacts(&mut self) {
        let going_on = self.studies.values().filter(|run| !run.rounds.is_over_for(Role::Trainer));
        let needed: BTreeSet<ArtifactHash> = going_on
            .flat_map(|run| [run.rounds.status().model, run.document.study().embeddings.artifact])
            .collect();
        let store = self.store.clone();
        let looked = spawn_blocking(move || {
            let lost = |artifact| Some((artifact, damage(&store, &artifact, Look::Name)?));
            needed.into_iter().filter_map(lost).collect::<Vec<_>>()
        });
        for (artifact, words) in looked.await.unwrap_or_default() {
            self.note_damage(artifact, &words);
        }
    }

    /// Asks for what is lost: the next site, of each artifact for which it is time; or the one that `came` just now, where nobody
    /// else is at it. A disk that takes nothing takes no artifact.
    pub(super) async fn ask_for_lost(&mut self, came: Option<&SiteId>) {
        if self.trouble.is_some() {
            return;
        }
        let now = self.clock.now();
        let is_due = |damage: &Damage| match came {
            Some(site) => damage.asking.is_for(site, |last| self.peers.has(last)),
            None => damage.asking.next_at() <= now,
        };
        let due = self.damaged.iter().filter(|(_, damage)| is_due(damage)).map(|(artifact, _)| *artifact);
        for artifact in due.collect::<Vec<_>>() {
            let holders = match self.holders(&artifact).await {
                Ok(holders) => holders,
                Err(error) => return self.note_fault(&error),
            };
            let Some(damage) = self.damaged.get_mut(&artifact) else { continue };
            let asked = match came {
                Some(site) => holders.contains(site).then(|| damage.asking.ask(site)),
                None => damage.asking.begin_turn(&holders, now),
            };
            if let Some(site) = asked {
                self.peers.tell(&site, Notice::ArtifactWanted { artifact });
                self.say_of(&artifact, "artifact-wanted", &format!("is asked of {site}: the disk lost it"));
            }
        }
    }

    /// The trainers here that may hold an artifact and return it: those that approved a study that needs it. No evaluator sends
    /// anything but reports.
    async fn holders(&self, artifact: &ArtifactHash) -> Result<BTreeSet<SiteId>, StoreError> {
        let mut holders = BTreeSet::new();
        for (study, run) in &self.studies {
            if use_in(run, artifact).is_some() {
                let approved = self.store.approvals(study).await?;
                holders.extend(approved.into_iter().filter(|site| self.peers.returns_artifacts(site)));
            }
        }
        Ok(holders)
    }

    /// Whether an artifact that a site would return is wanted. It has it, then: it has longer than to answer.
    pub(super) fn wants_artifact(&mut self, site: &SiteId, artifact: &ArtifactHash) -> bool {
        let is_needed = self.use_of(artifact).is_some();
        let Some(damage) = self.damaged.get_mut(artifact).filter(|_| is_needed) else { return false };
        damage.asking.begins(site);
        true
    }

    /// A site returned an artifact: it is here, every byte.
    pub(super) async fn artifact_returned(&mut self, site: &SiteId, artifact: &ArtifactHash) {
        let words = format!("is back: {site} had it, and every byte is as it was published");
        self.say_of(artifact, "artifact-returned", &words);
        self.note_whole(artifact);
        self.go_on_with(artifact).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::lost::tests::driver;
    use super::*;
    use crate::fixture::Fixture;

    fn site(name: &str) -> SiteId {
        name.parse().unwrap()
    }

    fn minutes(minutes: u64) -> Timestamp {
        Timestamp(minutes * 60_000)
    }

    #[test]
    fn those_who_may_hold_it_are_asked_by_turns_of_ten_minutes() {
        let holders = ["east", "north", "west"].map(site).into();
        let mut asking = Asking::default();
        assert_eq!(asking.next_at(), minutes(0), "at once");
        for (minute, name) in [(0, "east"), (10, "north"), (20, "west"), (30, "east")] {
            assert_eq!(asking.begin_turn(&holders, minutes(minute)), Some(site(name)));
            assert_eq!(asking.next_at(), minutes(minute + 10));
        }
        // Whoever was asked last may be gone.
        assert_eq!(asking.begin_turn(&["north", "west"].map(site).into(), minutes(40)), Some(site("north")));
        assert_eq!(asking.begin_turn(&BTreeSet::new(), minutes(50)), None);
        assert_eq!(asking.next_at(), minutes(60), "nobody is there: it is no matter of haste");
        assert_eq!(asking.begin_turn(&holders, minutes(60)), Some(site("east")));
    }

    #[test]
    fn who_comes_is_asked_unless_another_is_at_it() {
        let (mut asking, [north, south]) = (Asking::default(), ["north", "south"].map(site));
        assert!(!asking.is_for(&north, |_| true), "the first turn begins at once, with all who are there");
        asking.begin_turn(&BTreeSet::new(), minutes(0));
        assert!(asking.is_for(&north, |_| true), "nobody was asked");
        asking.ask(&north);
        assert!(!asking.is_for(&south, |_| true), "north has its time");
        assert!(asking.is_for(&south, |_| false), "north is gone");
        assert!(asking.is_for(&north, |_| true), "it did not hear, or its connection broke");
    }

    #[test]
    fn who_begins_has_an_hour_and_no_way_to_more() {
        let (mut asking, [north, south]) = (Asking::default(), ["north", "south"].map(site));
        let holders = [north.clone(), south.clone()].into();
        asking.begin_turn(&holders, minutes(5));
        asking.begins(&south);
        assert_eq!(asking.next_at(), minutes(15), "it was not asked");
        for _ in 0..3 {
            asking.begins(&north);
            asking.ask(&north);
            assert_eq!(asking.next_at(), minutes(65));
        }
        assert_eq!(asking.begin_turn(&holders, minutes(65)), Some(south));
    }

    #[tokio::test]
    async fn what_a_study_needs_and_the_disk_lost_is_found_at_the_start_and_wanted_until_it_is_back() {
        let fixture = Fixture::new().await;
        let store = fixture.store().await;
        let study = fixture.study.study();
        let lost = study.embeddings.artifact;
        let mut driver = driver(&fixture, store.clone()).await;
        driver.look_for_artifacts().await;
        assert!(driver.damaged.is_empty() && !driver.wants_artifact(&site("north"), &lost));

        std::fs::remove_dir_all(store.artifacts().folder(&lost)).unwrap();
        driver.look_for_artifacts().await;
        assert_eq!(driver.damaged.keys().collect::<Vec<_>>(), [&lost]);
        assert_eq!(driver.next_wake_up(), Duration::ZERO, "it is asked for at once");
        driver.wake_up().await;
        assert!(driver.next_wake_up() > Duration::ZERO, "nobody is there");
        assert!(driver.wants_artifact(&site("north"), &lost));
        assert!(!driver.wants_artifact(&site("north"), &study.initial_model), "it is here");
        driver.artifact_returned(&site("north"), &lost).await;
        assert!(driver.fault().is_none() && !driver.wants_artifact(&site("north"), &lost));
    }
}
