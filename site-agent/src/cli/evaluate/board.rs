//! `board.html`: an evaluation to look at, and the same tables for a terminal.
//!
//! One file, nothing loaded from elsewhere. It names scans: it lies in the site's own folder and stays there.

use common::ids::ClassId;
use common::taxonomy::Taxonomy;

use super::comparison::{Comparison, Difference};
use super::record::{Agreement, Record};
use super::tables::Table;
use crate::cli::picture::escape;
use crate::cli::row_plot::{Dot, FEWEST_FOR_A_BOX, Mark, Row, RowPlot};

const STYLE: &str = "body{margin:24px;font:15px/1.5 system-ui,sans-serif;color:#1c2126;background:#fff}\
                     p{color:#555;max-width:72ch}svg{display:block;margin:16px 0;max-width:100%;height:auto}\
                     table{border-collapse:collapse;font-size:14px}\
                     th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid #ddd}\
                     th{font-weight:500;color:#555}th:first-child,td:first-child{text-align:left}";

/// The reach of a scale of differences is one of these.
const REACHES: [f64; 7] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// An evaluation, and what it is compared with.
pub(super) struct Board<'a> {
    pub record: &'a Record,
    pub comparison: Option<&'a Comparison>,
    pub taxonomy: &'a Taxonomy,
    /// A patient counts as positive from so much on, millilitres.
    pub positive_ml: f64,
}

impl Board<'_> {
    /// The tables, for a terminal.
    pub(super) fn lines(&self) -> Vec<String> {
        let tables = self.sections().into_iter();
        let lines = tables.flat_map(|(title, table)| [String::new(), title].into_iter().chain(table.lines()));
        lines.chain(self.missing().into_iter().flat_map(|missing| [String::new(), missing])).collect()
    }

    /// The page.
    pub(super) fn html(&self) -> String {
        let Record { scored, study, scans, .. } = self.record;
        let kind = if self.record.to_come.is_empty() { "Evaluation" } else { "Partial evaluation" };
        let title = escape(&format!("{kind} of {scored}"));
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n<body>\n<h1>{title}</h1>\n<p>{} scans of this site, scored as study {} says. The page names scans: it stays here.</p>\n",
            scans.len(),
            study.short()
        );
        for missing in self.missing() {
            page.push_str(&format!("<p>{}.</p>\n", escape(&missing)));
        }
        page.push_str(&format!(
            "<p>A box is the middle half of the scans that show the class, its line the median; whiskers reach to the last scan within 1.5 boxes; dots are scans beyond, and all scans where there are fewer than {FEWEST_FOR_A_BOX}.</p>\n"
        ));
        page.push_str(&self.box_plot("Dice", |agreement| agreement.dice));
        page.push_str(&self.box_plot("Normalised surface distance (NSD)", |agreement| agreement.nsd));
        for (title, table) in self.sections() {
            page.push_str(&format!("<h2>{}</h2>\n{}", escape(&title), table.html()));
        }
        if let Some(comparison) = self.comparison {
            page.push_str(&self.difference_plot(comparison).unwrap_or_default());
        }
        page.push_str("</body>\n</html>\n");
        page
    }

    /// Of what no figure is, if of anything.
    fn missing(&self) -> Vec<String> {
        let Record { scans, unscored, to_come, .. } = self.record;
        let partial = (!to_come.is_empty()).then(|| {
            format!("Partial: stopped when {} of {} scans were scored", scans.len(), self.record.asked())
        });
        let unscored =
            (!unscored.is_empty()).then(|| format!("Not scored, and in no figure: {}", unscored.join(", ")));
        partial.into_iter().chain(unscored).collect()
    }

    /// Tables with something in them, each below its title.
    fn sections(&self) -> Vec<(String, Table)> {
        let lesions = Table::lesions(self.record, self.taxonomy, self.positive_ml);
        let from = match self.positive_ml > 0.0 {
            true => format!("{} ml", self.positive_ml),
            false => "one voxel".to_owned(),
        };
        let mut sections = vec![
            ("Classes".to_owned(), Table::classes(self.record, self.taxonomy)),
            (format!("Lesions by patient; positive from {from} on"), lesions),
        ];
        if let Some(comparison) = self.comparison {
            let title = format!("{} less {}, scan by scan", self.record.scored, comparison.with);
            sections.push((title, Table::differences(comparison, self.taxonomy)));
        }
        sections.retain(|(_, table)| !table.is_empty());
        sections
    }

    fn box_plot(&self, title: &str, of: fn(Agreement) -> f64) -> String {
        let row = |class: ClassId| {
            let dots = self.record.agreements(class);
            let dots = dots.map(|(scan, agreement)| Dot { value: of(agreement), name: scan.scan.clone() });
            Row { name: self.taxonomy.name(class), mark: Mark::Box(dots.collect()) }
        };
        let shown = self.record.classes.iter().filter(|class| class.present.is_some());
        let rows: Vec<Row> = shown.map(|class| row(class.class)).collect();
        RowPlot { title, range: [0.0, 1.0], rows: &rows }.svg()
    }

    /// None where no class has an interval: one patient says nothing of others.
    fn difference_plot(&self, comparison: &Comparison) -> Option<String> {
        let row = |difference: &Difference| {
            let dice = difference.dice;
            let mark = Mark::Interval { mean: dice.mean, low: dice.low, high: dice.high };
            Row { name: self.taxonomy.name(difference.class), mark }
        };
        let shown = || comparison.classes.iter().filter(|difference| difference.patients > 1);
        let ends = shown().flat_map(|class| [class.dice.low, class.dice.high]);
        let most = ends.map(f64::abs).fold(0.0, f64::max);
        let reach = REACHES.into_iter().find(|&reach| most <= reach).unwrap_or(1.0);
        let rows: Vec<Row> = shown().map(row).collect();
        let title = format!("Difference of Dice: right of 0, {} is better", self.record.scored);
        (!rows.is_empty()).then(|| RowPlot { title: &title, range: [-reach, reach], rows: &rows }.svg())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn the_page_shows_boxes_lesions_and_the_comparison_and_needs_nothing_from_elsewhere() {
        let dice = [("t/<a>", 0.5), ("t/b", 0.25), ("t/c", 0.75), ("t/d", 0.5), ("t/e", 0.625)];
        let mut scores: Vec<_> =
            dice.iter().map(|&(scan, dice)| (scan, scan, 6, Some(dice), 900.0)).collect();
        scores.push(("t/b", "t/b", 27, Some(0.5), 2.0));
        let now = record(&scores);
        scores[0].3 = Some(0.375);
        let then = record(&scores);
        let comparison = Comparison::of(&now, &then, 7).unwrap();
        let taxonomy = Taxonomy::standard();
        let board =
            Board { record: &now, comparison: Some(&comparison), taxonomy: &taxonomy, positive_ml: 0.5 };

        let page = board.html();
        assert_eq!(
            page.matches("class=\"box\"").count(),
            2,
            "Dice and surface distance of the liver: {page}"
        );
        for part in [
            "<title>t/b: 0.500</title>",
            "<h2>Lesions by patient; positive from 0.5 ml on</h2>",
            "<h2>a model less a model, scan by scan</h2>",
            "<title>+0.025 (",
            "</html>\n",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        for forbidden in ["http://", "https://", "<script", "<img", "url(", "<link", "t/<a>"] {
            let page = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        let rows = [">Liver</text>", ">Liver Tumor</text>"].map(|name| page.matches(name).count());
        assert_eq!(rows, [3, 2], "a difference in one patient has no interval to draw: {page}");
        let lines = board.lines();
        assert!(
            lines.iter().any(|line| line.starts_with("Liver Tumor") && line.ends_with("-")),
            "{lines:#?}"
        );
        assert!(lines.iter().any(|line| line.contains("+0.025")), "{lines:#?}");

        let alone = Board { comparison: None, ..board };
        assert!(!alone.html().contains("scan by scan"));

        let mut stopped = now.clone();
        stopped.to_come = ["t/f", "t/g"].map(str::to_owned).into();
        let partial = Board { record: &stopped, ..alone };
        let page = partial.html();
        assert!(page.contains("<title>Partial evaluation of a model</title>"), "{page}");
        assert!(page.contains("<p>Partial: stopped when 5 of 7 scans were scored.</p>"), "{page}");
        assert!(partial.lines().contains(&"Partial: stopped when 5 of 7 scans were scored".to_owned()));
    }
}
