//! What a federation costs without its training: `tests/bench/rounds`, `tests/bench/memory` and `tests/bench/wan`.
//!
//! All processes are real: the coordinator is the program that is given out, a site is this program again, with the agent
//! of the program that is given out and a trainer that only changes the weights ([`site`]). [`rounds`] times rounds,
//! [`memory`] looks at the coordinator with many sites ([`load`]), [`wan`] puts a bad line between, [`consortium`] sets up what runs them.
//! [`bare`] and [`peers`] move the same bytes without us.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod bare;
mod consortium;
mod load;
mod memory;
mod model;
mod peers;
mod process;
mod rounds;
mod site;
mod wan;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use coordinator::demo::process::die_with_parent_if_asked;
use mimalloc::MiMalloc;
use site_agent::kernels::memory::keep_blocks;
use tracing_subscriber::EnvFilter;

/// As in the agent.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A federation without its training.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time rounds of real processes: `tests/bench/rounds`.
    Rounds(rounds::Options),
    /// Measure the coordinator's memory with many sites: `tests/bench/memory`.
    Memory(memory::Options),
    /// Send over long, lossy and broken lines: `tests/bench/wan`.
    Wan(wan::Options),
    /// Be a site.
    #[command(hide = true)]
    Site {
        /// Its configuration.
        config: PathBuf,
    },
    /// Be a site of QUIC alone.
    #[command(hide = true)]
    BareSite {
        /// Where the certificate is.
        folder: PathBuf,
        /// The coordinator.
        address: SocketAddr,
        /// Of the model.
        bytes: u64,
    },
}

/// Where programs and files are.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// Make the consortium here, on the disk that is to be measured [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Places {
    /// Where the consortium is made.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// The folder of `coordinator` and `site-agent`: this program's.
    pub(crate) fn programs(&self) -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe()?;
        let folder = own.parent().context("a program lies in a folder")?;
        for program in ["coordinator", "site-agent"] {
            ensure!(
                folder.join(program).is_file(),
                "{program} is not in {}: `tests/bench/rounds` builds it",
                folder.display()
            );
        }
        Ok(folder.to_owned())
    }
}

fn main() -> anyhow::Result<()> {
    keep_blocks();
    die_with_parent_if_asked();
    let filter = EnvFilter::try_from_env("CONSILIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match Options::parse().what {
        What::Rounds(options) => rounds::run(&options),
        What::Memory(options) => memory::run(&options),
        What::Wan(options) => wan::run(&options),
        What::Site { config } => site::run(&config),
        What::BareSite { folder, address, bytes } => bare::site(&folder, address, bytes),
    }
}
