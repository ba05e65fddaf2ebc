use std::fs;

use common::ids::{ArtifactHash, Digest};
use common::study::CLASS_TABLE_TENSOR;

use super::*;
use crate::cli::Cli;
use crate::client::artifacts::ArtifactError;
use crate::infer::network::StudyNetwork;
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::{ClassEmbeddings, DeviceKind, EmbeddingConfig, ModelConfig, UniversalModel, device};
use crate::phantom::{HOSPITALS, write_hospital};
use crate::train::trainer::TrainError;

const STUDY: &str = r#"name = "Two classes"
seed = 7
rounds = 50

[model]
backbone = "unet"
width = 8

[embeddings]
kind = "one-hot"

[preprocessing]
spacing_mm = [16.0, 16.0, 16.0]
window_hu = [-175.0, 250.0]
patch = [16, 16, 16]

[sampling]

[training]
steps_per_round = 2
micro_batch = 1
warmup_rounds = 3

[training.optimizer]
kind = "adamw"
base_lr = 1e-3

[aggregation]

[quorum]
sites = 2
deadline_s = 3600
accept_s = 600

[evaluation]
every_rounds = 5

[evaluation.nsd_tolerance_mm]
default = 4.0
"#;

fn organs(names: &[&str]) -> String {
    let class = |(index, name): (usize, &&str)| {
        format!("[[class]]\nid = {}\nname = \"{name}\"\nkind = \"organ\"\n", index + 1)
    };
    names.iter().enumerate().map(class).collect()
}

fn write_embeddings(path: &Path, table: &ClassEmbeddings) {
    let tensors = NamedTensors::from([(EMBEDDING_NAME.to_owned(), table.table().clone())]);
    model::write(path, &tensors).unwrap();
}

/// A site with two coarse phantoms, and a model for spleen and heart.
struct Site {
    folder: tempfile::TempDir,
    config: SiteConfig,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_hospital(&folder.path().join("data"), &HOSPITALS[0], 1, 2, Some([12.0; 3])).unwrap();
        let site = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"state\"\npolicy = \"p\"\n\
                    [[dataset]]\nname = \"own\"\nfolder = \"data/upper-abdomen\"\n";
        let config = SiteConfig::parse(&folder.path().join("site.toml"), site).unwrap();
        let table = ClassEmbeddings::one_hot(2, 1.0).unwrap();
        let embedding = EmbeddingConfig { kind: table.kind(), rows: 2, width: 2 };
        let network = ModelConfig::unet(8, embedding);
        let initial = UniversalModel::new(&network, Some(&table), 1, &device(DeviceKind::Cpu).unwrap());
        let path = |name: &str| folder.path().join(name);
        model::write(&path("start.safetensors"), &initial.unwrap().export()).unwrap();
        write_embeddings(&path("embeddings.safetensors"), &table);
        fs::write(path("study.toml"), STUDY).unwrap();
        fs::write(path("taxonomy.toml"), organs(&["Spleen", "Heart"])).unwrap();
        Self { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn args(&self, steps: u32) -> FinetuneArgs {
        FinetuneArgs {
            config: ConfigArgs { config: self.path("site.toml") },
            study: self.path("study.toml"),
            model: self.path("start.safetensors"),
            embeddings: self.path("embeddings.safetensors"),
            taxonomy: TaxonomyArg { taxonomy: Some(self.path("taxonomy.toml")) },
            steps: Some(steps),
            out: self.path("tuned.safetensors"),
        }
    }

    fn finetune(&self, args: &FinetuneArgs, cancel: &Cancel) -> Result<(), CliError> {
        Prepared::new(args, &self.config)?.train(&args.out, cancel)
    }
}

#[test]
fn a_tuned_model_comes_with_the_study_that_it_is_used_with() {
    let site = Site::new();
    let args = site.args(3);
    site.finetune(&args, &Cancel::default()).unwrap();
    let document = StudyDocument::parse(fs::read(site.path("tuned.study.json")).unwrap()).unwrap();
    assert_eq!(document.study().rounds, 2, "three steps are two rounds of two");
    assert_eq!(document.study().training.warmup_rounds, 2, "no more than there are rounds");
    let [tuned, start, embeddings] = ["tuned", "start", "embeddings"]
        .map(|name| model::read(&site.path(&format!("{name}.safetensors"))).unwrap());
    assert_ne!(tuned, start);
    let on = DeviceKind::Cpu;
    assert!(StudyNetwork::build(document.study(), &tuned, &embeddings, on, Cancel::default()).is_ok());
    let left = fs::read_dir(site.path("state/finetune")).unwrap().count();
    assert_eq!(left, 0, "nobody goes on from a model that is there");

    let again = site.finetune(&args, &Cancel::default()).unwrap_err().text();
    assert!(again.contains("tuned.safetensors exists"), "{again}");
    assert_eq!(model::read(&args.out).unwrap(), tuned);
}

#[test]
fn a_model_that_learns_its_own_class_table_is_made_and_tuned_from_files_alone() {
    let site = Site::new();
    let path = |name: &str| site.path(name).display().to_string();
    fs::write(path("model.toml"), "backbone = \"unet\"\nwidth = 8\n").unwrap();
    let words = ["site-agent", "model", "init", "--learned", "--config"].map(str::to_owned).into_iter();
    let words = words.chain([path("model.toml"), "--taxonomy".to_owned(), path("taxonomy.toml")]);
    let words = words.chain(["--out".to_owned(), path("start.safetensors")]);
    crate::cli::run(<Cli as clap::Parser>::try_parse_from(words).unwrap()).unwrap();

    let learned = "kind = \"imported:learned\"\ntrainable = true";
    fs::write(site.path("study.toml"), STUDY.replace("kind = \"one-hot\"", learned)).unwrap();
    let args = FinetuneArgs { embeddings: site.path("start-embeddings.safetensors"), ..site.args(2) };
    site.finetune(&args, &Cancel::default()).unwrap();
    let table = |path: &Path| model::read(path).unwrap()[CLASS_TABLE_TENSOR].clone();
    assert_eq!(table(&args.model).shape(), [2, 256]);
    assert_ne!(table(&args.out), table(&args.model));
}

#[test]
fn who_stops_is_told_how_to_go_on_and_the_same_command_does() {
    let site = Site::new();
    let args = site.args(2);
    let cancel = Cancel::default();
    cancel.cancel();
    let stopped = site.finetune(&args, &cancel).unwrap_err().text();
    assert!(stopped.contains("0 of 1 rounds") && stopped.contains("the same command goes on"), "{stopped}");
    assert!(!args.out.exists());
    site.finetune(&args, &Cancel::default()).unwrap();
    assert!(args.out.exists());
}

#[test]
fn prepared_scans_are_kept_for_whoever_goes_on_and_for_nobody_else() {
    let site = Site::new();
    let args = site.args(2);
    let is_kept = || site.path("state/cache/finetune.list").exists();
    let cancel = Cancel::default();
    cancel.cancel();
    site.finetune(&args, &cancel).unwrap_err();
    assert!(is_kept(), "the same command goes on with them");
    site.finetune(&args, &Cancel::default()).unwrap();
    assert!(!is_kept(), "a scan that is taken away must not stay for a model that is there");
}

#[test]
fn damage_to_what_was_kept_is_told_with_the_folder_to_remove() {
    let rounds = Path::new("state/finetune/abc");
    let lost = ArtifactError::Absent(ArtifactHash(Digest::of(b"model")));
    let damaged = StateError::Damaged { path: rounds.join("round-1.optimizer") };
    for error in [anyhow::Error::from(TrainError::Stored(Box::new(lost))), anyhow::Error::from(damaged)] {
        let text = explained(error, rounds).text();
        assert!(text.contains("remove state/finetune/abc and begin anew"), "{text}");
    }
    let other = explained(anyhow::Error::from(TrainError::NoGlobalModel), rounds).text();
    assert!(!other.contains("begin anew"), "{other}");
}

#[test]
fn what_cannot_be_trained_is_refused_before_any_training_with_a_way_out() {
    let site = Site::new();
    let refused = || site.finetune(&site.args(2), &Cancel::default()).unwrap_err().text();
    fs::write(site.path("taxonomy.toml"), organs(&["Heart", "Brain"])).unwrap();
    let words = refused();
    assert!(words.contains("annotates a class of the study") && words.contains("`taxonomy`"), "{words}");
    fs::write(site.path("taxonomy.toml"), organs(&["Spleen", "Heart", "Brain"])).unwrap();
    let words = refused();
    assert!(words.contains("one per class"), "{words}");
    write_embeddings(&site.path("embeddings.safetensors"), &ClassEmbeddings::one_hot(3, 1.0).unwrap());
    let words = refused();
    assert!(words.contains("width 3") && words.contains("model adapt"), "{words}");
}
