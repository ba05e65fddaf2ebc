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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, TaxonomyDigest};
    use crate::manifest::CaseLabels;

    fn class(id: u8) -> ClassId {
        ClassId::new(id).unwrap()
    }

    fn manifest(site: &str, annotated: &[u8], volumes: usize) -> LabelManifest {
        let annotated: BTreeSet<_> = annotated.iter().map(|&id| class(id)).collect();
        let (dataset, patient) = ("mine", "anna");
        let case = CaseLabels { dataset, patient, annotated: &annotated, present: &annotated, pseudo: false };
        let taxonomy = TaxonomyDigest(Digest::of(b"taxonomy"));
        LabelManifest::count(site.parse().unwrap(), taxonomy, vec![case; volumes], 1)
    }

    #[test]
    fn the_matrix_says_who_annotates_what_and_what_nobody_does() {
        let manifests = [manifest("b", &[2, 6], 4), manifest("a", &[1, 6], 3)];
        let coverage = Coverage::of(&manifests);
        assert_eq!(coverage.rows().map(|(site, _)| site.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(coverage.annotated(&"a".parse().unwrap(), class(6)), 3);
        assert_eq!(coverage.annotated(&"a".parse().unwrap(), class(2)), 0);
        assert_eq!(coverage.total(class(6)), 7);
        assert_eq!(coverage.sites_of(class(2)).map(SiteId::as_str).collect::<Vec<_>>(), ["b"]);
        assert_eq!(coverage.uncovered([1, 2, 3, 6].map(class)), [class(3)]);
    }
}
