//! Child processes that do not outlive the demo, and whose last words are told when they fail.
//!
//! Each has its own process group, so that an interrupt at the terminal reaches the demo alone, which then ends them in
//! order. Dropped, they are killed. Should the demo itself be killed, they notice: [`DIE_WITH_PARENT`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdout, Command};

/// Set for children of a demo: the program asks the kernel to be killed when its parent dies.
pub const DIE_WITH_PARENT: &str = "CONSILIUM_DIE_WITH_PARENT";

/// How long a process may take to stop when asked.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lines of a log that are worth showing.
const TAIL: usize = 15;

/// Asks the kernel to end this process with its parent, if the parent wants that.
pub fn die_with_parent_if_asked() {
    if std::env::var_os(DIE_WITH_PARENT).is_some() {
        // Without it a killed demo leaves its processes: not worth failing for.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    }
}

/// A program to be run, with its log.
pub(super) struct Program {
    command: Command,
    name: String,
    log: PathBuf,
}

/// A process that runs.
pub(super) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Program {
    /// `path`, called `name` in messages; its output goes to `logs/<name>.log`.
    pub(super) fn new(path: &Path, name: &str, logs: &Path) -> Self {
        let mut command = Command::new(path);
        command.stdin(Stdio::null()).kill_on_drop(true).process_group(0).env(DIE_WITH_PARENT, "1");
        Self { command, name: name.to_owned(), log: logs.join(format!("{name}.log")) }
    }

    pub(super) fn args<A: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Runs it to its end.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        let log = self.open_log()?;
        self.command.stdout(log.try_clone()?).stderr(log);
        let status = self.command.status().await.with_context(|| self.name.clone())?;
        if !status.success() {
            bail!("{} ended with {status}{}", self.name, tail(&self.log));
        }
        Ok(())
    }

    /// Starts it; all output goes to the log.
    pub(super) fn start(mut self) -> anyhow::Result<Process> {
        let log = self.open_log()?;
        self.command.stdout(log.try_clone()?).stderr(log);
        self.spawn()
    }

    /// Starts it with its standard output read by us.
    pub(super) fn start_read(mut self) -> anyhow::Result<(Process, ChildStdout)> {
        let log = self.open_log()?;
        self.command.stdout(Stdio::piped()).stderr(log);
        let mut process = self.spawn()?;
        let stdout = process.child.stdout.take().context("the pipe to a child")?;
        Ok((process, stdout))
    }

    fn spawn(mut self) -> anyhow::Result<Process> {
        let child = self.command.spawn().with_context(|| self.name.clone())?;
        Ok(Process { child, name: self.name, log: self.log })
    }

    fn open_log(&self) -> anyhow::Result<File> {
        File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| self.log.display().to_string())
    }
}

impl Process {
    /// Returns only if the process ends by itself, and then as a failure: it was to run on.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow::anyhow!("{} ended with {status}{}", self.name, tail(&self.log)),
            Err(error) => anyhow::Error::from(error).context(self.name.clone()),
        }
    }

    /// Asks it to stop, waits a little, and kills it if need be.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// The end of a log, indented, with where the rest is.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(TAIL));
    let shown: String = last.map(|line| format!("\n    {line}")).collect();
    format!("; the end of {}:{shown}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_shows_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::new(Path::new("/bin/sh"), "child", dir.path());
        let error = program.args(["-c", "echo lost the pancreas >&2; exit 3"]).finish().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("\n    lost the pancreas"), "{text}");
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::new(Path::new("/bin/sh"), "child", dir.path());
        let process = program.args(["-c", "exec sleep 600"]).start().unwrap();
        let pid = Pid::from_raw(i32::try_from(process.child.id().unwrap()).unwrap());
        assert!(kill(pid, None).is_ok());
        drop(process);
        // The runtime reaps it in its own time; until then it is a zombie, which no signal ends: wait for it.
        let gone = async {
            while kill(pid, None).is_ok() && !is_zombie(pid) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the process is gone");
    }

    fn is_zombie(pid: Pid) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }

    #[tokio::test]
    async fn a_process_that_does_not_stop_in_time_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::new(Path::new("/bin/sh"), "child", dir.path());
        let process = program.args(["-c", "exec sleep 600"]).start().unwrap();
        let pid = Pid::from_raw(i32::try_from(process.child.id().unwrap()).unwrap());
        process.stop().await;
        assert!(kill(pid, None).is_err());
    }
}
