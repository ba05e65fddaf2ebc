//! How a site gets its certificate: one request, one reply, on the ALPN without client certificates.

use std::fmt;

use bincode::{Decode, Encode};

use super::codec::{Message, SizeClass};
use super::refusal::Refusal;
use super::words::Words;
use crate::ids::{Role, SiteId};

/// The one-time secret of an invite. Not shown by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct EnrollToken(pub [u8; 32]);

impl fmt::Debug for EnrollToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrollToken(…)")
    }
}

/// Asks for a certificate. Site and role are not here: the coordinator writes them from the invite.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EnrollRequest {
    /// From the invite.
    pub token: EnrollToken,
    /// PKCS #10 certificate request over the site's TLS key, DER.
    pub csr_der: Vec<u8>,
    /// The site's Ed25519 public signing key.
    pub signing_key: [u8; 32],
}

impl Message for EnrollRequest {
    const SIZE: SizeClass = SizeClass::Stranger;
    const NAME: &'static str = "enrolment request";
}

/// Answers an [`EnrollRequest`]. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum EnrollReply {
    /// The site is enrolled.
    Enrolled(Enrolled),
    /// No, and why.
    Refused(Refusal),
}

impl Message for EnrollReply {
    const SIZE: SizeClass = SizeClass::Control;
    const NAME: &'static str = "enrolment reply";
}

/// What makes a site a member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Enrolled {
    /// The site's certificate, then the intermediate that issued it, DER.
    pub chain_der: Vec<Vec<u8>>,
    /// The consortium's root certificate, DER; its fingerprint is in the invite.
    pub root_der: Vec<u8>,
    /// The site's name.
    pub site: SiteId,
    /// Its role.
    pub role: Role,
    /// The consortium's name.
    pub consortium: Words,
}
