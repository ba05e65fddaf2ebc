//! One arm of a comparison: a consortium that trains in a folder of its own, and what it scored in few numbers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use common::ids::ClassId;
use common::taxonomy::{ClassKind, Taxonomy};
use serde::Serialize;

use super::Programs;
use super::consortium::{Consortium, Member};
use super::study::Settings;
use crate::cli::line;
use crate::files;
use crate::report::ReportData;

/// One arm that trains.
pub(super) struct Arm {
    pub(super) name: String,
    pub(super) members: Vec<Member>,
    pub(super) settings: Settings,
}

impl Arm {
    /// Trains in the new folder `folder/NAME`; the report of the last model.
    pub(super) async fn run(&self, programs: &Programs, folder: &Path) -> anyhow::Result<ReportData> {
        let Self { name, members, settings } = self;
        line(&format!("\n{name}: {} rounds of {} steps", settings.rounds, settings.steps));
        let folder = folder.join(name);
        files::create_private_dir(&folder)?;
        let consortium = Consortium { programs, folder: &folder, members, settings };
        consortium.run(false).await.with_context(|| name.clone())
    }
}

/// What an arm scored on the held-out scans: mean Dice.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Scores {
    pub(super) organs: f64,
    pub(super) lesions: f64,
    pub(super) classes: BTreeMap<ClassId, f64>,
}

impl Scores {
    /// The means of `dice` over organs and over lesions.
    pub(super) fn of(dice: impl IntoIterator<Item = (ClassId, f64)>, taxonomy: &Taxonomy) -> Self {
        let classes: BTreeMap<ClassId, f64> = dice.into_iter().collect();
        let mut scores = Self { classes, ..Self::default() };
        (scores.organs, scores.lesions) =
            (scores.mean(|class| is_organ(class, taxonomy)), scores.mean(|class| !is_organ(class, taxonomy)));
        scores
    }

    /// Mean over the scored classes that are wanted; not a number when there is none.
    pub(super) fn mean(&self, wanted: impl Fn(ClassId) -> bool) -> f64 {
        let values: Vec<f64> =
            self.classes.iter().filter(|(class, _)| wanted(**class)).map(|c| *c.1).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }
}

pub(super) fn is_organ(class: ClassId, taxonomy: &Taxonomy) -> bool {
    taxonomy.class(class).is_some_and(|class| class.kind == ClassKind::Organ)
}

/// Says what an arm scored, and gives it back.
pub(super) fn told(name: &str, scores: Scores) -> Scores {
    let Scores { organs, lesions, .. } = scores;
    line(&format!("{name}: held-out Dice {organs:.3} over organs, {lesions:.3} over lesions"));
    scores
}

/// Mean Dice of each class under the last model, by each evaluator that tells it.
pub(super) fn final_dice(data: &ReportData) -> impl Iterator<Item = (ClassId, f64)> {
    let scores = data.final_scores().into_iter().flat_map(|scores| &scores.classes);
    scores.filter_map(|score| Some((score.class, score.mean_dice?)))
}
