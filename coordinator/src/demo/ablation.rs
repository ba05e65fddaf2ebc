//! What masking, federation and the image are worth: the same data, seed and held-out scans, one thing changed at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use common::ids::{ClassId, Role};
use common::report::ClassReport;
use common::taxonomy::Taxonomy;
use serde::{Deserialize, Serialize};

use super::Programs;
use super::arm::{Arm, Scores, final_dice, is_organ, told};
use super::consortium::{Member, pool};
use super::process::Program;
use super::study::Settings;
use crate::cli::line;
use crate::files::{self, Access};
use crate::report::ReportData;

const FEDERATED: &str = "federated-masked";
const BACKGROUND: &str = "federated-background";
const POOLED_STEPS: &str = "pooled-same-steps";
const POOLED_SAMPLES: &str = "pooled-same-samples";
const LOCATION: &str = "location-only";

/// What is read of an `evaluation.json`.
#[derive(Debug, Deserialize)]
struct Evaluated {
    classes: Vec<ClassReport>,
}

/// The difference of two arms' organs, and what it is to be.
#[derive(Debug, Serialize)]
struct Comparison {
    what: String,
    difference: f64,
    at_least: f64,
    met: bool,
}

/// Runs all arms, one after the other, and writes `ablation.json` beside their folders.
pub(super) async fn run(
    programs: &Programs,
    folder: &Path,
    members: &[Member],
    settings: &Settings,
) -> anyhow::Result<()> {
    let taxonomy = Taxonomy::standard();
    let (mut scores, mut own) = (BTreeMap::new(), BTreeMap::new());
    for arm in arms(members, settings) {
        let data = arm.run(programs, folder).await?;
        let of_arm = told(&arm.name, Scores::of(final_dice(&data), &taxonomy));
        if arm.name == FEDERATED {
            own = own_classes(&data);
            let location = location_only(programs, &folder.join(FEDERATED), &arm.members).await?;
            scores.insert(LOCATION.to_owned(), told(LOCATION, Scores::of(location, &taxonomy)));
        }
        scores.insert(arm.name, of_arm);
    }
    let comparisons = compare(&scores, &own, &taxonomy);
    line("");
    for Comparison { what, difference, at_least, met } in &comparisons {
        let met = if *met { "met" } else { "MISSED" };
        line(&format!("{what}: {difference:+.3} (at least {at_least:+.2}: {met})"));
    }
    let path = folder.join("ablation.json");
    let all = serde_json::json!({ "seed": settings.seed, "arms": scores, "comparisons": comparisons });
    files::write_atomic(&path, &serde_json::to_vec_pretty(&all)?, Access::Public)?;
    line(&format!("ablation: {}", path.display()));
    Ok(())
}

fn arms(members: &[Member], settings: &Settings) -> Vec<Arm> {
    // Curves are the demo's; here only the last model counts.
    let settings = Settings { evaluate_every: 0, ..settings.clone() };
    let (trainers, evaluators): (Vec<_>, Vec<_>) =
        members.iter().cloned().partition(|m| m.role == Role::Trainer);
    let with = |trainers: Vec<Member>| trainers.into_iter().chain(evaluators.clone()).collect::<Vec<_>>();
    let arm = |name: &str, members, settings| Arm { name: name.to_owned(), members, settings };
    let pooled = || with(pool(&trainers));
    let all_samples = settings.with_the_work_of(trainers.len());
    let background = Settings { unlabelled: "background", ..settings.clone() };
    let mut arms = vec![
        arm(FEDERATED, with(trainers.clone()), settings.clone()),
        arm(BACKGROUND, with(trainers.clone()), background),
        arm(POOLED_STEPS, pooled(), settings.clone()),
        arm(POOLED_SAMPLES, pooled(), all_samples),
    ];
    for trainer in &trainers {
        arms.push(arm(&alone(trainer.site.as_str()), with(vec![trainer.clone()]), settings.clone()));
    }
    arms
}

fn alone(site: &str) -> String {
    format!("alone-{site}")
}

/// Scores the mean training masks of all trainers of the federation in `folder` on its held-out scans.
async fn location_only(
    programs: &Programs,
    folder: &Path,
    members: &[Member],
) -> anyhow::Result<Vec<(ClassId, f64)>> {
    let config = |member: &Member| folder.join("sites").join(member.site.as_str()).join("site.toml");
    let out = folder.join(LOCATION);
    let mut program = Program::new(&programs.site_agent, LOCATION, &folder.join("logs")).args(["evaluate"]);
    for member in members {
        let option = if member.role == Role::Trainer { "--location-only" } else { "--config" };
        program = program.args([option.as_ref(), config(member).as_os_str()]);
    }
    program.args(["--out".as_ref(), out.as_os_str()]).finish().await?;
    let scored: Evaluated = serde_json::from_slice(&fs::read(out.join("evaluation.json"))?)?;
    Ok(scored.classes.into_iter().filter_map(|class| Some((class.class, class.present?.mean_dice))).collect())
}

/// The classes that each trainer annotates.
fn own_classes(data: &ReportData) -> BTreeMap<String, BTreeSet<ClassId>> {
    let mut own: BTreeMap<String, BTreeSet<ClassId>> = BTreeMap::new();
    for cell in &data.coverage {
        own.entry(cell.site.to_string()).or_default().insert(cell.class);
    }
    own
}

fn compare(
    scores: &BTreeMap<String, Scores>,
    own: &BTreeMap<String, BTreeSet<ClassId>>,
    taxonomy: &Taxonomy,
) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    let Some(federated) = scores.get(FEDERATED) else { return comparisons };
    let mut add = |what: String, difference: f64, at_least: f64| {
        comparisons.push(Comparison { what, difference, at_least, met: difference >= at_least });
    };
    for (other, at_least) in [(POOLED_STEPS, -0.05), (BACKGROUND, 0.12), (LOCATION, 0.20)] {
        if let Some(other_scores) = scores.get(other) {
            add(format!("{FEDERATED} over {other}"), federated.organs - other_scores.organs, at_least);
        }
    }
    for (site, classes) in own {
        let Some(alone_scores) = scores.get(&alone(site)) else { continue };
        let of_site = |class| classes.contains(&class) && is_organ(class, taxonomy);
        let difference = federated.mean(of_site) - alone_scores.mean(of_site);
        add(format!("{FEDERATED} over {}, on the site's own organs", alone(site)), difference, -0.05);
    }
    comparisons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(id: u8) -> ClassId {
        ClassId::new(id).unwrap()
    }

    #[test]
    fn only_the_figures_by_class_are_read_of_an_evaluation() {
        let text = r#"{"format": "any", "classes": [{"class": 6, "tau_mm": 2.0, "present": null, "absent": null}],
                       "scans": [{"scan": "t/a"}]}"#;
        let scored: Evaluated = serde_json::from_str(text).unwrap();
        assert_eq!(scored.classes[0].class, class(6));
    }

    #[test]
    fn arms_are_compared_over_organs_and_sites_over_their_own() {
        let taxonomy = Taxonomy::standard();
        let scores = |dice: [f64; 3]| {
            Scores::of([(class(1), dice[0]), (class(6), dice[1]), (class(27), dice[2])], &taxonomy)
        };
        let all = [
            (FEDERATED, scores([0.8, 0.9, 0.1])),
            (BACKGROUND, scores([0.7, 0.8, 0.9])),
            (POOLED_STEPS, scores([0.9, 0.85, 0.9])),
            ("alone-north", scores([0.1, 0.94, 0.2])),
        ];
        let all = all.map(|(name, scores)| (name.to_owned(), scores)).into();
        let own = [("north".to_owned(), [class(6), class(27)].into())].into();
        let found = compare(&all, &own, &taxonomy);
        let short: Vec<_> = found.iter().map(|c| ((c.difference * 1000.0).round(), c.met)).collect();
        assert_eq!(short, [(-25.0, true), (100.0, false), (-40.0, true)], "{found:?}");
        assert!(found[2].what.ends_with("alone-north, on the site's own organs"));
    }
}
