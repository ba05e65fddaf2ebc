//! What the agent does over the link, one function for each: none decides anything, each ends as an event.

use std::sync::Arc;

use common::ids::{ArtifactHash, Digest, ModelHash, StudyDigest};
use common::participant::{Event, WITHHELD_CODE};
use common::round::UpdateOffer;
use common::study::StudyDocument;
use common::wire::{RefusalCode, Reply, SignedBytes};
use link::quic::Connection;
use serde::{Deserialize, Serialize};

use super::artifacts::{ArtifactError, ArtifactFolder};
use super::files::{self, FileError};
use super::hearing::Delivery;
use super::state::StateFolder;
use super::studies::StudyFolder;
use super::translate::offered_update;
use super::waiting::{Came, Until, Wait};
use crate::egress::{Egress, EgressError, Outbound, Stage, ask};

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
) -> Came {
    let mut missing = 0;
    match try_fetch(connection, egress, folder, artifact, &mut missing).await {
        Ok(()) => Came::Event(Event::ModelStored { artifact }),
        Err(error) if files::disk_trouble(&error).is_some() => {
            let what = format!("artifact {}", artifact.short());
            Came::Waits(Box::new(Wait::for_room(&what, &error, folder.path(), missing)))
        }
        Err(error) => {
            tracing::warn!("artifact {}: {error:#}", artifact.short());
            Came::Event(Event::FetchFailed { artifact })
        }
    }
}

async fn try_fetch(
    connection: &Connection,
    egress: &Egress,
    folder: &ArtifactFolder,
    artifact: ArtifactHash,
    missing: &mut u64,
) -> anyhow::Result<()> {
    let manifest = match folder.manifest(artifact)? {
        Some(manifest) => manifest,
        None => ask::manifest(connection, artifact).await?,
    };
    let (to, begun) = (folder.clone(), manifest.clone());
    let partial = tokio::task::spawn_blocking(move || to.begin(&begun)).await??;
    *missing = partial.missing_bytes();
    files::require_room(folder.path(), *missing)?;
    let fetched = ask::chunks(&egress.line(connection), &manifest, &partial).await;
    *missing = partial.missing_bytes();
    fetched?;
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

/// Offers an update and sends what is wanted of it. What the optimiser learnt with it is kept before it can count.
pub(super) async fn offer_update(
    connection: &Connection,
    egress: &Egress,
    outbox: &ArtifactFolder,
    state: &StateFolder,
    offer: &UpdateOffer,
    delivery: &Delivery,
) -> Came {
    let UpdateOffer { study, round, attempt, .. } = *offer;
    let (manifest, source) = match outbox.source(offer.update) {
        Ok(stored) => stored,
        Err(error) => return Came::Event(unread(offer, error)),
    };
    let chunks = source.clone();
    let wire = offered_update(offer, &manifest);
    let reached = |stage| {
        delivery.reached(stage);
        let kept = match stage {
            // Not before: an update that never left changes nothing of what rounding left.
            Stage::Leaving => {
                state.residuals().and_then(|residuals| residuals.offered(study, round, attempt))
            }
            Stage::Wanted => Ok(()),
            Stage::Delivered => state.promote_optimizer(study, round, attempt),
        };
        kept.map_err(std::io::Error::other)
    };
    match egress.send_update(&egress.line(connection), wire, &manifest, source, reached).await {
        Ok(_) => Came::Event(Event::Receipt { attempt }),
        Err(error) => match unsent(error) {
            Unsent::Final(code) => Came::Event(Event::Refused { attempt, code }),
            Unsent::Failed if chunks.is_unread() => {
                Came::Event(unread(offer, ArtifactError::Damaged(offer.update)))
            }
            Unsent::Failed => Came::Event(Event::UploadFailed { attempt }),
            Unsent::Waits(wait) => Came::Waits(wait),
        },
    }
}

/// What it means that an update cannot be read. Gone or damaged, it is as if its bytes were others; else it may be read later.
fn unread(offer: &UpdateOffer, error: ArtifactError) -> Event {
    let UpdateOffer { round, attempt, .. } = *offer;
    let is_gone = matches!(error, ArtifactError::Absent(_) | ArtifactError::Damaged(_));
    let error = anyhow::Error::from(error);
    if is_gone {
        tracing::error!("the update of round {round} is not in the outbox: {error:#}; it is trained again");
        Event::Refused { attempt, code: RefusalCode::BadChunk.code().to_owned() }
    } else {
        tracing::error!("the update of round {round} cannot be read: {error:#}");
        Event::UploadFailed { attempt }
    }
}

/// Sends a signed report.
pub(super) async fn send_report(
    connection: &Connection,
    egress: &Egress,
    state: &StateFolder,
    model: ModelHash,
) -> Came {
    let stored: Result<Option<StoredReport>, FileError> = files::read_json(&state.report(model));
    let ready =
        stored.ok().flatten().and_then(|stored| Some((stored.study, stored.digest(), stored.signed()?)));
    let Some((study, digest, signed)) = ready else {
        tracing::error!("the report on model {} cannot be read", model.short());
        return Came::Event(Event::ReportFailed { model });
    };
    match egress.send(connection, Outbound::EvaluationReport { study, signed }).await {
        Ok(Reply::ReportReceipt { report }) if report == digest => {
            Came::Event(Event::ReportReceipt { model })
        }
        Ok(_) => Came::Event(Event::ReportFailed { model }),
        Err(error) => match unsent(error) {
            Unsent::Final(code) => Came::Event(Event::ReportRefused { model, code }),
            Unsent::Failed => Came::Event(Event::ReportFailed { model }),
            Unsent::Waits(wait) => Came::Waits(wait),
        },
    }
}

/// Approves a study and, for a trainer, registers its manifest.
pub(super) async fn register(
    connection: &Connection,
    egress: &Egress,
    study: StudyDigest,
    manifest: Option<SignedBytes>,
) -> Came {
    let approved = say(connection, egress, Outbound::Approval { study }).await;
    let said = match (approved, manifest) {
        (Ok(()), Some(signed)) => say(connection, egress, Outbound::LabelManifest { study, signed }).await,
        (approved, _) => approved,
    };
    match said {
        Err(Unsent::Waits(wait)) => Came::Waits(wait),
        _ => Came::Nothing,
    }
}

/// Tells the coordinator something that it must know, and whose answer changes nothing here.
pub(super) async fn tell(connection: &Connection, egress: &Egress, outbound: Outbound) -> Came {
    match say(connection, egress, outbound).await {
        Err(Unsent::Waits(wait)) => Came::Waits(wait),
        _ => Came::Nothing,
    }
}

/// Sends a message whose answer changes nothing here.
async fn say(connection: &Connection, egress: &Egress, outbound: Outbound) -> Result<(), Unsent> {
    egress.send(connection, outbound).await.map(drop).map_err(unsent)
}

/// The same in a task of its own, of what is old news soon: where it cannot leave, it does not wait.
pub(super) async fn say_owned(connection: Connection, egress: Arc<Egress>, outbound: Outbound) {
    // Said to the operator, as far as it matters.
    let _ = say(&connection, &egress, outbound).await;
}

/// What it means that a message did not arrive.
enum Unsent {
    /// The answer stays the same however often one asks: its code.
    Final(String),
    /// Trying again can help.
    Failed,
    /// It can leave later.
    Waits(Box<Wait>),
}

fn unsent(error: EgressError) -> Unsent {
    match error {
        EgressError::Withheld(refusal) if refusal.rule == "egress.progress_every_s" => Unsent::Failed,
        EgressError::Withheld(refusal) => {
            tracing::error!("kept here by the policy: {refusal}");
            Unsent::Final(WITHHELD_CODE.to_owned())
        }
        EgressError::Waits { refusal, message } => {
            let why = format!("daily egress limit reached, continues at 00:00 UTC ({refusal})");
            Unsent::Waits(Box::new(Wait { until: Until::Allowance(*message), why }))
        }
        EgressError::Refused(refusal) => {
            let again = link::LinkError::Refused(refusal.clone()).is_transient();
            if refusal.code == RefusalCode::RoundClosed {
                // What that means for the update, the machine says in plainer words.
                tracing::debug!("the coordinator refused: {refusal}");
            } else if again || refusal.code.passes() {
                tracing::warn!("the coordinator refused: {refusal}; {}", refusal.code.hint());
            } else {
                tracing::error!("the coordinator refused: {refusal}; {}", refusal.code.hint());
            }
            if again { Unsent::Failed } else { Unsent::Final(refusal.code.code().to_owned()) }
        }
        EgressError::Ledger(ledger) => {
            let folder = ledger.folder();
            let error = anyhow::Error::from(ledger);
            match folder.filter(|_| files::disk_trouble(&error).is_some()) {
                Some(folder) => {
                    Unsent::Waits(Box::new(Wait::for_room("nothing leaves unrecorded", &error, &folder, 0)))
                }
                None => {
                    tracing::error!("nothing leaves unrecorded: {error:#}");
                    Unsent::Failed
                }
            }
        }
        EgressError::Link(_) => Unsent::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::egress::{Kind, LedgerError, PolicyRefusal, Summary};

    #[test]
    fn what_cannot_leave_today_or_be_written_down_waits_with_a_name() {
        let (file, what) = ("policy.toml".to_owned(), "2 MiB more after 3 MiB today".to_owned());
        let refusal = PolicyRefusal { file, line: Some(25), rule: "egress.max_mib_per_day", what };
        let content = Digest::of(b"update");
        let message = Summary { kind: Kind::Update, study: None, round: None, content, bytes: 2 << 20 };
        let message = Box::new(message);
        let Unsent::Waits(wait) = unsent(EgressError::Waits { refusal, message }) else { panic!("it waits") };
        assert_eq!(
            wait.why,
            "daily egress limit reached, continues at 00:00 UTC (policy.toml:25: `egress.max_mib_per_day` refuses 2 MiB more after 3 MiB today)"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("egress.jsonl").display().to_string();
        let refused = |kind: io::ErrorKind| {
            unsent(EgressError::Ledger(LedgerError::File { path: path.clone(), source: kind.into() }))
        };
        let Unsent::Waits(wait) = refused(io::ErrorKind::StorageFull) else { panic!("it waits") };
        assert!(wait.why.starts_with("disk full: nothing leaves unrecorded: egress ledger "), "{}", wait.why);
        assert!(matches!(refused(io::ErrorKind::PermissionDenied), Unsent::Failed));
    }
}
