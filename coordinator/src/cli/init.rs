//! `coordinator init`: makes a consortium where there is none, and nothing where a part of one is left.

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;
use common::ids::SiteId;

use super::line;
use crate::clock;
use crate::config::{self, Config};
use crate::error_report::Refused;
use crate::files::{self, Access};
use crate::pki::Authority;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The consortium's name: in every certificate, never to change.
    #[arg(long, value_name = "NAME")]
    consortium: SiteId,
    /// What hospitals dial, HOST:PORT; written into invites.
    #[arg(long, value_name = "HOST:PORT", value_parser = dialled)]
    address: Option<String>,
    /// Where the server listens, UDP and TCP.
    #[arg(long, default_value = "0.0.0.0:443", value_name = "IP:PORT")]
    listen: std::net::SocketAddr,
}

/// A wrong address is the option's mistake: there is no file yet whose line could be named.
fn dialled(address: &str) -> Result<String, &'static str> {
    match config::can_be_dialled(address) {
        true => Ok(address.to_owned()),
        false => Err("it cannot be dialled: expected HOST:PORT"),
    }
}

/// Makes settings, certificates and state folder.
pub(super) async fn initialise(path: &Path, init: &Init) -> anyhow::Result<()> {
    if path.exists() {
        agree(path, init)?;
    } else {
        write_settings(path, init)?;
    }
    let config = Config::read(path)?;
    refuse_what_is_left_of_another(&config)?;
    let authority = Authority::create(&config.certs, &config.consortium, clock::now())?;
    Store::create(&config.state).await?.close().await;
    let fingerprint = data_encoding::HEXLOWER.encode(&authority.root_fingerprint());
    line(&format!("made the consortium `{}`; its root is {fingerprint}", config.consortium));
    line(&format!("now take {} away and keep it in a safe", config.certs.join("root.key").display()));
    if config.address.is_none() {
        line(&format!("before the first invite, set `address` in {}: what sites dial", path.display()));
    }
    Ok(())
}

fn write_settings(path: &Path, init: &Init) -> anyhow::Result<()> {
    let mut text = format!("consortium = \"{}\"\nlisten = \"{}\"\n", init.consortium, init.listen);
    if let Some(address) = &init.address {
        text.push_str(&format!("address = \"{address}\"\n"));
    }
    // Read before it is written.
    Config::parse(&path.display().to_string(), &text, files::parent(path))?;
    files::write_new(path, text.as_bytes(), Access::Public).with_context(|| path.display().to_string())
}

/// Settings that are there stay as they are: what the command says must not differ.
fn agree(path: &Path, init: &Init) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    if config.consortium != init.consortium.as_str() {
        bail!(
            "{} is of the consortium `{}`, not of `{}`: for another one, name another file with --config",
            path.display(),
            config.consortium,
            init.consortium
        );
    }
    if init.address.is_some() && init.address != config.address {
        bail!(
            "{} has {}, and --address says another: change the file, and leave --address out",
            path.display(),
            config.address.map_or("no `address`".to_owned(), |address| format!("`address = \"{address}\"`")),
        );
    }
    Ok(())
}

/// New certificates shut out every site that has old ones, and an empty state knows no site: where one of the two is there,
/// the other is to come back.
fn refuse_what_is_left_of_another(config: &Config) -> anyhow::Result<()> {
    let (certs, state) = (config.certs.display(), config.state.display());
    let (words, hint) = match (Authority::is_in(&config.certs)?, Store::is_in(&config.state)?) {
        (false, true) => (
            format!("{state} is the state of a consortium, whose certificates are not in {certs}"),
            "bring them back: mount their folder, copy it from a backup, or `coordinator restore BACKUP` into empty folders"
                .to_owned(),
        ),
        (true, false) => (
            format!("{certs} has the certificates of a consortium, whose state is not in {state}"),
            format!(
                "bring it back: mount the folder, or `coordinator restore BACKUP`; if an `init` was cut short and nobody \
                 was invited yet, remove {certs} and run `init` again"
            ),
        ),
        // The first of a consortium, or `create` says that it was made before.
        (false, false) | (true, true) => return Ok(()),
    };
    Err(Refused { words, hint: Some(hint) }.into())
}
