//! What class embeddings are worth: the same data, network and steps with each of them, over several seeds.
//!
//! A difference is taken within a seed, for seeds differ more than embeddings do; its range over the seeds stands in the
//! place of an interval, which so few do not give.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::taxonomy::Taxonomy;
use serde::Serialize;

use super::arm::{Arm, Scores, final_dice, told};
use super::study::{Embedding, Settings};
use super::{Options, Programs, prepare_data};
use crate::cli::line;
use crate::files::{self, Access};

/// Seeds when none are given.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Scores by embedding and seed.
type Found = BTreeMap<Embedding, BTreeMap<u64, Scores>>;

/// One embedding in a table of one number for each seed.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    encoding: &'static str,
    by_seed: BTreeMap<u64, f64>,
    mean: f64,
    /// None for one-hot itself.
    over_one_hot: Option<Difference>,
}

/// A difference within each seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Difference {
    mean: f64,
    lowest: f64,
    highest: f64,
}

/// Runs all arms, one after the other, prints the tables, and writes `encodings.json` beside the seeds' folders.
pub(super) async fn run(programs: &Programs, folder: &Path, options: &Options) -> anyhow::Result<()> {
    let taxonomy = Taxonomy::standard();
    let mut found = Found::new();
    for seed in seeds(&options.seeds) {
        let folder = folder.join(format!("seed-{seed}"));
        files::create_private_dir(&folder)?;
        let members = prepare_data(options, programs, &folder, seed).await?;
        for embedding in Embedding::ALL {
            // Curves are the demo's; here only the last model counts.
            let settings = Settings { seed, embedding, evaluate_every: 0, ..Settings::of(options) };
            let arm = Arm { name: embedding.word().to_owned(), members: members.clone(), settings };
            let data = arm.run(programs, &folder).await?;
            let words = format!("{}, seed {seed}", arm.name);
            let scores = told(&words, Scores::of(final_dice(&data), &taxonomy));
            found.entry(embedding).or_default().insert(seed, scores);
        }
    }
    let (organs, lesions) = (rows(&found, |scores| scores.organs), rows(&found, |scores| scores.lesions));
    line("");
    table("organs", &organs).iter().for_each(|row| line(row));
    line("");
    table("lesions", &lesions).iter().for_each(|row| line(row));
    write(options, &organs, &lesions, &found, &folder.join("encodings.json"))
}

fn write(
    options: &Options,
    organs: &[Row],
    lesions: &[Row],
    found: &Found,
    path: &Path,
) -> anyhow::Result<()> {
    let arms: BTreeMap<&str, _> = found.iter().map(|(embedding, seeds)| (embedding.word(), seeds)).collect();
    let all = serde_json::json!({
        "rounds": options.rounds, "steps": options.steps, "organs": organs, "lesions": lesions, "arms": arms,
    });
    files::write_atomic(path, &serde_json::to_vec_pretty(&all)?, Access::Public)?;
    line(&format!("encodings: {}", path.display()));
    Ok(())
}

/// In order, each once.
fn seeds(given: &[u64]) -> BTreeSet<u64> {
    if given.is_empty() { SEEDS.into() } else { given.iter().copied().collect() }
}

fn rows(found: &Found, number: fn(&Scores) -> f64) -> Vec<Row> {
    let one_hot = found.get(&Embedding::OneHot);
    let row = |(embedding, scores): (&Embedding, &BTreeMap<u64, Scores>)| {
        let by_seed: BTreeMap<u64, f64> = scores.iter().map(|(seed, of)| (*seed, number(of))).collect();
        let base = one_hot.filter(|_| *embedding != Embedding::OneHot);
        let difference = |(seed, value): (&u64, &f64)| Some(value - number(base?.get(seed)?));
        let differences: Vec<f64> = by_seed.iter().filter_map(difference).collect();
        Row {
            encoding: embedding.word(),
            mean: mean(by_seed.values().copied()),
            by_seed,
            over_one_hot: Difference::of(&differences),
        }
    };
    found.iter().map(row).collect()
}

impl Difference {
    fn of(values: &[f64]) -> Option<Self> {
        let lowest = values.iter().copied().reduce(f64::min)?;
        let highest = values.iter().copied().reduce(f64::max)?;
        Some(Self { mean: mean(values.iter().copied()), lowest, highest })
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// One line each row.
fn table(what: &str, rows: &[Row]) -> Vec<String> {
    let seeds = rows.first().into_iter().flat_map(|row| row.by_seed.keys());
    let seeds: String = seeds.map(|seed| format!("{:>9}", format!("seed {seed}"))).collect();
    let title = format!("Dice over {what}");
    let head = format!("{title:<18}{seeds}{:>9}  over one-hot, lowest and highest", "mean");
    let row = |row: &Row| {
        let values: String = row.by_seed.values().map(|value| format!("{value:>9.3}")).collect();
        let over = row.over_one_hot.map_or_else(String::new, |over| {
            format!("  {:+.3} ({:+.3}, {:+.3})", over.mean, over.lowest, over.highest)
        });
        format!("{:<18}{values}{:>9.3}{over}", row.encoding, row.mean)
    };
    std::iter::once(head).chain(rows.iter().map(row)).collect()
}

#[cfg(test)]
mod tests {
    use common::ids::ClassId;

    use super::*;

    fn scores(liver: f64, tumour: f64) -> Scores {
        let class = |id| ClassId::new(id).unwrap();
        Scores::of([(class(6), liver), (class(27), tumour)], &Taxonomy::standard())
    }

    fn found() -> Found {
        let seeds = |first: f64, second: f64| -> BTreeMap<u64, Scores> {
            [(1, scores(first, 0.5)), (2, scores(second, 0.25))].into()
        };
        [
            (Embedding::OneHot, seeds(0.75, 0.5)),
            (Embedding::FewHot, seeds(1.0, 0.5)),
            (Embedding::Minilm, seeds(0.75, 1.0)),
        ]
        .into()
    }

    #[test]
    fn embeddings_are_compared_within_each_seed() {
        let rows = rows(&found(), |scores| scores.organs);
        assert_eq!(rows[0].over_one_hot, None);
        assert_eq!(rows[1].over_one_hot, Some(Difference { mean: 0.125, lowest: 0.0, highest: 0.25 }));
        assert_eq!(rows[2].mean, 0.875);
    }

    #[test]
    fn the_table_has_a_row_for_each_embedding_and_a_column_for_each_seed() {
        let rows = rows(&found(), |scores| scores.organs);
        let expected = [
            "Dice over organs     seed 1   seed 2     mean  over one-hot, lowest and highest",
            "one-hot               0.750    0.500    0.625",
            "few-hot               1.000    0.500    0.750  +0.125 (+0.000, +0.250)",
            "minilm                0.750    1.000    0.875  +0.250 (+0.000, +0.500)",
        ];
        assert_eq!(table("organs", &rows), expected);
    }

    #[test]
    fn seeds_are_three_unless_others_are_given_and_each_runs_once() {
        assert_eq!(Vec::from_iter(seeds(&[])), SEEDS);
        assert_eq!(Vec::from_iter(seeds(&[7, 4, 7])), [4, 7]);
    }
}
