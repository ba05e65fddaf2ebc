//! Leave one site out: how a model does on the scans of a site that did not help to train it, class by class, beside what
//! other models score on the same scans.
//!
//! Pure: reports of studies go in, numbers come out, or why there are none; `table` says them in words. That the site was left
//! out is read from the rounds of the report, not believed; what the study's initial model had seen is in no report. A gap is
//! a difference of two means and has no interval, for that needs the values of single cases, which never leave a site.

mod table;

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{ClassId, ParseIdError, SiteId, TaxonomyDigest};
use serde::Serialize;

use super::{ClassScore, ReportData};

/// State of a study that is over.
const FINISHED: &str = "finished";

/// Why a study is no experiment of this kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrossSiteError {
    /// The site was not left out.
    #[error("`{site}` helped to train the study that was to leave it out")]
    TookPart {
        /// Which.
        site: SiteId,
    },
    /// Its last model is yet to come.
    #[error("the study is {state}: expected one that is finished")]
    NotFinished {
        /// Where it stands.
        state: String,
    },
    /// Nobody says how its last model does there.
    #[error("`{evaluator}` has not scored the study's last model")]
    NotScored {
        /// Who was to.
        evaluator: SiteId,
    },
    /// Its classes are others: a number of the same id would be of another structure.
    #[error(
        "the study is over taxonomy {got}: expected {expected}, that of the study beside which it stands"
    )]
    OtherTaxonomy {
        /// That of the study that left the site out.
        expected: TaxonomyDigest,
        /// That of this one.
        got: TaxonomyDigest,
    },
}

/// The experiment: each site left out once.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CrossSite {
    /// The sites, in order of the experiment.
    pub sites: Vec<LeftOut>,
    /// What has no score, now or ever.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// A study that is not scored at a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The site that was left out.
    pub site: SiteId,
    /// The study's name.
    pub study: String,
    /// Why there is no score, in words.
    pub why: String,
}

/// One site whose scans nobody trained on, and what models score there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// The site, by the name under which it trains elsewhere.
    pub site: SiteId,
    /// The name under which its scans were scored.
    pub evaluator: SiteId,
    /// What the classes' ids mean.
    pub taxonomy: TaxonomyDigest,
    /// The classes that it scored, by id.
    pub classes: Vec<ClassRow>,
}

/// One class at a site that was left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassRow {
    /// The class.
    pub class: ClassId,
    /// Its name, for people.
    pub name: String,
    /// Whether it is a lesion, which means leave out.
    pub lesion: bool,
    /// Those who trained and annotate it.
    pub learnt_from: Vec<SiteId>,
    /// What the model that never saw the site scores.
    pub outcome: Outcome,
    /// What other models score on the same scans; one that is absent could not know the class.
    pub others: BTreeMap<Baseline, Dice>,
}

/// What came of a class at a site that was left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A score.
    Scored(Dice),
    /// None of those who trained annotates the class: no model of theirs can know it, and a zero would say nothing of it.
    NobodyElse,
    /// The site keeps its numbers back: they would tell of too few patients.
    TooFew,
}

/// A mean Dice with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Dice {
    /// Scans that show the class, or fewer, where the site keeps back how many.
    pub n: u32,
    /// Mean over these, 0 to 1.
    pub mean: f64,
    /// 95 % interval of the mean, from resampling patients at the site.
    pub interval: [f64; 2],
}

/// Another model that is scored on the same scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Trained in one place with the data of all the others: what federating costs.
    Pooled,
    /// Trained by the site alone, on other scans of its own: what it has without the consortium.
    Alone,
    /// Trained by all, the site among them, on other scans of its own: what joining brings it.
    Joined,
}

/// Another model against the one that never saw the site, over the organs that both know.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// How many organs.
    pub organs: usize,
    /// The other model's mean Dice over these.
    pub other: f64,
    /// The left-out model's mean less the other's.
    pub difference: f64,
}

/// The name under which a site that trains scores models, on scans that it does not train on: a membership of its own,
/// for a role is in a certificate.
///
/// # Errors
/// The name would be too long for a site's.
pub fn evaluator_of(site: &SiteId) -> Result<SiteId, ParseIdError> {
    format!("{site}-held-out").parse()
}

impl Baseline {
    /// All, in the order of columns.
    pub const ALL: [Self; 3] = [Self::Pooled, Self::Alone, Self::Joined];

    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pooled => "pooled",
            Self::Alone => "alone",
            Self::Joined => "joined",
        }
    }
}

impl CrossSite {
    /// Adds what the study of `report` has scored at the site that it left out, or that it has not: the others are a result
    /// without it.
    ///
    /// # Errors
    /// [`CrossSiteError::TookPart`].
    pub fn add(
        &mut self,
        site: SiteId,
        evaluator: SiteId,
        report: &ReportData,
    ) -> Result<(), CrossSiteError> {
        match LeftOut::of(site.clone(), evaluator, report) {
            Ok(left_out) => self.sites.push(left_out),
            Err(why) => self.missing.push(Missing::of(site, report, why)?),
        }
        Ok(())
    }

    /// Sets another model beside all that are there: the last one of the study of `report`.
    ///
    /// # Errors
    /// [`CrossSiteError::OtherTaxonomy`].
    pub fn beside(&mut self, baseline: Baseline, report: &ReportData) -> Result<(), CrossSiteError> {
        for left_out in &mut self.sites {
            match left_out.clone().beside(baseline, report) {
                Ok(both) => *left_out = both,
                Err(why) => self.missing.push(Missing::of(left_out.site.clone(), report, why)?),
            }
        }
        Ok(())
    }
}

impl Missing {
    /// Hands back what is no want of a score, but a mistake.
    fn of(site: SiteId, report: &ReportData, why: CrossSiteError) -> Result<Self, CrossSiteError> {
        match why {
            CrossSiteError::NotFinished { .. } | CrossSiteError::NotScored { .. } => {
                Ok(Self { site, study: report.study.name.clone(), why: why.to_string() })
            }
            CrossSiteError::TookPart { .. } | CrossSiteError::OtherTaxonomy { .. } => Err(why),
        }
    }
}

impl LeftOut {
    /// What the last model of a study that `site` took no part in scores on its scans, which are `evaluator`'s.
    ///
    /// # Errors
    /// [`CrossSiteError`] when the study is not over, not scored, or has an update of `site` in it.
    pub fn of(site: SiteId, evaluator: SiteId, report: &ReportData) -> Result<Self, CrossSiteError> {
        if contributors(report).contains(&site) {
            return Err(CrossSiteError::TookPart { site });
        }
        let row = |score: &ClassScore| {
            let summary = report.classes.iter().find(|summary| summary.class == score.class);
            let learnt_from = learnt_from(report, score.class);
            ClassRow {
                class: score.class,
                name: summary.map_or_else(|| format!("class {}", score.class), |s| s.name.clone()),
                lesion: summary.is_some_and(|summary| summary.lesion),
                outcome: Outcome::of(score, !learnt_from.is_empty()),
                learnt_from,
                others: BTreeMap::new(),
            }
        };
        let classes = last_scores(report, &evaluator)?.iter().map(row).collect();
        Ok(Self { site, evaluator, taxonomy: report.study.taxonomy, classes })
    }

    /// Adds what another model scores on the same scans: the last one of the study of `report`.
    ///
    /// # Errors
    /// [`CrossSiteError`] when that study is not over, not scored, or of other classes.
    pub fn beside(mut self, baseline: Baseline, report: &ReportData) -> Result<Self, CrossSiteError> {
        let (expected, got) = (self.taxonomy, report.study.taxonomy);
        if got != expected {
            return Err(CrossSiteError::OtherTaxonomy { expected, got });
        }
        for score in last_scores(report, &self.evaluator)? {
            let row = self.classes.iter_mut().find(|row| row.class == score.class);
            let known = !learnt_from(report, score.class).is_empty();
            if let (Some(row), Some(dice), true) = (row, Dice::of(score), known) {
                row.others.insert(baseline, dice);
            }
        }
        Ok(self)
    }

    /// Mean Dice of the model that never saw the site, over the organs that it can know; `None` when there is none.
    pub fn mean_dice(&self) -> Option<f64> {
        mean(self.organs().map(|(_, dice)| dice.mean))
    }

    /// How far the model that never saw the site lies from another; `None` when no organ is known to both.
    pub fn gap(&self, baseline: Baseline) -> Option<Gap> {
        let pair = |(row, dice): (&ClassRow, Dice)| Some((dice.mean, row.others.get(&baseline)?.mean));
        let pairs: Vec<(f64, f64)> = self.organs().filter_map(pair).collect();
        let other = mean(pairs.iter().map(|pair| pair.1))?;
        let difference = mean(pairs.iter().map(|(left_out, other)| left_out - other))?;
        Some(Gap { organs: pairs.len(), other, difference })
    }

    /// The gaps to all models that are there.
    pub fn gaps(&self) -> BTreeMap<Baseline, Gap> {
        Baseline::ALL.into_iter().filter_map(|baseline| Some((baseline, self.gap(baseline)?))).collect()
    }

    /// The organs with a score.
    fn organs(&self) -> impl Iterator<Item = (&ClassRow, Dice)> {
        self.classes.iter().filter(|row| !row.lesion).filter_map(|row| Some((row, row.outcome.dice()?)))
    }
}

impl Outcome {
    fn of(score: &ClassScore, known: bool) -> Self {
        match Dice::of(score) {
            _ if !known => Self::NobodyElse,
            Some(dice) => Self::Scored(dice),
            None => Self::TooFew,
        }
    }

    /// The score, if it is one.
    pub const fn dice(self) -> Option<Dice> {
        match self {
            Self::Scored(dice) => Some(dice),
            Self::NobodyElse | Self::TooFew => None,
        }
    }
}

impl Dice {
    fn of(score: &ClassScore) -> Option<Self> {
        Some(Self { n: score.n?, mean: score.mean_dice?, interval: score.interval? })
    }
}

/// The scores of the study's last model by this evaluator.
fn last_scores<'a>(report: &'a ReportData, evaluator: &SiteId) -> Result<&'a [ClassScore], CrossSiteError> {
    let study = &report.study;
    if study.state != FINISHED {
        return Err(CrossSiteError::NotFinished { state: study.state.clone() });
    }
    let scores = report.scores.iter().find(|s| s.site == *evaluator && s.model == study.model);
    match scores {
        Some(scores) => Ok(&scores.classes),
        None => Err(CrossSiteError::NotScored { evaluator: evaluator.clone() }),
    }
}

/// The sites with an update in some round: a certificate and a manifest are not enough.
fn contributors(report: &ReportData) -> BTreeSet<&SiteId> {
    report.rounds.iter().flat_map(|round| &round.sites).collect()
}

/// The contributors that annotate `class`.
fn learnt_from(report: &ReportData, class: ClassId) -> Vec<SiteId> {
    let trained = contributors(report);
    let annotates = |cell: &&super::CoverageCell| {
        cell.class == class && cell.annotated > 0 && trained.contains(&cell.site)
    };
    report.coverage.iter().filter(annotates).map(|cell| cell.site.clone()).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
pub(super) mod tests {
    use common::ids::{ArtifactHash, Digest};

    use super::*;
    use crate::report::tests::sample;

    fn site(name: &str) -> SiteId {
        name.parse().unwrap()
    }

    /// The sample study, as if these sites alone had trained it; its evaluator is `site-d`.
    fn trained_by(sites: &[&str]) -> ReportData {
        let mut report = sample();
        report.coverage.retain(|cell| sites.contains(&cell.site.as_str()));
        report.rounds.iter_mut().for_each(|round| round.sites = sites.iter().map(|s| site(s)).collect());
        report
    }

    /// The sample, with `site-d` left out, and beside it a model that is better by 0.01 everywhere and one that knows
    /// what `site-a` annotates.
    pub(in crate::report) fn left_out() -> LeftOut {
        let mut better = sample();
        let scores = better.scores.iter_mut().flat_map(|scores| &mut scores.classes);
        scores.for_each(|score| score.mean_dice = score.mean_dice.map(|dice| dice + 0.01));
        let left_out = LeftOut::of(site("site-d"), site("site-d"), &trained_by(&["site-a", "site-c"]));
        let left_out = left_out.unwrap().beside(Baseline::Pooled, &better).unwrap();
        left_out.beside(Baseline::Alone, &trained_by(&["site-a"])).unwrap()
    }

    fn row(left_out: &LeftOut, id: u8) -> &ClassRow {
        left_out.classes.iter().find(|row| row.class.get() == id).unwrap()
    }

    #[test]
    fn a_class_that_only_the_left_out_site_annotates_has_no_score() {
        let left_out = left_out();
        // The aorta is site-b's alone, and b took no part; the model's score of it is no knowledge.
        assert_eq!(row(&left_out, 8).outcome, Outcome::NobodyElse);
        assert!(row(&left_out, 8).learnt_from.is_empty());
        assert!(row(&left_out, 8).others.contains_key(&Baseline::Pooled), "b was in that pool");
        assert!(!row(&left_out, 8).others.contains_key(&Baseline::Alone));
        assert_eq!(row(&left_out, 6).learnt_from, [site("site-a"), site("site-c")]);
        assert!(row(&left_out, 6).outcome.dice().is_some());
    }

    #[test]
    fn a_class_with_too_few_scans_has_no_score_either() {
        let left_out = LeftOut::of(site("site-d"), site("site-d"), &sample()).unwrap();
        assert_eq!(row(&left_out, 26).outcome, Outcome::TooFew);
    }

    #[test]
    fn gaps_are_over_the_organs_that_both_models_know() {
        let left_out = left_out();
        let pooled = left_out.gap(Baseline::Pooled).unwrap();
        // All organs of a and c: nine.
        assert_eq!(pooled.organs, 9);
        assert!((pooled.difference + 0.01).abs() < 1e-12, "{pooled:?}");
        assert!((left_out.mean_dice().unwrap() - pooled.other - pooled.difference).abs() < 1e-12);
        assert_eq!(left_out.gap(Baseline::Alone).unwrap().organs, 5);
        assert_eq!(left_out.gap(Baseline::Joined), None);
    }

    #[test]
    fn a_site_whose_update_was_averaged_was_not_left_out() {
        let mut report = trained_by(&["site-a", "site-c"]);
        report.rounds[3].sites.push(site("site-d"));
        let refused = LeftOut::of(site("site-d"), site("site-d"), &report);
        assert_eq!(refused, Err(CrossSiteError::TookPart { site: site("site-d") }));
    }

    #[test]
    fn a_study_that_goes_on_or_whose_last_model_is_not_scored_is_refused() {
        let mut report = sample();
        let of = |report: &ReportData| LeftOut::of(site("site-d"), site("site-d"), report);
        report.study.model = ArtifactHash(Digest::of(b"a later one"));
        assert_eq!(of(&report), Err(CrossSiteError::NotScored { evaluator: site("site-d") }));
        report.study.state = "collecting".to_owned();
        assert_eq!(of(&report), Err(CrossSiteError::NotFinished { state: "collecting".to_owned() }));
    }

    #[test]
    fn a_study_without_a_score_leaves_the_others_a_result() {
        let (unscored, mut aborted) = (trained_by(&["site-a"]), sample());
        (aborted.study.name, aborted.study.state) = ("without-f".to_owned(), "aborted".to_owned());
        let mut table = CrossSite::default();
        table.add(site("site-d"), site("site-d"), &trained_by(&["site-a", "site-c"])).unwrap();
        table.add(site("site-e"), site("site-e-held-out"), &unscored).unwrap();
        table.add(site("site-f"), site("site-f-held-out"), &aborted).unwrap();
        table.beside(Baseline::Joined, &aborted).unwrap();
        let text = table.to_text();
        for words in [
            "0.891 [0.831, 0.931]",
            "\nno score of `Abdomen on phantoms` at site-e: `site-e-held-out` has not scored the study's last model\n",
            "\nno score of `without-f` at site-f: the study is aborted: expected one that is finished\n",
            "\nno score of `without-f` at site-d: the study is aborted",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert_eq!(serde_json::to_value(&table).unwrap()["missing"][0]["site"], "site-e");
        let took_part = table.add(site("site-a"), site("site-d"), &sample());
        assert_eq!(took_part, Err(CrossSiteError::TookPart { site: site("site-a") }));
    }

    #[test]
    fn a_study_of_other_classes_is_not_set_beside() {
        let mut other = sample();
        other.study.taxonomy = TaxonomyDigest(Digest::of(b"another"));
        let (expected, got) = (sample().study.taxonomy, other.study.taxonomy);
        let refused = left_out().beside(Baseline::Joined, &other);
        assert_eq!(refused, Err(CrossSiteError::OtherTaxonomy { expected, got }));
    }

    #[test]
    fn the_json_has_numbers_and_says_why_one_is_missing() {
        let json =
            serde_json::to_value(CrossSite { sites: vec![left_out()], ..CrossSite::default() }).unwrap();
        let classes = &json["sites"][0]["classes"];
        assert!(classes[0]["outcome"]["scored"]["mean"].is_f64(), "{classes}");
        assert!(classes[0]["others"]["pooled"]["interval"].is_array(), "{classes}");
        assert_eq!(classes[6]["outcome"], "nobody-else", "{classes}");
    }
}
