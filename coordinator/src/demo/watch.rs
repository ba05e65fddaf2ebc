//! What the coordinator tells, line by line: shown to whoever watches, and waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context as _, bail};
use common::ids::{Role, SiteId};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

use super::consortium::Member;
use super::study::Settings;
use crate::progress::Line;

/// Longest silence of a consortium at work: an evaluation of the last model on a slow machine.
const SILENCE: Duration = Duration::from_secs(1800);

/// What must have happened.
pub(super) struct Wanted {
    pub(super) connected: usize,
    pub(super) evaluators: Vec<SiteId>,
}

/// Reads the coordinator's lines.
pub(super) struct Watch {
    lines: Lines<BufReader<ChildStdout>>,
    loud: bool,
    screen: MultiProgress,
    bars: BTreeMap<SiteId, ProgressBar>,
    rounds: u32,
    steps: u32,
    connected: BTreeSet<SiteId>,
    finished: bool,
    scored_last: BTreeSet<SiteId>,
}

impl Watch {
    pub(super) fn new(output: ChildStdout, loud: bool, members: &[Member], settings: &Settings) -> Self {
        let screen = MultiProgress::new();
        let bars = match loud && std::io::stderr().is_terminal() {
            true => members
                .iter()
                .filter(|m| m.role == Role::Trainer)
                .map(|m| bar(&screen, &m.site, settings))
                .collect(),
            false => BTreeMap::new(),
        };
        Self {
            lines: BufReader::new(output).lines(),
            loud,
            screen,
            bars,
            rounds: settings.rounds,
            steps: settings.steps,
            connected: BTreeSet::new(),
            finished: false,
            scored_last: BTreeSet::new(),
        }
    }

    /// Until the server listens.
    pub(super) async fn listening(&mut self) -> anyhow::Result<()> {
        while !matches!(self.next().await?, Line::Listening { .. }) {}
        Ok(())
    }

    /// Until all sites were connected once.
    pub(super) async fn all_connected(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        while self.connected.len() < wanted.connected {
            self.next().await?;
        }
        Ok(())
    }

    /// Until the study is finished and the last model is scored.
    pub(super) async fn finished(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        while !self.finished || wanted.evaluators.iter().any(|site| !self.scored_last.contains(site)) {
            self.next().await?;
        }
        self.bars.values().for_each(ProgressBar::finish_and_clear);
        Ok(())
    }

    async fn next(&mut self) -> anyhow::Result<Line> {
        let read = tokio::time::timeout(SILENCE, self.lines.next_line()).await;
        let text = read.context("nothing was heard of the consortium for half an hour")??;
        let Some(text) = text else { bail!("the coordinator has nothing more to tell") };
        let line: Line =
            serde_json::from_str(&text).with_context(|| format!("not a line of progress: {text}"))?;
        self.take(&line);
        self.show(&line);
        Ok(line)
    }

    fn take(&mut self, line: &Line) {
        match line {
            Line::Connected { site, .. } => drop(self.connected.insert(site.clone())),
            Line::Study { what, .. } if what == "finished" => self.finished = true,
            Line::Scored { site, round, .. } if round.0 == self.rounds => {
                self.scored_last.insert(site.clone());
            }
            _ => {}
        }
    }

    fn show(&self, line: &Line) {
        if let Line::Training { site, round, step, loss, .. } = line {
            let Some(bar) = self.bars.get(site) else { return };
            let done = u64::from(round.0.saturating_sub(1)) * u64::from(self.steps) + u64::from(*step);
            bar.set_position(done);
            return bar.set_message(loss.map_or(String::new(), |loss| format!("loss {loss:.4}")));
        }
        let counted =
            matches!(line, Line::Study { what, .. } if what == "update-counted" || what == "round-opened");
        if self.loud && !counted {
            self.screen.suspend(|| crate::cli::line(&line.to_string()));
        }
    }
}

fn bar(screen: &MultiProgress, site: &SiteId, settings: &Settings) -> (SiteId, ProgressBar) {
    let bar = screen.add(ProgressBar::new(u64::from(settings.rounds) * u64::from(settings.steps)));
    // The template is ours; should it not parse, the default bar does.
    if let Ok(style) = ProgressStyle::with_template("{prefix:12} {wide_bar} {pos}/{len} steps {msg:14} {eta}")
    {
        bar.set_style(style);
    }
    bar.set_prefix(site.to_string());
    (site.clone(), bar)
}
