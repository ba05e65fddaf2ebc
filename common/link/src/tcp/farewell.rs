//! The last words of the coordinator on a TCP stream. TCP has no close codes, so a frame says why.

use common::wire::{EnrollReply, GoodbyeCode, Message, Notice, Refusal, RefusalCode, Reply, Words, codec};

use crate::close::CloseCode;

/// What a stream could still be told, from what was said on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// Nothing: the site does not listen for anything, or is in the midst of a message.
    None,
    /// A refusal in place of the reply.
    Refusal,
    /// A refusal in place of the reply to an enrolment.
    Enrolment,
    /// A notice.
    Goodbye,
}

impl Farewell {
    /// The frame that tells `code`, if there is one.
    pub(super) fn frame(self, code: CloseCode, words: &Words) -> Option<Vec<u8>> {
        match self {
            Self::None => None,
            Self::Refusal => frame(&Reply::Refused(refusal(code, words))),
            Self::Enrolment => frame(&EnrollReply::Refused(refusal(code, words))),
            Self::Goodbye => frame(&Notice::Goodbye { code: goodbye(code)? }),
        }
    }
}

fn frame<M: Message>(message: &M) -> Option<Vec<u8>> {
    let body = codec::encode(message).ok()?;
    Some([&u32::try_from(body.len()).ok()?.to_le_bytes()[..], &body].concat())
}

fn refusal(code: CloseCode, words: &Words) -> Refusal {
    let kind = match code {
        CloseCode::Revoked => RefusalCode::SiteRevoked,
        CloseCode::CertificateExpired => RefusalCode::CertificateExpired,
        CloseCode::NoCertificate | CloseCode::BadIdentity | CloseCode::UnknownSite => {
            RefusalCode::UnknownSite
        }
        CloseCode::ProtocolViolation => RefusalCode::BadRequest,
        _ => RefusalCode::TooBusy,
    };
    let said = if words.as_str().is_empty() { code.words() } else { words.as_str() };
    Refusal::new(kind, said)
}

fn goodbye(code: CloseCode) -> Option<GoodbyeCode> {
    Some(match code {
        CloseCode::Stopping => GoodbyeCode::Stopping,
        CloseCode::Replaced => GoodbyeCode::Replaced,
        CloseCode::Revoked => GoodbyeCode::Revoked,
        CloseCode::CertificateExpired => GoodbyeCode::CertificateExpired,
        _ => return None,
    })
}

impl From<GoodbyeCode> for CloseCode {
    /// The close of the QUIC lane that says the same.
    fn from(code: GoodbyeCode) -> Self {
        match code {
            GoodbyeCode::Stopping => Self::Stopping,
            GoodbyeCode::Replaced => Self::Replaced,
            GoodbyeCode::Revoked => Self::Revoked,
            GoodbyeCode::CertificateExpired => Self::CertificateExpired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::FrameReader;

    #[tokio::test]
    async fn every_goodbye_says_what_the_close_code_says() {
        for code in
            [CloseCode::Stopping, CloseCode::Replaced, CloseCode::Revoked, CloseCode::CertificateExpired]
        {
            let frame = Farewell::Goodbye.frame(code, &Words::default()).unwrap();
            let notice = FrameReader::new(&frame[..]).read::<Notice>().await.unwrap();
            let Notice::Goodbye { code: said } = notice else { panic!("{notice:?}") };
            assert_eq!((CloseCode::from(said), said.code()), (code, code.code()));
        }
        assert_eq!(Farewell::Goodbye.frame(CloseCode::Done, &Words::default()), None);
    }

    #[tokio::test]
    async fn a_site_that_may_not_come_in_is_refused_under_the_same_name() {
        for code in
            [CloseCode::Revoked, CloseCode::CertificateExpired, CloseCode::UnknownSite, CloseCode::TooBusy]
        {
            let frame = Farewell::Refusal.frame(code, &"why".into()).unwrap();
            let reply = FrameReader::new(&frame[..]).read::<Reply>().await.unwrap();
            let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
            assert_eq!((refusal.code.code(), refusal.detail.as_str()), (code.code(), "why"));
        }
    }
}
