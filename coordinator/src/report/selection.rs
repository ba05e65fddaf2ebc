//! Which model the validation sites would choose. Sealed test sites have no say: what chooses a model cannot test it.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{ModelHash, RoundId, SiteId};
use serde::{Deserialize, Serialize};

use super::{ModelScores, ReportData};

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

impl ReportData {
    /// The best model by the sites that are not sealed, among those that each of them has scored; of equal ones the
    /// earlier. `None` when there is none.
    pub fn best_model(&self) -> Option<Selected> {
        let mut by_model: BTreeMap<(RoundId, ModelHash), BTreeMap<&SiteId, f64>> = BTreeMap::new();
        for scores in self.scores.iter().filter(|scores| !self.is_sealed(&scores.site)) {
            if let Some(mean) = self.mean_of_trained(scores) {
                by_model.entry((scores.round, scores.model)).or_default().insert(&scores.site, mean);
            }
        }
        // Means over different scans cannot be compared.
        let voters: BTreeSet<&SiteId> = by_model.values().flat_map(|means| means.keys().copied()).collect();
        let complete = by_model.iter().filter(|(_, means)| means.len() == voters.len());
        let selected = complete.map(|(&(round, model), means)| {
            let mean_dice = means.values().sum::<f64>() / means.len() as f64;
            Selected { round, model, mean_dice }
        });
        selected.reduce(|best, next| if next.mean_dice > best.mean_dice { next } else { best })
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
    use crate::report::tests::sample;

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
