//! One consortium of processes: coordinator, trainers and evaluator, from `init` to the report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use common::ids::{Role, SiteId};
use serde::Deserialize;

use super::Programs;
use super::process::{Process, Program};
use super::study::{EMBEDDING_SCALE, Embedding, MINILM, POLICY, Settings};
use super::watch::{Wanted, Watch};
use crate::cli::line;
use crate::config::Config;
use crate::files::{self, Access};
use crate::operator::client::ask_running;
use crate::operator::{Order, Reply, Request};
use crate::report::{Overlay, ReportData};

/// The evaluator of real scans.
const HELD_OUT: &str = "held-out";

/// A site with its data sets.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) site: SiteId,
    pub(super) role: Role,
    pub(super) datasets: Vec<Dataset>,
}

/// A data set as `site.toml` names it.
#[derive(Clone, Debug)]
pub(super) struct Dataset {
    name: String,
    folder: PathBuf,
    /// Built-in map; without it `dataset.toml` in the folder.
    label_map: Option<String>,
    /// Classes that are annotated, of those that the map knows.
    annotated: Option<Vec<String>>,
}

/// One site with the data of all: what the law forbids, to compare with. Two sites may call their data sets alike; within
/// one they are told apart.
pub(super) fn pool(trainers: &[Member]) -> Vec<Member> {
    let Some(first) = trainers.first() else { return Vec::new() };
    let all =
        || trainers.iter().flat_map(|trainer| trainer.datasets.iter().map(move |set| (&trainer.site, set)));
    let named = |(site, dataset): (&SiteId, &Dataset)| {
        let mut dataset = dataset.clone();
        if all().filter(|(_, other)| other.name == dataset.name).count() > 1 {
            dataset.name = format!("{site}-{}", dataset.name);
        }
        dataset
    };
    vec![Member { datasets: all().map(named).collect(), ..first.clone() }]
}

/// Everything that one run needs.
pub(super) struct Consortium<'a> {
    pub(super) programs: &'a Programs,
    pub(super) folder: &'a Path,
    pub(super) members: &'a [Member],
    pub(super) settings: &'a Settings,
}

impl Consortium<'_> {
    /// Sets everything up, trains, and writes the report; `loud` shows what goes by.
    pub(super) async fn run(&self, loud: bool) -> anyhow::Result<ReportData> {
        let logs = self.folder.join("logs");
        files::create_private_dir(&logs)?;
        let config = self.folder.join("coordinator.toml");
        self.coordinator("init", &config)
            .args(["init", "--consortium", "demo", "--listen", "127.0.0.1:0"])
            .finish()
            .await?;
        let settings = Config::read(&config)?;
        let (mut coordinator, output) =
            self.coordinator("coordinator", &config).args(["run", "--json"]).start_read()?;
        let overlays = self.evaluators().iter().map(|site| self.overlays_of(site)).collect();
        let mut watch = Watch::new(output, overlays, loud, self.members, self.settings);
        let set_up = async {
            watch.listening().await?;
            self.enrol_all(&settings).await?;
            self.add_study(&settings).await
        };
        let study = unless_it_fails(&mut coordinator, set_up).await?;
        let mut agents = self.start_agents()?;
        let wanted = Wanted { connected: self.members.len(), evaluators: self.evaluators() };
        let trained = async {
            watch.all_connected(&wanted).await?;
            ask(&settings, Request::Control { study: study.clone(), order: Order::Start }).await?;
            watch.finished(&wanted).await
        };
        let trained = unless_any_fails(&mut agents, unless_it_fails(&mut coordinator, trained)).await;
        let report = match trained {
            Ok(()) => self.report(&settings, study).await,
            Err(error) => Err(error),
        };
        for agent in agents {
            agent.stop().await;
        }
        coordinator.stop().await;
        report
    }

    fn coordinator(&self, name: &str, config: &Path) -> Program {
        let program = Program::new(&self.programs.coordinator, name, &self.folder.join("logs"));
        program.args(["--config".as_ref(), config.as_os_str()])
    }

    fn agent(&self, name: &str) -> Program {
        Program::new(&self.programs.site_agent, name, &self.folder.join("logs"))
    }

    fn site_folder(&self, site: &SiteId) -> PathBuf {
        self.folder.join("sites").join(site.as_str())
    }

    fn overlays_of(&self, site: &SiteId) -> PathBuf {
        self.site_folder(site).join("state").join("overlays")
    }

    /// The sites share this machine. Trainers work at the same time; an evaluator is what everybody waits for in the end.
    fn threads(&self, role: Role) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let trainers = self.members.iter().filter(|member| member.role == Role::Trainer).count();
        if role == Role::Trainer { (cores / trainers.max(1)).max(1) } else { cores }
    }

    fn evaluators(&self) -> Vec<SiteId> {
        self.members.iter().filter(|m| m.role == Role::Evaluator).map(|m| m.site.clone()).collect()
    }

    async fn enrol_all(&self, config: &Config) -> anyhow::Result<()> {
        files::create_private_dir(&self.folder.join("sites"))?;
        for Member { site, role, datasets } in self.members {
            let request = Request::Invite { site: site.clone(), role: *role, hours: 1 };
            let Reply::Invite { text } = ask(config, request).await? else { bail!("no invite for {site}") };
            let invite = self.folder.join(format!("{site}.invite.toml"));
            files::write_new(&invite, text.as_bytes(), Access::Private)?;
            let (folder, name) = (self.site_folder(site), format!("{site}-enroll"));
            let enroll = self.agent(&name).args([
                "enroll".as_ref(),
                invite.as_os_str(),
                "--dir".as_ref(),
                folder.as_os_str(),
            ]);
            enroll.finish().await?;
            fs::remove_file(&invite)?;
            write_site(&folder, &text, datasets, self.threads(*role), self.settings.min_count)?;
        }
        Ok(())
    }

    async fn add_study(&self, config: &Config) -> anyhow::Result<String> {
        let (model, embeddings) =
            (self.folder.join("model.safetensors"), self.folder.join("embeddings.safetensors"));
        let (file, model_config) = (self.folder.join("study.toml"), self.folder.join("model.toml"));
        let trainers = self.members.iter().filter(|member| member.role == Role::Trainer).count();
        fs::write(&file, self.settings.to_toml(trainers))?;
        fs::write(&model_config, self.settings.network.to_toml())?;
        let seed = self.settings.seed.to_string();
        self.make_embeddings(&embeddings).await?;
        let init = self.agent("model-init").args(["model", "init", "--seed", &seed, "--config"]);
        let init = init.args([model_config.as_os_str(), "--embeddings".as_ref(), embeddings.as_os_str()]);
        init.args(["--out".as_ref(), model.as_os_str()]).finish().await?;
        match ask(config, Request::AddStudy { file, model, embeddings, taxonomy: None }).await? {
            Reply::Added { study, .. } => Ok(study),
            other => bail!("the study was not added: {other:?}"),
        }
    }

    /// Rows about as long as each other, whatever they mean: only what classes know of each other is to differ.
    async fn make_embeddings(&self, out: &Path) -> anyhow::Result<()> {
        let embed = self.agent("embed").args(["embed"]);
        let embed = match self.settings.embedding {
            Embedding::OneHot => embed.args(["one-hot"]),
            Embedding::FewHot => embed.args(["few-hot"]),
            Embedding::Minilm => {
                let table = self.folder.join("minilm-l6-v2.safetensors");
                fs::write(&table, MINILM)?;
                embed.args(["import".as_ref(), table.as_os_str()])
            }
        };
        let embed =
            embed.args(["--scale".as_ref(), EMBEDDING_SCALE.as_ref(), "--out".as_ref(), out.as_os_str()]);
        embed.finish().await
    }

    fn start_agents(&self) -> anyhow::Result<Vec<Process>> {
        let start = |Member { site, .. }: &Member| {
            let config = self.site_folder(site).join("site.toml");
            self.agent(site.as_str()).args(["run".as_ref(), "--config".as_ref(), config.as_os_str()]).start()
        };
        self.members.iter().map(start).collect()
    }

    async fn report(&self, config: &Config, study: String) -> anyhow::Result<ReportData> {
        let out = self.folder.join("report");
        ask(config, Request::Report { study: Some(study), out: out.clone() }).await?;
        let mut data: ReportData = serde_json::from_slice(&fs::read(out.join("report.json"))?)?;
        data.overlays = self.overlays();
        let page = data.write(&out)?;
        line(&format!("report: {}", page.display()));
        Ok(data)
    }

    /// Pictures in the evaluators' own folders, linked from the report's.
    fn overlays(&self) -> Vec<Overlay> {
        let of = |site: &SiteId| {
            let found = pictures(&self.overlays_of(site));
            let link = |path: PathBuf| {
                let below = path.strip_prefix(self.folder).unwrap_or(&path).display().to_string();
                Overlay { site: site.clone(), path: format!("../{below}") }
            };
            found.into_iter().map(link).collect::<Vec<_>>()
        };
        self.evaluators().iter().flat_map(of).collect()
    }
}

/// All PNG files in `folder`, at any depth, in order.
pub(super) fn pictures(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let below = |path: PathBuf| match path.is_dir() {
        true => pictures(&path),
        false => Some(path).filter(|path| path.extension().is_some_and(|e| e == "png")).into_iter().collect(),
    };
    paths.into_iter().flat_map(below).collect()
}

/// Phantoms of hospitals a, b and c and of the held-out one, each made by its own `site-agent`.
pub(super) async fn phantom_members(
    programs: &Programs,
    folder: &Path,
    cases: u32,
    seed: u64,
) -> anyhow::Result<Vec<Member>> {
    files::create_private_dir(folder)?;
    let mut members = Vec::new();
    // Fewer held-out cases, for they are scored time and again, but never below what a mean may be told of.
    let held_out = (cases / 2).clamp(5, 8);
    let hospitals = [
        ("hospital-a", "site-a", Role::Trainer, cases),
        ("hospital-b", "site-b", Role::Trainer, cases),
        ("hospital-c", "site-c", Role::Trainer, cases),
        ("held-out", "site-d", Role::Evaluator, held_out),
    ];
    for (site, hospital, role, cases) in hospitals {
        let datasets = make_phantoms(programs, folder, site, hospital, cases, seed).await?;
        members.push(Member { site: site.parse()?, role, datasets });
    }
    Ok(members)
}

/// So many phantoms of `hospital` in `folder/name`.
pub(super) async fn make_phantoms(
    programs: &Programs,
    folder: &Path,
    name: &str,
    hospital: &str,
    cases: u32,
    seed: u64,
) -> anyhow::Result<Vec<Dataset>> {
    let out = folder.join(name);
    let (cases, seed) = (cases.to_string(), seed.to_string());
    let program = Program::new(&programs.site_agent, &format!("phantom-{name}"), folder);
    let program = program.args(["phantom", "--hospital", hospital, "--cases", &cases, "--seed", &seed]);
    program.args(["--out".as_ref(), out.as_os_str()]).finish().await?;
    datasets_in(&out)
}

/// The data sets of a folder: those of its subfolders that say with `dataset.toml` what they are.
fn datasets_in(folder: &Path) -> anyhow::Result<Vec<Dataset>> {
    let mut datasets = Vec::new();
    for folder in subfolders(folder)? {
        if folder.join("dataset.toml").is_file() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            datasets.push(Dataset { name, folder, label_map: None, annotated: None });
        }
    }
    if datasets.is_empty() {
        bail!("{} holds no data set: no folder in it has a dataset.toml", folder.display());
    }
    Ok(datasets)
}

/// What a folder of partially labelled copies says about itself; other keys are for people.
#[derive(Deserialize)]
struct Split {
    sites: BTreeMap<String, SplitSite>,
}

#[derive(Deserialize)]
struct SplitSite {
    labelled: Vec<String>,
}

/// Trainers from the folders of `data`, and one evaluator with the scans of `held_out`.
pub(super) fn real_members(
    data: &Path,
    held_out: &Path,
    labels: Option<&str>,
) -> anyhow::Result<Vec<Member>> {
    let (data, held_out) = (std::path::absolute(data)?, std::path::absolute(held_out)?);
    let left_out = canonical(&held_out)?;
    let split = data.join("split.json");
    let split: Option<Split> = match split.is_file() {
        true => {
            Some(serde_json::from_slice(&fs::read(&split)?).with_context(|| split.display().to_string())?)
        }
        false => None,
    };
    let mut members = Vec::new();
    for folder in subfolders(&data)? {
        if canonical(&folder)? == left_out {
            line(&format!("{} is held out: nobody trains on it", folder.display()));
            continue;
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == HELD_OUT {
            bail!("{}: `{name}` is the name of the evaluator; call this trainer another", folder.display());
        }
        let site = name.parse::<SiteId>()?;
        let datasets = match split.as_ref().and_then(|split| split.sites.get(&name)) {
            Some(listed) => vec![Dataset {
                name,
                folder,
                label_map: Some("universal".to_owned()),
                annotated: Some(listed.labelled.clone()),
            }],
            None if folder.join("dataset.toml").is_file() => {
                vec![Dataset { name, folder, label_map: None, annotated: None }]
            }
            None => datasets_in(&folder)?,
        };
        members.push(Member { site, role: Role::Trainer, datasets });
    }
    if members.is_empty() {
        bail!("{} holds no folder: one is needed for each trainer", data.display());
    }
    let datasets = held_out_datasets(&held_out, labels)?;
    check_apart(&members, &datasets)?;
    members.push(Member { site: HELD_OUT.parse()?, role: Role::Evaluator, datasets });
    Ok(members)
}

/// A model is not scored on what it was trained on.
fn check_apart(trainers: &[Member], held_out: &[Dataset]) -> anyhow::Result<()> {
    for trained in trainers.iter().flat_map(|trainer| &trainer.datasets) {
        let theirs = canonical(&trained.folder)?;
        for Dataset { folder, .. } in held_out {
            let ours = canonical(folder)?;
            if theirs.starts_with(&ours) || ours.starts_with(&theirs) {
                bail!(
                    "{} has held-out scans of {}, and a trainer would see them: keep the two in folders apart",
                    trained.folder.display(),
                    folder.display()
                );
            }
        }
    }
    Ok(())
}

fn canonical(folder: &Path) -> anyhow::Result<PathBuf> {
    fs::canonicalize(folder).with_context(|| folder.display().to_string())
}

/// The held-out scans, under the label map that was named, or as their folder says itself.
fn held_out_datasets(folder: &Path, labels: Option<&str>) -> anyhow::Result<Vec<Dataset>> {
    const NAMES: &str = "labels.json";
    let whole = |label_map: Option<&str>| Dataset {
        name: HELD_OUT.to_owned(),
        folder: folder.to_owned(),
        label_map: label_map.map(str::to_owned),
        annotated: None,
    };
    if let Some(labels) = labels {
        // A file is named from where the demo was started; a site would look for it in its own folder.
        let file = std::path::absolute(labels)?;
        let file = file.to_str().filter(|_| labels.ends_with(".toml"));
        return Ok(vec![whole(Some(file.unwrap_or(labels)))]);
    }
    if folder.join("dataset.toml").is_file() {
        return Ok(vec![whole(None)]);
    }
    if subfolders(folder)?.iter().any(|case| case.join(NAMES).is_file()) {
        return Ok(vec![whole(Some(NAMES))]);
    }
    datasets_in(folder).with_context(|| {
        format!(
            "nothing says what the labels in {} mean: name a label map with --held-out-labels, write a dataset.toml \
             there, or put a {NAMES} beside the labels of each case",
            folder.display()
        )
    })
}

fn subfolders(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Completes what `site-agent enroll` left in `folder`: what the site has and what may leave it.
fn write_site(
    folder: &Path,
    invite: &str,
    datasets: &[Dataset],
    threads: usize,
    min_count: u32,
) -> anyhow::Result<()> {
    let invite: toml::Table = toml::from_str(invite)?;
    let mut site = toml::Table::new();
    let coordinator = invite.get("coordinator").cloned().context("the invite names no coordinator")?;
    site.insert("coordinator".to_owned(), coordinator);
    for (key, value) in
        [("identity", "identity"), ("state", "state"), ("policy", "policy.toml"), ("device", "cpu")]
    {
        site.insert(key.to_owned(), value.into());
    }
    site.insert("threads".to_owned(), i64::try_from(threads)?.into());
    // A network as small as the demo's has memory to spare.
    site.insert("recompute".to_owned(), false.into());
    site.insert("min_count".to_owned(), min_count.into());
    site.insert("dataset".to_owned(), datasets.iter().map(dataset_table).collect::<Vec<_>>().into());
    fs::write(folder.join("site.toml"), toml::to_string(&site)?)?;
    fs::write(folder.join("policy.toml"), POLICY)?;
    Ok(())
}

fn dataset_table(dataset: &Dataset) -> toml::Value {
    let mut table = toml::Table::new();
    table.insert("name".to_owned(), dataset.name.clone().into());
    table.insert("folder".to_owned(), dataset.folder.display().to_string().into());
    if let Some(map) = &dataset.label_map {
        table.insert("label_map".to_owned(), map.clone().into());
    }
    if let Some(annotated) = &dataset.annotated {
        table.insert("annotated".to_owned(), annotated.clone().into());
    }
    table.into()
}

async fn ask(config: &Config, request: Request) -> anyhow::Result<Reply> {
    match ask_running(&config.state, &request).await?.context("the coordinator does not run")? {
        Reply::Failed { words, .. } => bail!("{words}"),
        reply => Ok(reply),
    }
}

async fn unless_it_fails<T>(
    process: &mut Process,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        error = process.failed() => Err(error),
    }
}

async fn unless_any_fails<T>(
    processes: &mut [Process],
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut waiting: Vec<_> = processes.iter_mut().map(|process| Box::pin(process.failed())).collect();
    let first = std::future::poll_fn(|cx| {
        let ready = waiting.iter_mut().find_map(|failed| match failed.as_mut().poll(cx) {
            std::task::Poll::Ready(error) => Some(error),
            std::task::Poll::Pending => None,
        });
        ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    });
    tokio::select! {
        done = work => done,
        error = first => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders, each a data set that says what it is.
    fn folders(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("dataset.toml"), "").unwrap();
        }
        root
    }

    #[test]
    fn a_held_out_folder_among_the_trainers_does_not_train() {
        let root = folders(&["north", "south", "test"]);
        let data = root.path();
        // By whatever way it is named.
        for held_out in [data.join("test"), data.join("north").join("..").join("test")] {
            let members = real_members(data, &held_out, None).unwrap();
            let sites: Vec<_> = members.iter().map(|member| (member.site.as_str(), member.role)).collect();
            let trainers = [("north", Role::Trainer), ("south", Role::Trainer)];
            assert_eq!(sites, [trainers[0], trainers[1], (HELD_OUT, Role::Evaluator)]);
        }
    }

    #[test]
    fn scans_that_are_held_out_do_not_train_in_part_either() {
        let root = folders(&["north", "south/ct", "south/test", "south/test/more"]);
        let data = root.path();
        for held_out in [data.join("south/test"), data.join("south/test/more"), data.to_owned()] {
            let error = real_members(data, &held_out, None).unwrap_err().to_string();
            assert!(error.contains("has held-out scans"), "{error}");
        }
    }

    #[test]
    fn data_sets_of_one_name_are_told_apart_when_they_are_pooled() {
        let (root, held_out) = (folders(&["north/ct", "south/ct", "south/mr"]), folders(&["ct"]));
        let mut members = real_members(root.path(), held_out.path(), None).unwrap();
        members.pop();
        let pooled = pool(&members);
        let names: Vec<_> = pooled[0].datasets.iter().map(|dataset| dataset.name.as_str()).collect();
        assert_eq!(names, ["north-ct", "south-ct", "mr"]);
    }

    #[test]
    fn a_trainer_has_not_the_evaluators_name() {
        let (data, held_out) = (folders(&["held-out"]), folders(&["ct"]));
        let error = real_members(data.path(), held_out.path(), None).unwrap_err().to_string();
        assert!(error.contains("the name of the evaluator"), "{error}");
    }
}
