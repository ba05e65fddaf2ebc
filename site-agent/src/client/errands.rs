//! What the agent does over the link, one function for each: none decides anything, each ends as an event.

use std::path::Path;
use std::sync::Arc;

use common::ids::{ArtifactHash, Digest, ModelHash, StudyDigest};
use common::participant::{Event, WITHHELD_CODE};
use common::round::UpdateOffer;
use common::study::StudyDocument;
use common::wire::{RefusalCode, Reply, SignedBytes};
use link::LinkError;
use link::quic::Connection;
use serde::{Deserialize, Serialize};

use super::artifacts::{ArtifactError, ArtifactFolder};
use super::files;
use super::hearing::Delivery;
use super::state::StateFolder;
use super::studies::StudyFolder;
use super::translate::offered_update;
use super::waiting::{Came, Until, Wait};
use crate::egress::{Carrier, Egress, EgressError, Outbound, Stage, ask};

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

/// Sends the signed report of this digest.
pub(super) async fn send_report(
    connection: &Connection,
    egress: &Egress,
    state: &StateFolder,
    model: ModelHash,
    report: Digest,
) -> Came {
    let (study, signed) = match stored_report(&state.report(model), model, report) {
        Ok(stored) => stored,
        Err(event) => return Came::Event(event),
    };
    match egress.send(connection, Outbound::EvaluationReport { study, signed }).await {
        Ok(Reply::ReportReceipt { report: counted }) if counted == report => {
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

/// The report of this digest, and of which study it is; else what it means that it cannot be had. Gone or damaged, it is made again; else
/// it may be read later.
fn stored_report(path: &Path, model: ModelHash, report: Digest) -> Result<(StudyDigest, SignedBytes), Event> {
    let lost = |why: anyhow::Error| {
        tracing::error!("the report on model {} is lost: {why:#}; the model is scored again", model.short());
        Event::ReportLost { model }
    };
    let stored: StoredReport = match files::read_json(path) {
        Ok(Some(stored)) => stored,
        Ok(None) => return Err(lost(anyhow::anyhow!("{} is gone", path.display()))),
        Err(error) if error.is_unreadable() => return Err(lost(error.into())),
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!("the report on model {}: {error:#}; it is tried again", model.short());
            return Err(Event::ReportFailed { model });
        }
    };
    let signed = stored.signed().filter(|_| stored.digest() == report);
    let signed = signed.ok_or_else(|| lost(anyhow::anyhow!("{} is not what was signed", path.display())))?;
    Ok((stored.study, signed))
}

/// Approves a study and, for a trainer, registers its manifest.
pub(super) async fn register(
    line: &impl Carrier,
    egress: &Egress,
    study: StudyDigest,
    manifest: Option<SignedBytes>,
) -> Came {
    let approved = say(line, egress, Outbound::Approval { study }).await;
    let said = match (approved, manifest) {
        (Ok(()), Some(signed)) => say(line, egress, Outbound::LabelManifest { study, signed }).await,
        (approved, _) => approved,
    };
    came_of(said)
}

/// Tells the coordinator something that it must know, and whose answer changes nothing here.
pub(super) async fn tell(line: &impl Carrier, egress: &Egress, outbound: Outbound) -> Came {
    came_of(say(line, egress, outbound).await)
}

/// Sends a message whose answer changes nothing here.
async fn say(line: &impl Carrier, egress: &Egress, outbound: Outbound) -> Result<(), EgressError> {
    egress.send(line, outbound).await.map(drop)
}

/// What came of such a message. The machine asks for it once in a connection: where the next try may have an answer, the errand
/// waits for it.
fn came_of(said: Result<(), EgressError>) -> Came {
    let Err(error) = said else { return Came::Nothing };
    let why = match &error {
        EgressError::Refused(refusal) if LinkError::Refused(refusal.clone()).is_transient() => {
            format!("{error}; {}", refusal.code.hint())
        }
        EgressError::Link(broken) => why_broken(broken),
        _ => {
            let why = error.to_string();
            match unsent(error) {
                Unsent::Waits(wait) => return Came::Waits(wait),
                Unsent::Final(_) => return Came::Nothing,
                Unsent::Failed => why,
            }
        }
    };
    Came::Waits(Box::new(Wait::again(why)))
}

/// The same in a task of its own, of what is old news soon: where it cannot leave, it does not wait.
pub(super) async fn say_owned(connection: Connection, egress: Arc<Egress>, outbound: Outbound) {
    match say(&connection, &egress, outbound).await {
        // The operator hears of the connection's end anyway.
        Ok(()) | Err(EgressError::Link(_)) => {}
        // Said to the operator, as far as it matters.
        Err(error) => drop(unsent(error)),
    }
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
            let again = LinkError::Refused(refusal.clone()).is_transient();
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
        EgressError::Link(error) => {
            tracing::warn!("not sent, or not answered: {}", why_broken(&error));
            Unsent::Failed
        }
    }
}

/// Why a message was not sent, or has no answer: the link, or the disk, which keeps something at each stage of an update's way.
fn why_broken(error: &LinkError) -> String {
    let cause = match error {
        LinkError::Io(error) => std::error::Error::source(error),
        _ => None,
    };
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::Mutex;

    use common::wire::{EnrollReply, EnrollRequest, Refusal, Request};

    use super::*;
    use crate::egress::{Kind, LedgerError, Policy, PolicyRefusal, Summary};

    /// Answers each request with the next of these, and then with yes.
    struct Coordinator {
        answers: Mutex<Vec<LinkError>>,
        heard: Mutex<Vec<&'static str>>,
    }

    impl Coordinator {
        fn that_says(answers: impl IntoIterator<Item = LinkError>) -> Self {
            let mut answers: Vec<_> = answers.into_iter().collect();
            answers.reverse();
            Self { answers: Mutex::new(answers), heard: Mutex::default() }
        }
    }

    impl Carrier for Coordinator {
        async fn exchange(&self, request: &Request) -> Result<Reply, LinkError> {
            self.heard.lock().unwrap().push(request.name());
            self.answers.lock().unwrap().pop().map_or(Ok(Reply::Done), Err)
        }

        async fn enrol(&self, _: &EnrollRequest) -> Result<EnrollReply, LinkError> {
            panic!("it is enrolled")
        }
    }

    fn refused(code: RefusalCode) -> LinkError {
        LinkError::Refused(Refusal::new(code, "its disk is full"))
    }

    fn egress(folder: &Path) -> Egress {
        let text = "[studies]\napprove = \"ask\"\n[egress]\nallow = [\"label-manifest\"]\nmax_update_mib = 1\n\
                    max_mib_per_day = 2\nprogress_every_s = 3600\n";
        Egress::open(Policy::parse("policy.toml", text).unwrap(), &folder.join("egress.jsonl")).unwrap()
    }

    #[tokio::test]
    async fn what_is_asked_for_once_is_said_until_there_is_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let egress = egress(folder.path());
        let study = StudyDigest(Digest::of(b"study"));
        let manifest = || Some(SignedBytes { bytes: b"{}".to_vec(), signature: [7; 64] });
        let coordinator = Coordinator::that_says([refused(RefusalCode::Internal), LinkError::Reset]);
        for why in ["its disk is full", "gave up the exchange"] {
            let came = register(&coordinator, &egress, study, manifest()).await;
            let Came::Waits(wait) = came else { panic!("it has no answer") };
            assert!(matches!(wait.until, Until::Again(_)) && wait.why.contains(why), "{}", wait.why);
        }
        assert!(matches!(register(&coordinator, &egress, study, manifest()).await, Came::Nothing));
        let heard = coordinator.heard.lock().unwrap().clone();
        assert_eq!(heard, ["approve-study", "approve-study", "approve-study", "register-manifest"]);

        // An answer that stays the same is one.
        let coordinator = Coordinator::that_says([refused(RefusalCode::StudyOver)]);
        let approval = Outbound::Approval { study };
        assert!(matches!(tell(&coordinator, &egress, approval).await, Came::Nothing));
    }

    #[test]
    fn a_disk_that_keeps_nothing_of_an_update_is_named_with_its_reason() {
        let denied = files::FileError::new(
            "rename",
            Path::new("/state/x.next"),
            io::ErrorKind::PermissionDenied.into(),
        );
        let why = why_broken(&LinkError::Io(io::Error::other(denied)));
        assert_eq!(why, "cannot rename /state/x.next: permission denied");
        assert_eq!(why_broken(&LinkError::Reset), LinkError::Reset.to_string());
    }

    #[test]
    fn a_report_that_is_not_what_was_signed_is_lost_and_one_that_is_goes_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let model = ArtifactHash(Digest::of(b"model"));
        let study = StudyDigest(Digest::of(b"study"));
        let stored = StoredReport { study, document: "{}".to_owned(), signature: "07".repeat(64) };
        let (report, lost) = (stored.digest(), Err(Event::ReportLost { model }));
        assert_eq!(stored_report(&path, model, report), lost, "there is none");
        files::write_json(&path, &stored).unwrap();
        let signed = SignedBytes { bytes: b"{}".to_vec(), signature: [7; 64] };
        assert_eq!(stored_report(&path, model, report), Ok((study, signed)));
        assert_eq!(stored_report(&path, model, Digest::of(b"another")), lost);
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in
            [&whole[..whole.len() / 2], "", &whole.replace("07", "0x"), &whole.replace("{}", "{ }")]
        {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(stored_report(&path, model, report), lost, "{damaged}");
        }
    }

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
