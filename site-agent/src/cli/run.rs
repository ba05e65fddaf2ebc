//! `site-agent run`: the service.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::error_report::CliError;
use super::{ConfigArgs, limit_threads, runtime};
use crate::client::driver::Agent;
use crate::client::files::{DISK_HINT, disk_trouble, free_space};
use crate::client::site_work::SiteWork;
use crate::client::state::StateFolder;
use crate::client::work::LOOK_FOR_ROOM;
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
    let runtime = runtime()?;
    let stop = runtime.block_on(async { stop_on_signal() })?;
    let open = || -> anyhow::Result<_> {
        let state = StateFolder::open(&config.state)?;
        let lock = state.lock()?;
        let egress = Egress::open(policy.clone(), &state.ledger())?.with_traffic(config.traffic.clone());
        let work = Box::new(SiteWork::new(config.clone(), member.site.clone(), state.clone())?);
        let agent = runtime.block_on(async { Agent::open(&config, &identity, egress, state, work) })?;
        Ok((lock, agent))
    };
    let is_stopped_in = |pause: Duration| {
        runtime.block_on(async { tokio::time::timeout(pause, stop.cancelled()).await.is_ok() })
    };
    let Some((_lock, agent)) = when_disk_allows(&config.state, open, is_stopped_in)? else { return Ok(()) };
    let ended = runtime.block_on(agent.run(stop));
    // A job that does not stop in time must not keep the process: the journal knows where to go on.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ended?)
}

/// Tries `open` until the disk of `state` is neither full nor read-only, which is told once when it begins and once when it ends;
/// `None` when told to stop in a pause.
fn when_disk_allows<T>(
    state: &Path,
    mut open: impl FnMut() -> anyhow::Result<T>,
    mut is_stopped_in: impl FnMut(Duration) -> bool,
) -> anyhow::Result<Option<T>> {
    let mut told = None;
    loop {
        let error = match open() {
            Ok(opened) => {
                if told.is_some() {
                    tracing::info!("the disk can be written again: the agent begins");
                }
                return Ok(Some(opened));
            }
            Err(error) => error,
        };
        let Some(name) = disk_trouble(&error) else { return Err(error) };
        if told.replace(name) != Some(name) {
            let (free, again) = (free_space(state), LOOK_FOR_ROOM.as_secs());
            tracing::error!("paused: {name}: {error:#}; {free}; it is tried again each {again} s");
            tracing::error!("hint: {DISK_HINT}; the agent begins by itself then");
        }
        if is_stopped_in(LOOK_FOR_ROOM) {
            return Ok(None);
        }
    }
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::client::files::FileError;

    fn refused(kind: ErrorKind) -> anyhow::Result<u32> {
        Err(FileError::new("write", Path::new("state/lock"), kind.into()).into())
    }

    #[test]
    fn a_disk_that_takes_nothing_is_waited_for_and_nothing_else_is() {
        let (mut pauses, state) = (Vec::new(), Path::new("state"));
        let mut answers =
            [refused(ErrorKind::ReadOnlyFilesystem), refused(ErrorKind::StorageFull), Ok(7)].into_iter();
        let opened = when_disk_allows(
            state,
            || answers.next().unwrap(),
            |pause| {
                pauses.push(pause);
                false
            },
        );
        assert_eq!((opened.unwrap(), pauses), (Some(7), vec![LOOK_FOR_ROOM; 2]));

        let failed = when_disk_allows(state, || refused(ErrorKind::PermissionDenied), |_| false);
        assert!(failed.unwrap_err().is::<FileError>());
        let stopped = when_disk_allows(state, || refused(ErrorKind::ReadOnlyFilesystem), |_| true);
        assert_eq!(stopped.unwrap(), None);
    }
}
