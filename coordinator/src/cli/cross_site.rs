//! `coordinator study cross-site`: leave one site out in a consortium of hospitals, with nothing but ordinary studies.
//!
//! A role is in a certificate, so a hospital that trains scores by a second membership ([`evaluator_of`]). The study that
//! leaves it out says so, and nothing of its trainer is taken. That it had no part is read from the rounds all the same when
//! the studies are compared; one in which it had is no result. Which study comes next is `sequence`'s to say.

mod sequence;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use common::config::Diagnostics;
use common::ids::{ParseIdError, SiteId};
use common::study::StudyDraft;
use common::study::sections::Participants;
use common::taxonomy::Taxonomy;
use tokio_util::sync::CancellationToken;

use self::sequence::{EVERY, Sequence};
use super::{done, line, note};
use crate::config::Config;
use crate::error_report::Refused;
use crate::files::{self, Access};
use crate::operator::client::ask;
use crate::operator::{FailureCode, Reply, Request, Status, StudyLine};
use crate::report::ReportData;
use crate::report::cross_site::{Baseline, CrossSite, evaluator_of};

/// Commands about one study with each site left out.
#[derive(Debug, Subcommand)]
pub(super) enum CrossSiteCommand {
    /// Add a study for each site that is left out, called NAME-without-SITE.
    Add(Add),
    /// Run these studies one after the other, then compare them. Stopped and run again, it goes on where they stand.
    Run(Run),
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
    /// Its classes (TOML), where they are not the 32 of the universal model.
    #[arg(long, value_name = "FILE")]
    taxonomy: Option<PathBuf>,
    /// The trainers, each of which is left out once.
    #[arg(long, value_name = "SITES", value_delimiter = ',', required = true)]
    sites: Vec<SiteId>,
}

/// Arguments of `study cross-site table`.
#[derive(Debug, Args)]
pub(super) struct Table {
    /// Name of the study that the others are derived from.
    name: String,
    /// The sites that are left out, in their order; SITE-held-out scores.
    #[arg(long, value_name = "SITES", value_delimiter = ',', required = true)]
    sites: Vec<SiteId>,
    /// A study that all sites trained, scored by the same evaluators on scans that nobody trained on.
    #[arg(long, value_name = "STUDY")]
    joined: Option<String>,
    /// Write the numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `study cross-site run`.
#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    table: Table,
    /// How long a finished study may wait to be scored at the site that it left out, before the next one begins.
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    score_within: u32,
}

/// One study of the experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leg {
    /// The site that it leaves out.
    site: SiteId,
    /// Who scores it there.
    evaluator: SiteId,
    /// Its name.
    study: String,
}

pub(super) async fn run(
    config: &Config,
    command: CrossSiteCommand,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    match command {
        CrossSiteCommand::Add(args) => add(config, &args).await,
        CrossSiteCommand::Run(args) => run_all(config, &args, stop).await,
        CrossSiteCommand::Table(args) => table(config, &args).await,
    }
}

async fn add(config: &Config, args: &Add) -> anyhow::Result<()> {
    if let Some(twice) = twice(&args.sites) {
        bail!("--sites names `{twice}` twice: expected each trainer once");
    }
    let file = args.file.display().to_string();
    let text = fs::read_to_string(&args.file).with_context(|| file.clone())?;
    // Read here too, so that mistakes are told with the lines of the file that the operator has.
    let classes = read_classes(args.taxonomy.as_deref())?;
    let draft = StudyDraft::parse(&file, &text, &classes).map_err(mistaken)?;
    let (folder, mut aborted, mut noted) = (tempfile::tempdir()?, Vec::new(), BTreeSet::new());
    for site in &args.sites {
        let (evaluator, file) = (evaluator_of(site)?, folder.path().join(format!("{site}.toml")));
        fs::write(&file, without(&text, &draft, site, args.sites.len())?)?;
        let (model, embeddings) = (std::path::absolute(&args.model)?, std::path::absolute(&args.embeddings)?);
        let taxonomy = args.taxonomy.as_ref().map(std::path::absolute).transpose()?;
        let reply = ask(config, Request::AddStudy { file, model, embeddings, taxonomy }).await?;
        let (study, remark) = match reply {
            Reply::Added { study, remark } => (study, remark),
            Reply::Failed { code: Some(FailureCode::StudyAborted), .. } => {
                match replacement(config, &name_without(&draft.name, site)).await? {
                    Some(study) => (study, None),
                    None => {
                        aborted.push(site);
                        continue;
                    }
                }
            }
            other => return done(other),
        };
        line(&format!("{study}  without {site}; {evaluator} and the other sites approve"));
        // One that is the same of all is said once.
        remark.filter(|text| noted.insert(text.clone())).iter().for_each(|text| note(text));
    }
    if aborted.is_empty() {
        return Ok(());
    }
    Err(instead_of_aborted(&draft, &aborted, args.sites.len()).into())
}

/// Digest of the study that was added in the place of an aborted one of this name.
async fn replacement(config: &Config, name: &str) -> anyhow::Result<Option<String>> {
    let status = match ask(config, Request::Status).await? {
        Reply::Status(status) => status,
        other => return Err(refused(other)),
    };
    let stands = |study: &&StudyLine| study.name == name && study.state != sequence::ABORTED;
    Ok(status.studies.iter().find(stands).map(|study| study.digest.clone()))
}

/// Why the studies that leave these of `sites` sites out are not added, and what is, instead. Another `seed` in the file of them all
/// would add those a second time that are well.
fn instead_of_aborted(draft: &StudyDraft, aborted: &[&SiteId], sites: usize) -> Refused {
    let names = aborted.iter().map(|site| format!("`{}`", name_without(&draft.name, site)));
    let words = format!("aborted studies do not start again: {}", names.collect::<Vec<_>>().join(", "));
    let differences = aborted.iter().map(|site| {
        let leave_out = leave_out_besides(draft, site);
        let leave_out: Vec<_> = leave_out.iter().map(SiteId::as_str).collect();
        format!("name = \"{}\" and [participants] leave_out = {leave_out:?}", name_without(&draft.name, site))
    });
    let hint = format!(
        "all others are here. In the place of each of these, add a copy of your file with `coordinator study add`: with \
         another `seed`, [quorum] sites = {}, {}",
        quorum_without_one(draft, sites),
        differences.collect::<Vec<_>>().join("; or ")
    );
    Refused { words, hint: Some(hint) }
}

/// A site that is named more than once.
fn twice(sites: &[SiteId]) -> Option<&SiteId> {
    sites.iter().enumerate().find(|(index, site)| sites[..*index].contains(site)).map(|(_, site)| site)
}

/// The taxonomy of a file, or the standard one.
fn read_classes(file: Option<&Path>) -> anyhow::Result<Taxonomy> {
    let Some(file) = file else { return Ok(Taxonomy::standard()) };
    let shown = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| shown.clone())?;
    Ok(Taxonomy::parse(&shown, &text).map_err(mistaken)?)
}

/// Mistakes of a study's files, told as the coordinator tells them.
fn mistaken(mistakes: Diagnostics) -> Refused {
    Refused { words: mistakes.to_string(), hint: None }
}

/// Name of the study that leaves `site` out.
fn name_without(name: &str, site: &SiteId) -> String {
    format!("{name}-without-{site}")
}

/// The study's TOML under another name, without the site, and with a quorum that one site fewer than `sites` can reach.
fn without(text: &str, draft: &StudyDraft, site: &SiteId, sites: usize) -> anyhow::Result<String> {
    let mut table: toml::Table = toml::from_str(text)?;
    table.insert("name".to_owned(), name_without(&draft.name, site).into());
    let quorum = table.get_mut("quorum").and_then(toml::Value::as_table_mut).context("no `[quorum]`")?;
    quorum.insert("sites".to_owned(), i64::from(quorum_without_one(draft, sites)).into());
    let leave_out = leave_out_besides(draft, site);
    let participants = toml::Value::try_from(Participants { leave_out, ..draft.participants.clone() })?;
    table.insert("participants".to_owned(), participants);
    Ok(toml::to_string(&table)?)
}

/// The study's quorum, where one site fewer than `sites` can reach it.
fn quorum_without_one(draft: &StudyDraft, sites: usize) -> u32 {
    let others = u32::try_from(sites.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
    draft.quorum.sites.min(others)
}

/// Whom the study leaves out anyway, and the site.
fn leave_out_besides(draft: &StudyDraft, site: &SiteId) -> Vec<SiteId> {
    let mut leave_out = draft.participants.leave_out.clone();
    if !leave_out.contains(site) {
        leave_out.push(site.clone());
    }
    leave_out
}

async fn run_all(config: &Config, args: &Run, stop: &CancellationToken) -> anyhow::Result<()> {
    let legs = args.table.legs()?;
    let score_within = Duration::from_secs(3600 * u64::from(args.score_within));
    let sequence = Sequence { state: &config.state, legs: &legs, score_within, every: EVERY };
    match stop.run_until_cancelled(sequence.run()).await {
        Some(ended) => ended?,
        None => bail!("interrupted; the study under way goes on, and this command, run again, with it"),
    }
    table(config, &args.table).await
}

impl Table {
    fn legs(&self) -> Result<Vec<Leg>, ParseIdError> {
        self.sites.iter().map(|site| Leg::of(&self.name, site)).collect()
    }
}

impl Leg {
    fn of(name: &str, site: &SiteId) -> Result<Self, ParseIdError> {
        Ok(Self { site: site.clone(), evaluator: evaluator_of(site)?, study: name_without(name, site) })
    }
}

async fn table(config: &Config, args: &Table) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let joined = match &args.joined {
        Some(study) => Some(report(config, study, &folder.path().join("joined-study")).await?),
        None => None,
    };
    let status = match ask(config, Request::Status).await? {
        Reply::Status(status) => status,
        other => return Err(refused(other)),
    };
    let mut table = CrossSite::default();
    for Leg { site, evaluator, study } in args.legs()? {
        let digest = &find(&status, &study)?.digest;
        // A name of a site has no dot: no two of these folders are one.
        let found = report(config, digest, &folder.path().join(format!("{site}.report"))).await?;
        table.add(site, evaluator, &found).with_context(|| study)?;
    }
    if let (Some(joined), Some(study)) = (&joined, &args.joined) {
        table.beside(Baseline::Joined, joined).with_context(|| study.clone())?;
    }
    line(table.to_text().trim_end());
    if let Some(json) = &args.json {
        files::write_atomic(json, &serde_json::to_vec_pretty(&table)?, Access::Public)
            .with_context(|| json.display().to_string())?;
    }
    Ok(whole(&table)?)
}

/// So that a script does not take what is missing for a result.
fn whole(table: &CrossSite) -> Result<(), Refused> {
    if table.missing.is_empty() {
        return Ok(());
    }
    let hint = "`coordinator study cross-site table` prints it again, once they are scored; an aborted study gives its name to \
                another that you add";
    Err(Refused { words: "the table is not whole".to_owned(), hint: Some(hint.to_owned()) })
}

/// The study of this name. One that was aborted gives its name to another: so is a mistake mended.
fn find<'a>(status: &'a Status, name: &str) -> anyhow::Result<&'a StudyLine> {
    let named = status.studies.iter().filter(|study| study.name == name);
    let (aborted, others): (Vec<_>, Vec<_>) = named.partition(|study| study.state == sequence::ABORTED);
    let (words, hint) = match (others.as_slice(), aborted.as_slice()) {
        ([study], _) | ([], [.., study]) => return Ok(*study),
        ([], []) => (format!("no study is called `{name}`"), "`coordinator study cross-site add` makes it"),
        _ => (format!("several studies are called `{name}`"), "abort those that are not meant"),
    };
    Err(Refused { words, hint: Some(hint.to_owned()) }.into())
}

/// Why a reply is not the one that was asked for.
fn refused(reply: Reply) -> anyhow::Error {
    match reply {
        Reply::Failed { words, hint, .. } => Refused { words, hint }.into(),
        _ => anyhow!("the coordinator answered another question"),
    }
}

/// The report of one study, by way of a new folder `out`.
async fn report(config: &Config, study: &str, out: &Path) -> anyhow::Result<ReportData> {
    let request = Request::Report { study: Some(study.to_owned()), out: out.to_owned() };
    match ask(config, request).await? {
        Reply::Report { .. } => Ok(serde_json::from_slice(&fs::read(out.join("report.json"))?)?),
        other => Err(refused(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::export_safetensors;
    use crate::fixture::Fixture;
    use crate::operator::Order;
    use crate::report::cross_site::Missing;

    const EXAMPLE: &str = include_str!("../../../configs/examples/study.toml");

    fn parse(text: &str) -> StudyDraft {
        StudyDraft::parse("study.toml", text, &Taxonomy::standard()).unwrap()
    }

    fn site(name: &str) -> SiteId {
        name.parse().unwrap()
    }

    #[test]
    fn a_study_without_a_site_says_so_and_differs_in_name_and_quorum_besides() {
        let draft = parse(EXAMPLE);
        let derived = parse(&without(EXAMPLE, &draft, &site("north"), 2).unwrap());
        assert_eq!(derived.name, format!("{}-without-north", draft.name));
        assert_eq!(derived.quorum.sites, 1, "one of two is left");
        assert_eq!(derived.participants.leave_out, [site("north")]);
        let StudyDraft { name, quorum, participants, .. } = draft.clone();
        assert_eq!(StudyDraft { name, quorum, participants, ..derived }, draft);
    }

    #[tokio::test]
    async fn where_one_was_aborted_the_others_are_added_and_it_alone_is_to_be_replaced() {
        let fixture = Fixture::new().await;
        let (store, folder) = (fixture.store().await, tempfile::tempdir().unwrap());
        let names = ["study.toml", "model.safetensors", "embeddings.safetensors", "north.toml"];
        let [file, model, embeddings, north] = names.map(|name| folder.path().join(name));
        let pinned = fixture.study.study();
        for (hash, path) in [(pinned.initial_model, &model), (pinned.embeddings.artifact, &embeddings)] {
            let artifact = store.artifacts().read(&hash).unwrap().unwrap();
            export_safetensors(&artifact, "few-hot", path).unwrap();
        }
        store.close().await;
        let (config, draft) = (&fixture.config, parse(EXAMPLE));
        fs::write(&file, EXAMPLE).unwrap();
        let (of_north, of_south) =
            (name_without(&draft.name, &site("north")), name_without(&draft.name, &site("south")));
        let sites = ["north", "south"].map(site).to_vec();
        let all = Add { file, model, embeddings, taxonomy: None, sites };
        let text = without(EXAMPLE, &draft, &site("north"), 2).unwrap();
        let add_without_north = async |text: &str| {
            fs::write(&north, text).unwrap();
            let (file, model, embeddings) = (north.clone(), all.model.clone(), all.embeddings.clone());
            let request = Request::AddStudy { file, model, embeddings, taxonomy: None };
            assert!(matches!(ask(config, request).await.unwrap(), Reply::Added { .. }));
        };
        add_without_north(&text).await;
        let abort = Request::Control { study: of_north.clone(), order: Order::Abort };
        assert!(matches!(ask(config, abort).await.unwrap(), Reply::Done { .. }));

        let error = add(config, &all).await.unwrap_err();
        let Refused { words, hint } = error.downcast_ref::<Refused>().unwrap();
        assert_eq!(*words, format!("aborted studies do not start again: `{of_north}`"));
        assert!(hint.as_ref().unwrap().contains("[quorum] sites = 1"), "{hint:?}");
        let Reply::Status(status) = ask(config, Request::Status).await.unwrap() else {
            panic!("it is there")
        };
        assert!(find(&status, &of_south).is_ok(), "{status:?}");

        let another = text.replace("seed = 20231002", "seed = 20231003");
        assert_ne!(another, text);
        add_without_north(&another).await;
        add(config, &all).await.unwrap();
    }

    #[test]
    fn of_all_that_were_aborted_it_is_said_what_comes_in_their_place() {
        let draft = parse(&format!("{EXAMPLE}\n[participants]\nleave_out = [\"west\"]\n"));
        let [north, south] = ["north", "south"].map(site);
        let Refused { words, hint } = instead_of_aborted(&draft, &[&north, &south], 2);
        let [of_north, of_south] = [&north, &south].map(|site| name_without(&draft.name, site));
        assert!(words.ends_with(&format!("`{of_north}`, `{of_south}`")), "{words}");
        let hint = hint.unwrap();
        let [for_north, for_south] = [(&of_north, "north"), (&of_south, "south")].map(|(name, site)| {
            format!("name = \"{name}\" and [participants] leave_out = [\"west\", \"{site}\"]")
        });
        let expected = format!("another `seed`, [quorum] sites = 1, {for_north}; or {for_south}");
        assert!(hint.ends_with(&expected), "{hint}");
    }

    #[test]
    fn a_site_is_left_out_once() {
        assert_eq!(twice(&["north", "south"].map(site)), None);
        assert_eq!(twice(&["north", "south", "north"].map(site)), Some(&site("north")));
    }

    #[test]
    fn whom_the_study_leaves_out_anyway_stays_out() {
        let text = format!("{EXAMPLE}\n[participants]\nleave_out = [\"west\"]\n");
        let left_out = |name| {
            let derived = parse(&without(&text, &parse(&text), &site(name), 3).unwrap());
            derived.participants.leave_out
        };
        assert_eq!(left_out("north"), [site("west"), site("north")]);
        assert_eq!(left_out("west"), [site("west")]);
    }

    #[test]
    fn a_table_that_is_not_whole_is_no_success() {
        let mut table = CrossSite::default();
        assert!(whole(&table).is_ok());
        let (study, why) = ("abdomen-without-north".to_owned(), "the study is aborted".to_owned());
        table.missing.push(Missing { site: site("north"), study, why });
        assert_eq!(whole(&table).unwrap_err().words, "the table is not whole");
    }

    #[test]
    fn a_quorum_that_the_others_reach_stays() {
        let draft = parse(EXAMPLE);
        let derived = parse(&without(EXAMPLE, &draft, &site("north"), 100).unwrap());
        assert_eq!(derived.quorum, draft.quorum);
    }
}
