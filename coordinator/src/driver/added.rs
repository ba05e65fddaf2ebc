//! What the operator is told of a study that was added, beside its digest.

use common::aggregate::Method;
use common::study::Study;

use super::operate::Failure;
use crate::operator::FailureCode;

/// How a study that is over runs once more.
const ANEW: &str =
    "for another run change its `seed`, or its `name`: its digest is another then, which sites approve anew";

/// Of a study that was here before, in this phase: the same files are the same study, and it runs once.
///
/// # Errors
/// It was aborted. The files that were given are in their place all the same.
pub(super) fn again(name: &str, phase: &str) -> Result<Option<String>, Failure> {
    match phase {
        "aborted" => {
            let words = format!(
                "the study `{name}` is here already, with its files, and was aborted: it does not start again"
            );
            Err(Failure::new(words, ANEW).with(FailureCode::StudyAborted))
        }
        "finished" => Ok(Some(format!(
            "the study `{name}` is here already, with its files, and has finished: it does not start again; {ANEW}"
        ))),
        _ => Ok(None),
    }
}

/// Of a study whose smallest rounds take whatever a site sends: clipping, as it is by default, goes by what three of them are.
pub(super) fn without_bound(study: &Study) -> Option<String> {
    let (aggregation, sites) = (&study.aggregation, study.quorum.sites);
    let Method { rule, clipping, .. } = Method::of(aggregation);
    let is_bounded =
        aggregation.max_update_norm.is_some() || rule.sorts() || clipping.acts_on(sites as usize);
    (!is_bounded).then(|| {
        format!(
            "in a round of {sites}, the quorum, one update of a site whose training went astray can ruin the model: nothing scales it down, as \
             `clip_median_factor` does among three or more. `max_update_norm` in [aggregation] refuses longer ones, `clip_norm` scales them \
             down to a length"
        )
    })
}

#[cfg(test)]
mod tests {
    use common::testing::{EXAMPLE_STUDY, example_study_with};

    use super::super::lost::tests::driver;
    use super::*;
    use crate::export::export_safetensors;
    use crate::fixture::Fixture;
    use crate::operator::{Order, Reply, Request};

    #[tokio::test]
    async fn an_aborted_study_is_not_added_again_as_if_it_could_start() {
        let fixture = Fixture::new().await;
        let (store, folder) = (fixture.store().await, tempfile::tempdir().unwrap());
        let names = ["study.toml", "model.safetensors", "embeddings.safetensors"];
        let [file, model, embeddings] = names.map(|name| folder.path().join(name));
        std::fs::write(&file, EXAMPLE_STUDY).unwrap();
        let pinned = fixture.study.study();
        for (hash, path) in [(pinned.initial_model, &model), (pinned.embeddings.artifact, &embeddings)] {
            let artifact = store.artifacts().read(&hash).unwrap().unwrap();
            export_safetensors(&artifact, "of a test", path).unwrap();
        }
        let mut driver = driver(&fixture, store).await;
        let add = Request::AddStudy { file, model, embeddings, taxonomy: None };
        let added = driver.operate(add.clone()).await;
        let Reply::Added { study, remark } = &added else { panic!("{added:?}") };
        assert!(remark.as_ref().unwrap().contains("`max_update_norm`"), "of two sites: {remark:?}");
        assert_eq!(driver.operate(add.clone()).await, added, "twice is once");

        driver.operate(Request::Control { study: study.clone(), order: Order::Abort }).await;
        let refused = driver.operate(add).await;
        let Reply::Failed { words, hint, code } = &refused else { panic!("{refused:?}") };
        assert!(words.ends_with("with its files, and was aborted: it does not start again"), "{words}");
        assert_eq!((hint.as_deref(), *code), (Some(ANEW), Some(FailureCode::StudyAborted)));
    }

    #[test]
    fn a_study_that_nothing_guards_against_a_huge_update_is_said_to_be_so() {
        let told = |sites: u32, max_update_norm, clip_norm, clip_median_factor| {
            let study = example_study_with(|draft| {
                draft.quorum.sites = sites;
                draft.aggregation.max_update_norm = max_update_norm;
                draft.aggregation.clip_norm = clip_norm;
                draft.aggregation.clip_median_factor = clip_median_factor;
            });
            without_bound(study.study())
        };
        assert!(told(2, None, None, 3.0).unwrap().starts_with("in a round of 2, the quorum, "));
        assert!(told(3, None, None, 0.0).is_some(), "never clipped");
        assert_eq!(told(3, None, None, 3.0), None);
        assert_eq!(told(2, Some(100.0), None, 3.0), None);
        assert_eq!(told(2, None, Some(5.0), 3.0), None);
    }

    #[test]
    fn a_finished_study_is_said_to_be() {
        let note = |phase| again("abdomen", phase).ok().flatten();
        assert!(note("finished").unwrap().contains("has finished"));
        assert_eq!(note("collecting"), None);
    }
}
