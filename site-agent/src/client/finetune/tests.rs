use std::num::NonZeroU32;

use common::ids::{AttemptId, Digest, SiteId};
use common::round::RoundTask;
use common::study::{StudyDocument, StudyDraft};
use common::taxonomy::Taxonomy;
use common::testing::example_study;

use super::*;
use crate::client::config::SiteConfig;
use crate::client::lock::InUse;
use crate::client::site_work::SiteWork;
use crate::client::state::StateFolder;
use crate::client::training::PreparedScans;
use crate::client::work::Work;
use crate::data::copies::Fingerprints;
use crate::model::adapt::{Controller, adapt};
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, ModelConfig, UniversalModel,
    device,
};
use crate::phantom::{HOSPITALS, write_hospital};
use crate::train::fake_trainer::FakeTrainer;
use crate::train::tensors::to_artifact;

fn class(id: u8) -> ClassId {
    ClassId::new(id).unwrap()
}

// ---- rounds, by a trainer without a network -------------------------------------------------------------------------

fn fake_study() -> Study {
    let mut study = example_study().study().clone();
    (study.rounds, study.training.steps_per_round) = (4, 3);
    study
}

fn small_model() -> NamedTensors {
    let ramp = |shape: &[usize]| HostTensor::from_fn(shape.to_vec(), |i| i as f32);
    NamedTensors::from([("w".to_owned(), ramp(&[5])), (CLASS_TABLE_TENSOR.to_owned(), ramp(&[3, 2]))])
}

/// Keeps rounds alone.
const NEVER: CheckpointPolicy = CheckpointPolicy { every_steps: None, every: None };

fn digest() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

/// Goes on in `folder` until the end, or until step `stop` (counted over all rounds of this run) is done.
fn fake_run(folder: &Path, trainer: &mut FakeTrainer, stop: Option<u32>) -> Ended {
    kept_run(folder, trainer, NEVER, stop, Cancel::cancel).0
}

/// As [`fake_run`], with checkpoints and a way to stop; and rounds and steps that were done.
fn kept_run(
    folder: &Path,
    trainer: &mut FakeTrainer,
    checkpoints: CheckpointPolicy,
    stop: Option<u32>,
    how: fn(&Cancel),
) -> (Ended, Vec<(u32, u32)>) {
    let (study, annotated) = (fake_study(), BTreeSet::from([class(2)]));
    let rounds = RoundFolder::open(folder).unwrap();
    let (cancel, mut steps) = (Cancel::default(), Vec::new());
    let mut progress = |step: StepReport| {
        steps.push((step.round.0, step.step));
        if Some(steps.len()) == stop.map(|stop| stop as usize) {
            how(&cancel);
        }
    };
    let finetune =
        Finetune { study: &study, digest: digest(), annotated: &annotated, rounds: &rounds, checkpoints };
    let ended = finetune.run(small_model(), trainer, &mut progress, &cancel).unwrap();
    (ended, steps)
}

#[test]
fn a_run_that_was_stopped_goes_on_and_ends_with_the_same_bits_and_the_same_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let mut trainer = FakeTrainer::new(7);
    let Ended::Done(expected) = fake_run(&whole, &mut trainer, None) else { panic!("nobody stopped it") };
    assert_eq!(trainer.optimizer_state().steps, 12);

    let (mut first, mut second, mut third) = (FakeTrainer::new(7), FakeTrainer::new(7), FakeTrainer::new(7));
    // In the midst of round 2, in the first step of round 3, and to the end.
    assert_eq!(fake_run(&parts, &mut first, Some(5)), Ended::Stopped(RoundId(1)));
    assert_eq!(fake_run(&parts, &mut second, Some(4)), Ended::Stopped(RoundId(2)));
    assert_eq!(fake_run(&parts, &mut third, None), Ended::Done(expected.clone()));
    assert_eq!(third.optimizer_state().steps, 12, "two rounds of its own, two that it was told of");
    // Done is done: asked again, it has nothing left to train.
    assert_eq!(fake_run(&parts, &mut FakeTrainer::new(8), None), Ended::Done(expected));
}

#[test]
fn a_run_killed_in_the_midst_of_a_round_repeats_no_step_that_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let Ended::Done(expected) = fake_run(&whole, &mut FakeTrainer::new(7), None) else {
        panic!("nobody stopped it")
    };
    let second = CheckpointPolicy { every_steps: NonZeroU32::new(2), every: None };
    let run =
        |stop: Option<u32>, how: fn(&Cancel)| kept_run(&parts, &mut FakeTrainer::new(7), second, stop, how);

    // Cancelled for good it keeps nothing more, as if it were killed: here right after the checkpoint of round 2.
    let (ended, steps) = run(Some(5), Cancel::cancel);
    assert_eq!((ended, steps), (Ended::Stopped(RoundId(1)), vec![(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]));
    assert!(parts.join("round.checkpoint").exists());
    // Suspended after the first step of round 3, which no checkpoint was due for.
    let (ended, steps) = run(Some(2), Cancel::suspend);
    assert_eq!((ended, steps), (Ended::Stopped(RoundId(2)), vec![(2, 3), (3, 1)]));
    let mut last = FakeTrainer::new(7);
    let (ended, steps) = kept_run(&parts, &mut last, second, None, Cancel::cancel);
    assert_eq!((ended, steps), (Ended::Done(expected), vec![(3, 2), (3, 3), (4, 1), (4, 2), (4, 3)]));
    assert_eq!(last.optimizer_state().steps, 12);
    assert!(!parts.join("round.checkpoint").exists(), "a finished round is not gone on with");
}

#[test]
fn one_round_is_kept_and_nothing_is_left_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rounds");
    fake_run(&path, &mut FakeTrainer::new(7), Some(8));
    let kept = |end: &str| {
        let listed = walk(&path).into_iter();
        listed.filter(|file| file.to_string_lossy().ends_with(end)).count()
    };
    assert_eq!((kept(".optimizer"), kept(".data"), kept("progress.json")), (1, 1, 1));
    let rounds = RoundFolder::open(&path).unwrap();
    assert_eq!(rounds.done().unwrap(), RoundId(2));
    rounds.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn what_a_killed_run_left_half_written_goes_when_the_next_begins() {
    let folder = tempfile::tempdir().unwrap();
    drop(RoundFolder::open(folder.path()).unwrap());
    let half = [folder.path().join(".writing-x1"), folder.path().join("models/.writing-x2")];
    for path in &half {
        fs::write(path, "bytes").unwrap();
    }
    let rounds = RoundFolder::open(folder.path()).unwrap();
    assert!(half.iter().all(|path| !path.exists()));
    assert_eq!(rounds.path(), folder.path());
}

/// All files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn two_runs_of_one_study_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let _first = RoundFolder::open(folder.path()).unwrap();
    assert!(RoundFolder::open(folder.path()).unwrap_err().is::<InUse>());
}

#[test]
fn damage_is_an_error_and_not_a_fresh_start() {
    let folder = tempfile::tempdir().unwrap();
    fake_run(folder.path(), &mut FakeTrainer::new(7), Some(4));
    let optimizer = folder.path().join("round-1.optimizer");
    let mut bytes = fs::read(&optimizer).unwrap();
    bytes[9] ^= 1;
    fs::write(&optimizer, bytes).unwrap();
    let rounds = RoundFolder::open(folder.path()).unwrap();
    let (study, annotated) = (fake_study(), BTreeSet::new());
    let finetune = Finetune {
        study: &study,
        digest: digest(),
        annotated: &annotated,
        rounds: &rounds,
        checkpoints: NEVER,
    };
    let run =
        finetune.run(small_model(), &mut FakeTrainer::new(7), &mut |_| panic!("trained"), &Cancel::default());
    assert!(run.unwrap_err().to_string().contains("round-1.optimizer"));
}

#[test]
fn rows_of_a_class_table_that_nobody_annotates_stay_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let Ended::Done(model) = fake_run(folder.path(), &mut FakeTrainer::new(7), None) else {
        panic!("nobody stopped it")
    };
    let initial = small_model();
    let (new, old) = (&model[CLASS_TABLE_TENSOR], &initial[CLASS_TABLE_TENSOR]);
    let changed: Vec<bool> = new.values().iter().zip(old.values()).map(|(new, old)| new != old).collect();
    assert_eq!(changed, [false, false, true, true, false, false], "the second class alone is annotated");
}

#[test]
fn a_round_counts_in_full_where_the_rate_is_that_of_adam_at_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let run = |strategy: Strategy, server_lr| {
        let (mut study, annotated) = (fake_study(), BTreeSet::from([class(2)]));
        (study.aggregation.strategy, study.aggregation.server_lr) = (strategy, server_lr);
        let rounds =
            RoundFolder::open(&folder.path().join(format!("{}-{server_lr}", strategy.name()))).unwrap();
        let (study, annotated, rounds, checkpoints) = (&study, &annotated, &rounds, NEVER);
        let finetune = Finetune { study, digest: digest(), annotated, rounds, checkpoints };
        let mut trainer = FakeTrainer::new(7);
        finetune.run(small_model(), &mut trainer, &mut |_| {}, &Cancel::default()).unwrap()
    };
    let whole = run(Strategy::FedAvg, 1.0);
    assert_eq!(run(Strategy::FedAdam, 0.01), whole);
    assert_ne!(run(Strategy::FedAvg, 0.5), whole);
}

// ---- the network, on phantoms ---------------------------------------------------------------------------------------

/// Tumours before the liver, so that no class has the number that it has elsewhere.
const TWO: &str = "[[class]]\nid = 1\nname = \"Liver Tumor\"\nkind = \"tumour\"\nparents = [2]\n\
                   [[class]]\nid = 2\nname = \"Liver\"\nkind = \"organ\"\n";

/// A site with two coarse phantoms, a model that was made for the standard classes and adapted to two, and a study of these.
struct Site {
    folder: tempfile::TempDir,
    config: SiteConfig,
    document: StudyDocument,
    model: NamedTensors,
    embeddings: NamedTensors,
}

impl Site {
    fn new(change: impl FnOnce(&mut StudyDraft)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_hospital(&folder.path().join("data"), &HOSPITALS[0], 1, 2, Some([12.0; 3])).unwrap();
        let text = "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"state\"\npolicy = \"p\"\n\
                    [[dataset]]\nname = \"own\"\nfolder = \"data/upper-abdomen\"\n";
        let config = SiteConfig::parse(&folder.path().join("site.toml"), text).unwrap();
        let (standard, two) = (Taxonomy::standard(), Taxonomy::parse("two.toml", TWO).unwrap());
        let table = ClassEmbeddings::one_hot(2, 1.0).unwrap();
        let trained = fresh_model(&ClassEmbeddings::one_hot(32, 1.0).unwrap(), 1);
        let initial = fresh_model(&table, 2);
        let adapted = adapt(&trained, initial, Controller::Keep, &standard, &two).unwrap();
        let embeddings = NamedTensors::from([(EMBEDDING_NAME.to_owned(), table.table().clone())]);

        let mut draft = StudyDraft::from(example_study().study());
        draft.model.width = 8;
        draft.preprocessing.patch = [16; 3];
        draft.preprocessing.spacing_mm = [16.0; 3];
        draft.rounds = 3;
        (draft.training.steps_per_round, draft.training.micro_batch) = (2, 1);
        draft.training.warmup_rounds = 0;
        draft.training.optimizer.base_lr = 2e-3;
        draft.evaluation.every_rounds = 0;
        draft.evaluation.nsd_tolerance_mm.classes.clear();
        change(&mut draft);
        let artifact = |tensors| to_artifact(tensors).unwrap().0;
        let document = draft.into_document(two, &artifact(&adapted.tensors), &artifact(&embeddings)).unwrap();
        Self { folder, config, document, model: adapted.tensors, embeddings }
    }

    fn name() -> SiteId {
        "north".parse().unwrap()
    }

    /// Goes on in a folder of this name, with a process of its own, until the end or until that step of this run is done.
    fn run(&self, folder: &str, stop: Option<usize>) -> (Ended, Vec<f64>) {
        self.run_until(folder, stop, Cancel::cancel)
    }

    /// As [`Site::run`], with a way to stop.
    fn run_until(&self, folder: &str, stop: Option<usize>, how: fn(&Cancel)) -> (Ended, Vec<f64>) {
        let (study, cache) = (self.document.study(), self.folder.path().join("cache"));
        let known = &mut Fingerprints::default();
        let scans = PreparedScans::open(study, &self.config, &cache, "finetune", known).unwrap();
        let mut trainer = scans.trainer(study, &self.config, &Self::name(), &self.embeddings).unwrap();
        let rounds = RoundFolder::open(&self.folder.path().join(folder)).unwrap();
        let annotated = scans.summaries.iter().flat_map(|scan| scan.annotated.clone()).collect();
        let (cancel, mut losses) = (Cancel::default(), Vec::new());
        let mut progress = |step: StepReport| {
            losses.push(step.loss);
            if Some(losses.len()) == stop {
                how(&cancel);
            }
        };
        let digest = self.document.digest();
        let finetune = Finetune { study, digest, annotated: &annotated, rounds: &rounds, checkpoints: NEVER };
        let ended = finetune.run(self.model.clone(), &mut trainer, &mut progress, &cancel).unwrap();
        (ended, losses)
    }
}

/// A narrow model that reads these embeddings.
fn fresh_model(table: &ClassEmbeddings, seed: u64) -> NamedTensors {
    let &[rows, width] = table.table().shape() else { panic!("a table has two axes") };
    let config = ModelConfig::unet(8, EmbeddingConfig { kind: EmbeddingKind::OneHot, rows, width });
    let model = UniversalModel::new(&config, Some(table), seed, &device(DeviceKind::Cpu).unwrap());
    model.unwrap().export()
}

#[test]
fn a_network_that_was_stopped_goes_on_and_ends_with_the_same_bits() {
    let site = Site::new(|_| {});
    let (Ended::Done(whole), losses) = site.run("whole", None) else { panic!("nobody stopped it") };
    assert_eq!(losses.len(), 6);
    let (stopped, first) = site.run("parts", Some(3));
    assert_eq!((stopped, first.as_slice()), (Ended::Stopped(RoundId(1)), &losses[..3]));
    let (ended, rest) = site.run("parts", None);
    assert_eq!(rest, losses[2..], "the third step was undone, and done again");
    assert_eq!(ended, Ended::Done(whole.clone()));

    let (stopped, first) = site.run_until("suspended", Some(3), Cancel::suspend);
    assert_eq!((stopped, first.as_slice()), (Ended::Stopped(RoundId(1)), &losses[..3]));
    let (ended, rest) = site.run("suspended", None);
    assert_eq!(rest, losses[3..], "no step is done again");
    assert_eq!(ended, Ended::Done(whole));
}

#[test]
fn two_classes_are_learnt_from_scans_that_were_described_for_others() {
    let site = Site::new(|draft| draft.rounds = 10);
    let (Ended::Done(tuned), losses) = site.run("rounds", None) else { panic!("nobody stopped it") };
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (before, after) = (mean(&losses[..4]), mean(&losses[losses.len() - 4..]));
    assert!(after < before, "{before} became {after}");
    assert!(tuned.keys().eq(site.model.keys()));
    assert_ne!(tuned["controller.weight"], site.model["controller.weight"]);
}

#[test]
fn a_round_alone_is_the_round_of_a_federation_of_one_to_the_bit() {
    let site = Site::new(|draft| draft.rounds = 1);
    let (Ended::Done(alone), _) = site.run("alone", None) else { panic!("nobody stopped it") };

    let state = StateFolder::open(&site.config.state).unwrap();
    let base = state.artifacts().store(&site.model).unwrap().hash();
    state.artifacts().store(&site.embeddings).unwrap();
    let mut work = SiteWork::new(site.config.clone(), Site::name(), state).unwrap();
    let (study, steps) = (site.document.digest(), site.document.study().training.steps_per_round);
    let task = RoundTask { study, round: RoundId(1), base, steps, remaining_ms: 60_000 };
    let attempt = AttemptId::from_bytes([1; 16]);
    let outcome = work.train(&site.document, &task, attempt, &mut |_| {}, &Cancel::default()).unwrap();
    assert_eq!(advance(&site.model, &outcome.delta, 1.0).unwrap(), alone);
}

#[test]
fn a_round_suspended_at_this_site_goes_on_with_its_next_step_after_a_restart() {
    let site = Site::new(|_| {});
    let state = StateFolder::open(&site.config.state).unwrap();
    let base = state.artifacts().store(&site.model).unwrap().hash();
    state.artifacts().store(&site.embeddings).unwrap();
    let study = site.document.digest();
    let task = RoundTask { study, round: RoundId(1), base, steps: 3, remaining_ms: 60_000 };
    let attempt = AttemptId::from_bytes([1; 16]);
    let work = || SiteWork::new(site.config.clone(), Site::name(), state.clone()).unwrap();
    let whole = work().train(&site.document, &task, attempt, &mut |_| {}, &Cancel::default()).unwrap();

    let (cancel, mut done) = (Cancel::default(), Vec::new());
    let mut stop = |step: StepReport| {
        done.push(step.step);
        if step.step == 2 {
            cancel.suspend();
        }
    };
    let stopped = work().train(&site.document, &task, attempt, &mut stop, &cancel).unwrap_err();
    assert!(matches!(stopped.downcast_ref(), Some(TrainError::Cancelled { steps: 2 })));
    assert!(state.checkpoint().exists());
    let mut again = work();
    let mut told = |step: StepReport| done.push(step.step);
    let resumed = again.train(&site.document, &task, attempt, &mut told, &Cancel::default()).unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(done, [1, 2, 3]);
    again.leave_round();
    assert!(!state.checkpoint().exists());
}

#[test]
fn what_the_optimiser_learnt_is_written_only_where_the_next_round_begins_with_it() {
    use common::study::sections::OptimizerState::{Keep, Reset};

    for (between_rounds, is_written) in [(Keep, true), (Reset, false)] {
        let site = Site::new(|draft| draft.training.optimizer_state = between_rounds);
        let state = StateFolder::open(&site.config.state).unwrap();
        let base = state.artifacts().store(&site.model).unwrap().hash();
        state.artifacts().store(&site.embeddings).unwrap();
        let mut work = SiteWork::new(site.config.clone(), Site::name(), state.clone()).unwrap();
        for round in [1, 2] {
            let attempt = AttemptId::from_bytes([round; 16]);
            let (study, round) = (site.document.digest(), RoundId(round.into()));
            let task = RoundTask { study, round, base, steps: 1, remaining_ms: 60_000 };
            work.train(&site.document, &task, attempt, &mut |_| {}, &Cancel::default()).unwrap();
            work.keep_learnt(attempt).unwrap();
            assert_eq!(state.optimizer_after(attempt).exists(), is_written, "{between_rounds:?}, {round}");
        }
    }
}

#[test]
fn a_round_begins_without_what_the_optimiser_remembers_of_another_model() {
    let site = Site::new(|_| {});
    let state = StateFolder::open(&site.config.state).unwrap();
    let base = state.artifacts().store(&site.model).unwrap().hash();
    state.artifacts().store(&site.embeddings).unwrap();
    let study = site.document.digest();
    let task = RoundTask { study, round: RoundId(2), base, steps: 1, remaining_ms: 60_000 };
    let attempt = AttemptId::from_bytes([1; 16]);
    let train = || {
        let mut work = SiteWork::new(site.config.clone(), Site::name(), state.clone()).unwrap();
        work.train(&site.document, &task, attempt, &mut |_| {}, &Cancel::default()).unwrap()
    };
    let fresh = train();

    let moment = HostTensor::from_fn(vec![3], |i| i as f32);
    let moments = NamedTensors::from([("first.gone".to_owned(), moment)]);
    let learnt = OptimizerState { steps: 2, moments }.into_live();
    store_state(&state.optimizer_after(attempt), &learnt).unwrap();
    state.promote_optimizer(study, RoundId(1), attempt).unwrap();
    assert_eq!(train(), fresh);
    assert_eq!(state.optimizer_before(study, RoundId(2)), None, "it is set aside");
}
