//! The binary form of control messages: bincode's standard configuration, bounded. The only file that calls bincode's
//! functions, so that the format can be replaced in one place. Never used for tensors.

use bincode::config;

/// How much a message may weigh, encoded; decoding never allocates more than that at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SizeClass {
    /// Enrolment, where the peer is nobody yet: 16 KiB.
    Stranger,
    /// Control messages: 64 KiB.
    Control,
    /// Messages that may hold a document or a manifest: 4 MiB.
    Document,
}

const STRANGER_BYTES: usize = 16 << 10;
const CONTROL_BYTES: usize = 64 << 10;
const DOCUMENT_BYTES: usize = 4 << 20;

impl SizeClass {
    /// Largest body of a frame in bytes.
    pub const fn limit(self) -> usize {
        match self {
            Self::Stranger => STRANGER_BYTES,
            Self::Control => CONTROL_BYTES,
            Self::Document => DOCUMENT_BYTES,
        }
    }
}

/// A type that travels as the body of one frame.
pub trait Message: bincode::Encode + bincode::Decode<()> {
    /// Its limit.
    const SIZE: SizeClass;
    /// What to call it in an error.
    const NAME: &'static str;
}

/// Why bytes are not a message, or a message has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The body is beyond the type's limit.
    #[error("{name}: {got} bytes, expected at most {limit}")]
    TooLarge {
        /// The message type.
        name: &'static str,
        /// Largest body.
        limit: usize,
        /// Size of this body.
        got: usize,
    },
    /// The bytes are not a message of this type.
    #[error("{name}: not a well-formed message: {why}")]
    Malformed {
        /// The message type.
        name: &'static str,
        /// What the format says: text, because its error type must not leave this file.
        why: String,
    },
    /// Bytes are left after the message.
    #[error("{name}: {left} bytes after its end")]
    Trailing {
        /// The message type.
        name: &'static str,
        /// How many.
        left: usize,
    },
    /// The value cannot be encoded.
    #[error("{name}: cannot be encoded: {why}")]
    Encode {
        /// The message type.
        name: &'static str,
        /// What the format says.
        why: String,
    },
}

/// The body of the frame that carries `message`.
///
/// # Errors
/// [`CodecError::TooLarge`] when the receiver would refuse it for its size.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let body = bincode::encode_to_vec(message, config::standard())
        .map_err(|error| CodecError::Encode { name: M::NAME, why: error.to_string() })?;
    check_size::<M>(body.len())?;
    Ok(body)
}

/// The message whose frame has the body `body`, all of it.
///
/// # Errors
/// [`CodecError`] when the body is too large, malformed, or longer than the message.
pub fn decode<M: Message>(body: &[u8]) -> Result<M, CodecError> {
    check_size::<M>(body.len())?;
    let (message, read) = match M::SIZE {
        SizeClass::Stranger => {
            bincode::decode_from_slice(body, config::standard().with_limit::<STRANGER_BYTES>())
        }
        SizeClass::Control => {
            bincode::decode_from_slice(body, config::standard().with_limit::<CONTROL_BYTES>())
        }
        SizeClass::Document => {
            bincode::decode_from_slice(body, config::standard().with_limit::<DOCUMENT_BYTES>())
        }
    }
    .map_err(|error| CodecError::Malformed { name: M::NAME, why: error.to_string() })?;
    match body.len().saturating_sub(read) {
        0 => Ok(message),
        left => Err(CodecError::Trailing { name: M::NAME, left }),
    }
}

fn check_size<M: Message>(got: usize) -> Result<(), CodecError> {
    let limit = M::SIZE.limit();
    if got > limit {
        return Err(CodecError::TooLarge { name: M::NAME, limit, got });
    }
    Ok(())
}
