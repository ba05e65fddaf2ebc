//! Our side: the agent's own trainer and its own inference, on a fixed batch or scan.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use burn::tensor::{Device, Tensor, TensorData};
use common::ids::{ClassId, RoundId};
use common::study::sections::{Loss, Optimizer, OptimizerKind, OptimizerState, Training, Unlabelled};
use serde::Serialize;
use site_agent::data::DataError;
use site_agent::data::batch::{Batch, BatchAddress, BatchSource};
use site_agent::infer::sliding_window::{WindowPlan, sliding_window};
use site_agent::infer::{InferError, Predictor};
use site_agent::kernels::memory;
use site_agent::model::{
    ClassEmbeddings, DeviceKind, EmbeddingKind, Gradients, HostTensor, NamedTensors, SwinBlock,
    UniversalModel, WindowNetwork, device, parameters, training_device,
};
use site_agent::train::burn_trainer::{BurnTrainer, TrainerSettings};
use site_agent::train::trainer::{Cancel, LocalTrainer, RoundPlan, StepReport};

use crate::cases::{self, CaseFile, HEAD_WIDTH, Kind, Loaded, OVERLAP};
use crate::side::{Peak, Run};

/// Obeys lines on standard input until it ends.
pub(crate) fn serve(folder: &Path, kind: DeviceKind) -> anyhow::Result<()> {
    let Loaded { file, model: weights, mut data } = cases::load(folder)?;
    if file.kind == Kind::Block {
        return block(&file, &weights, data.get("x").context("x")?, kind);
    }
    let table = data.remove("table").context("table")?;
    let embeddings = ClassEmbeddings::new(EmbeddingKind::Imported, table)?;
    let device = match file.kind {
        Kind::Step => training_device(kind, true)?,
        Kind::Infer | Kind::Block => device(kind)?,
    };
    let mut model =
        UniversalModel::new(&cases::config(file.backbone, file.width), Some(&embeddings), 0, &device)?;
    model.load(&weights)?;
    match file.kind {
        Kind::Step => {
            let trainer = BurnTrainer::new(model, device.clone(), source(&file, &mut data)?, settings(&file));
            steps(&file, trainer, weights, device)
        }
        Kind::Infer | Kind::Block => {
            let network = Network(WindowNetwork::new(model, device.clone(), file.channels.len()));
            drop(weights);
            scans(&file, &network, data.get("image").context("image")?, device)
        }
    }
}

/// One long round, of which each step waits to be asked for.
fn steps(
    file: &CaseFile,
    mut trainer: BurnTrainer,
    weights: NamedTensors,
    device: Device,
) -> anyhow::Result<()> {
    trainer.load_global(weights)?;
    let mut desk = Desk::open(device.clone())?;
    if !desk.wait()? {
        return Ok(());
    }
    let plan = RoundPlan { round: RoundId(1), steps: u32::MAX, learning_rate: file.learning_rate };
    let cancel = Cancel::default();
    let mut failed = None;
    let mut answer = |step: &StepReport| {
        let told = Instant::now();
        // A card is still busy with the optimiser's step.
        let waited = device.sync().map_err(anyhow::Error::from);
        let ms = (step.duration + told.elapsed()).as_secs_f64() * 1e3;
        let answered = waited.and_then(|()| desk.answer(&Run { ms, value: step.loss }));
        match answered.and_then(|()| desk.wait()) {
            Ok(true) => {}
            Ok(false) => cancel.cancel(),
            Err(error) => {
                failed = Some(error);
                cancel.cancel();
            }
        }
    };
    let ended = trainer.train_round(&plan, &mut |step| answer(&step), &cancel);
    match (failed, ended) {
        (Some(error), _) => Err(error),
        // It was cancelled.
        (None, _) => Ok(()),
    }
}

fn block(file: &CaseFile, weights: &NamedTensors, x: &HostTensor, kind: DeviceKind) -> anyhow::Result<()> {
    let device = training_device(kind, true)?;
    let block = SwinBlock::new(file.width, file.width / HEAD_WIDTH, &device);
    let block = parameters::load(block, weights)?;
    let values = TensorData::new(x.values().to_vec(), x.shape().to_vec());
    let x = Tensor::<3>::from_data(values, &device).require_grad();
    let mut desk = Desk::open(device.clone())?;
    while desk.wait()? {
        let start = Instant::now();
        let square = block.forward(x.clone(), file.shape, true).powi_scalar(2).mean();
        let value = f64::from(square.clone().into_scalar::<f32>());
        drop(Gradients::of(&block, &square));
        device.sync()?;
        desk.answer(&Run { ms: start.elapsed().as_secs_f64() * 1e3, value })?;
    }
    Ok(())
}

fn scans(file: &CaseFile, network: &Network, image: &HostTensor, device: Device) -> anyhow::Result<()> {
    let plan = WindowPlan::gaussian([file.window; 3], OVERLAP);
    let mut desk = Desk::open(device)?;
    while desk.wait()? {
        let start = Instant::now();
        let (mut positive, mut all) = (0_usize, 0_usize);
        sliding_window(image.values(), file.shape, &plan, network, |_, logits| {
            positive += logits.iter().filter(|&&logit| logit > 0.0).count();
            all += logits.len();
        })?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        desk.answer(&Run { ms, value: positive as f64 / all as f64 })?;
    }
    Ok(())
}

struct Network(WindowNetwork);

impl Predictor for Network {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn logits(&self, patch: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        self.0.logits(patch, shape).map_err(|error| InferError::Network(Box::new(error)))
    }
}

/// The same batch at every step.
struct Fixed(Batch);

impl BatchSource for Fixed {
    fn batch(&self, _: BatchAddress) -> Result<Batch, DataError> {
        Ok(self.0.clone())
    }
}

fn source(file: &CaseFile, data: &mut NamedTensors) -> anyhow::Result<Arc<dyn BatchSource>> {
    let mut take =
        |name: &str| Ok::<_, anyhow::Error>(data.remove(name).context(name.to_owned())?.into_parts().1);
    let classes = file.channels.iter().map(|&channel| ClassId::from_channel(channel));
    Ok(Arc::new(Fixed(Batch {
        patch: file.shape,
        samples: 1,
        images: take("image")?,
        classes: classes.collect::<Option<_>>().context("a class that is none")?,
        targets: take("target")?.into_iter().map(|mark| mark as u8).collect(),
        annotated: vec![true; file.channels.len()],
    })))
}

fn settings(file: &CaseFile) -> TrainerSettings {
    let optimizer = Optimizer { kind: OptimizerKind::AdamW, base_lr: file.learning_rate, weight_decay: 1e-5 };
    let training = Training {
        steps_per_round: 1,
        micro_batch: 1,
        accumulation: 1,
        warmup_rounds: 0,
        optimizer_state: OptimizerState::Keep,
        unlabelled: Unlabelled::Masked,
        pseudo_labels: false,
        optimizer,
        loss: Loss::default(),
    };
    TrainerSettings { training, prefetch: 1, proximal_mu: 0.0 }
}

/// Where orders come in and answers go out.
struct Desk {
    orders: std::io::Lines<std::io::StdinLock<'static>>,
    device: Device,
    /// Resident before the first run, MiB.
    before: f64,
}

impl Desk {
    fn open(device: Device) -> anyhow::Result<Self> {
        // What loading freed would be taken by the first step, unseen. The peak so far, that of loading, is forgotten.
        memory::give_back();
        fs::write("/proc/self/clear_refs", "5").context("forgetting the peak so far")?;
        let before = resident("VmRSS:")?;
        let mut desk = Self { orders: std::io::stdin().lock().lines(), device, before };
        desk.answer(&"ready")?;
        Ok(desk)
    }

    /// Waits for the order to work; false when there are no more.
    fn wait(&mut self) -> anyhow::Result<bool> {
        while let Some(order) = self.orders.next() {
            if order? == "go" {
                return Ok(true);
            }
            let peak_mb = match self.device.memory_pool_usage() {
                Some(usage) => usage.bytes_reserved as f64 / 1024.0 / 1024.0,
                None => resident("VmHWM:")? - self.before,
            };
            self.answer(&Peak { peak_mb })?;
        }
        Ok(false)
    }

    fn answer(&mut self, what: &impl Serialize) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(what)?)?;
        Ok(out.flush()?)
    }
}

/// A line of this process's status, MiB.
fn resident(field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
    Ok(kib.context("no such line")?.parse::<f64>()? / 1024.0)
}
