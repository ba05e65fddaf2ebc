//! What is compared, and the files from which both sides take it.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use site_agent::infer::sliding_window::{WindowPlan, gaussian_importance};
use site_agent::model::init::initial_tensors;
use site_agent::model::record::{read_safetensors, write_safetensors};
use site_agent::model::{
    Backbone, ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, ModelConfig,
    NamedTensors, SwinBlock, UniversalModel, device, parameters,
};

/// Rows of the table of class embeddings.
const ROWS: usize = 32;
/// Numbers of one head of a transformer as wide as the paper's.
pub(crate) const HEAD_WIDTH: usize = 16;
/// Share of the windows that neighbours have in common.
pub(crate) const OVERLAP: f64 = 0.5;

/// One comparison.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its name in the table.
    pub(crate) name: &'static str,
    kind: Kind,
    backbone: Backbone,
    /// Of the U-Net: 32 in the paper, 8 in the demo. Of the Swin UNETR: 48 in the paper.
    width: usize,
    /// Classes that the head is asked for.
    classes: usize,
    /// Of the patch, or of the scan.
    shape: [usize; 3],
    /// Sides of an inference window.
    window: usize,
    /// Whether it is among the few that end soon.
    pub(crate) quick: bool,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Forward, loss, backward, AdamW.
    Step,
    /// Overlapping windows over a scan, blended.
    Infer,
    /// One block of shifted windows of a transformer, forward and backward.
    Block,
}

/// All cases. The demo's head is asked for as many classes as a hospital of the demo annotates.
pub(crate) const CASES: [Case; 11] = [
    step("demo-step-24", 8, 6, 24, false),
    step("demo-step-32", 8, 6, 32, true),
    step("demo-step-64", 8, 6, 64, true),
    step("full-step-32", 32, ROWS, 32, true),
    step("full-step-64", 32, ROWS, 64, true),
    step("full-step-96", 32, ROWS, 96, false),
    infer("demo-infer", 8, [96, 64, 64], 64, true),
    infer("full-infer", 32, [144, 96, 96], 96, false),
    block("swin-block", 48, 32),
    Case { backbone: Backbone::SwinUnetr, ..step("swin-step-64", 48, ROWS, 64, false) },
    Case { backbone: Backbone::SwinUnetr, ..step("swin-step-96", 48, ROWS, 96, false) },
];

const fn step(name: &'static str, width: usize, classes: usize, side: usize, quick: bool) -> Case {
    let (kind, backbone) = (Kind::Step, Backbone::Unet);
    Case { name, kind, backbone, width, classes, shape: [side; 3], window: side, quick }
}

const fn block(name: &'static str, width: usize, side: usize) -> Case {
    let (kind, backbone) = (Kind::Block, Backbone::SwinUnetr);
    Case { name, kind, backbone, width, classes: 1, shape: [side; 3], window: side, quick: false }
}

const fn infer(name: &'static str, width: usize, shape: [usize; 3], window: usize, quick: bool) -> Case {
    let (kind, backbone) = (Kind::Infer, Backbone::Unet);
    Case { name, kind, backbone, width, classes: ROWS, shape, window, quick }
}

/// `case.json`: what a side has to know beside the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CaseFile {
    pub(crate) kind: Kind,
    pub(crate) backbone: Backbone,
    pub(crate) width: usize,
    pub(crate) channels: Vec<usize>,
    pub(crate) shape: [usize; 3],
    pub(crate) window: usize,
    /// First voxels of the windows.
    pub(crate) starts: Vec<[usize; 3]>,
    pub(crate) learning_rate: f64,
}

impl Case {
    /// Writes the folder that both sides read.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let &Self { kind, backbone, width, classes, shape, window, .. } = self;
        fs::create_dir_all(folder)?;
        let [xs, ys, zs] = WindowPlan::gaussian([window; 3], OVERLAP).starts(shape);
        let starts = xs.iter().flat_map(|&x| {
            ys.iter().flat_map({
                let zs = &zs;
                move |&y| zs.iter().map(move |&z| [x, y, z])
            })
        });
        let file = CaseFile {
            kind,
            backbone,
            width,
            // Spread over the table, as annotated classes are.
            channels: (0..classes).map(|class| class * ROWS / classes).collect(),
            shape,
            window,
            starts: starts.collect(),
            learning_rate: 1e-4,
        };
        fs::write(folder.join("case.json"), serde_json::to_vec(&file)?)?;
        if kind == Kind::Block {
            return self.write_block(folder);
        }

        let table = HostTensor::from_fn(vec![ROWS, 512], |i| noise(i + 7) * 0.4);
        let embeddings = ClassEmbeddings::new(EmbeddingKind::Imported, table.clone())?;
        let model =
            UniversalModel::new(&config(backbone, width), Some(&embeddings), 1, &device(DeviceKind::Cpu)?)?;
        fs::write(folder.join("model.safetensors"), write_safetensors(&model.export())?)?;

        let [x, y, z] = shape;
        let mut data = NamedTensors::from([
            ("table".to_owned(), table),
            ("image".to_owned(), HostTensor::from_fn(vec![1, 1, x, y, z], |i| image(i, shape))),
        ]);
        match kind {
            Kind::Step => {
                let target = HostTensor::from_fn(vec![1, classes, x, y, z], |i| target(i, shape));
                data.insert("target".to_owned(), target);
            }
            Kind::Infer | Kind::Block => {
                let importance = HostTensor::new(vec![window; 3], gaussian_importance([window; 3]))?;
                data.insert("importance".to_owned(), importance);
            }
        }
        fs::write(folder.join("data.safetensors"), write_safetensors(&data)?)?;
        Ok(())
    }

    fn write_block(&self, folder: &Path) -> anyhow::Result<()> {
        let block = SwinBlock::new(self.width, self.width / HEAD_WIDTH, &device(DeviceKind::Cpu)?);
        let weights = initial_tensors(&parameters::shapes(&block), 1);
        fs::write(folder.join("model.safetensors"), write_safetensors(&weights)?)?;
        let voxels = self.shape.iter().product();
        let x = HostTensor::from_fn(vec![1, voxels, self.width], |i| noise(i + 3) * 2.0);
        fs::write(folder.join("data.safetensors"), write_safetensors(&[("x".to_owned(), x)].into())?)?;
        Ok(())
    }
}

/// A case as it was written.
pub(crate) struct Loaded {
    pub(crate) file: CaseFile,
    pub(crate) model: NamedTensors,
    pub(crate) data: NamedTensors,
}

/// Reads what [`Case::write`] wrote.
pub(crate) fn load(folder: &Path) -> anyhow::Result<Loaded> {
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| name.to_owned());
    Ok(Loaded {
        file: serde_json::from_slice(&read("case.json")?)?,
        model: read_safetensors(&read("model.safetensors")?)?,
        data: read_safetensors(&read("data.safetensors")?)?,
    })
}

/// The model's configuration.
pub(crate) fn config(backbone: Backbone, width: usize) -> ModelConfig {
    let embedding = EmbeddingConfig { kind: EmbeddingKind::Imported, rows: ROWS, width: 512 };
    ModelConfig { backbone, ..ModelConfig::unet(width, embedding) }
}

/// In [-0.5, 0.5), the same everywhere.
fn noise(i: usize) -> f32 {
    (i.wrapping_mul(2_654_435_761) % 65_536) as f32 / 65_536.0 - 0.5
}

/// Something like a windowed scan: a bright ellipsoid in noise.
fn image(i: usize, shape: [usize; 3]) -> f32 {
    let inside = distance(i, shape, 0.0) < 0.6;
    (if inside { 0.7 } else { 0.2 }) + 0.2 * noise(i)
}

/// A ball for each class, each of another size.
fn target(i: usize, shape: [usize; 3]) -> f32 {
    let voxels: usize = shape.iter().product();
    let class = i / voxels;
    f32::from(distance(i % voxels, shape, 0.1) < 0.2 + 0.02 * class as f32)
}

/// Of voxel `i` from the middle, moved by `shift`, in halves of the shape.
fn distance(i: usize, [x, y, z]: [usize; 3], shift: f32) -> f32 {
    let at = [i / (y * z), i / z % y, i % z];
    let half = |a: usize, side: usize| 2.0 * a as f32 / side as f32 - 1.0 - shift;
    let [a, b, c] = [half(at[0], x), half(at[1], y), half(at[2], z)];
    (a * a + b * b + c * c).sqrt()
}
