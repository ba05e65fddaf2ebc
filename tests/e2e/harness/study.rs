//! The smallest study that is one: a narrow network on patches of 16³ voxels of 16 mm, on phantoms made on the spot.

use std::fs;
use std::path::{Path, PathBuf};

use common::ids::Role;
use tests::small_study::{SMALL_MODEL, SmallStudy};

use super::consortium::{Consortium, Site};
use super::process::{command, finish};

/// Optimiser steps of a round: seconds of training, so that a process can be killed in their midst.
pub(crate) const STEPS: u32 = 8;

/// Name of the study.
pub(crate) const NAME: &str = "Small";

/// The study's TOML: so many rounds of so many steps, each of which waits for so many sites.
fn study(rounds: u32, steps: u32, sites: usize) -> String {
    SmallStudy { name: NAME, rounds, steps, sites }.toml()
}

/// Two classes, neither with the number that it has in the standard taxonomy.
const TWO_CLASSES: &str = r#"
[[class]]
id = 1
name = "Liver Tumor"
kind = "tumour"
parents = [2]

[[class]]
id = 2
name = "Liver"
kind = "organ"
"#;

/// Files of a study of two classes that starts from a model of all.
pub(crate) struct TwoClasses {
    pub(crate) study: PathBuf,
    pub(crate) classes: PathBuf,
    pub(crate) embeddings: PathBuf,
    pub(crate) model: PathBuf,
}

impl Consortium {
    /// Adapts a fresh model of the standard classes to two, for a study that is not added.
    pub(crate) fn adapt_to_two_classes(&self, rounds: u32, steps: u32) -> TwoClasses {
        let [study_file, classes, embeddings, model] =
            ["study.toml", "classes.toml", "two.safetensors", "start.safetensors"]
                .map(|file| self.path(file));
        fs::write(&study_file, study(rounds, steps, 1)).expect("the folder is ours");
        fs::write(&classes, TWO_CLASSES).expect("the folder is ours");
        let config = self.path("model.toml");
        fs::write(&config, SMALL_MODEL).expect("the folder is ours");
        let (all, trained) = (self.path("all.safetensors"), self.path("trained.safetensors"));
        let agent = |words: &[&str], options: &[(&str, &PathBuf)]| {
            let mut agent = command("site-agent", words);
            for (option, path) in options {
                agent.arg(option).arg(path);
            }
            finish(agent).ok()
        };
        agent(&["embed", "one-hot"], &[("--out", &all)]);
        agent(&["model", "init"], &[("--config", &config), ("--embeddings", &all), ("--out", &trained)]);
        agent(&["embed", "one-hot"], &[("--taxonomy", &classes), ("--out", &embeddings)]);
        let trained = trained.to_str().expect("a plain name");
        let told = agent(
            &["model", "adapt", trained],
            &[
                ("--config", &config),
                ("--taxonomy", &classes),
                ("--embeddings", &embeddings),
                ("--out", &model),
            ],
        );
        assert!(told.contains("fresh: the embeddings are 2 wide, the model read 32"), "{told}");
        TwoClasses { study: study_file, classes, embeddings, model }
    }

    /// Adds the study with a fresh model; it is not started.
    pub(crate) fn add_study(&self, rounds: u32, sites: usize) {
        self.add_study_of(rounds, STEPS, sites);
    }

    /// As [`Consortium::add_study`], with so many steps in a round: one is enough where nobody is killed in its midst.
    pub(crate) fn add_study_of(&self, rounds: u32, steps: u32, sites: usize) {
        self.add_study_written(&study(rounds, steps, sites));
    }

    /// As [`Consortium::add_study`], of a strategy: its lines of the section `[aggregation]`.
    pub(crate) fn add_study_by(&self, strategy: &str, rounds: u32, sites: usize) {
        let (section, by) = ("[aggregation]\n", format!("[aggregation]\n{strategy}"));
        self.add_study_written(&study(rounds, STEPS, sites).replace(section, &by));
    }

    /// Adds a small study of one round and one step for one site, which refuses updates of a larger norm.
    pub(crate) fn add_study_with_norm_bound(&self, bound: f64) {
        let (section, bounded) = ("[aggregation]\n", format!("[aggregation]\nmax_update_norm = {bound}\n"));
        self.add_study_written(&study(1, 1, 1).replace(section, &bounded));
    }

    /// Adds a small study of one step a round for one site, of which the model of every round is scored.
    pub(crate) fn add_study_scored_each_round(&self, rounds: u32) {
        let (section, scored) = ("[evaluation]\n", "[evaluation]\nevery_rounds = 1\n");
        self.add_study_written(&study(rounds, 1, 1).replace(section, scored));
    }

    /// Adds a small study of two rounds and one step a round for one site. The model of every round is scored by `gate`, for whose
    /// report the next round waits, and of those that are promoted by `sealed`.
    pub(crate) fn add_study_with_gate(&self, gate: &str, sealed: &str) {
        let section = "[evaluation]\n";
        let scored = format!("[evaluation]\nevery_rounds = 1\ntest = [\"{sealed}\"]\n");
        let text = study(2, 1, 1).replace(section, &scored);
        let gate = format!("\n[evaluation.gate]\nevaluators = [\"{gate}\"]\ntimeout_s = 3600\n");
        self.add_study_written(&(text + &gate));
    }

    /// Adds a small study of two rounds and one step a round for one site. A round that has the update of one closes after so many seconds;
    /// others count in the next.
    pub(crate) fn add_study_that_takes_late_updates(&self, deadline_s: u32) {
        let section = "deadline_s = 3600\naccept_s = 600\n";
        let late = format!("deadline_s = {deadline_s}\naccept_s = {deadline_s}\nlate = \"next-round\"\n");
        self.add_study_written(&study(2, 1, 1).replace(section, &late));
    }

    /// Adds a small study of one step a round for one site, whose updates are in bfloat16.
    pub(crate) fn add_study_in_bf16(&self, rounds: u32) {
        let (section, rounded) = ("[aggregation]\n", "[aggregation]\nupdate_dtype = \"bf16\"\n");
        self.add_study_written(&study(rounds, 1, 1).replace(section, rounded));
    }

    /// Adds small studies of one round and one step that leave one of these sites out each; what the operator is told.
    pub(crate) fn add_studies_without(&self, sites: &str) -> String {
        self.add(&["cross-site", "add", "--sites", sites], &study(1, 1, 2))
    }

    fn add_study_written(&self, study: &str) {
        self.add(&["add"], study);
    }

    /// Adds a study by this command, with a fresh model.
    fn add(&self, command_of_study: &[&str], study: &str) -> String {
        let files = ["study.toml", "model.toml", "embeddings.safetensors", "model.safetensors"];
        let [study_file, config, embeddings, model] = files.map(|file| self.path(file));
        fs::write(&study_file, study).expect("the folder is ours");
        fs::write(&config, SMALL_MODEL).expect("the folder is ours");
        let [study_file, config, embeddings, model] =
            [&study_file, &config, &embeddings, &model].map(|path| path.to_str().expect("a plain name"));
        finish(command("site-agent", ["embed", "one-hot", "--out", embeddings])).ok();
        let init = ["model", "init", "--config", config, "--embeddings", embeddings, "--out", model];
        finish(command("site-agent", init)).ok();
        let words = std::iter::once("study").chain(command_of_study.iter().copied());
        self.operate(words.chain([study_file, "--model", model, "--embeddings", embeddings])).ok()
    }

    /// Invites and enrols a site that may take part in any study, with two scans of a phantom hospital.
    pub(crate) fn member(&self, name: &str, role: Role, hospital: &str) -> Site {
        let site = self.enrol(name, role);
        site.give_phantoms(&self.address, hospital);
        site
    }

    /// Opens the first round as soon as sites are ready.
    pub(crate) fn start_study(&self) {
        self.operate(["study", "start", NAME]).ok();
    }
}

impl Site {
    /// Makes two scans of a phantom hospital, and configures the site to train on them.
    pub(crate) fn give_phantoms(&self, coordinator: &str, hospital: &str) {
        let folder = self.path("data");
        make_phantoms(&folder, hospital);
        let mut datasets = String::new();
        for entry in fs::read_dir(&folder).expect("phantoms were made") {
            let entry = entry.expect("a folder");
            let name = entry.file_name().into_string().expect("a plain name");
            datasets.push_str(&format!("[[dataset]]\nname = \"{name}\"\nfolder = \"data/{name}\"\n"));
        }
        self.configure(coordinator, &datasets);
    }
}

/// Makes two coarse scans of a phantom hospital in `folder`.
pub(crate) fn make_phantoms(folder: &Path, hospital: &str) {
    let out = folder.to_str().expect("a plain name");
    let args = ["phantom", "--hospital", hospital, "--cases", "2", "--spacing", "12,12,12", "--out", out];
    finish(command("site-agent", args)).ok();
}
