//! Answers as a person reads them: readable without colour, one thing a line.

use std::fmt::Write as _;

use common::ids::SiteId;
use common::study::Study;

use crate::operator::{SiteLine, Status, StudyLine, UnreadableStudy};
use crate::store::pause_name;

/// Everything.
pub(super) fn status(status: &Status) -> String {
    let running = match (&status.address, status.running) {
        (Some(address), true) => format!("running, sites dial {address}"),
        (None, true) => "running".to_owned(),
        // One that was started may wait for the disk: it has nothing to be asked through.
        (_, false) if status.fault.is_some() => "no server answers".to_owned(),
        (_, false) => "not running".to_owned(),
    };
    let mut text = format!("consortium {}: {running}\n", status.consortium);
    if let Some(fault) = &status.fault {
        let detail = status.fault_detail.as_ref().map(|words| format!(": {words}")).unwrap_or_default();
        let _ = match pause_name(fault) {
            Some(name) => writeln!(text, "paused: {name}{detail}"),
            None => writeln!(text, "the store fails: {fault}{detail}"),
        };
    }
    let _ = write!(text, "\n{}\n{}", studies(status), sites(status));
    text
}

/// The studies.
pub(super) fn studies(status: &Status) -> String {
    if status.studies.is_empty() && status.unreadable.is_empty() {
        return "no study; add one with `coordinator study add`\n".to_owned();
    }
    status.studies.iter().map(study).chain(status.unreadable.iter().map(unreadable)).collect()
}

fn unreadable(UnreadableStudy { name, digest, why }: &UnreadableStudy) -> String {
    format!("{name}: cannot be read, and stands still: {why}\n  digest  {digest}\n")
}

/// One study: how it stands, and every setting that decides something.
pub(super) fn settings(standing: &StudyLine, terms: &Study) -> String {
    let lines = terms.settings_in_words().into_iter().map(|line| line + "\n");
    study(standing) + "\n" + &lines.collect::<String>()
}

/// The sites.
pub(super) fn sites(status: &Status) -> String {
    if status.sites.is_empty() {
        return "no site; invite one with `coordinator invite`\n".to_owned();
    }
    let header =
        format!("{:<24} {:<10} {:<9} {:<22} certificate until\n", "site", "role", "status", "connected");
    header + &status.sites.iter().map(site).collect::<String>()
}

fn site(site: &SiteLine) -> String {
    let connected = site.connected.as_deref().unwrap_or("-");
    let until = site.certificate_until.as_deref().unwrap_or("-");
    format!("{:<24} {:<10} {:<9} {connected:<22} {until}\n", site.site, site.role, site.status)
}

/// Sites by name, with commas between them.
pub(super) fn list(sites: &[SiteId]) -> String {
    sites.iter().map(SiteId::as_str).collect::<Vec<_>>().join(", ")
}

fn study(study: &StudyLine) -> String {
    let state = if study.started { study.state.clone() } else { format!("{}, not started", study.state) };
    let mut text = format!("{}: {state}, round {} of {}\n", study.name, study.round, study.rounds);
    let _ = writeln!(text, "  digest  {}\n  model   {}", study.digest, study.model);
    if let Some(what) = &study.waits_for {
        let _ = writeln!(text, "  waits   for {what}");
    }
    let sites = [("without", &study.left_out), ("ready", &study.ready), ("scored", &study.scored_by)];
    for (label, sites) in sites.into_iter().filter(|(_, sites)| !sites.is_empty()) {
        let _ = writeln!(text, "  {label:<7} {}", list(sites));
    }
    for (site, answer) in &study.answers {
        let _ = writeln!(text, "  {site}: {answer}");
    }
    if !study.uncovered.is_empty() {
        let _ = writeln!(text, "  nobody annotates: {}", study.uncovered.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::ids::Role;

    use super::*;

    #[test]
    fn a_study_is_shown_with_all_that_decides_its_rounds() {
        let document = common::testing::example_study();
        let shown = settings(
            &StudyLine {
                name: "Abdomen, three hospitals".to_owned(),
                digest: document.digest().to_string(),
                state: "waiting".to_owned(),
                started: false,
                round: 0,
                rounds: 100,
                model: "cd".repeat(32),
                waits_for: None,
                left_out: Vec::new(),
                ready: Vec::new(),
                answers: BTreeMap::new(),
                scored_by: Vec::new(),
                uncovered: Vec::new(),
            },
            document.study(),
        );
        assert!(
            shown.starts_with("Abdomen, three hospitals: waiting, not started, round 0 of 100\n"),
            "{shown}"
        );
        for (key, value) in [
            ("strategy", "fedavg (default)"),
            ("clip_median_factor", "3.0 (default)"),
            ("sites_per_class", "0 (default)"),
            ("late", "refuse (default)"),
            ("deadline_s", "7200"),
            ("min_volumes", "1 (default)"),
        ] {
            assert!(shown.contains(&format!("\n  {key:<27}  {value:<24}  ")), "{key}: {shown}");
        }
    }

    #[test]
    fn a_study_says_whom_it_leaves_out_and_who_has_scored_it() {
        let site = |name: &str| -> SiteId { name.parse().unwrap() };
        let shown = study(&StudyLine {
            name: "abdomen-without-north".to_owned(),
            digest: "ab".repeat(32),
            state: "finished".to_owned(),
            started: true,
            round: 10,
            rounds: 10,
            model: "cd".repeat(32),
            waits_for: None,
            left_out: vec![site("north")],
            ready: vec![site("south"), site("west")],
            answers: BTreeMap::new(),
            scored_by: vec![site("north-held-out")],
            uncovered: Vec::new(),
        });
        let sites: Vec<_> = shown.lines().skip(3).collect();
        assert_eq!(sites, ["  without north", "  ready   south, west", "  scored  north-held-out"]);
    }

    #[test]
    fn a_server_that_may_wait_for_the_disk_is_not_said_not_to_run() {
        let status = |fault: Option<&str>| {
            status(&Status {
                consortium: "demo".to_owned(),
                running: false,
                address: None,
                fault: fault.map(str::to_owned),
                fault_detail: fault.map(|_| "state has 0 bytes left".to_owned()),
                sites: Vec::new(),
                studies: Vec::new(),
                unreadable: Vec::new(),
            })
        };
        assert!(status(None).starts_with("consortium demo: not running\n\n"));
        let paused = "consortium demo: no server answers\npaused: disk full: state has 0 bytes left\n\n";
        assert!(status(Some("disk-full")).starts_with(paused));
    }

    #[test]
    fn status_is_readable_without_colour() {
        let shown = status(&Status {
            consortium: "demo".to_owned(),
            running: true,
            address: Some("127.0.0.1:4433".to_owned()),
            fault: Some("disk-full".to_owned()),
            fault_detail: Some("state has 0 bytes left".to_owned()),
            sites: vec![SiteLine {
                site: "north".parse().unwrap(),
                role: Role::Trainer,
                status: "active".to_owned(),
                connected: Some("10.0.0.7:50000".to_owned()),
                certificate_until: Some("2027-01-15T08:00:00Z".to_owned()),
            }],
            studies: vec![StudyLine {
                name: "abdomen".to_owned(),
                digest: "ab".repeat(32),
                state: "collecting".to_owned(),
                started: true,
                round: 3,
                rounds: 10,
                model: "cd".repeat(32),
                waits_for: Some("3 updates, 1 is there".to_owned()),
                left_out: Vec::new(),
                ready: vec!["north".parse().unwrap()],
                answers: BTreeMap::from([("north".parse().unwrap(), "training".to_owned())]),
                scored_by: Vec::new(),
                uncovered: vec!["colon".to_owned()],
            }],
            unreadable: Vec::new(),
        });
        insta::assert_snapshot!(shown);
    }
}
