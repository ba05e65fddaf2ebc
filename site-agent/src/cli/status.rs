//! `site-agent status`: what the running agent wrote down about itself.

use std::path::Path;

use clap::Args;

use super::error_report::CliError;
use super::{ConfigArgs, json, line};
use crate::client::files::{DISK_READ_ONLY, FileError};
use crate::client::state::{AgentStatus, StateFolder};
use crate::client::studies::StudyFolder;

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
    let state = StateFolder::at(&args.config.read()?.state);
    let running = state.is_locked();
    let status = state.read_status()?;
    if args.json {
        return json(&serde_json::json!({ "running": running, "status": status }));
    }
    match status {
        Some(status) if running => {
            words(&status).into_iter().for_each(line);
            if !is_any_under_way(&state.studies())? {
                line(
                    "no study is under way that this site knows of: `site-agent study show` lists those that were",
                );
            }
        }
        heard if state.is_read_only() => line(without_a_lock(state.path(), heard.as_ref())),
        Some(status) => line(format!("not running; last heard of at {}", status.at)),
        None => line("not running, and never was: start it with `site-agent run`"),
    }
    Ok(())
}

/// On a disk that is read-only no agent has the lock that tells of it.
fn without_a_lock(folder: &Path, heard: Option<&AgentStatus>) -> String {
    let last = heard.map_or(String::new(), |status| format!("; last heard of at {}", status.at));
    let folder = folder.display();
    format!(
        "paused: {DISK_READ_ONLY}: {folder}; an agent that was started begins once it can be written{last}"
    )
}

fn is_any_under_way(studies: &StudyFolder) -> Result<bool, FileError> {
    Ok(studies.list()?.into_iter().any(|study| !studies.is_over(study)))
}

/// What the agent is at; without a connection it is not at what needs one.
fn at_work(step: &str, connected: bool) -> String {
    let verb = match step {
        _ if connected => return step.to_owned(),
        "downloading" => "download",
        "uploading" => "upload",
        "reporting" => "report",
        _ => return step.to_owned(),
    };
    format!("waiting for a connection to {verb}")
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
        let phase = at_work(&status.phase, status.connected);
        lines.push(format!("{phase}: study {}, round {round}{steps}", study.short()));
    }
    if status.evaluation != "idle" {
        lines.push(at_work(&status.evaluation, status.connected));
    }
    for (study, round) in &status.set_aside {
        lines.push(format!(
            "study {}, round {round}: waits, as the coordinator does not take or give what it needs; other studies go on",
            study.short()
        ));
    }
    for study in &status.last_models {
        let step = at_work("downloading", status.connected);
        lines.push(format!("{step}: the last model of study {}, which is over", study.short()));
    }
    lines.extend(status.no_part.words());
    for study in &status.waiting_for_approval {
        lines.push(format!("study {0} waits for you: `site-agent study show {0}`", study.short()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use common::ids::{Digest, StudyDigest};
    use common::testing::example_study;

    use super::*;
    use crate::client::no_part::NoPart;

    #[test]
    fn the_status_is_told_in_words() {
        let study = StudyDigest(Digest::from_bytes([0xab; 32]));
        let mut no_part = NoPart::default();
        no_part.lacks_data(StudyDigest(Digest::from_bytes([0xcd; 32])), "the training scans cannot be used");
        let status = AgentStatus {
            at: jiff::Timestamp::UNIX_EPOCH,
            process: 77,
            connected: false,
            problem: Some("no answer".to_owned()),
            paused: Some("disk full: 0 MiB are free".to_owned()),
            waiting: Some("daily egress limit reached, continues at 00:00 UTC".to_owned()),
            lane: None,
            no_part,
            set_aside: vec![(StudyDigest(Digest::from_bytes([0xef; 32])), 7)],
            phase: "training".to_owned(),
            work: Some((study, 3)),
            steps: Some((12, 50)),
            evaluation: "idle".to_owned(),
            last_models: vec![StudyDigest(Digest::from_bytes([0xef; 32]))],
            waiting_for_approval: vec![study],
        };
        insta::assert_snapshot!(words(&status).join("\n"), @r"
        running (process 77)
        not connected: no answer
        paused: disk full: 0 MiB are free
        waiting: daily egress limit reached, continues at 00:00 UTC
        training: study abababab, round 3, step 12 of 50
        study efefefef, round 7: waits, as the coordinator does not take or give what it needs; other studies go on
        waiting for a connection to download: the last model of study efefefef, which is over
        study cdcdcdcd: not taking part: the training scans cannot be used: run `site-agent check`, then start the agent again
        study abababab waits for you: `site-agent study show abababab`
        ");
        let lane = Some("over TCP, as site.toml says".to_owned());
        let connected = AgentStatus { connected: true, problem: None, lane, ..status };
        assert_eq!(words(&connected)[1], "connected over TCP, as site.toml says");
    }

    #[test]
    fn an_agent_that_may_wait_for_the_disk_is_not_said_not_to_run() {
        let told = without_a_lock(Path::new("state"), None);
        assert_eq!(
            told,
            "paused: disk read-only: state; an agent that was started begins once it can be written"
        );
    }

    #[test]
    fn nothing_is_said_to_be_sent_or_fetched_without_a_connection() {
        assert_eq!(at_work("uploading", true), "uploading");
        assert_eq!(at_work("uploading", false), "waiting for a connection to upload");
        assert_eq!(at_work("downloading", false), "waiting for a connection to download");
        assert_eq!(at_work("reporting", false), "waiting for a connection to report");
        assert_eq!(at_work("training", false), "training");
    }

    #[test]
    fn a_site_whose_studies_are_all_over_has_none_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let studies = StudyFolder::at(folder.path());
        assert!(!is_any_under_way(&studies).unwrap());
        let document = example_study();
        studies.store(document.digest(), document.bytes().to_vec()).unwrap();
        assert!(is_any_under_way(&studies).unwrap());
        studies.note_over(document.digest(), Some(document.study().initial_model)).unwrap();
        assert!(!is_any_under_way(&studies).unwrap());
    }
}
