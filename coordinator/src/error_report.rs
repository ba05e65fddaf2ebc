//! How a failure is told: once, with its causes, a hint that can be acted on, and an exit code that scripts can read.
//!
//! | code | meaning |
//! | --- | --- |
//! | 1 | it failed, or its output could not be written |
//! | 2 | the command line is wrong (from `clap`) |
//! | 74 | the disk is full or read-only: nothing was lost; do it again when there is room |
//! | 75 | another process has the state folder: try again later |
//! | 78 | coordinator.toml is missing or has mistakes, all of them listed |

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use common::config::Diagnostics;
use safetensors::SafeTensorError;

use crate::backup::BackupError;
use crate::cli::Lost;
use crate::import::ImportError;
use crate::operator::SocketError;
use crate::operator::client::AskError;
use crate::pki::PkiError;
use crate::service::ServiceError;
use crate::store::{self, StoreError};

/// Of a file that the operator names: the running coordinator may be somebody else.
pub(crate) const READS_AS_ITS_USER: &str =
    "the coordinator reads it as its own user: is it there, and may that user read it?";

const FAILED: u8 = 1;
/// Files and folders of a coordinator are for their owner alone.
const AS_ITS_USER: &str = "run this as the user that the coordinator runs as";
const DISK: u8 = 74;
const IN_USE: u8 = 75;
const CONFIGURATION: u8 = 78;

/// A request that the coordinator refused, with its own hint.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct Refused {
    /// Why.
    pub words: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Tells `error` on standard error and gives the exit code, also where nothing more can be written: scripts go by the code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let _ = write!(io::stderr(), "{}", render(error));
    ExitCode::from(exit_code(error))
}

/// The text: `error: …`, its causes, and after a blank line the hint.
fn render(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        // A transparent error says the same as its cause.
        if !text.contains(&cause.to_string()) {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
    }
    if let Some(hint) = error.chain().find_map(hint) {
        text.push_str(&format!("\nhint: {hint}\n"));
    }
    text
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Diagnostics>()) {
        return CONFIGURATION;
    }
    let store = error.chain().find_map(|cause| find_store(cause).map(StoreError::code));
    match store {
        Some("store-locked") => IN_USE,
        Some(store::DISK_FULL | store::DISK_READ_ONLY) => DISK,
        _ => FAILED,
    }
}

/// What can be done about one of the causes of a failure.
pub(crate) fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(refused) = cause.downcast_ref::<Refused>() {
        return refused.hint.clone();
    }
    if cause.is::<Lost>() {
        return Some(Lost::HINT.to_owned());
    }
    if let Some(hint) = cause.downcast_ref::<BackupError>().and_then(BackupError::hint) {
        return Some(hint.to_owned());
    }
    if let Some(store) = find_store(cause) {
        return store_hint(store).map(str::to_owned);
    }
    if let Some(import) = cause.downcast_ref::<ImportError>() {
        return import_hint(import).map(str::to_owned);
    }
    if let Some(AskError::Exchange(error)) = cause.downcast_ref() {
        return Some(exchange_hint(error.kind()).to_owned());
    }
    let pki = cause.downcast_ref::<PkiError>().or_else(|| match cause.downcast_ref() {
        Some(ServiceError::Pki(pki)) => Some(pki),
        _ => match cause.downcast_ref() {
            Some(AskError::Pki(pki)) => Some(pki),
            _ => None,
        },
    });
    match pki {
        Some(PkiError::Missing { .. }) => {
            return Some(
                "run `coordinator init` first; for a consortium that was made before, mount its folder or copy it from a backup"
                    .to_owned(),
            );
        }
        Some(PkiError::File { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            return Some(AS_ITS_USER.to_owned());
        }
        Some(PkiError::Exists { .. }) => {
            return Some("there is nothing to do; for another consortium use another folder".to_owned());
        }
        _ => {}
    }
    let socket = cause.downcast_ref::<SocketError>();
    if let Some(SocketError::TooLong(_)) = socket {
        return Some("set `state` in coordinator.toml to a folder with a shorter path".to_owned());
    }
    match cause.downcast_ref() {
        Some(ServiceError::Listen { .. }) => {
            Some("is the port free, and may this user open it? Ports below 1024 need the right to".to_owned())
        }
        _ => None,
    }
}

/// Errors that are transparent for the store's hide it from the chain of causes.
fn find_store<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e StoreError> {
    let of_service = || match cause.downcast_ref() {
        Some(ServiceError::Store(store)) => Some(store),
        _ => None,
    };
    let of_command = || match cause.downcast_ref() {
        Some(AskError::Store(store)) => Some(store),
        _ => None,
    };
    let of_backup = || match cause.downcast_ref() {
        Some(BackupError::Store(store)) => Some(store),
        _ => None,
    };
    let of_import = || match cause.downcast_ref() {
        Some(ImportError::Store(store)) => Some(store),
        _ => None,
    };
    let itself = cause.downcast_ref::<StoreError>();
    itself.or_else(of_service).or_else(of_command).or_else(of_backup).or_else(of_import)
}

fn import_hint(error: &ImportError) -> Option<&'static str> {
    match error {
        ImportError::File { .. } => Some(READS_AS_ITS_USER),
        ImportError::Format {
            source: SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer,
            ..
        } => Some("it is longer or shorter than it says of itself, as one that is cut short: copy it again"),
        ImportError::Format { .. } | ImportError::Tensor { .. } | ImportError::Layout { .. } => Some(
            "`site-agent model init` or `site-agent model import` makes a model, `site-agent embed` the embeddings",
        ),
        ImportError::Store(_) => None,
    }
}

fn exchange_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::PermissionDenied => AS_ITS_USER,
        ErrorKind::InvalidData => "use the `coordinator` program of the same version as the server",
        _ => "it may be stopping: try again, and look at what `coordinator run` said last",
    }
}

fn store_hint(error: &StoreError) -> Option<&'static str> {
    if let StoreError::File { source, .. } = error {
        match source.kind() {
            ErrorKind::PermissionDenied => return Some(AS_ITS_USER),
            ErrorKind::AlreadyExists => {
                return Some("nothing is written over: move it away, or name another");
            }
            _ => {}
        }
    }
    match error.code() {
        "store-locked" => {
            Some("another coordinator, or a command of it, is at work here: wait for it or stop it")
        }
        "store-displaced" => Some(
            "stop the coordinator before its state is moved or restored: start it again with the one folder that is to count",
        ),
        "store-newer" => Some("install the newer program again, or restore the backup that it made"),
        "store-missing" => Some(
            "run `coordinator init` first, or name the right file with `--config`; the state of a consortium that was made before \
             comes back by its mount or `coordinator restore BACKUP`",
        ),
        store::DISK_FULL => Some("free some space: all that was acknowledged is safe, and the study goes on"),
        store::DISK_READ_ONLY => {
            Some("mount it read-write again: all that was acknowledged is safe, and the study goes on")
        }
        "store-corrupt" => Some(
            "`coordinator doctor` says what is damaged; `coordinator restore BACKUP` brings back a whole state folder",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_with_its_hint() {
        let error = anyhow::Error::from(ServiceError::from(StoreError::Locked { path: "/srv/state".into() }))
            .context("starting the coordinator");
        insta::assert_snapshot!(render(&error), @r"
        error: starting the coordinator
          caused by: /srv/state is in use by another process

        hint: another coordinator, or a command of it, is at work here: wait for it or stop it
        ");
        assert_eq!(exit_code(&error), IN_USE);
    }

    #[test]
    fn a_command_of_another_user_is_told_so() {
        let told = |kind: ErrorKind| render(&AskError::Exchange(kind.into()).into());
        assert!(told(ErrorKind::PermissionDenied).ends_with(&format!("\nhint: {AS_ITS_USER}\n")));
        assert!(told(ErrorKind::InvalidData).contains("of the same version as the server"));
        let store =
            StoreError::File { path: "/srv/state".into(), source: ErrorKind::PermissionDenied.into() };
        assert!(render(&ServiceError::from(store).into()).contains(AS_ITS_USER));
    }

    #[test]
    fn a_file_that_is_cut_short_or_in_the_way_is_told_so() {
        let path = || "model.safetensors".into();
        let cut = ImportError::Format { path: path(), source: SafeTensorError::MetadataIncompleteBuffer };
        assert!(render(&cut.into()).contains("cut short: copy it again"));
        let other = ImportError::Format { path: path(), source: SafeTensorError::HeaderTooLarge };
        assert!(render(&other.into()).contains("`site-agent model init`"));
        let there = StoreError::File { path: path(), source: ErrorKind::AlreadyExists.into() };
        assert!(render(&there.into()).contains("hint: nothing is written over"));
    }

    #[test]
    fn a_disk_without_room_has_its_own_code() {
        let code = |kind: std::io::ErrorKind| {
            let store = StoreError::File { path: "/srv/state".into(), source: kind.into() };
            exit_code(&ServiceError::from(store).into())
        };
        assert_eq!(code(std::io::ErrorKind::StorageFull), DISK);
        assert_eq!(code(std::io::ErrorKind::ReadOnlyFilesystem), DISK);
        assert_eq!(code(std::io::ErrorKind::PermissionDenied), FAILED);
    }

    #[test]
    fn mistakes_in_a_file_have_their_own_code() {
        let error = anyhow::Error::from(Diagnostics::whole_file("coordinator.toml", "is not TOML"));
        assert_eq!(exit_code(&error), CONFIGURATION);
        assert_eq!(exit_code(&anyhow::anyhow!("other")), FAILED);
    }
}
