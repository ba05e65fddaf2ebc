//! Standard output, where a command's answer goes. One that cannot be written fails the command when it is done, and is told
//! once; a closed pipe is the reader's wish (`| head`), not our failure.

use std::io::{self, ErrorKind, Write as _};
use std::sync::OnceLock;

use super::error_report::CliError;

/// Why the first was lost of what a command said.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// The answer of a command did not get out.
#[derive(Debug, thiserror::Error)]
#[error("the output could not be written")]
struct Lost(#[source] &'static io::Error);

/// Prints a line, as it is.
pub(super) fn line(text: &str) {
    note(writeln!(io::stdout().lock(), "{text}"));
}

/// Prints these bytes and nothing else.
pub(super) fn exactly(bytes: &[u8]) {
    note(io::stdout().lock().write_all(bytes));
}

/// Whether everything got out that was printed.
///
/// # Errors
/// Why not, for the user.
pub(super) fn all_written() -> Result<(), CliError> {
    note(io::stdout().lock().flush());
    let hint =
        "what was asked for is done, and only its words are lost: make room where standard output goes";
    LOST.get().map_or(Ok(()), |error| Err(CliError::new(Lost(error)).hint(hint)))
}

fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first says why; those after it follow from it.
        let _ = LOST.set(error);
    }
}
