//! `coordinator doctor`: looks at everything that the coordinator keeps, and says of each thing that is wrong what it means
//! and what to do.
//!
//! Without `--repair` it only reads, also beside a running coordinator. With it, it takes the store's lock, moves what is
//! corrupt to the quarantine and narrows permissions; it deletes nothing. What moved is fetched again by other means: an
//! update by the round machine, which asks its site; an initial model by `study add`; what a study needs by a running coordinator, from a
//! site that may return it; any model by `artifact add`, from a copy of a site or a backup; moments from a backup.
//! `place` looks at disk, permissions and certificates, `records` at database, studies and journals, `signatures` at what sites
//! signed, `files` at every byte of models and updates, `moments` at what strategies keep between rounds.

mod files;
mod moments;
mod place;
mod records;
mod signatures;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::store::{self, DATABASE, Store, StoreError, StoreLock};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It was not, and is now, or will be by itself.
    Repaired,
    /// Nothing is lost, but it wants attention.
    Warn,
    /// Something does not work, or will not.
    Bad,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: a path, or a name.
    pub subject: String,
    /// What is so.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What is told while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A check is done.
    Finding(&'a Finding),
    /// So many bytes are to be read.
    ToRead(u64),
    /// So many more have been read.
    Read(u64),
}

/// How many findings there are of each level that matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// [`Level::Repaired`].
    pub repaired: usize,
    /// [`Level::Warn`].
    pub warnings: usize,
    /// [`Level::Bad`].
    pub bad: usize,
}

/// An examination under way.
struct Examination<'a> {
    tell: &'a mut dyn FnMut(Told<'_>),
    summary: Summary,
    /// Whether what is wrong is to be moved away.
    repair: bool,
    /// A coordinator works beside us: what is unfinished is its work.
    running: bool,
    stop: &'a CancellationToken,
}

/// Looks at everything that the coordinator of `config` keeps.
///
/// # Errors
/// [`StoreError::Missing`] before `init`; [`StoreError::Locked`] when it is to repair what another process uses. Whatever
/// else is wrong is a finding.
pub async fn examine(
    config: &Config,
    repair: bool,
    stop: &CancellationToken,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Summary, StoreError> {
    Store::must_be_in(&config.state)?;
    let mut examination = Examination { tell, summary: Summary::default(), repair, running: false, stop };
    let taken = match repair {
        true => StoreLock::take(&config.state).await,
        // It looks beside whoever has it, too: there is nothing to wait for.
        false => StoreLock::try_take_to_look(&config.state),
    };
    let lock = match taken {
        Ok(lock) => Some(lock),
        Err(StoreError::Locked { .. }) if !repair => {
            examination.running = true;
            let detail =
                "a coordinator is running: what it has made durable is looked at, nothing is changed";
            examination.good(&config.state, detail);
            None
        }
        // Told below, with all else that can still be read.
        Err(error) if store::pause_name(error.code()).is_some() && !repair => None,
        Err(error) => return Err(error),
    };
    place::examine(config, &mut examination);
    let opened = match lock {
        Some(lock) => Store::inspect_alone(&config.state, lock).await,
        None => Store::inspect(&config.state).await,
    };
    match opened {
        Ok(store) => {
            if let Err(error) = examine_store(&store, config, &mut examination).await {
                records::unreadable(&store.database(), &error, &mut examination);
            }
            store.close().await;
        }
        Err(error) => records::unreadable(&config.state.join(DATABASE), &error, &mut examination),
    }
    Ok(examination.summary)
}

async fn examine_store(
    store: &Store,
    config: &Config,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    records::database(store, examination).await?;
    place::site_certificates(store, config, examination).await?;
    let known = records::studies(store, examination).await?;
    files::artifacts(store, &known, examination)?;
    files::updates(store, &known, examination)?;
    moments::examine(store, &known, examination)?;
    place::room(store, &known, examination).await
}

impl Examination<'_> {
    fn say(&mut self, finding: &Finding) {
        match finding.level {
            Level::Ok => {}
            Level::Repaired => self.summary.repaired += 1,
            Level::Warn => self.summary.warnings += 1,
            Level::Bad => self.summary.bad += 1,
        }
        (self.tell)(Told::Finding(finding));
    }

    fn find(&mut self, level: Level, subject: impl AsRef<Path>, detail: impl Into<String>, remedy: &str) {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        let subject = subject.as_ref().display().to_string();
        self.say(&Finding { level, subject, detail: detail.into(), remedy });
    }

    fn good(&mut self, subject: impl AsRef<Path>, detail: impl Into<String>) {
        self.find(Level::Ok, subject, detail, "");
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Repaired => "repaired",
            Self::Warn => "warn",
            Self::Bad => "bad",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, subject, detail, remedy } = self;
        write!(f, "{level:<8}  {subject}: {detail}")?;
        remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "\n          to do: {remedy}"))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repaired, warnings, bad } = self;
        write!(f, "{bad} bad, {warnings} to look at, {repaired} repaired")
    }
}
