//! How an examination of the store is shown: a line for each check, on standard error how far the reading is.

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::line;
use crate::config::Config;
use crate::doctor::{self, Finding, Told};
use crate::error_report::Refused;

/// Runs the doctor; fails when something is bad.
pub(super) async fn run(
    config: &Config,
    repair: bool,
    json: bool,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    // Drawn only where somebody looks.
    let bar = ProgressBar::new(0);
    // The template is ours; should it not parse, the default bar does.
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes} read, {eta}") {
        bar.set_style(style);
    }
    let mut tell = |told: Told<'_>| match told {
        Told::ToRead(bytes) => bar.inc_length(bytes),
        Told::Read(bytes) => bar.inc(bytes),
        Told::Finding(finding) => bar.suspend(|| line(&shown(finding, json))),
    };
    let examined = doctor::examine(config, repair, stop, &mut tell).await;
    bar.finish_and_clear();
    let summary = examined?;
    if stop.is_cancelled() {
        bail!("interrupted: not everything was looked at");
    }
    if summary.bad == 0 {
        if !json {
            line(&summary.to_string());
        }
        return Ok(());
    }
    let hint = match repair {
        true => "each line says what to do; what was moved away lies in `quarantine` in the state folder",
        false => {
            "each line says what to do; `coordinator doctor --repair` moves what is corrupt out of the way"
        }
    };
    Err(Refused { words: summary.to_string(), hint: Some(hint.to_owned()) }.into())
}

fn shown(finding: &Finding, json: bool) -> String {
    match json {
        // Strings and a name: they have a JSON form.
        true => serde_json::to_string(finding).unwrap_or_default(),
        false => finding.to_string(),
    }
}
