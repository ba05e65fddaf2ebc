//! A program of ours as a child: what it says with the moment at which it was heard, and the most memory that it had.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use coordinator::demo::process::DIE_WITH_PARENT;
use coordinator::progress::Line;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of a log that are worth showing.
const TAIL: usize = 2000;

/// A line of a coordinator's progress.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) line: Line,
}

/// A child that runs. Dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    lines: Receiver<Heard>,
}

/// A command whose child ends with this process, however that ends.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(DIE_WITH_PARENT, std::process::id().to_string()).stdin(Stdio::null());
    command
}

/// Runs a command to its end; its output.
pub(crate) fn finish(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("starting {shown}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{shown} ended with {}: {}", output.status, tail(&err));
    Ok(out.into_owned())
}

impl Process {
    /// Starts it: lines of progress are heard, everything else goes to `logs/<name>.log`.
    pub(crate) fn start(name: &str, mut command: Command, logs: &Path) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().context("the pipe to a child")?;
        let (heard, lines) = channel();
        std::thread::spawn(move || hear(stdout, &heard));
        Ok(Self { child, name: name.to_owned(), log, lines })
    }

    /// The next line of progress, waiting for it at most so long; `None` when none came.
    ///
    /// # Errors
    /// The process has ended; with the end of its log.
    pub(crate) fn next(&mut self, patience: Duration) -> anyhow::Result<Option<Heard>> {
        match self.lines.recv_timeout(patience) {
            Ok(heard) => Ok(Some(heard)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("{} has ended: {}", self.name, self.last_words()),
        }
    }

    /// Fails when the process has ended, which was to run on.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// The most memory that it had resident at once so far, MiB.
    pub(crate) fn peak_mb(&self) -> anyhow::Result<f64> {
        peak_mb(&self.child.id().to_string()).with_context(|| self.name.clone())
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        // The child is reaped only here, so the id is still its own.
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.last_words());
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        tail(&String::from_utf8_lossy(&log)).to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `VmHWM` of a process, by its id or `self`, MiB.
pub(crate) fn peak_mb(process: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let kib: f64 = kib.context("no VmHWM in /proc")?.trim().parse()?;
    Ok(kib / 1024.0)
}

/// Passes on what is progress, until the pipe ends.
fn hear(stdout: ChildStdout, heard: &Sender<Heard>) {
    for text in BufReader::new(stdout).lines() {
        let at = Instant::now();
        let Ok(text) = text else { return };
        let Ok(line) = serde_json::from_str(&text) else { continue };
        if heard.send(Heard { at, line }).is_err() {
            return;
        }
    }
}

fn tail(text: &str) -> &str {
    let text = text.trim_end();
    text.get(text.ceil_char_boundary(text.len().saturating_sub(TAIL))..).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_peak_and_a_long_log_an_end() {
        assert!(peak_mb("self").unwrap() > 0.1);
        assert!(peak_mb("none").is_err());
        assert_eq!(tail("one\ntwo\n"), "one\ntwo");
        let long = "ä".repeat(TAIL);
        assert!(long.ends_with(tail(&long)) && tail(&long).len() <= TAIL);
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let error = finish(command(Path::new("/bin/sh")).args(["-c", "echo no spleen >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no spleen"), "{text}");
        assert_eq!(finish(command(Path::new("/bin/sh")).args(["-c", "echo spleen"])).unwrap(), "spleen\n");
    }
}
