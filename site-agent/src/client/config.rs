//! `site.toml`: where the coordinator is, where this site's files are, what it may use of the machine, its data sets.
//!
//! The role is not here: it is in the certificate. Paths are relative to the folder of the file.

use std::path::{Path, PathBuf};

use common::config::{Diagnostics, Document, Problems};
use link::quic::Congestion;
use serde::Deserialize;

use super::address::Address;
use super::identity::IdentityFolder;
use crate::data::dataset::DatasetConfig;
use crate::egress::Policy;
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
    memory_mib: Option<u64>,
    #[serde(default)]
    congestion: RawCongestion,
    #[serde(default)]
    min_count: Option<u32>,
    #[serde(default)]
    dataset: Vec<DatasetConfig>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCongestion {
    #[default]
    Bbr,
    Cubic,
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
    /// Whether training makes normalised activations again in its backward pass, in the place of keeping them: the same
    /// bits in less memory and a little more time.
    pub recompute: bool,
    /// Memory for prepared scans, bytes; the others wait on the disk.
    pub memory_bytes: usize,
    /// Congestion control of the link.
    pub congestion: Congestion,
    /// Counts of patients below this are not told.
    pub min_count: u32,
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
        problems.in_range("memory_mib", raw.memory_mib.unwrap_or(2048), 1..=1 << 20);
        problems.in_range("min_count", raw.min_count.unwrap_or(5), 1..=1000);
        check_names(&raw.dataset, &mut problems);
        document.locate(problems)?;
        let base = file.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self {
            // A problem was added above if the address is none.
            coordinator: coordinator.map_err(|error| Diagnostics::whole_file(&shown, error.to_string()))?,
            identity: IdentityFolder::new(base.join(raw.identity)),
            state: base.join(raw.state),
            policy: base.join(raw.policy),
            device,
            threads: raw.threads.map(|n| n as usize),
            recompute: raw.recompute.unwrap_or(true),
            memory_bytes: usize::try_from(raw.memory_mib.unwrap_or(2048) << 20).unwrap_or(usize::MAX),
            congestion: match raw.congestion {
                RawCongestion::Bbr => Congestion::Bbr,
                RawCongestion::Cubic => Congestion::Cubic,
            },
            min_count: raw.min_count.unwrap_or(5),
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

    /// Reads the policy that the configuration names.
    ///
    /// # Errors
    /// A file that cannot be read, or [`Diagnostics`].
    pub fn read_policy(&self) -> anyhow::Result<Policy> {
        let text = super::files::read_text(&self.policy)?;
        Ok(Policy::parse(&self.policy.display().to_string(), &text)?)
    }
}

fn parse_device(text: Option<&str>, problems: &mut Problems) -> DeviceKind {
    let text = text.unwrap_or("cpu");
    text.parse().unwrap_or_else(|_| {
        problems.add_allowed("device", format!("unknown device `{text}`"), "cpu, cuda, cuda:1, …");
        DeviceKind::Cpu
    })
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

    const EXAMPLE: &str = include_str!("../../../configs/examples/site.toml");

    #[test]
    fn the_example_is_a_configuration_and_its_paths_start_at_its_folder() {
        let config = SiteConfig::parse(Path::new("north/site.toml"), EXAMPLE).unwrap();
        assert_eq!(config.state, Path::new("north/state"));
        assert_eq!(config.datasets.len(), 2);
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
}
