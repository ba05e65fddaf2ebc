//! `site-agent model`: the network that a study starts from, and a look into files of tensors.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use common::study::sections::ModelConfig as StudyModel;

use super::adapt::{self, AdaptArgs};
use super::checkpoint::{self, ExportArgs, ImportArgs as ImportCheckpointArgs};
use super::embed::{read_table, write_learned_table};
use super::error_report::{CliError, Exit};
use super::{TaxonomyArg, cost_table, line, read_taxonomy, shown};
use crate::client::files;
use crate::model::cost::ModelCost;
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::head::FEATURE_WIDTH;
use crate::model::record::{read_safetensors, write_safetensors};
use crate::model::{
    DeviceKind, EmbeddingConfig, EmbeddingKind, ModelConfig, NamedTensors, UniversalModel, device,
};

/// Commands about model files.
#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Make a model with fresh weights, for a study to start from.
    Init(InitArgs),
    /// Make of a trained model one for other classes: the backbone is kept, the rest as far as it fits or as you say.
    Adapt(AdaptArgs),
    /// List the tensors of a model or embedding file, and say what the model costs.
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
    #[arg(long, value_name = "FILE", required_unless_present = "learned")]
    embeddings: Option<PathBuf>,
    /// The model learns a table of its own in their place, a row for each class: for a study with `trainable = true`. How the
    /// table begins goes beside it, to NAME-embeddings.safetensors: the embeddings of that study.
    #[arg(long, conflicts_with = "embeddings")]
    learned: bool,
    /// Of a table of its own: the classes (TOML), where they are not the 32 of the universal model.
    #[arg(long, requires = "learned", value_name = "FILE")]
    taxonomy: Option<PathBuf>,
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
    /// Backbone and width of the model (TOML), as in the study's section `[model]`: say what it costs, stage by stage.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Voxels of the patch that it costs that for, along right, anterior and superior.
    #[arg(long, requires = "config", default_value = "96,96,96", value_name = "X,Y,Z", value_parser = sides)]
    patch: [usize; 3],
    #[command(flatten)]
    taxonomy: TaxonomyArg,
}

/// Longest side of a patch: products of all its stages are counted in 64 bits.
const LONGEST_SIDE: usize = 4096;

fn sides(text: &str) -> Result<[usize; 3], String> {
    let sides = text.split(',').map(|side| side.trim().parse::<usize>().ok());
    let sides: Option<Vec<usize>> = sides.map(|side| side.filter(|&side| side <= LONGEST_SIDE)).collect();
    let sides = sides.and_then(|sides| <[usize; 3]>::try_from(sides).ok());
    sides.ok_or_else(|| format!("expected three numbers up to {LONGEST_SIDE}, such as 96,96,96"))
}

pub(super) fn run(command: &ModelCommand) -> Result<(), CliError> {
    match command {
        ModelCommand::Init(args) => init(args),
        ModelCommand::Adapt(args) => adapt::run(args),
        ModelCommand::Info(args) => info(args),
        ModelCommand::Import(args) => checkpoint::import(args),
        ModelCommand::Export(args) => checkpoint::export(args),
    }
}

fn init(args: &InitArgs) -> Result<(), CliError> {
    let table = args.embeddings.as_deref().map(read_table).transpose()?;
    let (kind, rows, width) = match table.as_ref().map(|table| table.table().shape()) {
        Some(shape) => (EmbeddingKind::Imported, shape[0], shape[1]),
        None => (EmbeddingKind::Learned, read_taxonomy(args.taxonomy.as_deref())?.len(), FEATURE_WIDTH),
    };
    let embedding = EmbeddingConfig { kind, rows, width };
    let config = configuration(&args.config, embedding)?;
    let model = UniversalModel::new(&config, table.as_ref(), args.seed, &device(DeviceKind::Cpu)?)?;
    let tensors = model.export();
    write(&args.out, &tensors)?;
    line(format!("{}: {}", args.out.display(), size(&tensors)));
    write_learned_table(&args.out, &tensors)
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
    if let Some(config) = &args.config {
        costs(args, config, &tensors)?.into_iter().for_each(line);
    }
    Ok(())
}

/// The table of a model's costs, if the file holds a model of this configuration.
fn costs(args: &InfoArgs, config: &Path, tensors: &NamedTensors) -> Result<Vec<String>, CliError> {
    let refuse =
        |what: String| CliError::new(anyhow::anyhow!("{}: {what}", shown(&args.file))).exit(Exit::Data);
    let classes = args.taxonomy.read()?.len();
    let embedding =
        embedding_of(tensors, classes).ok_or_else(|| refuse("there is no whole model in it".to_owned()))?;
    let config = configuration(config, embedding)?;
    let cost = ModelCost::of(&config, args.patch)?;
    let trained = tensors.iter().filter(|(name, _)| *name != EMBEDDING_NAME);
    let held: usize = trained.map(|(_, tensor)| tensor.values().len()).sum();
    let expected = cost.total().parameters;
    if held as u64 != expected {
        let hint = "name the configuration that the model was made with";
        let what = format!("{held} trainable numbers: a model of this configuration has {expected}");
        return Err(refuse(what).hint(hint));
    }
    Ok(cost_table::lines(&config, args.patch, &cost))
}

/// The class embeddings that a model was made for. A fixed table's rows are not in the model: they are the taxonomy's.
fn embedding_of(tensors: &NamedTensors, classes: usize) -> Option<EmbeddingConfig> {
    let shape = |name: &str| <[usize; 2]>::try_from(tensors.get(name)?.shape()).ok();
    if let Some([rows, width]) = shape(&format!("{EMBEDDING_NAME}.weight")) {
        return Some(EmbeddingConfig { kind: EmbeddingKind::Learned, rows, width });
    }
    let [_, width] = shape("text_to_vision.weight")?;
    Some(EmbeddingConfig { kind: EmbeddingKind::Imported, rows: classes, width })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClassEmbeddings;

    fn info_args(file: &Path, config: &Path) -> InfoArgs {
        let taxonomy = TaxonomyArg::default();
        let config = Some(config.to_owned());
        InfoArgs { file: file.to_owned(), tensors: false, config, patch: [64; 3], taxonomy }
    }

    #[test]
    fn a_models_file_is_priced_by_the_configuration_that_it_was_made_with_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let [file, config, table] = ["model", "model.toml", "table"].map(|name| folder.path().join(name));
        fs::write(&config, "backbone = \"unet\"\nwidth = 8\n").unwrap();
        let one_hot = ClassEmbeddings::one_hot(32, 1.0).unwrap();
        write(&table, &NamedTensors::from([(EMBEDDING_NAME.to_owned(), one_hot.table().clone())])).unwrap();
        init(&InitArgs {
            config: config.clone(),
            embeddings: Some(table.clone()),
            learned: false,
            taxonomy: None,
            seed: 0,
            out: file.clone(),
        })
        .unwrap();
        let tensors = read(&file).unwrap();
        let lines = costs(&info_args(&file, &config), &config, &tensors).unwrap();
        assert!(lines[0].contains("U-Net of width 8, 32 classes, one patch of 64 x 64 x 64"), "{lines:?}");

        fs::write(&config, "backbone = \"unet\"\nwidth = 16\n").unwrap();
        let refused = costs(&info_args(&file, &config), &config, &tensors).unwrap_err().text();
        assert!(refused.contains("trainable numbers"), "{refused}");
        let refused = costs(&info_args(&table, &config), &config, &read(&table).unwrap()).unwrap_err();
        assert!(refused.text().contains("no whole model"), "{}", refused.text());
    }

    #[test]
    fn the_sides_of_a_patch_are_three_numbers() {
        assert_eq!(sides("96, 64,32"), Ok([96, 64, 32]));
        for text in ["", "96", "96,96", "96,96,96,96", "96,-1,96", "96,96,99999"] {
            assert!(sides(text).is_err(), "{text}");
        }
    }
}
