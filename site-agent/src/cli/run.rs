//! `site-agent run`: the service.

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::error_report::CliError;
use super::{ConfigArgs, limit_threads, runtime};
use crate::client::driver::Agent;
use crate::client::site_work::SiteWork;
use crate::client::state::StateFolder;
use crate::egress::Egress;
use crate::train::trainer::Cancel;

pub(super) fn run(args: &ConfigArgs) -> Result<(), CliError> {
    let config = args.read()?;
    limit_threads(config.threads)?;
    let policy = config.read_policy()?;
    let identity = config.identity.load()?;
    let member = &identity.membership;
    tracing::info!(
        "{} `{}` of `{}`; coordinator at {}",
        member.role,
        member.site,
        member.consortium,
        config.coordinator
    );
    let state = StateFolder::open(&config.state)?;
    let _lock = state.lock()?;
    let egress = Egress::open(policy, &state.ledger())?.with_traffic(config.traffic.clone());
    let work = SiteWork::new(config.clone(), member.site.clone(), state.clone())?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let stop = stop_on_signal()?;
        Agent::open(&config, &identity, egress, state, Box::new(work))?.run(stop).await
    });
    // A job that does not stop in time must not keep the process: the journal knows where to go on.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ended?)
}

/// Cancelled by Ctrl-C or a service manager's SIGTERM.
pub(super) fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopped.cancel();
    });
    Ok(stop)
}

/// The same for work on this thread, which looks now and then and keeps what it can; `told` says what is still done. It needs
/// the runtime to live.
pub(super) fn cancelled_by_signal(runtime: &Runtime, told: &'static str) -> Result<Cancel, CliError> {
    let stop = runtime.block_on(async { stop_on_signal() })?;
    let cancel = Cancel::default();
    let asked = cancel.clone();
    runtime.spawn(async move {
        stop.cancelled().await;
        tracing::info!("{told}");
        asked.suspend();
    });
    Ok(cancel)
}
