//! TLS configurations: TLS 1.3 only, one provider named explicitly, no session tickets, no early data.
//!
//! One server port carries two protocols, told apart by ALPN, so within TLS a client certificate is optional; one that
//! is shown must chain to the consortium's root. [`crate::quic::Listener`] and [`crate::tcp::Listener`] refuse a
//! `consilium/1` connection without certificate before they read a byte of it. Certificate dates, status and role are
//! looked at again on each request, by the coordinator. Which coordinator a site believes is in `trust`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use common::wire;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::LinkError;

mod trust;

pub(crate) use trust::ForeignIssuer;
use trust::{KnownRoot, PinnedRoot};

/// A certificate chain and its key. The chain starts with the holder's own certificate and ends with the last
/// intermediate; a coordinator appends the root, which enrolling sites know only by its fingerprint.
pub struct Credentials {
    /// The chain, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} certificates)", self.chain.len())
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// SHA-256 of a root certificate's DER: what `openssl x509 -fingerprint -sha256` prints. Its text form is 64
/// hexadecimal digits; colons between bytes are allowed when read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootFingerprint([u8; 32]);

impl RootFingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for RootFingerprint {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootFingerprint({self})")
    }
}

/// Text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a root fingerprint is 64 hexadecimal digits")]
pub struct ParseFingerprintError;

impl FromStr for RootFingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A digest's text form is the same 64 digits.
        let digest: common::ids::Digest = text.replace(':', "").parse().map_err(|_| ParseFingerprintError)?;
        Ok(Self(*digest.as_bytes()))
    }
}

/// The one crypto provider, AES-128-GCM first: the cheapest cipher on machines with AES instructions.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    use provider::cipher_suite;
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    })
}

/// The coordinator's side: both protocols on one port.
///
/// # Errors
/// [`LinkError::Credentials`] when TLS does not take the certificates.
pub fn server_config(
    credentials: Credentials,
    root: &CertificateDer<'static>,
) -> Result<ServerConfig, LinkError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(root_store(root)?, crypto_provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain, credentials.key)?;
    config.alpn_protocols = vec![wire::ALPN.to_vec(), wire::ALPN_ENROLL.to_vec()];
    // A ticket would carry an old verification into a new connection: expiry and revocation must bite at once.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// An enrolled site's side: shows its certificate, takes only a coordinator of the pinned root.
///
/// # Errors
/// [`LinkError::Credentials`] when TLS does not take the certificates.
pub fn site_config(
    credentials: Credentials,
    root: &CertificateDer<'static>,
) -> Result<ClientConfig, LinkError> {
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(KnownRoot::new(root)?))
        .with_client_auth_cert(credentials.chain, credentials.key)?;
    Ok(without_resumption(config, wire::ALPN))
}

/// An enrolling site's side: no certificate yet, and of the consortium's root only the fingerprint.
///
/// # Errors
/// [`LinkError::Credentials`] when the provider cannot do TLS 1.3: a mistake of the build.
pub fn enroll_config(root: RootFingerprint) -> Result<ClientConfig, LinkError> {
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedRoot::new(root)))
        .with_no_client_auth();
    Ok(without_resumption(config, wire::ALPN_ENROLL))
}

fn without_resumption(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

fn root_store(root: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut store = RootCertStore::empty();
    store.add(root.clone())?;
    Ok(Arc::new(store))
}

/// For quinn.
pub(crate) fn quic_server(config: ServerConfig) -> Result<Arc<QuicServerConfig>, LinkError> {
    QuicServerConfig::try_from(config).map(Arc::new).map_err(|error| LinkError::Transport(error.to_string()))
}

/// For quinn.
pub(crate) fn quic_client(config: ClientConfig) -> Result<Arc<QuicClientConfig>, LinkError> {
    QuicClientConfig::try_from(config).map(Arc::new).map_err(|error| LinkError::Transport(error.to_string()))
}
