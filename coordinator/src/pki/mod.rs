//! The consortium's certificates: an offline-able root, an issuing intermediate, and what they sign.
//!
//! The root key signs the intermediate once, at `init`, and may then leave the machine: nothing after `init` reads it.
//! The server's own key lives in memory alone: each start makes a new one and has the intermediate sign it, so that no
//! server certificate can be stale. Sites pin the root. What a certificate *means* is decided in [`crate::admission`];
//! how TLS checks it is the `link` crate's business.

mod invite;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::ids::{Digest, Role, SiteId};
use common::time::Timestamp;
use link::quic::ResetKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKey, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject,
};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use invite::{Invite, InviteError, Token, TokenHash};

use crate::files::{self, Access};

/// How long the root is valid.
const ROOT_LIFE: Duration = days(20 * 365);
/// How long the intermediate is valid.
const ISSUING_LIFE: Duration = days(8 * 365);
/// Clocks of hospitals differ: certificates begin this much before they are made.
const BACKDATE: Duration = days(1);

/// What the key of stateless resets is derived for, of the intermediate's key.
const RESET_KEY: &str = "consilium 2026 coordinator QUIC stateless reset";

/// What the digest is for that a site's serial is cut from.
const SERIAL: &[u8] = b"consilium 2026 serial of a site's certificate";

const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

/// Why the consortium's certificates cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// `init` was run before.
    #[error("{} exists: this consortium was initialised before", .path.display())]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// `init` was not run, or in another folder.
    #[error("{} does not exist", .path.display())]
    Missing {
        /// The file not found.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A file that is there is not what it should be.
    #[error("{}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A site's certificate request is refused.
    #[error("certificate request: {0}")]
    Request(String),
    /// The library could not make a certificate.
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
}

/// A certificate's serial number: 16 bytes that nobody can guess, the first below 0x80 and not zero, so that DER keeps them
/// as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A new one.
    pub fn random() -> Self {
        Self::kept_by_der(random_bytes())
    }

    /// That of the certificate which a token gets for these two public keys, however often it is asked for: a site whose
    /// answer was lost is known by it, and gets the same certificate again.
    pub fn of(token: &TokenHash, tls_key: &RequestedKey, signing_key: &[u8; 32]) -> Self {
        let digest = Digest::of(&[SERIAL, token.as_bytes(), signing_key, tls_key.0.der_bytes()].concat());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
        Self::kept_by_der(bytes)
    }

    fn kept_by_der(mut bytes: [u8; 16]) -> Self {
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Self(bytes)
    }

    /// Reads the serial of a certificate that this coordinator issued; anything else has no such serial.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes, big-endian, as in the certificate.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// A certificate with its chain, leaf first, root last.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf, intermediate, root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Serial of the leaf.
    pub serial: Serial,
    /// End of the leaf's validity.
    pub not_after: Timestamp,
}

/// The server's certificate and the key that only this process has.
#[derive(Debug)]
pub struct ServerIdentity {
    /// Leaf, intermediate, root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

/// The consortium's issuing authority: everything but the root key.
pub struct Authority {
    consortium: String,
    root: CertificateDer<'static>,
    issuing: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// Of the issuing certificate.
    validity: Validity,
    reset_key: ResetKey,
}

impl Authority {
    /// Makes root and intermediate in `dir`, which must not hold any yet. The root key is written last but one and
    /// never replaced; a torn `init` can be run again.
    ///
    /// # Errors
    /// [`PkiError::Exists`] when `dir` holds a consortium; [`PkiError::File`] and [`PkiError::Make`].
    pub fn create(dir: &Path, consortium: &str, now: Timestamp) -> Result<Self, PkiError> {
        let paths = Paths::in_dir(dir);
        if Self::is_in(dir)? {
            return Err(PkiError::Exists { path: paths.issuing });
        }
        files::create_private_dir(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;

        let root_key = KeyPair::generate()?;
        let root_params = ca_params(&format!("{consortium} root"), now, ROOT_LIFE, 1);
        let root = root_params.self_signed(&root_key)?;
        let issuing_key = KeyPair::generate()?;
        let issuing_params = ca_params(&format!("{consortium} issuing"), now, ISSUING_LIFE, 0);
        let issuing =
            issuing_params.signed_by(&issuing_key, &Issuer::from_params(&root_params, &root_key))?;

        let write = |path: &Path, text: String, access| {
            files::write_atomic(path, text.as_bytes(), access)
                .map_err(|source| PkiError::File { path: path.to_owned(), source })
        };
        write(&paths.root_key, root_key.serialize_pem(), Access::Private)?;
        write(&paths.root, root.pem(), Access::Public)?;
        write(&paths.issuing_key, issuing_key.serialize_pem(), Access::Private)?;
        // Last: its presence says that all the others are whole.
        write(&paths.issuing, issuing.pem(), Access::Public)?;
        Self::open(dir, consortium)
    }

    /// Whether `dir` holds what [`Authority::create`] made, to its end.
    ///
    /// # Errors
    /// [`PkiError::File`] when it cannot be looked at.
    pub fn is_in(dir: &Path) -> Result<bool, PkiError> {
        let Paths { issuing, .. } = Paths::in_dir(dir);
        issuing.try_exists().map_err(|source| PkiError::File { path: issuing, source })
    }

    /// Reads what [`Authority::create`] made. The root key may be absent: it belongs in a safe.
    ///
    /// # Errors
    /// [`PkiError::Missing`] before `init`; [`PkiError::Malformed`] names the file.
    pub fn open(dir: &Path, consortium: &str) -> Result<Self, PkiError> {
        let paths = Paths::in_dir(dir);
        let root = read_certificate(&paths.root)?;
        let issuing = read_certificate(&paths.issuing)?;
        let key = KeyPair::from_pem(&read_text(&paths.issuing_key)?)
            .map_err(|e| PkiError::Malformed { path: paths.issuing_key, reason: e.to_string() })?;
        let reset_key = ResetKey::new(blake3::derive_key(RESET_KEY, &key.serialize_der()));
        let malformed = |reason: String| PkiError::Malformed { path: paths.issuing, reason };
        let Some(validity) = Validity::of(&issuing) else {
            return Err(malformed("no certificate with dates from 1970 on".to_owned()));
        };
        let issuer = Issuer::from_ca_cert_der(&issuing, key).map_err(|e| malformed(e.to_string()))?;
        Ok(Self { consortium: consortium.to_owned(), root, issuing, issuer, validity, reset_key })
    }

    /// The root certificate, which sites pin.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The intermediate, which signs sites and server.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// SHA-256 of the root certificate, as `openssl x509 -fingerprint -sha256` shows it.
    pub fn root_fingerprint(&self) -> [u8; 32] {
        sha256(&self.root)
    }

    /// Lets sites know that the server was started again. Follows from the intermediate's key: the same at each start,
    /// and one secret less to keep.
    pub fn reset_key(&self) -> &ResetKey {
        &self.reset_key
    }

    /// The name written into each certificate.
    pub fn consortium(&self) -> &str {
        &self.consortium
    }

    /// Certifies a site. Name, role and purposes come from the invite, `serial` from the caller, who has recorded it before a
    /// certificate with it can exist.
    ///
    /// # Errors
    /// [`PkiError`] when no certificate can be made of that.
    pub fn certify_site(
        &self,
        key: &RequestedKey,
        site: &SiteId,
        role: Role,
        serial: Serial,
        validity: Validity,
    ) -> Result<Issued, PkiError> {
        let uri = format!("consilium://{}/site/{site}/{role}", self.consortium);
        let uri = uri.try_into().map_err(|e: rcgen::Error| PkiError::Request(e.to_string()))?;
        let mut params = leaf_params(site.as_str(), serial, validity);
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params, &key.0, serial, validity)
    }

    /// Makes a key and a certificate for this start of the server, valid for `names` (host names or addresses). It counts for
    /// as long as the certificate that signs it: the key ends with this process in any case, and what the clock says at a
    /// start, which may be wrong, decides nothing.
    ///
    /// # Errors
    /// [`PkiError::Make`] when a name is neither.
    pub fn certify_server(&self, names: &[String]) -> Result<ServerIdentity, PkiError> {
        let key = KeyPair::generate()?;
        let serial = Serial::random();
        let validity = self.validity;
        let mut params = leaf_params("coordinator", serial, validity);
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = self.issue(&params, &key, serial, validity)?;
        Ok(ServerIdentity {
            chain: issued.chain,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    fn issue(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
        serial: Serial,
        validity: Validity,
    ) -> Result<Issued, PkiError> {
        let leaf = params.signed_by(key, &self.issuer)?;
        let chain = vec![leaf.into(), self.issuing.clone(), self.root.clone()];
        Ok(Issued { chain, serial, not_after: validity.not_after })
    }
}

/// The public key that a site wants certified: of its certificate request nothing else counts.
#[derive(Debug)]
pub struct RequestedKey(PublicKey);

impl RequestedKey {
    /// Reads a certificate request.
    ///
    /// # Errors
    /// [`PkiError::Request`] when it is malformed, not signed by its key, or its key is not P-256.
    pub fn of(request_der: &[u8]) -> Result<Self, PkiError> {
        let request = CertificateSigningRequestDer::from(request_der);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|e| PkiError::Request(e.to_string()))?;
        if request.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(PkiError::Request("the key must be P-256".to_owned()));
        }
        Ok(Self(request.public_key))
    }
}

/// From when to when a certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Validity {
    /// `life` from `now` on, begun a day early because hospitals' clocks differ.
    pub fn starting(now: Timestamp, life: Duration) -> Self {
        let back = u64::try_from(BACKDATE.as_millis()).unwrap_or(u64::MAX);
        Self { not_before: Timestamp(now.0.saturating_sub(back)), not_after: now.after(life) }
    }

    /// Of a certificate; nothing where that is none, or not of this era.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let time = |seconds: i64| Some(Timestamp(u64::try_from(seconds).ok()?.saturating_mul(1000)));
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Some(Self { not_before: time(not_before)?, not_after: time(not_after)? })
    }

    /// The end.
    pub fn not_after(self) -> Timestamp {
        self.not_after
    }

    fn apply(self, params: &mut CertificateParams) {
        // The calendar type of `rcgen` is made by addition, which spares us that crate.
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.not_before.0 / 1000);
        params.not_after = epoch + Duration::from_secs(self.not_after.0 / 1000);
    }
}

/// Names of the files in the certificate folder.
struct Paths {
    root: PathBuf,
    root_key: PathBuf,
    issuing: PathBuf,
    issuing_key: PathBuf,
}

impl Paths {
    fn in_dir(dir: &Path) -> Self {
        Self {
            root: dir.join("root.pem"),
            root_key: dir.join("root.key"),
            issuing: dir.join("issuing.pem"),
            issuing_key: dir.join("issuing.key"),
        }
    }
}

fn ca_params(name: &str, now: Timestamp, life: Duration, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(Serial::random().as_bytes()));
    params.use_authority_key_identifier_extension = true;
    Validity::starting(now, life).apply(&mut params);
    params
}

fn leaf_params(name: &str, serial: Serial, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.use_authority_key_identifier_extension = true;
    validity.apply(&mut params);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn read_text(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PkiError::Missing { path: path.to_owned() },
        _ => PkiError::File { path: path.to_owned(), source },
    })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(read_text(path)?.as_bytes())
        .map_err(|e| PkiError::Malformed { path: path.to_owned(), reason: e.to_string() })
}

/// SHA-256, for what other tools show too; our own digests are BLAKE3.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Invariant: the operating system's generator is seeded before any process of ours can run; without randomness
    // no key can be made and nothing sensible is left to do.
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

#[cfg(test)]
mod tests;
