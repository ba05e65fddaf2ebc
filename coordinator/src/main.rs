//! Starts the binary: logging, command line, signals, one failure told once.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use coordinator::cli::{self, Cli};
use coordinator::demo::process;
use coordinator::error_report;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Threads for work that blocks: enough for the transfers whose turn it is and one aggregation. Each thread may have a heap of
/// its own, and five hundred, which tokio would allow, cost more memory than all transfers.
const BLOCKING_THREADS: usize = 8;

fn main() -> ExitCode {
    process::die_with_parent_if_asked();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => error_report::report(&error.into()),
    }
}

async fn run() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("CONSILIUM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Colours are for a person who looks; a log file or a pipe gets plain text.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        // A log on a full disk is no reason to end, and to tell of it on the same standard error would panic.
        .log_internal_errors(false)
        .init();

    let stop = CancellationToken::new();
    match executed(cli, stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error_report::report(&error),
    }
}

async fn executed(cli: Cli, stop: CancellationToken) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        asked.cancel();
        // Asked twice: the operator will not wait for the drain. The journal is whole at any instant.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    cli::execute(cli, stop).await
}
