//! The page: `ReportData` turned into what `templates/report.html` shows, every number formatted here.

mod choice;
mod coverage;

use std::collections::BTreeMap;

use askama::Template;
use common::ids::{ClassId, Role, RoundId, SiteId};

use self::choice::Choice;
use self::coverage::Coverage;
use super::chart::{self, Frame, Line, Mark};
use super::{
    ClassScore, ClassSummary, Contribution, CoverageCell, ModelScores, ReportData, ReportError, RoundSummary,
    StudySummary,
};

/// Makes the page.
pub(super) fn render(data: &ReportData) -> Result<String, ReportError> {
    Ok(Page::of(data).render()?)
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    data: &'a ReportData,
    figures: Vec<Figure>,
    coverage: Coverage,
    evaluators: Vec<Legend>,
    mean_chart: Option<String>,
    /// The round of the model of which the panels' numbers are; none where nobody has scored anything.
    compared_round: Option<u32>,
    panels: Vec<Panel>,
    site_by_site: Option<Choice>,
    tables: Vec<ScoreTable>,
    trainers: Vec<Legend>,
    loss_chart: Option<String>,
    sites: Vec<SiteRow>,
    rounds: Vec<RoundRow>,
    /// Whether some round says what each site contributed.
    contributions: bool,
    /// Strategy and steps, where the report has them.
    method: Option<String>,
}

/// A headline number.
struct Figure {
    value: String,
    label: String,
}

/// A colour and whose it is.
struct Legend {
    colour: usize,
    name: String,
}

/// A small chart of one class, with its mean over the sites that scored the model by which they are compared.
struct Panel {
    name: String,
    lesion: bool,
    mean: String,
    svg: String,
}

/// The last scores of one evaluator.
struct ScoreTable {
    site: String,
    round: u32,
    model: String,
    organs: String,
    lesions: String,
    rows: Vec<ScoreRow>,
}

struct ScoreRow {
    name: String,
    lesion: bool,
    trainers: usize,
    n: String,
    dice: String,
    interval: String,
    mark: String,
    nsd: String,
    absent: String,
}

struct SiteRow {
    site: String,
    role: String,
    volumes: String,
    datasets: String,
    sent: String,
    received: String,
}

struct RoundRow {
    round: u32,
    outcome: String,
    seconds: String,
    sites: String,
    model: String,
}

impl<'a> Page<'a> {
    fn of(data: &'a ReportData) -> Self {
        let evaluators: Vec<&SiteId> = data.final_scores().iter().map(|scores| &scores.site).collect();
        let (compared_round, compared) = data.compared().unzip();
        let compared = compared.unwrap_or_default();
        let panel = |class| panel(data, class, &evaluators, &compared);
        Self {
            data,
            figures: figures(data, compared_round, &compared),
            coverage: Coverage::of(data),
            evaluators: evaluator_legend(data, &evaluators),
            mean_chart: mean_chart(data, &evaluators),
            compared_round: compared_round.map(|round| round.0),
            panels: data.classes.iter().filter_map(panel).collect(),
            site_by_site: Choice::of(data, &evaluators),
            tables: data.final_scores().into_iter().map(|scores| score_table(data, scores)).collect(),
            trainers: legend(data.losses.iter().map(|series| &series.site)),
            loss_chart: loss_chart(data),
            sites: data.sites.iter().map(|site| site_row(data, site)).collect(),
            rounds: data.rounds.iter().map(round_row).collect(),
            contributions: data.rounds.iter().any(|round| !round.contributions.is_empty()),
            method: method(&data.study),
        }
    }
}

/// The headline is of one model, `compared` by whoever scored it: sites' last reports may be of different rounds.
fn figures(data: &ReportData, round: Option<RoundId>, compared: &[&ModelScores]) -> Vec<Figure> {
    let figure = |value: String, label: &str| Figure { value, label: label.to_owned() };
    let means: Vec<f64> = compared.iter().filter_map(|scores| data.mean_dice(scores, false)).collect();
    let mean = mean(&means);
    let mut label = "mean held-out Dice, organs".to_owned();
    if let (Some(round), Some(_)) = (round, mean) {
        label.push_str(&format!(", of the model of round {round}"));
    }
    if means.len() > 1 {
        let worst = means.iter().copied().fold(f64::INFINITY, f64::min);
        label.push_str(&format!(", over {} sites; the worst has {worst:.3}", means.len()));
    }
    let count = |role| data.sites.iter().filter(|site| site.role == role).count();
    let moved = data.sites.iter().map(|site| site.bytes_sent + site.bytes_received).sum();
    let seconds = data.rounds.iter().filter_map(|round| round.seconds).sum();
    vec![
        figure(optional(mean, 3), &label),
        figure(format!("{} of {}", data.study.rounds_committed, data.study.rounds), "rounds"),
        figure(format!("{} + {}", count(Role::Trainer), count(Role::Evaluator)), "trainers + evaluators"),
        figure(bytes(moved), "moved, all of it weights and numbers"),
        figure(duration(seconds), "in rounds"),
        figure(data.study.embedding.clone(), "class embeddings"),
    ]
}

/// Colours of the evaluators; sealed ones are named as such.
fn evaluator_legend(data: &ReportData, evaluators: &[&SiteId]) -> Vec<Legend> {
    let mut all = legend(evaluators.iter().copied());
    for (legend, site) in all.iter_mut().zip(evaluators) {
        if data.is_sealed(site) {
            legend.name.push_str(" (test)");
        }
    }
    all
}

fn legend<'s>(sites: impl Iterator<Item = &'s SiteId>) -> Vec<Legend> {
    sites.enumerate().map(|(i, site)| Legend { colour: i % chart::COLOURS, name: site.to_string() }).collect()
}

/// Rounds that were scored: the x axis of all Dice charts.
fn last_round(data: &ReportData) -> u32 {
    data.scores.iter().map(|scores| scores.round.0).max().unwrap_or(0).max(1)
}

fn mean_chart(data: &ReportData, evaluators: &[&SiteId]) -> Option<String> {
    let line = |(colour, site): (usize, &&SiteId), lesions: bool| {
        let points =
            scores_of(data, site).filter_map(|s| Some((f64::from(s.round.0), data.mean_dice(s, lesions)?)));
        let title = format!("{site}, mean of {}", if lesions { "lesions" } else { "organs" });
        Line { colour, points: points.collect(), band: Vec::new(), title }
    };
    let lines: Vec<Line> = evaluators.iter().enumerate().map(|pair| line(pair, false)).collect();
    if lines.iter().all(|line| line.points.is_empty()) {
        return None;
    }
    let frame = dice_frame(data, 720.0, 200.0, 34.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 12);
    Some(frame.draw(&lines, "mean held-out Dice over the organs, by round"))
}

/// None for a class of which nobody has told a Dice yet.
fn panel(
    data: &ReportData,
    class: &ClassSummary,
    evaluators: &[&SiteId],
    compared: &[&ModelScores],
) -> Option<Panel> {
    let lines: Vec<Line> =
        evaluators.iter().enumerate().map(|(i, site)| class_line(data, class, i, site)).collect();
    if lines.iter().all(|line| line.points.is_empty()) {
        return None;
    }
    let told: Vec<f64> = compared.iter().filter_map(|scores| scores.dice_of(class.class)).collect();
    let frame = dice_frame(data, 180.0, 96.0, 24.0, vec![0.0, 0.5, 1.0], 3);
    let label = format!("held-out Dice of {} by round", class.name);
    Some(Panel {
        name: class.name.clone(),
        lesion: class.lesion,
        mean: optional(mean(&told), 2),
        svg: frame.draw(&lines, &label),
    })
}

fn class_line(data: &ReportData, class: &ClassSummary, colour: usize, site: &SiteId) -> Line {
    let scores: Vec<(f64, &ClassScore)> = scores_of(data, site)
        .filter_map(|s| Some((f64::from(s.round.0), s.classes.iter().find(|c| c.class == class.class)?)))
        .collect();
    Line {
        colour,
        points: scores.iter().filter_map(|(x, s)| Some((*x, s.mean_dice?))).collect(),
        band: scores.iter().filter_map(|(x, s)| s.interval.map(|[low, high]| (*x, low, high))).collect(),
        title: format!("{site}: {}", class.name),
    }
}

fn dice_frame(data: &ReportData, width: f64, height: f64, left: f64, y_ticks: Vec<f64>, most: u32) -> Frame {
    let first = data.scores.iter().map(|scores| scores.round.0).min().unwrap_or(0);
    let last = last_round(data).max(first + 1);
    Frame {
        width,
        height,
        x_min: f64::from(first),
        x_max: f64::from(last),
        y_max: 1.0,
        y_ticks,
        x_ticks: chart::whole_ticks(first, last, most),
        left,
    }
}

fn scores_of<'a>(data: &'a ReportData, site: &'a SiteId) -> impl Iterator<Item = &'a ModelScores> {
    data.scores.iter().filter(move |scores| scores.site == *site)
}

fn loss_chart(data: &ReportData) -> Option<String> {
    let lines = data.losses.iter().enumerate().map(|(colour, series)| Line {
        colour,
        points: series.points.clone(),
        band: Vec::new(),
        title: series.site.to_string(),
    });
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|&(x, _)| x).fold(1.0, f64::max).ceil();
    let y_ticks = chart::ticks(all().map(|&(_, y)| y).fold(0.0, f64::max));
    let y_max = y_ticks.last().copied().unwrap_or(1.0);
    // Rounds are counted in 32 bits, and points come from rounds.
    let x_ticks = chart::whole_ticks(0, x_max as u32, 12);
    let frame = Frame { width: 720.0, height: 200.0, x_min: 0.0, x_max, y_max, y_ticks, x_ticks, left: 34.0 };
    (!lines.is_empty()).then(|| frame.draw(&lines, "training loss of each site, by round"))
}

fn score_table(data: &ReportData, scores: &ModelScores) -> ScoreTable {
    let by_class: BTreeMap<ClassId, &ClassScore> = scores.classes.iter().map(|s| (s.class, s)).collect();
    let rows =
        data.classes.iter().filter_map(|class| Some(score_row(data, class, by_class.get(&class.class)?)));
    ScoreTable {
        site: scores.site.to_string(),
        round: scores.round.0,
        model: scores.model.short(),
        organs: optional(data.mean_dice(scores, false), 3),
        lesions: optional(data.mean_dice(scores, true), 3),
        rows: rows.collect(),
    }
}

fn score_row(data: &ReportData, class: &ClassSummary, score: &ClassScore) -> ScoreRow {
    let annotates = |cell: &&CoverageCell| cell.class == class.class && cell.annotated > 0;
    let nsd = match (score.mean_nsd, score.tau_mm) {
        (Some(nsd), Some(tau)) => format!("{nsd:.3} at {tau} mm"),
        _ => DASH.to_owned(),
    };
    let absent = match (score.n_absent, score.false_positive_ml) {
        (Some(n), Some(ml)) if n > 0 => format!("{ml:.1} ml in {n}"),
        _ => DASH.to_owned(),
    };
    ScoreRow {
        name: class.name.clone(),
        lesion: class.lesion,
        trainers: data.coverage.iter().filter(annotates).count(),
        n: match (score.n, score.n_absent) {
            (Some(n), _) => n.to_string(),
            // No scan shows the class; of reports by an older version that may be few, too.
            (None, Some(1..)) => "none or too few".to_owned(),
            (None, _) => "too few".to_owned(),
        },
        dice: optional(score.mean_dice, 3),
        interval: score.interval.map_or(DASH.to_owned(), |[low, high]| format!("{low:.2} – {high:.2}")),
        mark: score.mean_dice.map_or(String::new(), |value| {
            chart::interval_marks(&[Mark { colour: 0, value, interval: score.interval }], 120.0)
        }),
        nsd,
        absent,
    }
}

fn site_row(data: &ReportData, site: &super::SiteSummary) -> SiteRow {
    let sealed = if data.is_sealed(&site.site) { ", sealed" } else { "" };
    SiteRow {
        site: site.site.to_string(),
        role: format!("{}{sealed}", site.role),
        volumes: site.volumes.map_or(DASH.to_owned(), |n| n.to_string()),
        datasets: if site.datasets.is_empty() { DASH.to_owned() } else { site.datasets.join(", ") },
        sent: bytes(site.bytes_sent),
        received: bytes(site.bytes_received),
    }
}

fn method(study: &StudySummary) -> Option<String> {
    let (strategy, steps) = (study.strategy.as_ref()?, study.steps_per_round?);
    Some(format!("{strategy}, of {steps} steps a round at each site"))
}

fn round_row(round: &RoundSummary) -> RoundRow {
    let named = |contribution: &Contribution| {
        let Contribution { site, share, norm } = contribution;
        format!("{site} {:.1} %, norm {}", 100.0 * share, length(*norm))
    };
    let sites: Vec<String> = match round.contributions.is_empty() {
        true => round.sites.iter().map(ToString::to_string).collect(),
        false => round.contributions.iter().map(named).collect(),
    };
    RoundRow {
        round: round.round.0,
        outcome: round.outcome.clone(),
        seconds: round.seconds.map_or(DASH.to_owned(), |s| format!("{s:.1} s")),
        sites: sites.join(if round.contributions.is_empty() { ", " } else { "; " }),
        model: round.model.map_or(DASH.to_owned(), |model| model.short()),
    }
}

const DASH: &str = "–";

/// None of no values.
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or(DASH.to_owned(), |value| format!("{value:.decimals$}"))
}

/// A norm with two decimals, or with a power of ten where these would not show it.
fn length(norm: f64) -> String {
    match norm == 0.0 || (0.01..1e6).contains(&norm) {
        true => format!("{norm:.2}"),
        false => format!("{norm:.1e}"),
    }
}

/// `n` bytes with three figures or so, in powers of ten.
fn bytes(n: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let n = n as f64;
    let unit = units.iter().find(|(size, _)| n >= *size);
    unit.map_or(format!("{n} B"), |(size, name)| format!("{:.1} {name}", n / size))
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}
