//! Standard output, where a command's answer goes. One that cannot be written fails the command when it is done, and is told
//! once; a closed pipe is the reader's wish (`| head`), not our failure.

use std::io::{self, ErrorKind, Write as _};
use std::sync::OnceLock;

/// Why the first was lost of what a command said.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// The answer of a command did not get out.
#[derive(Debug, thiserror::Error)]
#[error("the output could not be written")]
pub(crate) struct Lost(#[source] &'static io::Error);

impl Lost {
    /// What to do.
    pub(crate) const HINT: &str =
        "what was asked for is done, and only its words are lost: make room where standard output goes";
}

/// Prints a line.
pub(crate) fn line(text: &str) {
    note(writeln!(io::stdout().lock(), "{text}"));
}

/// Prints these bytes and nothing else.
pub(super) fn exactly(bytes: &[u8]) {
    note(io::stdout().lock().write_all(bytes));
}

/// Whether everything got out that was printed.
///
/// # Errors
/// [`Lost`].
pub(super) fn all_written() -> Result<(), Lost> {
    note(io::stdout().lock().flush());
    LOST.get().map_or(Ok(()), |error| Err(Lost(error)))
}

fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // The first says why; those after it follow from it.
        let _ = LOST.set(error);
    }
}
