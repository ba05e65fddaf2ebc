//! A program of ours as a child: its lines are read as they come and waited for; dropped, it is killed.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use coordinator::demo::process::DIE_WITH_PARENT;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a test waits for a line. Long, because a few cores may be shared by many tests; nothing waits it out.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Lines that a test which failed shows of each process.
const LAST_WORDS: usize = 30;

/// Names the point at which a process of a test build ends itself, as `kill -9` would (docs/decisions/0018).
pub(crate) const FAILPOINT: &str = "CONSILIUM_FAILPOINT";

/// One of our two programs, as the workspace's test build leaves it: beside the folder of the test executables.
///
/// # Panics
/// When it was not built.
pub(crate) fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its executable");
    let built = own.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").join(name);
    assert!(built.is_file(), "{} is missing: `cargo nextest run --workspace` builds it", built.display());
    built
}

/// A program with arguments. The child asks the kernel to end with the test, however that ends.
pub(crate) fn command<A: AsRef<std::ffi::OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program(name));
    command
        .args(args)
        .env(DIE_WITH_PARENT, std::process::id().to_string())
        .env_remove("CONSILIUM_LOG")
        .env_remove(FAILPOINT)
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end.
///
/// # Panics
/// When that does not come.
pub(crate) fn finish(mut command: Command) -> Finished {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    let (told, end) = channel();
    std::thread::spawn(move || told.send(child.wait_with_output()));
    let Ok(ended) = end.recv_timeout(PATIENCE) else {
        // It is not reaped: its thread still waits for it.
        let _ = kill(pid, Signal::SIGKILL);
        panic!("{command:?} does not end");
    };
    let Output { status, stdout, stderr } = ended.expect("its output can be read");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs speak UTF-8");
    Finished { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// What a command that has ended left.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    /// Its output.
    ///
    /// # Panics
    /// When it failed.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }
}

/// A child that runs.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    /// All lines so far, standard output and error as they came.
    heard: Vec<String>,
}

impl Process {
    pub(crate) fn start(name: &str, mut command: Command) -> Self {
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.expect("the program starts");
        let (said, lines) = channel();
        read_lines(child.stdout.take().expect("piped"), said.clone());
        read_lines(child.stderr.take().expect("piped"), said);
        Self { name: name.to_owned(), child, lines, heard: Vec::new() }
    }

    /// Waits until a line, old or new, is what `find` looks for.
    ///
    /// # Panics
    /// When it does not come; with all that was said instead.
    pub(crate) fn until<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            if let Some(found) = self.heard[seen..].iter().find_map(|line| find(line)) {
                return found;
            }
            seen = self.heard.len();
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Timeout) => self.fail(what, "nothing like it came in time"),
                Err(RecvTimeoutError::Disconnected) => self.fail(what, "the process has ended"),
            }
        }
    }

    /// Waits for a line with these words, and gives it.
    pub(crate) fn until_says(&mut self, words: &str) -> String {
        self.until(words, |line| line.contains(words).then(|| line.to_owned()))
    }

    /// Waits until so many lines had these words.
    pub(crate) fn until_said(&mut self, words: &str, times: usize) {
        let left = Cell::new(times);
        self.until(&format!("`{words}`, {times} times"), |line| {
            left.set(left.get().saturating_sub(usize::from(line.contains(words))));
            (left.get() == 0).then_some(())
        });
    }

    /// Waits until it has said so many lines, or one with these words: fewer may come in all.
    pub(crate) fn until_line(&mut self, wanted: usize, last: &str) {
        let left = Cell::new(wanted);
        self.until(&format!("its line {wanted} or `{last}`"), |line| {
            left.set(left.get().saturating_sub(1));
            (left.get() == 0 || line.contains(last)).then_some(())
        });
    }

    /// Waits until it has ended by itself; all that it said.
    ///
    /// # Panics
    /// When it goes on, or ended in order.
    pub(crate) fn until_dead(&mut self) -> Vec<String> {
        let said = self.rest();
        let status = self.child.wait().expect("it is ours");
        assert!(!status.success(), "{} ended in order: {said:#?}", self.name);
        said
    }

    /// All lines so far that hold these words.
    pub(crate) fn said(&mut self, words: &str) -> Vec<String> {
        self.heard.extend(self.lines.try_iter());
        self.heard.iter().filter(|line| line.contains(words)).cloned().collect()
    }

    /// The last of its lines so far.
    pub(crate) fn last_words(&mut self) -> String {
        self.heard.extend(self.lines.try_iter());
        let first = self.heard.len().saturating_sub(LAST_WORDS);
        format!("{}, the last of {} lines:\n{}", self.name, self.heard.len(), self.heard[first..].join("\n"))
    }

    /// Ends it at once, as a power cut would; all that it said. Then nothing of it is left, neither its port nor its lock.
    pub(crate) fn kill(&mut self) -> Vec<String> {
        self.child.kill().expect("it runs");
        let said = self.rest();
        // The kernel closes its pipes before its last file.
        self.child.wait().expect("it is ours");
        said
    }

    /// Keeps it from doing anything until [`Process::resume`].
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // The child is reaped only by us, so the id is still its own.
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Waits until it has ended; its exit code and all that it said.
    pub(crate) fn end(mut self) -> (Option<i32>, Vec<String>) {
        let said = self.rest();
        (self.child.wait().expect("it is ours").code(), said)
    }

    /// All lines up to the end, which must be near.
    fn rest(&mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Disconnected) => return std::mem::take(&mut self.heard),
                Err(RecvTimeoutError::Timeout) => self.fail("its end", "it goes on"),
            }
        }
    }

    fn fail(&self, what: &str, why: &str) -> ! {
        panic!("{}: waiting for {what}: {why}. It said:\n{}", self.name, self.heard.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends lines until the pipe ends; the thread ends with the child.
fn read_lines(pipe: impl Read + Send + 'static, said: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            if said.send(line).is_err() {
                return;
            }
        }
    });
}
