//! The label manifests of a study's trainers, as far as they count.
//!
//! An earlier build took some that this one refuses. Of such a manifest nothing is counted: its site is like one that has
//! registered none. The operator reads why in the status, and the site when it registers, as it does whenever it connects.

use std::collections::BTreeMap;

use common::aggregate::weights::SiteCounts;
use common::ids::{SiteId, StudyDigest};
use common::manifest::LabelManifest;
use common::signed::SignedDocument;
use common::study::Study;

use super::Driver;
use crate::store::StoreError;

/// What is stored of a study's label manifests; their signatures were checked when they came.
#[derive(Default)]
pub(super) struct Manifests {
    pub(super) counting: Vec<LabelManifest>,
    /// Why each of the others does not count.
    pub(super) refused: BTreeMap<SiteId, String>,
}

impl Driver {
    pub(super) async fn manifests(&self, study: &StudyDigest) -> Result<Manifests, StoreError> {
        let mut manifests = Manifests::default();
        let Some(run) = self.studies.get(study) else { return Ok(manifests) };
        for stored in self.store.manifests(study).await? {
            match read_manifest(&stored.document, &stored.site, run.document.study()) {
                Ok(manifest) => manifests.counting.push(manifest),
                Err(why) => drop(manifests.refused.insert(stored.site, why)),
            }
        }
        Ok(manifests)
    }
}

/// Reads a manifest that was stored for `site`.
///
/// # Errors
/// Why it does not count, in one line.
pub(crate) fn read_manifest(document: &[u8], site: &SiteId, study: &Study) -> Result<LabelManifest, String> {
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let manifest =
        LabelManifest::from_bytes(document).map_err(|problems| first_line(problems.to_string()))?;
    check_manifest(&manifest, site, study)?;
    Ok(manifest)
}

/// Whether a manifest is one of `site` for this study.
///
/// # Errors
/// Why not, in words for the site.
pub(crate) fn check_manifest(manifest: &LabelManifest, site: &SiteId, study: &Study) -> Result<(), String> {
    if manifest.site != *site || manifest.taxonomy != study.taxonomy.digest() {
        return Err("the manifest is of another site or taxonomy".to_owned());
    }
    // Weights and quorums go by what is annotated: a class that nobody knows would count in them.
    match manifest.classes.iter().find(|count| study.taxonomy.class(count.class).is_none()) {
        Some(count) => {
            Err(format!("the manifest counts class {}, which the study does not have", count.class))
        }
        None => Ok(()),
    }
}

/// What the machines need of a manifest.
pub(crate) fn counts(manifest: &LabelManifest) -> SiteCounts {
    let annotated = manifest.classes.iter().map(|count| (count.class, count.annotated));
    SiteCounts { volumes: manifest.volumes, annotated: annotated.collect() }
}
