//! Which coordinator a site believes: one whose certificate chains to the consortium's root, and no other authority's.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{RootFingerprint, crypto_provider, root_store};
use crate::error::LinkError;

/// Trusts what chains to the one root, as webpki says; and names the issuer of what does not.
#[derive(Debug)]
pub(super) struct KnownRoot {
    webpki: Arc<WebPkiServerVerifier>,
    root: String,
}

impl KnownRoot {
    pub(super) fn new(root: &CertificateDer<'static>) -> Result<Self, LinkError> {
        let webpki = verifier(root_store(root)?, crypto_provider())?;
        Ok(Self { webpki, root: issuer(root).unwrap_or_default() })
    }
}

impl ServerCertVerifier for KnownRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| {
            let unknown = matches!(error, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
            // A chain that pretends to be of our root is not what a proxy shows.
            let foreign = ForeignIssuer::of(end_entity, intermediates)
                .filter(|foreign| unknown && foreign.0 != self.root);
            foreign.map_or(error, rustls::Error::from)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

fn verifier(
    root: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let built = WebPkiServerVerifier::builder_with_provider(root, provider).build();
    built.map_err(|error| rustls::Error::General(error.to_string()))
}

/// The authority that issued a coordinator's certificate, when it is not ours. It must be named to the site's operator,
/// who learns by it which machine opens the connection; TLS carries it there as an error of its own.
pub(crate) struct ForeignIssuer(String);

impl ForeignIssuer {
    const BEFORE: &str = "foreign issuer <";
    const AFTER: char = '>';

    /// The issuer of the last certificate of a chain.
    fn of(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<Self> {
        issuer(intermediates.last().unwrap_or(end_entity)).map(Self)
    }

    /// The issuer in an error's words: quinn passes on no more of an error than those.
    pub(crate) fn named_in(error: &str) -> Option<&str> {
        Some(error.split_once(Self::BEFORE)?.1.rsplit_once(Self::AFTER)?.0)
    }
}

/// As it stands in the words of an error.
impl fmt::Debug for ForeignIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", Self::BEFORE, self.0, Self::AFTER)
    }
}

impl fmt::Display for ForeignIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for ForeignIssuer {}

impl From<ForeignIssuer> for rustls::Error {
    fn from(foreign: ForeignIssuer) -> Self {
        CertificateError::Other(OtherError(Arc::new(foreign))).into()
    }
}

/// Who signed a certificate, as `CN=…`.
fn issuer(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.issuer().to_string())
}

/// Trusts a chain that contains the certificate with the pinned fingerprint, as if that were the only root known.
#[derive(Debug)]
pub(super) struct PinnedRoot {
    root: RootFingerprint,
    provider: Arc<CryptoProvider>,
}

impl PinnedRoot {
    pub(super) fn new(root: RootFingerprint) -> Self {
        Self { root, provider: crypto_provider() }
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|certificate| RootFingerprint::of(certificate) == self.root);
        let Some(pinned) = pinned else {
            let foreign = ForeignIssuer::of(end_entity, intermediates);
            return Err(foreign.map_or(CertificateError::UnknownIssuer.into(), rustls::Error::from));
        };
        let verifier = verifier(root_store(&pinned.clone().into_owned())?, self.provider.clone())?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
