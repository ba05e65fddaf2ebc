//! The part of the page that says which model is chosen, what sealed sites were asked, and how far sites lie apart.

use common::ids::{ClassId, RoundId, SiteId};

use crate::report::board::{Across, Board, Sealed, Spread};
use crate::report::chart::{self, Mark};
use crate::report::{ClassScore, ReportData};

/// Width of a row of intervals, in pixels.
const MARKS: f64 = 240.0;

/// The section.
pub(super) struct Choice {
    pub chosen: Option<Chosen>,
    /// What the choice passes over, in words.
    pub unscored: Option<String>,
    /// The sites without a say, each with why.
    pub without_say: Vec<String>,
    pub round: u32,
    /// Empty where fewer than two sites tell a mean.
    pub rows: Vec<SpreadRow>,
}

/// The chosen model.
pub(super) struct Chosen {
    pub round: u32,
    pub model: String,
    pub dice: String,
}

/// One class at all sites.
pub(super) struct SpreadRow {
    pub name: String,
    pub lesion: bool,
    pub sites: usize,
    pub mean: String,
    pub worst: String,
    pub worst_site: String,
    pub spread: String,
    /// Every site's mean, in words.
    pub each: String,
    pub marks: String,
}

impl Choice {
    /// None before anybody has scored anything. `evaluators` says which colour each has.
    pub(super) fn of(data: &ReportData, evaluators: &[&SiteId]) -> Option<Self> {
        let Board { chosen, unscored, sealed, across } = data.board();
        let across = across?;
        let row = |spread: &Spread| spread_row(data, &across, spread, evaluators);
        Some(Self {
            chosen: chosen.map(|chosen| Chosen {
                round: chosen.round.0,
                model: chosen.model.short(),
                dice: format!("{:.3}", chosen.mean_dice),
            }),
            unscored: unscored.map(|unscored| unscored.to_string()),
            without_say: sealed.iter().map(sealed_words).chain(former(data, evaluators)).collect(),
            round: across.round.0,
            rows: across.classes.iter().map(row).collect(),
        })
    }
}

fn sealed_words(Sealed { site, looks }: &Sealed) -> String {
    let rounds: Vec<String> = looks.iter().map(RoundId::to_string).collect();
    let looked = match &rounds[..] {
        [] => "not looked at yet".to_owned(),
        [round] => format!("looked at once, at the model of round {round}"),
        more => format!("looked at {} times, at the models of rounds {}", more.len(), more.join(", ")),
    };
    format!("{site} is a sealed test site, which has no say in the choice: {looked}.")
}

/// Of those that have scored models and do not choose any more, why.
fn former(data: &ReportData, evaluators: &[&SiteId]) -> Vec<String> {
    let mut former = Vec::new();
    for site in evaluators.iter().filter(|site| !data.is_sealed(site)) {
        if data.has_trained(site) {
            former.push(format!("{site} has no say in the choice: updates of it are in the models."));
        } else if data.has_left(site) {
            former.push(format!("{site} has no say in the choice any more: it is no evaluator now."));
        }
    }
    former
}

fn spread_row(data: &ReportData, across: &Across, spread: &Spread, evaluators: &[&SiteId]) -> SpreadRow {
    let told = told(data, across, spread.class, evaluators);
    let words = |(_, site, score): &(usize, &SiteId, &ClassScore)| {
        let interval = score.interval.map_or(String::new(), |[low, high]| format!(" ({low:.2} – {high:.2})"));
        score.mean_dice.map(|dice| format!("{site} {dice:.3}{interval}"))
    };
    let mark = |&(colour, _, score): &(usize, &SiteId, &ClassScore)| {
        Some(Mark { colour, value: score.mean_dice?, interval: score.interval })
    };
    let summary = data.classes.iter().find(|class| class.class == spread.class);
    SpreadRow {
        name: summary.map_or_else(|| format!("class {}", spread.class), |class| class.name.clone()),
        lesion: summary.is_some_and(|class| class.lesion),
        sites: spread.sites,
        mean: format!("{:.3}", spread.mean_dice),
        worst: format!("{:.3}", spread.worst_dice),
        worst_site: spread.worst_site.to_string(),
        spread: format!("{:.3}", spread.spread),
        each: told.iter().filter_map(words).collect::<Vec<_>>().join("; "),
        marks: chart::interval_marks(&told.iter().filter_map(mark).collect::<Vec<_>>(), MARKS),
    }
}

/// What each evaluator says of one class of the model, in the order of their colours.
fn told<'a>(
    data: &'a ReportData,
    across: &Across,
    class: ClassId,
    evaluators: &[&'a SiteId],
) -> Vec<(usize, &'a SiteId, &'a ClassScore)> {
    let score = |(colour, &site): (usize, &&'a SiteId)| {
        let scores = data.scores.iter().find(|s| s.site == *site && s.model == across.model)?;
        Some((colour, site, scores.classes.iter().find(|score| score.class == class)?))
    };
    evaluators.iter().enumerate().filter_map(score).collect()
}
