//! A consortium's certificates: root, intermediate, coordinator, sites; and what should be refused.

use std::time::Duration;

use common::ids::Role;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::identity_uri;
use crate::tls::Credentials;

/// Root and intermediate of one consortium.
pub(super) struct Pki {
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a site's certificate says.
pub(super) struct SiteCertificate {
    pub(super) uris: Vec<String>,
    pub(super) expired: bool,
}

impl SiteCertificate {
    pub(super) fn of(site: &str, role: Role) -> Self {
        Self { uris: vec![identity_uri("thorax", &site.parse().unwrap(), role)], expired: false }
    }

    fn params(&self) -> CertificateParams {
        let mut params = params("site");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = |uri: &String| SanType::URI(uri.as_str().try_into().unwrap());
        params.subject_alt_names = self.uris.iter().map(uri).collect();
        if self.expired {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        params
    }
}

impl Pki {
    pub(super) fn new() -> Self {
        Self::named("root")
    }

    /// The root under this name: roots of two consortia may bear the same.
    pub(super) fn named(name: &str) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority(name);
        let root = root_params.self_signed(&root_key).unwrap().der().clone();
        let key = KeyPair::generate().unwrap();
        let params = authority("intermediate");
        let intermediate = params.signed_by(&key, &Issuer::new(root_params, root_key)).unwrap().der().clone();
        Self { root, intermediate, issuer: Issuer::new(params, key) }
    }

    pub(super) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// The chain of a coordinator ends with the root, for enrolling sites.
    pub(super) fn coordinator(&self) -> Credentials {
        self.coordinator_until(4000)
    }

    pub(super) fn coordinator_until(&self, year: i32) -> Credentials {
        let mut params = params("coordinator");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        params.not_after = date_time_ymd(year, 1, 1);
        let mut credentials = self.issue(&params);
        credentials.chain.push(self.root.clone());
        credentials
    }

    pub(super) fn site(&self, name: &str) -> Credentials {
        self.site_saying(&SiteCertificate::of(name, Role::Trainer))
    }

    pub(super) fn site_saying(&self, certificate: &SiteCertificate) -> Credentials {
        self.issue(&certificate.params())
    }

    /// A certificate that a site issued to itself under another name, with the site's own certificate as issuer.
    pub(super) fn issued_by_a_site(&self, name: &str) -> Credentials {
        let (params, key) =
            (SiteCertificate::of("north", Role::Trainer).params(), KeyPair::generate().unwrap());
        let site = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let own_key = KeyPair::generate().unwrap();
        let forged = SiteCertificate::of(name, Role::Trainer).params();
        let forged = forged.signed_by(&own_key, &Issuer::new(params, key)).unwrap().der().clone();
        credentials(vec![forged, site, self.intermediate.clone()], &own_key)
    }

    /// A certificate of nobody's.
    pub(super) fn self_signed(name: &str) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let certificate = SiteCertificate::of(name, Role::Trainer).params().self_signed(&key).unwrap();
        credentials(vec![certificate.der().clone()], &key)
    }

    fn issue(&self, params: &CertificateParams) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        credentials(vec![certificate.der().clone(), self.intermediate.clone()], &key)
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2000, 1, 1);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn credentials(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Credentials {
    Credentials { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
}

/// How long a test waits for what must come. Long, because a few cores may be shared by many tests; nothing waits it out.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
