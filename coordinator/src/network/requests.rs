//! One request, one answer. Everything a site says is checked here or by the types that it is parsed into.

use std::sync::Arc;
use std::time::Duration;

use common::artifact::ArtifactManifest;
use common::evaluation::ReportExpectation;
use common::ids::{AttemptId, Digest, RoundId, SiteId, StudyDigest};
use common::manifest::LabelManifest;
use common::report::{ClassReport, EvaluationReport, METRIC_VERSION};
use common::round::{self, Exclusion, UpdateExpectation};
use common::signed::{Signed, SignedDocument, SignedError, VerifyingKey};
use common::study::StudyDocument;
use common::update::UpdateOffer;
use common::wire::{Manifest, OfferedUpdate, Receipt, Refusal, RefusalCode, Reply, Request, SignedBytes};
use link::LinkError;
use link::framing::FrameWriter;
use link::quic::Exchange;
use tokio::io::AsyncWrite;

use super::chunks::{open_artifact, serve_chunks, take_chunks};
use super::session::Session;
use super::slot;
use super::upload::{Kept, Upload};
use crate::admission::check_part;
use crate::clock;
use crate::driver::{check_manifest, counts, decline};
use crate::progress::Line;
use crate::store::{self, LossPoint, StoreError, StoredManifest, StoredReport};

/// How long a site may take to take a reply.
const REPLY_PATIENCE: Duration = Duration::from_secs(60);
/// Two lengths that differ by less are the same, in millimetres.
const SAME_MM: f64 = 1e-9;

/// Answers `request` on its exchange. A refusal comes back as [`LinkError::Refused`], still to be told.
pub(super) async fn answer(
    session: &Session,
    request: Request,
    exchange: &mut Exchange,
) -> Result<(), LinkError> {
    let reply = match request {
        Request::GetChunks { artifact, indices } => {
            return serve_chunks(session, artifact, &indices, exchange).await;
        }
        Request::PutChunks { attempt, count } => take_chunks(session, attempt, count, exchange).await?,
        other => session.reply_to(other).await.map_err(LinkError::Refused)?,
    };
    say(&reply, &mut exchange.writer).await
}

/// Says the last of an exchange.
///
/// # Errors
/// [`LinkError::TooSlow`] for a site that takes nothing: what it is told would stay in our memory.
pub(super) async fn say<W: AsyncWrite + Unpin>(
    reply: &Reply,
    writer: &mut FrameWriter<W>,
) -> Result<(), LinkError> {
    let said = async {
        writer.write(reply).await?;
        writer.finish().await
    };
    let slow = LinkError::TooSlow { what: "room for a reply", limit: REPLY_PATIENCE };
    tokio::time::timeout(REPLY_PATIENCE, said).await.unwrap_or(Err(slow))
}

/// A failure of the store, as a site is told it.
pub(super) fn internal(error: StoreError) -> Refusal {
    tracing::error!(code = error.code(), error = &error as &dyn std::error::Error, "the store fails");
    Refusal::new(RefusalCode::Internal, error.words_for_sites())
}

pub(super) fn refusal(code: RefusalCode, words: impl AsRef<str>) -> Refusal {
    Refusal::new(code, words.as_ref())
}

/// Everything in it is the site's own: it may be told.
fn words(error: &SignedError) -> String {
    match error {
        SignedError::Document(problems) => format!("{error}: {problems}"),
        SignedError::Signature | SignedError::TooLong { .. } => error.to_string(),
    }
}

impl Session {
    async fn reply_to(&self, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::GetStudy { study } => {
                Ok(Reply::Study { bytes: self.study(study).await?.bytes().to_vec() })
            }
            Request::RegisterManifest { study, manifest } => self.register(study, manifest).await,
            Request::ApproveStudy { study } => self.approve(study).await,
            Request::GetArtifact { artifact } => {
                let file = open_artifact(self, artifact).await?;
                Ok(Reply::Artifact { manifest: Manifest::from(file.manifest()) })
            }
            Request::AcceptRound { study, round, .. } => {
                self.study_to_join(study).await?;
                let site = self.identity.site.clone();
                self.round_event(study, round::Event::RoundAccepted { site, round }).await
            }
            Request::DeclineRound { study, round, reason } => {
                let (site, reason) = (self.identity.site.clone(), decline(reason));
                self.round_event(study, round::Event::RoundDeclined { site, round, reason }).await
            }
            Request::Progress { study, round, step, steps, loss } => {
                self.progress(study, LossPoint { site: self.identity.site.clone(), round, step, steps, loss })
                    .await
            }
            Request::OfferUpdate(offer) => self.offer(offer).await,
            Request::CommitUpdate { attempt } => self.commit(attempt).await,
            Request::PutReport { study, report } => self.put_report(study, report).await,
            Request::ReturnArtifact { attempt, manifest } => self.take_back(attempt, manifest).await,
            Request::Hello(_) | Request::GetChunks { .. } | Request::PutChunks { .. } => {
                Err(refusal(RefusalCode::BadRequest, "not expected here"))
            }
        }
    }

    async fn study(&self, digest: StudyDigest) -> Result<StudyDocument, Refusal> {
        let stored = self.context.store.study(&digest).await.map_err(internal)?;
        let stored =
            stored.ok_or_else(|| refusal(RefusalCode::UnknownStudy, "the coordinator has no such study"))?;
        StudyDocument::parse(stored.document).map_err(|e| internal(StoreError::corrupt("study", e)))
    }

    /// A study that this site wants to take part in.
    async fn study_to_join(&self, digest: StudyDigest) -> Result<StudyDocument, Refusal> {
        let document = self.study(digest).await?;
        check_part(&self.identity, document.study())?;
        Ok(document)
    }

    /// Checks signature and form of a document that this site signed.
    async fn verify<T: SignedDocument>(
        &self,
        signed: SignedBytes,
        bad: RefusalCode,
    ) -> Result<(T, Signed<T>), Refusal> {
        let record = self.context.store.site(&self.identity.site).await.map_err(internal)?;
        let record = record.ok_or_else(|| refusal(RefusalCode::UnknownSite, "the site is not enrolled"))?;
        let signed = Signed::from_parts(signed.bytes, signed.signature);
        let key = VerifyingKey::from_bytes(&record.signing_key)
            .map_err(|e| internal(StoreError::corrupt("signing key", e)))?;
        let document = signed.verify(&key).map_err(|error| refusal(bad, words(&error)))?;
        Ok((document, signed))
    }

    async fn register(&self, study: StudyDigest, manifest: SignedBytes) -> Result<Reply, Refusal> {
        let document = self.study_to_join(study).await?;
        let (manifest, signed): (LabelManifest, _) = self.verify(manifest, RefusalCode::BadManifest).await?;
        let site = self.identity.site.clone();
        check_manifest(&manifest, &site, document.study())
            .map_err(|words| refusal(RefusalCode::BadManifest, words))?;
        let stored = StoredManifest {
            site: site.clone(),
            document: signed.bytes().to_vec(),
            signature: signed.signature().to_vec(),
        };
        self.context.store.put_manifest(&study, &stored, clock::now()).await.map_err(internal)?;
        self.context.driver.answered(study, site).await;
        // Kept all the same: it replaces a better one of earlier days, and the machine does not ask the site.
        match Exclusion::of(&counts(&manifest), document.study().participants.min_volumes) {
            Some(reason) => Err(refusal(RefusalCode::TooLittleData, reason.to_string())),
            None => Ok(Reply::Done),
        }
    }

    async fn approve(&self, study: StudyDigest) -> Result<Reply, Refusal> {
        self.study_to_join(study).await?;
        let site = self.identity.site.clone();
        self.context.store.approve_study(&study, &site, clock::now()).await.map_err(internal)?;
        self.context.driver.answered(study, site).await;
        Ok(Reply::Done)
    }

    async fn round_event(&self, study: StudyDigest, event: round::Event) -> Result<Reply, Refusal> {
        self.context.driver.round_event(study, event).await;
        Ok(Reply::Done)
    }

    async fn progress(&self, study: StudyDigest, point: LossPoint) -> Result<Reply, Refusal> {
        if point.step > point.steps || point.round == RoundId(0) {
            return Err(refusal(RefusalCode::BadRequest, "a step beyond the round's"));
        }
        self.study_to_join(study).await?;
        let LossPoint { ref site, round, step, steps, .. } = point;
        // To be late is no fault. But of what a site may make up there is no end: it is not kept.
        if !self.context.driver.expect_progress(study, site.clone(), round, steps).await? {
            return Ok(Reply::Done);
        }
        let loss = point.loss.is_finite().then_some(point.loss);
        if loss.is_some() {
            self.context.store.put_loss(&study, &point).await.map_err(internal)?;
        }
        let site = point.site;
        self.context.driver.say(Line::Training { site, round, step, steps, loss }).await;
        Ok(Reply::Done)
    }

    async fn offer(&self, offered: OfferedUpdate) -> Result<Reply, Refusal> {
        let offer = UpdateOffer::try_from(offered).map_err(|rejection| rejection.refusal())?;
        let site = self.identity.site.clone();
        let receipt =
            Receipt { study: offer.study, round: offer.round, attempt: offer.attempt, update: offer.hash() };
        // Before the driver is asked: it knows then of what an older connection was committing.
        let mut slot = self.upload.lock().await?;
        let base = match self.context.driver.expect_update(site.clone(), brief(&offer)).await? {
            UpdateExpectation::AlreadyCounted => return Ok(Reply::Receipt(receipt)),
            UpdateExpectation::Wanted { base } => base,
        };
        let document = self.study(offer.study).await?;
        // So that the driver hears of it where the disk lost that model; to the site it is the failure of below. From the disk: what is
        // open is there though its name is gone.
        self.context.shelf.forget(&base);
        drop(open_artifact(self, base).await);
        slot::let_go(&mut slot.update).await?;
        let upload =
            Upload::begin(&self.context.store, site, offer, base, &document.study().aggregation).await?;
        let missing = upload.missing();
        slot.update = Some(Arc::new(upload));
        Ok(Reply::UpdateWanted { missing })
    }

    /// An artifact that the disk lost: wanted only as long as that is so, and by its name alone.
    async fn take_back(&self, attempt: AttemptId, manifest: Manifest) -> Result<Reply, Refusal> {
        let manifest = ArtifactManifest::try_from(manifest)
            .map_err(|error| refusal(RefusalCode::WrongLayout, error.to_string()))?;
        if !self.context.driver.wants_artifact(self.identity.site.clone(), manifest.hash()).await? {
            return Ok(Reply::Done);
        }
        let mut slot = self.upload.lock().await?;
        slot::let_go(&mut slot.artifact).await?;
        let upload = Upload::receive(&self.context.store, attempt, manifest).await?;
        let missing = upload.missing();
        slot.artifact = Some(Arc::new(upload));
        Ok(Reply::UpdateWanted { missing })
    }

    async fn commit(&self, attempt: AttemptId) -> Result<Reply, Refusal> {
        let site = self.identity.site.clone();
        let mut slot = self.upload.lock().await?;
        let Some((upload, place)) = slot.take(attempt) else {
            return self.receipt_again(attempt).await;
        };
        let missing = upload.missing().len();
        if missing > 0 {
            let words = format!("{missing} chunks are missing");
            *place = Some(upload);
            return Err(refusal(RefusalCode::Incomplete, words));
        }
        let upload = match Arc::try_unwrap(upload) {
            Ok(upload) => upload,
            // A stream of before a cut, which will be found broken.
            Err(upload) => {
                *place = Some(upload);
                return Err(refusal(RefusalCode::TooBusy, "a stream of this update is still open"));
            }
        };
        let bytes = upload.manifest().layout().bytes();
        let verified = match upload.keep().await? {
            Kept::Update(verified) => verified,
            Kept::Artifact(artifact) => {
                // What is open is the one that it took the place of.
                self.context.shelf.forget(&artifact);
                self.context.driver.artifact_returned(site, artifact).await;
                return Ok(Reply::Done);
            }
        };
        let offer = round::UpdateOffer {
            study: verified.study(),
            round: verified.round(),
            base: verified.base(),
            attempt,
            steps: verified.steps(),
            update: verified.hash(),
        };
        let receipt = Receipt { study: offer.study, round: offer.round, attempt, update: offer.update };
        self.context.driver.update_stored(site, offer, bytes).await?;
        Ok(Reply::Receipt(receipt))
    }

    /// A commit whose answer was lost: the receipt is in the store.
    async fn receipt_again(&self, attempt: AttemptId) -> Result<Reply, Refusal> {
        let kept = self.context.store.receipt(&attempt, &self.identity.site).await.map_err(internal)?;
        let store::Receipt { study, round, update, .. } = kept
            .ok_or_else(|| refusal(RefusalCode::UnknownAttempt, "no update is offered under this attempt"))?;
        Ok(Reply::Receipt(Receipt { study, round, attempt, update }))
    }

    async fn put_report(&self, study: StudyDigest, report: SignedBytes) -> Result<Reply, Refusal> {
        let document = self.study(study).await?;
        let (report, signed): (EvaluationReport, _) = self.verify(report, RefusalCode::BadReport).await?;
        check_report(&report, &self.identity.site, &document)?;
        let (model, digest) = (report.subject.model, signed.digest());
        let site: SiteId = self.identity.site.clone();
        let expected = self.context.driver.expect_report(study, site.clone(), model, digest).await?;
        if let ReportExpectation::Wanted { round } = expected {
            check_round(&report, round)?;
            let stored = StoredReport {
                site: site.clone(),
                model,
                document: signed.bytes().to_vec(),
                signature: signed.signature().to_vec(),
            };
            let (store, driver) = (&self.context.store, &self.context.driver);
            let is_first = store.put_report(&study, &stored, clock::now()).await.map_err(internal)?;
            link::failpoint::pass("coordinator.after-report-keep");
            // A crash may have kept an earlier one from the machine: that one stays, and counts.
            let kept = match is_first {
                true => None,
                false => store.report(&study, &model, &site).await.map_err(internal)?,
            };
            let counted = kept.map_or(digest, |kept| Digest::of(&kept.document));
            driver.report_stored(study, site.clone(), model, counted).await?;
            if counted != digest {
                driver.expect_report(study, site, model, digest).await?;
            }
        }
        Ok(Reply::ReportReceipt { report: digest })
    }
}

/// Whether a report of `site` is what the study asks for: what it says stands beside what other sites say, and stays.
fn check_report(report: &EvaluationReport, site: &SiteId, document: &StudyDocument) -> Result<(), Refusal> {
    let (subject, study) = (&report.subject, document.study());
    let of_this_study = subject.study == document.digest() && subject.taxonomy == study.taxonomy.digest();
    if subject.site != *site || !of_this_study || report.metric_version != METRIC_VERSION {
        let words = "the report is of another site, study, taxonomy or metric";
        return Err(refusal(RefusalCode::BadReport, words));
    }
    for ClassReport { class, tau_mm, .. } in &report.classes {
        if study.taxonomy.class(*class).is_none() {
            let words = format!("the report scores class {class}, which the study does not have");
            return Err(refusal(RefusalCode::BadReport, words));
        }
        let expected = study.evaluation.nsd_tolerance_mm.of(*class);
        if (tau_mm - expected).abs() > SAME_MM {
            let words = format!(
                "the report has a tolerance of {tau_mm} mm for class {class}: expected {expected} mm"
            );
            return Err(refusal(RefusalCode::BadReport, words));
        }
    }
    Ok(())
}

/// All scores are sorted, and a model chosen, by the round.
fn check_round(report: &EvaluationReport, expected: RoundId) -> Result<(), Refusal> {
    let got = report.subject.round;
    if got == expected {
        return Ok(());
    }
    let words = format!("the report says that its model is of round {got}: expected round {expected}");
    Err(refusal(RefusalCode::BadReport, words))
}

/// An offer without its manifest, as the round machine looks at it.
fn brief(offer: &UpdateOffer) -> round::UpdateOffer {
    let UpdateOffer { study, round, base, attempt, steps, .. } = *offer;
    round::UpdateOffer { study, round, base, attempt, steps, update: offer.hash() }
}

#[cfg(test)]
mod tests {
    use common::ids::ClassId;
    use common::report::{CaseOutcome, CaseScore, ReportSubject};
    use common::testing::example_study;

    use super::*;
    use crate::fixture::site;

    /// The site's report on the model of round 8, with one scan of one class.
    fn report(class: u8, tau_mm: f64) -> EvaluationReport {
        let document = example_study();
        let subject = ReportSubject {
            site: site(),
            model: document.study().initial_model,
            round: RoundId(8),
            study: document.digest(),
            taxonomy: document.study().taxonomy.digest(),
        };
        let outcome = CaseOutcome::Absent { false_positive_volume_ml: 0.5 };
        let score = CaseScore { class: ClassId::new(class).unwrap(), scan: 0, patient: 0, outcome };
        EvaluationReport::summarise(subject, &[score], |_| tau_mm, 1, 7)
    }

    #[test]
    fn a_report_is_of_the_round_the_tolerance_and_the_classes_that_were_asked_for() {
        let document = example_study();
        let liver = ClassId::new(6).unwrap();
        let tau_mm = document.study().evaluation.nsd_tolerance_mm.of(liver);
        let refused = |report: EvaluationReport, site: &SiteId| {
            let refusal = check_report(&report, site, &document).unwrap_err();
            (refusal.code, refusal.detail.as_str().to_owned())
        };
        let good = report(6, tau_mm);
        assert!(check_report(&good, &site(), &document).is_ok());
        assert!(check_round(&good, RoundId(8)).is_ok());

        let words = |words: &str| (RefusalCode::BadReport, words.to_owned());
        let told = check_round(&good, RoundId(7)).unwrap_err();
        let expected = words("the report says that its model is of round 8: expected round 7");
        assert_eq!((told.code, told.detail.as_str().to_owned()), expected);
        let expected =
            format!("the report has a tolerance of {} mm for class 6: expected {tau_mm} mm", tau_mm + 0.5);
        assert_eq!(refused(report(6, tau_mm + 0.5), &site()), words(&expected));
        let unknown = "the report scores class 33, which the study does not have";
        assert_eq!(refused(report(33, tau_mm), &site()), words(unknown));
        let of_another = refused(good, &"south".parse().unwrap());
        assert_eq!(of_another, words("the report is of another site, study, taxonomy or metric"));
    }
}
