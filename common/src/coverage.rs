//! The coverage matrix: which site annotates which class, in how many volumes.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ClassId, SiteId};
use crate::manifest::{ClassCount, LabelManifest};

/// Sites × classes, from label manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    rows: BTreeMap<SiteId, CoverageRow>,
}

/// What one site contributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoverageRow {
    /// Training volumes n_s.
    pub volumes: u32,
    /// Counts of the classes that the site annotates.
    pub classes: BTreeMap<ClassId, ClassCount>,
}

impl Coverage {
    /// The matrix of these manifests; a later manifest of the same site replaces an earlier one.
    pub fn of<'a>(manifests: impl IntoIterator<Item = &'a LabelManifest>) -> Self {
        let row = |manifest: &LabelManifest| CoverageRow {
            volumes: manifest.volumes,
            classes: manifest.classes.iter().map(|count| (count.class, *count)).collect(),
        };
        Self { rows: manifests.into_iter().map(|m| (m.site.clone(), row(m))).collect() }
    }

    /// The rows, in order of site.
    pub fn rows(&self) -> impl Iterator<Item = (&SiteId, &CoverageRow)> {
        self.rows.iter()
    }

    /// n_sc: volumes of `site` that annotate `class`.
    pub fn annotated(&self, site: &SiteId, class: ClassId) -> u32 {
        let count = self.rows.get(site).and_then(|row| row.classes.get(&class));
        count.map_or(0, |count| count.annotated)
    }

    /// Volumes of all sites that annotate `class`.
    pub fn total(&self, class: ClassId) -> u64 {
        self.rows.keys().map(|site| u64::from(self.annotated(site, class))).sum()
    }

    /// Sites that annotate `class`, in order.
    pub fn sites_of(&self, class: ClassId) -> impl Iterator<Item = &SiteId> {
        self.rows.iter().filter(move |(_, row)| row.classes.contains_key(&class)).map(|(site, _)| site)
    }

    /// Classes that at least one site annotates.
    pub fn covered(&self) -> BTreeSet<ClassId> {
        self.rows.values().flat_map(|row| row.classes.keys().copied()).collect()
    }

    /// Those of `classes` that nobody annotates: the model cannot learn them.
    pub fn uncovered(&self, classes: impl IntoIterator<Item = ClassId>) -> Vec<ClassId> {
        let covered = self.covered();
        classes.into_iter().filter(|class| !covered.contains(class)).collect()
    }
}
