//! What the coordinator stands on: the disk, who may read its files, and how long its certificates last.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use common::ids::Role;
use common::time::Timestamp;

use super::records::Known;
use super::{Examination, Level};
use crate::clock;
use crate::config::Config;
use crate::files::{size_in_words, space};
use crate::pki::{Authority, Validity};
use crate::store::{SiteStatus, Store, StoreError};

const DAY: Duration = Duration::from_secs(86_400);
/// An issuing certificate that ends sooner is worth a word: all the sites' certificates end with it.
const SOON: u32 = 90;
/// As [`SOON`], of a site's.
const SITE_SOON: u32 = 30;

/// Looks at the disk, the permissions and the consortium's certificates.
pub(super) fn examine(config: &Config, examination: &mut Examination<'_>) {
    disk(&config.state, examination);
    permissions(config, examination);
    certificates(config, examination);
}

fn disk(state: &Path, examination: &mut Examination<'_>) {
    match space(state) {
        Ok(space) if space.read_only => {
            examination.find(
                Level::Bad,
                state,
                "the file system is mounted read-only: nothing is kept or acknowledged",
                "mount it read-write again; the log of the kernel says why it was not",
            );
        }
        Ok(space) if space.available == 0 => {
            let words = "the disk is full: nothing is kept or acknowledged";
            examination.find(Level::Bad, state, words, "free some space; everything then goes on by itself");
        }
        Ok(space) => examination.good(state, format!("{} left on the disk", size_in_words(space.available))),
        Err(error) => examination.find(Level::Bad, state, error.to_string(), ""),
    }
}

fn permissions(config: &Config, examination: &mut Examination<'_>) {
    let key = |name: &str| config.certs.join(name);
    let private = [config.state.clone(), config.certs.clone(), key("issuing.key"), key("root.key")];
    let mut open = 0;
    for path in private.iter().filter(|path| path.exists()) {
        open += usize::from(!is_private(path, examination));
    }
    if open == 0 {
        examination.good(&config.certs, "keys and state are for their owner alone");
    }
    if key("root.key").exists() {
        examination.find(
            Level::Warn,
            key("root.key"),
            "the root's key lies beside the server, which never reads it",
            "take it away and keep it in a safe",
        );
    }
}

/// Whether nobody but the owner may read it; narrows it if that is wanted.
fn is_private(path: &Path, examination: &mut Examination<'_>) -> bool {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(error) => {
            examination.find(Level::Bad, path, error.to_string(), "run the doctor as the coordinator's user");
            return false;
        }
    };
    if mode & 0o077 == 0 {
        return true;
    }
    let detail = format!("others than its owner may open it (mode {mode:03o})");
    let narrowed = examination.repair && narrow(path, mode).is_ok();
    match narrowed {
        true => examination.find(Level::Repaired, path, format!("{detail}; now they may not"), ""),
        false => examination.find(
            Level::Bad,
            path,
            detail,
            "`chmod go= PATH`, or `coordinator doctor --repair`; if a key was read, the consortium needs new ones",
        ),
    }
    false
}

fn narrow(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))
}

fn certificates(config: &Config, examination: &mut Examination<'_>) {
    let authority = match Authority::open(&config.certs, &config.consortium) {
        Ok(authority) => authority,
        Err(error) => {
            let words = crate::store::causes(&error);
            let remedy =
                "copy the folder of certificates from a backup: the coordinator does not start without it";
            return examination.find(Level::Bad, &config.certs, words, remedy);
        }
    };
    let remedy = "sites and server cannot be certified beyond it: plan a new consortium in time";
    for (name, der) in [("root.pem", authority.root()), ("issuing.pem", authority.issuing())] {
        let path = config.certs.join(name);
        match Validity::of(der).map(Validity::not_after) {
            None => examination.find(Level::Bad, path, "is no certificate", "copy it from a backup"),
            Some(until) => {
                let (level, words) = lasts(until, clock::now(), SOON);
                examination.find(level, path, words, if level == Level::Ok { "" } else { remedy });
            }
        }
    }
    examination.good("server certificate", "made anew at each start; it lasts as long as the issuing one");
}

/// Looks at the certificates of the sites that may speak.
///
/// # Errors
/// The store.
pub(super) async fn site_certificates(
    store: &Store,
    config: &Config,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let active = store.sites().await?.into_iter().filter(|record| record.status == SiteStatus::Active);
    let mut lasting = 0;
    for record in active {
        let until = record.certificate_until.unwrap_or_default();
        let (level, words) = lasts(until, clock::now(), SITE_SOON);
        if level == Level::Ok {
            lasting += 1;
            continue;
        }
        let remedy =
            format!("`coordinator invite {} --role {}`, and let it enrol again", record.site, record.role);
        // The server works; one site will not.
        examination.find(Level::Warn, format!("certificate of {}", record.site), words, &remedy);
    }
    examination.good(
        format!("sites of {}", config.consortium),
        format!("{lasting} have a certificate for longer than {SITE_SOON} days"),
    );
    Ok(())
}

/// Whether the next round of each study has room: an update of each trainer, and the model.
///
/// # Errors
/// The store.
pub(super) async fn room(
    store: &Store,
    known: &Known,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let Ok(space) = space(store.dir()) else { return Ok(()) };
    let sites = store.sites().await?;
    let trains =
        |site: &&crate::store::SiteRecord| site.role == Role::Trainer && site.status == SiteStatus::Active;
    let trainers: Vec<_> = sites.iter().filter(trains).map(|record| record.site.clone()).collect();
    let mut needed = 0u64;
    for study in known.studies.iter().filter(|study| study.goes_on) {
        let model = store.artifacts().read(&study.model).ok().flatten();
        let bytes = model.map_or(0, |file| file.manifest().layout().bytes());
        let takes_part = trainers.iter().filter(|site| !study.leaves_out.contains(site)).count();
        let files = u64::try_from(takes_part).unwrap_or(u64::MAX).saturating_add(1);
        needed = needed.saturating_add(bytes.saturating_mul(files));
    }
    let there = space.available.saturating_add(store.spool().spare_bytes());
    let words = format!(
        "the next round of every study needs {}, there are {}",
        size_in_words(needed),
        size_in_words(there)
    );
    match there < needed {
        true => {
            let remedy = "free some space, or move the state folder to a larger disk, before the round ends";
            examination.find(Level::Warn, store.dir(), words, remedy);
        }
        false => examination.good(store.dir(), words),
    }
    Ok(())
}

/// What it means that something lasts until then.
pub(super) fn lasts(until: Timestamp, now: Timestamp, soon: u32) -> (Level, String) {
    let date = clock::rfc3339(until);
    if until <= now {
        return (Level::Bad, format!("has ended, on {date}"));
    }
    let level = if until.since(now) < soon * DAY { Level::Warn } else { Level::Ok };
    (level, format!("lasts until {date}"))
}
