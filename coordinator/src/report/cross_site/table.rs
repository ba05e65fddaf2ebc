//! The experiment as a person reads it: classes × sites first, then for each site how far other models are.

use std::collections::BTreeMap;

use common::ids::{ClassId, SiteId};

use super::{Baseline, ClassRow, CrossSite, Dice, LeftOut, Outcome};

/// Columns of characters: a class's name, a cell with its interval, a score, a score with a gap.
const NAME: usize = 24;
const CELL: usize = 27;
const SCORE: usize = 10;
const GAP: usize = 17;

impl CrossSite {
    /// The tables in plain text, one line each row, readable without colour.
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            "Leave one site out: Dice on the scans of the site that did not train, with the 95 % interval of the mean"
                .to_owned(),
        ];
        lines.extend(self.matrix());
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
            let cells = self.sites.iter().map(|left_out| pad(&cell(left_out), CELL));
            pad(name, NAME) + &cells.collect::<String>()
        };
        let mut lines = vec![row("class", &|left_out: &LeftOut| left_out.site.to_string())];
        lines.extend(
            self.classes().iter().map(|(class, name)| row(name, &|left_out: &LeftOut| left_out.cell(*class))),
        );
        lines.push(row("mean over organs", &|left_out: &LeftOut| {
            left_out.mean_dice().map_or_else(dash, score)
        }));
        lines
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
        let heads = baselines.iter().map(|baseline| pad(baseline.word(), GAP));
        let head = pad(self.site.as_str(), NAME) + &pad("left out", SCORE) + &heads.collect::<String>();
        let rows = self.classes.iter().filter_map(|row| class_line(row, &baselines));
        let mut lines = vec![head + "learnt from"];
        lines.extend(rows);
        let gaps = baselines.iter().map(|baseline| {
            pad(&self.gap(*baseline).map_or_else(dash, |gap| against(gap.other, gap.difference)), GAP)
        });
        let mean = pad(&self.mean_dice().map_or_else(dash, score), SCORE);
        lines.push(pad("mean over organs", NAME) + &mean + &gaps.collect::<String>());
        lines
    }
}

/// A class with a score; `None` for one without.
fn class_line(row: &ClassRow, baselines: &[Baseline]) -> Option<String> {
    let dice = row.outcome.dice()?;
    let other = |baseline: &Baseline| {
        let other = row.others.get(baseline);
        pad(&other.map_or_else(dash, |other| against(other.mean, dice.mean - other.mean)), GAP)
    };
    let others: String = baselines.iter().map(other).collect();
    let from: Vec<&str> = row.learnt_from.iter().map(SiteId::as_str).collect();
    Some(pad(&row.name, NAME) + &pad(&score(dice.mean), SCORE) + &others + &from.join(", "))
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

fn pad(text: &str, width: usize) -> String {
    format!("{text:<width$}")
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
        insta::assert_snapshot!(CrossSite { sites: vec![first, second] }.to_text());
    }

    #[test]
    fn what_could_not_be_learnt_is_no_zero() {
        let text = CrossSite { sites: vec![left_out()] }.to_text();
        let aorta = text.lines().find(|line| line.starts_with("aorta")).unwrap();
        assert!(aorta.ends_with("nobody else annotates it") && !aorta.contains("0.0"), "{aorta}");
        assert_eq!(text.lines().filter(|line| line.starts_with("aorta")).count(), 1, "{text}");
    }
}
