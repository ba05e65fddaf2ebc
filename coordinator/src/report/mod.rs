//! The generalisation report: one `ReportData`, written as `report.json`, as `report.csv`, and as a page that needs
//! nothing else.
//!
//! Only numbers that sites chose to send are in it; there is no picture of a scan and no way to put one in.
//! `page` says how it looks, `chart` draws, `selection` chooses a model, `board` sets its sites beside each other,
//! [`cross_site`] several reports; gathering the data from the store is in [`crate::operator`].

mod board;
mod chart;
pub mod cross_site;
mod csv;
mod page;
mod selection;

use std::io;
use std::path::{Path, PathBuf};

use common::ids::{ClassId, ModelHash, Role, RoundId, SiteId, StudyDigest, TaxonomyDigest};
use serde::{Deserialize, Serialize};

use crate::files::{self, Access};
pub use board::{Across, Board, Sealed, Spread};
pub use selection::{Selected, Selection, Unscored};

/// Version of `report.json`.
pub const FORMAT: u32 = 1;

/// Everything that the report says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportData {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// When it was made, RFC 3339.
    pub generated_at: String,
    /// The consortium's name.
    pub consortium: String,
    /// What was trained.
    pub study: StudySummary,
    /// The classes that somebody annotated or scored, by id.
    pub classes: Vec<ClassSummary>,
    /// The sites, by name.
    pub sites: Vec<SiteSummary>,
    /// What each site annotated; a pair that is absent is not annotated.
    pub coverage: Vec<CoverageCell>,
    /// Scores of each published model by each evaluator, by round.
    pub scores: Vec<ModelScores>,
    /// Training losses, by site, in order of time: means, where a site has told more than a thousand.
    pub losses: Vec<LossSeries>,
    /// The rounds, in order.
    pub rounds: Vec<RoundSummary>,
    /// What follows from the rest, for readers of `report.json`. Nobody here reads it: [`ReportData::board()`] makes it anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<Board>,
    /// Pictures in sites' own folders. Never made or held by a coordinator: a demo, which owns both sides, lists them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<Overlay>,
}

/// The study in a few words.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudySummary {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: StudyDigest,
    /// The taxonomy that all parties pinned.
    pub taxonomy: TaxonomyDigest,
    /// Where it stands, in one word.
    pub state: String,
    /// Rounds asked for.
    pub rounds: u32,
    /// Rounds that made a model.
    pub rounds_committed: u32,
    /// The seed of every random draw.
    pub seed: u64,
    /// Kind of class embeddings.
    pub embedding: String,
    /// How updates were weighted.
    pub weights: String,
    /// How they became the next model; absent in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// Optimiser steps of each site in a round; likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_per_round: Option<u32>,
    /// Version of the metrics' definitions.
    pub metric_version: u32,
    /// The last global model.
    pub model: ModelHash,
    /// Evaluators that are sealed: they score promoted models alone and have no say in which one that is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sealed: Vec<SiteId>,
}

/// One class.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassSummary {
    /// Its id.
    pub class: ClassId,
    /// Its name, for people.
    pub name: String,
    /// Whether it is a lesion, which headline means leave out.
    pub lesion: bool,
}

/// One site.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSummary {
    /// Its name.
    pub site: SiteId,
    /// Its role.
    pub role: Role,
    /// Training volumes by its manifest; evaluators have none.
    pub volumes: Option<u32>,
    /// Names of its data sets by its manifest.
    pub datasets: Vec<String>,
    /// Payload bytes that it sent to the coordinator.
    pub bytes_sent: u64,
    /// Payload bytes that the coordinator sent to it.
    pub bytes_received: u64,
    /// Whether its membership has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}

/// Site × class.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoverageCell {
    /// The site.
    pub site: SiteId,
    /// The class.
    pub class: ClassId,
    /// Training volumes in which it is annotated.
    pub annotated: u32,
    /// Of these, volumes that show it; absent where the site keeps it back.
    pub present: Option<u32>,
    /// Of `annotated`, volumes that a model labelled, and no annotator.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pseudo: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What one evaluator says about one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelScores {
    /// The evaluator.
    pub site: SiteId,
    /// The round that made the model.
    pub round: RoundId,
    /// The model.
    pub model: ModelHash,
    /// Its scores, by class.
    pub classes: Vec<ClassScore>,
}

/// One class of one model on one evaluator's held-out scans.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassScore {
    /// The class.
    pub class: ClassId,
    /// Scans in which it is present, or fewer, where the site keeps back how many; absent, with all scores, where small numbers
    /// keep these back too.
    pub n: Option<u32>,
    /// Mean Dice over these, 0 to 1.
    pub mean_dice: Option<f64>,
    /// Interval of the mean, from resampling patients at the site.
    pub interval: Option<[f64; 2]>,
    /// Mean normalised surface Dice.
    pub mean_nsd: Option<f64>,
    /// Its tolerance, millimetres.
    pub tau_mm: Option<f64>,
    /// Scans in which it is absent.
    pub n_absent: Option<u32>,
    /// Mean volume predicted in those, millilitres.
    pub false_positive_ml: Option<f64>,
}

/// Loss of one trainer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSeries {
    /// The site.
    pub site: SiteId,
    /// `(rounds done, loss)`: 2.5 is the middle of round 3.
    pub points: Vec<(f64, f64)>,
}

/// One round.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundSummary {
    /// Which.
    pub round: RoundId,
    /// How it ended, or `open`.
    pub outcome: String,
    /// From opening to commit, seconds.
    pub seconds: Option<f64>,
    /// Sites whose updates were averaged.
    pub sites: Vec<SiteId>,
    /// The model that it made.
    pub model: Option<ModelHash>,
    /// What each site's update is in it. Nothing of rounds of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contributions: Vec<Contribution>,
    /// Whether evaluators are to score the model of this round.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluated: bool,
}

/// What one site's update is in the model of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contribution {
    /// The site.
    pub site: SiteId,
    /// Its share of the average, 0 to 1. It follows from the training volumes and annotations that manifests tell exactly.
    pub share: f64,
    /// L2 norm of its update, before any clipping.
    pub norm: f64,
}

/// A picture that lies in a site's own folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// Whose folder.
    pub site: SiteId,
    /// Where, as a link from the page.
    pub path: String,
}

/// The report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The page.
    #[error("making the page")]
    Page(#[from] askama::Error),
    /// The JSON.
    #[error("making report.json")]
    Json(#[from] serde_json::Error),
    /// A file.
    #[error("{}", .path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

impl ReportData {
    /// The page, whole: no script, no link to another host.
    ///
    /// # Errors
    /// [`ReportError::Page`].
    pub fn to_html(&self) -> Result<String, ReportError> {
        page::render(self)
    }

    /// Writes `report.json`, `report.csv` and `report.html` into `dir`, and gives the page's path.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, dir: &Path) -> Result<PathBuf, ReportError> {
        files::create_private_dir(dir)
            .map_err(|source| ReportError::File { path: dir.to_owned(), source })?;
        let mut json = serde_json::to_vec_pretty(&Self { board: Some(self.board()), ..self.clone() })?;
        json.push(b'\n');
        let page = dir.join("report.html");
        for (path, bytes) in [
            (dir.join("report.json"), json),
            (dir.join("report.csv"), csv::text(self).into_bytes()),
            (page.clone(), self.to_html()?.into_bytes()),
        ] {
            files::write_atomic(&path, &bytes, Access::Public)
                .map_err(|source| ReportError::File { path, source })?;
        }
        Ok(page)
    }

    /// The last scores of each evaluator, by site.
    pub fn final_scores(&self) -> Vec<&ModelScores> {
        let mut last: std::collections::BTreeMap<&SiteId, &ModelScores> = std::collections::BTreeMap::new();
        for scores in &self.scores {
            let newer = last.get(&scores.site).is_none_or(|before| before.round <= scores.round);
            if newer {
                last.insert(&scores.site, scores);
            }
        }
        last.into_values().collect()
    }

    /// Mean of the classes' mean Dice in `scores`, over lesions or over all else, of the classes that some trainer
    /// annotates; `None` when none is known.
    pub fn mean_dice(&self, scores: &ModelScores, lesions: bool) -> Option<f64> {
        let of_kind = |class: ClassId| self.classes.iter().any(|c| c.class == class && c.lesion == lesions);
        let wanted = |class: ClassId| of_kind(class) && self.is_trained(class);
        let values: Vec<f64> =
            scores.classes.iter().filter(|s| wanted(s.class)).filter_map(|s| s.mean_dice).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Whether some trainer annotates the class: of others a model can know nothing.
    pub fn is_trained(&self, class: ClassId) -> bool {
        self.coverage.iter().any(|cell| cell.class == class && cell.annotated > 0)
    }
}

#[cfg(test)]
pub(crate) mod tests;
