//! `coordinator demo`: a whole consortium on one machine, as its people would set it up, in separate processes over QUIC.
//!
//! Nothing here is special to a demo but the data: certificates, invites, enrolment, policies, study and report are
//! made by the same commands that a hospital uses. [`process`] sees that no process outlives the demo, `consortium`
//! sets one up, `study` says what is trained. `ablation`, `encodings` and `cross_site` repeat it, each run an `arm`, to say
//! what masking and federation are worth, what class embeddings are worth, and how far each site is from the others.

mod ablation;
mod arm;
mod consortium;
mod cross_site;
mod encodings;
pub mod process;
mod study;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use self::consortium::{Consortium, Member};
use self::study::{Embedding, Network, Settings};
use crate::cli::line;

/// What the demo can be told.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Real NIfTI instead of phantoms: a folder for each trainer with `ct.nii.gz` and `labels.nii.gz` for each case, and
    /// `split.json` or `dataset.toml` to say what is annotated.
    #[arg(long, value_name = "DIR", requires = "held_out")]
    data: Option<PathBuf>,
    /// The held-out scans that go with --data.
    #[arg(long, value_name = "DIR", requires = "data")]
    held_out: Option<PathBuf>,
    /// Label map of the held-out scans, a built-in one or a file. Without it: their folder's `dataset.toml`, or the
    /// `labels.json` beside the labels of each case, which names their values.
    #[arg(long, value_name = "NAME", requires = "data")]
    held_out_labels: Option<String>,
    /// Keep everything in this new folder instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Rounds.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Optimiser steps at each site in a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Phantoms of each trainer.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    cases: u32,
    /// Seed of phantoms, initial model and training.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seed: u64,
    /// The network that is trained. The transformer looks at patches of 64³ and takes much longer a step: ask for few rounds.
    #[arg(long, value_enum, default_value_t = Network::Unet)]
    backbone: Network,
    /// What the network is told of a class.
    #[arg(long, value_enum, default_value_t = Embedding::FewHot)]
    embedding: Embedding,
    /// Repeat without masking, pooled, and each site alone: what masking and federation are worth. Takes long.
    #[arg(long)]
    ablation: bool,
    /// Repeat with each class embedding and seed: what the network gains from being told what classes are. Takes long.
    #[arg(long, conflicts_with_all = ["ablation", "embedding", "seed"])]
    encodings: bool,
    /// Seeds of --encodings [default: 1,2,3].
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', requires = "encodings",
        value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Leave each of four phantom hospitals out once and score the model there, beside models that are pooled, of that
    /// hospital alone, and of all four. Takes long.
    #[arg(long, conflicts_with_all = ["ablation", "encodings", "data"])]
    cross_site: bool,
}

/// Runs the demo, or an experiment that repeats it.
///
/// # Errors
/// Whatever went wrong, with the end of the log of the process that failed.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let programs = Programs::find()?;
    let folder = make_folder(options.keep.as_deref())?;
    line(&format!("everything is in {}", folder.display()));
    let settings = Settings::of(&options);
    let shown = async {
        if options.cross_site {
            return cross_site::run(&programs, &folder, options.cases, &settings).await;
        }
        if options.encodings {
            return encodings::run(&programs, &folder, &options).await;
        }
        let data = prepare_data(&options, &programs, &folder, options.seed).await?;
        if options.ablation {
            return ablation::run(&programs, &folder, &data, &settings).await;
        }
        Consortium { programs: &programs, folder: &folder, members: &data, settings: &settings }
            .run(true)
            .await
            .map(|_| ())
    };
    // Dropping `shown` drops its processes, and a process that is dropped is killed.
    match stop.run_until_cancelled(shown).await {
        Some(result) => result,
        None => bail!("interrupted; what there is lies in {}", folder.display()),
    }
}

/// The two programs, as they lie beside each other.
#[derive(Debug)]
struct Programs {
    coordinator: PathBuf,
    site_agent: PathBuf,
}

impl Programs {
    fn find() -> anyhow::Result<Self> {
        let coordinator = std::env::current_exe().context("finding this program")?;
        let site_agent = coordinator.with_file_name("site-agent");
        if !site_agent.is_file() {
            bail!("{} does not exist: build it with `cargo build --release`", site_agent.display());
        }
        Ok(Self { coordinator, site_agent })
    }
}

fn make_folder(keep: Option<&Path>) -> anyhow::Result<PathBuf> {
    let Some(keep) = keep else {
        return Ok(tempfile::Builder::new().prefix("consilium-demo-").tempdir()?.keep());
    };
    if keep.exists() {
        bail!("{} exists: name a new folder", keep.display());
    }
    crate::files::create_private_dir(keep).with_context(|| keep.display().to_string())?;
    Ok(std::path::absolute(keep)?)
}

/// The sites with their data; `seed` is that of phantoms.
async fn prepare_data(
    options: &Options,
    programs: &Programs,
    folder: &Path,
    seed: u64,
) -> anyhow::Result<Vec<Member>> {
    match (&options.data, &options.held_out) {
        (Some(data), Some(held_out)) => {
            consortium::real_members(data, held_out, options.held_out_labels.as_deref())
        }
        _ => {
            line("making phantoms of three hospitals and a held-out one");
            consortium::phantom_members(programs, &folder.join("data"), options.cases, seed).await
        }
    }
}
