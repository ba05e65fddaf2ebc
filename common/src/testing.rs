//! For tests alone (feature `testing`): reference fixtures and small documents. The one place of this crate that reads files.

use std::path::PathBuf;

use crate::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use crate::ids::{ArtifactHash, Digest, StudyDigest};
use crate::label_map::Provenance;
use crate::study::{EMBEDDING_TENSOR, StudyDocument, StudyDraft};
use crate::taxonomy::Taxonomy;

/// The operator's example study, `configs/examples/study.toml`.
pub const EXAMPLE_STUDY: &str = include_str!("../../configs/examples/study.toml");

/// The folder of reference fixtures beside the project, or none (said loudly) where it is absent.
///
/// # Panics
/// When it is absent and `CONSILIUM_REQUIRE_SHARED=1`.
#[expect(clippy::print_stderr, reason = "a skipped check must not look like a passed one")]
#[expect(
    clippy::disallowed_methods,
    reason = "the test script says by environment whether fixtures are required"
)]
pub fn shared_dir() -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    if beside.is_dir() {
        return Some(beside);
    }
    let required = std::env::var("CONSILIUM_REQUIRE_SHARED").is_ok_and(|value| value == "1");
    assert!(!required, "reference fixtures are required but {} is absent", beside.display());
    eprintln!(
        "SKIPPED: no reference fixtures at {}: nothing is compared with them (CONSILIUM_REQUIRE_SHARED=1 makes that a failure)",
        beside.display()
    );
    None
}

/// Bytes of a reference fixture, by its path inside the folder; none where the folder is absent.
///
/// # Panics
/// When the folder is there and the file is not.
#[expect(clippy::disallowed_methods, reason = "fixtures are files")]
pub fn shared_file(path: &str) -> Option<Vec<u8>> {
    let file = shared_dir()?.join(path);
    Some(std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
}

/// A manifest of zeros with these tensors, which must be in order of name.
pub fn artifact_of_zeros(tensors: &[(&str, &[u32])]) -> ArtifactManifest {
    let spec = |(name, shape): &(&str, &[u32])| TensorSpec {
        name: (*name).to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    let layout =
        TensorLayout::new(tensors.iter().map(spec).collect()).expect("the test's tensors are in order");
    let data = vec![0; usize::try_from(layout.bytes()).expect("a test's artifact is small")];
    ArtifactManifest::of(layout, &data)
}

/// The example study over the standard taxonomy, with a toy model and a one-hot-shaped table.
pub fn example_study() -> StudyDocument {
    example_study_with(|_| {})
}

/// [`example_study`] after a change of the draft.
pub fn example_study_with(change: impl FnOnce(&mut StudyDraft)) -> StudyDocument {
    let taxonomy = Taxonomy::standard();
    let mut draft = StudyDraft::parse("study.toml", EXAMPLE_STUDY, &taxonomy).expect("the example is valid");
    change(&mut draft);
    let model = artifact_of_zeros(&[
        ("backbone.down_tr64.ops.0.conv1.weight", &[draft.model.width, 1, 3, 3, 3]),
        ("controller.bias", &[153]),
        ("text_to_vision.weight", &[256, 32]),
    ]);
    let embeddings = artifact_of_zeros(&[(EMBEDDING_TENSOR, &[32, 32])]);
    draft.into_document(taxonomy, &model, &embeddings).expect("the changed example is valid")
}

/// Of pseudo-labels that no model made.
pub fn provenance() -> Provenance {
    Provenance {
        study: StudyDigest(Digest::of(b"study")),
        model: ArtifactHash(Digest::of(b"model")),
        threshold: 0.7,
        min_volume_ml: 0.5,
        postprocessed: true,
        made_at: "2027-01-02T03:04:05Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::shared_dir;

    /// One test for all those that lack them: nextest shows what it prints, of tests that are named so alone.
    #[test]
    fn whether_the_reference_fixtures_are_there_is_said() {
        let shown = include_str!("../../.config/nextest.toml");
        assert!(shown.contains("test(/whether_.*_is_said$/)"), "nextest would keep this to itself: {shown}");
        if let Some(folder) = shared_dir() {
            println!("compared with the reference fixtures at {}", folder.display());
        }
    }
}
