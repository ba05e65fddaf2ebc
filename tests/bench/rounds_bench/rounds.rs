//! Rounds over real processes, and what one of them costs.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum as _};
use serde::Serialize;

use super::consortium::{Consortium, Lane, Size, turn, until};
use super::peers::{self, Peers};
use super::process::Process;
use super::{Places, bare, model};

/// Models that a consortium has on the disk at once: the model of two rounds, the updates at both ends.
pub(crate) const fn models_on_disk(sites: usize) -> u64 {
    4 + 5 * sites as u64
}

/// What is run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of the model.
    #[arg(long, value_delimiter = ',', default_value = "19400000")]
    params: Vec<u64>,
    /// Sites, each a process; every round waits for all.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    sites: u16,
    /// Rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How sites reach the coordinator.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "quic")]
    lane: Vec<Lane>,
    /// The same bytes over QUIC alone beside it, with next to nothing around it: how much of a round's time is the machine's.
    #[arg(long)]
    bare: bool,
    /// NVFlare and Flower beside it, and how many times faster ours is.
    #[arg(long)]
    peers: bool,
    /// A Python with NVFlare; `tests/bench/rounds` provides one.
    #[arg(long, hide = true)]
    nvflare: Option<PathBuf>,
    /// A Python with Flower; `tests/bench/rounds` provides one.
    #[arg(long, hide = true)]
    flower: Option<PathBuf>,
    /// One JSON object a line in the place of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

/// One line of the result.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) lane: String,
    pub(crate) params: u64,
    pub(crate) sites: u16,
    pub(crate) rounds: u32,
    /// From the opening of one round to that of the next, seconds: the median of all but the first.
    pub(crate) s_per_round: f64,
    pub(crate) s_per_round_min: f64,
    /// The first round.
    pub(crate) s_first_round: f64,
    /// From the start of the coordinator's process to the opening of the first round.
    pub(crate) s_cold_start: f64,
    /// Bytes of a round, of all sites, both ways; of a peer also what its own processes tell each other.
    pub(crate) bytes: Option<u64>,
    /// Not a number where it was not measured.
    pub(crate) coordinator_peak_mb: f64,
    /// Of the site that had the most.
    pub(crate) site_peak_mb: f64,
    /// Its seconds of a round over ours.
    pub(crate) ratio: Option<f64>,
}

/// Seconds of each round, the first first.
pub(crate) struct Times {
    pub(crate) rounds: Vec<f64>,
    pub(crate) cold_start: f64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !options.json {
        println!("{}", Row::HEADER);
    }
    for &params in &options.params {
        let mut ours = None;
        for &lane in &options.lane {
            let row =
                measure(options, params, lane).with_context(|| format!("{params} numbers, {lane:?}"))?;
            row.print(options.json)?;
            ours = ours.or(Some(row.s_per_round));
        }
        let Some(ours) = ours else { continue };
        if options.bare {
            let mut row = bare::measure(&options.places.folder(), params, options.sites, options.rounds)?;
            row.ratio = Some(row.s_per_round / ours);
            row.print(options.json)?;
        }
        if !options.peers {
            continue;
        }
        let programs = Peers { nvflare: options.nvflare.as_deref(), flower: options.flower.as_deref() };
        for mut row in peers::measure(&programs, params, options.sites, options.rounds)? {
            row.ratio = Some(row.s_per_round / ours);
            row.print(options.json)?;
        }
    }
    Ok(())
}

fn measure(options: &Options, params: u64, lane: Lane) -> anyhow::Result<Row> {
    let Options { sites, rounds, .. } = *options;
    let size = Size { params, sites: sites.into(), rounds };
    let (programs, folder) = (options.places.programs()?, options.places.folder());
    ensure!(params >= model::FEWEST, "--params {params}: at least {}", model::FEWEST);
    size.check_room(&folder, models_on_disk(size.sites))?;
    let consortium = Consortium::found(&programs, &folder, size)?;

    let started = Instant::now();
    let (mut coordinator, address) = consortium.start_coordinator()?;
    let names = consortium.sites();
    let mut running = names
        .iter()
        .map(|site| consortium.start_site(site, &address, lane.to_toml()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let times = watch(&mut coordinator, &mut running, started)?;

    let coordinator_peak_mb = coordinator.peak_mb()?;
    let peaks = running.iter().map(Process::peak_mb).collect::<anyhow::Result<Vec<_>>>()?;
    running.into_iter().try_for_each(Process::stop)?;
    coordinator.stop()?;
    // The sites have gone by now: what they moved is counted.
    let moved: u64 =
        consortium.report()?.sites.iter().map(|site| site.bytes_sent + site.bytes_received).sum();
    let row = Row {
        system: "consilium".to_owned(),
        lane: lane.to_possible_value().map(|lane| lane.get_name().to_owned()).unwrap_or_default(),
        params,
        sites,
        rounds,
        bytes: Some(moved / u64::from(rounds)),
        coordinator_peak_mb,
        site_peak_mb: peaks.into_iter().fold(0.0, f64::max),
        ..Row::default()
    };
    Ok(row.with(&times))
}

/// Waits for the end of the study; when each round opened.
fn watch(coordinator: &mut Process, sites: &mut [Process], started: Instant) -> anyhow::Result<Times> {
    let mut opened: Vec<Instant> = Vec::new();
    let ended = until(coordinator, "the end of the study", sites, |heard| {
        match turn(heard)? {
            "round-opened" => opened.push(heard.at),
            "finished" => return Some(heard.at),
            _ => {}
        }
        None
    })?;
    let first = *opened.first().context("no round opened")?;
    let next = opened.iter().skip(1).chain([&ended]);
    let rounds = opened.iter().zip(next).map(|(from, to)| to.duration_since(*from).as_secs_f64());
    Ok(Times { rounds: rounds.collect(), cold_start: first.duration_since(started).as_secs_f64() })
}

impl Row {
    const HEADER: &'static str = "| system | lane | numbers | sites | s/round, median | min | first round | to the first round | MB/round | \
                          coordinator, peak MiB | site, peak MiB | ratio |\n\
                          | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

    /// With these times: the first round apart, for it finds nothing warm, unless it is all that there is.
    pub(crate) fn with(self, times: &Times) -> Self {
        let mut later = times.rounds.get(1..).unwrap_or_default().to_vec();
        if later.is_empty() {
            later.clone_from(&times.rounds);
        }
        later.sort_by(f64::total_cmp);
        Self {
            s_per_round: later.get(later.len() / 2).copied().unwrap_or(f64::NAN),
            s_per_round_min: later.first().copied().unwrap_or(f64::NAN),
            s_first_round: times.rounds.first().copied().unwrap_or(f64::NAN),
            s_cold_start: times.cold_start,
            ..self
        }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let Self { system, lane, params, sites, s_per_round, s_per_round_min, s_first_round, .. } = self;
        let Self { s_cold_start, coordinator_peak_mb, site_peak_mb, .. } = self;
        let moved = self.bytes.map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
        let ratio = self.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let peak = |mb: f64| if mb.is_nan() { "-".to_owned() } else { format!("{mb:.0}") };
        let (coordinator, site) = (peak(*coordinator_peak_mb), peak(*site_peak_mb));
        println!(
            "| {system} | {lane} | {params} | {sites} | {s_per_round:.3} | {s_per_round_min:.3} | {s_first_round:.3} | \
             {s_cold_start:.2} | {moved} | {coordinator} | {site} | {ratio} |"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rounds: &[f64]) -> Row {
        Row::default().with(&Times { rounds: rounds.to_vec(), cold_start: 0.5 })
    }

    #[test]
    fn the_first_round_counts_only_when_it_is_alone() {
        let several = row(&[9.0, 3.0, 1.0, 2.0]);
        assert_eq!((several.s_per_round, several.s_per_round_min, several.s_first_round), (2.0, 1.0, 9.0));
        let one = row(&[9.0]);
        assert_eq!((one.s_per_round, one.s_per_round_min, one.s_cold_start), (9.0, 9.0, 0.5));
    }

    #[test]
    fn a_line_has_the_names_that_scripts_look_for() {
        let line = serde_json::to_value(row(&[1.0])).unwrap();
        for key in ["s_per_round", "bytes", "coordinator_peak_mb", "site_peak_mb"] {
            assert!(line.get(key).is_some(), "{key}");
        }
    }
}
