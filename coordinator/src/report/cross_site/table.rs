//! The experiment as a person reads it: classes × sites first, then for each site how far other models are.

use std::collections::BTreeMap;

use common::ids::{ClassId, SiteId};

use super::{Baseline, ClassRow, CrossSite, Dice, LeftOut, Missing, Outcome};

impl CrossSite {
    /// The tables in plain text, one line each row, readable without colour.
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            "Leave one site out: Dice on the scans of the site that did not train, with the 95 % interval of the mean"
                .to_owned(),
        ];
        lines.extend(self.matrix());
        let missing = self.missing.iter();
        lines.extend(
            missing.map(|Missing { site, study, why }| format!("no score of `{study}` at {site}: {why}")),
        );
        for left_out in &self.sites {
            lines.push(String::new());
            lines.extend(left_out.gap_lines());
        }
        lines.push(String::new());
        lines.push(
            "(in brackets: the model that never saw the site less this one, on the same scans)".to_owned(),
        );
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    fn matrix(&self) -> Vec<String> {
        let row = |name: &str, cell: &dyn Fn(&LeftOut) -> String| {
            std::iter::once(name.to_owned()).chain(self.sites.iter().map(cell)).collect::<Vec<_>>()
        };
        let mut rows = vec![row("class", &|left_out: &LeftOut| left_out.site.to_string())];
        rows.extend(
            self.classes().iter().map(|(class, name)| row(name, &|left_out: &LeftOut| left_out.cell(*class))),
        );
        rows.push(row("mean over organs", &|left_out: &LeftOut| {
            left_out.mean_dice().map_or_else(dash, score)
        }));
        aligned(&rows)
    }

    /// The classes that some site scored, by id.
    fn classes(&self) -> BTreeMap<ClassId, &str> {
        let rows = self.sites.iter().flat_map(|left_out| &left_out.classes);
        rows.map(|row| (row.class, row.name.as_str())).collect()
    }
}

impl LeftOut {
    fn cell(&self, class: ClassId) -> String {
        let row = self.classes.iter().find(|row| row.class == class);
        row.map_or_else(dash, |row| match row.outcome {
            Outcome::Scored(Dice { mean, interval: [low, high], .. }) => {
                format!("{mean:.3} [{low:.3}, {high:.3}]")
            }
            Outcome::NobodyElse => "nobody else annotates it".to_owned(),
            Outcome::TooFew => "too few scans".to_owned(),
        })
    }

    /// Every class with a score, and the organs' mean, against each model that is there.
    fn gap_lines(&self) -> Vec<String> {
        let baselines = Baseline::ALL.into_iter();
        let there = |baseline: &Baseline| self.classes.iter().any(|row| row.others.contains_key(baseline));
        let baselines: Vec<Baseline> = baselines.filter(there).collect();
        let heads = baselines.iter().map(|baseline| baseline.word());
        let head = [self.site.as_str(), "left out"].into_iter().chain(heads).chain(["learnt from"]);
        let mut rows: Vec<Vec<String>> = vec![head.map(str::to_owned).collect()];
        rows.extend(self.classes.iter().filter_map(|row| class_row(row, &baselines)));
        let gaps = baselines
            .iter()
            .map(|baseline| self.gap(*baseline).map_or_else(dash, |gap| against(gap.other, gap.difference)));
        let mean = ["mean over organs".to_owned(), self.mean_dice().map_or_else(dash, score)];
        rows.push(mean.into_iter().chain(gaps).collect());
        aligned(&rows)
    }
}

/// A class with a score; `None` for one without.
fn class_row(row: &ClassRow, baselines: &[Baseline]) -> Option<Vec<String>> {
    let dice = row.outcome.dice()?;
    let other = |baseline: &Baseline| {
        let other = row.others.get(baseline);
        other.map_or_else(dash, |other| against(other.mean, dice.mean - other.mean))
    };
    let from: Vec<&str> = row.learnt_from.iter().map(SiteId::as_str).collect();
    let cells = [row.name.clone(), score(dice.mean)].into_iter().chain(baselines.iter().map(other));
    Some(cells.chain([from.join(", ")]).collect())
}

/// The rows with columns as wide as they must be: names may be longer than any width that is set.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> = (0..columns)
        .map(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}  ")).collect::<String>()
    };
    rows.iter().map(line).collect()
}

fn score(mean: f64) -> String {
    format!("{mean:.3}")
}

fn against(other: f64, difference: f64) -> String {
    format!("{other:.3} ({difference:+.3})")
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::tests::left_out;
    use super::*;

    #[test]
    fn the_tables_stay_as_they_were_looked_at() {
        let first = left_out();
        let second = LeftOut {
            site: "site-e".parse().unwrap(),
            classes: vec![first.classes[4].clone()],
            ..left_out()
        };
        insta::assert_snapshot!(CrossSite { sites: vec![first, second], ..CrossSite::default() }.to_text());
    }

    #[test]
    fn long_names_have_a_space_before_what_follows() {
        let mut first = left_out();
        first.classes[0].name = "portal vein and splenic vein".to_owned();
        first.site = "radiology-of-the-university-hospital-n".parse().unwrap();
        let second = LeftOut { site: "site-d".parse().unwrap(), ..first.clone() };
        let text = CrossSite { sites: vec![first, second], ..CrossSite::default() }.to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("radiology-of-the-university-hospital-n  site-d"), "{text}");
        assert!(lines[2].starts_with("portal vein and splenic vein  0.891 ["), "{text}");
        assert_eq!(lines[1].find("site-d"), lines[2].rfind("0.891 ["), "{text}");
        assert!(text.contains("\nportal vein and splenic vein            0.891     "), "{text}");
    }

    #[test]
    fn what_could_not_be_learnt_is_no_zero() {
        let text = CrossSite { sites: vec![left_out()], ..CrossSite::default() }.to_text();
        let aorta = text.lines().find(|line| line.starts_with("aorta")).unwrap();
        assert!(aorta.ends_with("nobody else annotates it") && !aorta.contains("0.0"), "{aorta}");
        assert_eq!(text.lines().filter(|line| line.starts_with("aorta")).count(), 1, "{text}");
    }
}
