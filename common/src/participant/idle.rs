//! Idle: no round under way here. A notice of an open round of an approved study begins one: the site says that it takes
//! part, then downloads. A study that is not approved is answered with that and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{ArtifactHash, StudyDigest};

/// Most studies that are remembered beside the approved ones. What was decided is kept by the driver, so one that is forgotten is only
/// asked about again.
const MAX_UNAPPROVED: usize = 256;

/// What this site thinks of a study.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Standing {
    /// The operator or the policy is yet to decide.
    Asked,
    Approved {
        needs: BTreeSet<ArtifactHash>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        takes_late: bool,
    },
    Refused,
}

/// The studies that this site heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Studies(BTreeMap<StudyDigest, Standing>);

impl Studies {
    pub(super) fn standing(&self, study: StudyDigest) -> Option<&Standing> {
        self.0.get(&study)
    }

    /// What every task of the study needs beside its model; `None` unless it is approved.
    pub(super) fn needs(&self, study: StudyDigest) -> Option<&BTreeSet<ArtifactHash>> {
        match self.0.get(&study) {
            Some(Standing::Approved { needs, .. }) => Some(needs),
            _ => None,
        }
    }

    /// What the approved studies need beside their models.
    pub(super) fn all_needs(&self) -> impl Iterator<Item = ArtifactHash> {
        let needs = self.0.values().filter_map(|standing| match standing {
            Standing::Approved { needs, .. } => Some(needs),
            _ => None,
        });
        needs.flatten().copied()
    }

    /// Whether an update counts whose round has closed.
    pub(super) fn takes_late(&self, study: StudyDigest) -> bool {
        matches!(self.0.get(&study), Some(Standing::Approved { takes_late: true, .. }))
    }

    pub(super) fn known(&self) -> BTreeSet<StudyDigest> {
        self.0.keys().copied().collect()
    }

    pub(super) fn undecided(&self) -> BTreeSet<StudyDigest> {
        let asked = self.0.iter().filter(|(_, standing)| matches!(standing, Standing::Asked));
        asked.map(|(&study, _)| study).collect()
    }

    /// False if it was not known.
    pub(super) fn forget(&mut self, study: StudyDigest) -> bool {
        self.0.remove(&study).is_some()
    }

    /// Remembers what is thought of a study. An approved one is never forgotten for another, which would leave rounds and models of it
    /// without an answer; this site's own word bounds how many there are.
    pub(super) fn set(&mut self, study: StudyDigest, standing: Standing) {
        self.0.insert(study, standing);
        let unapproved = self.0.iter().filter(|(_, known)| !matches!(known, Standing::Approved { .. }));
        let unapproved: Vec<StudyDigest> = unapproved.map(|(&known, _)| known).collect();
        if unapproved.len() > MAX_UNAPPROVED
            && let Some(forgotten) = unapproved.iter().find(|known| **known != study)
        {
            self.0.remove(forgotten);
        }
    }
}
