//! Who a certificate says the peer is: `consilium://<consortium>/site/<id>/<role>` as its one URI.

use common::ids::{ParseIdError, Role, SiteId};
use common::time::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const SCHEME: &str = "consilium://";

/// The name of a site in its certificate.
pub fn identity_uri(consortium: &str, site: &SiteId, role: Role) -> String {
    format!("{SCHEME}{consortium}/site/{site}/{}", role_name(role))
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Trainer => "trainer",
        Role::Evaluator => "evaluator",
    }
}

/// Why a certificate names no site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no certificate.
    #[error("it cannot be read")]
    Unreadable,
    /// Not exactly one URI among the subject's alternative names.
    #[error("it has {got} names in the form of a URI, expected 1")]
    UriCount {
        /// How many.
        got: usize,
    },
    /// The URI has another form.
    #[error("its name must have the form consilium://<consortium>/site/<id>/<trainer|evaluator>")]
    Form,
    /// The site's part is no site name.
    #[error("{0}")]
    Site(#[from] ParseIdError),
}

/// The peer as its certificate names it. That the certificate was issued by the consortium and is within its dates was
/// checked by TLS at the handshake; dates and status are for the coordinator to check at each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The site.
    pub site: SiteId,
    /// What it is for.
    pub role: Role,
    /// The consortium.
    pub consortium: String,
    /// Serial number of the certificate, hexadecimal, lower case, without separators.
    pub serial: String,
    /// First moment at which the certificate is valid.
    pub not_before: Timestamp,
    /// Last moment at which the certificate is valid.
    pub not_after: Timestamp,
}

impl PeerIdentity {
    /// Reads it from a certificate.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing is guessed.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        if !rest.is_empty() {
            return Err(IdentityError::Unreadable);
        }
        let (consortium, site, role) = parse_uri(only_uri(&certificate)?)?;
        let validity = certificate.validity();
        Ok(Self {
            site,
            role,
            consortium,
            serial: certificate
                .tbs_certificate
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            not_before: milliseconds(validity.not_before.timestamp()),
            not_after: milliseconds(validity.not_after.timestamp()),
        })
    }

    /// Whether the certificate is within its dates.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(IdentityError::UriCount { got: uris.len() }),
    }
}

fn parse_uri(uri: &str) -> Result<(String, SiteId, Role), IdentityError> {
    let path = uri.strip_prefix(SCHEME).ok_or(IdentityError::Form)?;
    let parts: Vec<&str> = path.split('/').collect();
    let [consortium, "site", site, role] = parts[..] else { return Err(IdentityError::Form) };
    // A consortium's name has the form of a site's: it stands in a URI and in file names.
    let consortium = consortium.parse::<SiteId>().map_err(|_| IdentityError::Form)?.to_string();
    let role = match role {
        "trainer" => Role::Trainer,
        "evaluator" => Role::Evaluator,
        _ => return Err(IdentityError::Form),
    };
    Ok((consortium, site.parse()?, role))
}

/// Times before 1970 become 0: such a certificate is expired or valid all the same.
fn milliseconds(seconds: i64) -> Timestamp {
    Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_uri_is_read_back() {
        let site: SiteId = "north-clinic".parse().unwrap();
        let uri = identity_uri("thorax", &site, Role::Evaluator);
        assert_eq!(uri, "consilium://thorax/site/north-clinic/evaluator");
        assert_eq!(parse_uri(&uri), Ok(("thorax".to_owned(), site, Role::Evaluator)));
    }

    #[test]
    fn other_forms_of_uri_name_nobody() {
        for uri in [
            "",
            "https://thorax/site/north/trainer",
            "consilium://thorax/site/north",
            "consilium://thorax/site/north/trainer/",
            "consilium://thorax/site/north/trainer?x",
            "consilium://thorax/site/north/Trainer",
            "consilium:///site/north/trainer",
            "consilium://thorax/coordinator/north/trainer",
            "consilium://tho rax/site/north/trainer",
        ] {
            assert_eq!(parse_uri(uri), Err(IdentityError::Form), "{uri}");
        }
        assert!(matches!(parse_uri("consilium://thorax/site/N%20/trainer"), Err(IdentityError::Site(_))));
    }
}
