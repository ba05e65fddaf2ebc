use std::collections::BTreeSet;

use common::artifact::{ArtifactManifest, Dtype, TensorLayout, TensorSpec};
use common::ids::{ArtifactHash, ClassId, RoundId, SiteId, StudyDigest, TaxonomyDigest};
use common::manifest::{CaseLabels, LabelManifest};
use common::report::{CaseOutcome, CaseScore, EvaluationReport, ReportSubject};
use common::wire::{DeclineReason, RefusalCode, Request};
use serde_json::Value;

use super::*;

/// A coordinator in memory: what it was sent, and what it has of an update.
#[derive(Default)]
struct Coordinator {
    heard: Mutex<Vec<&'static str>>,
    kept: Mutex<Vec<u32>>,
    /// Break the link after this many chunks, once.
    break_after: Mutex<Option<usize>>,
    refuse: bool,
}

impl Carrier for Coordinator {
    async fn exchange(&self, request: &Request) -> Result<Reply, LinkError> {
        self.heard.lock().unwrap().push(request.name());
        if self.refuse {
            return Err(LinkError::Refused(Refusal::new(RefusalCode::RoundClosed, "over")));
        }
        Ok(match request {
            Request::OfferUpdate(offer) => {
                let kept = self.kept.lock().unwrap();
                let all = 0..offer.manifest.chunks.len() as u32;
                Reply::UpdateWanted { missing: all.filter(|i| !kept.contains(i)).collect() }
            }
            Request::ReturnArtifact { manifest, .. } => {
                let kept = self.kept.lock().unwrap();
                match manifest.chunks.len() == kept.len() {
                    true => Reply::Done,
                    false => Reply::UpdateWanted { missing: (0..manifest.chunks.len() as u32).collect() },
                }
            }
            Request::CommitUpdate { attempt: RETURNED } => Reply::Done,
            Request::CommitUpdate { attempt } => Reply::Receipt(Receipt {
                study: study(),
                round: RoundId(1),
                attempt: *attempt,
                update: manifest().hash(),
            }),
            _ => Reply::Done,
        })
    }

    async fn enrol(&self, _: &EnrollRequest) -> Result<EnrollReply, LinkError> {
        Ok(EnrollReply::Refused(Refusal::new(RefusalCode::InviteUsed, "used")))
    }
}

impl ChunkCarrier for Coordinator {
    async fn put_chunks<S: ChunkSource + Clone + Send + 'static>(
        &self,
        _: AttemptId,
        _: &ArtifactManifest,
        indices: &[u32],
        mut source: S,
    ) -> Result<u32, LinkError> {
        let mut buffer = Vec::new();
        for (sent, &index) in indices.iter().enumerate() {
            if self.break_after.lock().unwrap().take_if(|after| *after == sent).is_some() {
                return Err(LinkError::Reset);
            }
            source.read_chunk(index, &mut buffer).await?;
            self.kept.lock().unwrap().push(index);
        }
        Ok(indices.len() as u32)
    }
}

/// Chunks of zeros, counted.
#[derive(Clone, Default)]
struct Zeros(Arc<Mutex<Vec<u32>>>);

impl ChunkSource for Zeros {
    async fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        self.0.lock().unwrap().push(index);
        buffer.clear();
        buffer.resize(8, 0);
        Ok(())
    }
}

/// The key of a model that goes back.
const RETURNED: AttemptId = AttemptId::from_bytes([9; 16]);

/// What the site does at each stage of an update.
fn nothing(_: Stage) -> std::io::Result<()> {
    Ok(())
}

fn study() -> StudyDigest {
    StudyDigest(Digest::of(b"study"))
}

fn manifest() -> ArtifactManifest {
    let spec = |name: &str| TensorSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![2] };
    let layout = TensorLayout::new(["a", "b", "c"].map(spec).to_vec()).unwrap();
    ArtifactManifest::of(layout, &[0; 24])
}

fn offer() -> OfferedUpdate {
    OfferedUpdate {
        study: study(),
        round: RoundId(1),
        base: manifest().hash(),
        attempt: AttemptId::from_bytes([7; 16]),
        steps: 5,
        manifest: (&manifest()).into(),
    }
}

fn progress() -> Outbound {
    Outbound::Progress { study: study(), round: RoundId(1), step: 1, steps: 5, loss: 0.5 }
}

struct Site {
    folder: tempfile::TempDir,
    egress: Egress,
}

fn site(allow: &str) -> Site {
    let text = format!(
        "[studies]\napprove = \"ask\"\n[egress]\nallow = [{allow}]\nmax_update_mib = 1\nmax_mib_per_day = 2\n\
         progress_every_s = 3600\n"
    );
    let folder = tempfile::tempdir().unwrap();
    let policy = Policy::parse("policy.toml", &text).unwrap();
    let egress = Egress::open(policy, &folder.path().join("egress.jsonl")).unwrap();
    Site { folder, egress }
}

impl Site {
    /// Has the ledger append to another file.
    fn append_to(&self, path: &Path) {
        let file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        self.egress.books.lock().unwrap().ledger.append_to(file);
    }

    fn events(&self) -> Vec<(Kind, LedgerEvent)> {
        let mut events = Vec::new();
        verify(&self.folder.path().join("egress.jsonl"), |e| events.push((e.kind, e.event.clone()))).unwrap();
        events
    }
}

#[tokio::test]
async fn what_the_policy_forbids_never_reaches_the_wire_and_the_line_is_named() {
    let site = site("\"progress\"");
    let coordinator = Coordinator::default();
    let leaving = |_| -> std::io::Result<()> { panic!("nothing leaves") };
    let error = site
        .egress
        .send_update(&coordinator, offer(), &manifest(), Zeros::default(), leaving)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "kept here by the policy: policy.toml:4: `egress.allow` refuses `update`");
    assert!(coordinator.heard.lock().unwrap().is_empty());
    let rule = "policy.toml:4: `egress.allow` refuses `update`".to_owned();
    assert_eq!(site.events(), [(Kind::Update, LedgerEvent::Withheld { rule })]);
}

#[tokio::test]
async fn an_update_is_recorded_before_it_leaves_and_its_receipt_after() {
    let site = site("\"update\"");
    let coordinator = Coordinator::default();
    let leaving = |stage| -> std::io::Result<()> {
        let has_left = !coordinator.heard.lock().unwrap().is_empty();
        assert_eq!(has_left, stage != Stage::Leaving, "{stage:?}");
        Ok(())
    };
    site.egress.send_update(&coordinator, offer(), &manifest(), Zeros::default(), leaving).await.unwrap();
    assert_eq!(*coordinator.heard.lock().unwrap(), ["offer-update", "commit-update"]);
    let receipt = Some(manifest().hash().0);
    assert_eq!(
        site.events(),
        [(Kind::Update, LedgerEvent::Sending), (Kind::Update, LedgerEvent::Received { receipt })]
    );
}

#[tokio::test]
async fn an_interrupted_update_sends_only_what_is_missing() {
    let site = site("\"update\"");
    let coordinator = Coordinator { break_after: Mutex::new(Some(2)), ..Coordinator::default() };
    let source = Zeros::default();
    let broken = site.egress.send_update(&coordinator, offer(), &manifest(), source.clone(), nothing).await;
    assert!(matches!(broken, Err(EgressError::Link(LinkError::Reset))));
    site.egress.send_update(&coordinator, offer(), &manifest(), source.clone(), nothing).await.unwrap();
    assert_eq!(*source.0.lock().unwrap(), [0, 1, 2]);
    assert_eq!(site.events()[1].1, LedgerEvent::Unanswered);
}

async fn send(
    site: &Site,
    coordinator: &Coordinator,
    keep: &(dyn Fn() -> std::io::Result<()> + Sync),
) -> Result<Receipt, EgressError> {
    site.egress
        .send_update(coordinator, offer(), &manifest(), Zeros::default(), |stage| match stage {
            Stage::Delivered => keep(),
            Stage::Leaving | Stage::Wanted => Ok(()),
        })
        .await
}

#[tokio::test]
async fn the_site_keeps_what_it_learnt_when_all_is_delivered_and_before_it_can_count() {
    let site = site("\"update\"");
    let coordinator = Coordinator { break_after: Mutex::new(Some(2)), ..Coordinator::default() };
    let seen = Mutex::new(Vec::new());
    let keep = || -> std::io::Result<()> {
        let chunks = coordinator.kept.lock().unwrap().len();
        let asked = coordinator.heard.lock().unwrap().contains(&"commit-update");
        seen.lock().unwrap().push((chunks, asked));
        Ok(())
    };
    // The link breaks in mid-upload: nothing is kept.
    assert!(send(&site, &coordinator, &keep).await.is_err());
    assert!(seen.lock().unwrap().is_empty());
    // What cannot be kept is not to count.
    let full = || -> std::io::Result<()> { Err(std::io::ErrorKind::StorageFull.into()) };
    assert!(send(&site, &coordinator, &full).await.is_err());
    assert!(!coordinator.heard.lock().unwrap().contains(&"commit-update"));
    send(&site, &coordinator, &keep).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(3, false)]);
}

#[tokio::test]
async fn an_answer_that_found_no_room_is_given_and_written_before_anything_else_leaves() {
    let site = site("\"update\", \"progress\"");
    let coordinator = Coordinator::default();
    let fills = || -> std::io::Result<()> {
        site.append_to(Path::new("/dev/full"));
        Ok(())
    };
    let receipt = send(&site, &coordinator, &fills).await.unwrap();
    assert_eq!(receipt.update, manifest().hash());
    let refused = site.egress.send(&coordinator, progress()).await;
    assert!(matches!(refused, Err(EgressError::Ledger(_))), "{refused:?}");
    assert_eq!(*coordinator.heard.lock().unwrap(), ["offer-update", "commit-update"]);
    site.append_to(&site.folder.path().join("egress.jsonl"));
    site.egress.send(&coordinator, progress()).await.unwrap();
    let receipt = Some(manifest().hash().0);
    assert_eq!(
        site.events(),
        [
            (Kind::Update, LedgerEvent::Sending),
            (Kind::Update, LedgerEvent::Received { receipt }),
            (Kind::Progress, LedgerEvent::Sending),
            (Kind::Progress, LedgerEvent::Received { receipt: None }),
        ]
    );
}

#[tokio::test]
async fn a_lost_model_goes_back_where_the_policy_names_it_and_no_byte_of_one_that_came_back_meanwhile() {
    let site = site("\"model\"");
    let (coordinator, source) = (Coordinator::default(), Zeros::default());
    for _ in 0..2 {
        site.egress.return_model(&coordinator, RETURNED, &manifest(), source.clone()).await.unwrap();
    }
    assert_eq!(*source.0.lock().unwrap(), [0, 1, 2]);
    let heard = ["return-artifact", "commit-update", "return-artifact"];
    assert_eq!(*coordinator.heard.lock().unwrap(), heard);
    let once = [(Kind::Model, LedgerEvent::Sending), (Kind::Model, LedgerEvent::Received { receipt: None })];
    assert_eq!(site.events(), [once.clone(), once].concat());
    verify(&site.folder.path().join("egress.jsonl"), |entry| {
        assert_eq!((entry.content, entry.bytes), (manifest().hash().0, 24));
    })
    .unwrap();
}

#[tokio::test]
async fn a_policy_of_before_keeps_the_model_and_the_ledger_says_so() {
    let site = site("\"label-manifest\", \"progress\", \"update\", \"evaluation-report\"");
    let coordinator = Coordinator::default();
    let kept = site.egress.return_model(&coordinator, RETURNED, &manifest(), Zeros::default()).await;
    assert!(matches!(kept, Err(EgressError::Withheld(_))), "{kept:?}");
    assert!(coordinator.heard.lock().unwrap().is_empty());
    let rule = "policy.toml:4: `egress.allow` refuses `model`".to_owned();
    assert_eq!(site.events(), [(Kind::Model, LedgerEvent::Withheld { rule })]);
}

#[tokio::test]
async fn a_refusal_is_recorded_with_its_code() {
    let site = site("\"progress\"");
    let coordinator = Coordinator { refuse: true, ..Coordinator::default() };
    let error = site.egress.send(&coordinator, progress()).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused(refusal) if refusal.code == RefusalCode::RoundClosed));
    assert_eq!(site.events()[1].1, LedgerEvent::Refused { code: "round-closed".to_owned() });
}

#[tokio::test]
async fn progress_that_comes_too_soon_is_dropped_without_a_line() {
    let site = site("\"progress\"");
    let coordinator = Coordinator::default();
    site.egress.send(&coordinator, progress()).await.unwrap();
    assert!(matches!(site.egress.send(&coordinator, progress()).await, Err(EgressError::Withheld(_))));
    assert_eq!(coordinator.heard.lock().unwrap().len(), 1);
    assert_eq!(site.events().len(), 2);
}

fn report(fill: u8) -> Outbound {
    let signed = common::wire::SignedBytes { bytes: vec![fill; 3 << 19], signature: [0; 64] };
    Outbound::EvaluationReport { study: study(), signed }
}

#[tokio::test]
async fn what_exceeds_the_day_waits_for_the_next_and_what_left_already_does_not() {
    let site = site("\"evaluation-report\"");
    let coordinator = Coordinator::default();
    site.egress.send(&coordinator, report(1)).await.unwrap();
    // As after a broken link: it counts already.
    site.egress.send(&coordinator, report(1)).await.unwrap();
    let error = site.egress.send(&coordinator, report(2)).await.unwrap_err();
    let EgressError::Waits { refusal, message } = error else { panic!("{error:?}") };
    assert_eq!(refusal.rule, "egress.max_mib_per_day");
    assert_eq!(*message, report(2).summary());
    let now = jiff::Timestamp::now();
    let tomorrow = now.checked_add(jiff::SignedDuration::from_hours(24)).unwrap();
    assert!(site.egress.may_leave(&message, tomorrow));
    assert_eq!(coordinator.heard.lock().unwrap().len(), 2);
    assert!(matches!(site.events().last(), Some((Kind::EvaluationReport, LedgerEvent::Withheld { .. }))));
}

#[tokio::test]
async fn a_used_invite_is_recorded_as_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("egress.jsonl");
    let mut ledger = Ledger::open(&path, |_| ()).unwrap();
    let token = common::wire::EnrollToken([1; 32]);
    let request = EnrollRequest { token, csr_der: vec![1, 2, 3], signing_key: [0; 32] };
    let error = enrol(&Coordinator::default(), &mut ledger, request).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused(refusal) if refusal.code == RefusalCode::InviteUsed));
    assert_eq!(verify(&path, |_| ()).unwrap().lines, 2);
}

/// The guide's row for a kind of message: what a data-protection officer reads.
fn row(kind: Kind) -> &'static str {
    let guide = include_str!("../../../docs/hospital.md");
    let begin = format!("| `{}` |", kind.name());
    guide.lines().find(|line| line.starts_with(&begin)).unwrap()
}

fn keys(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| [BTreeSet::from([key.clone()]), keys(value)])
            .flatten()
            .collect(),
        Value::Array(values) => values.iter().flat_map(keys).collect(),
        _ => BTreeSet::new(),
    }
}

#[test]
fn the_guide_names_every_field_of_the_documents_that_leave() {
    let class = ClassId::new(6).unwrap();
    let site: SiteId = "north".parse().unwrap();
    let taxonomy = TaxonomyDigest(Digest::of(b"taxonomy"));
    let (dataset, patient, classes) = ("lits", "anna", BTreeSet::from([class]));
    let scan = CaseLabels { dataset, patient, annotated: &classes, present: &classes, pseudo: true };
    let manifest = LabelManifest::count(site.clone(), taxonomy, [scan], 1);

    let subject = ReportSubject {
        site,
        model: ArtifactHash(Digest::of(b"model")),
        round: RoundId(1),
        study: study(),
        taxonomy,
    };
    let outcomes = [
        CaseOutcome::Present { dice: 0.5, nsd: 0.5, predicted_ml: 1.0, voxels: None },
        CaseOutcome::Absent { false_positive_volume_ml: 1.0 },
    ];
    let score = |(number, outcome)| CaseScore { patient: number, scan: number, class, outcome };
    let scores: Vec<CaseScore> = (0..).zip(outcomes).map(score).collect();
    let report = EvaluationReport::summarise(subject, &scores, |_| 2.0, 1, 0);
    assert!(report.classes[0].present.is_some() && report.classes[0].absent.is_some());

    let documents = [
        (Kind::LabelManifest, serde_json::to_value(&manifest).unwrap()),
        (Kind::EvaluationReport, serde_json::to_value(&report).unwrap()),
    ];
    for (kind, document) in documents {
        for key in keys(&document) {
            assert!(row(kind).contains(&format!("`{key}`")), "{}: `{key}`", kind.name());
        }
    }
}

#[test]
fn the_guide_has_a_row_for_every_kind() {
    for kind in [Kind::Enrolment, Kind::Answer].into_iter().chain(Kind::GOVERNED) {
        assert!(!row(kind).is_empty());
    }
}

#[test]
fn the_guide_names_every_reason_of_an_answer() {
    use DeclineReason::{Busy, DataError, Evaluator, NoData, NotApproved, Policy, TrainingFailed};
    for reason in [NotApproved, Policy, TrainingFailed, Evaluator, NoData, DataError, Busy] {
        assert!(row(Kind::Answer).contains(&format!("`{}`", reason.code())), "{}", reason.code());
    }
}
