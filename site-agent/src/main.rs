//! Starts the binary: logging, command line, one failure told once.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use site_agent::cli::{self, Cli};
use site_agent::kernels::memory;
use tracing_subscriber::EnvFilter;

/// Set by `coordinator demo` for its children: no process outlives the demo, however it ends.
const DIE_WITH_PARENT: &str = "CONSILIUM_DIE_WITH_PARENT";

/// Keeps the blocks of tensors for the next step, which the system's own gives back and asks for again
/// (docs/decisions/0012).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    memory::keep_blocks();
    if let Some(parent) = std::env::var_os(DIE_WITH_PARENT) {
        // Without it a killed demo leaves its processes: not worth failing for.
        let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
        // It may have died before the kernel was asked.
        if parent != nix::unistd::getppid().to_string().as_str() {
            std::process::exit(1);
        }
    }
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("CONSILIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for a person who looks; a log file or a pipe gets plain text.
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        // A log on a full disk is no reason to end, and to tell of it on the same standard error would panic.
        .log_internal_errors(false)
        .init();
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
