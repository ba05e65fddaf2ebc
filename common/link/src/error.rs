//! What can go wrong between two parties, each with a stable code and words for the operator.

use std::io;
use std::time::Duration;

use common::artifact::LayoutError;
use common::wire::{ChunkError, CodecError, Refusal, RefusalCode, Words};
use quinn::{ConnectionError, ReadError, WriteError};
use rustls::AlertDescription;

use crate::close::CloseCode;
use crate::identity::IdentityError;
use crate::tcp::{Ending, ProxyError};
use crate::tls::ForeignIssuer;

/// Why a TLS handshake was refused, as its alert tells. The alert is all that TLS gives the refused side, so it must
/// be turned into words there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alert {
    /// Alert 45, which also says that a certificate is not valid yet.
    #[error("the certificate has expired, or is not valid yet")]
    Expired,
    /// Alert 48.
    #[error("the certificate was not issued by this consortium")]
    UnknownIssuer,
    /// Alerts 41 and 116.
    #[error("a certificate is required")]
    Missing,
    /// Alert 44.
    #[error("the certificate is revoked")]
    Revoked,
    /// Alerts 42, 43, 46, 51 and 112.
    #[error("the certificate is damaged, for another purpose or name, or not issued by this consortium")]
    BadCertificate,
    /// Alert 120.
    #[error("no common protocol")]
    NoProtocol,
    /// Any other alert.
    #[error("TLS alert {0}")]
    Other(u8),
}

impl Alert {
    const fn from_number(alert: u8) -> Self {
        match alert {
            45 => Self::Expired,
            48 => Self::UnknownIssuer,
            41 | 116 => Self::Missing,
            44 => Self::Revoked,
            42 | 43 | 46 | 51 | 112 => Self::BadCertificate,
            120 => Self::NoProtocol,
            other => Self::Other(other),
        }
    }

    const fn code(self) -> &'static str {
        match self {
            Self::Expired => "certificate-expired",
            Self::UnknownIssuer => "unknown-issuer",
            Self::Missing => "no-certificate",
            Self::Revoked => "certificate-revoked",
            Self::BadCertificate => "bad-certificate",
            Self::NoProtocol => "no-common-protocol",
            Self::Other(_) => "tls-alert",
        }
    }
}

/// What failed between the two parties.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side refused our certificate, or the handshake, within TLS.
    #[error("the other side refused us: {alert}")]
    RefusedByPeer {
        /// Why.
        alert: Alert,
        /// What the other side's TLS says.
        detail: Words,
    },
    /// We refused the other side's certificate, or the handshake, within TLS.
    #[error("refused the other side: {alert}: {detail}")]
    RefusedPeer {
        /// Why.
        alert: Alert,
        /// What our TLS says.
        detail: Words,
    },
    /// The other side's certificate is of another authority than the consortium's: somebody opens our connection.
    #[error(
        "the certificate shown was issued by `{issuer}`, not by the consortium: a proxy opens TLS connections on the way (TLS inspection)"
    )]
    Inspected {
        /// The authority.
        issuer: Words,
    },
    /// The HTTP proxy does not let us through.
    #[error("the proxy {proxy}: {error}")]
    Proxy {
        /// Which.
        proxy: Words,
        /// Why.
        #[source]
        error: ProxyError,
    },
    /// Nobody takes a TCP connection.
    #[error("cannot connect to {address} over TCP: {source}")]
    Unreachable {
        /// Where.
        address: Words,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The coordinator said no to a request.
    #[error("the coordinator refused: {0}")]
    Refused(Refusal),
    /// The other side ended the connection.
    #[error("{code}{}", more(*.code, .words))]
    Closed {
        /// Why.
        code: CloseCode,
        /// Its own words, if any.
        words: Words,
    },
    /// We ended the connection.
    #[error("the connection was closed here")]
    ClosedHere,
    /// Nothing was heard for as long as a connection may be idle, or nobody answered.
    #[error("no answer: the connection timed out")]
    TimedOut,
    /// A message or chunk did not come in time.
    #[error("no {what} within {} s", .limit.as_secs_f32())]
    TooSlow {
        /// What was awaited.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The other side does not know the connection any more.
    #[error("the other side was started again and does not know this connection")]
    Restarted,
    /// The other side gave the exchange up.
    #[error("the other side gave up the exchange")]
    Reset,
    /// A stream ended inside a message or chunk.
    #[error("the stream ended inside a {what}")]
    CutOff {
        /// What was being read.
        what: &'static str,
    },
    /// A message that cannot be read or written.
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// A message that does not belong here.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What belongs here.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// Bytes that are not the chunk announced.
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    /// A manifest that is none.
    #[error("the artifact's manifest: {0}")]
    Manifest(#[from] LayoutError),
    /// A manifest of another artifact than the one asked for.
    #[error("the manifest is not of the artifact asked for")]
    WrongManifest,
    /// A client certificate that names no site.
    #[error("the site certificate: {0}")]
    Identity(#[from] IdentityError),
    /// Keys or certificates of ours that TLS does not take.
    #[error("our keys or certificates: {0}")]
    Credentials(#[from] rustls::Error),
    /// An address or name that cannot be dialled.
    #[error("cannot dial: {0}")]
    Dial(#[from] quinn::ConnectError),
    /// A setting that the transport does not take.
    #[error("transport setting {name} is out of range")]
    Setting {
        /// Which.
        name: &'static str,
    },
    /// The transport broke.
    #[error("transport: {0}")]
    Transport(String),
    /// The socket or the disk failed.
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl LinkError {
    /// Short stable name for logs and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::RefusedByPeer { alert, .. } | Self::RefusedPeer { alert, .. } => alert.code(),
            Self::Inspected { .. } => "tls-inspection",
            Self::Proxy { error, .. } => error.code(),
            Self::Unreachable { .. } => "unreachable",
            Self::Refused(refusal) => refusal.code.code(),
            Self::Closed { code, .. } => code.code(),
            Self::ClosedHere => "closed-here",
            Self::TimedOut => "timed-out",
            Self::TooSlow { .. } => "too-slow",
            Self::Restarted => "restarted",
            Self::Reset => "reset",
            Self::CutOff { .. } => "cut-off",
            Self::Codec(_) => "bad-message",
            Self::Unexpected { .. } => "unexpected-message",
            Self::Chunk(_) => "bad-chunk",
            Self::Manifest(_) | Self::WrongManifest => "bad-manifest",
            Self::Identity(_) => "bad-identity",
            Self::Credentials(_) => "bad-credentials",
            Self::Dial(_) => "cannot-dial",
            Self::Setting { .. } => "bad-setting",
            Self::Transport(_) => "transport",
            Self::Io(_) => "io",
        }
    }

    /// What the site's operator can do about it; `None` when waiting is all there is.
    pub const fn hint(&self) -> Option<&'static str> {
        const INVITE: &str = "ask the coordinator's operator for a new invite and run `site-agent enroll`";
        match self {
            Self::RefusedByPeer { alert, .. } => Some(match alert {
                Alert::NoProtocol => {
                    "update site-agent: the coordinator speaks another version, or it is somebody else who answers at its address"
                }
                Alert::Other(_) => "check that the address is the coordinator's and that clocks are right",
                Alert::Expired => {
                    "check this machine's clock; then ask the coordinator's operator for a new invite and run `site-agent enroll`"
                }
                _ => INVITE,
            }),
            Self::RefusedPeer { alert: Alert::Expired, .. } => Some(
                "check this machine's clock; if it is right, tell the coordinator's operator that its certificate is not valid",
            ),
            Self::RefusedPeer { .. } => Some(
                "this is not the consortium's coordinator: check the address, and ask the coordinator's operator",
            ),
            Self::Inspected { .. } => Some(
                "ask the network team to exempt the coordinator's host and port from TLS inspection; if there is none, check the address: it is not the consortium's coordinator that answers",
            ),
            Self::Proxy { error, .. } => Some(error.hint()),
            Self::Refused(refusal) => Some(RefusalCode::hint(refusal.code)),
            Self::Closed { code, .. } => match code {
                CloseCode::NoCertificate | CloseCode::BadIdentity | CloseCode::UnknownSite => Some(INVITE),
                CloseCode::Revoked => Some("ask the coordinator's operator why, and for a new invite"),
                CloseCode::CertificateExpired => Some(INVITE),
                CloseCode::Replaced => {
                    Some("another site-agent runs with the same certificate: stop one of them")
                }
                CloseCode::ProtocolViolation => {
                    Some("update site-agent; if it persists, tell the coordinator's operator")
                }
                _ => None,
            },
            Self::TimedOut | Self::TooSlow { .. } | Self::Dial(_) | Self::Unreachable { .. } => {
                Some("check the coordinator's address and that the firewall lets UDP or TCP out to its port")
            }
            Self::Credentials(_) => Some(
                "the files of the folder `identity` do not belong together: put back those that do; if they are lost, move the folder away and enroll with a new invite",
            ),
            Self::Codec(_) | Self::Unexpected { .. } | Self::Manifest(_) | Self::WrongManifest => {
                Some("update site-agent; if it persists, tell the coordinator's operator")
            }
            Self::Setting { .. } => Some("correct it in the configuration"),
            _ => None,
        }
    }

    /// Whether trying again later, with nothing changed, can help.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut | Self::TooSlow { .. } | Self::Restarted | Self::Reset => true,
            Self::CutOff { .. } | Self::ClosedHere => true,
            Self::Transport(_) | Self::Io(_) | Self::Chunk(_) | Self::Unreachable { .. } => true,
            Self::Proxy { error, .. } => error.is_transient(),
            Self::Refused(refusal) => matches!(refusal.code, RefusalCode::TooBusy | RefusalCode::Internal),
            Self::Closed { code, .. } => {
                matches!(
                    code,
                    CloseCode::Done | CloseCode::TooBusy | CloseCode::Stopping | CloseCode::TooSlow
                )
            }
            _ => false,
        }
    }
}

/// The words of a close after those of its code, unless they are the same.
fn more(code: CloseCode, words: &Words) -> String {
    let same = words.as_str().is_empty() || words.as_str() == code.words();
    if same { String::new() } else { format!(": {words}") }
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(error) => {
                match (ForeignIssuer::named_in(&error.reason), alert(error.code)) {
                    (Some(issuer), _) => Self::Inspected { issuer: issuer.into() },
                    (None, Some(alert)) => Self::RefusedPeer { alert, detail: error.reason.as_str().into() },
                    (None, None) => Self::Transport(error.to_string()),
                }
            }
            ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
                Some(alert) => {
                    Self::RefusedByPeer { alert, detail: String::from_utf8_lossy(&close.reason).into() }
                }
                None => Self::Transport(close.to_string()),
            },
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                code: CloseCode::from_number(
                    u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX),
                ),
                words: String::from_utf8_lossy(&close.reason).into(),
            },
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => Self::ClosedHere,
            other => Self::Transport(other.to_string()),
        }
    }
}

/// QUIC carries a TLS alert as 0x100 + its number.
fn alert(code: quinn::TransportErrorCode) -> Option<Alert> {
    let alert = u64::from(code).checked_sub(0x100)?;
    u8::try_from(alert).ok().map(Alert::from_number)
}

/// What TLS over TCP says. quinn says the same in its own words.
fn tls_error(error: &rustls::Error) -> LinkError {
    let alert = |alert: AlertDescription| Alert::from_number(u8::from(alert));
    let detail = || error.to_string().into();
    match error {
        rustls::Error::AlertReceived(received) => {
            LinkError::RefusedByPeer { alert: alert(*received), detail: format!("{received:?}").into() }
        }
        rustls::Error::InvalidCertificate(reason) => match ForeignIssuer::named_in(&error.to_string()) {
            Some(issuer) => LinkError::Inspected { issuer: issuer.into() },
            None => LinkError::RefusedPeer { alert: alert(reason.clone().into()), detail: detail() },
        },
        rustls::Error::NoCertificatesPresented => {
            LinkError::RefusedPeer { alert: Alert::Missing, detail: detail() }
        }
        rustls::Error::NoApplicationProtocol => {
            LinkError::RefusedPeer { alert: Alert::NoProtocol, detail: detail() }
        }
        other => LinkError::Transport(other.to_string()),
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(ending) = inner.and_then(|e| e.downcast_ref::<Ending>()) {
            return ending.into();
        }
        if let Some(error) = inner.and_then(|e| e.downcast_ref::<rustls::Error>()) {
            return tls_error(error);
        }
        if let Some(error) = inner.and_then(|e| e.downcast_ref::<ReadError>()) {
            return match error {
                ReadError::ConnectionLost(error) => error.clone().into(),
                ReadError::Reset(_) => Self::Reset,
                other => Self::Transport(other.to_string()),
            };
        }
        if let Some(error) = inner.and_then(|e| e.downcast_ref::<WriteError>()) {
            return match error {
                WriteError::ConnectionLost(error) => error.clone().into(),
                WriteError::Stopped(_) => Self::Reset,
                other => Self::Transport(other.to_string()),
            };
        }
        Self::Io(error)
    }
}
