//! `site-agent model adapt`: a trained model for other classes, as the start of a study or of `site-agent finetune`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use common::study::CLASS_TABLE_TENSOR;
use common::taxonomy::Taxonomy;

use super::embed::{check_rows, read_table, write_learned_table};
use super::error_report::{CliError, Exit};
use super::{TaxonomyArg, line, model, read_taxonomy, shown};
use crate::model::adapt::{Adapted, AdaptedPart, Controller, Origin, adapt};
use crate::model::head::FEATURE_WIDTH;
use crate::model::{
    ClassEmbeddings, DeviceKind, EmbeddingConfig, EmbeddingKind, NamedTensors, UniversalModel, device,
};

/// Most names of classes in one row of the table.
const SHOWN_CLASSES: usize = 6;

/// Arguments of `model adapt`.
#[derive(Debug, Args)]
pub(super) struct AdaptArgs {
    /// A trained model (safetensors).
    file: PathBuf,
    /// Its backbone and width (TOML), as in the study's section `[model]`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The embeddings of the new classes. Without them the model must have a learned class table, and keeps one: for the study it goes
    /// beside the model too, to NAME-embeddings.safetensors.
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    #[command(flatten)]
    taxonomy: TaxonomyArg,
    /// The classes (TOML) that a learned class table was trained for, where they are not the 32 of the universal model.
    #[arg(long, value_name = "FILE")]
    from_taxonomy: Option<PathBuf>,
    /// The controller, and the layer that reads the embeddings.
    #[arg(long, value_enum, default_value_t = Choice::Keep)]
    controller: Choice,
    /// Of what begins anew.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to; safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What becomes of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// It stays, if the embeddings have the width that the model reads.
    Keep,
    /// It begins anew.
    Fresh,
}

pub(super) fn run(args: &AdaptArgs) -> Result<(), CliError> {
    let trained = model::read(&args.file)?;
    let (from, to) = (read_taxonomy(args.from_taxonomy.as_deref())?, args.taxonomy.read()?);
    let controller = match args.controller {
        Choice::Keep => Controller::Keep,
        Choice::Fresh => Controller::Fresh,
    };
    let initial = initial_model(args, &trained, &to)?;
    let Adapted { tensors, parts } = adapt(&trained, initial, controller, &from, &to)
        .with_context(|| format!("{} and this configuration", args.file.display()))
        .map_err(|error| CliError::new(error).exit(Exit::Data))?;
    model::write(&args.out, &tensors)?;
    table(&parts).into_iter().for_each(line);
    line(format!("{}: {}", args.out.display(), model::size(&tensors)));
    write_learned_table(&args.out, &tensors)
}

/// A fresh model for the new classes.
fn initial_model(
    args: &AdaptArgs,
    trained: &NamedTensors,
    taxonomy: &Taxonomy,
) -> Result<NamedTensors, CliError> {
    let table = args.embeddings.as_deref().map(|path| embeddings(path, taxonomy)).transpose()?;
    let (kind, width) = match &table {
        Some(table) => (table.kind(), table.table().shape().get(1).copied().unwrap_or(0)),
        None if trained.contains_key(CLASS_TABLE_TENSOR) => (EmbeddingKind::Learned, FEATURE_WIDTH),
        None => {
            let reads = anyhow::anyhow!("{} is used with class embeddings", shown(&args.file));
            let hint = "`site-agent embed` makes those of the new classes: name them with --embeddings FILE";
            return Err(CliError::new(reads).hint(hint));
        }
    };
    let config = model::configuration(&args.config, EmbeddingConfig { kind, rows: taxonomy.len(), width })?;
    let model = UniversalModel::new(&config, table.as_ref(), args.seed, &device(DeviceKind::Cpu)?)?;
    Ok(model.export())
}

fn embeddings(path: &Path, taxonomy: &Taxonomy) -> Result<ClassEmbeddings, CliError> {
    let table = read_table(path)?;
    check_rows(&table, taxonomy).map_err(|error| error.about(path.display().to_string()))?;
    Ok(table)
}

/// One line for each part: what it is, and where it comes from.
fn table(parts: &[AdaptedPart]) -> Vec<String> {
    let head = format!("{:<16} {:>7} {:>11}  origin", "part", "tensors", "numbers");
    let row = |part: &AdaptedPart| {
        let origin = match &part.origin {
            Origin::Kept => "kept".to_owned(),
            Origin::Fresh(why) => format!("fresh: {why}"),
            Origin::Rows { kept, fresh } => {
                format!("rows kept: {}; fresh: {}", some_of(kept), some_of(fresh))
            }
        };
        format!("{:<16} {:>7} {:>11}  {origin}", part.name, part.tensors, part.numbers)
    };
    std::iter::once(head).chain(parts.iter().map(row)).collect()
}

/// The first names, and how many more there are.
fn some_of(names: &[String]) -> String {
    match names.len() {
        0 => "none".to_owned(),
        n if n > SHOWN_CLASSES => {
            format!("{} and {} more", names[..SHOWN_CLASSES].join(", "), n - SHOWN_CLASSES)
        }
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::HostTensor;
    use crate::model::embedding::EMBEDDING_NAME;

    /// A model of the standard classes that reads embeddings 20 wide, and embeddings of two classes, 20 and 7 wide.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("model.toml"), "backbone = \"unet\"\nwidth = 8\n").unwrap();
        let two = "[[class]]\nid = 1\nname = \"Heart\"\nkind = \"organ\"\n\
                   [[class]]\nid = 2\nname = \"Liver\"\nkind = \"organ\"\n";
        fs::write(path("two.toml"), two).unwrap();
        for (name, shape) in [("all", [32, 20]), ("same", [2, 20]), ("other", [2, 7])] {
            let table = HostTensor::from_fn(shape.to_vec(), |i| i as f32);
            let tensors = NamedTensors::from([(EMBEDDING_NAME.to_owned(), table)]);
            model::write(&path(&format!("{name}.safetensors")), &tensors).unwrap();
        }
        let args = args(folder.path(), Some("all"), "trained");
        let args = AdaptArgs { taxonomy: TaxonomyArg::default(), ..args };
        let trained = initial_model(&args, &NamedTensors::new(), &Taxonomy::standard()).unwrap();
        model::write(&path("trained.safetensors"), &trained).unwrap();
        folder
    }

    fn args(folder: &Path, embeddings: Option<&str>, out: &str) -> AdaptArgs {
        let path = |name: &str| folder.join(format!("{name}.safetensors"));
        AdaptArgs {
            file: path("trained"),
            config: folder.join("model.toml"),
            embeddings: embeddings.map(path),
            taxonomy: TaxonomyArg { taxonomy: Some(folder.join("two.toml")) },
            from_taxonomy: None,
            controller: Choice::Keep,
            seed: 3,
            out: path(out),
        }
    }

    #[test]
    fn a_model_is_adapted_to_the_embeddings_named_and_only_fresh_parts_follow_the_seed() {
        let folder = folder();
        let adapted = |args: AdaptArgs| {
            run(&args).unwrap();
            model::read(&args.out).unwrap()
        };
        let trained = model::read(&folder.path().join("trained.safetensors")).unwrap();
        assert_eq!(adapted(args(folder.path(), Some("same"), "a")), trained);

        let one = adapted(args(folder.path(), Some("other"), "b"));
        let two = adapted(AdaptArgs { seed: 4, ..args(folder.path(), Some("other"), "c") });
        assert!(one["text_to_vision.weight"] != two["text_to_vision.weight"]);
        assert_eq!(one["controller.weight"], trained["controller.weight"]);
        let fresh =
            AdaptArgs { controller: Choice::Fresh, seed: 4, ..args(folder.path(), Some("same"), "d") };
        let fresh = adapted(fresh);
        assert!(fresh["controller.weight"] != trained["controller.weight"]);
        assert!(
            trained.iter().all(|(name, tensor)| !name.starts_with("backbone.") || fresh[name] == *tensor)
        );
    }

    #[test]
    fn what_cannot_be_adapted_is_refused_with_a_way_out() {
        let folder = folder();
        let refused = |args: AdaptArgs| {
            let words = run(&args).unwrap_err().text();
            assert!(!args.out.exists(), "{words}");
            words
        };
        let words = refused(args(folder.path(), None, "out"));
        assert!(words.contains("--embeddings FILE"), "{words}");
        let words = refused(args(folder.path(), Some("all"), "out"));
        assert!(words.contains("all.safetensors") && words.contains("expected 2 rows"), "{words}");
        fs::write(folder.path().join("model.toml"), "backbone = \"unet\"\nwidth = 16\n").unwrap();
        let words = refused(args(folder.path(), Some("same"), "out"));
        assert!(words.contains("backbone.down_tr64.ops.0.conv1.weight"), "{words}");
    }

    #[test]
    fn the_table_says_of_each_part_where_it_comes_from() {
        let names = |n: usize| (0..n).map(|i| format!("class {i}")).collect::<Vec<_>>();
        let part = |name, origin| AdaptedPart { name, tensors: 2, numbers: 1000, origin };
        let parts = [
            part("backbone", Origin::Kept),
            part("organ_embedding", Origin::Rows { kept: names(8), fresh: names(0) }),
            part("controller", Origin::Fresh("asked for".to_owned())),
        ];
        insta::assert_snapshot!(table(&parts).join("\n"), @r"
        part             tensors     numbers  origin
        backbone               2        1000  kept
        organ_embedding        2        1000  rows kept: class 0, class 1, class 2, class 3, class 4, class 5 and 2 more; fresh: none
        controller             2        1000  fresh: asked for
        ");
    }
}
