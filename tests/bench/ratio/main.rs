//! `tests/bench/compute`: the same network, weights, shapes and threads in PyTorch and in ours, by turns.
//!
//! Each side is a process of its own, which does one step or one scan when it is told to and says how long that took. The
//! other side waits meanwhile. Of each case the fastest of several runs counts, of PyTorch the better of its two memory
//! layouts. That both compute the same is checked: the first losses, or what share of the logits is positive, must agree.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod cases;
mod ours;
mod side;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use mimalloc::MiMalloc;
use serde::Serialize;
use site_agent::kernels::memory;
use site_agent::model::DeviceKind;

use self::cases::{CASES, Case};
use self::side::{Isa, Side};

/// As in the agent.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// PyTorch's layouts; the better one counts.
const LAYOUTS: [&str; 2] = ["default", "channels-last"];
/// Relative difference that the two sides' first losses may have, and difference of the positive shares.
const TOLERANCE: f64 = 2e-3;

/// Training steps and inference against PyTorch.
#[derive(Debug, Parser)]
struct Options {
    /// A Python with torch and safetensors; `tests/bench/compute` provides one.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Fewer and smaller cases: within five minutes.
    #[arg(long)]
    quick: bool,
    /// One JSON object a line in the place of a table.
    #[arg(long)]
    json: bool,
    /// Only these cases.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Where both sides compute: `cpu`, or `cuda:0` or `vulkan:0` in a build with that feature; PyTorch then takes CUDA.
    #[arg(long, default_value_t)]
    device: DeviceKind,
    /// Threads of each side.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Instruction set that both sides are restricted to.
    #[arg(long, value_enum, default_value_t = Isa::Best)]
    isa: Isa,
    /// Seconds for the runs of one case with one number of threads; at least two runs of each side are made.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Be our side of the case in this folder.
    #[arg(long, hide = true, value_name = "DIR")]
    ours: Option<PathBuf>,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    case: &'static str,
    device: String,
    threads: usize,
    ours_ms: f64,
    torch_ms: f64,
    ratio: f64,
    ours_peak_mb: f64,
    torch_peak_mb: f64,
    peak_ratio: f64,
    torch_layout: &'static str,
    runs: usize,
}

fn main() -> anyhow::Result<()> {
    memory::keep_blocks();
    let options = Options::parse();
    if let Some(folder) = &options.ours {
        return ours::serve(folder, options.device);
    }
    let wanted = |case: &&Case| match options.cases.as_slice() {
        [] => case.quick || !options.quick,
        names => names.iter().any(|name| name == case.name),
    };
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    ensure!(!cases.is_empty(), "no such case; there are: {}", CASES.map(|case| case.name).join(", "));
    let seconds = Duration::from_secs(options.seconds.unwrap_or(if options.quick { 2 } else { 40 }));

    let folder = tempfile::tempdir()?;
    if !options.json {
        println!(
            "| case | threads | ours, ms | PyTorch, ms | ratio | ours, peak MiB | PyTorch, peak MiB | ratio |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    }
    for case in cases {
        let folder = folder.path().join(case.name);
        case.write(&folder)?;
        for &threads in &options.threads {
            let row = compare(case, &folder, threads, &options, seconds).with_context(|| case.name)?;
            match options.json {
                true => println!("{}", serde_json::to_string(&row)?),
                false => row.print(),
            }
        }
    }
    Ok(())
}

fn compare(
    case: &Case,
    folder: &Path,
    threads: usize,
    options: &Options,
    seconds: Duration,
) -> anyhow::Result<Row> {
    let mut ours = Side::ours(folder, threads, options)?;
    let mut torch = LAYOUTS
        .map(|layout| Side::torch(folder, threads, layout, options).map(|side| (layout, side)))
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    // The first run of each warms up, and shows that they compute the same.
    let expected = ours.go()?.value;
    for (layout, side) in &mut torch {
        let value = side.go()?.value;
        let close = (value - expected).abs() <= TOLERANCE * expected.abs().max(0.1);
        ensure!(
            close,
            "PyTorch ({layout}) computes {value}, we {expected}: the two sides are not the same network"
        );
    }
    let started = Instant::now();
    let mut fastest = (f64::INFINITY, vec![f64::INFINITY; torch.len()]);
    let mut runs = 0;
    while runs < 2 || started.elapsed() < seconds {
        fastest.0 = fastest.0.min(ours.go()?.ms);
        for ((_, side), best) in torch.iter_mut().zip(&mut fastest.1) {
            *best = best.min(side.go()?.ms);
        }
        runs += 1;
    }
    let (ours_ms, ours_peak_mb) = (fastest.0, ours.peak()?);
    let best = |(a, b): (usize, usize)| if fastest.1[a] <= fastest.1[b] { a } else { b };
    let best = best((0, 1));
    let (torch_ms, torch_layout) = (fastest.1[best], torch[best].0);
    // The smaller of the two peaks, even where it is the slower layout's.
    let peaks = torch.iter_mut().map(|(_, side)| side.peak()).collect::<anyhow::Result<Vec<_>>>()?;
    let torch_peak_mb = peaks.into_iter().fold(f64::INFINITY, f64::min);
    Ok(Row {
        case: case.name,
        device: options.device.to_string(),
        threads,
        ours_ms,
        torch_ms,
        ratio: ours_ms / torch_ms,
        ours_peak_mb,
        torch_peak_mb,
        peak_ratio: ours_peak_mb / torch_peak_mb,
        torch_layout,
        runs,
    })
}

impl Row {
    fn print(&self) {
        let Self { case, threads, ours_ms, torch_ms, ratio, ours_peak_mb, torch_peak_mb, peak_ratio, .. } =
            self;
        println!(
            "| {case} | {threads} | {ours_ms:.1} | {torch_ms:.1} | {ratio:.2} | {ours_peak_mb:.0} | {torch_peak_mb:.0} | \
             {peak_ratio:.2} |"
        );
    }
}
