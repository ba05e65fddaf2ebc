//! `report.csv`: a line for each class of each model at each site that scored it.
//!
//! The mean over sites, the worst site and the spread are the same on all lines of one class of one model.

use common::csv;

use super::{ClassScore, ModelScores, ReportData, Selected};

const HEAD: [&str; 20] = [
    "round",
    "model",
    "chosen",
    "site",
    "role",
    "class",
    "name",
    "scans",
    "mean_dice",
    "ci_low",
    "ci_high",
    "mean_nsd",
    "tau_mm",
    "scans_without",
    "false_positive_ml",
    "sites",
    "mean_over_sites",
    "worst_site",
    "worst_dice",
    "spread",
];

/// The file's text.
pub(super) fn text(data: &ReportData) -> String {
    let chosen = data.best_model();
    let lines = |scores: &ModelScores| {
        let lines = scores.classes.iter().map(|score| csv::line(fields(data, chosen, scores, score)));
        lines.collect::<String>()
    };
    std::iter::once(csv::line(HEAD)).chain(data.scores.iter().map(lines)).collect()
}

fn fields(
    data: &ReportData,
    chosen: Option<Selected>,
    scores: &ModelScores,
    score: &ClassScore,
) -> [String; 20] {
    let name = data.classes.iter().find(|class| class.class == score.class).map(|class| &class.name);
    let is_chosen = chosen.is_some_and(|chosen| chosen.model == scores.model);
    let spread = data.spread(scores.model, score.class);
    let spread = spread.as_ref();
    [
        scores.round.to_string(),
        scores.model.to_string(),
        if is_chosen { "yes" } else { "no" }.to_owned(),
        scores.site.to_string(),
        role(data, scores).to_owned(),
        score.class.to_string(),
        csv::optional(name),
        csv::optional(score.n),
        csv::optional(score.mean_dice),
        csv::optional(score.interval.map(|[low, _]| low)),
        csv::optional(score.interval.map(|[_, high]| high)),
        csv::optional(score.mean_nsd),
        csv::optional(score.tau_mm),
        csv::optional(score.n_absent),
        csv::optional(score.false_positive_ml),
        csv::optional(spread.map(|spread| spread.sites)),
        csv::optional(spread.map(|spread| spread.mean_dice)),
        csv::optional(spread.map(|spread| &spread.worst_site)),
        csv::optional(spread.map(|spread| spread.worst_dice)),
        csv::optional(spread.map(|spread| spread.spread)),
    ]
}

/// What the site's scores are for.
fn role(data: &ReportData, scores: &ModelScores) -> &'static str {
    match (data.is_sealed(&scores.site), data.has_say(&scores.site)) {
        (true, _) => "test",
        (false, true) => "validation",
        (false, false) => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{add_site, sample};

    /// The fields of the line that begins so and is of this site and class.
    fn line(text: &str, round: &str, site: &str, class: &str) -> Vec<String> {
        let fields = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let mut found = fields.filter(|f| (&*f[0], &*f[3], &*f[5]) == (round, site, class));
        found.next().unwrap_or_else(|| panic!("{round} {site} {class}: {text}"))
    }

    #[test]
    fn every_number_that_a_site_told_has_a_line() {
        let mut data = sample();
        data.study.sealed = vec!["site-t".parse().unwrap()];
        add_site(&mut data, "site-t", 8, 0.25);
        let text = text(&data);
        assert_eq!(
            text.lines().count(),
            1 + 10 * 14,
            "nine models at site-d, one at site-t, fourteen classes"
        );
        assert!(text.lines().all(|line| line.split(',').count() == HEAD.len()), "{text}");

        let liver = line(&text, "8", "site-d", "6");
        assert_eq!((&*liver[2], &*liver[4], &*liver[6], &*liver[7]), ("yes", "validation", "liver", "8"));
        assert_eq!(liver[8], data.scores[8].classes[4].mean_dice.unwrap().to_string());
        assert_eq!((&*liver[15], &*liver[17], &*liver[19]), ("2", "site-t", "0.25"));
        let sealed = line(&text, "8", "site-t", "6");
        assert_eq!((&*sealed[4], &sealed[15..]), ("test", &liver[15..]));
        // One site alone has no spread, and a number that was kept back is no zero.
        assert_eq!(line(&text, "7", "site-d", "6")[15..], ["", "", "", "", ""]);
        assert_eq!(line(&text, "8", "site-d", "26")[7..12], ["", "", "", "", ""]);
        assert_eq!(line(&text, "7", "site-d", "6")[2], "no");
    }

    #[test]
    fn names_with_commas_are_quoted() {
        let mut data = sample();
        data.classes[0].name = "spleen, whole".to_owned();
        assert!(text(&data).contains(",1,\"spleen, whole\",8,"), "{}", text(&data));
    }
}
