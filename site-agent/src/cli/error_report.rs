//! How errors reach the user: what, caused by what, and what to do; and the exit codes.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use common::config::Diagnostics;
use link::LinkError;

use super::printable;
use crate::client::artifacts::ArtifactError;
use crate::client::enroll::EnrollError;
use crate::client::files::{DISK_HINT, FileError, trouble_of};
use crate::client::identity::IdentityError;
use crate::client::journal::JournalError;
use crate::client::lock::InUse;
use crate::client::owner::denied_hint;
use crate::client::studies::StudyError;
use crate::data::DataError;
use crate::egress::{EgressError, LedgerError, PolicyRefusal};
use crate::infer::InferError;
use crate::model::ModelError;
use crate::model::checkpoint::CheckpointError;
use crate::model::text::TextError;

/// Exit codes of `site-agent`; clap's own is 2, for a wrong command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something failed.
    Failed = 1,
    /// The configuration is wrong.
    Config = 64,
    /// Scans, labels or other input cannot be used.
    Data = 65,
    /// The coordinator cannot be reached.
    Unreachable = 69,
    /// The coordinator or this site's policy says no.
    Refused = 77,
}

/// An error on its way to the user.
#[derive(Debug)]
pub struct CliError {
    error: anyhow::Error,
    hint: Option<String>,
    exit: Exit,
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::new(error.into())
    }
}

impl CliError {
    /// Finds exit code and hint among the causes.
    pub fn new(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let hint = error.chain().find_map(|cause| {
            denied_path(cause).map(denied_hint).or_else(|| hint_of(cause).map(str::to_owned))
        });
        let exit = error.chain().find_map(exit_of).unwrap_or(Exit::Failed);
        Self { error, hint, exit }
    }

    /// With this exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// With a line before the error that says what it is about.
    #[must_use]
    pub fn about(self, what: String) -> Self {
        Self { error: self.error.context(what), ..self }
    }

    /// With this hint, whatever the causes know.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With this hint, unless a cause knows a better one.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The text for stderr. Causes that a message repeats already are left out.
    pub fn text(&self) -> String {
        let mut said = self.error.to_string();
        let mut text = format!("error: {said}");
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            if !said.contains(&cause) {
                text.push_str(&format!("\n  caused by: {cause}"));
                said = cause;
            }
        }
        if let Some(hint) = &self.hint
            // Messages of the data path bring their own hint.
            && !text.contains("\nhint: ")
        {
            text.push_str(&format!("\n\nhint: {hint}"));
        }
        printable(&text)
    }

    /// Tells the user, and gives the exit code, also where nothing more can be written: scripts go by the code.
    pub fn report(&self) -> ExitCode {
        let _ = writeln!(io::stderr(), "{}", self.text());
        ExitCode::from(self.exit as u8)
    }
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// The path with which this user may not do what was tried.
fn denied_path(cause: Cause<'_>) -> Option<&Path> {
    if let Some(LedgerError::File { path, source }) = cause.downcast_ref()
        && is_denied(source)
    {
        return Some(Path::new(path));
    }
    if let Some(DataError::Io { path, source }) = cause.downcast_ref()
        && is_denied(source)
    {
        return Some(path);
    }
    file_of(cause).filter(|file| file.is_denied()).map(FileError::path)
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The file error that a cause is, or speaks for.
fn file_of(cause: Cause<'_>) -> Option<&FileError> {
    if let Some(ArtifactError::File(file)) = cause.downcast_ref() {
        return Some(file);
    }
    if let Some(IdentityError::File(file)) = cause.downcast_ref() {
        return Some(file);
    }
    if let Some(JournalError::File(file)) = cause.downcast_ref() {
        return Some(file);
    }
    if let Some(StudyError::File(file)) = cause.downcast_ref() {
        return Some(file);
    }
    cause.downcast_ref()
}

fn hint_of(cause: Cause<'_>) -> Option<&'static str> {
    if let Some(error) = cause.downcast_ref::<EnrollError>() {
        return error.hint();
    }
    if let Some(error) = cause.downcast_ref::<LinkError>() {
        return error.hint();
    }
    if let Some(EgressError::Refused(refusal)) = cause.downcast_ref() {
        return Some(refusal.code.hint());
    }
    if let Some(IdentityError::NotEnrolled { .. }) = cause.downcast_ref() {
        return Some(
            "ask the coordinator's operator for an invite and run `site-agent enroll INVITE --dir FOLDER`",
        );
    }
    if let Some(IdentityError::File(file)) = cause.downcast_ref()
        && file.is_not_found()
    {
        return Some(
            "put the file back from where it was moved to; if it is lost, move the folder `identity` away and enroll again, with a new invite",
        );
    }
    if let Some(error) = cause.downcast_ref::<CheckpointError>() {
        return error.hint();
    }
    if let Some(TextError::TooLong { .. }) = cause.downcast_ref() {
        return Some("give a shorter sentence with --template; cutting one would change what it says");
    }
    if let Some(LedgerError::Broken { .. }) = cause.downcast_ref() {
        return Some(
            "keep a copy of the ledger and tell whoever guards this machine: the agent does not go on with it",
        );
    }
    if cause.downcast_ref::<JournalError>().is_some_and(JournalError::is_damage) {
        return Some(
            "move the folder `journal` in the state folder away and start again: approvals and ledger stay, and what was not sent is trained anew",
        );
    }
    // Of a path that only the message knows.
    if cause.downcast_ref::<io::Error>().is_some_and(is_denied) {
        return Some("`ls -ld` shows whose it is: it must be for the user who runs this");
    }
    if cause.downcast_ref::<io::Error>().and_then(trouble_of).is_some() {
        return Some(DISK_HINT);
    }
    if cause.is::<InUse>() {
        return Some("stop the other one, or wait for it; `site-agent status` shows what it does");
    }
    if let Some(DataError::Folds(_)) = cause.downcast_ref() {
        return Some(
            "`fold` in site.toml, or `--fold`, is one of the file's; `site-agent split` deals the patients anew",
        );
    }
    cause
        .is::<DataError>()
        .then_some("`site-agent check` looks at every scan and says what is wrong with each")
}

fn exit_of(cause: Cause<'_>) -> Option<Exit> {
    if let Some(error) = cause.downcast_ref::<EnrollError>() {
        return match error {
            EnrollError::Invite(_) | EnrollError::AlreadyEnrolled { .. } => Some(Exit::Config),
            EnrollError::Expired { .. } | EnrollError::Answer(_) => Some(Exit::Refused),
            EnrollError::Resolve { .. } => Some(Exit::Unreachable),
            // The cause knows.
            EnrollError::Connect { .. }
            | EnrollError::Request(_)
            | EnrollError::Identity(_)
            | EnrollError::Keys(_) => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<LinkError>() {
        let refused = matches!(
            error,
            LinkError::Refused(_)
                | LinkError::RefusedByPeer { .. }
                | LinkError::RefusedPeer { .. }
                | LinkError::Inspected { .. }
                | LinkError::Closed { .. }
        );
        return Some(if refused { Exit::Refused } else { Exit::Unreachable });
    }
    if cause.is::<PolicyRefusal>() || matches!(cause.downcast_ref(), Some(EgressError::Refused(_))) {
        return Some(Exit::Refused);
    }
    if cause.is::<Diagnostics>() || matches!(cause.downcast_ref(), Some(IdentityError::NotEnrolled { .. })) {
        return Some(Exit::Config);
    }
    let bad_file = matches!(
        cause.downcast_ref(),
        Some(ModelError::Safetensors(_) | ModelError::EmbeddingValues(_) | ModelError::Mismatch(_))
    );
    let is_data = bad_file
        || cause.is::<DataError>()
        || cause.is::<InferError>()
        || cause.is::<CheckpointError>()
        || cause.is::<TextError>();
    is_data.then_some(Exit::Data)
}

#[cfg(test)]
mod tests {
    use common::wire::{Refusal, RefusalCode};

    use super::*;
    use crate::client::identity::IdentityFolder;

    #[test]
    fn a_journal_that_cannot_be_read_is_told_with_the_way_out() {
        let damaged = |kind: io::ErrorKind| {
            let path = std::path::Path::new("state/journal/events-3.jsonl");
            let error = JournalError::from(FileError::new("understand", path, kind.into()));
            CliError::new(error).text()
        };
        let told = damaged(io::ErrorKind::InvalidData);
        assert!(told.starts_with("error: cannot understand state/journal/events-3.jsonl\n"), "{told}");
        assert!(told.contains("\n\nhint: move the folder `journal`"), "{told}");
        assert!(damaged(io::ErrorKind::StorageFull).contains("hint: make room"));
    }

    #[test]
    fn a_file_that_this_user_may_not_have_is_told_with_whose_it_is() {
        let path = Path::new("/srv/site/state/egress.jsonl");
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let file = || FileError::new("read", path, denied());
        let ledger = LedgerError::File { path: path.display().to_string(), source: denied() };
        let errors: [anyhow::Error; 5] = [
            file().into(),
            ArtifactError::from(file()).into(),
            JournalError::from(file()).into(),
            ledger.into(),
            DataError::Io { path: path.to_owned(), source: denied() }.into(),
        ];
        for error in errors {
            let told = CliError::new(error).text();
            assert!(told.ends_with(&format!("\n\nhint: {}", denied_hint(path))), "{told}");
        }
        let told = CliError::new(anyhow::Error::from(denied()).context("m.safetensors")).text();
        assert!(told.contains("\n\nhint: `ls -ld` shows whose it is"), "{told}");
    }

    #[test]
    fn a_part_of_the_identity_that_is_gone_is_told_with_the_way_to_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("membership.json"),
            r#"{"site":"north","role":"trainer","consortium":"demo"}"#,
        )
        .unwrap();
        let error = IdentityFolder::new(folder.path()).load().err().unwrap();
        let told = CliError::new(error).text();
        assert!(told.contains("tls.key") && told.contains("\n\nhint: put the file back"), "{told}");
    }

    #[test]
    fn an_error_shows_its_causes_once_and_what_to_do() {
        let refused =
            EgressError::Refused(Refusal::new(RefusalCode::InviteUsed, "the invite was used on Monday"));
        let error = CliError::new(EnrollError::Request(refused));
        assert_eq!(error.exit, Exit::Refused);
        insta::assert_snapshot!(error.text(), @r"
        error: the enrolment request
          caused by: the coordinator refused: the invite was used on Monday (invite-used)

        hint: ask the coordinator's operator for a new invite
        ");
    }

    #[test]
    fn a_foreign_name_in_a_message_cannot_steer_the_terminal() {
        let error = CliError::new(anyhow::anyhow!("no class `a\u{1b}[2J\u{9b}1mb`\n  known: c"));
        assert_eq!(error.text(), "error: no class `a\u{fffd}[2J\u{fffd}1mb`\n  known: c");
    }

    #[test]
    fn a_prompt_that_is_too_long_is_for_the_user_to_shorten() {
        let error = CliError::new(TextError::TooLong { prompt: "a liver".to_owned(), tokens: 80, limit: 77 });
        assert_eq!(error.exit, Exit::Data);
        assert!(error.text().contains("reads 77") && error.text().contains("--template"), "{}", error.text());
    }

    #[test]
    fn a_file_that_is_no_table_is_bad_input() {
        let garbage = crate::model::record::read_safetensors(b"no tensors").unwrap_err();
        assert_eq!(CliError::new(anyhow::Error::new(garbage).context("table.safetensors")).exit, Exit::Data);
    }

    #[test]
    fn an_unreachable_coordinator_has_a_code_and_a_hint_of_its_own() {
        let error =
            EnrollError::Connect { address: "c.example.org:443".to_owned(), source: LinkError::TimedOut };
        let error = CliError::new(error);
        assert_eq!(error.exit, Exit::Unreachable);
        assert!(error.text().contains("firewall"), "{}", error.text());
    }

    #[test]
    fn somebody_else_at_the_address_is_no_network_problem() {
        let alert = link::Alert::UnknownIssuer;
        let source = LinkError::RefusedPeer { alert, detail: "unknown issuer".into() };
        let error = CliError::new(EnrollError::Connect { address: "c.example.org:443".to_owned(), source });
        assert_eq!(error.exit, Exit::Refused);
        assert!(error.text().contains("fingerprint"), "{}", error.text());
    }
}
