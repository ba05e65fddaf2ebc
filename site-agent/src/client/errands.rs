//! What the agent does over the link, one function for each: none decides anything, each ends as an event.

use std::sync::Arc;

use common::ids::{ArtifactHash, Digest, ModelHash, StudyDigest};
use common::participant::Event;
use common::round::UpdateOffer;
use common::study::StudyDocument;
use common::wire::{Reply, SignedBytes};
use link::quic::Connection;
use serde::{Deserialize, Serialize};

use super::artifacts::ArtifactFolder;
use super::files::{self, FileError};
use super::state::StateFolder;
use super::studies::StudyFolder;
use super::translate::offered_update;
use crate::egress::{Egress, EgressError, Outbound, ask};

/// A signed report on disk, as it will travel.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredReport {
    /// Of which study.
    pub(super) study: StudyDigest,
    /// The exact text that was signed.
    pub(super) document: String,
    /// The signature, hexadecimal.
    pub(super) signature: String,
}

impl StoredReport {
    /// Names the document.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(self.document.as_bytes())
    }

    fn signed(&self) -> Option<SignedBytes> {
        let signature = data_encoding::HEXLOWER.decode(self.signature.as_bytes()).ok()?;
        Some(SignedBytes { bytes: self.document.clone().into_bytes(), signature: signature.try_into().ok()? })
    }
}

/// Has an artifact here, complete and checked.
pub(super) async fn fetch(
    connection: &Connection,
    egress: &Egress,
    folder: &ArtifactFolder,
    artifact: ArtifactHash,
) -> Event {
    match try_fetch(connection, egress, folder, artifact).await {
        Ok(()) => Event::ModelStored { artifact },
        Err(error) => {
            tracing::warn!("artifact {}: {error:#}", artifact.short());
            Event::FetchFailed { artifact }
        }
    }
}

async fn try_fetch(
    connection: &Connection,
    egress: &Egress,
    folder: &ArtifactFolder,
    artifact: ArtifactHash,
) -> anyhow::Result<()> {
    let manifest = match folder.manifest(artifact)? {
        Some(manifest) => manifest,
        None => ask::manifest(connection, artifact).await?,
    };
    let (folder, begun) = (folder.clone(), manifest.clone());
    let partial = tokio::task::spawn_blocking(move || folder.begin(&begun)).await??;
    ask::chunks(&egress.line(connection), &manifest, &partial).await?;
    Ok(partial.finish()?)
}

/// Has a study document here.
pub(super) async fn fetch_study(
    connection: &Connection,
    studies: &StudyFolder,
    study: StudyDigest,
) -> anyhow::Result<StudyDocument> {
    Ok(studies.store(study, ask::study(connection, study).await?)?)
}

/// Offers an update and sends what is wanted of it.
pub(super) async fn offer_update(
    connection: &Connection,
    egress: &Egress,
    outbox: &ArtifactFolder,
    offer: &UpdateOffer,
) -> Event {
    let attempt = offer.attempt;
    let (manifest, source) = match outbox.source(offer.update) {
        Ok(stored) => stored,
        Err(error) => {
            tracing::error!("the update of round {} is not in the outbox: {error:#}", offer.round);
            return Event::UploadFailed { attempt };
        }
    };
    let wire = offered_update(offer, &manifest);
    match egress.send_update(&egress.line(connection), wire, &manifest, source).await {
        Ok(_) => Event::Receipt { attempt },
        Err(error) => match final_code(&error) {
            Some(code) => Event::Refused { attempt, code },
            None => Event::UploadFailed { attempt },
        },
    }
}

/// Sends a signed report.
pub(super) async fn send_report(
    connection: &Connection,
    egress: &Egress,
    state: &StateFolder,
    model: ModelHash,
) -> Event {
    let stored: Result<Option<StoredReport>, FileError> = files::read_json(&state.report(model));
    let ready =
        stored.ok().flatten().and_then(|stored| Some((stored.study, stored.digest(), stored.signed()?)));
    let Some((study, digest, signed)) = ready else {
        tracing::error!("the report on model {} cannot be read", model.short());
        return Event::ReportFailed { model };
    };
    match egress.send(connection, Outbound::EvaluationReport { study, signed }).await {
        Ok(Reply::ReportReceipt { report }) if report == digest => Event::ReportReceipt { model },
        Ok(_) => Event::ReportFailed { model },
        Err(error) => match final_code(&error) {
            Some(code) => Event::ReportRefused { model, code },
            None => Event::ReportFailed { model },
        },
    }
}

/// Approves a study and, for a trainer, registers its manifest.
pub(super) async fn register(
    connection: &Connection,
    egress: &Egress,
    study: StudyDigest,
    manifest: Option<SignedBytes>,
) {
    if say(connection, egress, Outbound::Approval { study }).await
        && let Some(signed) = manifest
    {
        say(connection, egress, Outbound::LabelManifest { study, signed }).await;
    }
}

/// Sends a message whose answer changes nothing here; whether it arrived.
pub(super) async fn say(connection: &Connection, egress: &Egress, outbound: Outbound) -> bool {
    match egress.send(connection, outbound).await {
        Ok(_) => true,
        Err(error) => {
            final_code(&error);
            false
        }
    }
}

/// Asks the coordinator again to take part, in a task of its own.
pub(super) async fn say_owned(connection: Connection, egress: Arc<Egress>, outbound: Outbound) {
    say(&connection, &egress, outbound).await;
}

/// The code of an answer that stays the same however often one asks; `None` when trying again can help.
fn final_code(error: &EgressError) -> Option<String> {
    match error {
        EgressError::Withheld(refusal) if refusal.rule == "egress.progress_every_s" => None,
        EgressError::Withheld(refusal) => {
            tracing::error!("kept here by the policy: {refusal}");
            Some("withheld".to_owned())
        }
        EgressError::Refused(refusal) => {
            let again = link::LinkError::Refused(refusal.clone()).is_transient();
            if again || refusal.code.passes() {
                tracing::warn!("the coordinator refused: {refusal}; {}", refusal.code.hint());
            } else {
                tracing::error!("the coordinator refused: {refusal}; {}", refusal.code.hint());
            }
            (!again).then(|| refusal.code.code().to_owned())
        }
        EgressError::Ledger(ledger) => {
            tracing::error!("nothing leaves unrecorded: {ledger}");
            None
        }
        EgressError::Link(_) => None,
    }
}
