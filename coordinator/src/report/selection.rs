//! Which model the validation sites would choose. Sealed test sites have no say: what chooses a model cannot test it. Nor
//! have sites that have left, or the choice would stay where they left it, and sites that have trained.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::ids::{ModelHash, Role, RoundId, SiteId};
use serde::{Deserialize, Serialize};

use super::{ModelScores, ReportData, SiteSummary};

/// A model, chosen by its scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selected {
    /// The round that made it.
    pub round: RoundId,
    /// The model.
    pub model: ModelHash,
    /// Mean over the validation sites of the mean Dice of the classes that some trainer annotates.
    pub mean_dice: f64,
}

/// Models that were to be scored and are passed over: not every validation site has scored them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unscored {
    /// How many.
    pub models: usize,
    /// The round that made the newest.
    pub newest: RoundId,
    /// The validation sites of which a report is missing.
    pub missing: BTreeSet<SiteId>,
}

/// The choice, and among what it is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// The best model among those that each validation site has scored; of equal ones the earlier.
    pub best: Option<Selected>,
    /// The round of the newest of these.
    pub newest: Option<RoundId>,
    /// What is not among them.
    pub unscored: Option<Unscored>,
}

impl Selection {
    /// The models passed over, where the newest is newer than all that is chosen among.
    pub fn newer_unscored(&self) -> Option<&Unscored> {
        self.unscored.as_ref().filter(|unscored| Some(unscored.newest) > self.newest)
    }
}

/// As it continues "passed over: ".
impl fmt::Display for Unscored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { models, newest, missing } = self;
        let sites = missing.iter().map(SiteId::as_str).collect::<Vec<_>>().join(", ");
        match models {
            1 => write!(f, "the model of round {newest}, without a report of {sites}"),
            n => write!(f, "{n} models, the newest of round {newest}, without reports of {sites}"),
        }
    }
}

impl ReportData {
    /// What the validation sites choose. A site counts from its first report on.
    pub fn selection(&self) -> Selection {
        let mut by_model: BTreeMap<(RoundId, ModelHash), BTreeMap<&SiteId, f64>> = BTreeMap::new();
        for scores in self.scores.iter().filter(|scores| self.has_say(&scores.site)) {
            if let Some(mean) = self.mean_of_trained(scores) {
                by_model.entry((scores.round, scores.model)).or_default().insert(&scores.site, mean);
            }
        }
        let voters: BTreeSet<&SiteId> = by_model.values().flat_map(|means| means.keys().copied()).collect();
        if voters.is_empty() {
            return Selection::default();
        }
        // All may be behind: a model that nobody has scored yet was to be scored too.
        let scored: BTreeSet<ModelHash> = by_model.keys().map(|&(_, model)| model).collect();
        for round in self.rounds.iter().filter(|round| round.evaluated) {
            if let Some(model) = round.model.filter(|model| !scored.contains(model)) {
                by_model.insert((round.round, model), BTreeMap::new());
            }
        }
        // Means over different scans cannot be compared.
        let (complete, short): (Vec<_>, Vec<_>) =
            by_model.iter().partition(|(_, means)| means.len() == voters.len());
        let selected = complete.iter().map(|&(&(round, model), means)| {
            let mean_dice = means.values().sum::<f64>() / means.len() as f64;
            Selected { round, model, mean_dice }
        });
        let lacks = |means: &BTreeMap<&SiteId, f64>| {
            let missing = voters.iter().filter(|site| !means.contains_key(*site));
            missing.copied().cloned().collect::<Vec<SiteId>>()
        };
        let unscored = short.last().map(|&(&(newest, _), _)| Unscored {
            models: short.len(),
            newest,
            missing: short.iter().flat_map(|&(_, means)| lacks(means)).collect(),
        });
        Selection {
            best: selected.reduce(|best, next| if next.mean_dice > best.mean_dice { next } else { best }),
            newest: complete.last().map(|&(&(round, _), _)| round),
            unscored,
        }
    }

    /// The best model of [`ReportData::selection`].
    pub fn best_model(&self) -> Option<Selected> {
        self.selection().best
    }

    /// Whether there is a site, with reports or without, that may have a say in which model is chosen.
    pub fn has_validation_site(&self) -> bool {
        self.sites.iter().any(|summary| summary.role == Role::Evaluator && self.has_say(&summary.site))
    }

    /// Whether the site's scores choose: it is not sealed, has not left, and nobody trained on its scans.
    pub fn has_say(&self, site: &SiteId) -> bool {
        !self.is_sealed(site) && !self.has_left(site) && !self.has_trained(site)
    }

    /// Whether the site is no evaluator any more: its membership was ended, and with a new one it may train.
    pub fn has_left(&self, site: &SiteId) -> bool {
        let left = |summary: &SiteSummary| summary.revoked || summary.role != Role::Evaluator;
        self.sites.iter().any(|summary| summary.site == *site && left(summary))
    }

    /// Whether updates of the site are in the models: before it became an evaluator, it trained.
    pub fn has_trained(&self, site: &SiteId) -> bool {
        self.rounds.iter().any(|round| round.sites.contains(site))
    }

    /// Mean Dice over organs and lesions that some trainer annotates, of one model at one site.
    fn mean_of_trained(&self, scores: &ModelScores) -> Option<f64> {
        let trained = scores.classes.iter().filter(|score| self.is_trained(score.class));
        let dice: Vec<f64> = trained.filter_map(|score| score.mean_dice).collect();
        (!dice.is_empty()).then(|| dice.iter().sum::<f64>() / dice.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{add_site, sample};

    fn best_round(data: &ReportData) -> Option<u32> {
        data.best_model().map(|selected| selected.round.0)
    }

    #[test]
    fn the_best_model_need_not_be_the_last() {
        let mut data = sample();
        assert_eq!(best_round(&data), Some(8));
        let last = data.scores.iter_mut().filter(|scores| scores.round == RoundId(8));
        last.flat_map(|scores| &mut scores.classes).for_each(|score| score.mean_dice = Some(0.1));
        let selected = data.best_model().unwrap();
        assert_eq!((selected.round, selected.model), (RoundId(7), data.scores[7].model));
        assert!(selected.mean_dice > 0.5);
    }

    #[test]
    fn a_sealed_site_has_no_say_in_which_model_is_best() {
        let mut data = sample();
        let mut sealed = data.scores[3].clone();
        sealed.site = "site-t".parse().unwrap();
        sealed.classes.iter_mut().for_each(|score| score.mean_dice = Some(1.0));
        data.study.sealed = vec![sealed.site.clone()];
        data.scores.push(sealed);
        assert_eq!(best_round(&data), Some(8));
        data.study.sealed = data.scores.iter().map(|scores| scores.site.clone()).collect();
        assert_eq!(best_round(&data), None);
    }

    #[test]
    fn a_site_that_has_left_does_not_hold_the_choice_where_it_left_it() {
        let mut data = sample();
        add_site(&mut data, "site-e", 0, 0.1);
        assert_eq!(best_round(&data), Some(0));
        let left = SiteSummary { site: "site-e".parse().unwrap(), revoked: true, ..data.sites[3].clone() };
        data.sites.push(left);
        let Selection { best, newest, unscored } = data.selection();
        assert_eq!((best.unwrap().round, newest, unscored), (RoundId(8), Some(RoundId(8)), None));
        // Invited again, to train: its scores are of scans that it now trains on.
        data.sites[4] = SiteSummary { revoked: false, role: Role::Trainer, ..data.sites[4].clone() };
        assert_eq!(best_round(&data), Some(8));
        data.sites[4].role = Role::Evaluator;
        assert_eq!(best_round(&data), Some(0));
        data.rounds[2].sites.push("site-e".parse().unwrap());
        assert_eq!(best_round(&data), Some(8), "it has trained");
    }

    #[test]
    fn models_that_are_passed_over_are_counted_with_the_sites_that_owe_reports() {
        let mut data = sample();
        assert_eq!(data.selection().unscored, None);
        add_site(&mut data, "site-e", 5, 0.0);
        let selection = data.selection();
        let unscored =
            Unscored { models: 8, newest: RoundId(8), missing: BTreeSet::from(["site-e".parse().unwrap()]) };
        assert_eq!(selection.newer_unscored(), Some(&unscored));
        assert_eq!(unscored.to_string(), "8 models, the newest of round 8, without reports of site-e");
        // One that came late has scored what matters.
        data.scores.retain(|scores| (4..=5).contains(&scores.round.0));
        data.rounds.truncate(5);
        let selection = data.selection();
        assert_eq!((selection.newest, selection.newer_unscored()), (Some(RoundId(5)), None));
        assert_eq!(
            selection.unscored.unwrap().to_string(),
            "4 models, the newest of round 4, without reports of site-d, site-e"
        );
    }

    #[test]
    fn a_model_that_nobody_has_scored_yet_is_passed_over_too() {
        let mut data = sample();
        data.scores.retain(|scores| scores.round.0 <= 5);
        data.rounds[7].evaluated = false;
        let unscored = data.selection().unscored.unwrap();
        assert_eq!(unscored.to_string(), "2 models, the newest of round 7, without reports of site-d");
        data.scores.clear();
        assert_eq!(data.selection(), Selection::default(), "nobody chooses");
        assert!(data.has_validation_site());
        data.study.sealed = vec!["site-d".parse().unwrap()];
        assert!(!data.has_validation_site());
    }

    #[test]
    fn only_models_that_every_validation_site_has_scored_are_compared() {
        let mut data = sample();
        for round in [2, 5] {
            let mut second = data.scores[round].clone();
            second.site = "site-e".parse().unwrap();
            data.scores.push(second);
        }
        assert_eq!(best_round(&data), Some(5));
    }
}
