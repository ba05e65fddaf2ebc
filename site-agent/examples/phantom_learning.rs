//! Learns from phantoms in one process and prints held-out Dice: the quick look at a recipe before a demo is run with it.
//!
//! ```text
//! cargo run --release -p site-agent --example phantom_learning -- pooled --rounds 15
//! cargo run --release -p site-agent --example phantom_learning -- federated --rounds 50 --unlabelled background
//! ```
//! The files, label maps and cases are those of `site-agent phantom`; Dice is measured on the network's grid. Federated
//! means here: three trainers one after the other and the plain mean of their updates, without coordinator or network.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use common::ids::{ClassId, RoundId};
use common::rng::KeyedRng;
use common::study::schedule::warmup_cosine;
use common::study::sections::{
    self, Foreground, Loss, Optimizer, OptimizerKind, OptimizerState, Sampling, Training,
};
use common::taxonomy::{Class, ClassKind, Taxonomy};
use site_agent::data::batch::{BatchSource, Unlabelled};
use site_agent::data::cache::CaseCache;
use site_agent::data::dataset::read_datasets;
use site_agent::data::pooled::Pooled;
use site_agent::data::prepared::{CaseStore, PreparedCase};
use site_agent::data::preprocess::Preprocessing;
use site_agent::data::sampler::{Sampler, SamplerSettings};
use site_agent::infer::sliding_window::{WindowPlan, sliding_window};
use site_agent::infer::{InferError, Predictor};
use site_agent::model::{
    ClassEmbeddings, EmbeddingConfig, EmbeddingKind, ModelConfig, NamedTensors, UniversalModel,
};
use site_agent::phantom::{HOSPITALS, Hospital, write_hospital};
use site_agent::train::burn_trainer::{BurnTrainer, TrainerSettings};
use site_agent::train::tensors::apply;
use site_agent::train::trainer::{Cancel, LocalTrainer, RoundPlan};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    /// One trainer on the cases of all sites.
    Pooled,
    /// A trainer for each site, updates averaged after each round.
    Federated,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Unannotated {
    Masked,
    Background,
}

#[derive(Debug, Parser)]
struct Options {
    mode: Mode,
    /// Rounds of training.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Optimiser steps of a round.
    #[arg(long, default_value_t = 20)]
    steps: u32,
    /// Training cases of each site.
    #[arg(long, default_value_t = 16)]
    cases: u32,
    /// Held-out cases.
    #[arg(long, default_value_t = 8)]
    held_out: u32,
    /// Voxel size, mm.
    #[arg(long, default_value_t = 8.0)]
    spacing: f64,
    /// Side of a patch, voxels.
    #[arg(long, default_value_t = 24)]
    patch: usize,
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Share of crops whose intensity is shifted by up to 0.1.
    #[arg(long, default_value_t = 0.0)]
    intensity_shift: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, value_enum, default_value_t = Unannotated::Masked)]
    unlabelled: Unannotated,
    /// Score after each so many rounds, and after the last.
    #[arg(long, default_value_t = 1000)]
    score_every: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    let started = Instant::now();
    let stores = HOSPITALS.iter().map(|site| Ok((site, store(folder.path(), site, &options)?)));
    let mut stores: Vec<(&Hospital, Arc<CaseStore>)> = stores.collect::<Result<_>>()?;
    let (_, held_out) = stores.pop().context("the last hospital is held out")?;
    println!("phantoms in {:.1} s", started.elapsed().as_secs_f64());

    let sources = stores.iter().map(|(site, cases)| source(site, cases, &options));
    let mut sources = sources.collect::<Result<Vec<_>>>()?;
    if options.mode == Mode::Pooled {
        let weighted = sources.into_iter().map(|source| (1.0, source)).collect();
        sources = vec![Arc::new(Pooled::new(weighted, KeyedRng::new(options.seed))?)];
    }
    let mut trainers =
        sources.into_iter().map(|source| trainer(source, &options)).collect::<Result<Vec<_>>>()?;
    let mut global = model(options.seed)?.export();
    for round in 1..=options.rounds {
        let started = Instant::now();
        let (next, loss) = train_round(&mut trainers, &global, RoundId(round), &options)?;
        global = next;
        let per_step = started.elapsed().as_secs_f64() / f64::from(options.steps) / trainers.len() as f64;
        println!("round {round:3}  loss {loss:.4}  {per_step:.4} s a step");
        if round.is_multiple_of(options.score_every) || round == options.rounds {
            score(&global, &held_out, &options)?;
        }
    }
    Ok(())
}

fn store(folder: &Path, site: &Hospital, options: &Options) -> Result<Arc<CaseStore>> {
    let cases = if site.missing_every.is_some() { options.held_out } else { options.cases };
    let folder = folder.join(site.name);
    let datasets = write_hospital(&folder, site, options.seed, cases, None)?;
    let taxonomy = Arc::new(Taxonomy::standard());
    let cases = read_datasets(&datasets, &folder, &taxonomy)?;
    let settings = Preprocessing { spacing_mm: [options.spacing; 3], ..Preprocessing::default() };
    let cache = CaseCache::open(&folder.join("cache"), "example")?;
    Ok(Arc::new(CaseStore::open(cases, settings, &taxonomy, &cache, usize::MAX)?.0))
}

/// The classes that some site annotates.
fn covered() -> BTreeSet<ClassId> {
    let labels = HOSPITALS.iter().flat_map(|site| site.datasets).flat_map(|dataset| dataset.labels);
    labels.flat_map(|label| label.classes).filter_map(|&id| ClassId::new(id)).collect()
}

fn source(site: &Hospital, cases: &Arc<CaseStore>, options: &Options) -> Result<Arc<dyn BatchSource>> {
    let augmentation = sections::Augmentation {
        intensity_shift_probability: options.intensity_shift,
        intensity_shift_max: 0.1,
        ..Default::default()
    };
    let settings = SamplerSettings {
        patch: [options.patch; 3],
        micro_batch: 2,
        sampling: Sampling {
            foreground_probability: 2.0 / 3.0,
            foreground: Foreground::EachClass,
            augmentation,
        },
        unlabelled: match options.unlabelled {
            Unannotated::Masked => Unlabelled::Masked,
            Unannotated::Background => Unlabelled::Background(covered()),
        },
    };
    let key = KeyedRng::new(options.seed).site(&site.name.parse()?);
    Ok(Arc::new(Sampler::new(Arc::clone(cases), settings, key)?))
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn model(seed: u64) -> Result<UniversalModel> {
    let taxonomy = Taxonomy::standard();
    let rows = |class: &Class| class.parents.iter().map(|parent| parent.channel()).collect::<Vec<_>>();
    let parents: Vec<_> = taxonomy.classes().iter().map(rows).collect();
    let embeddings = ClassEmbeddings::few_hot(&parents, 4.0)?;
    let embedding = EmbeddingConfig { kind: EmbeddingKind::FewHot, rows: 32, width: 32 };
    let config = ModelConfig::unet(8, embedding);
    Ok(UniversalModel::new(&config, Some(&embeddings), seed, &device())?)
}

fn trainer(source: Arc<dyn BatchSource>, options: &Options) -> Result<BurnTrainer> {
    let training = Training {
        steps_per_round: options.steps,
        micro_batch: 2,
        accumulation: 1,
        warmup_rounds: 0,
        optimizer_state: OptimizerState::Keep,
        unlabelled: sections::Unlabelled::Masked,
        pseudo_labels: false,
        optimizer: Optimizer {
            kind: OptimizerKind::AdamW,
            base_lr: options.learning_rate,
            weight_decay: 1e-5,
        },
        loss: Loss::default(),
    };
    let settings = TrainerSettings { training, prefetch: 2, proximal_mu: 0.0 };
    Ok(BurnTrainer::new(model(options.seed)?, device(), source, settings))
}

/// The next global model and the mean loss of the round.
fn train_round(
    trainers: &mut [BurnTrainer],
    global: &NamedTensors,
    round: RoundId,
    options: &Options,
) -> Result<(NamedTensors, f64)> {
    let learning_rate = warmup_cosine(options.learning_rate, 0, options.rounds + 1, round.0);
    let plan = RoundPlan { round, steps: options.steps, learning_rate };
    let share = 1.0 / trainers.len() as f32;
    let (mut next, mut loss) = (global.clone(), 0.0);
    for trainer in trainers {
        trainer.load_global(global.clone())?;
        let mut outcome = trainer.train_round(&plan, &mut |_| {}, &Cancel::default())?;
        for tensor in outcome.delta.values_mut() {
            tensor.values_mut().iter_mut().for_each(|value| *value *= share);
        }
        next = apply(&next, &outcome.delta)?;
        loss += f64::from(share) * outcome.mean_loss;
    }
    Ok((next, loss))
}

/// The network over the covered classes.
struct Network {
    model: UniversalModel,
    classes: Vec<ClassId>,
    device: Device,
}

impl Predictor for Network {
    fn classes(&self) -> usize {
        self.classes.len()
    }

    fn logits(&self, patch: &[f32], [x, y, z]: [usize; 3]) -> Result<Vec<f32>, InferError> {
        let input = Tensor::from_data(TensorData::new(patch.to_vec(), [1, 1, x, y, z]), &self.device);
        let logits = self.model.infer(input, &self.classes).ok();
        logits.and_then(|logits| logits.into_data().try_to_vec().ok()).ok_or(InferError::Cancelled)
    }
}

fn score(global: &NamedTensors, held_out: &CaseStore, options: &Options) -> Result<()> {
    let started = Instant::now();
    let mut trained = model(0)?;
    trained.load(global)?;
    let classes: Vec<ClassId> = covered().into_iter().collect();
    let network = Network { model: trained, classes, device: device() };
    let plan = WindowPlan::gaussian([options.patch; 3], 0.5);
    let mut scores: BTreeMap<ClassId, Vec<f64>> = BTreeMap::new();
    for index in 0..held_out.len() {
        for (class, dice) in dice(&*held_out.load(index)?, &network, &plan)? {
            scores.entry(class).or_default().push(dice);
        }
    }
    let taxonomy = Taxonomy::standard();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mut by_kind: BTreeMap<bool, Vec<f64>> = BTreeMap::new();
    for (class, values) in &scores {
        let is_organ = taxonomy.class(*class).is_some_and(|class| class.kind == ClassKind::Organ);
        by_kind.entry(is_organ).or_default().push(mean(values));
        print!("{class} {:.2}  ", mean(values));
    }
    let kind = |is_organ| by_kind.get(&is_organ).map_or(0.0, |means| mean(means));
    let seconds = started.elapsed().as_secs_f64() / held_out.len() as f64;
    println!("\nheld-out Dice: organs {:.3}, tumours {:.3} ({seconds:.2} s a case)", kind(true), kind(false));
    Ok(())
}

/// Dice of each class that the case contains.
fn dice(case: &PreparedCase, network: &Network, plan: &WindowPlan) -> Result<Vec<(ClassId, f64)>> {
    let shape = case.image.shape();
    let slab = shape[1] * shape[2];
    let mut counts = vec![[0usize; 3]; network.classes.len()];
    sliding_window(case.image.voxels(), shape, plan, network, |x, logits| {
        for (channel, &class) in network.classes.iter().enumerate() {
            for voxel in 0..slab {
                let predicted = logits[channel * slab + voxel] > 0.0;
                let present = case.labels.contains(class, x * slab + voxel);
                counts[channel][0] += usize::from(predicted && present);
                counts[channel][1] += usize::from(predicted);
                counts[channel][2] += usize::from(present);
            }
        }
    })?;
    let scored = network.classes.iter().zip(counts).filter(|(_, [_, _, present])| *present > 0);
    Ok(scored
        .map(|(&class, [both, predicted, present])| (class, 2.0 * both as f64 / (predicted + present) as f64))
        .collect())
}
