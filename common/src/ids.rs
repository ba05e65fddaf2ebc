//! Names of the things that sites and coordinator talk about: newtypes, so that no two can be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps the 32 bytes of a digest computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hexadecimal digits: enough for a person to tell two digests apart.
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..4])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Text that does not name what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, got `{got}`")]
pub struct ParseIdError {
    what: &'static str,
    expected: &'static str,
    got: String,
}

impl ParseIdError {
    fn new(what: &'static str, expected: &'static str, got: &str) -> Self {
        Self { what, expected, got: got.chars().take(80).collect() }
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|b| <[u8; 32]>::try_from(b).ok());
        bytes.map(Self).ok_or_else(|| ParseIdError::new("digest", "64 hexadecimal digits", text))
    }
}

/// Serialises through `Display` and `FromStr`: JSON and TOML show what a person would write.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
        pub struct $name(pub Digest);

        impl $name {
            /// The first eight hexadecimal digits.
            pub fn short(&self) -> String {
                self.0.short()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        serde_as_text!($name);
    };
}

digest_newtype!(
    /// Names a set of tensors by the digest of its manifest: a global model, an embedding table or an update.
    ArtifactHash
);
digest_newtype!(
    /// Names one chunk of tensor bytes by its content.
    ChunkHash
);
digest_newtype!(
    /// Names everything that a study pins; any change of it is a new study that sites approve again.
    StudyDigest
);
digest_newtype!(
    /// Names one taxonomy; all parties of a study share it.
    TaxonomyDigest
);

serde_as_text!(Digest);

/// A version of the global model.
pub type ModelHash = ArtifactHash;

/// A hospital's name within its consortium: 1 to 40 of `a-z`, `0-9` and `-`, starting and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode)]
pub struct SiteId(String);

impl SiteId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SiteId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let ends = text.starts_with(plain) && text.ends_with(plain);
        if ends && text.len() <= 40 && text.chars().all(|c| plain(c) || c == '-') {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseIdError::new("site name", "1 to 40 of a-z, 0-9 and inner `-`", text))
    }
}

/// Foreign bytes pass the same door as foreign text.
impl<Context> bincode::Decode<Context> for SiteId {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let text = String::decode(decoder)?;
        text.parse().map_err(|_| bincode::error::DecodeError::Other("malformed site name"))
    }
}

impl<'de, Context> bincode::BorrowDecode<'de, Context> for SiteId {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        bincode::Decode::decode(decoder)
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteId({})", self.0)
    }
}

serde_as_text!(SiteId);

/// A class of the taxonomy: 1 to 255; the taxonomy says which exist. Class `k` lives in channel `k - 1`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(try_from = "u8", into = "u8")]
pub struct ClassId(std::num::NonZeroU8);

impl ClassId {
    /// The class with this id; id 0 is background and no class.
    pub const fn new(id: u8) -> Option<Self> {
        match std::num::NonZeroU8::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The class of channel `channel` (0-based), if there can be one.
    pub fn from_channel(channel: usize) -> Option<Self> {
        u8::try_from(channel.checked_add(1)?).ok().and_then(Self::new)
    }

    /// The id, 1-based.
    pub const fn get(self) -> u8 {
        self.0.get()
    }

    /// The channel, 0-based.
    pub const fn channel(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u8> for ClassId {
    type Error = ParseIdError;

    fn try_from(id: u8) -> Result<Self, Self::Error> {
        Self::new(id).ok_or_else(|| ParseIdError::new("class id", "1 to 255", "0"))
    }
}

impl From<ClassId> for u8 {
    fn from(class: ClassId) -> Self {
        class.get()
    }
}

/// A round of a study, counted from 1. Round 0 is the initial model.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(transparent)]
pub struct RoundId(pub u32);

impl RoundId {
    /// The round after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Idempotency key of an update: the same attempt sent twice counts once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct AttemptId([u8; 16]);

impl AttemptId {
    /// Wraps 16 bytes chosen by the site.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|b| <[u8; 16]>::try_from(b).ok());
        bytes.map(Self).ok_or_else(|| ParseIdError::new("attempt", "32 hexadecimal digits", text))
    }
}

serde_as_text!(AttemptId);

/// What a site is for: written into its certificate, one role each.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Trains on its own partially labelled scans and sends updates.
    Trainer,
    /// Scores published models on scans that nobody trains on; never sends updates.
    Evaluator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Trainer => "trainer",
            Self::Evaluator => "evaluator",
        })
    }
}

impl FromStr for Role {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "trainer" => Ok(Self::Trainer),
            "evaluator" => Ok(Self::Evaluator),
            _ => Err(ParseIdError::new("role", "`trainer` or `evaluator`", text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_names_that_could_be_read_two_ways_are_refused() {
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "ä", &"x".repeat(41)] {
            assert!(bad.parse::<SiteId>().is_err(), "{bad:?}");
        }
        for good in ["a", "site-a", "7", "st-mary-2"] {
            assert_eq!(good.parse::<SiteId>().map(|s| s.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn a_digest_reads_back_what_it_shows() {
        let digest = Digest::of(b"scan");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("12".parse::<Digest>().is_err());
    }

    #[test]
    fn class_k_lives_in_channel_k_minus_1() {
        assert_eq!(ClassId::from_channel(0).map(ClassId::get), Some(1));
        assert_eq!(ClassId::new(32).map(ClassId::channel), Some(31));
        assert_eq!(ClassId::new(0), None);
    }
}
