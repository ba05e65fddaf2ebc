//! One side of the comparison: a process that works when told to, and waits otherwise.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use site_agent::model::DeviceKind;

use crate::Options;

/// What both sides may use of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isa {
    /// All that it has.
    Best,
    /// AVX2 and FMA.
    Avx2,
    /// SSE at most.
    Portable,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// How long it took.
    pub(crate) ms: f64,
    /// The loss, or the share of positive logits.
    pub(crate) value: f64,
}

/// Largest resident memory since the first run began, above what was resident then; on a card what it has set aside there.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Peak {
    /// MiB.
    pub(crate) peak_mb: f64,
}

/// A running side. It ends when it is dropped.
pub(crate) struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    /// Ours: this program again.
    pub(crate) fn ours(folder: &Path, threads: usize, options: &Options) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--ours").arg(folder).arg("--device").arg(options.device.to_string());
        command.env("RAYON_NUM_THREADS", threads.to_string());
        match options.isa {
            Isa::Best => &mut command,
            Isa::Avx2 => command.env("CONSILIUM_ISA", "avx2"),
            Isa::Portable => command.env("CONSILIUM_ISA", "portable"),
        };
        Self::start(command)
    }

    /// PyTorch, with one of its memory layouts.
    pub(crate) fn torch(
        folder: &Path,
        threads: usize,
        layout: &str,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/torch_peer.py");
        let device = if options.device == DeviceKind::Cpu { "cpu" } else { "cuda" };
        let mut command = Command::new(&options.python);
        command.arg(script).arg(folder).arg(threads.to_string()).arg(layout).arg(device);
        command.env("OMP_NUM_THREADS", threads.to_string()).env("MKL_NUM_THREADS", threads.to_string());
        let limits: &[(&str, &str)] = match options.isa {
            Isa::Best => &[],
            Isa::Avx2 => &[("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX2")],
            Isa::Portable => &[("ATEN_CPU_CAPABILITY", "default"), ("ONEDNN_MAX_CPU_ISA", "SSE41")],
        };
        Self::start({
            command.envs(limits.iter().copied());
            command
        })
    }

    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("both streams are piped")
        };
        let mut side = Self { child, input, output: BufReader::new(output) };
        side.read()?;
        Ok(side)
    }

    /// Has it do the work once.
    pub(crate) fn go(&mut self) -> anyhow::Result<Run> {
        self.ask("go")
    }

    /// Has it look at its memory.
    pub(crate) fn peak(&mut self) -> anyhow::Result<f64> {
        self.ask("peak").map(|Peak { peak_mb }| peak_mb)
    }

    fn ask<T: for<'de> Deserialize<'de>>(&mut self, what: &str) -> anyhow::Result<T> {
        writeln!(self.input, "{what}")?;
        Ok(serde_json::from_str(&self.read()?)?)
    }

    fn read(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("one side ended: {}", self.child.wait()?);
        }
        Ok(line)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It has nothing to lose, and may be in the midst of a run.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
