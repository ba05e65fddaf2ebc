//! The coordinator's memory by the number of sites, all of which send at the same time.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use site_agent::client::identity::IdentityFolder;
use tokio::task::JoinSet;

use super::Places;
use super::consortium::{Consortium, Size};
use super::load::take_part;

/// What is run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of the model.
    #[arg(long, default_value_t = 62_600_000)]
    params: u64,
    /// Sites, all in one process; the coordinator keeps an update of each on the disk.
    #[arg(long, value_delimiter = ',', default_value = "3,10,50")]
    sites: Vec<u16>,
    /// Rounds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// One JSON object a line in the place of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    sites: u16,
    params: u64,
    rounds: u32,
    s_per_round: f64,
    coordinator_peak_mb: f64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !options.json {
        println!("| sites | numbers | s/round | coordinator, peak MiB |\n| --- | --- | --- | --- |");
    }
    for &sites in &options.sites {
        let row = measure(options, sites).with_context(|| format!("{sites} sites"))?;
        let Row { params, s_per_round, coordinator_peak_mb, .. } = row;
        match options.json {
            true => println!("{}", serde_json::to_string(&row)?),
            false => println!("| {sites} | {params} | {s_per_round:.1} | {coordinator_peak_mb:.0} |"),
        }
    }
    Ok(())
}

fn measure(options: &Options, sites: u16) -> anyhow::Result<Row> {
    let Options { params, rounds, .. } = *options;
    let size = Size { params, sites: sites.into(), rounds };
    let (programs, folder) = (options.places.programs()?, options.places.folder());
    // Two models and one that is written; an update of each site.
    size.check_room(&folder, 4 + u64::from(sites))?;
    let consortium = Consortium::found(&programs, &folder, size)?;
    let (coordinator, address) = consortium.start_coordinator()?;
    let address: SocketAddr = address.parse()?;

    let started = Instant::now();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut taking_part = JoinSet::new();
        for (index, site) in (0..).zip(consortium.sites()) {
            let identity = IdentityFolder::new(consortium.site_folder(&site).join("identity")).load()?;
            taking_part.spawn(async move { take_part(index, identity, address).await.context(site) });
        }
        while let Some(ended) = taking_part.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let coordinator_peak_mb = coordinator.peak_mb()?;
    coordinator.stop()?;
    Ok(Row { sites, params, rounds, s_per_round: seconds / f64::from(rounds), coordinator_peak_mb })
}
