//! `site-agent embed`: class embeddings, made or brought, and which classes they hold for alike.
//!
//! Every file says in its metadata how it was made. What a study pins is the numbers alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use clap::{Args, Subcommand};
use common::study::CLASS_TABLE_TENSOR;
use common::taxonomy::{Class, Taxonomy};
use data_encoding::HEXLOWER;

use super::error_report::{CliError, Exit};
use super::heat_map::HeatMap;
use super::picture::Picture;
use super::{TaxonomyArg, line, shown};
use crate::client::files;
use crate::model::embedding::EMBEDDING_NAME;
use crate::model::record::{note, write_safetensors_with_note};
use crate::model::similarity::Similarity;
use crate::model::text::{Template, TextModel};
use crate::model::{ClassEmbeddings, DeviceKind, EmbeddingKind, NamedTensors, device};

/// Longest note that is shown.
const SHOWN_NOTE: usize = 600;

/// Commands about class embeddings.
#[derive(Debug, Subcommand)]
pub(super) enum EmbedCommand {
    /// One bit for each class: classes know nothing of each other.
    OneHot(TableArgs),
    /// A class's own bit and those of the organs that it lies in.
    FewHot(TableArgs),
    /// What a CLIP text encoder says of a sentence about each class. You bring its weights.
    Make(MakeArgs),
    /// A table made elsewhere, such as another text encoder's: safetensors with one tensor of a row for each class.
    Import(ImportArgs),
    /// Say which classes a table holds for alike, and draw the cosine similarity of each two.
    Show(ShowArgs),
}

/// Arguments of `embed one-hot` and `embed few-hot`.
#[derive(Debug, Args)]
pub(super) struct TableArgs {
    /// Value of a set bit: larger rows make the controller listen to the class sooner.
    #[arg(long, default_value_t = 1.0)]
    scale: f32,
    #[command(flatten)]
    taxonomy: TaxonomyArg,
    /// Where to; safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `embed make`.
#[derive(Debug, Args)]
pub(super) struct MakeArgs {
    /// Weights of CLIP, such as those of ViT-B/32: safetensors, named as by OpenAI or by Hugging Face.
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The tokeniser's merges: `merges.txt`, or OpenAI's `bpe_simple_vocab_16e6.txt`, gzipped or not.
    #[arg(long, value_name = "FILE")]
    merges: PathBuf,
    /// The tokeniser's vocabulary, `vocab.json`. Without it, tokens are numbered as OpenAI does.
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// The sentence: `v1`, `v2` or `v3` of the paper's Table 1, or your own with `{}` in the place of the class.
    #[arg(long, default_value = "v3", value_name = "TEMPLATE")]
    template: Template,
    #[command(flatten)]
    taxonomy: TaxonomyArg,
    /// Where to; safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `embed import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The table.
    file: PathBuf,
    /// What its numbers are multiplied by: larger rows make the controller listen to the class sooner.
    #[arg(long, default_value_t = 1.0)]
    scale: f32,
    #[command(flatten)]
    taxonomy: TaxonomyArg,
    /// Where to; safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `embed show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// A table of class embeddings.
    file: PathBuf,
    /// Where the picture goes: `.svg`, or `.html` for a page. Nothing is loaded from elsewhere.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How many pairs of classes to name.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pairs: usize,
    #[command(flatten)]
    taxonomy: TaxonomyArg,
}

pub(super) fn run(command: &EmbedCommand) -> Result<(), CliError> {
    match command {
        EmbedCommand::OneHot(TableArgs { scale, taxonomy, out }) => {
            let table = ClassEmbeddings::one_hot(taxonomy.read()?.len(), *scale)?;
            write(out, &table, &format!("one-hot, scale {scale}"))
        }
        EmbedCommand::FewHot(TableArgs { scale, taxonomy, out }) => {
            let table = ClassEmbeddings::few_hot(&parent_rows(&taxonomy.read()?), *scale)?;
            write(out, &table, &format!("few-hot, scale {scale}"))
        }
        EmbedCommand::Make(args) => make(args, &args.taxonomy.read()?),
        EmbedCommand::Import(args) => import(args, &args.taxonomy.read()?),
        EmbedCommand::Show(args) => show(args, &args.taxonomy.read()?),
    }
}

/// For each class, the rows of the organs that it lies in: of both kidneys, where it may be in either.
fn parent_rows(taxonomy: &Taxonomy) -> Vec<Vec<usize>> {
    let rows = |class: &Class| class.parents.iter().map(|parent| parent.channel()).collect::<Vec<_>>();
    taxonomy.classes().iter().map(rows).collect()
}

fn make(args: &MakeArgs, taxonomy: &Taxonomy) -> Result<(), CliError> {
    let weights = read(&args.weights)?;
    let merges = read(&args.merges)?;
    let vocabulary = args.vocab.as_deref().map(read).transpose()?;
    let hint = "weights and tokeniser must be of one CLIP model: see the operators' guide, section 4";
    let model = TextModel::new(&weights, &merges, vocabulary.as_deref(), &device(DeviceKind::Cpu)?)
        .map_err(|error| CliError::new(error).or_hint(hint))?;
    let prompts: Vec<String> =
        taxonomy.classes().iter().map(|class| args.template.prompt(&class.prompt_name)).collect();
    let table = ClassEmbeddings::new(EmbeddingKind::Imported, model.embed(&prompts)?)?;
    let mut note = format!("CLIP text encoder; prompt {:?}", args.template.to_string());
    note.push_str(&format!("; weights sha256 {}; merges sha256 {}", sha256(&weights), sha256(&merges)));
    if let Some(vocabulary) = &vocabulary {
        note.push_str(&format!("; vocabulary sha256 {}", sha256(vocabulary)));
    }
    write(&args.out, &table, &note)
}

fn import(args: &ImportArgs, taxonomy: &Taxonomy) -> Result<(), CliError> {
    let bytes = read(&args.file)?;
    let table = table_of(&bytes, &args.file)?;
    check_rows(&table, taxonomy)?;
    // What the file says of itself is worth more than where we found it.
    let mut note = note(&bytes).unwrap_or_else(|| format!("imported; file sha256 {}", sha256(&bytes)));
    if args.scale != 1.0 {
        note.push_str(&format!("; times {}", args.scale));
    }
    write(&args.out, &scaled(&table, args.scale)?, &note)
}

fn scaled(table: &ClassEmbeddings, scale: f32) -> Result<ClassEmbeddings, CliError> {
    let mut values = table.table().clone();
    values.values_mut().iter_mut().for_each(|value| *value *= scale);
    Ok(ClassEmbeddings::new(table.kind(), values)?)
}

fn show(args: &ShowArgs, taxonomy: &Taxonomy) -> Result<(), CliError> {
    let bytes = read(&args.file)?;
    let table = table_of(&bytes, &args.file)?;
    check_rows(&table, taxonomy)?;
    // Before anything is said: a picture of the wrong kind is a wrong command.
    let picture = args.out.as_deref().map(|out| Ok::<_, CliError>((out, Picture::of(out)?))).transpose()?;
    let similarity = Similarity::of(&table);
    let names: Vec<String> = taxonomy.classes().iter().map(|class| class.name.clone()).collect();
    line(format!("{}: {}", shown(&args.file), size(&table)));
    if let Some(note) = note(&bytes) {
        line(format!("made: {}", one_line(&note)));
    }
    line("most alike (cosine similarity):");
    for (a, b, cosine) in similarity.pairs().into_iter().take(args.pairs) {
        line(format!("{cosine:>8.4}  {} and {}", names[a], names[b]));
    }
    if let Some((out, picture)) = picture {
        let title = format!("Cosine similarity of class embeddings: {}", shown(&args.file));
        let rows = (0..similarity.rows()).map(|row| similarity.row(row)).collect();
        let map = HeatMap { title: &title, names: &names, rows };
        files::write(out, picture.text(&title, map.svg()).as_bytes())?;
        line(format!("{}: {} x {}", out.display(), names.len(), names.len()));
    }
    Ok(())
}

/// The table that a model learns, as it is in the file of the model, goes beside it as the embeddings that a study must name. Nothing,
/// where it learns none.
pub(super) fn write_learned_table(model: &Path, tensors: &NamedTensors) -> Result<(), CliError> {
    let Some(table) = tensors.get(CLASS_TABLE_TENSOR) else { return Ok(()) };
    let table = ClassEmbeddings::new(EmbeddingKind::Learned, table.clone())?;
    write(&beside(model), &table, "learned with the model: this is how it begins")
}

/// `model.safetensors` has its embeddings in `model-embeddings.safetensors`.
pub(super) fn beside(model: &Path) -> PathBuf {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy();
    model.with_file_name(format!("{stem}-embeddings.safetensors"))
}

/// Reads a table of any kind: what it means is the study's to say.
pub(super) fn read_table(path: &Path) -> anyhow::Result<ClassEmbeddings> {
    table_of(&read(path)?, path)
}

fn table_of(bytes: &[u8], path: &Path) -> anyhow::Result<ClassEmbeddings> {
    ClassEmbeddings::from_safetensors(EmbeddingKind::Imported, bytes)
        .with_context(|| path.display().to_string())
}

/// A table has a row for each class.
pub(super) fn check_rows(table: &ClassEmbeddings, taxonomy: &Taxonomy) -> Result<(), CliError> {
    let (shape, classes) = (table.table().shape(), taxonomy.len());
    if shape.first() == Some(&classes) {
        return Ok(());
    }
    let error = anyhow::anyhow!("the table has shape {shape:?}: expected {classes} rows, one for each class");
    Err(CliError::new(error).exit(Exit::Data).hint("classes of your own are named with --taxonomy FILE"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn write(out: &Path, table: &ClassEmbeddings, note: &str) -> Result<(), CliError> {
    let tensors = NamedTensors::from([(EMBEDDING_NAME.to_owned(), table.table().clone())]);
    files::write(out, &write_safetensors_with_note(&tensors, note)?)?;
    line(format!("{}: {}", out.display(), size(table)));
    Ok(())
}

fn size(table: &ClassEmbeddings) -> String {
    let shape = table.table().shape();
    format!("{} rows of {} numbers", shape[0], shape[1])
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

/// A note of a foreign file, as a line among others that it must not look like.
fn one_line(note: &str) -> String {
    note.chars().filter(|c| !c.is_control()).take(SHOWN_NOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_args(scale: f32, out: &Path) -> TableArgs {
        TableArgs { scale, taxonomy: TaxonomyArg::default(), out: out.to_owned() }
    }

    fn import_scaled(file: &Path, scale: f32, out: &Path) -> Result<(), CliError> {
        let taxonomy = TaxonomyArg::default();
        run(&EmbedCommand::Import(ImportArgs { file: file.to_owned(), scale, taxonomy, out: out.to_owned() }))
    }

    /// The table that `configs/embeddings` brings, and what its rows should know.
    #[test]
    fn shipped_sentence_embeddings_hold_left_and_right_of_an_organ_for_alike() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/embeddings/minilm-l6-v2.safetensors");
        let table = read_table(Path::new(path)).unwrap();
        assert_eq!(table.table().shape(), [32, 384]);
        let similarity = Similarity::of(&table);
        let pairs = similarity.pairs();
        assert!(pairs[0].2 < 0.9999, "no two classes are the same: {:?}", pairs[0]);
        let row = |name: &str| Taxonomy::standard().find(name).unwrap().id.channel();
        let cosine = |a, b| similarity.row(row(a))[row(b)];
        assert!(cosine("Right Kidney", "Left Kidney") > cosine("Right Kidney", "Right Lung"));
        assert!(cosine("Liver", "Liver Tumor") > cosine("Liver", "Colon Tumor"));
    }

    #[test]
    fn a_lesion_has_the_bits_of_all_organs_that_it_may_lie_in() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("table");
        run(&EmbedCommand::FewHot(table_args(4.0, &file))).unwrap();
        let table = read_table(&file).unwrap();
        let bits = |name: &str| -> Vec<usize> {
            let row = Taxonomy::standard().find(name).unwrap().id.channel();
            let values = table.table().values()[row * 32..][..32].iter().zip(1..);
            values.filter(|(value, _)| **value == 4.0).map(|(_, id)| id).collect()
        };
        assert_eq!(bits("Liver"), [6]);
        assert_eq!(bits("Liver Tumor"), [6, 27]);
        assert_eq!(bits("Kidney Tumor"), [2, 3, 26]);
        assert_eq!(bits("Lung Tumor"), [16, 17, 30]);
        assert_eq!(bits("Kidney Cyst"), [2, 3, 32]);
        assert_eq!(table.table().values().iter().filter(|value| **value != 0.0).count(), 32 + 10);
    }

    #[test]
    fn a_written_table_says_how_it_was_made_and_import_keeps_that() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
        run(&EmbedCommand::OneHot(table_args(2.0, &first))).unwrap();
        import_scaled(&first, 1.0, &second).unwrap();
        assert_eq!(note(&fs::read(&first).unwrap()).as_deref(), Some("one-hot, scale 2"));
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    }

    #[test]
    fn an_imported_table_can_be_scaled_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
        run(&EmbedCommand::OneHot(table_args(1.0, &first))).unwrap();
        import_scaled(&first, 4.0, &second).unwrap();
        assert_eq!(note(&fs::read(&second).unwrap()).as_deref(), Some("one-hot, scale 1; times 4"));
        let sum: f32 = read_table(&second).unwrap().table().values().iter().sum();
        assert_eq!(sum, 4.0 * 32.0);
        assert!(import_scaled(&first, f32::NAN, &second).is_err());
    }

    #[test]
    fn a_table_is_drawn_as_svg_or_as_a_page_and_as_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("table");
        run(&EmbedCommand::FewHot(table_args(1.0, &table))).unwrap();
        let show = |name: &str| {
            let out = folder.path().join(name);
            let taxonomy = TaxonomyArg::default();
            let args = ShowArgs { file: table.clone(), out: Some(out.clone()), pairs: 1, taxonomy };
            run(&EmbedCommand::Show(args)).map(|()| fs::read_to_string(out).unwrap())
        };
        assert!(show("a.svg").unwrap().contains("<title>Liver, Liver Tumor: 0.7071</title>"));
        assert!(show("a.html").unwrap().contains("<svg"));
        assert!(show("a.png").unwrap_err().text().contains(".svg or .html"));
    }

    #[test]
    fn a_table_of_other_classes_has_their_rows_and_is_no_table_of_the_standard_ones() {
        let folder = tempfile::tempdir().unwrap();
        let [table, classes] = ["table", "classes.toml"].map(|name| folder.path().join(name));
        let two = "[[class]]\nid = 1\nname = \"Heart\"\nkind = \"organ\"\n\
                   [[class]]\nid = 2\nname = \"Heart Tumour\"\nkind = \"tumour\"\nparents = [1]\n";
        fs::write(&classes, two).unwrap();
        let taxonomy = TaxonomyArg { taxonomy: Some(classes) };
        let args = TableArgs { taxonomy: taxonomy.clone(), ..table_args(1.0, &table) };
        run(&EmbedCommand::FewHot(args)).unwrap();
        assert_eq!(read_table(&table).unwrap().table().values(), [1.0, 0.0, 1.0, 1.0]);
        let show = |taxonomy| {
            run(&EmbedCommand::Show(ShowArgs { file: table.clone(), out: None, pairs: 1, taxonomy }))
        };
        show(taxonomy).unwrap();
        assert!(show(TaxonomyArg::default()).unwrap_err().text().contains("--taxonomy"));
    }

    #[test]
    fn a_note_is_one_short_line() {
        assert_eq!(one_line("a\u{1b}[31mb\nmost alike:"), "a[31mbmost alike:");
        assert_eq!(one_line(&"x".repeat(10_000)).len(), SHOWN_NOTE);
    }
}
