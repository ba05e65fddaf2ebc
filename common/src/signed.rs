//! Documents that a site signs: the exact bytes, and an Ed25519 signature over them.
//!
//! A document names its own form and version in its `format` field, so that a signature given for one kind of document is
//! worthless for another. The bytes are kept as they were sent: what was verified is what is stored and shown.

use std::marker::PhantomData;

use ed25519_dalek::Signer;
pub use ed25519_dalek::{SigningKey, VerifyingKey};

use crate::config::Diagnostics;
use crate::ids::Digest;

/// A kind of document that travels signed.
pub trait SignedDocument: Sized {
    /// Longest form in bytes. What is in such a document bounds its length, but not the spaces between.
    const MAX_BYTES: usize;

    /// The bytes to sign.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads and checks foreign bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    fn from_bytes(bytes: &[u8]) -> Result<Self, Diagnostics>;
}

/// Bytes that claim to be a `T` signed by somebody; [`Signed::verify`] is the only way to the `T`.
#[derive(Debug)]
pub struct Signed<T> {
    bytes: Vec<u8>,
    signature: [u8; 64],
    document: PhantomData<fn() -> T>,
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self::from_parts(self.bytes.clone(), self.signature)
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.signature == other.signature
    }
}

impl<T> Eq for Signed<T> {}

/// Why a signed document is refused.
#[derive(Debug, thiserror::Error)]
pub enum SignedError {
    /// No such document is so long.
    #[error("the document has {got} bytes, expected at most {limit}")]
    TooLong {
        /// The longest of its kind.
        limit: usize,
        /// These bytes.
        got: usize,
    },
    /// The bytes were not signed by this key.
    #[error("the signature does not match the key registered for the site")]
    Signature,
    /// The bytes are no such document.
    #[error("malformed document")]
    Document(#[source] Diagnostics),
}

impl SignedError {
    /// Stable short name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "document-too-long",
            Self::Signature => "bad-signature",
            Self::Document(_) => "malformed-document",
        }
    }
}

impl<T> Signed<T> {
    /// Joins bytes and signature as received.
    pub fn from_parts(bytes: Vec<u8>, signature: [u8; 64]) -> Self {
        Self { bytes, signature, document: PhantomData }
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature over them.
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// Names the document.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }
}

impl<T: SignedDocument> Signed<T> {
    /// Signs `document`.
    pub fn sign(document: &T, key: &SigningKey) -> Self {
        let bytes = document.to_bytes();
        let signature = key.sign(&bytes).to_bytes();
        Self::from_parts(bytes, signature)
    }

    /// The document, if `key` signed these bytes and they are one.
    ///
    /// # Errors
    /// [`SignedError`]; the signature is checked before a byte is parsed.
    pub fn verify(&self, key: &VerifyingKey) -> Result<T, SignedError> {
        if self.bytes.len() > T::MAX_BYTES {
            return Err(SignedError::TooLong { limit: T::MAX_BYTES, got: self.bytes.len() });
        }
        let signature = ed25519_dalek::Signature::from_bytes(&self.signature);
        key.verify_strict(&self.bytes, &signature).map_err(|_| SignedError::Signature)?;
        T::from_bytes(&self.bytes).map_err(SignedError::Document)
    }
}
