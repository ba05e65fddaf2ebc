//! Why a connection or a stream over TCP has ended, to be said as often as it is asked.

use std::fmt;
use std::io;

use common::wire::Words;

use crate::close::CloseCode;
use crate::error::LinkError;

/// An end. Travels inside an [`io::Error`] through the ends of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// We closed it.
    Here,
    /// The other side closed it.
    There { code: CloseCode, words: Words },
    /// Nothing was acknowledged for too long.
    TimedOut,
    /// The other side gave the stream up.
    Reset,
    /// The stream ended before the other side had said that it is over.
    CutOff,
}

impl Ending {
    /// The other side has gone, as agreed.
    pub(crate) fn done() -> Self {
        Self::There { code: CloseCode::Done, words: Words::default() }
    }

    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&LinkError::from(self), f)
    }
}

impl std::error::Error for Ending {}

impl From<&Ending> for LinkError {
    fn from(ending: &Ending) -> Self {
        match ending {
            Ending::Here => Self::ClosedHere,
            Ending::There { code, words } => Self::Closed { code: *code, words: words.clone() },
            Ending::TimedOut => Self::TimedOut,
            Ending::Reset => Self::Reset,
            Ending::CutOff => Self::CutOff { what: "message" },
        }
    }
}

/// An error of a TCP or TLS stream in the words of this crate; what TLS itself says stays as it is.
pub(super) fn translate(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Ending::TimedOut.into_io(),
        io::ErrorKind::UnexpectedEof => Ending::CutOff.into_io(),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => Ending::Reset.into_io(),
        _ => error,
    }
}
