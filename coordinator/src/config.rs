//! `coordinator.toml`: read strictly, every mistake told at once, paths resolved beside the file.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::config::{Diagnostics, Document, Problems};
use common::ids::SiteId;
use link::quic::{Congestion, QuicSettings};
use serde::Deserialize;

/// The coordinator's settings, valid by construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The consortium's name: in every certificate.
    pub consortium: String,
    /// Where the server listens: UDP, and TCP unless switched off.
    pub listen: SocketAddr,
    /// Whether TCP is listened on too, for sites whose networks let no UDP out.
    pub tcp: bool,
    /// What sites dial, `host:port`; without it invites name the address that the running server is bound to, unless that stands
    /// for all of the machine's.
    pub address: Option<String>,
    /// Folder of database, artifacts and socket.
    pub state: PathBuf,
    /// Folder of certificates and keys.
    pub certs: PathBuf,
    /// Life of a site's certificate.
    pub site_certificate_life: Duration,
    /// Most connections at once.
    pub connections: usize,
    /// Longest life of one connection; the site dials again.
    pub connection_age: Duration,
    /// Most enrolments in a minute that are refused with the reason, over all addresses; an invite that counts is not counted.
    pub enrolments_per_minute: u32,
    /// Memory for models and updates under way, bytes; transfers beyond it wait for their turn.
    pub transfer_bytes: u64,
    /// QUIC.
    pub transport: QuicSettings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    consortium: String,
    listen: String,
    #[serde(default = "tcp")]
    tcp: bool,
    #[serde(default)]
    address: Option<String>,
    #[serde(default = "state")]
    state: PathBuf,
    #[serde(default = "certs")]
    certs: PathBuf,
    #[serde(default)]
    certificates: RawCertificates,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    transport: RawTransport,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCertificates {
    site_days: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    connections: u32,
    connection_hours: u64,
    enrolments_per_minute: u32,
    transfer_mib: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTransport {
    congestion: RawCongestion,
    transfer_window_mib: u32,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCongestion {
    Bbr,
    Cubic,
}

impl Default for RawCertificates {
    fn default() -> Self {
        Self { site_days: 365 }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { connections: 256, connection_hours: 24, enrolments_per_minute: 30, transfer_mib: 64 }
    }
}

impl Default for RawTransport {
    fn default() -> Self {
        Self { congestion: RawCongestion::Bbr, transfer_window_mib: 16 }
    }
}

fn tcp() -> bool {
    true
}

fn state() -> PathBuf {
    "state".into()
}

fn certs() -> PathBuf {
    "certs".into()
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Diagnostics`] with all mistakes, or that there is no such file.
    pub fn read(path: &Path) -> Result<Self, Diagnostics> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| {
            Diagnostics::whole_file(&name, error.to_string())
                .with_hint("run `coordinator init`, or name the file with `--config`")
        })?;
        Self::parse(&name, &text, crate::files::parent(path))
    }

    /// Reads `text`, called `name` in messages; relative paths are beside `folder`.
    ///
    /// # Errors
    /// [`Diagnostics`] with all mistakes.
    pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Self, Diagnostics> {
        let document = Document::parse(name, text)?;
        let raw: Raw = document.read()?;
        let mut problems = Problems::new();
        let listen = check(&raw, &mut problems);
        document.locate(problems)?;
        // Invariant: `check` added a problem for an address that does not parse, and `locate` has returned it.
        let listen = listen.expect("checked above");
        Ok(Self {
            consortium: raw.consortium,
            listen,
            tcp: raw.tcp,
            address: raw.address,
            state: folder.join(raw.state),
            certs: folder.join(raw.certs),
            site_certificate_life: Duration::from_secs(raw.certificates.site_days * 86_400),
            connections: usize::try_from(raw.limits.connections).unwrap_or(usize::MAX),
            connection_age: Duration::from_secs(raw.limits.connection_hours * 3600),
            enrolments_per_minute: raw.limits.enrolments_per_minute,
            transfer_bytes: raw.limits.transfer_mib << 20,
            transport: transport(&raw.transport),
        })
    }

    /// Host names and addresses that the server's certificate is good for.
    pub fn server_names(&self) -> Vec<String> {
        let host = self.address.as_deref().and_then(host).map(str::to_owned);
        let listen = (!self.listen.ip().is_unspecified()).then(|| self.listen.ip().to_string());
        let mut names: Vec<String> =
            host.into_iter().chain(listen).chain(["localhost".to_owned(), "127.0.0.1".to_owned()]).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn check(raw: &Raw, problems: &mut Problems) -> Option<SocketAddr> {
    if raw.consortium.parse::<SiteId>().is_err() {
        let found = format!("`{}` is not a name", raw.consortium);
        problems.add_allowed("consortium", found, "1 to 40 of a-z, 0-9 and inner `-`");
    }
    if let Some(address) = &raw.address
        && !can_be_dialled(address)
    {
        problems.add_allowed("address", format!("`{address}` cannot be dialled"), "HOST:PORT");
    }
    problems.in_range("certificates.site_days", raw.certificates.site_days, 1..=3650);
    problems.in_range("limits.connections", raw.limits.connections, 1..=100_000);
    problems.in_range("limits.connection_hours", raw.limits.connection_hours, 1..=720);
    problems.in_range("limits.enrolments_per_minute", raw.limits.enrolments_per_minute, 1..=10_000);
    problems.in_range("limits.transfer_mib", raw.limits.transfer_mib, 16..=65_536);
    problems.in_range("transport.transfer_window_mib", raw.transport.transfer_window_mib, 1..=64);
    let listen = raw.listen.parse().ok();
    if listen.is_none() {
        let found = format!("`{}` is not an address", raw.listen);
        problems.add_allowed("listen", found, "IP:PORT, such as 0.0.0.0:443");
    }
    listen
}

/// Whether it reads as `HOST:PORT`.
pub(crate) fn can_be_dialled(address: &str) -> bool {
    host(address).is_some()
}

/// The host of `HOST:PORT`; IPv6 in brackets.
fn host(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
    (port > 0 && !host.is_empty() && host.chars().all(plain)).then_some(host)
}

fn transport(raw: &RawTransport) -> QuicSettings {
    let congestion = match raw.congestion {
        RawCongestion::Bbr => Congestion::Bbr,
        RawCongestion::Cubic => Congestion::Cubic,
    };
    QuicSettings { congestion, granted_window: raw.transfer_window_mib << 20, ..QuicSettings::coordinator() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../configs/examples/coordinator.toml");

    #[test]
    fn the_example_is_read() {
        let config = Config::parse("coordinator.toml", EXAMPLE, Path::new("/srv")).unwrap();
        assert_eq!(config.state, Path::new("/srv/state"));
        assert!(config.tcp);
        assert!(config.server_names().contains(&"coordinator.example.org".to_owned()));
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let text = "consortium = \"No Name\"\nlisten = \"here\"\naddress = \"example.org\"\n\
                    [limits]\nconnections = 0\n[certificates]\nsite_days = 0\n";
        let error = Config::parse("c.toml", text, Path::new(".")).unwrap_err();
        insta::assert_snapshot!(error, @r"
        c.toml:1: `consortium`: `No Name` is not a name
          allowed: 1 to 40 of a-z, 0-9 and inner `-`
        error: c.toml:2: `listen`: `here` is not an address
          allowed: IP:PORT, such as 0.0.0.0:443
        error: c.toml:3: `address`: `example.org` cannot be dialled
          allowed: HOST:PORT
        error: c.toml:5: `limits.connections`: 0 is out of range
          allowed: 1 to 100000
        error: c.toml:7: `certificates.site_days`: 0 is out of range
          allowed: 1 to 3650
        ");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = "consortium = \"demo\"\nlisten = \"0.0.0.0:443\"\npassword = \"x\"\n";
        assert!(Config::parse("c.toml", text, Path::new(".")).unwrap_err().to_string().contains("c.toml:3"));
    }
}
