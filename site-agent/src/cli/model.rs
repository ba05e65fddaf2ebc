//! `site-agent model`: the network that a study starts from, and a look into files of tensors.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use common::study::sections::ModelConfig as StudyModel;

use super::checkpoint::{self, ExportArgs, ImportArgs as ImportCheckpointArgs};
use super::embed::read_table;
use super::error_report::CliError;
use super::{line, shown};
use crate::client::files;
use crate::model::record::{read_safetensors, write_safetensors};
use crate::model::{
    DeviceKind, EmbeddingConfig, EmbeddingKind, ModelConfig, NamedTensors, UniversalModel, device,
};

/// Commands about model files.
#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Make a model with fresh weights, for a study to start from.
    Init(InitArgs),
    /// List the tensors of a model or embedding file.
    Info(InfoArgs),
    /// Read a checkpoint of the reference's PyTorch code, or a pre-trained backbone.
    Import(ImportCheckpointArgs),
    /// Write a model for other programs, PyTorch among them.
    Export(ExportArgs),
}

/// Arguments of `model init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Backbone and width (TOML), as in the study's section `[model]`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The class embeddings that the model will be trained with.
    #[arg(long, value_name = "FILE")]
    embeddings: PathBuf,
    /// The same seed gives the same weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to; safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `model info`.
#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// A safetensors file.
    file: PathBuf,
    /// Name every tensor.
    #[arg(long)]
    tensors: bool,
}

pub(super) fn run(command: &ModelCommand) -> Result<(), CliError> {
    match command {
        ModelCommand::Init(args) => init(args),
        ModelCommand::Info(args) => info(args),
        ModelCommand::Import(args) => checkpoint::import(args),
        ModelCommand::Export(args) => checkpoint::export(args),
    }
}

fn init(args: &InitArgs) -> Result<(), CliError> {
    let table = read_table(&args.embeddings)?;
    let &[rows, embedding_width] = table.table().shape() else {
        return Err(CliError::new(anyhow::anyhow!("{} holds no table", args.embeddings.display())));
    };
    let embedding = EmbeddingConfig { kind: EmbeddingKind::Imported, rows, width: embedding_width };
    let config = configuration(&args.config, embedding)?;
    let model = UniversalModel::new(&config, Some(&table), args.seed, &device(DeviceKind::Cpu)?)?;
    let tensors = model.export();
    write(&args.out, &tensors)?;
    line(format!("{}: {}", args.out.display(), size(&tensors)));
    Ok(())
}

/// The model that a file describes, for these class embeddings.
pub(super) fn configuration(path: &Path, embedding: EmbeddingConfig) -> Result<ModelConfig, CliError> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(ModelConfig::of_study(&StudyModel::parse(&path.display().to_string(), &text)?, embedding))
}

fn info(args: &InfoArgs) -> Result<(), CliError> {
    let tensors = read(&args.file)?;
    line(format!("{}: {}", shown(&args.file), size(&tensors)));
    for (name, tensor) in tensors.iter().filter(|_| args.tensors) {
        let not_finite = tensor.values().iter().filter(|value| !value.is_finite()).count();
        let damage =
            if not_finite > 0 { format!("  {not_finite} values are not finite") } else { String::new() };
        line(format!("{name:<52} {:?}{damage}", tensor.shape()));
    }
    Ok(())
}

pub(super) fn size(tensors: &NamedTensors) -> String {
    let parameters: usize = tensors.values().map(|tensor| tensor.values().len()).sum();
    format!(
        "{} tensors, {parameters} numbers, {:.1} MiB",
        tensors.len(),
        parameters as f64 * 4.0 / 1_048_576.0
    )
}

/// Reads any safetensors file of floating-point tensors.
pub(super) fn read(path: &Path) -> anyhow::Result<NamedTensors> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    read_safetensors(&bytes).with_context(|| path.display().to_string())
}

pub(super) fn write(path: &Path, tensors: &NamedTensors) -> anyhow::Result<()> {
    Ok(files::write(path, &write_safetensors(tensors)?)?)
}
