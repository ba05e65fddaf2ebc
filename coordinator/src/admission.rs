//! Who may ask for what: asked again at every request, so that revocation and expiry bite on live connections.
//!
//! TLS has checked that the certificate chains to our root; what it says today, and whether it still counts, is decided
//! here from the store. Closing connections is the driver's.

use common::ids::Role;
use common::study::Study;
use common::time::Timestamp;
use common::wire::{Refusal, RefusalCode, Request};
use link::PeerIdentity;

use crate::pki::Serial;
use crate::store::{CertificateRecord, SiteStatus, Store, StoreError};

/// Decides on requests.
#[derive(Clone)]
pub struct Admission {
    store: Store,
    consortium: String,
}

impl Admission {
    /// Decides from `store` for the sites of `consortium`.
    pub fn new(store: Store, consortium: String) -> Self {
        Self { store, consortium }
    }

    /// Whether the holder of `identity` may speak now; the inner error is what to tell it.
    ///
    /// # Errors
    /// The store.
    pub async fn check(
        &self,
        identity: &PeerIdentity,
        now: Timestamp,
    ) -> Result<Result<(), Refusal>, StoreError> {
        if identity.consortium != self.consortium {
            return Ok(refuse(RefusalCode::WrongConsortium, "this certificate is of another consortium"));
        }
        let Some(serial) = serial(identity) else { return Ok(unknown()) };
        let record = self.store.certificate(&serial, &identity.site).await?;
        Ok(record.map_or_else(unknown, |record| judge(identity, record, now)))
    }
}

/// Whether a site of this role may ask this at all.
///
/// # Errors
/// [`RefusalCode::WrongRole`].
pub fn check_role(role: Role, request: &Request) -> Result<(), Refusal> {
    let needed = match request {
        Request::AcceptRound { .. }
        | Request::Progress { .. }
        | Request::OfferUpdate(_)
        | Request::PutChunks { .. }
        | Request::CommitUpdate { .. }
        | Request::ReturnArtifact { .. } => Role::Trainer,
        Request::PutReport { .. } => Role::Evaluator,
        _ => return Ok(()),
    };
    if role == needed {
        return Ok(());
    }
    refuse(
        RefusalCode::WrongRole,
        &format!("{} is for {needed}s, and this site's role is {role}", request.name()),
    )
}

/// Whether the holder of `identity` may take part in `study`.
///
/// # Errors
/// [`RefusalCode::LeftOut`].
pub fn check_part(identity: &PeerIdentity, study: &Study) -> Result<(), Refusal> {
    let admitted = study.admit(&identity.site, identity.role);
    admitted.map_err(|left_out| Refusal::new(RefusalCode::LeftOut, left_out.to_string()))
}

fn judge(identity: &PeerIdentity, record: CertificateRecord, now: Timestamp) -> Result<(), Refusal> {
    if record.status == SiteStatus::Revoked {
        return refuse(RefusalCode::SiteRevoked, "this site was revoked");
    }
    if record.revoked {
        return refuse(RefusalCode::SiteRevoked, "this certificate was replaced by a newer one");
    }
    if record.role != identity.role {
        return refuse(RefusalCode::UnknownSite, "the site has another role now");
    }
    if !identity.is_valid_at(now) || now >= record.not_after {
        return refuse(RefusalCode::CertificateExpired, "the site's certificate has expired");
    }
    Ok(())
}

fn serial(identity: &PeerIdentity) -> Option<Serial> {
    let bytes = data_encoding::HEXLOWER.decode(identity.serial.as_bytes()).ok()?;
    Serial::from_bytes(&bytes)
}

fn unknown() -> Result<(), Refusal> {
    refuse(RefusalCode::UnknownSite, "the coordinator did not issue this certificate")
}

fn refuse(code: RefusalCode, detail: &str) -> Result<(), Refusal> {
    Err(Refusal::new(code, detail))
}

#[cfg(test)]
mod tests {
    use common::ids::{AttemptId, SiteId};
    use common::testing::example_study_with;
    use common::wire::Manifest;

    use super::*;
    use crate::pki::Token;
    use crate::store::InviteTerms;

    const NOW: Timestamp = Timestamp(1_000_000);
    const END: Timestamp = Timestamp(5_000_000);

    async fn enrolled() -> (tempfile::TempDir, Admission, PeerIdentity) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).await.unwrap();
        let site: SiteId = "north".parse().unwrap();
        let token = Token::random().hash();
        let terms = InviteTerms { site: site.clone(), role: Role::Trainer };
        store.add_invite(token, &terms, NOW, END).await.unwrap();
        let serial = Serial::random();
        store.enrol(token, &[0; 32], serial, END, NOW).await.unwrap().unwrap();
        let identity = PeerIdentity {
            site,
            role: Role::Trainer,
            consortium: "demo".to_owned(),
            serial: serial.to_string(),
            not_before: NOW,
            not_after: END,
        };
        (dir, Admission::new(store, "demo".to_owned()), identity)
    }

    async fn code(admission: &Admission, identity: &PeerIdentity, now: Timestamp) -> Option<RefusalCode> {
        admission.check(identity, now).await.unwrap().err().map(|refusal| refusal.code)
    }

    #[tokio::test]
    async fn an_enrolled_site_is_let_in_until_its_certificate_ends() {
        let (_dir, admission, identity) = enrolled().await;
        assert_eq!(code(&admission, &identity, NOW).await, None);
        assert_eq!(code(&admission, &identity, END).await, Some(RefusalCode::CertificateExpired));
        assert_eq!(code(&admission, &identity, Timestamp(1)).await, Some(RefusalCode::CertificateExpired));
    }

    #[tokio::test]
    async fn a_revoked_site_is_refused_from_the_next_request_on() {
        let (_dir, admission, identity) = enrolled().await;
        admission.store.revoke_site(&identity.site, NOW).await.unwrap();
        assert_eq!(code(&admission, &identity, NOW).await, Some(RefusalCode::SiteRevoked));
    }

    #[tokio::test]
    async fn a_certificate_that_we_did_not_record_is_nobodys() {
        let (_dir, admission, identity) = enrolled().await;
        let other = PeerIdentity { serial: Serial::random().to_string(), ..identity.clone() };
        assert_eq!(code(&admission, &other, NOW).await, Some(RefusalCode::UnknownSite));
        let other = PeerIdentity { consortium: "other".to_owned(), ..identity.clone() };
        assert_eq!(code(&admission, &other, NOW).await, Some(RefusalCode::WrongConsortium));
        let other = PeerIdentity { role: Role::Evaluator, ..identity };
        assert_eq!(code(&admission, &other, NOW).await, Some(RefusalCode::UnknownSite));
    }

    #[tokio::test]
    async fn a_trainer_that_the_study_leaves_out_may_not_take_part() {
        let (_dir, _admission, identity) = enrolled().await;
        let with = |leave_out: &str| {
            example_study_with(|draft| draft.participants.leave_out = vec![leave_out.parse().unwrap()])
        };
        let refused = check_part(&identity, with("north").study()).unwrap_err();
        assert_eq!(refused.code, RefusalCode::LeftOut);
        let words = "this study leaves north out: it is scored there, not trained";
        assert_eq!(refused.detail.as_str(), words);
        assert!(check_part(&identity, with("south").study()).is_ok());
        let evaluator = PeerIdentity { role: Role::Evaluator, ..identity };
        assert!(check_part(&evaluator, with("north").study()).is_ok());
    }

    #[test]
    fn an_evaluator_sends_no_updates_and_no_models() {
        let (attempt, manifest) =
            (AttemptId::from_bytes([0; 16]), Manifest { tensors: vec![], chunks: vec![] });
        for request in [Request::CommitUpdate { attempt }, Request::ReturnArtifact { attempt, manifest }] {
            let refused = check_role(Role::Evaluator, &request).unwrap_err();
            assert_eq!(refused.code, RefusalCode::WrongRole);
            assert!(check_role(Role::Trainer, &request).is_ok());
        }
    }
}
