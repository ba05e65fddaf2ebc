//! An evaluator's scans over several tries and models, so that one bad scan does not cost hours time and again.
//!
//! All scans are read before the first is scored: what is wrong with any is told at once, in minutes. What was scored before
//! a try failed is not scored again. Nothing of this is on the disk: a restarted agent begins anew.
//!
//! A report is of all scans, or there is none. It could not say which ones are missing, and scans that cannot be scored are
//! seldom like the others.

use std::collections::BTreeMap;

use common::ids::StudyDigest;
use common::report::ReportSubject;

use crate::data::DataError;
use crate::data::cache::CaseKey;
use crate::data::dataset::Case;
use crate::data::preprocess::Preprocessing;
use crate::infer::evaluate::{Evaluation, ScanScores};
use crate::infer::{InferError, Segmenter};
use crate::train::trainer::Cancel;

/// What is known of the scans from earlier tries.
#[derive(Default)]
pub(super) struct Scoring {
    /// The study whose scans could all be read, as long as every evaluation since has succeeded.
    readable: Option<StudyDigest>,
    /// What was evaluated last, and the scores so far.
    last: Option<(ReportSubject, Scores)>,
}

/// Scores of scans by name, each with what it was made of: a label file that was mended is scored anew.
type Scores = BTreeMap<String, (CaseKey, ScanScores)>;

/// How scans are scored.
pub(super) struct Scorer<'a> {
    pub evaluation: &'a Evaluation<'a>,
    pub preprocessing: &'a Preprocessing,
    pub segmenter: &'a dyn Segmenter,
    pub cancel: &'a Cancel,
}

impl Scoring {
    /// The scores of all cases, in their order.
    ///
    /// # Errors
    /// All cases that cannot be read, before one is scored; else the first that cannot be scored.
    pub(super) fn score(
        &mut self,
        subject: &ReportSubject,
        cases: &[&Case],
        scorer: &Scorer<'_>,
    ) -> Result<Vec<ScanScores>, InferError> {
        let mut scores = match self.last.take() {
            Some((last, scores)) if last == *subject => scores,
            _ => Scores::new(),
        };
        let was_read = self.readable == Some(subject.study);
        let read = if was_read { Ok(()) } else { scorer.check(cases) };
        let scored = read.and_then(|()| scorer.score(subject, cases, &mut scores));
        self.readable = scored.is_ok().then_some(subject.study);
        self.last = Some((subject.clone(), scores));
        scored
    }
}

impl Scorer<'_> {
    fn check(&self, cases: &[&Case]) -> Result<(), InferError> {
        tracing::info!(scans = cases.len(), "reading all scans before the first is scored");
        let mut faults = Vec::new();
        for case in cases {
            if self.cancel.is_cancelled() {
                return Err(InferError::Cancelled);
            }
            faults.extend(self.evaluation.check_case(case).err().map(|fault| fault.to_string()));
        }
        match faults.is_empty() {
            true => Ok(()),
            false => Err(DataError::Unreadable { of: cases.len(), faults }.into()),
        }
    }

    fn score(
        &self,
        subject: &ReportSubject,
        cases: &[&Case],
        scores: &mut Scores,
    ) -> Result<Vec<ScanScores>, InferError> {
        let score = |case: &&Case| {
            let key = CaseKey::of(case, self.preprocessing, subject.taxonomy)?;
            if let Some((_, known)) = scores.get(&case.name).filter(|(of, _)| *of == key) {
                return Ok(known.clone());
            }
            let scored = self.evaluation.score_case(case, self.segmenter)?;
            tracing::info!(case = case.name, "scored");
            scores.insert(case.name.clone(), (key, scored.clone()));
            Ok(scored)
        };
        cases.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::path::{Path, PathBuf};

    use common::ids::{ArtifactHash, Digest, RoundId};
    use common::taxonomy::Taxonomy;
    use tempfile::TempDir;

    use super::*;
    use crate::data::dataset::{DatasetConfig, read_datasets};
    use crate::data::nifti::{Image, Limits, read_labels, write_labels};
    use crate::infer::masks::ClassMasks;
    use crate::phantom::{HOSPITALS, write_hospital};

    /// Finds nothing, and counts the scans; fails at the one of this number.
    struct Counts {
        scans: Cell<u32>,
        fails_at: Option<u32>,
    }

    impl Counts {
        fn that_fails_at(fails_at: Option<u32>) -> Self {
            Self { scans: Cell::new(0), fails_at }
        }
    }

    impl Segmenter for Counts {
        fn segment(&self, image: Image) -> Result<ClassMasks, InferError> {
            self.scans.set(self.scans.get() + 1);
            match self.fails_at == Some(self.scans.get()) {
                true => Err(InferError::NotFinite { count: 1 }),
                false => Ok(ClassMasks::empty(image.volume.grid().clone(), 32)),
            }
        }
    }

    /// Three small phantoms.
    struct Site {
        folder: TempDir,
        datasets: Vec<DatasetConfig>,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let datasets = write_hospital(folder.path(), &HOSPITALS[0], 1, 3, Some([12.0; 3])).unwrap();
            Self { folder, datasets }
        }

        fn file(&self, case: u32, name: &str) -> PathBuf {
            self.folder.path().join(&self.datasets[0].folder).join(format!("case-000{case}")).join(name)
        }

        /// Tries to score the model of a round.
        fn score(&self, scoring: &mut Scoring, round: u32, network: &Counts) -> Result<usize, InferError> {
            let taxonomy = Taxonomy::standard();
            let cases = read_datasets(&self.datasets, self.folder.path(), &taxonomy).unwrap();
            let subject = ReportSubject {
                site: "held-out".parse().unwrap(),
                model: ArtifactHash(Digest::of(&round.to_le_bytes())),
                round: RoundId(round),
                study: StudyDigest(Digest::of(b"study")),
                taxonomy: taxonomy.digest(),
            };
            let evaluation = Evaluation {
                window_hu: (-175.0, 250.0),
                taxonomy: &taxonomy,
                tau_mm: &|_| 2.0,
                overlays: None,
            };
            let scorer = Scorer {
                evaluation: &evaluation,
                preprocessing: &Preprocessing::default(),
                segmenter: network,
                cancel: &Cancel::default(),
            };
            let scores = scoring.score(&subject, &cases.iter().collect::<Vec<_>>(), &scorer)?;
            assert!(scores.iter().all(|scores| !scores.is_empty()));
            Ok(scores.len())
        }
    }

    fn damage(file: &Path) {
        fs::write(file, "no scan").unwrap();
    }

    #[test]
    fn all_scans_that_cannot_be_read_are_named_before_one_is_scored() {
        let (site, mut scoring, network) = (Site::new(), Scoring::default(), Counts::that_fails_at(None));
        let (ct, labels) = (site.file(1, "ct.nii.gz"), site.file(2, "labels.nii.gz"));
        let whole = [&ct, &labels].map(|file| fs::read(file).unwrap());
        damage(&ct);
        damage(&labels);
        for _ in 0..3 {
            let told = site.score(&mut scoring, 1, &network).unwrap_err().to_string();
            assert!(told.starts_with("2 of 3 scans cannot be read"), "{told}");
            assert!(
                told.contains("case-0001/ct.nii.gz") && told.contains("case-0002/labels.nii.gz"),
                "{told}"
            );
        }
        assert_eq!(network.scans.get(), 0);
        fs::write(&ct, &whole[0]).unwrap();
        fs::write(&labels, &whole[1]).unwrap();
        assert_eq!(site.score(&mut scoring, 1, &network).unwrap(), 3);
        assert_eq!(network.scans.get(), 3);
    }

    #[test]
    fn a_try_after_a_failure_scores_what_was_not_scored_or_has_changed() {
        let (site, mut scoring) = (Site::new(), Scoring::default());
        let network = Counts::that_fails_at(Some(3));
        assert!(matches!(site.score(&mut scoring, 1, &network), Err(InferError::NotFinite { .. })));
        assert_eq!(site.score(&mut scoring, 1, &network).unwrap(), 3);
        assert_eq!(network.scans.get(), 4);
        // Where the report is lost, it is made of what is known.
        assert_eq!(site.score(&mut scoring, 1, &network).unwrap(), 3);
        assert_eq!(network.scans.get(), 4);
        let labels = site.file(1, "labels.nii.gz");
        let read = read_labels(&labels, &Limits::default()).unwrap();
        let mut mended = read.map(|value| u8::try_from(*value).unwrap());
        mended.voxels_mut()[0] = 1;
        write_labels(&labels, &mended).unwrap();
        assert_eq!(site.score(&mut scoring, 1, &network).unwrap(), 3);
        assert_eq!(network.scans.get(), 5);
        // Another model has scores of its own.
        assert_eq!(site.score(&mut scoring, 2, &network).unwrap(), 3);
        assert_eq!(network.scans.get(), 8);
    }

    #[test]
    fn scans_are_read_once_for_all_models_until_one_fails() {
        let (site, mut scoring, network) = (Site::new(), Scoring::default(), Counts::that_fails_at(None));
        site.score(&mut scoring, 1, &network).unwrap();
        damage(&site.file(2, "labels.nii.gz"));
        // Found when it is its turn; then before any.
        for round in [2, 3, 4] {
            assert!(matches!(site.score(&mut scoring, round, &network), Err(InferError::Data(_))));
            assert_eq!(network.scans.get(), 5);
        }
    }
}
