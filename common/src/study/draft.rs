//! The study as its operator writes it: everything but the taxonomy and the digests of the artifacts.

use serde::{Deserialize, Serialize};

use super::sections::{
    Aggregation, EmbeddingKind, Embeddings, Evaluation, ModelConfig, Participants, Preprocessing, Quorum,
    Sampling, Training,
};
use super::{Study, StudyDocument, check};
use crate::artifact::{ArtifactManifest, TensorSpec};
use crate::config::{Diagnostics, Document, Problems};
use crate::taxonomy::Taxonomy;

/// Name of the one tensor of an embeddings artifact.
pub const EMBEDDING_TENSOR: &str = "organ_embedding";
/// Name of the table of a model that trains its own, in the place of a layer that reads embeddings.
pub const CLASS_TABLE_TENSOR: &str = "organ_embedding.weight";
/// The model's tensor that the embeddings are multiplied with; its second axis is their width.
const TEXT_TENSOR: &str = "text_to_vision.weight";

/// A study file. Valid once it comes out of [`StudyDraft::parse`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyDraft {
    /// Name, as shown.
    pub name: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// Training rounds.
    pub rounds: u32,
    /// The network.
    pub model: ModelConfig,
    /// The class embeddings.
    pub embeddings: EmbeddingsDraft,
    /// From scan to network input.
    pub preprocessing: Preprocessing,
    /// From case to patch.
    pub sampling: Sampling,
    /// Local work of one round.
    pub training: Training,
    /// From updates to the next global model.
    pub aggregation: Aggregation,
    /// When a round may close.
    pub quorum: Quorum,
    /// Who takes part.
    #[serde(default, skip_serializing_if = "Participants::is_everyone")]
    pub participants: Participants,
    /// How models are scored.
    pub evaluation: Evaluation,
}

/// What the operator says about the embeddings; the rest is read from the artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsDraft {
    /// How they were made.
    pub kind: EmbeddingKind,
    /// Whether they are trained too.
    #[serde(default)]
    pub trainable: bool,
}

impl StudyDraft {
    /// Parses the text of a study file; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All mistakes, each with its line.
    pub fn parse(file: &str, text: &str, taxonomy: &Taxonomy) -> Result<Self, Diagnostics> {
        let document = Document::parse(file, text)?;
        let draft: Self = document.read()?;
        document.locate(check::draft(&draft, taxonomy))?;
        Ok(draft)
    }

    /// Joins the draft with what it does not say.
    ///
    /// # Errors
    /// Artifacts that do not fit the study or each other.
    pub fn into_document(
        self,
        taxonomy: Taxonomy,
        initial_model: &ArtifactManifest,
        embeddings: &ArtifactManifest,
    ) -> Result<StudyDocument, Diagnostics> {
        let mut problems = Problems::new();
        let (rows, width) = embedding_shape(embeddings, &mut problems);
        check_model(initial_model, &self.model, width, &mut problems);
        check_class_table(initial_model, self.embeddings.trainable, [rows, width], &mut problems);
        problems.into_result("artifacts")?;
        StudyDocument::of(Study {
            format: check::FORMAT.to_owned(),
            name: self.name,
            seed: self.seed,
            rounds: self.rounds,
            model: self.model,
            initial_model: initial_model.hash(),
            embeddings: Embeddings {
                artifact: embeddings.hash(),
                kind: self.embeddings.kind,
                rows,
                width,
                trainable: self.embeddings.trainable,
            },
            preprocessing: self.preprocessing,
            sampling: self.sampling,
            training: self.training,
            aggregation: self.aggregation.stated(),
            quorum: self.quorum,
            participants: self.participants,
            evaluation: self.evaluation,
            taxonomy,
        })
    }
}

impl From<&Study> for StudyDraft {
    fn from(study: &Study) -> Self {
        let study = study.clone();
        Self {
            name: study.name,
            seed: study.seed,
            rounds: study.rounds,
            model: study.model,
            embeddings: EmbeddingsDraft {
                kind: study.embeddings.kind,
                trainable: study.embeddings.trainable,
            },
            preprocessing: study.preprocessing,
            sampling: study.sampling,
            training: study.training,
            aggregation: study.aggregation,
            quorum: study.quorum,
            participants: study.participants,
            evaluation: study.evaluation,
        }
    }
}

/// Rows and width of the embedding table.
fn embedding_shape(artifact: &ArtifactManifest, problems: &mut Problems) -> (u32, u32) {
    match artifact.layout().tensors() {
        [TensorSpec { name, shape, .. }] if name == EMBEDDING_TENSOR && shape.len() == 2 => {
            (shape[0], shape[1])
        }
        _ => {
            let allowed = format!("one tensor `{EMBEDDING_TENSOR}` of shape [classes, width]");
            problems.add_allowed("embeddings", "not an embedding table", allowed);
            (0, 0)
        }
    }
}

/// A model of another shape would fail at every site: say so before anybody approves.
fn check_model(model: &ArtifactManifest, config: &ModelConfig, width: u32, problems: &mut Problems) {
    let shape_of =
        |name: &str| model.layout().tensors().iter().find(|t| t.name == name).map(|t| &t.shape[..]);
    let first_tensor = config.backbone.first_tensor();
    let Some(&[first, ..]) = shape_of(first_tensor) else {
        let allowed = format!("a network with `{first_tensor}`: `site-agent model init` makes one");
        return problems.add_allowed("model", format!("not a {}", config.backbone.words()), allowed);
    };
    if first != config.width {
        let allowed = format!("{}, as `model.width` of the study", config.width);
        problems.add_allowed("model", format!("width {first}"), allowed);
    }
    // A model with a table of its own reads no text.
    let Some(&[_, expected]) = shape_of(TEXT_TENSOR) else { return };
    if expected != width && width != 0 {
        problems.add_allowed(
            "embeddings",
            format!("width {width}"),
            format!("{expected}, as the initial model"),
        );
    }
}

/// Embeddings are trained in a table of the model's own, of their shape, or not at all.
fn check_class_table(model: &ArtifactManifest, trainable: bool, shape: [u32; 2], problems: &mut Problems) {
    let table = model.layout().tensors().iter().find(|tensor| tensor.name == CLASS_TABLE_TENSOR);
    match table {
        Some(table) if trainable && table.shape != shape => problems.add_allowed(
            "model",
            format!("`{CLASS_TABLE_TENSOR}` of shape {:?}", table.shape),
            format!("{shape:?}, as the embeddings"),
        ),
        Some(_) if !trainable => problems.add_allowed(
            "embeddings.trainable",
            "false, and the model has a learned class table",
            "true, or a model that reads embeddings",
        ),
        None if trainable => problems.add_allowed(
            "embeddings.trainable",
            "true, and the model reads embeddings",
            "false, or a model with a learned class table: `site-agent model init --learned` makes one",
        ),
        _ => {}
    }
}
