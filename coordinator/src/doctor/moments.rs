//! What strategies keep between rounds: every byte of the moments is read, and those that the next round starts from are looked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::files::{corrupt, move_away, stray};
use super::records::Known;
use super::{Examination, Level, Told};
use crate::files::size_in_words;
use crate::store::{Kind, MomentsName, SERVER_STATE, Store, StoreError};

/// Moments that a study cannot go on without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    /// Its name.
    pub(super) study: String,
    /// What the moments are called.
    pub(super) names: &'static [&'static str],
}

impl Needed {
    fn words(&self) -> String {
        format!("the next round of `{}` starts from it", self.study)
    }

    /// What happens next, and how they are had again.
    fn remedy(&self) -> String {
        format!(
            "that round starts from no others and never from zeros: it pauses the study until they are here. Copy the folder of \
             this name from a backup's state/server-state and `coordinator study resume {}`, or `coordinator restore` the backup",
            self.study
        )
    }
}

/// Looks at the moments, and for those that a study needs.
///
/// # Errors
/// The folder cannot be listed.
pub(super) fn examine(
    store: &Store,
    known: &Known,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let entries = store.server_states().entries()?;
    (examination.tell)(Told::ToRead(entries.iter().map(|entry| bytes(&entry.path)).sum()));
    let (mut there, mut read) = (BTreeSet::new(), 0);
    for entry in &entries {
        if examination.stop.is_cancelled() {
            return Ok(());
        }
        let Kind::Moments(name) = &entry.kind else {
            stray(entry, examination);
            continue;
        };
        there.insert(*name);
        let needed = known.moments.get(name);
        match scrub(store, name, needed, examination) {
            Ok(bytes) => read += bytes,
            // Two rounds have ended while we looked.
            Err(_) if !entry.path.exists() => {}
            Err(error) => {
                let moved = move_away(store, &entry.path, &error, examination);
                let (level, remedy) = match needed {
                    Some(needed) => (Level::Bad, format!("{}; {}", needed.words(), needed.remedy())),
                    None if moved.is_some() => (Level::Repaired, String::new()),
                    None => (Level::Warn, "no round starts from it; `--repair` moves it away".to_owned()),
                };
                examination.find(level, &entry.path, corrupt(&error, moved), &remedy);
            }
        }
    }
    for (name, needed) in known.moments.iter().filter(|(name, _)| !there.contains(*name)) {
        if examination.running && is_past(&there, name) {
            continue;
        }
        let path = store.server_states().folder(&name.study, name.round, &name.model);
        examination.find(Level::Bad, path, format!("is not there: {}", needed.words()), &needed.remedy());
    }
    let words = format!("the moments of {} rounds read, {}", there.len(), size_in_words(read));
    examination.good(store.dir().join(SERVER_STATE), words);
    Ok(())
}

/// Whether a running coordinator has made a later state since the records were read: it had this one then.
fn is_past(there: &BTreeSet<MomentsName>, name: &MomentsName) -> bool {
    there.iter().any(|other| other.study == name.study && other.round > name.round)
}

/// Reads all moments beside a model; their size.
fn scrub(
    store: &Store,
    name: &MomentsName,
    needed: Option<&Needed>,
    examination: &mut Examination<'_>,
) -> Result<u64, StoreError> {
    let MomentsName { study, round, model } = name;
    let moments = store.server_states().moments(study, *round, model)?;
    if let Some(Needed { names, .. }) = needed
        && !moments.iter().map(|(name, _)| name.as_str()).eq(names.iter().copied())
    {
        return Err(StoreError::corrupt("server state", format!("its moments are not {}", names.join(", "))));
    }
    let mut read = 0;
    for (_, moment) in &moments {
        moment.verify(|bytes| (examination.tell)(Told::Read(bytes)))?;
        read += moment.manifest().layout().bytes();
    }
    Ok(read)
}

/// Size of the moments in a folder, for progress alone.
fn bytes(folder: &Path) -> u64 {
    let size = |moment: &Path| fs::metadata(moment.join("data")).map_or(0, |metadata| metadata.len());
    fs::read_dir(folder)
        .map_or(0, |entries| entries.filter_map(Result::ok).map(|entry| size(&entry.path())).sum())
}
