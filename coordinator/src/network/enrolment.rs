//! Enrolment: one exchange with a stranger who holds an invite. 16 KiB, 10 seconds, one try a connection.

use std::pin::pin;
use std::time::{Duration, Instant};

use common::signed::VerifyingKey;
use common::wire::{EnrollReply, EnrollRequest, Enrolled, Refusal, RefusalCode};
use link::{CloseCode, Connection, Exchange, LinkError};

use super::{Context, say_refused};
use crate::clock;
use crate::pki::{PkiError, RequestedKey, Serial, TokenHash, Validity};
use crate::progress::Line;
use crate::store::{InviteRefusal, InviteTerms, StoreError};

/// For the request to come, and for the answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Enrols whoever is at the other end of `connection`, or says why not.
pub(super) async fn serve(connection: Connection, context: &Context) {
    let guest = context.strangers.enter(connection.remote_address().ip());
    // Kept to the end: over TCP the other side is told why on the exchange that it has begun.
    let mut hearing = pin!(tokio::time::timeout(PATIENCE, hear(&connection)));
    let heard = tokio::select! {
        heard = &mut hearing => heard,
        () = guest.displaced() => {
            let words = "too many others came to enrol before it had asked";
            return say_refused(context, &connection, CloseCode::TooBusy, words).await;
        }
    };
    let answered = match heard {
        Ok(Ok((request, exchange))) => {
            // Whatever else happens, this is not given up half-way: what the store has, seats and driver must hear of.
            let reply = answer(&request, &connection, context).await;
            tokio::select! {
                said = say(&reply, exchange) => said,
                () = guest.displaced() => {
                    let words = "too many others came to enrol before it had taken its answer";
                    return say_refused(context, &connection, CloseCode::TooBusy, words).await;
                }
            }
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let words = "no enrolment request in time";
            return say_refused(context, &connection, CloseCode::TooSlow, words).await;
        }
    };
    if let Err(error) = answered {
        let detail = format!("enrolment from {}: {error}", connection.remote_address());
        connection.close(CloseCode::ProtocolViolation, &CloseCode::ProtocolViolation.words().into());
        return context.refusals.say(&context.driver, error.code(), detail).await;
    }
    // The site closes once it has read the answer: closing here first could overtake it.
    tokio::select! {
        _ = tokio::time::timeout(PATIENCE, connection.closed()) => {}
        () = guest.displaced() => {}
    }
    connection.close(CloseCode::Done, &"".into());
}

async fn hear(connection: &Connection) -> Result<(EnrollRequest, Exchange), LinkError> {
    let mut exchange = connection.accept().await?;
    Ok((exchange.reader.read().await?, exchange))
}

async fn answer(request: &EnrollRequest, connection: &Connection, context: &Context) -> EnrollReply {
    match enrol(request, context).await {
        Ok(enrolled) => EnrollReply::Enrolled(enrolled),
        Err(refusal) => {
            let detail = format!("enrolment from {}: {}", connection.remote_address(), refusal.detail);
            context.refusals.say(&context.driver, refusal.code.code(), detail).await;
            EnrollReply::Refused(context.strangers.answer(refusal, Instant::now()))
        }
    }
}

async fn say(reply: &EnrollReply, mut exchange: Exchange) -> Result<(), LinkError> {
    let said = async {
        exchange.writer.write(reply).await?;
        exchange.writer.finish().await
    };
    let slow = LinkError::TooSlow { what: "room for a reply", limit: PATIENCE };
    tokio::time::timeout(PATIENCE, said).await.unwrap_or(Err(slow))
}

async fn enrol(request: &EnrollRequest, context: &Context) -> Result<Enrolled, Refusal> {
    let token = TokenHash::of(&request.token.0);
    let now = clock::now();
    let InviteTerms { site, role } =
        context.store.check_invite(token, now).await.map_err(internal)?.map_err(refuse)?;
    if VerifyingKey::from_bytes(&request.signing_key).is_err() {
        return Err(Refusal::new(RefusalCode::BadCertificateRequest, "the signing key is no Ed25519 key"));
    }
    let validity = Validity::starting(now, context.site_certificate_life);
    let tls_key = RequestedKey::of(&request.csr_der).map_err(|error| bad_request(&error))?;
    let serial = Serial::of(&token, &tls_key, &request.signing_key);
    let certified = context.authority.certify_site(&tls_key, &site, role, serial, validity);
    let issued = certified.map_err(|error| bad_request(&error))?;
    // Recorded before it leaves: a certificate that we do not know does not count.
    let enrolled = context.store.enrol(token, &request.signing_key, serial, validity.not_after(), now).await;
    enrolled.map_err(internal)?.map_err(refuse)?;
    context.seats.end_older(&site, serial);
    context.driver.sites_changed(Line::Enrolled { site: site.clone(), role }).await;
    let mut chain: Vec<Vec<u8>> = issued.chain.iter().map(|certificate| certificate.to_vec()).collect();
    let root_der = chain.pop().unwrap_or_default();
    Ok(Enrolled { chain_der: chain, root_der, site, role, consortium: context.authority.consortium().into() })
}

fn refuse(refusal: InviteRefusal) -> Refusal {
    let code = match refusal {
        InviteRefusal::Unknown => RefusalCode::InviteUnknown,
        InviteRefusal::Used { .. } => RefusalCode::InviteUsed,
        InviteRefusal::Expired { .. } => RefusalCode::InviteExpired,
    };
    Refusal::new(code, refusal.to_string())
}

fn bad_request(error: &PkiError) -> Refusal {
    match error {
        PkiError::Request(_) => Refusal::new(RefusalCode::BadCertificateRequest, error.to_string()),
        _ => {
            tracing::error!(error = error as &dyn std::error::Error, "cannot certify");
            Refusal::new(RefusalCode::Internal, "the coordinator could not make a certificate")
        }
    }
}

fn internal(error: StoreError) -> Refusal {
    tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "the store fails");
    Refusal::new(RefusalCode::Internal, error.words_for_sites())
}
