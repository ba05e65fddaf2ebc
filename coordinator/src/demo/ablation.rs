//! What masking and federation are worth: the same data, seed and held-out scans, one thing changed at a time.

use std::path::Path;

use common::ids::Role;

use super::Programs;
use super::consortium::{Consortium, Member};
use super::study::Settings;
use crate::cli::line;
use crate::files::{self, Access};
use crate::report::ReportData;

/// One arm.
struct Arm {
    name: String,
    members: Vec<Member>,
    settings: Settings,
}

/// Runs all arms, one after the other, and writes `ablation.json` beside their folders.
pub(super) async fn run(
    programs: &Programs,
    folder: &Path,
    members: &[Member],
    settings: &Settings,
) -> anyhow::Result<()> {
    let mut results = serde_json::Map::new();
    for Arm { name, members, settings } in arms(members, settings) {
        line(&format!("\n{name}: {} rounds of {} steps", settings.rounds, settings.steps));
        let folder = folder.join(&name);
        files::create_private_dir(&folder)?;
        let consortium = Consortium { programs, folder: &folder, members: &members, settings: &settings };
        let data = consortium.run(false).await?;
        let (organs, lesions) = means(&data);
        line(&format!("{name}: held-out Dice {organs:?} over organs, {lesions:?} over lesions"));
        let classes: serde_json::Map<String, serde_json::Value> = classes(&data);
        results.insert(name, serde_json::json!({ "organs": organs, "lesions": lesions, "classes": classes }));
    }
    let path = folder.join("ablation.json");
    files::write_atomic(&path, &serde_json::to_vec_pretty(&results)?, Access::Public)?;
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
    // In samples a pooled site must do the work of all.
    let all_samples = Settings {
        steps: settings.steps.saturating_mul(u32::try_from(trainers.len()).unwrap_or(u32::MAX)),
        ..settings.clone()
    };
    let mut arms = vec![
        arm("federated-masked", with(trainers.clone()), settings.clone()),
        arm(
            "federated-background",
            with(trainers.clone()),
            Settings { unlabelled: "background", ..settings.clone() },
        ),
        arm("pooled-same-steps", pooled(), settings.clone()),
        arm("pooled-same-samples", pooled(), all_samples),
    ];
    for trainer in &trainers {
        arms.push(arm(&format!("alone-{}", trainer.site), with(vec![trainer.clone()]), settings.clone()));
    }
    arms
}

/// One site with the data of all: what the law forbids, to compare with.
fn pool(trainers: &[Member]) -> Vec<Member> {
    let Some(first) = trainers.first() else { return Vec::new() };
    let datasets = trainers.iter().flat_map(|trainer| trainer.datasets.clone()).collect();
    vec![Member { datasets, ..first.clone() }]
}

fn means(data: &ReportData) -> (Option<f64>, Option<f64>) {
    let last = data.final_scores();
    let mean = |lesions| last.first().and_then(|scores| data.mean_dice(scores, lesions));
    (mean(false), mean(true))
}

fn classes(data: &ReportData) -> serde_json::Map<String, serde_json::Value> {
    let name =
        |class| data.classes.iter().find(|c| c.class == class).map_or(String::new(), |c| c.name.clone());
    let scores = data.final_scores().into_iter().flat_map(|scores| &scores.classes);
    scores.filter_map(|score| Some((name(score.class), score.mean_dice?.into()))).collect()
}
