//! What the coordinator tells, line by line: shown to whoever watches, and waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use common::ids::{Role, SiteId};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

use super::consortium::{Member, pictures};
use super::study::Settings;
use crate::progress::Line;

/// Longest silence of a consortium at work, and longest time for one scan of an evaluator.
const SILENCE: Duration = Duration::from_secs(1800);

/// What must have happened.
pub(super) struct Wanted {
    pub(super) connected: usize,
    pub(super) evaluators: Vec<SiteId>,
}

/// Reads the coordinator's lines.
pub(super) struct Watch {
    lines: Lines<BufReader<ChildStdout>>,
    /// Where evaluators draw each scan that they have scored.
    overlays: Vec<PathBuf>,
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
    pub(super) fn new(
        output: ChildStdout,
        overlays: Vec<PathBuf>,
        loud: bool,
        members: &[Member],
        settings: &Settings,
    ) -> Self {
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
            overlays,
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
        let text = next_line(&mut self.lines, |since| is_drawn_since(&self.overlays, since)).await?;
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

/// The next line, as long as there is one within [`SILENCE`], or `is_scoring` since the silence began: an evaluator has nothing to tell
/// the coordinator before its last scan is scored, which may take hours.
async fn next_line<R: AsyncBufRead + Unpin>(
    lines: &mut Lines<R>,
    is_scoring: impl Fn(SystemTime) -> bool,
) -> anyhow::Result<Option<String>> {
    loop {
        let since = SystemTime::now();
        match tokio::time::timeout(SILENCE, lines.next_line()).await {
            Ok(read) => return Ok(read?),
            Err(_) if is_scoring(since) => {}
            Err(_) => {
                bail!(
                    "for half an hour nothing was heard of the consortium, and no evaluator has scored a scan"
                )
            }
        }
    }
}

/// Whether a picture in one of these folders was drawn since then.
fn is_drawn_since(overlays: &[PathBuf], since: SystemTime) -> bool {
    let mut drawn = overlays.iter().flat_map(|folder| pictures(folder));
    drawn.any(|picture| picture.metadata().and_then(|of| of.modified()).is_ok_and(|drawn| drawn >= since))
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::{self, File};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silence_in_which_an_evaluator_scores_is_no_end() {
        // Held open: nothing is said, and nobody hangs up.
        let (_coordinator, output) = tokio::io::duplex(64);
        let mut lines = BufReader::new(output).lines();
        let (begun, scored) = (tokio::time::Instant::now(), Cell::new(0));
        let is_scoring = |_| {
            scored.set(scored.get() + 1);
            scored.get() < 4
        };
        let ended = next_line(&mut lines, is_scoring).await.unwrap_err().to_string();
        assert!(ended.contains("no evaluator has scored a scan"), "{ended}");
        assert_eq!(begun.elapsed().as_secs(), 4 * SILENCE.as_secs());
    }

    #[test]
    fn an_evaluator_scores_as_long_as_it_draws() {
        let folder = tempfile::tempdir().unwrap();
        let overlays = [folder.path().join("none"), folder.path().join("overlays")];
        let of_round = overlays[1].join("be76e99a-round-2");
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(!is_drawn_since(&overlays, since));
        fs::create_dir_all(&of_round).unwrap();
        let draw = |name: &str, at| File::create(of_round.join(name)).unwrap().set_modified(at).unwrap();
        draw("case-0000.png", since - Duration::from_secs(1));
        assert!(!is_drawn_since(&overlays, since), "of before");
        draw("case-0001.png", since + Duration::from_secs(1));
        assert!(is_drawn_since(&overlays, since));
    }
}
