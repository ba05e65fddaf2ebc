use common::ids::{ArtifactHash, Digest, RoundId};
use common::testing::example_study_with;
use tempfile::TempDir;

use super::*;
use crate::infer::network::{class_embeddings, model_config};
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::{ClassEmbeddings, DeviceKind, HostTensor, UniversalModel, device};

/// Studies of different seeds have models whose tensors have the same names and shapes.
fn study(seed: u64) -> StudyDocument {
    example_study_with(|draft| (draft.seed, draft.model.width) = (seed, 8))
}

/// A site that was offered studies and has fetched models.
struct Site {
    folder: TempDir,
    config: SiteConfig,
    state: StateFolder,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n";
        let config = SiteConfig::parse(&folder.path().join("site.toml"), text).unwrap();
        let state = StateFolder::open(&config.state).unwrap();
        let site = Self { folder, config, state };
        model::write(&site.embeddings(), &Self::table()).unwrap();
        site
    }

    /// The embeddings that every study here names.
    fn table() -> NamedTensors {
        NamedTensors::from([(EMBEDDING_NAME.to_owned(), HostTensor::from_fn(vec![32, 32], |_| 0.0))])
    }

    fn embeddings(&self) -> PathBuf {
        self.folder.path().join("embeddings.safetensors")
    }

    fn offer(&self, study: &StudyDocument) {
        self.state.studies().store(study.digest(), study.bytes().to_vec()).unwrap();
    }

    /// A model that fits every study here, with weights of its own for each seed.
    fn fetch(&self, seed: u64) -> ModelHash {
        let network = model_config(study(1).study());
        let table = class_embeddings(&network, &Self::table()).unwrap();
        let cpu = device(DeviceKind::Cpu).unwrap();
        let model = UniversalModel::new(&network, table.as_ref(), seed, &cpu).unwrap();
        self.state.artifacts().store(&model.export()).unwrap().hash()
    }

    fn note(&self, study: &StudyDocument, round: u32, model: ModelHash) {
        let embeddings = study.study().embeddings.artifact;
        let newest = NewestModel { round: RoundId(round), model, embeddings };
        self.state.studies().note_model(study.digest(), newest).unwrap();
    }

    /// What a command takes without `--model`, or what it says.
    fn chosen(&self, study: &StudyDocument) -> Result<ModelHash, String> {
        self.chosen_with(study, Some(self.embeddings()), false)
    }

    fn chosen_with(
        &self,
        study: &StudyDocument,
        embeddings: Option<PathBuf>,
        other_embeddings: bool,
    ) -> Result<ModelHash, String> {
        let chosen = ChosenModel { study: None, model: None, embeddings, other_embeddings };
        let identified = chosen.identified(&self.config, study, Cancel::default());
        identified.map(|(_, model)| model).map_err(|error| error.text())
    }
}

#[test]
fn the_model_is_of_the_study_that_was_named_whatever_else_was_fetched_since() {
    let (site, [ours, other, third]) = (Site::new(), [1, 2, 3].map(study));
    for study in [&ours, &other, &third] {
        site.offer(study);
    }
    let [round_40, round_35, others] = [40, 35, 7].map(|seed| site.fetch(seed));
    // An evaluator that was away scores the newest round first.
    site.note(&ours, 40, round_40);
    site.note(&ours, 35, round_35);
    site.note(&other, 90, others);
    assert_eq!(site.chosen(&ours), Ok(round_40));
    assert_eq!(site.chosen(&other), Ok(others));
    let told = site.chosen(&third).unwrap_err();
    let expected = format!("error: this site has no model of study {} yet", third.digest().short());
    assert!(told.starts_with(&expected) && told.contains("hint: name one with --model"), "{told}");

    site.state.artifacts().remove(round_40).unwrap();
    let told = site.chosen(&ours).unwrap_err();
    let expected = format!("error: the model of round 40 of study {}", ours.digest().short());
    assert!(told.starts_with(&expected) && told.contains("is not here\n\nhint: "), "{told}");
}

#[test]
fn a_model_of_an_earlier_version_is_taken_where_no_other_study_was_offered() {
    let (site, [ours, other]) = (Site::new(), [1, 2].map(study));
    site.offer(&ours);
    assert!(site.chosen(&ours).unwrap_err().contains("has no model of study"));
    let model = site.fetch(1);
    assert_eq!(site.chosen(&ours), Ok(model));
    assert!(site.chosen(&other).is_err(), "its document is a file, and no model was fetched for it");
    site.offer(&other);
    for study in [&ours, &other] {
        assert!(site.chosen(study).unwrap_err().contains("has no model of study"));
    }
}

#[test]
fn embeddings_are_those_of_the_study_unless_others_are_meant() {
    let (site, study) = (Site::new(), study(1));
    site.offer(&study);
    let model = site.fetch(1);
    site.note(&study, 1, model);

    let told = site.chosen_with(&study, None, false).unwrap_err();
    let expected = format!("error: the class embeddings of study {} cannot be read", study.digest().short());
    assert!(told.starts_with(&expected) && told.contains("name it with --embeddings"), "{told}");
    site.state.artifacts().store(&Site::table()).unwrap();
    assert_eq!(site.chosen_with(&study, None, false), Ok(model));

    let one_hot = ClassEmbeddings::one_hot(32, 1.0).unwrap();
    let one_hot = NamedTensors::from([(EMBEDDING_NAME.to_owned(), one_hot.table().clone())]);
    model::write(&site.embeddings(), &one_hot).unwrap();
    let told = site.chosen(&study).unwrap_err();
    let expected = study.study().embeddings.artifact.short();
    assert!(told.contains("has other class embeddings") && told.contains(&expected), "{told}");
    assert_eq!(site.chosen_with(&study, Some(site.embeddings()), true), Ok(model));
}

#[test]
fn of_a_study_that_is_over_the_last_model_is_named_and_who_lacks_it_is_told_how_to_have_it() {
    let hash = |name: &str| ArtifactHash(Digest::of(name.as_bytes()));
    let newest =
        |round| NewestModel { round: RoundId(round), model: hash("model"), embeddings: hash("table") };
    let plain = |round| format!("using the model of round {round} of 3, {}", hash("model"));
    assert_eq!(words(newest(2), 3, None), plain(2));
    assert_eq!(words(newest(2), 3, Some(true)), format!("{}, the last of the study", plain(2)), "aborted");
    let told = words(newest(2), 3, Some(false));
    assert!(told.starts_with(&plain(2)) && told.contains("`coordinator study export`"), "{told}");
}
