//! Published artifacts that the disk has changed: the operator is told once, and `coordinator status` says it until one is served
//! whole again.
//!
//! Nothing mends them here. The updates that a model was made of are removed when it is durable, and no site sends one back; an
//! initial model and embeddings come back by their file, any other from a backup, as the doctor says of each.

use common::ids::ArtifactHash;

use super::Driver;
use super::study_run::StudyRun;
use crate::progress::Line;
use crate::store::CORRUPT;

impl Driver {
    /// Notes that an artifact cannot be served.
    pub(super) fn note_damage(&mut self, artifact: ArtifactHash, words: &str) {
        let what = self.use_of(&artifact);
        let detail = format!(
            "{what} is corrupt, and sites that ask for it are refused: {words}; `coordinator doctor` says how it comes back"
        );
        self.progress.say(&Line::Fault { code: CORRUPT.to_owned(), detail: detail.clone() });
        self.damaged.insert(artifact, detail);
    }

    /// Notes that it was served whole.
    pub(super) fn note_whole(&mut self, artifact: &ArtifactHash) {
        if self.damaged.remove(artifact).is_some() {
            self.progress.say(&Line::Recovered { code: CORRUPT.to_owned() });
        }
    }

    /// What fails, for the status: the store as a whole, or what is damaged in it.
    pub(super) fn fault(&self) -> Option<(&'static str, Option<String>)> {
        if let Some(trouble) = &self.trouble {
            return Some((trouble.code, self.trouble_in_words()));
        }
        let words: Vec<&str> = self.damaged.values().map(String::as_str).collect();
        (!words.is_empty()).then(|| (CORRUPT, Some(words.join("; "))))
    }

    fn use_of(&self, artifact: &ArtifactHash) -> String {
        let words = |run: &StudyRun| {
            let study = run.document.study();
            let what = match artifact {
                known if *known == study.initial_model => "the initial model",
                known if *known == study.embeddings.artifact => "the class embeddings",
                known if *known == run.rounds.status().model => "the current model",
                _ => return None,
            };
            Some(format!("{what} of `{}`", study.name))
        };
        let of_no_study = || format!("artifact {}", artifact.short());
        self.studies.values().find_map(words).unwrap_or_else(of_no_study)
    }
}

#[cfg(test)]
mod tests {
    use crate::driver::lost::tests::driver;
    use crate::fixture::Fixture;

    #[tokio::test]
    async fn a_corrupt_model_is_in_the_status_by_its_use_until_it_is_whole() {
        let fixture = Fixture::new().await;
        let mut driver = driver(&fixture, fixture.store().await).await;
        assert_eq!(driver.fault(), None);
        let model = fixture.study.study().initial_model;
        driver.note_damage(model, "chunk 3 of data has changed");
        let (code, words) = driver.fault().unwrap();
        let words = words.unwrap();
        assert_eq!(code, "store-corrupt");
        assert!(words.starts_with("the initial model of `"), "{words}");
        assert!(words.contains("chunk 3") && words.contains("coordinator doctor"), "{words}");
        driver.note_whole(&model);
        assert_eq!(driver.fault(), None);
    }
}
