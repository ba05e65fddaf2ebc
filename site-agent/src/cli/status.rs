//! `site-agent status`: what the running agent wrote down about itself.

use clap::Args;

use super::error_report::CliError;
use super::{ConfigArgs, json, line};
use crate::client::state::{AgentStatus, StateFolder};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<(), CliError> {
    let state = StateFolder::open(&args.config.read()?.state)?;
    let running = state.is_locked();
    let status = state.read_status()?;
    if args.json {
        return json(&serde_json::json!({ "running": running, "status": status }));
    }
    match status {
        Some(status) if running => words(&status).into_iter().for_each(line),
        Some(status) => line(format!("not running; last heard of at {}", status.at)),
        None => line("not running, and never was: start it with `site-agent run`"),
    }
    Ok(())
}

fn words(status: &AgentStatus) -> Vec<String> {
    let mut lines = vec![format!("running (process {})", status.process)];
    lines.push(match (&status.problem, status.connected) {
        (_, true) => match &status.lane {
            Some(lane) => format!("connected {lane}"),
            None => "connected".to_owned(),
        },
        (Some(problem), false) => format!("not connected: {problem}"),
        (None, false) => "not connected yet".to_owned(),
    });
    if let Some(paused) = &status.paused {
        lines.push(format!("paused: {paused}"));
    }
    if let Some(waiting) = &status.waiting {
        lines.push(format!("waiting: {waiting}"));
    }
    if let Some((study, round)) = status.work {
        let steps = status.steps.map_or(String::new(), |(done, of)| format!(", step {done} of {of}"));
        lines.push(format!("{}: study {}, round {round}{steps}", status.phase, study.short()));
    }
    if status.evaluation != "idle" {
        lines.push(status.evaluation.clone());
    }
    for study in &status.waiting_for_approval {
        lines.push(format!("study {0} waits for you: `site-agent study show {0}`", study.short()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use common::ids::{Digest, StudyDigest};

    use super::*;

    #[test]
    fn the_status_is_told_in_words() {
        let study = StudyDigest(Digest::from_bytes([0xab; 32]));
        let status = AgentStatus {
            at: jiff::Timestamp::UNIX_EPOCH,
            process: 77,
            connected: false,
            problem: Some("no answer".to_owned()),
            paused: Some("disk full: 0 MiB are free".to_owned()),
            waiting: Some("daily egress limit reached, continues at 00:00 UTC".to_owned()),
            lane: None,
            phase: "training".to_owned(),
            work: Some((study, 3)),
            steps: Some((12, 50)),
            evaluation: "idle".to_owned(),
            waiting_for_approval: vec![study],
        };
        insta::assert_snapshot!(words(&status).join("\n"), @r"
        running (process 77)
        not connected: no answer
        paused: disk full: 0 MiB are free
        waiting: daily egress limit reached, continues at 00:00 UTC
        training: study abababab, round 3, step 12 of 50
        study abababab waits for you: `site-agent study show abababab`
        ");
        let lane = Some("over TCP, as site.toml says".to_owned());
        let connected = AgentStatus { connected: true, problem: None, lane, ..status };
        assert_eq!(words(&connected)[1], "connected over TCP, as site.toml says");
    }
}
