//! `site-agent features`: where a network keeps its classes, as the paper's Figure 6 shows it. Nothing leaves.
//!
//! Voxels of each class of this site's own labels, what the network holds for them, laid out in a plane by t-SNE.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use common::ids::ClassId;
use common::rng::KeyedRng;
use common::study::Study;
use common::taxonomy::Taxonomy;

use super::chosen_model::ChosenModel;
use super::chosen_scans::ChosenScans;
use super::error_report::{CliError, Exit};
use super::picture::Picture;
use super::predict::chosen_classes;
use super::scatter::{Group, Scatter};
use super::{ConfigArgs, limit_threads, line};
use crate::client::files;
use crate::data::dataset::Case;
use crate::data::prepared::PreparedCase;
use crate::infer::colours;
use crate::infer::features::{FeaturePoint, VoxelChoice, draw, feature_points};
use crate::infer::network::StudyNetwork;
use crate::infer::predict::InferenceSettings;
use crate::infer::sliding_window::WindowPlan;
use crate::infer::tsne::{MOST_POINTS, TsneSettings, tsne};
use crate::model::FeatureLayer;
use crate::train::trainer::Cancel;

/// Steps of t-SNE, as in its authors' and others' programs.
const STEPS: usize = 1000;

/// Arguments of `features`.
#[derive(Debug, Args)]
pub(super) struct FeaturesArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    chosen: ChosenModel,
    #[command(flatten)]
    chosen_scans: ChosenScans,
    /// How many scans are looked at, spread over all there are.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    scans: u32,
    /// How many voxels of each class are looked at in each scan.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    voxels: u32,
    /// The classes, by name or number, such as `liver,"liver tumor"`; default: all.
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    classes: Vec<String>,
    /// Which numbers of a voxel are compared.
    #[arg(long, value_enum, default_value_t = Layer::Decoder)]
    layer: Layer,
    /// About how many neighbours t-SNE gives to a voxel.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    perplexity: u32,
    /// The same seed draws the same voxels and the same picture.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the picture goes: `.svg`, or `.html` for a page. Nothing is loaded from elsewhere.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Where features are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layer {
    /// The decoder's output: 64 numbers in the paper's U-Net, 48 in its Swin UNETR.
    Decoder,
    /// The 8 numbers that the head makes of it: all that the classes' own networks see.
    Head,
}

impl Layer {
    fn words(self) -> &'static str {
        match self {
            Self::Decoder => "the decoder's output",
            Self::Head => "the 8 numbers that all classes read",
        }
    }
}

impl From<Layer> for FeatureLayer {
    fn from(layer: Layer) -> Self {
        match layer {
            Layer::Decoder => Self::Decoder,
            Layer::Head => Self::Head,
        }
    }
}

pub(super) fn run(args: &FeaturesArgs) -> Result<(), CliError> {
    // Before any scan is read: a picture of the wrong kind is a wrong command.
    let picture = Picture::of(&args.out)?;
    let config = args.config.read()?;
    limit_threads(config.threads)?;
    let document = args.chosen.study(&config)?;
    let study = document.study();
    let classes = chosen_classes(&args.classes, &study.taxonomy)?;
    let cases = args.chosen_scans.cases(&config, &study.taxonomy)?;
    let network = args.chosen.network(&config, &document, Cancel::default())?;
    let found = collect(args, study, &network, &spread(cases, args.scans as usize), &classes)?;
    let points = usable(found, args.seed)?;
    line(format!("t-SNE of {} voxels", points.len()));
    let groups = lay_out(points, &args.tsne(), &study.taxonomy);
    let title = format!("Voxels by {} (t-SNE)", args.layer.words());
    let note = format!(
        "study {}, perplexity {}, seed {}: neighbours are alike; distances between groups mean little",
        document.digest().short(),
        args.perplexity,
        args.seed
    );
    let svg = Scatter { title: &title, note: &note, groups: &groups }.svg();
    files::write(&args.out, picture.text(&title, svg).as_bytes())?;
    line(format!("{}: {} classes", args.out.display(), groups.len()));
    Ok(())
}

impl FeaturesArgs {
    fn tsne(&self) -> TsneSettings {
        TsneSettings { perplexity: f64::from(self.perplexity), steps: STEPS, seed: self.seed }
    }
}

/// `n` of these, evenly spread over their order; all, if there are fewer.
fn spread<T>(all: Vec<T>, n: usize) -> Vec<T> {
    let count = all.len();
    let n = n.min(count);
    let begins_a_share = |&(i, _): &(usize, T)| (i + 1) * n / count > i * n / count;
    all.into_iter().enumerate().filter(begins_a_share).map(|(_, one)| one).collect()
}

/// The features of voxels of each scan, a line for each.
fn collect(
    args: &FeaturesArgs,
    study: &Study,
    network: &StudyNetwork,
    cases: &[Case],
    classes: &[ClassId],
) -> Result<Vec<FeaturePoint>, CliError> {
    let settings = InferenceSettings::of(study);
    let plan = WindowPlan::gaussian(settings.window, settings.overlap);
    let choice = VoxelChoice { taxonomy: &study.taxonomy, classes, voxels: args.voxels as usize };
    let read = network.feature_reader(args.layer.into());
    let mut points = Vec::new();
    for (number, case) in (0..).zip(cases) {
        let prepared = PreparedCase::read(case, &settings.preprocessing, &study.taxonomy)?;
        let mut rng = KeyedRng::new(args.seed).sample(number).purpose("features").rng();
        let found = feature_points(&prepared, &plan, &choice, &mut rng, read.as_ref())?;
        line(format!("{:<40} {:>5} voxels", case.name, found.len()));
        points.extend(found);
    }
    Ok(points)
}

/// As many points as t-SNE takes, drawn at random where there are more.
fn usable(points: Vec<FeaturePoint>, seed: u64) -> Result<Vec<FeaturePoint>, CliError> {
    let data = |what: &str| CliError::new(anyhow::anyhow!("{what}")).exit(Exit::Data);
    if points.is_empty() {
        let hint = "`site-agent check` says which classes the scans annotate; --classes may name others";
        return Err(data("no scan shows any of the classes").hint(hint));
    }
    if points.iter().flat_map(|point| &point.values).any(|value| !value.is_finite()) {
        return Err(data("the network's features are no finite numbers: the model is damaged"));
    }
    if points.len() <= MOST_POINTS {
        return Ok(points);
    }
    line(format!("{MOST_POINTS} of {} voxels are drawn", points.len()));
    Ok(draw(points, MOST_POINTS, &mut KeyedRng::new(seed).purpose("fewer features").rng()))
}

/// The points in a plane, by class.
fn lay_out(points: Vec<FeaturePoint>, settings: &TsneSettings, taxonomy: &Taxonomy) -> Vec<Group> {
    let (classes, values): (Vec<ClassId>, Vec<Vec<f32>>) =
        points.into_iter().map(|point| (point.class, point.values)).unzip();
    let mut groups: BTreeMap<ClassId, Vec<[f64; 2]>> = BTreeMap::new();
    for (class, place) in classes.into_iter().zip(tsne(&values, settings)) {
        groups.entry(class).or_default().push(place);
    }
    let group =
        |(class, points)| Group { name: taxonomy.name(class), colour: colours::colour(class), points };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use common::testing::example_study_with;

    use super::*;
    use crate::data::dataset::read_datasets;
    use crate::infer::network::model_config;
    use crate::model::embedding::EMBEDDING_NAME;
    use crate::model::{ClassEmbeddings, DeviceKind, NamedTensors, UniversalModel, device};
    use crate::phantom::{HOSPITALS, write_hospital};

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: FeaturesArgs,
    }

    fn args(more: &[&str]) -> FeaturesArgs {
        let words = ["features", "--out", "a.svg"].into_iter().chain(more.iter().copied());
        <Command as clap::Parser>::try_parse_from(words).unwrap().args
    }

    #[test]
    fn features_of_a_phantom_are_read_and_laid_out_by_class() {
        let folder = tempfile::tempdir().unwrap();
        let datasets = write_hospital(folder.path(), &HOSPITALS[3], 1, 2, Some([8.0; 3])).unwrap();
        let document = example_study_with(|draft| {
            draft.model.width = 8;
            draft.preprocessing.patch = [32; 3];
            draft.preprocessing.spacing_mm = [8.0; 3];
        });
        let study = document.study();
        let cases = read_datasets(&datasets, folder.path(), &study.taxonomy).unwrap();
        let table = ClassEmbeddings::few_hot(&[const { Vec::new() }; 32], 1.0).unwrap();
        let model =
            UniversalModel::new(&model_config(study), Some(&table), 1, &device(DeviceKind::Cpu).unwrap());
        let embeddings = NamedTensors::from([(EMBEDDING_NAME.to_owned(), table.table().clone())]);
        let weights = model.unwrap().export();
        let network =
            StudyNetwork::build(study, &weights, &embeddings, DeviceKind::Cpu, Cancel::default()).unwrap();
        for (layer, channels) in [("decoder", 16), ("head", 8)] {
            let args = args(&["--layer", layer, "--voxels", "4"]);
            let classes = chosen_classes(&args.classes, &study.taxonomy).unwrap();
            let points = collect(&args, study, &network, &cases, &classes).unwrap();
            assert!(points.iter().all(|point| point.values.len() == channels), "{layer}");
            let count = points.len();
            let groups = lay_out(usable(points, 0).unwrap(), &args.tsne(), &study.taxonomy);
            assert!(groups.iter().any(|group| group.name == "Liver" && group.points.len() == 8));
            assert_eq!(groups.iter().map(|group| group.points.len()).sum::<usize>(), count);
        }
    }

    #[test]
    fn scans_are_spread_over_all_there_are() {
        assert_eq!(spread((0..10).collect(), 3), [3, 6, 9]);
        assert_eq!(spread((0..3).collect(), 5), [0, 1, 2]);
        assert_eq!(spread(Vec::<u8>::new(), 5), [0; 0]);
    }

    #[test]
    fn too_many_points_are_thinned_and_damaged_or_missing_ones_are_refused() {
        let class = ClassId::new(6).unwrap();
        let points = |n: usize, value: f32| vec![FeaturePoint { class, values: vec![value] }; n];
        assert_eq!(usable(points(MOST_POINTS + 1, 0.0), 1).unwrap().len(), MOST_POINTS);
        assert!(usable(points(1, f32::NAN), 1).unwrap_err().text().contains("damaged"));
        assert!(usable(Vec::new(), 1).unwrap_err().text().contains("hint: "));
    }
}
