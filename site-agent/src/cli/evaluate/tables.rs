//! The tables of an evaluation: lines for a terminal, rows for a page.

use common::ids::ClassId;
use common::report::ClassReport;
use common::taxonomy::{ClassKind, Taxonomy};

use super::comparison::{Change, Comparison, Difference};
use super::detection::detection;
use super::record::Record;
use crate::cli::picture::escape;

/// Names in the first column, numbers in the others.
#[derive(Debug)]
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Every class over all scans, as the report page of a study shows it.
    pub(super) fn classes(record: &Record, taxonomy: &Taxonomy) -> Self {
        let head = [
            "class",
            "scans",
            "patients",
            "Dice",
            "95 % interval",
            "NSD",
            "95 % interval",
            "false positives, ml",
        ];
        let row = |class: &ClassReport| {
            let name = taxonomy.name(class.class);
            let [scans, patients, dice, dice_interval, nsd] = class.present.as_ref().map_or_else(
                || ["0", "0", DASH, DASH, DASH].map(str::to_owned),
                |p| {
                    // One patient resampled is that one again.
                    let dice = interval((p.patients > 1).then_some([p.ci_low, p.ci_high]));
                    [p.n.to_string(), p.patients.to_string(), score(p.mean_dice), dice, score(p.mean_nsd)]
                },
            );
            let nsd_interval = interval(record.nsd_intervals.get(&class.class).copied());
            let absent = class.absent.as_ref().map_or(DASH.to_owned(), |absent| {
                format!("{:.1} in {} without it", absent.false_positive_volume_ml, absent.n)
            });
            vec![name, scans, patients, dice, dice_interval, nsd, nsd_interval, absent]
        };
        Self { head: head.to_vec(), rows: record.classes.iter().map(row).collect() }
    }

    /// Every lesion that was looked for, patient by patient.
    pub(super) fn lesions(record: &Record, taxonomy: &Taxonomy, positive_ml: f64) -> Self {
        let head = ["lesion", "patients with", "sensitivity", "without", "specificity", "harmonic mean"];
        let is_lesion = |class: ClassId| taxonomy.class(class).is_some_and(|c| c.kind != ClassKind::Organ);
        let row = |class: ClassId| {
            let counts = detection(record, class, positive_ml);
            vec![
                taxonomy.name(class),
                counts.with_tumour().to_string(),
                counts.sensitivity().map_or(DASH.to_owned(), score),
                counts.without_tumour().to_string(),
                counts.specificity().map_or(DASH.to_owned(), score),
                counts.harmonic_mean().map_or(DASH.to_owned(), score),
            ]
        };
        let lesions = record.classes.iter().map(|class| class.class).filter(|&class| is_lesion(class));
        Self { head: head.to_vec(), rows: lesions.map(row).collect() }
    }

    /// How far two models lie apart.
    pub(super) fn differences(comparison: &Comparison, taxonomy: &Taxonomy) -> Self {
        let head = [
            "class",
            "scans",
            "patients",
            "Dice difference",
            "95 % interval",
            "NSD difference",
            "95 % interval",
        ];
        let row = |difference: &Difference| -> Vec<String> {
            let Difference { class, scans, patients, dice, nsd } = difference;
            let counts = [taxonomy.name(*class), scans.to_string(), patients.to_string()];
            let changes = [dice, nsd].into_iter().flat_map(|change| in_words(change, *patients));
            counts.into_iter().chain(changes).collect()
        };
        Self { head: head.to_vec(), rows: comparison.classes.iter().map(row).collect() }
    }

    /// Whether it has no row.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Plain text, columns as wide as they must be.
    pub(super) fn lines(&self) -> Vec<String> {
        let head: Vec<String> = self.head.iter().map(|&cell| cell.to_owned()).collect();
        let rows: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |row: &&Vec<String>| {
            let cell = |(column, (cell, &width)): (usize, (&String, &usize))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
            row.iter().zip(&widths).enumerate().map(cell).collect::<String>().trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }

    /// A table of HTML.
    pub(super) fn html(&self) -> String {
        let row = |cells: &Vec<String>| html_row("td", &cells.iter().map(String::as_str).collect::<Vec<_>>());
        let rows: String = self.rows.iter().map(row).collect();
        format!("<table>\n{}{rows}</table>\n", html_row("th", &self.head))
    }
}

fn html_row(tag: &str, cells: &[&str]) -> String {
    let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
    format!("<tr>{cells}</tr>\n")
}

const DASH: &str = "-";

fn score(value: f64) -> String {
    format!("{value:.3}")
}

fn interval(ends: Option<[f64; 2]>) -> String {
    ends.map_or(DASH.to_owned(), |[low, high]| format!("{low:.3} - {high:.3}"))
}

/// A difference and its interval, which one patient has not.
fn in_words(change: &Change, patients: usize) -> [String; 2] {
    let interval = match patients {
        0 | 1 => DASH.to_owned(),
        _ => format!("{:+.3} to {:+.3}", change.low, change.high),
    };
    [format!("{:+.3}", change.mean), interval]
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    fn cells(table: &Table, row: usize) -> Vec<&str> {
        table.rows[row].iter().map(String::as_str).collect()
    }

    #[test]
    fn classes_have_their_means_and_lesions_their_patients() {
        let taxonomy = Taxonomy::standard();
        let record = record(&[
            ("t/a", "anna", 6, Some(0.5), 900.0),
            ("t/b", "bo", 6, Some(1.0), 900.0),
            ("t/a", "anna", 27, None, 2.0),
            ("t/b", "bo", 27, Some(0.25), 1.0),
        ]);
        let classes = Table::classes(&record, &taxonomy);
        let liver = ["Liver", "2", "2", "0.750", "0.500 - 1.000", "0.375", "0.250 - 0.500", "-"];
        assert_eq!(cells(&classes, 0), liver);
        let tumour = ["Liver Tumor", "1", "1", "0.250", "-", "0.125", "-", "2.0 in 1 without it"];
        assert_eq!(cells(&classes, 1), tumour, "one patient has no interval");
        let lesions = Table::lesions(&record, &taxonomy, 0.0);
        assert_eq!(lesions.rows.len(), 1);
        assert_eq!(cells(&lesions, 0), ["Liver Tumor", "1", "1.000", "1", "0.000", "0.000"]);
    }

    #[test]
    fn differences_have_signs_and_those_of_one_patient_no_interval() {
        let of = |dice: f64| {
            record(&[
                ("t/a", "anna", 6, Some(dice), 1.0),
                ("t/b", "bo", 6, Some(dice), 1.0),
                ("t/a", "anna", 27, Some(dice), 1.0),
            ])
        };
        let comparison = Comparison::of(&of(0.5), &of(0.75), 7).unwrap();
        let table = Table::differences(&comparison, &Taxonomy::standard());
        let liver = ["Liver", "2", "2", "-0.250", "-0.250 to -0.250", "-0.125", "-0.125 to -0.125"];
        assert_eq!(cells(&table, 0), liver);
        assert_eq!(cells(&table, 1), ["Liver Tumor", "1", "1", "-0.250", "-", "-0.125", "-"]);
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_pages_are_escaped() {
        let rows = vec![vec!["a & <b>".to_owned(), "1".to_owned()], vec!["c".to_owned(), "1000".to_owned()]];
        let table = Table { head: vec!["name", "n"], rows };
        assert_eq!(table.lines(), ["name        n", "a & <b>     1", "c        1000"]);
        assert!(table.html().contains("<tr><td>a &amp; &lt;b></td><td>1</td></tr>\n"), "{}", table.html());
        assert!(!table.is_empty());
    }
}
