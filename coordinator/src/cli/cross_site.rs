//! `coordinator study cross-site`: leave one site out in a consortium of hospitals, with nothing but ordinary studies.
//!
//! A role is in a certificate, so a hospital that trains scores by a second membership ([`evaluator_of`]). The study that
//! leaves it out is one that its trainer refuses: nobody can make a hospital train, and nothing here keeps it from doing so.
//! Whether it stayed away is read from the rounds when the studies are compared; one that did not is no result.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use common::ids::SiteId;
use common::study::StudyDraft;
use common::taxonomy::Taxonomy;

use super::{done, line};
use crate::config::Config;
use crate::error_report::Refused;
use crate::files::{self, Access};
use crate::operator::client::ask;
use crate::operator::{Reply, Request};
use crate::report::ReportData;
use crate::report::cross_site::{Baseline, CrossSite, LeftOut, evaluator_of};

/// Commands about one study with each site left out.
#[derive(Debug, Subcommand)]
pub(super) enum CrossSiteCommand {
    /// Add a study for each site that is left out, called NAME-without-SITE; says who is to refuse which.
    Add(Add),
    /// Compare these studies once they are finished: site × class with intervals.
    Table(Table),
}

/// Arguments of `study cross-site add`.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// The study (TOML), as for `study add`.
    file: PathBuf,
    /// Its initial model (safetensors).
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Its class embeddings (safetensors).
    #[arg(long, value_name = "FILE")]
    embeddings: PathBuf,
    /// The trainers, each of which is left out once.
    #[arg(long, value_name = "SITES", value_delimiter = ',', required = true)]
    sites: Vec<SiteId>,
}

/// Arguments of `study cross-site table`.
#[derive(Debug, Args)]
pub(super) struct Table {
    /// Name of the study that the others are derived from.
    name: String,
    /// The sites that were left out; SITE-held-out scored.
    #[arg(long, value_name = "SITES", value_delimiter = ',', required = true)]
    sites: Vec<SiteId>,
    /// A study that all sites trained, scored by the same evaluators on scans that nobody trained on.
    #[arg(long, value_name = "STUDY")]
    joined: Option<String>,
    /// Write the numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) async fn run(config: &Config, command: CrossSiteCommand) -> anyhow::Result<()> {
    match command {
        CrossSiteCommand::Add(args) => add(config, &args).await,
        CrossSiteCommand::Table(args) => table(config, &args).await,
    }
}

async fn add(config: &Config, args: &Add) -> anyhow::Result<()> {
    let file = args.file.display().to_string();
    let text = fs::read_to_string(&args.file).with_context(|| file.clone())?;
    // Read here too, so that mistakes are told with the lines of the file that the operator has.
    let draft = StudyDraft::parse(&file, &text, &Taxonomy::standard())
        .map_err(|mistakes| Refused { words: mistakes.to_string(), hint: None })?;
    let folder = tempfile::tempdir()?;
    for site in &args.sites {
        let (evaluator, file) = (evaluator_of(site)?, folder.path().join(format!("{site}.toml")));
        fs::write(&file, without(&text, &draft, site, args.sites.len())?)?;
        let (model, embeddings) = (std::path::absolute(&args.model)?, std::path::absolute(&args.embeddings)?);
        let reply = ask(config, Request::AddStudy { file, model, embeddings }).await?;
        let Reply::Added { study } = reply else { return done(reply) };
        line(&format!("{study}  {site} refuses, {evaluator} and the other sites approve"));
    }
    Ok(())
}

/// Name of the study that leaves `site` out.
fn name_without(name: &str, site: &SiteId) -> String {
    format!("{name}-without-{site}")
}

/// The study's TOML under another name, and with a quorum that one site fewer than `sites` can reach.
fn without(text: &str, draft: &StudyDraft, site: &SiteId, sites: usize) -> anyhow::Result<String> {
    let others = u32::try_from(sites.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
    let mut table: toml::Table = toml::from_str(text)?;
    table.insert("name".to_owned(), name_without(&draft.name, site).into());
    let quorum = table.get_mut("quorum").and_then(toml::Value::as_table_mut).context("no `[quorum]`")?;
    quorum.insert("sites".to_owned(), i64::from(draft.quorum.sites.min(others)).into());
    Ok(toml::to_string(&table)?)
}

async fn table(config: &Config, args: &Table) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let joined = match &args.joined {
        Some(study) => Some(report(config, study, &folder.path().join("joined-study")).await?),
        None => None,
    };
    let mut table = CrossSite::default();
    for site in &args.sites {
        let study = name_without(&args.name, site);
        // A name of a site has no dot: no two of these folders are one.
        let found = report(config, &study, &folder.path().join(format!("{site}.report"))).await?;
        let left_out = LeftOut::of(site.clone(), evaluator_of(site)?, &found).with_context(|| study)?;
        let left_out = match (&joined, &args.joined) {
            (Some(joined), Some(study)) => {
                left_out.beside(Baseline::Joined, joined).with_context(|| study.clone())?
            }
            _ => left_out,
        };
        table.sites.push(left_out);
    }
    line(table.to_text().trim_end());
    if let Some(json) = &args.json {
        files::write_atomic(json, &serde_json::to_vec_pretty(&table)?, Access::Public)
            .with_context(|| json.display().to_string())?;
    }
    Ok(())
}

/// The report of one study, by way of a new folder `out`.
async fn report(config: &Config, study: &str, out: &Path) -> anyhow::Result<ReportData> {
    let request = Request::Report { study: Some(study.to_owned()), out: out.to_owned() };
    match ask(config, request).await? {
        Reply::Report { .. } => Ok(serde_json::from_slice(&fs::read(out.join("report.json"))?)?),
        Reply::Failed { words, hint } => Err(Refused { words, hint }.into()),
        _ => bail!("the coordinator answered another question"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../configs/examples/study.toml");

    fn parse(text: &str) -> StudyDraft {
        StudyDraft::parse("study.toml", text, &Taxonomy::standard()).unwrap()
    }

    #[test]
    fn a_study_without_a_site_differs_in_name_and_quorum_alone() {
        let draft = parse(EXAMPLE);
        let derived = parse(&without(EXAMPLE, &draft, &"north".parse().unwrap(), 2).unwrap());
        assert_eq!(derived.name, format!("{}-without-north", draft.name));
        assert_eq!(derived.quorum.sites, 1, "one of two is left");
        let back = StudyDraft { name: draft.name.clone(), quorum: draft.quorum.clone(), ..derived };
        assert_eq!(back, draft);
    }

    #[test]
    fn a_quorum_that_the_others_reach_stays() {
        let draft = parse(EXAMPLE);
        let derived = parse(&without(EXAMPLE, &draft, &"north".parse().unwrap(), 100).unwrap());
        assert_eq!(derived.quorum, draft.quorum);
    }
}
