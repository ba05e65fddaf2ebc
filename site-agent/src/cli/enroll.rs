//! `site-agent enroll`: from an invite to a folder that `site-agent run` can use.

use std::path::{Path, PathBuf};

use clap::Args;
use link::tcp::Proxy;

use super::error_report::{CliError, Exit};
use super::{line, runtime};
use crate::client::address::Address;
use crate::client::config::{ProxyConfig, SiteConfig};
use crate::client::enroll::{Invite, enroll};
use crate::client::files::{self, FileError};
use crate::client::identity::IdentityFolder;
use crate::client::state::StateFolder;
use crate::egress::Ledger;

/// Arguments of `enroll`.
#[derive(Debug, Args)]
pub(super) struct EnrollArgs {
    /// The invite file from the coordinator's operator.
    invite: PathBuf,
    /// The site's folder: keys, configuration and state go there.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The hospital's HTTP proxy, where UDP and TCP do not get out straight; without it, that of the folder's
    /// `site.toml`, if there is one.
    #[arg(long, value_name = "http://HOST:PORT")]
    proxy: Option<String>,
    /// Who we are to the proxy.
    #[arg(long, value_name = "NAME", requires = "proxy", requires = "proxy_password_file")]
    proxy_user: Option<String>,
    /// The file that holds the password for the proxy.
    #[arg(long, value_name = "FILE", requires = "proxy_user")]
    proxy_password_file: Option<PathBuf>,
}

impl EnrollArgs {
    /// The proxy to go through: the one given, or that of the folder's own `site.toml`.
    fn proxy(&self, site: Option<&SiteConfig>) -> Result<Option<ProxyConfig>, CliError> {
        let Some(text) = &self.proxy else { return Ok(site.and_then(|site| site.proxy.clone())) };
        let wrong = |error| CliError::new(anyhow::Error::new(error).context("--proxy")).exit(Exit::Config);
        let proxy = text.parse::<Proxy>().map_err(wrong)?;
        let login = self.proxy_user.clone().zip(self.proxy_password_file.clone());
        Ok(Some(ProxyConfig { proxy, login }))
    }
}

const SITE: &str = include_str!("../../../configs/examples/site.toml");
/// Lines of the example.
const PROXY: &str = "# proxy = \"http://proxy.hospital.example:3128\"";
const PROXY_USER: &str = "# proxy_user = \"consilium\"";
const PROXY_PASSWORD: &str = "# proxy_password_file = \"proxy.password\"";
const POLICY: &str = include_str!("../../../configs/examples/policy.toml");

pub(super) fn run(args: &EnrollArgs) -> Result<(), CliError> {
    let text = files::read_text(&args.invite).map_err(|error| unread(error, &args.invite))?;
    let invite = Invite::parse(&text)?;
    let config = args.dir.join("site.toml");
    let site = read_if_there(&config)?;
    let proxy = args.proxy(site.as_ref())?;
    let open = proxy.as_ref().map(ProxyConfig::open).transpose()?;
    let state = StateFolder::open(&args.dir.join("state"))?;
    let mut ledger = Ledger::open(&state.ledger(), |_| ())?;
    let folder = IdentityFolder::new(args.dir.join("identity"));
    let membership = runtime()?.block_on(enroll(&invite, &folder, &mut ledger, open))?;
    line(format!("enrolled: {} `{}` of `{}`", membership.role, membership.site, membership.consortium));
    write_unless_there(&config, &site_toml(&invite.coordinator.to_string(), proxy.as_ref()))?;
    write_unless_there(&args.dir.join("policy.toml"), POLICY)?;
    for told in site.iter().flat_map(|site| out_of_date(site, &invite.coordinator, proxy.as_ref())) {
        line(format!("change {}: {told}", config.display()));
    }
    line(format!("next: name your data sets in {0}, then `site-agent check --config {0}`", config.display()));
    line(format!("the invite is used up: delete {}", args.invite.display()));
    Ok(())
}

/// The settings of a site that enrols again.
fn read_if_there(config: &Path) -> Result<Option<SiteConfig>, CliError> {
    let site = config.exists().then(|| SiteConfig::read(config)).transpose();
    site.map_err(|error| CliError::new(error).exit(Exit::Config))
}

/// What does not fit any more in a `site.toml` that was there before and stays as it is.
fn out_of_date(site: &SiteConfig, coordinator: &Address, proxy: Option<&ProxyConfig>) -> Vec<String> {
    let mut told = Vec::new();
    if site.coordinator != *coordinator {
        told.push(format!("`coordinator` is `{}`, and the invite says `{coordinator}`", site.coordinator));
    }
    let own = site.proxy.as_ref().map(|own| &own.proxy);
    if let Some(ProxyConfig { proxy: used, .. }) = proxy
        && own != Some(used)
    {
        let own = own.map_or("not set".to_owned(), |own| format!("`{own}`"));
        told.push(format!("`proxy` is {own}, and the enrolment went through `{used}`"));
    }
    told
}

/// An invite mostly lies with whoever was sent it, where the agent's own user may not look.
fn unread(error: FileError, invite: &Path) -> CliError {
    let is_denied = error.is_denied();
    let wrong = CliError::new(error);
    if !is_denied {
        return wrong;
    }
    let copy = format!("sudo install -o consilium -m 600 {} /var/lib/consilium/", invite.display());
    wrong.hint(format!(
        "enrol as the agent's own user, with an invite that it may read: `{copy}`, and name that copy"
    ))
}

/// The example with the coordinator's address and the proxy, and its data sets commented out.
fn site_toml(coordinator: &str, proxy: Option<&ProxyConfig>) -> String {
    let (settings, datasets) = SITE.split_once("[[dataset]]").unwrap_or((SITE, ""));
    let mut settings = settings.replace("consortium.example.org:443", coordinator);
    if let Some(ProxyConfig { proxy, login }) = proxy {
        let key = |name: &str, value: &str| format!("{name} = {}", toml::Value::from(value));
        settings = settings.replace(PROXY, &key("proxy", &proxy.to_string()));
        if let Some((user, file)) = login {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            settings = settings.replace(PROXY_USER, &key("proxy_user", user));
            settings = settings.replace(PROXY_PASSWORD, &key("proxy_password_file", &file.to_string_lossy()));
        }
    }
    let commented = datasets.trim_end().replace('\n', "\n# ").replace("# \n", "#\n");
    format!("{settings}# [[dataset]]{commented}\n")
}

fn write_unless_there(path: &Path, text: &str) -> Result<(), CliError> {
    if !path.exists() {
        files::write_new(path, text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::client::config::SiteConfig;
    use crate::egress::bandwidth::Bandwidth;

    #[test]
    fn the_written_configuration_is_one_without_data_sets() {
        let text = site_toml("c.example.org:8443", None);
        let config = SiteConfig::parse(Path::new("site.toml"), &text).unwrap();
        assert_eq!(config.coordinator.to_string(), "c.example.org:8443");
        assert!(config.datasets.is_empty() && text.contains("# [[dataset]]"));
        assert_eq!(config.proxy, None);
    }

    #[test]
    fn the_written_configuration_asks_for_nothing_that_an_empty_one_would_not() {
        let read = |text: &str| SiteConfig::parse(Path::new("site.toml"), text).unwrap();
        let written = read(&site_toml("c.example.org:8443", None));
        assert_eq!((written.threads, written.traffic.bandwidth.clone()), (None, Bandwidth::default()));
        let needed = "coordinator = \"c.example.org:8443\"\nidentity = \"identity\"\nstate = \"state\"\n\
                      policy = \"policy.toml\"\n";
        assert_eq!(format!("{written:#?}"), format!("{:#?}", read(needed)));
    }

    #[test]
    fn an_invite_that_the_agents_user_may_not_read_is_told_with_how_it_may() {
        let invite = Path::new("/home/ada/north.invite.toml");
        let told = |kind: io::ErrorKind| unread(FileError::new("read", invite, kind.into()), invite).text();
        let denied = told(io::ErrorKind::PermissionDenied);
        assert!(denied.starts_with("error: cannot read /home/ada/north.invite.toml\n"), "{denied}");
        let copy = "`sudo install -o consilium -m 600 /home/ada/north.invite.toml /var/lib/consilium/`";
        assert!(denied.contains(copy), "{denied}");
        assert!(!told(io::ErrorKind::NotFound).contains("sudo"));
    }

    fn site(settings: &str) -> SiteConfig {
        let text =
            format!("identity = \"identity\"\nstate = \"state\"\npolicy = \"policy.toml\"\n{settings}");
        SiteConfig::parse(Path::new("site.toml"), &text).unwrap()
    }

    const BEHIND: &str = "coordinator = \"old.example.org:443\"\nproxy = \"http://10.0.0.1:8080\"\n";

    #[test]
    fn a_site_that_enrols_again_goes_through_its_own_proxy_unless_told_otherwise() {
        let args = |proxy: Option<&str>| EnrollArgs {
            invite: PathBuf::from("north.invite.toml"),
            dir: PathBuf::from("."),
            proxy: proxy.map(str::to_owned),
            proxy_user: None,
            proxy_password_file: None,
        };
        let through = |given: Option<&str>, site: Option<&SiteConfig>| {
            args(given).proxy(site).unwrap().map(|config| config.proxy.to_string())
        };
        let behind = site(BEHIND);
        assert_eq!(through(None, Some(&behind)).as_deref(), Some("http://10.0.0.1:8080"));
        assert_eq!(through(Some("http://p:1"), Some(&behind)).as_deref(), Some("http://p:1"));
        assert_eq!(through(None, None), None);
    }

    #[test]
    fn settings_that_a_new_invite_leaves_behind_are_named() {
        let [old, new] =
            ["old.example.org:443", "new.example.org:443"].map(|text| text.parse::<Address>().unwrap());
        let behind = site(BEHIND);
        assert_eq!(out_of_date(&behind, &old, behind.proxy.as_ref()), [""; 0]);
        let moved = out_of_date(&behind, &new, behind.proxy.as_ref());
        assert_eq!(
            moved,
            ["`coordinator` is `old.example.org:443`, and the invite says `new.example.org:443`"]
        );

        let straight = site("coordinator = \"old.example.org:443\"\n");
        let told = out_of_date(&straight, &old, behind.proxy.as_ref());
        assert_eq!(told, ["`proxy` is not set, and the enrolment went through `http://10.0.0.1:8080`"]);
    }

    #[test]
    fn the_proxy_that_enrolment_went_through_is_in_the_written_configuration() {
        let login = Some(("north".to_owned(), PathBuf::from("/etc/proxy password")));
        let proxy = ProxyConfig { proxy: "http://10.0.0.1:8080".parse().unwrap(), login };
        let text = site_toml("c.example.org:8443", Some(&proxy));
        let config = SiteConfig::parse(Path::new("site.toml"), &text).unwrap();
        assert_eq!(config.proxy, Some(proxy));
    }
}
