//! Child processes that do not outlive the demo, and whose own words are told when they fail or complain.
//!
//! Each has its own process group, so that an interrupt at the terminal reaches the demo alone, which then drops them.
//! Dropped, they are killed. Should the demo itself be killed, they notice: [`DIE_WITH_PARENT`].

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Set for children of a demo to its process id: the program asks the kernel to be killed when its parent dies.
pub const DIE_WITH_PARENT: &str = "CONSILIUM_DIE_WITH_PARENT";

/// How long a process may take to stop when asked.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lines of a log that are worth showing.
const TAIL: usize = 15;

/// Asks the kernel to end this process with its parent, if the parent wants that.
pub fn die_with_parent_if_asked() {
    if let Some(parent) = std::env::var_os(DIE_WITH_PARENT) {
        // Without it a killed demo leaves its processes: not worth failing for.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        // It may have died before the kernel was asked.
        if parent != nix::unistd::getppid().to_string().as_str() {
            std::process::exit(1);
        }
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
    /// What it said went wrong.
    complaints: mpsc::Receiver<String>,
    /// The task that keeps its log: ends with the process.
    logging: JoinSet<()>,
}

impl Program {
    /// `path`, called `name` in messages; its output goes to `logs/<name>.log`.
    pub(super) fn new(path: &Path, name: &str, logs: &Path) -> Self {
        let mut command = Command::new(path);
        command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .process_group(0)
            .env(DIE_WITH_PARENT, std::process::id().to_string());
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
        self.command.stdout(log.try_clone()?);
        self.spawn(log)
    }

    /// Starts it with its standard output read by the caller.
    pub(super) fn start_read(mut self) -> anyhow::Result<(Process, ChildStdout)> {
        let log = self.open_log()?;
        self.command.stdout(Stdio::piped());
        let mut process = self.spawn(log)?;
        let stdout = process.child.stdout.take().context("the pipe to a child")?;
        Ok((process, stdout))
    }

    fn spawn(mut self, log: File) -> anyhow::Result<Process> {
        let mut child = self.command.stderr(Stdio::piped()).spawn().with_context(|| self.name.clone())?;
        let stderr = child.stderr.take().context("the pipe to a child")?;
        let (complain, complaints) = mpsc::channel(1);
        let mut logging = JoinSet::new();
        logging.spawn(keep_log(stderr, log, complain));
        Ok(Process { child, name: self.name, log: self.log, complaints, logging })
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
    /// Returns only if the process says that something went wrong, or ends by itself: it was to run on.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        let what = tokio::select! {
            Some(words) = self.complaints.recv() => format!(": {words}"),
            status = self.child.wait() => {
                // Its last words may be on their way to the log.
                while self.logging.join_next().await.is_some() {}
                match status {
                    Ok(status) => format!(" ended with {status}"),
                    Err(error) => format!(": {error}"),
                }
            }
        };
        anyhow::anyhow!("{}{what}{}", self.name, tail(&self.log))
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

/// Copies what a process says to its log until it ends; the first complaint is passed on too.
async fn keep_log(said: ChildStderr, mut log: File, complain: mpsc::Sender<String>) {
    let mut lines = BufReader::new(said).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A log that cannot be written is not worth ending a demo for.
        let _ = writeln!(log, "{line}");
        if let Some(words) = complaint(&line) {
            // One is enough: later ones find no room.
            let _ = complain.try_send(words.to_owned());
        }
    }
}

/// The words of a line that our programs log as an error: `TIME ERROR PLACE: words`.
fn complaint(line: &str) -> Option<&str> {
    let (time, said) = line.split_once(" ERROR ")?;
    let (_, words) = said.split_once(": ")?;
    (!time.contains(' ')).then_some(words)
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
    async fn a_process_that_complains_has_failed_though_it_runs_on() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::new(Path::new("/bin/sh"), "child", dir.path());
        let line = "2026-01-01T00:00:00Z ERROR site_agent::client: the scans cannot be used: a.nii: cut off";
        let script = format!("echo 'one line before' >&2; echo '{line}' >&2; exec sleep 600");
        let mut process = program.args(["-c", &script]).start().unwrap();
        let failed = tokio::time::timeout(PATIENCE, process.failed()).await.expect("it need not end");
        let text = failed.to_string();
        assert!(text.starts_with("child: the scans cannot be used: a.nii: cut off; the end of "), "{text}");
        assert!(text.contains("\n    one line before"), "{text}");
    }

    #[tokio::test]
    async fn a_process_that_ends_has_failed_and_its_last_words_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::new(Path::new("/bin/sh"), "child", dir.path());
        let mut process = program.args(["-c", "echo lost the pancreas >&2; exit 3"]).start().unwrap();
        let text = process.failed().await.to_string();
        assert!(text.contains("exit status: 3") && text.contains("\n    lost the pancreas"), "{text}");
    }

    #[test]
    fn only_errors_are_complaints() {
        for line in ["T  WARN a: ERROR b: c", "T  INFO a: an ERROR b: c", "ERROR", ""] {
            assert_eq!(complaint(line), None, "{line}");
        }
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
