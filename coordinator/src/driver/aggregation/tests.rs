//! Rounds over files: the arithmetic itself is tested in `common`.

use common::aggregate::{Clipping, Rule};
use common::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use common::bfloat16;
use common::ids::{AttemptId, Digest};
use common::update::CheckedChunk;

use super::*;
use crate::store::causes;

/// Three chunks: two of the larger tensor.
fn layout() -> TensorLayout {
    let spec = |name: &str, len| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![len] };
    TensorLayout::new(vec![spec("a", 3), spec("b", 300_000)]).unwrap()
}

fn bytes_of(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(300_003)
}

fn chunks<'a>(layout: &TensorLayout, data: &'a [u8]) -> Vec<&'a [u8]> {
    layout.spans().iter().map(|span| &data[span.offset as usize..][..span.len as usize]).collect()
}

/// A study of one store, all of whose tensors hold one number.
struct Study {
    dir: tempfile::TempDir,
    store: Store,
    digest: StudyDigest,
    method: Method,
}

impl Study {
    async fn new(method: Method) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        Self { dir, store, digest: StudyDigest(Digest::of(b"study")), method }
    }

    fn put_model(&self, value: f32) -> ModelHash {
        let mut writer = self.store.artifacts().write(layout()).unwrap();
        chunks(&layout(), &bytes_of(value)).iter().for_each(|chunk| writer.push_chunk(chunk).unwrap());
        writer.finish().unwrap()
    }

    /// An update as the network leaves it.
    fn put_update(&self, round: u32, base: ModelHash, site: &str, value: f32) -> Term {
        let (round, attempt, site) = (RoundId(round), AttemptId::from_bytes([1; 16]), site.parse().unwrap());
        let layout = layout().in_dtype(self.method.update_dtype);
        let data = match self.method.update_dtype {
            Dtype::F32 => bytes_of(value),
            Dtype::BF16 => bfloat16::round(value).repeat(300_003),
        };
        let manifest = ArtifactManifest::of(layout.clone(), &data);
        let expectation = UpdateExpectation {
            site,
            study: self.digest,
            round,
            base,
            layout: layout.clone(),
            max_norm: None,
        };
        let (study, steps) = (self.digest, 1);
        let offer = UpdateOffer { study, round, base, attempt, steps, manifest: manifest.clone() };
        let site = expectation.site.clone();
        let mut verifier = UpdateVerifier::new(expectation, offer).unwrap();
        let spooled = self.store.spool().receive(&study, round, &site, manifest).unwrap();
        for (index, chunk) in (0u32..).zip(chunks(&layout, &data)) {
            let checked = CheckedChunk::check(spooled.manifest(), index, chunk).unwrap();
            verifier.count(&checked).unwrap();
            spooled.write_checked(&checked).unwrap();
        }
        spooled.note_verification(&verifier.finish().unwrap().verification()).unwrap();
        let update = spooled.keep().unwrap();
        Term { site, round, base, attempt, update, share: 0.5 }
    }

    fn aggregate(&self, round: u32, base: ModelHash, terms: &[Term]) -> Result<Done, JobError> {
        aggregate(&self.store, &self.job(round, base, terms))
    }

    fn job(&self, round: u32, base: ModelHash, terms: &[Term]) -> Job {
        Job {
            study: self.digest,
            round: RoundId(round),
            base,
            terms: terms.to_vec(),
            method: self.method,
            steps: 1,
            class_rows: None,
            stop: CancellationToken::new(),
        }
    }

    /// The number that all tensors of a model hold.
    fn value(&self, model: ModelHash) -> f32 {
        let file = self.store.artifacts().read(&model).unwrap().unwrap();
        let data: Vec<u8> = (0..3).flat_map(|index| file.read_chunk(index).unwrap()).collect();
        let numbers: Vec<f32> = data.as_chunks::<4>().0.iter().map(|&le| f32::from_le_bytes(le)).collect();
        assert_eq!(numbers.len(), 300_003);
        assert!(numbers.iter().all(|number| *number == numbers[0]));
        numbers[0]
    }

    /// How many files or folders lie in a folder of the store.
    fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.dir.path().join(folder)).unwrap().count()
    }

    fn update_file(&self, round: u32, term: &Term, name: &str) -> std::path::PathBuf {
        let round_folder = self.dir.path().join("spool").join(format!("{}-{round}", self.digest));
        round_folder.join(format!("{}.{}", term.site, term.update)).join(name)
    }
}

fn momentum() -> Method {
    Method { rule: Rule::ServerMomentum { momentum: 0.5 }, ..Method::fedavg(1.0) }
}

/// The mean of 1 and 3 is 2. By hand, β = 1/2: u is 2, then 3; w is 1, then 3, then 6.
#[tokio::test]
async fn moments_go_from_round_to_round_and_a_round_made_again_has_the_same_bits() {
    let study = Study::new(momentum()).await;
    let base = study.put_model(1.0);
    let terms = [study.put_update(1, base, "a", 1.0), study.put_update(1, base, "b", 3.0)];
    let first = study.aggregate(1, base, &terms).unwrap().model;
    assert_eq!(study.value(first), 3.0);

    let terms = [study.put_update(2, first, "b", 3.0), study.put_update(2, first, "a", 1.0)];
    let second = study.aggregate(2, first, &terms).unwrap().model;
    assert_eq!(study.value(second), 6.0);
    // A crash before the journal knew of it: everything is there already.
    assert_eq!(study.aggregate(2, first, &terms).unwrap().model, second);
    // One between its two files: the model is there, its moments are not.
    let moments = study.store.server_states().folder(&study.digest, RoundId(2), &second);
    std::fs::remove_dir_all(&moments).unwrap();
    assert_eq!(study.aggregate(2, first, &terms).unwrap().model, second);
    assert!(moments.is_dir(), "made again");
}

#[tokio::test]
async fn a_round_without_the_state_before_it_fails_and_does_not_start_from_zero() {
    let study = Study::new(momentum()).await;
    let base = study.put_model(1.0);
    let terms = [study.put_update(2, base, "a", 1.0)];
    let error = study.aggregate(2, base, &terms).unwrap_err();
    assert_eq!(error.fault(), Fault::Storage);
    let words = causes(&error);
    assert!(words.contains("server state in the store: that of round 1"), "{words}");
}

#[tokio::test]
async fn an_update_that_a_disk_has_changed_ends_it_and_nothing_is_left() {
    let study = Study::new(momentum()).await;
    let base = study.put_model(1.0);
    let terms = [study.put_update(1, base, "a", 1.0), study.put_update(1, base, "b", 3.0)];
    let path = study.update_file(1, &terms[1], "data");
    let mut data = std::fs::read(&path).unwrap();
    *data.last_mut().unwrap() ^= 1;
    std::fs::write(&path, data).unwrap();
    let error = study.aggregate(1, base, &terms).unwrap_err();
    assert_eq!(error.fault(), Fault::Storage);
    let words = causes(&error);
    assert!(words.contains("site b: chunk 2"), "{words}");
    assert_eq!(study.count("artifacts"), 1, "the base alone");
    assert_eq!(study.count(&format!("server-state/{}", study.digest)), 0);
}

#[tokio::test]
async fn one_that_is_cancelled_ends_and_leaves_nothing() {
    let study = Study::new(momentum()).await;
    let base = study.put_model(1.0);
    let terms = [study.put_update(1, base, "a", 1.0)];
    let job = study.job(1, base, &terms);
    job.stop.cancel();
    assert!(matches!(aggregate(&study.store, &job), Err(JobError::Cancelled)));
    assert_eq!(study.count("artifacts"), 1, "the base alone");
    assert_eq!(study.count(&format!("server-state/{}", study.digest)), 0);
}

#[tokio::test]
async fn an_update_whose_verification_is_lost_is_read_again_and_counts_the_same() {
    let study = Study::new(Method { clipping: Clipping::MedianFactor(2.0), ..Method::fedavg(1.0) }).await;
    let base = study.put_model(0.0);
    let value = |site, value| study.put_update(1, base, site, value);
    let terms = [value("a", 1.0), value("b", 1.0), value("c", 100.0)];
    let known = study.aggregate(1, base, &terms).unwrap();
    assert_eq!(known.clipped.len(), 1);
    assert_eq!(known.clipped[0].site.as_str(), "c");
    // Each has a share of 1/2 here; by hand, (1 + 1 + 2) / 3.
    assert!((study.value(known.model) - 4.0 / 3.0).abs() < 1e-6);

    std::fs::remove_file(study.update_file(1, &terms[0], "verification")).unwrap();
    std::fs::write(study.update_file(1, &terms[2], "verification"), b"torn").unwrap();
    let again = study.aggregate(1, base, &terms).unwrap();
    assert_eq!((again.model, again.clipped), (known.model, known.clipped));
}

#[tokio::test]
async fn updates_in_bfloat16_are_read_beside_a_model_in_f32() {
    let study = Study::new(Method { update_dtype: Dtype::BF16, ..momentum() }).await;
    let base = study.put_model(1.0);
    let terms = [study.put_update(1, base, "a", 1.0), study.put_update(1, base, "b", 3.0)];
    assert_eq!(std::fs::metadata(study.update_file(1, &terms[0], "data")).unwrap().len(), 2 * 300_003);
    let first = study.aggregate(1, base, &terms).unwrap().model;
    assert_eq!(study.value(first), 3.0);
    // By a study in f32 they are not what it asked for.
    let other = Study { method: momentum(), ..study };
    let error = other.aggregate(1, base, &terms).unwrap_err();
    let words = causes(&error);
    assert!(words.contains("in bf16, the study's updates are in f32"), "{words}");
}
