//! Federated training against pooled training, where they must be the same; and masks, where nothing may get through.
//!
//! The oracle: with one step of gradient descent and `annotations` weights, the aggregate of sites with disjoint classes
//! is the step on their pooled data. It holds for any grouping of samples whose batch statistics are the same, hence
//! micro-batches of one sample. Deltas go the whole way of an update: artifact, verification, aggregation.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends it")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use common::aggregate::weights::{SiteCounts, Weighting, site_weights};
use common::aggregate::{Aggregator, WeightedUpdate};
use common::artifact::ArtifactManifest;
use common::ids::{ArtifactHash, AttemptId, ClassId, Digest, RoundId, SiteId, StudyDigest};
use common::study::sections::{
    Backbone, Foreground, Loss, Optimizer, OptimizerKind, OptimizerState, Sampling, Training, Unlabelled,
};
use common::update::{UpdateExpectation, UpdateOffer, UpdateVerifier, VerifiedUpdate};
use nalgebra::Matrix4;
use proptest::prelude::*;
use site_agent::data::DataError;
use site_agent::data::batch::{Batch, BatchAddress, BatchSource, Crop};
use site_agent::data::geometry::Affine;
use site_agent::data::labels::{LabelledCase, MaskSource};
use site_agent::data::prepared::{CaseStore, PreparedCase};
use site_agent::data::sampler::{Sampler, SamplerSettings};
use site_agent::data::volume::{Grid, Volume};
use site_agent::data::{augment::Augmentation, batch};
use site_agent::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, LiveTensor, ModelConfig,
    NamedTensors, UniversalModel, training_device,
};
use site_agent::train::burn_trainer::{BurnTrainer, TrainerSettings};
use site_agent::train::checkpoint::{CheckpointKey, read_checkpoint, store_checkpoint};
use site_agent::train::loss::{DiceKind, masked_loss};
use site_agent::train::tensors::{apply, from_artifact, to_artifact};
use site_agent::train::trainer::{
    Cancel, KeepRound, LocalTrainer, RoundOutcome, RoundPlan, RoundState, StepReport, StoredModel, TrainError,
};

const SIDE: usize = 16;
const PATCH: [usize; 3] = [SIDE; 3];
const CLASSES: usize = 6;
const ROUND: RoundId = RoundId(1);
const EMBEDDING: EmbeddingConfig =
    EmbeddingConfig { kind: EmbeddingKind::OneHot, rows: CLASSES, width: CLASSES };

// ---- a small world --------------------------------------------------------------------------------------------------

fn class(id: usize) -> ClassId {
    ClassId::new(u8::try_from(id).unwrap()).unwrap()
}

/// A case that fills one patch: class k is a slab of its own, brighter than the others.
fn case(seed: usize, annotated: &[usize]) -> PreparedCase {
    case_of(PATCH, seed, annotated)
}

fn case_of(shape: [usize; 3], seed: usize, annotated: &[usize]) -> PreparedCase {
    let grid = Grid { shape, affine: Affine::new(Matrix4::identity()).unwrap() };
    let slab = move |i: usize, j: usize| (i / 4 + j / 8 + seed) % (CLASSES + 1);
    let mapped = Volume::from_fn(grid.clone(), |[i, j, _]| slab(i, j) as u8);
    let image = Volume::from_fn(grid, |[i, j, k]| {
        let noise = (i * 7 + j * 13 + k * 29 + seed * 31) % 17;
        0.1 * slab(i, j) as f32 + 0.01 * noise as f32
    });
    labelled(image, mapped, annotated)
}

fn labelled(image: Volume<f32>, mapped: Volume<u8>, annotated: &[usize]) -> PreparedCase {
    let masks = annotated.iter().map(|&id| (class(id), MaskSource::Mapped)).collect();
    let raw = mapped.map(|&id| i32::from(id));
    PreparedCase::new(image, LabelledCase::new(mapped, raw, masks))
}

/// Every case once, whole, in order: micro-batch i of a step is case i, which is a patch.
struct EachOnce(Vec<PreparedCase>);

impl BatchSource for EachOnce {
    fn batch(&self, address: BatchAddress) -> Result<Batch, DataError> {
        let case = &self.0[address.micro as usize];
        let patch = case.image.shape();
        let unchanged = Augmentation { zoom: 1.0, quarter_turns: 0, shift: 0.0 };
        let crop = Crop::cut(case, patch.map(|side| side / 2), patch, &unchanged);
        Ok(Batch::of(patch, [(&crop, &case.labels)], &batch::Unlabelled::Masked))
    }
}

fn model(seed: u64) -> UniversalModel {
    model_on(&device(), seed)
}

fn model_on(device: &Device, seed: u64) -> UniversalModel {
    build(&ModelConfig::unet(8, EMBEDDING), seed, device)
}

fn swin_unetr_on(device: &Device, seed: u64) -> UniversalModel {
    let config = ModelConfig { backbone: Backbone::SwinUnetr, ..ModelConfig::unet(12, EMBEDDING) };
    build(&config, seed, device)
}

fn build(config: &ModelConfig, seed: u64, device: &Device) -> UniversalModel {
    let embeddings = ClassEmbeddings::one_hot(CLASSES, 4.0).unwrap();
    UniversalModel::new(config, Some(&embeddings), seed, device).unwrap()
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn settings(kind: OptimizerKind, accumulation: u32, prefetch: usize) -> TrainerSettings {
    let training = Training {
        steps_per_round: 1,
        micro_batch: 1,
        accumulation,
        warmup_rounds: 0,
        optimizer_state: OptimizerState::Keep,
        unlabelled: Unlabelled::Masked,
        pseudo_labels: false,
        optimizer: Optimizer { kind, base_lr: 0.1, weight_decay: 0.0 },
        loss: Loss::default(),
    };
    TrainerSettings { training, prefetch, proximal_mu: 0.0 }
}

fn train(source: Arc<dyn BatchSource>, settings: TrainerSettings, steps: u32) -> RoundOutcome {
    train_on(device(), source, settings, steps)
}

fn train_on(
    device: Device,
    source: Arc<dyn BatchSource>,
    settings: TrainerSettings,
    steps: u32,
) -> RoundOutcome {
    let mut trainer = BurnTrainer::new(model_on(&device, 5), device, source, settings);
    trainer.load_global(model(1).export()).unwrap();
    let plan = RoundPlan { round: ROUND, steps, learning_rate: 0.1 };
    trainer.train_round(&plan, &mut |_| {}, &Cancel::default()).unwrap()
}

fn sgd_step_on(cases: Vec<PreparedCase>) -> NamedTensors {
    let accumulation = u32::try_from(cases.len()).unwrap();
    train(Arc::new(EachOnce(cases)), settings(OptimizerKind::Sgd, accumulation, 0), 1).delta
}

// ---- the oracle -----------------------------------------------------------------------------------------------------

fn study() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

fn verified(
    site: &SiteId,
    base: &ArtifactManifest,
    manifest: ArtifactManifest,
    data: &[u8],
) -> VerifiedUpdate {
    let expectation = UpdateExpectation {
        site: site.clone(),
        study: study(),
        round: ROUND,
        base: base.hash(),
        layout: base.layout().clone(),
        max_norm: None,
    };
    let offer = UpdateOffer {
        study: study(),
        round: ROUND,
        base: base.hash(),
        attempt: AttemptId::from_bytes([7; 16]),
        steps: 1,
        manifest: manifest.clone(),
    };
    let mut verifier = UpdateVerifier::new(expectation, offer).unwrap();
    for (index, span) in (0..).zip(manifest.layout().spans()) {
        let start = span.offset as usize;
        verifier.push_chunk(index, &data[start..start + span.len as usize]).unwrap();
    }
    verifier.finish().unwrap()
}

/// The new global model after `deltas`, weighted by annotations.
fn aggregate(global: &NamedTensors, deltas: &BTreeMap<SiteId, (NamedTensors, SiteCounts)>) -> NamedTensors {
    let (base, base_data) = to_artifact(global).unwrap();
    let counts = deltas.iter().map(|(site, (_, counts))| (site.clone(), counts.clone())).collect();
    let shares = site_weights(Weighting::Annotations, &counts, 1.0).shares;
    let artifacts: BTreeMap<&SiteId, _> =
        deltas.iter().map(|(site, (delta, _))| (site, to_artifact(delta).unwrap())).collect();
    let update = |(site, (manifest, data)): (&&SiteId, &(ArtifactManifest, Vec<u8>))| WeightedUpdate {
        update: verified(site, &base, manifest.clone(), data),
        weight: shares[*site],
    };
    let updates = artifacts.iter().map(update).collect();
    let aggregator = Aggregator::new(base.clone(), updates, 1.0).unwrap();
    let (mut new, mut out) = (Vec::new(), Vec::new());
    for (index, span) in (0..).zip(base.layout().spans()) {
        let chunk = span.offset as usize..span.offset as usize + span.len as usize;
        let parts: Vec<&[u8]> = artifacts.values().map(|(_, data)| &data[chunk.clone()]).collect();
        aggregator.aggregate_chunk(index, &base_data[chunk.clone()], &parts, &mut out).unwrap();
        new.extend_from_slice(&out);
    }
    from_artifact(base.layout(), &new).unwrap()
}

/// Three sites of unequal size, no class at two of them. `ids[k]` is the class that stands in place k.
fn sites(ids: [usize; CLASSES]) -> BTreeMap<SiteId, (Vec<PreparedCase>, SiteCounts)> {
    let plan: [(&str, &[usize], usize); 3] =
        [("site-a", &[0, 1, 2], 2), ("site-b", &[3], 3), ("site-c", &[4, 5], 1)];
    let site = |(name, places, volumes): (&str, &[usize], usize)| {
        let classes: Vec<usize> = places.iter().map(|&place| ids[place]).collect();
        let first = name.len() + places[0] * 10;
        let cases = (0..volumes).map(|n| case(first + n, &classes)).collect();
        let annotated = classes.iter().map(|&id| (class(id), volumes as u32)).collect();
        (name.parse().unwrap(), (cases, SiteCounts { volumes: volumes as u32, annotated }))
    };
    plan.into_iter().map(site).collect()
}

fn assert_equivalent(ids: [usize; CLASSES]) {
    let global = model(1).export();
    let sites = sites(ids);
    let pooled = sites.values().flat_map(|(cases, _)| cases.clone()).collect();
    let expected = apply(&global, &sgd_step_on(pooled)).unwrap();
    let federated = sites.into_iter().map(|(site, (cases, counts))| (site, (sgd_step_on(cases), counts)));
    let got = aggregate(&global, &federated.collect());

    let moved = largest_difference(&expected, &global);
    let apart = largest_difference(&expected, &got);
    assert!(moved > 1e-3, "the step must be seen: {moved}");
    assert!(apart <= 1e-6, "classes {ids:?}: {apart} apart, of a step of {moved}");
}

/// No number where a value is none: to `f32::max` it would be nothing.
fn largest_difference(one: &NamedTensors, other: &NamedTensors) -> f32 {
    assert!(one.keys().eq(other.keys()), "the same tensors");
    let pairs = one.values().zip(other.values()).flat_map(|(a, b)| a.values().iter().zip(b.values()));
    pairs.map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap()
}

#[test]
fn a_value_that_is_no_number_is_not_taken_for_no_difference() {
    let tensors = |value| NamedTensors::from([("w".to_owned(), HostTensor::from_fn(vec![1], |_| value))]);
    assert_eq!(largest_difference(&tensors(1.0), &tensors(3.0)), 2.0);
    assert!(largest_difference(&tensors(f32::NAN), &tensors(3.0)).is_nan());
}

#[test]
fn one_federated_step_over_disjoint_classes_is_the_pooled_step() {
    assert_equivalent([1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_equivalence_does_not_depend_on_which_class_is_where() {
    assert_equivalent([5, 3, 6, 1, 4, 2]);
}

#[test]
fn other_weights_than_annotations_break_the_equivalence() {
    // The oracle must be able to fail: equal weights are wrong for sites of unequal size.
    let global = model(1).export();
    let sites = sites([1, 2, 3, 4, 5, 6]);
    let pooled = sites.values().flat_map(|(cases, _)| cases.clone()).collect();
    let expected = apply(&global, &sgd_step_on(pooled)).unwrap();
    let equal = SiteCounts { volumes: 1, annotated: BTreeMap::from([(class(1), 1)]) };
    let federated = sites.into_iter().map(|(site, (cases, _))| (site, (sgd_step_on(cases), equal.clone())));
    let got = aggregate(&global, &federated.collect());
    assert!(largest_difference(&expected, &got) > 1e-5);
}

// ---- masks ----------------------------------------------------------------------------------------------------------

fn bits(tensors: &NamedTensors) -> Vec<u32> {
    tensors.values().flat_map(|tensor| tensor.values()).map(|value| value.to_bits()).collect()
}

/// Two cases: one annotates classes 1 and 2, the other 2 and 3. The head is asked for all three.
struct Pair([PreparedCase; 2]);

impl BatchSource for Pair {
    fn batch(&self, _: BatchAddress) -> Result<Batch, DataError> {
        let unchanged = Augmentation { zoom: 1.0, quarter_turns: 0, shift: 0.0 };
        let crops = self.0.each_ref().map(|case| Crop::cut(case, [SIDE / 2; 3], PATCH, &unchanged));
        let samples = crops.iter().zip(&self.0).map(|(crop, case)| (crop, &case.labels));
        Ok(Batch::of(PATCH, samples, &batch::Unlabelled::Masked))
    }
}

fn pair() -> Pair {
    Pair([case(1, &[1, 2]), case(2, &[2, 3])])
}

/// Every gradient of the model on the batch of [`pair`], after a change of its target; the change is told which
/// (sample, class) pair a voxel is of.
fn gradients_with(change: impl Fn(usize, usize, f32) -> f32) -> Vec<u32> {
    let batch = pair().batch(BatchAddress { round: ROUND, step: 0, micro: 0 }).unwrap();
    let voxels = SIDE.pow(3);
    let target = batch.targets.iter().map(|&mark| f32::from(mark));
    let changed = target.enumerate().map(|(i, old)| change(i / voxels, i % voxels, old));
    let [n, k] = [batch.samples, batch.classes.len()];
    let tensor = |values: Vec<f32>, channels: usize| {
        Tensor::<5>::from_data(TensorData::new(values, [n, channels, SIDE, SIDE, SIDE]), &Device::flex())
    };
    let target = tensor(changed.collect(), k);
    let model = model(1);
    let logits = model.forward(tensor(batch.images, 1), &batch.classes).unwrap();
    let loss = masked_loss(logits, target, &batch.annotated, DiceKind::Volume).unwrap();
    let gradients = model.gradients(&loss.total()).export();
    assert_eq!(gradients.keys().cloned().collect::<Vec<_>>(), model.trainable_names());
    bits(&gradients)
}

#[test]
fn the_target_of_an_unannotated_pair_changes_no_bit_of_any_gradient() {
    // Pairs, sample by sample: classes 1, 2 and 3. Class 3 of the first sample and class 1 of the second count for nothing.
    let unannotated = [2, 3];
    let as_built = gradients_with(|_, _, old| old);
    for overwritten in [1.0, 255.0, f32::NAN] {
        let changed =
            gradients_with(|pair, _, old| if unannotated.contains(&pair) { overwritten } else { old });
        assert!(as_built == changed, "{overwritten} came through the mask");
    }
    // The comparison can fail: in every other pair one voxel is enough.
    for annotated in (0..6).filter(|pair| !unannotated.contains(pair)) {
        let flip = |pair, voxel, old| if (pair, voxel) == (annotated, 0) { 1.0 - old } else { old };
        assert!(as_built != gradients_with(flip), "pair {annotated} counts");
    }
}

/// What one step of gradient descent changes, with a change of the first case's labels: the whole way from a label file's
/// values to the weights.
fn step_with(change: impl Fn(usize, u8) -> u8) -> Vec<u32> {
    let Pair([first, second]) = pair();
    let mut mapped = first.labels.mapped().clone();
    mapped.voxels_mut().iter_mut().enumerate().for_each(|(offset, id)| *id = change(offset, *id));
    let pair = Pair([labelled(first.image, mapped, &[1, 2]), second]);
    bits(&train(Arc::new(pair), settings(OptimizerKind::Sgd, 1, 0), 1).delta)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn relabelling_what_a_case_does_not_annotate_changes_no_bit_of_the_step(seed in 0usize..1000) {
        // Class 3 is asked of the head for the other sample's sake; 4 to 6 by nobody.
        let scrambled = step_with(|offset, id| match id {
            0 | 3..=6 => [0, 3, 4, 5, 6][(offset * 31 + seed) % 5],
            annotated => annotated,
        });
        prop_assert!(scrambled == step_with(|_, id| id));
    }
}

#[test]
fn relabelling_what_a_case_annotates_changes_the_step() {
    let one_voxel = step_with(|offset, id| if offset == 0 { 3 - id } else { id });
    assert!(one_voxel != step_with(|_, id| id), "voxel 0 went from class 1 to class 2");
}

// ---- determinism ----------------------------------------------------------------------------------------------------

fn sampler(unlabelled: batch::Unlabelled) -> Arc<Sampler> {
    let cases = CaseStore::in_memory([case(1, &[1, 2]), case(2, &[2, 3]), case(3, &[4])]);
    let sampling = Sampling {
        foreground_probability: 2.0 / 3.0,
        foreground: Foreground::EachClass,
        augmentation: common::study::sections::Augmentation {
            intensity_shift_probability: 0.5,
            intensity_shift_max: 0.1,
            ..Default::default()
        },
    };
    let settings = SamplerSettings { patch: PATCH, micro_batch: 2, sampling, unlabelled };
    let key = common::rng::KeyedRng::new(9).site(&"site-a".parse().unwrap());
    Arc::new(Sampler::new(Arc::new(cases), settings, key).unwrap())
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_and_without_prefetch() {
    let masked = || sampler(batch::Unlabelled::Masked);
    let first = train(masked(), settings(OptimizerKind::AdamW, 2, 0), 3);
    assert!(bits(&first.delta) == bits(&train(masked(), settings(OptimizerKind::AdamW, 2, 0), 3).delta));
    let prefetched = train(masked(), settings(OptimizerKind::AdamW, 2, 3), 3);
    assert!(bits(&first.delta) == bits(&prefetched.delta));
    assert_eq!(first.mean_loss, prefetched.mean_loss);
}

#[test]
fn taking_unlabelled_for_background_trains_something_else() {
    let all = (1..=CLASSES).map(class).collect::<BTreeSet<_>>();
    let masked = train(sampler(batch::Unlabelled::Masked), settings(OptimizerKind::AdamW, 1, 0), 1);
    let background =
        train(sampler(batch::Unlabelled::Background(all)), settings(OptimizerKind::AdamW, 1, 0), 1);
    assert!(bits(&masked.delta) != bits(&background.delta));
}

#[test]
fn after_a_cancelled_round_the_optimizer_is_restored_or_the_next_one_refused() {
    let plan = RoundPlan { round: ROUND, steps: 4, learning_rate: 0.01 };
    let source = sampler(batch::Unlabelled::Masked);
    let mut trainer = BurnTrainer::new(model(5), device(), source, settings(OptimizerKind::AdamW, 1, 2));
    let round = |trainer: &mut BurnTrainer, stops: bool| {
        let cancel = Cancel::default();
        let mut told = |_: StepReport| {
            if stops {
                cancel.cancel();
            }
        };
        trainer.load_global(model(1).export()).unwrap();
        trainer.train_round(&plan, &mut told, &cancel)
    };
    round(&mut trainer, false).unwrap();
    let before = trainer.optimizer_state().to_host();
    let expected = round(&mut trainer, false).unwrap();

    trainer.restore_optimizer(before.clone()).unwrap();
    let stopped = round(&mut trainer, true);
    assert!(matches!(stopped, Err(TrainError::Cancelled { steps: 1 })));
    assert!(matches!(round(&mut trainer, false), Err(TrainError::OptimizerSpent)));
    trainer.restore_optimizer(before).unwrap();
    assert!(bits(&round(&mut trainer, false).unwrap().delta) == bits(&expected.delta));
}

#[test]
fn a_restored_trainer_goes_on_as_the_one_that_was_stopped() {
    let plan = |round| RoundPlan { round: RoundId(round), steps: 2, learning_rate: 0.01 };
    let new = || {
        let source = sampler(batch::Unlabelled::Masked);
        BurnTrainer::new(model(5), device(), source, settings(OptimizerKind::AdamW, 1, 0))
    };
    let global = model(1).export();
    let mut whole = new();
    whole.load_global(global.clone()).unwrap();
    whole.train_round(&plan(1), &mut |_| {}, &Cancel::default()).unwrap();
    let mut resumed = new();
    resumed.restore_optimizer(whole.optimizer_state().to_host()).unwrap();

    let second = |trainer: &mut BurnTrainer| {
        trainer.load_global(global.clone()).unwrap();
        trainer.train_round(&plan(2), &mut |_| {}, &Cancel::default()).unwrap()
    };
    assert!(bits(&second(&mut whole).delta) == bits(&second(&mut resumed).delta));
}

/// A model as a site has it on its disk.
struct Stored(NamedTensors);

impl StoredModel for Stored {
    fn read(&self) -> Result<NamedTensors, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_round_from_a_stored_model_is_that_from_one_in_memory_to_the_bit() {
    let plan = RoundPlan { round: ROUND, steps: 2, learning_rate: 0.01 };
    for proximal_mu in [0.0, 0.5] {
        let run = |is_stored: bool| {
            let settings = TrainerSettings { proximal_mu, ..settings(OptimizerKind::AdamW, 1, 0) };
            let source = sampler(batch::Unlabelled::Masked);
            let mut trainer = BurnTrainer::new(model(5), device(), source, settings);
            let global = model(1).export();
            match is_stored {
                true => trainer.load_stored(Box::new(Stored(global))).unwrap(),
                false => trainer.load_global(global).unwrap(),
            }
            bits(&trainer.train_round(&plan, &mut |_| {}, &Cancel::default()).unwrap().delta)
        };
        assert!(run(true) == run(false), "{proximal_mu}");
    }
}

#[test]
fn a_weight_that_is_no_number_is_told_from_a_loss() {
    let mut damaged = model(1).export();
    let decoder = damaged.iter_mut().find(|(name, _)| name.starts_with("backbone.up_tr64"));
    decoder.unwrap().1.values_mut()[0] = f32::NAN;
    let source = Arc::new(EachOnce(vec![case(1, &[1, 2])]));
    let mut trainer = BurnTrainer::new(model(5), device(), source, settings(OptimizerKind::Sgd, 1, 0));
    trainer.load_global(damaged).unwrap();
    let plan = RoundPlan { round: ROUND, steps: 1, learning_rate: 0.1 };
    let trained = trainer.train_round(&plan, &mut |_| {}, &Cancel::default());
    assert!(matches!(trained, Err(TrainError::Diverged { step: 1, .. })), "{trained:?}");
}

#[test]
fn a_last_step_that_leaves_no_numbers_gives_no_update() {
    let source = Arc::new(EachOnce(vec![case(1, &[1, 2])]));
    let mut trainer = BurnTrainer::new(model(5), device(), source, settings(OptimizerKind::Sgd, 1, 0));
    trainer.load_global(model(1).export()).unwrap();
    // The loss is that of the weights before: it is a number.
    let (plan, mut losses) = (RoundPlan { round: ROUND, steps: 1, learning_rate: f64::INFINITY }, Vec::new());
    let trained = trainer.train_round(&plan, &mut |step| losses.push(step.loss), &Cancel::default());
    assert!(matches!(trained, Err(TrainError::NotFinite { .. })), "{trained:?}");
    assert!(losses.len() == 1 && losses[0].is_finite(), "{losses:?}");
}

// ---- checkpoints ----------------------------------------------------------------------------------------------------

/// The round of these tests: long enough to be stopped in its midst.
const SIX_STEPS: RoundPlan = RoundPlan { round: RoundId(2), steps: 6, learning_rate: 0.01 };

/// Keeps the round in a file after each third step.
struct EachThird(PathBuf);

impl EachThird {
    fn key() -> CheckpointKey {
        let base = ArtifactHash(Digest::of(b"base"));
        CheckpointKey { study: study(), round: SIX_STEPS.round, base, steps: SIX_STEPS.steps }
    }
}

impl KeepRound for EachThird {
    fn take_up(&mut self) -> Option<RoundState> {
        read_checkpoint(&self.0, &Self::key()).unwrap()
    }

    fn is_due(&mut self, step: u32) -> bool {
        step.is_multiple_of(3)
    }

    fn keep(&mut self, state: &RoundState<LiveTensor>) -> bool {
        store_checkpoint(&self.0, &Self::key(), state).unwrap();
        true
    }
}

/// A trainer as a process has it that has just started: its optimiser remembers one round, if it remembers any.
fn trainer_after_a_round(between_rounds: OptimizerState, accumulation: u32) -> BurnTrainer {
    let mut settings = settings(OptimizerKind::AdamW, accumulation, 2);
    settings.training.optimizer_state = between_rounds;
    let new = || BurnTrainer::new(model(5), device(), sampler(batch::Unlabelled::Masked), settings.clone());
    let mut before = new();
    before.load_global(model(3).export()).unwrap();
    let first = RoundPlan { round: ROUND, steps: 2, learning_rate: 0.01 };
    before.train_round(&first, &mut |_| {}, &Cancel::default()).unwrap();
    let mut trainer = new();
    if between_rounds == OptimizerState::Keep {
        trainer.restore_optimizer(before.optimizer_state().to_host()).unwrap();
    }
    trainer.load_global(model(1).export()).unwrap();
    trainer
}

/// Trains the round, or the rest of it, and does `stop` after step 4; the outcome, and the steps that were done.
fn train_six(
    trainer: &mut BurnTrainer,
    kept: &mut dyn KeepRound,
    stop: impl Fn(&Cancel),
) -> (Result<RoundOutcome, TrainError>, Vec<u32>) {
    let (cancel, mut steps) = (Cancel::default(), Vec::new());
    let mut told = |report: StepReport| {
        steps.push(report.step);
        if report.step == 4 {
            stop(&cancel);
        }
    };
    let outcome = trainer.train_round_kept(&SIX_STEPS, kept, &mut told, &cancel);
    (outcome, steps)
}

#[test]
fn a_round_killed_in_its_midst_repeats_no_kept_step_and_ends_with_the_same_bits() {
    for (between_rounds, accumulation) in [
        (OptimizerState::Keep, 1),
        (OptimizerState::Keep, 2),
        (OptimizerState::Reset, 1),
        (OptimizerState::Reset, 2),
    ] {
        let case = format!("{between_rounds:?}, {accumulation} micro-batches");
        let folder = tempfile::tempdir().unwrap();
        let new = || trainer_after_a_round(between_rounds, accumulation);
        let mut undisturbed = new();
        let expected = undisturbed.train_round(&SIX_STEPS, &mut |_| {}, &Cancel::default()).unwrap();

        let mut kept = EachThird(folder.path().join("round.checkpoint"));
        // Cancelled for good it keeps nothing more: what it did after step 3 is gone, as in a crash.
        let (killed, steps) = train_six(&mut new(), &mut kept, Cancel::cancel);
        assert!(matches!(killed, Err(TrainError::Cancelled { steps: 4 })), "{case}");
        assert_eq!(steps, [1, 2, 3, 4], "{case}");
        let mut resumed = new();
        let (outcome, steps) = train_six(&mut resumed, &mut kept, |_| {});
        let outcome = outcome.unwrap();
        assert_eq!(steps, [4, 5, 6], "{case}");
        assert!(bits(&outcome.delta) == bits(&expected.delta), "{case}");
        assert_eq!(outcome.mean_loss.to_bits(), expected.mean_loss.to_bits(), "{case}");
        let memory = |trainer: &BurnTrainer| trainer.optimizer_state().to_host();
        assert!(memory(&resumed) == memory(&undisturbed), "{case}");
    }
}

#[test]
fn a_round_that_is_suspended_repeats_no_step_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let new = || trainer_after_a_round(OptimizerState::Keep, 1);
    let expected = new().train_round(&SIX_STEPS, &mut |_| {}, &Cancel::default()).unwrap();
    let mut kept = EachThird(folder.path().join("round.checkpoint"));
    let (suspended, _) = train_six(&mut new(), &mut kept, Cancel::suspend);
    assert!(matches!(suspended, Err(TrainError::Cancelled { steps: 4 })));
    let (outcome, steps) = train_six(&mut new(), &mut kept, |_| {});
    assert_eq!(steps, [5, 6]);
    assert!(bits(&outcome.unwrap().delta) == bits(&expected.delta));
}

#[test]
fn a_checkpoint_of_another_network_is_not_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = EachThird(folder.path().join("round.checkpoint"));
    let mut trainer = trainer_after_a_round(OptimizerState::Keep, 1);
    let expected = train_six(&mut trainer, &mut kept, |_| {}).0.unwrap();
    let mut left = kept.take_up().unwrap();
    left.weights.pop_first();
    kept.keep(&left.into_live());
    let mut again = trainer_after_a_round(OptimizerState::Keep, 1);
    let (outcome, steps) = train_six(&mut again, &mut kept, |_| {});
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    assert!(bits(&outcome.unwrap().delta) == bits(&expected.delta));
}

/// The same case for the first step; then its program has a fault.
struct EndsAfterOne(EachOnce);

impl BatchSource for EndsAfterOne {
    fn batch(&self, address: BatchAddress) -> Result<Batch, DataError> {
        assert_eq!(address.step, 0, "a fault in the program");
        self.0.batch(address)
    }
}

#[test]
fn a_step_whose_batch_never_came_is_not_kept_as_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = EachThird(folder.path().join("round.checkpoint"));
    let source = Arc::new(EndsAfterOne(EachOnce(vec![case(1, &[1, 2])])));
    let mut trainer = BurnTrainer::new(model(5), device(), source, settings(OptimizerKind::Sgd, 1, 2));
    trainer.load_global(model(1).export()).unwrap();
    let mut done = Vec::new();
    // The thread's panic is raised when it is joined.
    let trained = catch_unwind(AssertUnwindSafe(|| {
        trainer.train_round_kept(&SIX_STEPS, &mut kept, &mut |step| done.push(step.step), &Cancel::default())
    }));
    assert!(trained.is_err());
    assert_eq!(done, [1]);
    assert!(kept.take_up().is_none());
}

// ---- FedProx --------------------------------------------------------------------------------------------------------

#[test]
fn fedprox_pulls_each_step_back_by_mu_times_the_way_from_the_global_model() {
    const MU: f64 = 2.0;
    const RATE: f32 = 0.1;
    let run = |proximal_mu: f64, steps: u32| {
        let settings = TrainerSettings { proximal_mu, ..settings(OptimizerKind::Sgd, 1, 0) };
        train(Arc::new(EachOnce(vec![case(1, &[1, 2])])), settings, steps).delta
    };
    // At the global model itself nothing pulls.
    let first = run(0.0, 1);
    assert_eq!(largest_difference(&first, &run(MU, 1)), 0.0);
    // The second step has the gradient of FedAvg's second, for both are at the same weights, and the pull beside it:
    // w2 = w1 - rate (g(w1) + mu (w1 - w0)).
    let (plain, pulled) = (run(0.0, 2), run(MU, 2));
    let mut largest = 0.0f32;
    for ((name, moved), (plain, pulled)) in first.iter().zip(plain.values().zip(pulled.values())) {
        let numbers = moved.values().iter().zip(plain.values().iter().zip(pulled.values()));
        for (&moved, (&plain, &pulled)) in numbers {
            let expected = -RATE * MU as f32 * moved;
            assert!((pulled - plain - expected).abs() < 2e-6, "{name}: {plain} {pulled} {moved}");
            largest = largest.max(expected.abs());
        }
    }
    assert!(largest > 1e-4, "the pull must be seen: {largest}");
}

// ---- the machine ----------------------------------------------------------------------------------------------------

#[test]
fn neither_threads_nor_recomputing_change_a_bit_in_twenty_steps() {
    let run = |recompute: bool, threads: usize| {
        let device = training_device(DeviceKind::Cpu, recompute).unwrap();
        let source = Arc::new(EachOnce(vec![case(1, &[1, 2, 4]), case(2, &[2, 3, 5, 6])]));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&train_on(device, source, settings(OptimizerKind::AdamW, 2, 0), 20).delta))
    };
    let expected = run(false, 1);
    for (recompute, threads) in [(false, 2), (true, 1), (true, 2), (true, 3)] {
        assert!(run(recompute, threads) == expected, "recompute {recompute}, {threads} threads");
    }
}

#[test]
fn threads_change_no_bit_of_a_swin_unetr_in_three_steps() {
    let plan = RoundPlan { round: ROUND, steps: 3, learning_rate: 1e-3 };
    let train = || {
        let device = training_device(DeviceKind::Cpu, true).unwrap();
        // The smallest patch that has statistics in every stage; its first two stages have windows that shift.
        let source = Arc::new(EachOnce(vec![case_of([64, 32, 32], 1, &[1, 2, 4])]));
        let (network, global) = (swin_unetr_on(&device, 5), swin_unetr_on(&device, 1).export());
        let mut trainer = BurnTrainer::new(network, device, source, settings(OptimizerKind::AdamW, 1, 0));
        trainer.load_global(global).unwrap();
        bits(&trainer.train_round(&plan, &mut |_| {}, &Cancel::default()).unwrap().delta)
    };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(train)
    };
    let expected = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == expected, "{threads} threads");
    }
}
