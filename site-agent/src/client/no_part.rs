//! The studies that a running agent takes no part in for now, and why: what `site-agent status` tells of them.
//!
//! For people: nothing goes by it. After a restart it is as before once the policy was asked again, the coordinator has said again how its
//! studies stand, and the scans were counted again.

use std::collections::BTreeMap;

use common::ids::StudyDigest;
use common::wire::{Notice, RoundTask};
use serde::{Deserialize, Serialize};

use crate::egress::PolicyRefusal;

/// By study.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NoPart(BTreeMap<StudyDigest, Why>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Why {
    /// The site's own scans cannot be used for it.
    Data(String),
    /// A rule of the site's policy is against it.
    Policy(String),
    /// So said the coordinator then. Resumed, the study is offered anew; earlier coordinators then told only whom they asked for something.
    Paused { at: jiff::Timestamp, reason: String },
}

impl NoPart {
    /// The scans here cannot be used for a study.
    pub(crate) fn lacks_data(&mut self, study: StudyDigest, why: &str) {
        self.0.insert(study, Why::Data(why.to_owned()));
    }

    /// What the policy says to a study; `None` if nothing.
    pub(crate) fn judged(&mut self, study: StudyDigest, refusal: Option<&PolicyRefusal>) {
        match refusal {
            Some(refusal) => drop(self.0.insert(study, Why::Policy(refusal.to_string()))),
            None if self.refused_by_policy(study).is_some() => drop(self.0.remove(&study)),
            None => {}
        }
    }

    /// The rule that is against a study.
    pub fn refused_by_policy(&self, study: StudyDigest) -> Option<&str> {
        match self.0.get(&study) {
            Some(Why::Policy(rule)) => Some(rule),
            _ => None,
        }
    }

    /// What a notice changes.
    pub(super) fn hear(&mut self, notice: &Notice, now: jiff::Timestamp) {
        match notice {
            // Offered, the scans are counted again; the policy is read at the start alone.
            Notice::StudyOffered { study, .. } if self.refused_by_policy(*study).is_some() => {}
            Notice::StudyOffered { study, .. } | Notice::StudyFinished { study, .. } => {
                self.0.remove(study);
            }
            Notice::StudyPaused { study, reason } => {
                let paused = Why::Paused { at: now, reason: reason.to_string() };
                match self.0.get_mut(study) {
                    // That stays when the pause ends.
                    Some(Why::Data(_) | Why::Policy(_)) => {}
                    Some(why) => *why = paused,
                    None => drop(self.0.insert(*study, paused)),
                }
            }
            Notice::RoundOpened(RoundTask { study, .. }) => {
                if let Some(Why::Paused { .. }) = self.0.get(study) {
                    self.0.remove(study);
                }
            }
            Notice::RoundClosed { .. }
            | Notice::EvaluationRequested { .. }
            | Notice::Goodbye { .. }
            | Notice::Alive
            | Notice::ArtifactWanted { .. } => {}
        }
    }

    /// A line for each study.
    pub fn words(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(study, why)| {
            let study = study.short();
            match why {
                Why::Data(why) => {
                    format!(
                        "study {study}: not taking part: {why}: run `site-agent check`, then start the agent again"
                    )
                }
                Why::Policy(rule) => {
                    format!(
                        "study {study}: not taking part: {rule}: whoever keeps the policy can change it; then start the agent again"
                    )
                }
                Why::Paused { at, reason } => {
                    format!("study {study}: paused by the coordinator at {at:.0}: {reason}")
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{ArtifactHash, Digest, RoundId};

    use super::*;

    fn study(byte: u8) -> StudyDigest {
        StudyDigest(Digest::from_bytes([byte; 32]))
    }

    fn opened(study: StudyDigest) -> Notice {
        let base = ArtifactHash(Digest::from_bytes([9; 32]));
        Notice::RoundOpened(RoundTask { study, round: RoundId(1), base, steps: 10, remaining_ms: 1000 })
    }

    fn offered(study: StudyDigest) -> Notice {
        Notice::StudyOffered { study, name: "liver".into() }
    }

    fn paused(study: StudyDigest, reason: &str) -> Notice {
        Notice::StudyPaused { study, reason: reason.into() }
    }

    #[test]
    fn a_study_is_told_until_something_is_asked_for_in_it_again() {
        let (mut no_part, at) = (NoPart::default(), jiff::Timestamp::UNIX_EPOCH);
        no_part.hear(&paused(study(0xab), "by the operator"), at);
        no_part.hear(&paused(study(0xab), "by the operator: a holiday"), at);
        no_part.lacks_data(study(0xcd), "the training scans cannot be used");
        let told: Vec<String> = no_part.words().collect();
        assert_eq!(
            told,
            [
                "study abababab: paused by the coordinator at 1970-01-01T00:00:00Z: by the operator: a holiday",
                "study cdcdcdcd: not taking part: the training scans cannot be used: run `site-agent check`, then \
                 start the agent again",
            ]
        );
        for goes_on in [opened(study(0xab)), offered(study(0xab))] {
            let mut no_part = no_part.clone();
            no_part.hear(&goes_on, at);
            assert_eq!(no_part.words().collect::<Vec<_>>(), told[1..], "{goes_on:?}");
        }
    }

    #[test]
    fn scans_that_cannot_be_used_are_told_beyond_a_pause_until_they_are_counted_again() {
        let (mut no_part, at) = (NoPart::default(), jiff::Timestamp::UNIX_EPOCH);
        no_part.lacks_data(study(1), "the training scans cannot be used");
        let told: Vec<String> = no_part.words().collect();
        for notice in [paused(study(1), "by the operator"), opened(study(1))] {
            no_part.hear(&notice, at);
            assert_eq!(no_part.words().collect::<Vec<_>>(), told);
        }
        no_part.hear(&offered(study(1)), at);
        assert_eq!(no_part, NoPart::default());
    }

    #[test]
    fn what_the_policy_refuses_is_told_until_it_is_judged_anew_or_over() {
        let (mut no_part, at, study) = (NoPart::default(), jiff::Timestamp::UNIX_EPOCH, study(0xab));
        let (file, what) = ("policy.toml".to_owned(), "`update`".to_owned());
        let refusal = PolicyRefusal { file, line: Some(22), rule: "egress.allow", what };
        no_part.judged(study, Some(&refusal));
        for notice in [offered(study), paused(study, "by the operator"), opened(study)] {
            no_part.hear(&notice, at);
        }
        let told: Vec<String> = no_part.words().collect();
        let rule = "policy.toml:22: `egress.allow` refuses `update`";
        assert_eq!(no_part.refused_by_policy(study), Some(rule));
        assert!(told[0].starts_with(&format!("study abababab: not taking part: {rule}: ")), "{told:?}");

        let mut judged = no_part.clone();
        judged.judged(study, None);
        let model = ArtifactHash(Digest::from_bytes([9; 32]));
        no_part.hear(&Notice::StudyFinished { study, model }, at);
        assert_eq!((judged, no_part), (NoPart::default(), NoPart::default()));
        // What else keeps the site out of a study is not for the policy to say.
        let mut lacking = NoPart::default();
        lacking.lacks_data(study, "the training scans cannot be used");
        let before = lacking.clone();
        lacking.judged(study, None);
        assert_eq!(lacking, before);
    }
}
