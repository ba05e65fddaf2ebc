//! Short text from the other side that a person will read.

use std::fmt;

use bincode::de::{BorrowDecode, BorrowDecoder, Decode, Decoder};
use bincode::error::DecodeError;

/// At most [`Words::MAX_BYTES`] of UTF-8 without control characters: a peer's words go to terminals and logs, where an
/// escape sequence or a line break would be an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode)]
pub struct Words(String);

impl Words {
    /// Longest text in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Makes `text` fit: control characters become spaces, and what is too long is cut.
    pub fn new(text: impl AsRef<str>) -> Self {
        let mut kept: String = text.as_ref().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        kept.truncate(kept.floor_char_boundary(Self::MAX_BYTES));
        Self(kept)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<T: AsRef<str>> From<T> for Words {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

impl<Context> Decode<Context> for Words {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let text = String::decode(decoder)?;
        if text.len() > Self::MAX_BYTES || text.contains(char::is_control) {
            return Err(DecodeError::Other("text too long or with control characters"));
        }
        Ok(Self(text))
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for Words {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder)
    }
}
