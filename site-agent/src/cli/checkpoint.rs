//! `site-agent model import` and `model export`: to and from the files of the reference's PyTorch code.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use common::taxonomy::Taxonomy;

use super::embed::{beside, write_learned_table};
use super::error_report::{CliError, Exit};
use super::{embed, line, model, shown};
use crate::client::files;
use crate::model::checkpoint::{Checkpoint, CheckpointError, Imported, Part, write_pytorch};
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::head::FEATURE_WIDTH;
use crate::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, HostTensor, NamedTensors, UniversalModel,
    device, parameters,
};

/// Arguments of `model import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// A checkpoint of PyTorch (.pth, .pt). Nothing in it is executed.
    file: PathBuf,
    /// Backbone and width (TOML), as in the study's section `[model]`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The class embeddings of a checkpoint that brings none, such as a backbone alone.
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    /// Take the backbone and leave the head at its initial values.
    #[arg(long)]
    backbone_only: bool,
    /// Of the head's initial values.
    #[arg(long, default_value_t = 0, requires = "backbone_only")]
    seed: u64,
    /// Where to; safetensors. The checkpoint's class embeddings, or the table that it has learnt in their place, go beside it, to
    /// NAME-embeddings.safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `model export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A model (safetensors).
    file: PathBuf,
    /// For whom.
    #[arg(long)]
    format: Format,
    /// The class embeddings that the model was trained with; they go into the file.
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    /// Where to.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Formats of an exported model.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Names and numbers, for any program.
    Safetensors,
    /// What `torch.load` and the reference's own code read.
    Pytorch,
}

pub(super) fn import(args: &ImportArgs) -> Result<(), CliError> {
    let part = if args.backbone_only { Part::Backbone } else { Part::Whole };
    let imported = read_checkpoint(&args.file, part).with_context(|| args.file.display().to_string())?;
    let given = args.embeddings.as_deref().map(read_table).transpose()?;
    if given.is_some() && brings_embeddings(&imported) {
        let own = anyhow::anyhow!("{} brings class embeddings of its own", shown(&args.file));
        return Err(CliError::new(own).exit(Exit::Data).hint("leave --embeddings out"));
    }
    let classes = Taxonomy::standard().len();
    let blank = blank_model(args, &imported, given.as_ref(), classes)?;
    imported
        .check(&parameters::shapes(&blank), classes)
        .with_context(|| format!("{} and this configuration", args.file.display()))
        .map_err(|error| CliError::new(error).exit(Exit::Data))?;
    // Before anything is written: values that are no numbers are refused here, not when a study begins.
    check_finite(&args.file, &imported.tensors)?;
    let table = imported.embeddings.map(|table| ClassEmbeddings::new(EmbeddingKind::Imported, table));
    let table = table.transpose()?;
    let mut tensors = if args.backbone_only { blank.export() } else { NamedTensors::new() };
    tensors.extend(imported.tensors);
    model::write(&args.out, &tensors)?;
    line(format!("{}: {}", args.out.display(), model::size(&tensors)));
    match table {
        Some(table) => write_table(&beside(&args.out), table.table()),
        None => write_learned_table(&args.out, &tensors),
    }
}

/// Fixed ones, or a table that is trained with the network.
fn brings_embeddings(imported: &Imported) -> bool {
    imported.embeddings.is_some() || imported.tensors.contains_key(&format!("{EMBEDDING_NAME}.weight"))
}

fn check_finite(file: &Path, tensors: &NamedTensors) -> Result<(), CliError> {
    let is_damaged = |tensor: &HostTensor| tensor.values().iter().any(|value| !value.is_finite());
    let Some((name, _)) = tensors.iter().find(|(_, tensor)| is_damaged(tensor)) else { return Ok(()) };
    let error = anyhow::anyhow!("{}: tensor `{name}` has values that are no finite numbers", shown(file));
    Err(CliError::new(error)
        .exit(Exit::Data)
        .hint("the file is damaged, or the training diverged: take an earlier checkpoint"))
}

fn read_checkpoint(path: &Path, part: Part) -> Result<Imported, CheckpointError> {
    Imported::read(&mut Checkpoint::open(File::open(path)?)?, part)
}

/// A model whose trained tensors are those that the checkpoint must have.
fn blank_model(
    args: &ImportArgs,
    imported: &Imported,
    given: Option<&HostTensor>,
    classes: usize,
) -> Result<UniversalModel, CliError> {
    let device = device(DeviceKind::Cpu)?;
    if imported.tensors.contains_key(&format!("{EMBEDDING_NAME}.weight")) {
        let embedding = EmbeddingConfig { kind: EmbeddingKind::Learned, rows: classes, width: FEATURE_WIDTH };
        let config = model::configuration(&args.config, embedding)?;
        return Ok(UniversalModel::new(&config, None, args.seed, &device)?);
    }
    let width = embedding_width(imported, given).ok_or_else(|| {
        CliError::new(anyhow::anyhow!("{} brings no class embeddings", shown(&args.file)))
            .hint("name those that the model will be used with: --embeddings FILE")
    })?;
    // The values are not looked at: only the width has a part in the shapes of trained tensors.
    let table =
        ClassEmbeddings::new(EmbeddingKind::Imported, HostTensor::from_fn(vec![classes, width], |_| 0.0))?;
    let config =
        model::configuration(&args.config, EmbeddingConfig { kind: table.kind(), rows: classes, width })?;
    Ok(UniversalModel::new(&config, Some(&table), args.seed, &device)?)
}

/// The width of the class embeddings: of the checkpoint's own, of those given, or as the text layer reads them.
fn embedding_width(imported: &Imported, given: Option<&HostTensor>) -> Option<usize> {
    let table = imported.embeddings.as_ref().or(given);
    let reader = imported.tensors.get("text_to_vision.weight");
    table.or(reader)?.shape().get(1).copied().filter(|&width| width > 0)
}

fn write_table(path: &Path, table: &HostTensor) -> Result<(), CliError> {
    let rows = table.shape().first().copied().unwrap_or(0);
    let width = table.shape().get(1).copied().unwrap_or(0);
    model::write(path, &BTreeMap::from([(EMBEDDING_NAME.to_owned(), table.clone())]))?;
    line(format!("{}: {rows} rows of {width} numbers", path.display()));
    Ok(())
}

pub(super) fn export(args: &ExportArgs) -> Result<(), CliError> {
    let mut tensors = model::read(&args.file)?;
    let table = args.embeddings.as_deref().map(read_table).transpose()?;
    match args.format {
        Format::Safetensors => {
            tensors.extend(table.map(|table| (EMBEDDING_NAME.to_owned(), table)));
            model::write(&args.out, &tensors)?;
        }
        Format::Pytorch => {
            if tensors.contains_key("text_to_vision.weight") && table.is_none() {
                let error = anyhow::anyhow!("{} is used with class embeddings", shown(&args.file));
                return Err(CliError::new(error)
                    .hint("the reference keeps them in the checkpoint: name them with --embeddings FILE"));
            }
            files::write(&args.out, &write_pytorch(&tensors, table.as_ref())?)?;
        }
    }
    line(format!("{}: {}", args.out.display(), model::size(&tensors)));
    Ok(())
}

fn read_table(path: &Path) -> anyhow::Result<HostTensor> {
    Ok(embed::read_table(path)?.table().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::read_safetensors;

    const CONFIG: &str = "backbone = \"unet\"\nwidth = 8\n";

    /// A model of width 8, its embeddings, and a folder with both and their configuration.
    fn folder() -> (tempfile::TempDir, NamedTensors, HostTensor) {
        let folder = tempfile::tempdir().unwrap();
        let table = HostTensor::from_fn(vec![32, 20], |i| i as f32);
        let embeddings = ClassEmbeddings::new(EmbeddingKind::Imported, table.clone()).unwrap();
        let config = folder.path().join("model.toml");
        std::fs::write(&config, CONFIG).unwrap();
        let embedding = EmbeddingConfig { kind: EmbeddingKind::Imported, rows: 32, width: 20 };
        let config = model::configuration(&config, embedding).unwrap();
        let model =
            UniversalModel::new(&config, Some(&embeddings), 5, &device(DeviceKind::Cpu).unwrap()).unwrap();
        let tensors = model.export();
        model::write(&folder.path().join("model.safetensors"), &tensors).unwrap();
        model::write(
            &folder.path().join("table.safetensors"),
            &NamedTensors::from([(EMBEDDING_NAME.to_owned(), table.clone())]),
        )
        .unwrap();
        (folder, tensors, table)
    }

    fn export_args(folder: &Path, format: Format) -> ExportArgs {
        ExportArgs {
            file: folder.join("model.safetensors"),
            format,
            embeddings: Some(folder.join("table.safetensors")),
            out: folder.join("exported"),
        }
    }

    fn import_args(folder: &Path) -> ImportArgs {
        ImportArgs {
            file: folder.join("exported"),
            config: folder.join("model.toml"),
            embeddings: None,
            backbone_only: false,
            seed: 0,
            out: folder.join("imported.safetensors"),
        }
    }

    fn read(path: &Path) -> NamedTensors {
        read_safetensors(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_model_goes_to_pytorch_and_back_to_the_bit() {
        let (folder, tensors, table) = folder();
        export(&export_args(folder.path(), Format::Pytorch)).unwrap();
        import(&import_args(folder.path())).unwrap();
        assert_eq!(read(&folder.path().join("imported.safetensors")), tensors);
        let beside = read(&folder.path().join("imported-embeddings.safetensors"));
        assert_eq!(beside, NamedTensors::from([(EMBEDDING_NAME.to_owned(), table)]));
    }

    #[test]
    fn a_learned_table_comes_beside_the_model_for_the_study_that_trains_it() {
        let (folder, ..) = folder();
        let embedding = EmbeddingConfig { kind: EmbeddingKind::Learned, rows: 32, width: FEATURE_WIDTH };
        let config = model::configuration(&folder.path().join("model.toml"), embedding).unwrap();
        let learned =
            UniversalModel::new(&config, None, 5, &device(DeviceKind::Cpu).unwrap()).unwrap().export();
        let args = import_args(folder.path());
        files::write(&args.file, &write_pytorch(&learned, None).unwrap()).unwrap();
        import(&args).unwrap();
        assert_eq!(read(&args.out), learned);
        let table = learned["organ_embedding.weight"].clone();
        assert_eq!(read(&beside(&args.out)), NamedTensors::from([(EMBEDDING_NAME.to_owned(), table)]));
    }

    #[test]
    fn the_other_format_has_the_embeddings_too() {
        let (folder, mut tensors, table) = folder();
        export(&export_args(folder.path(), Format::Safetensors)).unwrap();
        tensors.insert(EMBEDDING_NAME.to_owned(), table);
        assert_eq!(read(&folder.path().join("exported")), tensors);
    }

    #[test]
    fn an_export_for_the_reference_needs_the_embeddings() {
        let (folder, ..) = folder();
        let args = ExportArgs { embeddings: None, ..export_args(folder.path(), Format::Pytorch) };
        assert!(export(&args).unwrap_err().text().contains("--embeddings"));
    }

    #[test]
    fn a_backbone_comes_with_a_fresh_head_for_the_embeddings_given() {
        let (folder, tensors, _) = folder();
        export(&export_args(folder.path(), Format::Pytorch)).unwrap();
        let mut args = ImportArgs { backbone_only: true, seed: 9, ..import_args(folder.path()) };
        assert!(import(&args).unwrap_err().text().contains("--embeddings"));
        args.embeddings = Some(folder.path().join("table.safetensors"));
        import(&args).unwrap();
        let imported = read(&args.out);
        assert!(imported.keys().eq(tensors.keys()));
        for (name, tensor) in imported {
            // Normalisations start at 1 and 0 whatever the seed.
            let may_differ =
                !name.starts_with("backbone.") && tensor.values().iter().any(|&v| v != 0.0 && v != 1.0);
            assert_eq!(tensor != tensors[&name], may_differ, "{name}");
        }
    }

    #[test]
    fn another_width_is_one_table_of_differences_and_unusable_data() {
        let (folder, ..) = folder();
        export(&export_args(folder.path(), Format::Pytorch)).unwrap();
        std::fs::write(folder.path().join("model.toml"), CONFIG.replace('8', "16")).unwrap();
        let error = import(&import_args(folder.path())).unwrap_err().text();
        assert!(error.contains("0 missing, 0 unknown"), "{error}");
        assert!(error.contains("backbone.down_tr64.ops.0.conv1.weight"), "{error}");
    }

    #[test]
    fn values_that_are_no_numbers_are_refused_before_anything_is_written() {
        let (folder, tensors, table) = folder();
        let args = import_args(folder.path());
        let damaged = |values: &HostTensor| {
            let mut values = values.clone();
            values.values_mut()[3] = f32::NAN;
            values
        };
        let mut weights = tensors.clone();
        weights.insert("GAP.3.bias".to_owned(), damaged(&tensors["GAP.3.bias"]));
        for (weights, table, words) in
            [(&weights, &table, "`GAP.3.bias`"), (&tensors, &damaged(&table), "class embeddings")]
        {
            files::write(&args.file, &write_pytorch(weights, Some(table)).unwrap()).unwrap();
            let refused = import(&args).unwrap_err().text();
            assert!(refused.contains(words) && refused.contains("finite"), "{refused}");
            assert!(!args.out.exists() && !beside(&args.out).exists(), "{words}");
        }
    }

    #[test]
    fn embeddings_beside_those_of_the_checkpoint_are_refused_and_not_ignored() {
        let (folder, ..) = folder();
        export(&export_args(folder.path(), Format::Pytorch)).unwrap();
        let embeddings = Some(folder.path().join("table.safetensors"));
        let args = ImportArgs { embeddings, ..import_args(folder.path()) };
        let refused = import(&args).unwrap_err().text();
        assert!(refused.contains("of its own") && !args.out.exists(), "{refused}");
    }

    #[test]
    fn a_file_that_is_no_checkpoint_says_what_to_do() {
        let (folder, ..) = folder();
        let args = ImportArgs { file: folder.path().join("model.safetensors"), ..import_args(folder.path()) };
        assert!(import(&args).unwrap_err().text().contains("hint: "));
    }
}
