//! Runs the studies that leave one site out, one after the other.
//!
//! What comes next follows from what the coordinator says of them all; nothing that matters is remembered here. So the
//! coordinator and this command may be stopped at any instant: run again, it goes on with the first study that has not ended.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use common::ids::{Role, SiteId};

use super::{Leg, find, refused};
use crate::cli::line;
use crate::cli::show::list;
use crate::error_report::Refused;
use crate::operator::client::{AskError, ask_running};
use crate::operator::{Order, Reply, Request, SiteLine, Status, StudyLine};

/// How often the coordinator is asked.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// State of a study that was ended before its time.
pub(super) const ABORTED: &str = "aborted";
/// State of a study that is over.
const FINISHED: &str = "finished";
/// Status of a site that is not revoked.
const ACTIVE: &str = "active";

/// The studies in their order, and where to ask about them.
pub(super) struct Sequence<'a> {
    /// The state folder of the coordinator.
    pub(super) state: &'a Path,
    pub(super) legs: &'a [Leg],
    /// How long a finished study may wait for its score.
    pub(super) score_within: Duration,
    /// How often the coordinator is asked.
    pub(super) every: Duration,
}

/// How far a study is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    NotStarted,
    UnderWay,
    /// Finished, and not scored yet at the site that it left out.
    Unscored,
    Over,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Step<'a> {
    Start(&'a StudyLine),
    Watch(&'a StudyLine),
    AwaitScore(&'a Leg),
    End,
}

/// A study of the experiment, as the coordinator has it.
type Known<'a> = (&'a Leg, &'a StudyLine);

/// What was said and waited for so far.
#[derive(Debug, Default)]
struct Memory {
    last: String,
    ended: BTreeSet<SiteId>,
    unscored_since: BTreeMap<SiteId, Instant>,
    given_up: BTreeSet<SiteId>,
}

impl Sequence<'_> {
    /// Until all studies have ended.
    ///
    /// # Errors
    /// No coordinator runs, or something is missing without which the experiment would fail in the end.
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut status = match self.ask(&Request::Status).await? {
            Some(Reply::Status(status)) => status,
            Some(other) => return Err(refused(other)),
            None => {
                let words = "no coordinator is running: studies would wait for ever".to_owned();
                let hint = Some("start `coordinator run` first, as the same user".to_owned());
                return Err(Refused { words, hint }.into());
            }
        };
        check(&status, &self.known(&status)?)?;
        let mut memory = Memory::default();
        while self.take_step(&status, &mut memory).await? {
            tokio::time::sleep(self.every).await;
            status = self.status_again(&mut memory).await?;
        }
        Ok(())
    }

    /// The studies in their order.
    fn known<'a>(&'a self, status: &'a Status) -> anyhow::Result<Vec<Known<'a>>> {
        self.legs.iter().map(|leg| Ok((leg, find(status, &leg.study)?))).collect()
    }

    /// False when all have ended.
    async fn take_step(&self, status: &Status, memory: &mut Memory) -> anyhow::Result<bool> {
        let known = self.known(status)?;
        for (leg, study) in &known {
            if stage(leg, study, &memory.given_up) == Stage::Over && memory.ended.insert(leg.site.clone()) {
                memory.say(ended(leg, study));
            }
        }
        match next(&known, &memory.given_up) {
            Step::Start(study) => self.start(study, memory).await?,
            Step::Watch(study) => memory.say(progress(study)),
            Step::AwaitScore(leg) => {
                memory.say(format!("{}: finished; {} is to score it", leg.study, leg.evaluator));
                let since = memory.unscored_since.entry(leg.site.clone()).or_insert_with(Instant::now);
                if since.elapsed() >= self.score_within {
                    memory.given_up.insert(leg.site.clone());
                }
            }
            Step::End => return Ok(false),
        }
        Ok(true)
    }

    /// Starts a study. Whether that came to anything is for the next status to say: the answer may be lost.
    async fn start(&self, study: &StudyLine, memory: &mut Memory) -> anyhow::Result<()> {
        let request = Request::Control { study: study.digest.clone(), order: Order::Start };
        match self.ask(&request).await? {
            Some(Reply::Done { words } | Reply::Failed { words, .. }) => {
                memory.say(format!("{}: {words}", study.name));
            }
            Some(other) => return Err(refused(other)),
            None => {}
        }
        Ok(())
    }

    /// Asks until there is an answer: what runs for days outlives a restart.
    async fn status_again(&self, memory: &mut Memory) -> anyhow::Result<Status> {
        loop {
            match self.ask(&Request::Status).await? {
                Some(Reply::Status(status)) => return Ok(status),
                Some(Reply::Failed { words, .. }) => memory.say(format!("the coordinator fails: {words}")),
                Some(other) => return Err(refused(other)),
                None => memory.say("the coordinator has stopped: waiting until it runs again".to_owned()),
            }
            tokio::time::sleep(self.every).await;
        }
    }

    /// The running coordinator's answer; `None` when none runs, or it stopped over the question.
    async fn ask(&self, request: &Request) -> Result<Option<Reply>, AskError> {
        match ask_running(self.state, request).await {
            Err(AskError::Exchange(_)) => Ok(None),
            answer => answer,
        }
    }
}

impl Memory {
    /// Says a thing, unless it was the last that was said.
    fn say(&mut self, text: String) {
        if text != self.last {
            line(&text);
            self.last = text;
        }
    }
}

/// One study at a time: whoever began it, what is under way ends before another begins.
fn next<'a>(known: &[Known<'a>], given_up: &BTreeSet<SiteId>) -> Step<'a> {
    let first =
        |wanted: Stage| known.iter().copied().find(|(leg, study)| stage(leg, study, given_up) == wanted);
    if let Some((_, study)) = first(Stage::UnderWay) {
        return Step::Watch(study);
    }
    if let Some((leg, _)) = first(Stage::Unscored) {
        return Step::AwaitScore(leg);
    }
    first(Stage::NotStarted).map_or(Step::End, |(_, study)| Step::Start(study))
}

fn stage(leg: &Leg, study: &StudyLine, given_up: &BTreeSet<SiteId>) -> Stage {
    match study.state.as_str() {
        ABORTED => Stage::Over,
        FINISHED if study.scored_by.contains(&leg.evaluator) || given_up.contains(&leg.site) => Stage::Over,
        FINISHED => Stage::Unscored,
        _ if study.started => Stage::UnderWay,
        _ => Stage::NotStarted,
    }
}

/// Refuses what would be noticed only after days of training: a study that was aborted or keeps nobody out, or a site that is not
/// there.
fn check(status: &Status, known: &[Known<'_>]) -> anyhow::Result<()> {
    if let Some((Leg { site, study, .. }, _)) = known.iter().find(|(_, study)| study.state == ABORTED) {
        let words = format!("the study `{study}` was aborted: the table would be without {site}");
        let hint = format!(
            "leave {site} out of --sites, or run `coordinator study cross-site add` again, as before: it says what to add in the \
             place of this study"
        );
        return Err(Refused { words, hint: Some(hint) }.into());
    }
    for (leg, study) in known.iter().filter(|(_, study)| !study.started) {
        let Leg { site, evaluator, study: name } = leg;
        if !study.left_out.contains(site) {
            let words = format!("the study `{name}` does not leave {site} out");
            let hint = "abort it, and add it again with `coordinator study cross-site add`".to_owned();
            return Err(Refused { words, hint: Some(hint) }.into());
        }
        for (site, role) in [(site, Role::Trainer), (evaluator, Role::Evaluator)] {
            let is_it = |line: &SiteLine| line.site == *site && line.role == role && line.status == ACTIVE;
            if !status.sites.iter().any(is_it) {
                let words = format!("no {role} is called `{site}`");
                let hint =
                    format!("`coordinator invite {site} --role {role}`, and let the hospital enrol first");
                return Err(Refused { words, hint: Some(hint) }.into());
            }
        }
    }
    Ok(())
}

/// Where a study stands that is under way.
fn progress(study: &StudyLine) -> String {
    let StudyLine { name, round, rounds, state, ready, .. } = study;
    let text = format!("{name}: round {round} of {rounds}");
    match state.as_str() {
        "distributing" | "collecting" | "aggregating" | "committing" | "committed" => text,
        "waiting" if ready.is_empty() => format!("{text} waits for sites, none is ready"),
        "waiting" => format!("{text} waits for sites, ready: {}", list(ready)),
        other => format!("{text}, {other}"),
    }
}

/// How a study has ended.
fn ended(leg: &Leg, study: &StudyLine) -> String {
    let Leg { evaluator, study: name, .. } = leg;
    match study.state.as_str() {
        ABORTED => format!("{name}: aborted, so it is no result"),
        _ if study.scored_by.contains(evaluator) => format!("{name}: finished, scored by {evaluator}"),
        _ => format!("{name}: finished, not scored by {evaluator} in time"),
    }
}
