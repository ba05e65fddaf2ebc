//! Leave one site out, on phantoms: each hospital is scored once by a model that the others trained without it.
//!
//! Beside it stand, on the same scans: a model trained in one place on what the others have, one of the hospital alone, and
//! one of all. Scored scans have another seed than those that are trained on, or the last two would be asked about scans that
//! they know. What the numbers mean is [`crate::report::cross_site`]'s.

use std::path::Path;

use common::ids::{Role, SiteId};

use super::Programs;
use super::arm::Arm;
use super::consortium::{Member, make_phantoms, pool};
use super::study::Settings;
use crate::cli::line;
use crate::files::{self, Access};
use crate::report::cross_site::{Baseline, CrossSite, LeftOut, evaluator_of};

/// Sites, and the phantom hospitals whose scans they have.
const HOSPITALS: [(&str, &str); 4] =
    [("hospital-a", "site-a"), ("hospital-b", "site-b"), ("hospital-c", "site-c"), ("hospital-d", "site-d")];

/// Turned over in the seed of the scans that are scored. Far from the seeds that people choose.
const OTHER_SCANS: u64 = 1 << 40;

/// A hospital that trains on some of its scans and, as a member of its own, scores models on others.
struct Hospital {
    trains: Member,
    scores: Member,
}

/// Runs all arms, one after the other, prints the tables, and writes `cross-site.json` beside the arms' folders.
pub(super) async fn run(
    programs: &Programs,
    folder: &Path,
    cases: u32,
    settings: &Settings,
) -> anyhow::Result<()> {
    line("making phantoms of four hospitals, and others of each to be scored");
    let hospitals = make_hospitals(programs, &folder.join("data"), cases, settings.seed).await?;
    // Curves are the demo's; here only the last model counts.
    let settings = Settings { evaluate_every: 0, ..settings.clone() };
    let joined = everyone(&hospitals, &settings).run(programs, folder).await?;
    let mut table = CrossSite::default();
    for hospital in &hospitals {
        let [without, pooled, alone] = arms_of(&hospitals, hospital, &settings);
        let (site, evaluator) = (hospital.trains.site.clone(), hospital.scores.site.clone());
        let left_out = LeftOut::of(site, evaluator, &without.run(programs, folder).await?)?
            .beside(Baseline::Pooled, &pooled.run(programs, folder).await?)?
            .beside(Baseline::Alone, &alone.run(programs, folder).await?)?
            .beside(Baseline::Joined, &joined)?;
        table.sites.push(left_out);
    }
    line(&format!("\n{}", table.to_text()));
    write(&table, &settings, &folder.join("cross-site.json"))
}

fn write(table: &CrossSite, settings: &Settings, path: &Path) -> anyhow::Result<()> {
    let gaps: Vec<_> = table.sites.iter().map(LeftOut::gaps).collect();
    let Settings { seed, rounds, steps, .. } = settings;
    let all = serde_json::json!({
        "seed": seed, "rounds": rounds, "steps": steps, "sites": table.sites, "gaps": gaps,
    });
    files::write_atomic(path, &serde_json::to_vec_pretty(&all)?, Access::Public)?;
    line(&format!("cross-site: {}", path.display()));
    Ok(())
}

async fn make_hospitals(
    programs: &Programs,
    folder: &Path,
    cases: u32,
    seed: u64,
) -> anyhow::Result<Vec<Hospital>> {
    files::create_private_dir(folder)?;
    // Hospital c annotates a class in every other scan: six scans are three of each, of which a mean may be told.
    let scored = (cases / 2).clamp(6, 10);
    let mut hospitals = Vec::new();
    for (name, hospital) in HOSPITALS {
        let site: SiteId = name.parse()?;
        let held_out = evaluator_of(&site)?;
        let datasets = make_phantoms(programs, folder, name, hospital, cases, seed).await?;
        let trains = Member { site, role: Role::Trainer, datasets };
        let name = held_out.as_str();
        let datasets = make_phantoms(programs, folder, name, hospital, scored, seed ^ OTHER_SCANS).await?;
        hospitals
            .push(Hospital { trains, scores: Member { site: held_out, role: Role::Evaluator, datasets } });
    }
    Ok(hospitals)
}

/// The federation of all, scored everywhere.
fn everyone(hospitals: &[Hospital], settings: &Settings) -> Arm {
    let members = hospitals.iter().flat_map(|hospital| [hospital.trains.clone(), hospital.scores.clone()]);
    Arm { name: "everyone".to_owned(), members: members.collect(), settings: settings.clone() }
}

/// The arms that `one` alone scores: of the others, of the others' data in one place, and of itself.
fn arms_of(hospitals: &[Hospital], one: &Hospital, settings: &Settings) -> [Arm; 3] {
    let site = &one.trains.site;
    let trainers = hospitals.iter().map(|hospital| &hospital.trains);
    let others: Vec<Member> = trainers.filter(|trainer| trainer.site != *site).cloned().collect();
    let arm = |name: String, trainers: Vec<Member>, settings: Settings| {
        let members = trainers.into_iter().chain([one.scores.clone()]).collect();
        Arm { name, members, settings }
    };
    [
        arm(format!("without-{site}"), others.clone(), settings.clone()),
        arm(format!("pooled-without-{site}"), pool(&others), settings.with_the_work_of(others.len())),
        arm(format!("alone-{site}"), vec![one.trains.clone()], settings.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::study::tests::settings;

    fn hospital(name: &str) -> Hospital {
        let member = |site: String, role| Member { site: site.parse().unwrap(), role, datasets: Vec::new() };
        Hospital {
            trains: member(name.to_owned(), Role::Trainer),
            scores: member(format!("{name}-held-out"), Role::Evaluator),
        }
    }

    fn names(arm: &Arm) -> Vec<&str> {
        arm.members.iter().map(|member| member.site.as_str()).collect()
    }

    #[test]
    fn a_hospital_that_is_left_out_scores_what_the_others_trained() {
        let (hospitals, settings) = (["a", "b", "c"].map(hospital), settings());
        let [without, pooled, alone] = arms_of(&hospitals, &hospitals[1], &settings);
        assert_eq!((without.name.as_str(), names(&without)), ("without-b", vec!["a", "c", "b-held-out"]));
        assert_eq!(names(&pooled), ["a", "b-held-out"]);
        assert_eq!(pooled.settings.steps, 2 * settings.steps, "the work of two");
        assert_eq!((names(&alone), alone.settings.steps), (vec!["b", "b-held-out"], settings.steps));
    }

    #[test]
    fn a_federation_of_all_is_scored_everywhere() {
        let everyone = everyone(&["a", "b"].map(hospital), &settings());
        assert_eq!(names(&everyone), ["a", "a-held-out", "b", "b-held-out"]);
    }
}
