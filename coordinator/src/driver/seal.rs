//! What a sealed site may fetch: models that it is asked about, and what scoring them needs.
//!
//! It hears the name of every model, as all sites do when a round closes; without this, it could fetch one that nobody promoted.

use common::ids::{ArtifactHash, SiteId};
use common::wire::{Refusal, RefusalCode};

use super::Driver;
use super::study_run::StudyRun;

impl Driver {
    /// Whether `site`, an evaluator, may fetch an artifact: one that no study seals has no secrets to keep.
    ///
    /// # Errors
    /// [`RefusalCode::Sealed`].
    pub(super) fn may_fetch(&self, site: &SiteId, artifact: &ArtifactHash) -> Result<(), Refusal> {
        let seals = |run: &StudyRun| run.document.study().evaluation.test.contains(site);
        let needs = |run: &StudyRun| {
            let (pending, reported) = (run.evaluation.pending(artifact), run.evaluation.reported(artifact));
            run.document.study().embeddings.artifact == *artifact
                || pending.contains(site)
                || reported.contains(site)
        };
        let is_sealed = self.studies.values().any(seals);
        // A study that cannot be read may seal anybody.
        let may_be_sealed = is_sealed || !self.unreadable.is_empty();
        if !may_be_sealed || self.studies.values().any(needs) {
            return Ok(());
        }
        let words = match is_sealed {
            true => "a test site fetches the models that it is asked to score, and no others",
            false => {
                "a study that cannot be read now may seal this site: until it can, it fetches what it is asked to score"
            }
        };
        Err(Refusal::new(RefusalCode::Sealed, words))
    }
}

#[cfg(test)]
mod tests {
    use common::evaluation::{EvaluatorKind, Event};
    use common::ids::{Digest, RoundId, SiteId, StudyDigest};
    use common::testing::example_study_with;

    use crate::driver::lost::tests::driver;
    use crate::driver::study_run::Happening;
    use crate::fixture::{Fixture, site};
    use crate::operator::UnreadableStudy;

    #[tokio::test]
    async fn a_sealed_site_fetches_what_it_is_asked_about_and_the_embeddings() {
        let fixture = Fixture::new().await;
        let mut driver = driver(&fixture, fixture.store().await).await;
        let (digest, judge) = (fixture.digest(), site());
        let other: SiteId = "south".parse().unwrap();
        let (round, model) = (RoundId(1), fixture.study.study().initial_model);
        let embeddings = fixture.study.study().embeddings.artifact;
        for event in [
            Event::EvaluatorReady { site: judge.clone(), kind: EvaluatorKind::Test },
            Event::Requested { round, model },
        ] {
            driver.take(digest, Happening::Evaluation(event)).await;
        }
        assert!(driver.may_fetch(&judge, &model).is_ok(), "no study seals it");
        let unreadable = UnreadableStudy { name: "old".into(), digest: String::new(), why: String::new() };
        driver.unreadable.insert(StudyDigest(Digest::of(b"old")), unreadable);
        let refused = driver.may_fetch(&judge, &model).unwrap_err();
        assert!(refused.detail.as_str().starts_with("a study that cannot be read now may seal"), "{refused}");
        driver.unreadable.clear();

        let sealed = example_study_with(|draft| draft.evaluation.test = vec![judge.clone()]);
        let open = std::mem::replace(&mut driver.studies.get_mut(&digest).unwrap().document, sealed);
        let refused = driver.may_fetch(&judge, &model).unwrap_err();
        assert_eq!(refused.code, common::wire::RefusalCode::Sealed);
        assert!(driver.may_fetch(&judge, &embeddings).is_ok());
        assert!(driver.may_fetch(&other, &model).is_ok(), "another evaluator");

        let sealed = std::mem::replace(&mut driver.studies.get_mut(&digest).unwrap().document, open);
        driver.take(digest, Happening::Evaluation(Event::Promoted { round, model })).await;
        driver.studies.get_mut(&digest).unwrap().document = sealed;
        assert!(driver.may_fetch(&judge, &model).is_ok(), "it is asked about it");
    }
}
