//! Models, embeddings and updates: every byte is read and compared with the name that it lies under.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::records::Known;
use super::{Examination, Level, Told};
use crate::clock;
use crate::files::size_in_words;
use crate::store::{ArtifactFile, Entry, Kind, Store, StoreError, UpdateName, causes};

/// Looks at the artifacts, and for those that a study needs.
///
/// # Errors
/// The folder cannot be listed.
pub(super) fn artifacts(
    store: &Store,
    known: &Known,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let entries = store.artifacts().entries()?;
    (examination.tell)(Told::ToRead(entries.iter().map(bytes).sum()));
    let (mut whole, mut read) = (BTreeSet::new(), 0);
    for entry in &entries {
        if examination.stop.is_cancelled() {
            return Ok(());
        }
        let Kind::Artifact(hash) = &entry.kind else {
            stray(entry, examination);
            continue;
        };
        match scrub(store.artifacts().read(hash), examination) {
            Ok(bytes) => {
                whole.insert(*hash);
                read += bytes;
            }
            Err(error) => {
                let moved = move_away(store, &entry.path, &error, examination);
                let (level, remedy) = match known.artifacts.get(hash) {
                    Some(needed) => (Level::Bad, format!("it is {}; {}", needed.words(), needed.remedy())),
                    None if moved.is_some() => (Level::Repaired, String::new()),
                    None => (Level::Warn, "no study needs it; `--repair` moves it away".to_owned()),
                };
                examination.find(level, &entry.path, corrupt(&error, moved), &remedy);
                // Told already.
                whole.insert(*hash);
            }
        }
    }
    for (hash, needed) in known.artifacts.iter().filter(|(hash, _)| !whole.contains(*hash)) {
        let path = store.artifacts().folder(hash);
        examination.find(Level::Bad, path, format!("{} is not there", needed.words()), needed.remedy());
    }
    let words = format!("{} models and embeddings read, {}", whole.len(), size_in_words(read));
    examination.good(store.dir().join(crate::store::ARTIFACTS), words);
    Ok(())
}

/// Looks at the updates, and for those that an open round counts.
///
/// # Errors
/// The folder cannot be listed.
pub(super) fn updates(
    store: &Store,
    known: &Known,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let entries = store.spool().entries()?;
    (examination.tell)(Told::ToRead(entries.iter().map(bytes).sum()));
    let (mut there, mut read) = (BTreeSet::new(), 0);
    for entry in &entries {
        if examination.stop.is_cancelled() {
            return Ok(());
        }
        let Kind::Update(name) = &entry.kind else {
            stray(entry, examination);
            continue;
        };
        there.insert(name.clone());
        let UpdateName { study, round, site, update } = name;
        match scrub(store.spool().read(study, *round, site, update), examination) {
            Ok(bytes) => read += bytes,
            // Its round ended while we looked.
            Err(_) if !entry.path.exists() => {}
            Err(error) => corrupt_update(store, known, entry, name, &error, examination),
        }
        let ended = known.ended.contains(&(*study, *round));
        if ended && !known.counted.contains(name) && !examination.running {
            let words = "its round has ended; the next start removes it";
            examination.find(Level::Repaired, &entry.path, words, "");
        }
    }
    for name in known.counted.iter().filter(|name| !there.contains(*name)) {
        let UpdateName { study, round, site, update } = name;
        let path = store.spool().folder(study, *round, site, update);
        let words = format!("the update of {site} counts in round {round} and is not there");
        examination.find(Level::Warn, path, words, &asked_again(site, examination.running));
    }
    let words = format!("{} updates read, {}", there.len(), size_in_words(read));
    examination.good(store.dir().join(crate::store::SPOOL), words);
    Ok(())
}

fn corrupt_update(
    store: &Store,
    known: &Known,
    entry: &Entry,
    name: &UpdateName,
    error: &StoreError,
    examination: &mut Examination<'_>,
) {
    let moved = move_away(store, &entry.path, error, examination);
    let counts = known.counted.contains(name);
    let remedy = match (counts, &moved) {
        (true, None) if !examination.running => {
            format!("`coordinator doctor --repair` moves it away, and {} is asked again", name.site)
        }
        (true, _) => asked_again(&name.site, examination.running),
        (false, _) => "no round counts it".to_owned(),
    };
    let level = match (&moved, counts) {
        (Some(_), _) => Level::Repaired,
        (None, true) => Level::Bad,
        (None, false) => Level::Warn,
    };
    examination.find(level, &entry.path, corrupt(error, moved), &remedy);
}

/// How an update that is gone comes back.
fn asked_again(site: &common::ids::SiteId, running: bool) -> String {
    match running {
        true => format!("nothing: the aggregation notices, and asks {site} again"),
        false => format!("nothing: the next start asks {site} again, which trains the round anew"),
    }
}

/// Reads a whole artifact or update; its size.
fn scrub(
    opened: Result<Option<ArtifactFile>, StoreError>,
    examination: &mut Examination<'_>,
) -> Result<u64, StoreError> {
    let file = opened?.ok_or_else(|| StoreError::corrupt("artifact", "it is no folder"))?;
    file.verify(|bytes| (examination.tell)(Told::Read(bytes)))?;
    Ok(file.manifest().layout().bytes())
}

/// Moves what is corrupt to the quarantine, if that is wanted; where it is now.
pub(super) fn move_away(
    store: &Store,
    path: &Path,
    error: &StoreError,
    examination: &mut Examination<'_>,
) -> Option<String> {
    // What cannot be read for now may be whole.
    if !examination.repair || !error.is_damage() {
        return None;
    }
    match store.quarantine(path, clock::now()) {
        Ok(to) => Some(to.display().to_string()),
        Err(error) => {
            examination.find(Level::Bad, path, format!("cannot be moved away: {}", causes(&error)), "");
            None
        }
    }
}

pub(super) fn corrupt(error: &StoreError, moved: Option<String>) -> String {
    let words = causes(error);
    moved.map_or(words.clone(), |to| format!("{words}; moved to {to}"))
}

/// Says what lies there that is none of what it should be.
pub(super) fn stray(entry: &Entry, examination: &mut Examination<'_>) {
    match entry.kind {
        Kind::Stranger => {
            examination.find(
                Level::Warn,
                &entry.path,
                "is nothing that the coordinator makes",
                "move it away",
            );
        }
        // The work of a running one, or resumed or removed by the next start.
        _ => examination.good(&entry.path, "unfinished"),
    }
}

/// Size of the data of an entry, for progress alone.
fn bytes(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::Artifact(_) | Kind::Update(_) => {
            fs::metadata(entry.path.join("data")).map_or(0, |metadata| metadata.len())
        }
        _ => 0,
    }
}
