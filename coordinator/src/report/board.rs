//! What the scores say together: which model validation chooses, how often each sealed site was looked at, and how far
//! sites lie apart. All of it follows from the rest of the report.
//!
//! A site counts once, whatever its number of scans: the question is how a model does at the next site, not in the next scan.

use common::ids::{ClassId, ModelHash, RoundId, SiteId};
use serde::{Deserialize, Serialize};

use super::{ModelScores, ReportData, Selected, Selection, Unscored};

/// The board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// The model that the validation sites choose; none before each of them has scored the same one.
    pub chosen: Option<Selected>,
    /// What was to be scored and is not among the models that are chosen from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unscored: Option<Unscored>,
    /// The sealed test sites, by name.
    pub sealed: Vec<Sealed>,
    /// The chosen model at all sites that scored it, or the newest model that somebody scored.
    pub across: Option<Across>,
}

/// A test site, which has no say in which model is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Its name.
    pub site: SiteId,
    /// The rounds whose models it has scored: each is one look, and each look wears the seal a little.
    pub looks: Vec<RoundId>,
}

/// One model, site beside site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Across {
    /// The round that made it.
    pub round: RoundId,
    /// The model.
    pub model: ModelHash,
    /// The classes that two sites or more tell a mean of, by id.
    pub classes: Vec<Spread>,
}

/// How far sites lie apart in one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The class.
    pub class: ClassId,
    /// Sites that tell a mean, at least two.
    pub sites: usize,
    /// Mean over the sites of their mean Dice.
    pub mean_dice: f64,
    /// The site with the least mean Dice.
    pub worst_site: SiteId,
    /// That mean Dice.
    pub worst_dice: f64,
    /// The largest mean Dice less the least.
    pub spread: f64,
}

impl ReportData {
    /// The board as the scores have it now.
    pub fn board(&self) -> Board {
        let Selection { best: chosen, unscored, .. } = self.selection();
        let shown = self.shown(chosen);
        let spreads = |model| self.classes.iter().filter_map(move |class| self.spread(model, class.class));
        Board {
            chosen,
            unscored,
            sealed: self.study.sealed.iter().map(|site| self.sealed(site)).collect(),
            across: shown.map(|(round, model)| Across { round, model, classes: spreads(model).collect() }),
        }
    }

    /// The round and model that sites are compared by: the chosen one, or the newest that somebody scored.
    fn shown(&self, chosen: Option<Selected>) -> Option<(RoundId, ModelHash)> {
        let newest = || self.scores.iter().max_by_key(|scores| scores.round);
        let chosen = chosen.map(|chosen| (chosen.round, chosen.model));
        chosen.or_else(|| newest().map(|scores| (scores.round, scores.model)))
    }

    /// What sites say of the model that they are compared by, and the round that made it.
    pub fn compared(&self) -> Option<(RoundId, Vec<&ModelScores>)> {
        let (round, model) = self.shown(self.best_model())?;
        Some((round, self.scores.iter().filter(|scores| scores.model == model).collect()))
    }

    /// How far the sites that scored `model` lie apart in `class`; none when fewer than two tell a mean.
    pub fn spread(&self, model: ModelHash, class: ClassId) -> Option<Spread> {
        let told = self.scores.iter().filter(|scores| scores.model == model);
        let told: Vec<(&SiteId, f64)> =
            told.filter_map(|scores| Some((&scores.site, scores.dice_of(class)?))).collect();
        let (worst_site, worst_dice) = told.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let best_dice = told.iter().map(|&(_, dice)| dice).fold(worst_dice, f64::max);
        (told.len() > 1).then(|| Spread {
            class,
            sites: told.len(),
            mean_dice: told.iter().map(|&(_, dice)| dice).sum::<f64>() / told.len() as f64,
            worst_site: worst_site.clone(),
            worst_dice,
            spread: best_dice - worst_dice,
        })
    }

    /// Whether the study seals the site.
    pub fn is_sealed(&self, site: &SiteId) -> bool {
        self.study.sealed.contains(site)
    }

    fn sealed(&self, site: &SiteId) -> Sealed {
        let looks = self.scores.iter().filter(|scores| scores.site == *site).map(|scores| scores.round);
        Sealed { site: site.clone(), looks: looks.collect() }
    }
}

impl ModelScores {
    /// The site's mean Dice of one class, where it tells one.
    pub fn dice_of(&self, class: ClassId) -> Option<f64> {
        self.classes.iter().find(|score| score.class == class)?.mean_dice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{add_site, sample};

    #[test]
    fn the_worst_site_and_the_spread_stand_beside_the_mean_over_sites() {
        let mut data = sample();
        assert!(data.board().across.unwrap().classes.is_empty(), "one site has no spread");
        add_site(&mut data, "site-e", 8, 0.25);
        add_site(&mut data, "site-f", 8, -0.125);
        // Only models that all have scored are chosen: that of round 8.
        let across = data.board().across.unwrap();
        assert_eq!(
            (across.round, across.classes.len()),
            (RoundId(8), 13),
            "the kidney tumour has too few scans"
        );
        let alone = data.scores[8].classes[4].mean_dice.unwrap();
        let liver = across.classes.iter().find(|spread| spread.class.get() == 6).unwrap();
        assert_eq!((liver.sites, liver.worst_site.as_str()), (3, "site-e"));
        assert!((liver.worst_dice - (alone - 0.25)).abs() < 1e-12, "{liver:?}");
        assert!((liver.spread - 0.375).abs() < 1e-12, "{liver:?}");
        assert!((liver.mean_dice - (alone - 0.125 / 3.0)).abs() < 1e-12, "{liver:?}");
    }

    #[test]
    fn each_model_that_a_sealed_site_scored_is_a_look() {
        let mut data = sample();
        data.study.sealed = ["site-t", "site-u"].map(|site| site.parse().unwrap()).to_vec();
        add_site(&mut data, "site-t", 5, 0.0);
        add_site(&mut data, "site-t", 8, 0.0);
        let board = data.board();
        let looks: Vec<&[RoundId]> = board.sealed.iter().map(|sealed| &sealed.looks[..]).collect();
        assert_eq!(looks, [&[RoundId(5), RoundId(8)][..], &[]]);
        assert_eq!(board.chosen.unwrap().round, RoundId(8), "by site-d alone");
        assert_eq!(board.across.unwrap().classes[0].sites, 2, "with the test site beside it");
    }

    #[test]
    fn without_a_choice_the_newest_model_is_shown() {
        let mut data = sample();
        data.study.sealed = vec!["site-d".parse().unwrap()];
        let board = data.board();
        assert_eq!((board.chosen, board.across.unwrap().round), (None, RoundId(8)));
        data.scores.clear();
        assert_eq!(data.board().across, None);
    }
}
