//! Who this site is: two keys made here and never moved, and the certificate that the coordinator issued.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::ids::{Role, SiteId};
use common::signed::SigningKey;
use link::tls::Credentials;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};

/// What enrolment told the site about itself. Written last: its presence means that enrolment is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The site's name.
    pub site: SiteId,
    /// What it is for.
    pub role: Role,
    /// The consortium's name.
    pub consortium: String,
}

/// An enrolled site's keys and certificates.
pub struct Identity {
    /// Name, role, consortium.
    pub membership: Membership,
    /// Certificate chain and TLS key.
    pub credentials: Credentials,
    /// The consortium's root certificate.
    pub root: CertificateDer<'static>,
    /// Signs manifests and reports.
    pub signing: SigningKey,
}

/// Why a site has no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Enrolment never ended.
    #[error("this site is not enrolled: {folder} has no membership")]
    NotEnrolled {
        /// The identity folder.
        folder: String,
    },
    /// A file of the identity.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key or certificate file with foreign content.
    #[error("{file} is not what `site-agent enroll` wrote: {problem}")]
    Content {
        /// Name of the file.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// The files of an identity, below one folder.
#[derive(Clone, Debug)]
pub struct IdentityFolder(PathBuf);

const MEMBERSHIP: &str = "membership.json";
const TLS_KEY: &str = "tls.key";
const SIGNING_KEY: &str = "signing.key";
const CHAIN: &str = "certificate.pem";
const ROOT: &str = "root.pem";

/// The two keys of a site.
pub struct SiteKeys {
    /// P-256, for TLS.
    pub tls: KeyPair,
    /// Ed25519, for documents.
    pub signing: SigningKey,
}

impl IdentityFolder {
    /// The identity kept in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Who the site is, or `None` before enrolment is complete.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn membership(&self) -> Result<Option<Membership>, IdentityError> {
        Ok(files::read_json(&self.0.join(MEMBERSHIP))?)
    }

    /// The keys; made at the first call, kept for all later ones (an enrolment that failed half-way is tried again with
    /// the same keys).
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn keys(&self) -> Result<SiteKeys, IdentityError> {
        files::make_private_folder(&self.0)?;
        Ok(SiteKeys { tls: self.tls_key()?, signing: self.signing_key()? })
    }

    fn tls_key(&self) -> Result<KeyPair, IdentityError> {
        let path = self.0.join(TLS_KEY);
        match files::read_text(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|e| content(TLS_KEY, e)),
            Err(error) if error.is_not_found() => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| content(TLS_KEY, e))?;
                files::write_new(&path, key.serialize_pem().as_bytes())?;
                Ok(key)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn signing_key(&self) -> Result<SigningKey, IdentityError> {
        match self.read_signing_key() {
            Err(IdentityError::File(error)) if error.is_not_found() => {
                let seed = random_seed().map_err(|problem| content(SIGNING_KEY, problem))?;
                files::write_new(
                    &self.0.join(SIGNING_KEY),
                    data_encoding::HEXLOWER.encode(&seed).as_bytes(),
                )?;
                Ok(SigningKey::from_bytes(&seed))
            }
            read => read,
        }
    }

    /// The key that the coordinator knows: one that is lost is not made anew here, it would sign what nobody takes.
    fn read_signing_key(&self) -> Result<SigningKey, IdentityError> {
        let text = files::read_text(&self.0.join(SIGNING_KEY))?;
        let seed = data_encoding::HEXLOWER.decode(text.trim().as_bytes()).ok();
        let seed = seed.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let seed = seed.ok_or_else(|| content(SIGNING_KEY, "expected 64 hexadecimal digits"))?;
        Ok(SigningKey::from_bytes(&seed))
    }

    /// Keeps what the coordinator issued; the membership last.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn complete(
        &self,
        membership: &Membership,
        chain: &[CertificateDer<'_>],
        root: &CertificateDer<'_>,
    ) -> Result<(), IdentityError> {
        files::write(&self.0.join(CHAIN), pem(chain).as_bytes())?;
        files::write(&self.0.join(ROOT), pem(std::slice::from_ref(root)).as_bytes())?;
        Ok(files::write_json(&self.0.join(MEMBERSHIP), membership)?)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`IdentityError::NotEnrolled`] before enrolment; else what is wrong with which file.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        let membership = self.membership()?;
        let membership =
            membership.ok_or_else(|| IdentityError::NotEnrolled { folder: self.0.display().to_string() })?;
        let key = PrivateKeyDer::from_pem_slice(&files::read(&self.0.join(TLS_KEY))?);
        let key = key.map_err(|error| content(TLS_KEY, error))?;
        let credentials = Credentials { chain: self.certificates(CHAIN)?, key };
        let root = self.certificates(ROOT)?.into_iter().next();
        let root = root.ok_or_else(|| content(ROOT, "it holds no certificate"))?;
        Ok(Identity { membership, credentials, root, signing: self.read_signing_key()? })
    }

    fn certificates(&self, file: &'static str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let bytes = files::read(&self.0.join(file))?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        read.map_err(|error| content(file, error))
    }

    /// What of it others than its owner may read or change. As enrolment makes them, folder and keys are for the agent's user
    /// alone; a copy or a careless `chmod` may have changed that.
    pub fn open_to_others(&self) -> Vec<PathBuf> {
        let paths = [self.0.clone(), self.0.join(TLS_KEY), self.0.join(SIGNING_KEY)];
        let is_open = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.mode() & 0o077 != 0);
        paths.into_iter().filter(is_open).collect()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl SiteKeys {
    /// A certificate request for the TLS key. It asks for nothing: the coordinator writes site and role from the invite.
    ///
    /// # Errors
    /// What the crypto provider says.
    pub fn certificate_request(&self) -> Result<Vec<u8>, rcgen::Error> {
        let request = CertificateParams::new(Vec::new())?.serialize_request(&self.tls)?;
        Ok(request.der().to_vec())
    }
}

fn content(file: &'static str, problem: impl ToString) -> IdentityError {
    IdentityError::Content { file, problem: problem.to_string() }
}

fn random_seed() -> Result<[u8; 32], &'static str> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| "no randomness from the operating system")?;
    Ok(seed)
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in data_encoding::BASE64.encode(certificate).as_bytes().chunks(64) {
            // Writing to a string cannot fail, and base 64 is ASCII.
            let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::new(folder.path().join("identity"));
        let (first, second) = (identity.keys().unwrap(), identity.keys().unwrap());
        assert_eq!(first.tls.public_key_raw(), second.tls.public_key_raw());
        assert_eq!(first.signing.verifying_key(), second.signing.verifying_key());
        for file in [TLS_KEY, SIGNING_KEY] {
            let mode = std::fs::metadata(identity.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_site_that_is_not_enrolled_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = IdentityFolder::new(folder.path()).load().err().unwrap();
        assert!(matches!(error, IdentityError::NotEnrolled { .. }));
    }

    #[test]
    fn what_the_coordinator_issued_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::new(folder.path());
        let keys = identity.keys().unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&keys.tls).unwrap();
        let membership =
            Membership { site: "north".parse().unwrap(), role: Role::Trainer, consortium: "demo".to_owned() };
        let chain = [certificate.der().clone(), certificate.der().clone()];
        identity.complete(&membership, &chain, certificate.der()).unwrap();
        let loaded = identity.load().unwrap();
        assert_eq!(loaded.membership, membership);
        assert_eq!(loaded.credentials.chain, chain);
        assert_eq!(loaded.root, *certificate.der());

        std::fs::remove_file(identity.path().join(SIGNING_KEY)).unwrap();
        let lost = identity.load().err().unwrap();
        assert!(matches!(lost, IdentityError::File(error) if error.is_not_found()));
        assert!(!identity.path().join(SIGNING_KEY).exists(), "another would sign what nobody takes");
    }
}
