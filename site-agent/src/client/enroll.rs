//! Enrolment: from an invite to a membership, in one exchange.
//!
//! Keys are made here and stay here. The invite pins the consortium's root, so that nobody between can pose as the
//! coordinator, and the answer is believed only if it is about our key, our site and that root.

use std::time::Instant;

use common::ids::{Role, SiteId};
use common::wire::{EnrollRequest, EnrollToken, Enrolled};
use link::quic::QuicSettings;
use link::tcp::{Proxy, ProxyError};
use link::tls::{self, RootFingerprint};
use link::{Alert, LinkError, PeerIdentity};
use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use super::address::{Address, Remote};
use super::dial::{Dialled, Network};
use super::identity::{IdentityError, IdentityFolder, Membership, SiteKeys};
use super::lane::{LaneChooser, LaneSetting};
use crate::egress::{self, EgressError, Ledger};

/// An invite as the coordinator's operator hands it over.
#[derive(Debug)]
pub struct Invite {
    /// Where the coordinator answers.
    pub coordinator: Address,
    /// The site invited.
    pub site: SiteId,
    /// What it is invited for.
    pub role: Role,
    /// The consortium's name.
    pub consortium: String,
    root: RootFingerprint,
    token: EnrollToken,
    expires: jiff::Timestamp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInvite {
    consortium: String,
    coordinator: String,
    root_sha256: String,
    site: SiteId,
    role: Role,
    expires: String,
    token: String,
}

/// Why a site could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The text is no invite.
    #[error("this is not a whole invite: {0}")]
    Invite(String),
    /// The invite's time is over by this machine's clock.
    #[error("the invite expired on {expired}; this machine's clock says {now}")]
    Expired {
        /// From the invite.
        expired: jiff::Timestamp,
        /// The clock here.
        now: jiff::Timestamp,
    },
    /// The folder already holds a membership.
    #[error("this folder is enrolled already: {role} `{site}` of `{consortium}`")]
    AlreadyEnrolled {
        /// Name.
        site: SiteId,
        /// Role.
        role: Role,
        /// Consortium.
        consortium: String,
    },
    /// The coordinator's name is unknown.
    #[error("cannot find {address}")]
    Resolve {
        /// As in the invite.
        address: String,
        /// What the resolver said.
        #[source]
        source: std::io::Error,
    },
    /// The coordinator cannot be reached, or is not the one that the invite pins.
    #[error("cannot connect to the coordinator at {address}")]
    Connect {
        /// As in the invite; with all that were dialled where its name has several.
        address: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The request was refused, or the answer did not come.
    #[error("the enrolment request")]
    Request(#[from] EgressError),
    /// The coordinator's answer is not about this site and key.
    #[error("the coordinator's answer does not fit the request: {0}")]
    Answer(&'static str),
    /// Keys and certificates on disk.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The crypto provider.
    #[error("cannot make a certificate request")]
    Keys(#[from] rcgen::Error),
}

impl EnrollError {
    /// What the operator can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Invite(_) => {
                Some("pass the file as it was handed over: `site-agent enroll invite.toml --dir site`")
            }
            Self::Expired { .. } => {
                Some("if the clock is right, ask the coordinator's operator for a new invite")
            }
            Self::AlreadyEnrolled { .. } => Some(
                "for a new certificate, stop the agent and move `identity/membership.json` away (for new keys, all of `identity`); for another site, choose another folder with --dir",
            ),
            Self::Resolve { .. } => Some("check the address in the invite and this machine's name service"),
            // Out of its time: the clock comes first.
            Self::Connect {
                source: source @ LinkError::RefusedPeer { alert: Alert::Expired, .. }, ..
            } => source.hint(),
            Self::Connect { source: LinkError::RefusedPeer { .. }, .. } => Some(
                "somebody else answers at this address, or the invite is of another consortium: compare the root fingerprint with the coordinator's operator by phone",
            ),
            Self::Connect { source: LinkError::Inspected { .. }, .. } => Some(
                "ask the network team to exempt the coordinator's host and port from TLS inspection; if there is none, somebody else answers at this address, or the invite is of another consortium: compare the root fingerprint with the coordinator's operator by phone",
            ),
            Self::Connect { source: LinkError::Proxy { error: ProxyError::Login { .. }, .. }, .. } => {
                Some("pass `--proxy-user NAME --proxy-password-file FILE`")
            }
            Self::Connect { source, .. } => source.hint(),
            Self::Request(EgressError::Refused(refusal)) => Some(refusal.code.hint()),
            Self::Request(EgressError::Link(link)) => link.hint(),
            Self::Answer(_) => Some("tell the coordinator's operator: its answer is for somebody else"),
            Self::Request(_) | Self::Identity(_) | Self::Keys(_) => None,
        }
    }
}

impl Invite {
    /// Reads an invite.
    ///
    /// # Errors
    /// [`EnrollError::Invite`] names the field that is missing or wrong.
    pub fn parse(text: &str) -> Result<Self, EnrollError> {
        let raw: RawInvite = toml::from_str(text).map_err(|e| EnrollError::Invite(e.message().to_owned()))?;
        let field =
            |name: &str, problem: &dyn std::fmt::Display| EnrollError::Invite(format!("`{name}`: {problem}"));
        let token = data_encoding::BASE32_NOPAD.decode(raw.token.as_bytes()).ok();
        let token = token.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        Ok(Self {
            coordinator: raw.coordinator.parse().map_err(|e| field("coordinator", &e))?,
            site: raw.site,
            role: raw.role,
            consortium: raw.consortium,
            root: raw.root_sha256.parse().map_err(|e| field("root_sha256", &e))?,
            // The token is a secret: no message repeats it.
            token: EnrollToken(token.ok_or_else(|| field("token", &"it is incomplete or mistyped"))?),
            expires: raw.expires.parse().map_err(|e| field("expires", &e))?,
        })
    }

    /// Whether the invite's time is over: then nobody is asked, and the token stays here.
    ///
    /// # Errors
    /// [`EnrollError::Expired`].
    pub fn check_expiry(&self, now: jiff::Timestamp) -> Result<(), EnrollError> {
        if now >= self.expires {
            return Err(EnrollError::Expired { expired: self.expires, now });
        }
        Ok(())
    }
}

/// Enrols with `invite`, over QUIC or, where that gets no answer, over TCP (through `proxy`, if there is one), and keeps
/// the identity in `folder`.
///
/// # Errors
/// [`EnrollError`]; nothing is kept then but the keys, for the next attempt.
pub async fn enroll(
    invite: &Invite,
    folder: &IdentityFolder,
    ledger: &mut Ledger,
    proxy: Option<Proxy>,
) -> Result<Membership, EnrollError> {
    if let Some(Membership { site, role, consortium }) = folder.membership()? {
        return Err(EnrollError::AlreadyEnrolled { site, role, consortium });
    }
    invite.check_expiry(jiff::Timestamp::now())?;
    let keys = folder.keys()?;
    let dialled = connect(invite, proxy).await?;
    let request = EnrollRequest {
        token: invite.token,
        csr_der: keys.certificate_request()?,
        signing_key: keys.signing.verifying_key().to_bytes(),
    };
    let enrolled = egress::enrol(&dialled.connection, ledger, request).await;
    dialled.close().await;
    accept(invite, &keys, folder, enrolled?)
}

async fn connect(invite: &Invite, proxy: Option<Proxy>) -> Result<Dialled, EnrollError> {
    let coordinator = invite.coordinator.clone();
    let address = coordinator.to_string();
    let mut remote = Remote::default();
    if proxy.is_none()
        && let Err(source) = remote.address(&coordinator).await
    {
        return Err(EnrollError::Resolve { address, source });
    }
    let lane = LaneSetting::Auto;
    let network = Network { coordinator, lane, proxy, quic: QuicSettings::site() };
    let plan = LaneChooser::new(lane).plan(Instant::now());
    let dialled = async { network.dial_each(&tls::enroll_config(invite.root)?, plan, &mut remote).await };
    let dialled = dialled.await;
    dialled.map_err(|source| {
        let several = remote.all_of_several().map(|all| format!("{address} ({all})"));
        EnrollError::Connect { address: several.unwrap_or(address), source }
    })
}

/// Checks the answer and keeps it.
fn accept(
    invite: &Invite,
    keys: &SiteKeys,
    folder: &IdentityFolder,
    enrolled: Enrolled,
) -> Result<Membership, EnrollError> {
    let chain: Vec<CertificateDer<'static>> =
        enrolled.chain_der.into_iter().map(CertificateDer::from).collect();
    let root = CertificateDer::from(enrolled.root_der);
    if RootFingerprint::of(&root) != invite.root {
        return Err(EnrollError::Answer("its root certificate is not the one that the invite pins"));
    }
    let own = chain.first().ok_or(EnrollError::Answer("it holds no certificate"))?;
    let named = PeerIdentity::from_certificate(own);
    let named = named.map_err(|_| EnrollError::Answer("its certificate names no site"))?;
    if (&named.site, named.role) != (&invite.site, invite.role) {
        return Err(EnrollError::Answer("its certificate is for another site or role than the invite"));
    }
    if !contains(own, &keys.tls.subject_public_key_info()) {
        return Err(EnrollError::Answer("its certificate is for another key"));
    }
    let membership = Membership { site: named.site, role: named.role, consortium: named.consortium };
    folder.complete(&membership, &chain, &root)?;
    Ok(membership)
}

/// Whether a certificate holds this public key: the key's DER stands in it verbatim.
fn contains(certificate: &[u8], public_key: &[u8]) -> bool {
    certificate.windows(public_key.len()).any(|window| window == public_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        format!(
            "# Invite\nconsortium = \"demo\"\ncoordinator = \"127.0.0.1:1\"\nroot_sha256 = \"{}\"\nsite = \"north\"\n\
             role = \"trainer\"\nexpires = \"2027-01-15T08:00:00Z\"\ntoken = \"{}\"\n",
            "ab".repeat(32),
            data_encoding::BASE32_NOPAD.encode(&[7; 32])
        )
    }

    #[test]
    fn an_invite_is_read_whole_or_the_wrong_field_is_named() {
        let invite = Invite::parse(&text()).unwrap();
        assert_eq!((invite.site.as_str(), invite.role), ("north", Role::Trainer));
        let cut = text().replace("token = \"A4", "token = \"");
        let error = Invite::parse(&cut).unwrap_err().to_string();
        assert!(error.contains("`token`"), "{error}");
        let error = Invite::parse(&text().replace("site = ", "sight = ")).unwrap_err().to_string();
        assert!(error.contains("sight"), "{error}");
    }

    #[test]
    fn an_expired_invite_is_told_before_anybody_is_asked() {
        let invite = Invite::parse(&text()).unwrap();
        assert!(invite.check_expiry("2027-01-15T07:59:59Z".parse().unwrap()).is_ok());
        let error = invite.check_expiry("2027-01-15T08:00:00Z".parse().unwrap()).unwrap_err();
        assert!(matches!(error, EnrollError::Expired { .. }) && error.hint().is_some());
    }

    #[test]
    fn a_coordinators_certificate_out_of_its_time_is_a_matter_of_the_clock_first() {
        let hint = |alert| {
            let source = LinkError::RefusedPeer { alert, detail: "as TLS says".into() };
            EnrollError::Connect { address: "c.example.org:443".to_owned(), source }.hint().unwrap()
        };
        let expired = hint(Alert::Expired);
        assert!(
            expired.starts_with("check this machine's clock") && !expired.contains("somebody else"),
            "{expired}"
        );
        assert!(hint(Alert::UnknownIssuer).starts_with("somebody else answers"));
    }

    #[test]
    fn an_answer_about_another_key_site_or_root_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::new(folder.path());
        let keys = identity.keys().unwrap();
        let issued = |uri: &str, key: &rcgen::KeyPair| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
            params.self_signed(key).unwrap().der().to_vec()
        };
        let ours = link::identity_uri("demo", &"north".parse().unwrap(), Role::Trainer);
        let theirs = link::identity_uri("demo", &"north".parse().unwrap(), Role::Evaluator);
        let other = rcgen::KeyPair::generate().unwrap();
        let good = issued(&ours, &keys.tls);
        let mut invite = Invite::parse(&text()).unwrap();
        let root = good.clone();
        let answer = |certificate: Vec<u8>| Enrolled {
            chain_der: vec![certificate],
            root_der: root.clone(),
            site: "north".parse().unwrap(),
            role: Role::Trainer,
            consortium: "demo".into(),
        };
        let refused = |invite: &Invite, certificate: Vec<u8>| {
            let result = accept(invite, &keys, &identity, answer(certificate));
            assert!(matches!(result, Err(EnrollError::Answer(_))));
        };
        refused(&invite, good.clone());
        invite.root = RootFingerprint::of(&CertificateDer::from(root.clone()));
        refused(&invite, issued(&theirs, &keys.tls));
        refused(&invite, issued(&ours, &other));
        assert!(identity.membership().unwrap().is_none());
        accept(&invite, &keys, &identity, answer(good)).unwrap();
        assert_eq!(identity.membership().unwrap().unwrap().role, Role::Trainer);
    }
}
