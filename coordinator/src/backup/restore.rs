//! The way back from a backup: every byte is looked at before the first is written.

use std::fs;
use std::io;
use std::path::{Component, Path};

use super::landing::{self, Landing};
use super::{
    BackupError, CERTS, Copied, FORMAT, MANIFEST, Manifest, SETTINGS, STATE, Summary, copy_file, damaged,
    digest, on_disk, sync_folders,
};
use crate::config::Config;
use crate::files::{self, Access};
use crate::store::{StoreError, StoreLock, newest_schema};

/// Brings back the backup in `from`, for the coordinator whose settings lie, or are to lie, at `settings`.
///
/// # Errors
/// [`BackupError`]; nothing is changed unless every file of the backup is whole and nothing is in the way.
pub fn restore(settings: &Path, from: &Path) -> Result<Summary, BackupError> {
    let manifest = read_manifest(from)?;
    for file in &manifest.files {
        check(from, file)?;
    }
    let config = settings_of(settings, from, &manifest)?;
    refuse_what_is_in_the_way(&config, from, &manifest)?;

    on_disk(&config.certs, files::create_private_dir(&config.certs))?;
    let landing = on_disk(&config.state, Landing::at(&config.state))?;
    let placed = manifest.files.iter().try_for_each(|file| place(from, file, &config, landing.folder()));
    let placed = placed.and_then(|()| {
        on_disk(landing.folder(), sync_folders(landing.folder()))?;
        on_disk(&config.state, landing.land())
    });
    if placed.is_err() {
        landing.clear();
    }
    placed?;
    if !settings.exists() {
        let text = on_disk(from, fs::read(from.join(SETTINGS)))?;
        on_disk(settings, files::write_new(settings, &text, Access::Public))?;
    }
    let bytes = manifest.files.iter().map(|file| file.bytes).sum();
    Ok(Summary { made_at: manifest.made_at, files: manifest.files.len(), bytes })
}

fn read_manifest(from: &Path) -> Result<Manifest, BackupError> {
    let path = from.join(MANIFEST);
    let bytes =
        fs::read(&path).map_err(|error| damaged(&path, format!("this folder is no backup: {error}")))?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))?;
    if manifest.format != FORMAT {
        return Err(damaged(&path, format!("format `{}`; this program reads `{FORMAT}`", manifest.format)));
    }
    let known = newest_schema();
    if manifest.schema > known {
        return Err(StoreError::Newer { path, found: manifest.schema, known }.into());
    }
    Ok(manifest)
}

/// Whether a file of the backup is what it was.
fn check(from: &Path, file: &Copied) -> Result<(), BackupError> {
    let inside = Path::new(&file.path);
    let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
    let ours = inside == Path::new(SETTINGS) || inside.starts_with(CERTS) || inside.starts_with(STATE);
    if !plain || !ours {
        return Err(damaged(
            &from.join(MANIFEST),
            format!("names a file that is none of ours: {}", file.path),
        ));
    }
    let path = from.join(inside);
    let (bytes, blake3) = digest(&path).map_err(|error| damaged(&path, error))?;
    if (bytes, blake3) != (file.bytes, file.blake3) {
        return Err(damaged(&path, "is not what was backed up"));
    }
    Ok(())
}

/// The settings in place, or those of the backup as they will read in place.
fn settings_of(settings: &Path, from: &Path, manifest: &Manifest) -> Result<Config, BackupError> {
    let config = if settings.exists() {
        Config::read(settings)?
    } else {
        let path = from.join(SETTINGS);
        let text = on_disk(&path, fs::read_to_string(&path))?;
        Config::parse(&path.display().to_string(), &text, files::parent(settings))?
    };
    if config.consortium != manifest.consortium {
        let (expected, found) = (config.consortium, manifest.consortium.clone());
        return Err(BackupError::OtherConsortium { expected, found });
    }
    Ok(config)
}

fn refuse_what_is_in_the_way(config: &Config, from: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    if !on_disk(&config.state, landing::is_free(&config.state))? {
        let path = config.state.clone();
        // A coordinator whose folder is moved away writes on: its database there, all else into what takes the folder's place.
        if StoreLock::is_held(&path) {
            return Err(StoreError::Locked { path }.into());
        }
        return Err(match landing::is_half_landed(&path) {
            true => BackupError::Interrupted { path },
            false => BackupError::NotEmpty { path },
        });
    }
    for file in &manifest.files {
        let Ok(inside) = Path::new(&file.path).strip_prefix(CERTS) else { continue };
        let path = config.certs.join(inside);
        let kept = on_disk(from, fs::read(from.join(&file.path)))?;
        match fs::read(&path) {
            Ok(found) if found != kept => return Err(BackupError::Differs { path }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return on_disk(&path, Err(error)),
            _ => {}
        }
    }
    Ok(())
}

fn place(from: &Path, file: &Copied, config: &Config, state: &Path) -> Result<(), BackupError> {
    let inside = Path::new(&file.path);
    let source = from.join(inside);
    if let Ok(inside) = inside.strip_prefix(CERTS) {
        let path = config.certs.join(inside);
        let bytes = on_disk(&source, fs::read(&source))?;
        let access = match path.extension().is_some_and(|extension| extension == "key") {
            true => Access::Private,
            false => Access::Public,
        };
        return on_disk(&path, files::write_atomic(&path, &bytes, access));
    }
    let Ok(inside) = inside.strip_prefix(STATE) else { return Ok(()) };
    let path = state.join(inside);
    let parent = files::parent(&path);
    on_disk(parent, files::create_private_dir(parent))?;
    let (bytes, blake3) = copy_file(&source, &path)?;
    match (bytes, blake3) == (file.bytes, file.blake3) {
        true => Ok(()),
        false => Err(damaged(&source, "changed while it was copied")),
    }
}
