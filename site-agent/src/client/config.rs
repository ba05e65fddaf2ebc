//! `site.toml`: where the coordinator is, where this site's files are, what it may use of the machine, its data sets.
//!
//! The role is not here: it is in the certificate. Paths are relative to the folder of the file.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::config::{Diagnostics, Document, Problems};
use common::taxonomy::Taxonomy;
use link::quic::{Congestion, QuicSettings};
use link::tcp::Proxy;
use serde::Deserialize;

use super::address::Address;
use super::checkpointing::CheckpointPolicy;
use super::dial::Network;
use super::identity::IdentityFolder;
use super::lane::LaneSetting;
use super::traffic::{self, RawBandwidth};
use crate::data::DataError;
use crate::data::dataset::{Case, DatasetConfig, read_datasets};
use crate::data::folds::Folds;
use crate::egress::{Policy, Traffic};
use crate::model::DeviceKind;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSite {
    coordinator: String,
    identity: PathBuf,
    state: PathBuf,
    policy: PathBuf,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    threads: Option<u32>,
    #[serde(default)]
    recompute: Option<bool>,
    #[serde(default)]
    window_batch: Option<u32>,
    #[serde(default)]
    memory_mib: Option<u64>,
    #[serde(default)]
    lane: LaneSetting,
    #[serde(default)]
    proxy: Option<String>,
    #[serde(default)]
    proxy_user: Option<String>,
    #[serde(default)]
    proxy_password_file: Option<PathBuf>,
    #[serde(default)]
    congestion: RawCongestion,
    #[serde(default)]
    streams: Option<u32>,
    #[serde(default)]
    bandwidth: RawBandwidth,
    #[serde(default)]
    min_count: Option<u32>,
    #[serde(default)]
    folds: Option<PathBuf>,
    #[serde(default)]
    fold: Option<u32>,
    #[serde(default)]
    checkpoint: RawCheckpoint,
    #[serde(default)]
    dataset: Vec<DatasetConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCheckpoint {
    every_steps: u32,
    every_minutes: u32,
}

impl Default for RawCheckpoint {
    fn default() -> Self {
        Self { every_steps: 0, every_minutes: 5 }
    }
}

impl RawCheckpoint {
    fn policy(&self) -> CheckpointPolicy {
        let minutes = u64::from(self.every_minutes);
        CheckpointPolicy {
            every_steps: NonZeroU32::new(self.every_steps),
            every: (minutes > 0).then(|| Duration::from_secs(60 * minutes)),
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCongestion {
    #[default]
    Bbr,
    Cubic,
}

/// The fold of cross-validation that training leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The file that `site-agent split` wrote.
    pub folds: PathBuf,
    /// The fold's number.
    pub fold: u32,
}

/// The hospital's HTTP proxy, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where it is.
    pub proxy: Proxy,
    /// Name, and the file that holds the password.
    pub login: Option<(String, PathBuf)>,
}

impl ProxyConfig {
    /// The proxy with its password, which is read now.
    ///
    /// # Errors
    /// A password file that cannot be read.
    pub fn open(&self) -> anyhow::Result<Proxy> {
        let Some((user, file)) = &self.login else { return Ok(self.proxy.clone()) };
        let password = super::files::read_text(file)?;
        Ok(self.proxy.clone().with_login(user, password.trim_end_matches(['\r', '\n'])))
    }
}

/// A site's configuration, valid by construction.
#[derive(Clone, Debug)]
pub struct SiteConfig {
    /// Where the coordinator answers.
    pub coordinator: Address,
    /// Keys and certificates.
    pub identity: IdentityFolder,
    /// Everything that the agent writes.
    pub state: PathBuf,
    /// The egress policy's file.
    pub policy: PathBuf,
    /// Where the network runs.
    pub device: DeviceKind,
    /// Threads for training, evaluation and preparation of data; `None` is one for each core.
    pub threads: Option<usize>,
    /// Whether training makes some activations again in its backward pass, in the place of keeping them: the same bits in
    /// less memory and a little more time.
    pub recompute: bool,
    /// Windows of a scan that the network sees at once.
    pub window_batch: usize,
    /// Memory for prepared scans, bytes; the others wait on the disk.
    pub memory_bytes: usize,
    /// Over what the coordinator is dialled.
    pub lane: LaneSetting,
    /// What TCP goes through.
    pub proxy: Option<ProxyConfig>,
    /// Congestion control of the link.
    pub congestion: Congestion,
    /// Streams and bandwidth caps of transfers.
    pub traffic: Traffic,
    /// Counts of patients below this are not told.
    pub min_count: u32,
    /// When a round is kept while it is trained.
    pub checkpoints: CheckpointPolicy,
    /// What training leaves out beside what the data sets say.
    pub left_out: Option<LeftOut>,
    /// The data sets.
    pub datasets: Vec<DatasetConfig>,
    /// The folder of the file.
    pub base: PathBuf,
}

impl SiteConfig {
    /// Reads a configuration; `file` is the path as the user gave it.
    ///
    /// # Errors
    /// All mistakes at once, each with its line.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Diagnostics> {
        let shown = file.display().to_string();
        let document = Document::parse(&shown, text)?;
        let raw: RawSite = document.read()?;
        let mut problems = Problems::new();
        let coordinator = raw.coordinator.parse::<Address>();
        if let Err(error) = &coordinator {
            problems.add("coordinator", error.to_string());
        }
        let device = parse_device(raw.device.as_deref(), &mut problems);
        problems.in_range("threads", raw.threads.unwrap_or(1), 1..=1024);
        problems.in_range("window_batch", raw.window_batch.unwrap_or(1), 1..=64);
        problems.in_range("memory_mib", raw.memory_mib.unwrap_or(2048), 1..=1 << 20);
        problems.in_range("checkpoint.every_minutes", raw.checkpoint.every_minutes, 0..=1440);
        problems.in_range("min_count", raw.min_count.unwrap_or(5), 1..=1000);
        check_names(&raw.dataset, &mut problems);
        let traffic = traffic::parse(raw.streams, &raw.bandwidth, &mut problems);
        let base = file.parent().unwrap_or(Path::new("")).to_owned();
        let proxy = parse_proxy(&raw, &base, &mut problems);
        let left_out = parse_left_out(raw.folds.as_deref(), raw.fold, &base, &mut problems);
        document.locate(problems)?;
        Ok(Self {
            // A problem was added above if the address is none.
            coordinator: coordinator.map_err(|error| Diagnostics::whole_file(&shown, error.to_string()))?,
            identity: IdentityFolder::new(base.join(raw.identity)),
            state: base.join(raw.state),
            policy: base.join(raw.policy),
            device,
            threads: raw.threads.map(|n| n as usize),
            recompute: raw.recompute.unwrap_or(true),
            window_batch: raw.window_batch.unwrap_or(1) as usize,
            memory_bytes: usize::try_from(raw.memory_mib.unwrap_or(2048) << 20).unwrap_or(usize::MAX),
            lane: raw.lane,
            proxy,
            congestion: match raw.congestion {
                RawCongestion::Bbr => Congestion::Bbr,
                RawCongestion::Cubic => Congestion::Cubic,
            },
            traffic,
            min_count: raw.min_count.unwrap_or(5),
            checkpoints: raw.checkpoint.policy(),
            left_out,
            datasets: raw.dataset,
            base,
        })
    }

    /// Reads `site.toml`.
    ///
    /// # Errors
    /// A file that cannot be read, or [`Diagnostics`].
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(Self::parse(file, &super::files::read_text(file)?)?)
    }

    /// Settings of the link. With a download cap, no more is under way to us than comes in a quarter of a second.
    pub fn transport(&self) -> QuicSettings {
        let settings = QuicSettings { congestion: self.congestion, ..QuicSettings::site() };
        let Some(rate) = self.traffic.bandwidth.fastest_download() else { return settings };
        let ahead = u32::try_from(rate / 4).unwrap_or(u32::MAX).max(SMALLEST_WINDOW);
        let (stream_window, receive_window) =
            (settings.stream_window.min(ahead), settings.receive_window.min(ahead));
        QuicSettings { stream_window, receive_window, ..settings }
    }

    /// The scans of all data sets, by name; those of the fold that training leaves out are validation scans.
    ///
    /// # Errors
    /// What is wrong with the data sets or the folds.
    pub fn read_cases(&self, taxonomy: &Taxonomy) -> Result<Vec<Case>, DataError> {
        let mut cases = read_datasets(&self.datasets, &self.base, taxonomy)?;
        self.leave_out(&mut cases)?;
        Ok(cases)
    }

    /// Makes validation scans of those in the fold that training leaves out.
    ///
    /// # Errors
    /// What is wrong with the folds.
    pub fn leave_out(&self, cases: &mut [Case]) -> Result<(), DataError> {
        if let Some(LeftOut { folds, fold }) = &self.left_out {
            Folds::read(folds)?.leave_out(cases, *fold)?;
        }
        Ok(())
    }

    /// The way to the coordinator.
    ///
    /// # Errors
    /// A password file that cannot be read.
    pub fn network(&self) -> anyhow::Result<Network> {
        Ok(Network {
            coordinator: self.coordinator.clone(),
            lane: self.lane,
            proxy: self.proxy.as_ref().map(ProxyConfig::open).transpose()?,
            quic: self.transport(),
        })
    }

    /// Reads the policy that the configuration names.
    ///
    /// # Errors
    /// A file that cannot be read, or [`Diagnostics`].
    pub fn read_policy(&self) -> anyhow::Result<Policy> {
        let text = super::files::read_text(&self.policy)?;
        Ok(Policy::parse(&self.policy.display().to_string(), &text)?)
    }
}

/// Enough for every message.
const SMALLEST_WINDOW: u32 = 256 << 10;

fn parse_device(text: Option<&str>, problems: &mut Problems) -> DeviceKind {
    let text = text.unwrap_or("cpu");
    text.parse().unwrap_or_else(|_| {
        problems.add_allowed("device", format!("unknown device `{text}`"), "cpu, cuda, cuda:1, vulkan, …");
        DeviceKind::Cpu
    })
}

fn parse_proxy(raw: &RawSite, base: &Path, problems: &mut Problems) -> Option<ProxyConfig> {
    let login = match (&raw.proxy_user, &raw.proxy_password_file) {
        (Some(user), Some(file)) => Some((user.clone(), base.join(file))),
        (None, None) => None,
        (Some(_), None) => {
            problems.add("proxy_user", "without `proxy_password_file`");
            None
        }
        (None, Some(_)) => {
            problems.add("proxy_password_file", "without `proxy_user`");
            None
        }
    };
    let Some(proxy) = &raw.proxy else {
        if login.is_some() {
            problems.add("proxy_user", "without `proxy`");
        }
        return None;
    };
    if raw.lane == LaneSetting::Quic {
        problems.add_allowed("proxy", "no proxy carries QUIC", "`lane = \"auto\"` or `\"tcp\"` beside it");
    }
    match proxy.parse::<Proxy>() {
        Ok(proxy) => Some(ProxyConfig { proxy, login }),
        Err(error) => {
            problems.add("proxy", error.to_string());
            None
        }
    }
}

/// A file of folds without a fold, or the other way round, would leave out nothing: nobody means that.
fn parse_left_out(
    folds: Option<&Path>,
    fold: Option<u32>,
    base: &Path,
    problems: &mut Problems,
) -> Option<LeftOut> {
    match (folds, fold) {
        (Some(folds), Some(fold)) => return Some(LeftOut { folds: base.join(folds), fold }),
        (Some(_), None) => {
            problems.add_allowed("folds", "no fold of the file is left out", "name it: `fold = 0`");
        }
        (None, Some(_)) => {
            problems.add_allowed("fold", "of no file", "name the file of `site-agent split`: `folds = …`");
        }
        (None, None) => {}
    }
    None
}

fn check_names(datasets: &[DatasetConfig], problems: &mut Problems) {
    for (index, dataset) in datasets.iter().enumerate() {
        let key = format!("dataset[{index}].name");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if dataset.name.is_empty() || dataset.name.len() > 60 || !dataset.name.chars().all(plain) {
            problems.add_allowed(
                &key,
                format!("`{}`", dataset.name),
                "1 to 60 of letters, digits, `-`, `_`, `.`",
            );
        }
        if datasets[..index].iter().any(|earlier| earlier.name == dataset.name) {
            problems.add(&key, format!("`{}` is there twice", dataset.name));
        }
        if !(0.0..=1.0).contains(&dataset.validation_share) {
            let key = format!("dataset[{index}].validation_share");
            problems.add_allowed(key, format!("{} is out of range", dataset.validation_share), "0 to 1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Split;

    const EXAMPLE: &str = include_str!("../../../configs/examples/site.toml");

    #[test]
    fn the_example_is_a_configuration_and_its_paths_start_at_its_folder() {
        let config = SiteConfig::parse(Path::new("north/site.toml"), EXAMPLE).unwrap();
        assert_eq!(config.state, Path::new("north/state"));
        assert_eq!(config.datasets.len(), 2);
    }

    #[test]
    fn what_the_example_leaves_commented_out_is_a_configuration_too() {
        let is_setting = |line: &str| line.contains(" = ") && !line.contains("`");
        let with = |line: &str| match line.strip_prefix("# ") {
            Some(setting) if is_setting(setting) || setting.starts_with('[') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        };
        let text: String = EXAMPLE.lines().map(with).collect();
        let config = SiteConfig::parse(Path::new("north/site.toml"), &text).unwrap();
        assert!(config.proxy.is_some_and(|proxy| proxy.login.is_some()) && config.left_out.is_some());
        assert_eq!((config.threads, config.traffic.bandwidth.hours.len()), (Some(4), 1));
    }

    #[test]
    fn all_mistakes_are_reported_at_once_with_their_lines() {
        let text = "coordinator = \"nowhere\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\ndevice = \"abacus\"\n\
                    threads = 0\n";
        let error = SiteConfig::parse(Path::new("site.toml"), text).unwrap_err();
        let lines: Vec<_> = error.items().iter().map(|item| item.line).collect();
        assert_eq!(lines, [Some(1), Some(5), Some(6)]);
        let unknown =
            SiteConfig::parse(Path::new("site.toml"), "role = \"trainer\"\n").unwrap_err().to_string();
        assert!(unknown.contains("role"), "{unknown}");
    }

    #[test]
    fn a_proxy_is_named_in_whole_or_its_mistake_is_told() {
        let read = |keys: &str| {
            let text = format!(
                "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n{keys}"
            );
            SiteConfig::parse(Path::new("north/site.toml"), &text)
        };
        let plain = read("").unwrap();
        assert_eq!((plain.lane, plain.proxy), (LaneSetting::Auto, None));
        let keys = "lane = \"tcp\"\nproxy = \"http://proxy:3128\"\nproxy_user = \"north\"\n\
                    proxy_password_file = \"proxy.password\"\n";
        let config = read(keys).unwrap();
        let login = config.proxy.and_then(|proxy| proxy.login).unwrap();
        assert_eq!(login, ("north".to_owned(), Path::new("north/proxy.password").to_owned()));
        for wrong in [
            "proxy = \"https://proxy:3128\"\n",
            "proxy = \"http://a:b@proxy:3128\"\n",
            "proxy = \"http://proxy:3128\"\nlane = \"quic\"\n",
            "proxy_user = \"north\"\n",
            "proxy_user = \"north\"\nproxy_password_file = \"p\"\n",
            "lane = \"udp\"\n",
        ] {
            let refused = read(wrong).unwrap_err();
            assert_eq!(refused.items()[0].line, Some(5), "{refused}");
        }
    }

    #[test]
    fn the_password_is_read_without_the_end_of_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let proxy: Proxy = "http://proxy:3128".parse().unwrap();
        let config = ProxyConfig { proxy: proxy.clone(), login: Some(("north".to_owned(), file)) };
        assert_eq!(config.open().unwrap(), proxy.with_login("north", "secret"));
    }

    #[test]
    fn windows_come_one_at_a_time_unless_told_otherwise_and_never_none_at_a_time() {
        let read = |keys: &str| {
            let text = format!(
                "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n{keys}"
            );
            SiteConfig::parse(Path::new("site.toml"), &text)
        };
        assert_eq!(read("").unwrap().window_batch, 1);
        assert_eq!(read("window_batch = 4\n").unwrap().window_batch, 4);
        for outside in ["window_batch = 0\n", "window_batch = 65\n"] {
            let refused = read(outside).unwrap_err();
            assert_eq!(refused.items()[0].line, Some(5));
            let words = refused.to_string();
            assert!(words.contains("`window_batch`") && words.contains("1 to 64"), "{words}");
        }
    }

    #[test]
    fn a_round_is_kept_each_five_minutes_unless_told_otherwise() {
        let read = |keys: &str| {
            let text = format!(
                "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n{keys}"
            );
            SiteConfig::parse(Path::new("site.toml"), &text)
        };
        let kept = |keys: &str| {
            let CheckpointPolicy { every_steps, every } = read(keys).unwrap().checkpoints;
            (every_steps.map(NonZeroU32::get), every.map(|every| every.as_secs()))
        };
        assert_eq!(kept(""), (None, Some(300)));
        assert_eq!(kept("[checkpoint]\nevery_steps = 3\n"), (Some(3), Some(300)));
        assert_eq!(kept("[checkpoint]\nevery_minutes = 0\n"), (None, None));
        let refused = read("[checkpoint]\nevery_minutes = 1441\n").unwrap_err();
        assert_eq!(refused.items()[0].line, Some(6), "{refused}");
        assert!(read("[checkpoint]\nevery_hours = 1\n").is_err());
    }

    #[test]
    fn the_fold_that_is_left_out_is_not_trained_on() {
        let site = tempfile::tempdir().unwrap();
        for case in ["a", "b", "c", "d"] {
            let folder = site.path().join("data").join(case);
            std::fs::create_dir_all(&folder).unwrap();
            for file in ["ct.nii", "labels.nii"] {
                std::fs::write(folder.join(file), "").unwrap();
            }
        }
        let read = |keys: &str| {
            let text = format!(
                "coordinator = \"c.example.org:443\"\nidentity = \"i\"\nstate = \"s\"\npolicy = \"p\"\n{keys}\
                 [[dataset]]\nname = \"own\"\nfolder = \"data\"\nlabel_map = \"lits\"\n"
            );
            SiteConfig::parse(&site.path().join("site.toml"), &text)
        };
        let taxonomy = Taxonomy::standard();
        let cases = read("").unwrap().read_cases(&taxonomy).unwrap();
        let folds = Folds::deal(&cases, 2, 7).unwrap();
        std::fs::write(site.path().join("folds.toml"), folds.to_toml()).unwrap();

        let config = read("folds = \"folds.toml\"\nfold = 1\n").unwrap();
        for case in config.read_cases(&taxonomy).unwrap() {
            let left_out = folds.fold_of(&case.patient) == Some(1);
            let expected = if left_out { Split::Validation } else { Split::Training };
            assert_eq!(case.split, expected, "{}", case.name);
        }
        for (half, line) in [("folds = \"folds.toml\"\n", 5), ("fold = 1\n", 5)] {
            let refused = read(half).unwrap_err();
            assert_eq!(refused.items()[0].line, Some(line), "{refused}");
        }
    }
}
