//! `site-agent enroll`: from an invite to a folder that `site-agent run` can use.

use std::path::{Path, PathBuf};

use clap::Args;

use super::error_report::CliError;
use super::{line, runtime};
use crate::client::enroll::{Invite, enroll};
use crate::client::files;
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
}

const SITE: &str = include_str!("../../../configs/examples/site.toml");
const POLICY: &str = include_str!("../../../configs/examples/policy.toml");

pub(super) fn run(args: &EnrollArgs) -> Result<(), CliError> {
    let invite = Invite::parse(&files::read_text(&args.invite)?)?;
    let state = StateFolder::open(&args.dir.join("state"))?;
    let mut ledger = Ledger::open(&state.ledger(), |_| ())?;
    let folder = IdentityFolder::new(args.dir.join("identity"));
    let membership = runtime()?.block_on(enroll(&invite, &folder, &mut ledger))?;
    line(format!("enrolled: {} `{}` of `{}`", membership.role, membership.site, membership.consortium));
    let site = site_toml(&invite.coordinator.to_string());
    write_unless_there(&args.dir.join("site.toml"), &site)?;
    write_unless_there(&args.dir.join("policy.toml"), POLICY)?;
    let config = args.dir.join("site.toml");
    line(format!("next: name your data sets in {0}, then `site-agent check --config {0}`", config.display()));
    line(format!("the invite is used up: delete {}", args.invite.display()));
    Ok(())
}

/// The example with the coordinator's address, and its data sets commented out.
fn site_toml(coordinator: &str) -> String {
    let (settings, datasets) = SITE.split_once("[[dataset]]").unwrap_or((SITE, ""));
    let settings = settings.replace("consortium.example.org:443", coordinator);
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
    use super::*;
    use crate::client::config::SiteConfig;

    #[test]
    fn the_written_configuration_is_one_without_data_sets() {
        let text = site_toml("c.example.org:8443");
        let config = SiteConfig::parse(Path::new("site.toml"), &text).unwrap();
        assert_eq!(config.coordinator.to_string(), "c.example.org:8443");
        assert!(config.datasets.is_empty() && text.contains("# [[dataset]]"));
    }
}
