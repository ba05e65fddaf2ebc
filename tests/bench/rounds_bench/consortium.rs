//! A consortium in a folder of its own, set up by the commands that operators use, and stopped again: the processes that
//! are measured start after it, and have done nothing before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ::tests::small_study::SmallStudy;
use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use coordinator::progress::Line;
use coordinator::report::ReportData;
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use tempfile::TempDir;

use super::model;
use super::process::{Heard, Process, command, finish};

/// Name of the study.
const STUDY: &str = "Rounds";
/// How long a coordinator that is waited for may say nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);
/// What a policy here lets out: everything that is measured, however large.
const POLICY: &str = "[studies]\napprove = \"any\"\n\n[egress]\nallow = [\"label-manifest\", \"progress\", \"update\"]\n\
                      max_update_mib = 8192\nmax_mib_per_day = 8388608\nprogress_every_s = 60\n";

/// How sites reach the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lane {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
}

impl Lane {
    /// As a site's configuration says it: by itself, a site would fall back to the other.
    pub(crate) const fn to_toml(self) -> &'static str {
        match self {
            Self::Quic => "lane = \"quic\"\n",
            Self::Tcp => "lane = \"tcp\"\n",
        }
    }
}

/// What a consortium is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) params: u64,
    pub(crate) sites: usize,
    pub(crate) rounds: u32,
}

/// A consortium whose processes are not running.
pub(crate) struct Consortium {
    pub(crate) size: Size,
    /// Where the coordinator listens.
    pub(crate) address: String,
    programs: PathBuf,
    folder: TempDir,
}

impl Size {
    /// Bytes of the model, and of an update.
    pub(crate) fn model_bytes(&self) -> u64 {
        self.params * 4
    }

    /// Fails unless `parent` has room for so many models.
    pub(crate) fn check_room(&self, parent: &Path, models: u64) -> anyhow::Result<()> {
        let there = statvfs(parent).with_context(|| parent.display().to_string())?;
        let free = there.blocks_available() * there.fragment_size();
        let need = models * self.model_bytes() + (256 << 20);
        ensure!(
            free >= need,
            "{} has {} MiB free, and {} are needed: name another folder with --folder",
            parent.display(),
            free >> 20,
            need >> 20
        );
        Ok(())
    }
}

impl Consortium {
    /// Makes a consortium below `parent` with an enrolled site and a started study of `size`; `quorum` is all of them.
    pub(crate) fn found(programs: &Path, parent: &Path, size: Size) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rounds-bench-").tempdir_in(parent)?;
        let mut made = Self { size, address: String::new(), programs: programs.to_owned(), folder };
        for part in ["sites", "logs"] {
            fs::create_dir(made.path(part))?;
        }
        finish(&mut made.operate(["init", "--consortium", "bench", "--listen", "127.0.0.1:0"]))?;
        // Everybody enrols at once, from one address.
        made.edit_config(|text| format!("{text}\n[limits]\nenrolments_per_minute = 10000\n"))?;
        let (mut coordinator, address) = made.start_coordinator()?;
        made.address = address;
        // The sites keep the address: started again, it must listen there.
        made.edit_config(|text| text.replace("127.0.0.1:0", &made.address))?;
        for site in made.sites() {
            made.enrol(&site)?;
            coordinator.check()?;
        }
        coordinator.stop()?;
        made.add_study()?;
        Ok(made)
    }

    /// Starts the coordinator, and waits until it listens; where.
    pub(crate) fn start_coordinator(&self) -> anyhow::Result<(Process, String)> {
        let mut run = self.operate_command();
        run.args(["run", "--json"]);
        let mut coordinator = Process::start("coordinator", run, &self.path("logs"))?;
        let address = until(&mut coordinator, "its address", &mut [], |heard| match &heard.line {
            Line::Listening { address, .. } => Some(address.clone()),
            _ => None,
        })?;
        Ok((coordinator, address))
    }

    /// Starts this program as a site, which dials `address`; `settings` are more lines of its configuration.
    pub(crate) fn start_site(&self, site: &str, address: &str, settings: &str) -> anyhow::Result<Process> {
        let folder = self.site_folder(site);
        let config = format!(
            "coordinator = \"{address}\"\nidentity = \"identity\"\nstate = \"state\"\npolicy = \"policy.toml\"\n\
             min_count = 1\n{settings}"
        );
        fs::write(folder.join("site.toml"), config)?;
        fs::write(folder.join("policy.toml"), POLICY)?;
        let mut run = command(&std::env::current_exe()?);
        run.arg("site").arg(folder.join("site.toml"));
        Process::start(site, run, &self.path("logs"))
    }

    /// Names of the sites.
    pub(crate) fn sites(&self) -> Vec<String> {
        (1..=self.size.sites).map(|site| format!("site-{site:02}")).collect()
    }

    /// The folder of an enrolled site: `identity` and `state` lie there.
    pub(crate) fn site_folder(&self, site: &str) -> PathBuf {
        self.path("sites").join(site)
    }

    /// The report as it stands.
    pub(crate) fn report(&self) -> anyhow::Result<ReportData> {
        let out = self.path("report");
        finish(self.operate_command().args(["report", STUDY, "--out"]).arg(&out))?;
        Ok(serde_json::from_slice(&fs::read(out.join("report.json"))?)?)
    }

    fn enrol(&self, site: &str) -> anyhow::Result<()> {
        let invite = self.path("invite.toml");
        let mut ask = self.operate_command();
        finish(ask.args(["invite", site, "--role", "trainer", "--hours", "1", "--out"]).arg(&invite))?;
        let mut enroll = command(&self.programs.join("site-agent"));
        finish(enroll.arg("enroll").arg(&invite).arg("--dir").arg(self.site_folder(site)))?;
        fs::remove_file(&invite)?;
        Ok(())
    }

    /// Adds the study and starts it, with nobody running: its model's memory is not the coordinator's.
    fn add_study(&self) -> anyhow::Result<()> {
        let [study, model, embeddings] =
            ["study.toml", "model.safetensors", "embeddings.safetensors"].map(|file| self.path(file));
        fs::write(&study, study_toml(&self.size))?;
        model::write(&model, self.size.params)?;
        let mut embed = command(&self.programs.join("site-agent"));
        finish(embed.args(["embed", "one-hot", "--out"]).arg(&embeddings))?;
        let mut add = self.operate_command();
        add.args(["study", "add"]).arg(&study).arg("--model").arg(&model);
        finish(add.arg("--embeddings").arg(&embeddings))?;
        fs::remove_file(&model)?;
        finish(&mut self.operate(["study", "start", STUDY])).map(drop)
    }

    fn operate<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.operate_command();
        command.args(args);
        command
    }

    fn operate_command(&self) -> Command {
        let mut command = command(&self.programs.join("coordinator"));
        command.arg("--config").arg(self.path("coordinator.toml"));
        command
    }

    fn edit_config(&self, edit: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
        let path = self.path("coordinator.toml");
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(&path, edit(&text))?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Waits for what `find` looks for in the coordinator's progress; none of `others` may end meanwhile.
pub(crate) fn until<T>(
    coordinator: &mut Process,
    what: &str,
    others: &mut [Process],
    mut find: impl FnMut(&Heard) -> Option<T>,
) -> anyhow::Result<T> {
    let mut last = Instant::now();
    while last.elapsed() < PATIENCE {
        if let Some(heard) = coordinator.next(Duration::from_secs(1))? {
            last = heard.at;
            if let Line::Fault { detail, .. } = &heard.line {
                bail!("the coordinator's store fails: {detail}");
            }
            if let Some(found) = find(&heard) {
                return Ok(found);
            }
        } else {
            others.iter_mut().try_for_each(Process::check)?;
        }
    }
    bail!("waiting for {what}: nothing was said for {} s", PATIENCE.as_secs())
}

/// What happened in the study, by its stable short name.
pub(crate) fn turn(heard: &Heard) -> Option<&str> {
    match &heard.line {
        Line::Study { what, .. } => Some(what),
        _ => None,
    }
}

/// A study of one step a round that waits for everybody. Nothing of it but the model and the counts matters here.
fn study_toml(size: &Size) -> String {
    let Size { sites, rounds, .. } = *size;
    SmallStudy { name: STUDY, rounds, steps: 1, sites }.toml()
}

#[cfg(test)]
mod tests {
    use common::study::StudyDraft;
    use common::taxonomy::Taxonomy;
    use site_agent::egress::Policy;

    use super::*;

    const SIZE: Size = Size { params: model::FEWEST, sites: 3, rounds: 4 };

    #[test]
    fn study_and_policy_are_such() {
        let draft = StudyDraft::parse("study.toml", &study_toml(&SIZE), &Taxonomy::standard()).unwrap();
        assert_eq!((draft.rounds, draft.quorum.sites), (4, 3));
        assert_eq!(Policy::parse("policy.toml", POLICY).unwrap().quota().max_update_bytes, 8 << 30);
    }

    #[test]
    fn a_folder_without_room_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        assert!(SIZE.check_room(folder.path(), 1).is_ok());
        let error = SIZE.check_room(folder.path(), 1 << 40).unwrap_err();
        assert!(error.to_string().contains("--folder"), "{error}");
    }
}
