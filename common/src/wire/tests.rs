//! Golden bytes of every variant, and hostile bytes made from them.

use proptest::prelude::*;

use super::*;
use crate::artifact::{ArtifactManifest, Dtype, LayoutError, MAX_TENSORS, TensorLayout, TensorSpec};
use crate::ids::{ArtifactHash, AttemptId, ChunkHash, Digest, Role, RoundId, StudyDigest};

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn study() -> StudyDigest {
    StudyDigest(digest(0xa1))
}

fn model() -> ArtifactHash {
    ArtifactHash(digest(0xb2))
}

fn attempt() -> AttemptId {
    AttemptId::from_bytes([0xc3; 16])
}

fn manifest() -> Manifest {
    let tensor = TensorSpec { name: "a.weight".to_owned(), dtype: Dtype::F32, shape: vec![2, 300] };
    Manifest { tensors: vec![tensor], chunks: vec![ChunkHash(digest(0xd4))] }
}

fn signed() -> SignedBytes {
    SignedBytes { bytes: b"{}".to_vec(), signature: [0xe5; 64] }
}

fn requests() -> Vec<Request> {
    let hello = Hello {
        minor_min: 0,
        minor_max: 300,
        agent_version: "0.1.0".into(),
        capabilities: vec!["resume".into()],
    };
    let offer = OfferedUpdate {
        study: study(),
        round: RoundId(7),
        base: model(),
        attempt: attempt(),
        steps: 100,
        manifest: manifest(),
    };
    let (study, round, base, attempt) = (study(), RoundId(7), model(), attempt());
    let mut all = vec![
        Request::Hello(hello),
        Request::GetStudy { study },
        Request::RegisterManifest { study, manifest: signed() },
        Request::ApproveStudy { study },
        Request::GetArtifact { artifact: base },
        Request::GetChunks { artifact: base, indices: vec![0, 250, 251, 70_000] },
        Request::AcceptRound { study, round, base },
    ];
    let reasons = [
        DeclineReason::NotApproved,
        DeclineReason::Policy,
        DeclineReason::TrainingFailed,
        DeclineReason::Evaluator,
        DeclineReason::NoData,
        DeclineReason::DataError,
        DeclineReason::Busy,
    ];
    all.extend(reasons.map(|reason| Request::DeclineRound { study, round, reason }));
    all.extend([
        Request::Progress { study, round, step: 5, steps: 100, loss: 0.5 },
        Request::OfferUpdate(offer),
        Request::PutChunks { attempt, count: 1 },
        Request::CommitUpdate { attempt },
        Request::PutReport { study, report: signed() },
        Request::ReturnArtifact { attempt, manifest: manifest() },
    ]);
    all
}

fn replies() -> Vec<Reply> {
    let welcome = Welcome {
        site: "north".parse().unwrap(),
        role: Role::Trainer,
        consortium: "thorax".into(),
        minor: 0,
    };
    let receipt = Receipt { study: study(), round: RoundId(7), attempt: attempt(), update: model() };
    vec![
        Reply::Refused(Refusal::new(RefusalCode::BadRequest, "no")),
        Reply::Done,
        Reply::Welcome(welcome),
        Reply::Study { bytes: b"{}".to_vec() },
        Reply::Artifact { manifest: manifest() },
        Reply::Chunk(ChunkHeader { index: 3, len: 1 << 20 }),
        Reply::UpdateWanted { missing: vec![1, 2] },
        Reply::Stored { chunks: 2 },
        Reply::Receipt(receipt),
        Reply::ReportReceipt { report: digest(0xf6) },
    ]
}

fn notices() -> Vec<Notice> {
    let (study, round, model) = (study(), RoundId(7), model());
    let task = RoundTask { study, round, base: model, steps: 100, remaining_ms: 600_000 };
    let mut all = vec![
        Notice::StudyOffered { study, name: "demo".into() },
        Notice::RoundOpened(task),
        Notice::RoundClosed { study, round, model: Some(model), outcome: RoundOutcome::Committed },
        Notice::RoundClosed { study, round, model: None, outcome: RoundOutcome::Aborted },
        Notice::EvaluationRequested { study, round, model },
        Notice::StudyPaused { study, reason: "maintenance".into() },
        Notice::StudyFinished { study, model },
    ];
    let codes =
        [GoodbyeCode::Stopping, GoodbyeCode::Replaced, GoodbyeCode::Revoked, GoodbyeCode::CertificateExpired];
    all.extend(codes.map(|code| Notice::Goodbye { code }));
    all.extend([Notice::Alive, Notice::ArtifactWanted { artifact: model }]);
    all
}

fn enrolments() -> (EnrollRequest, Vec<EnrollReply>) {
    let request =
        EnrollRequest { token: EnrollToken([0x11; 32]), csr_der: vec![0x30, 0], signing_key: [0x22; 32] };
    let enrolled = Enrolled {
        chain_der: vec![vec![0x30, 1], vec![0x30, 2]],
        root_der: vec![0x30, 3],
        site: "south".parse().unwrap(),
        role: Role::Evaluator,
        consortium: "thorax".into(),
    };
    let refused = Refusal::new(RefusalCode::InviteUsed, "used");
    (request, vec![EnrollReply::Enrolled(enrolled), EnrollReply::Refused(refused)])
}

#[test]
fn a_tensor_in_bfloat16_is_told_from_one_in_f32_by_one_byte() {
    let reply = |dtype| {
        let tensor = TensorSpec { name: "a".to_owned(), dtype, shape: vec![2] };
        Reply::Artifact {
            manifest: Manifest { tensors: vec![tensor], chunks: vec![ChunkHash(digest(0xd4))] },
        }
    };
    let (wide, narrow) = (reply(Dtype::F32), reply(Dtype::BF16));
    let (wide, bytes) = (codec::encode(&wide).unwrap(), codec::encode(&narrow).unwrap());
    assert_eq!(wide.len(), bytes.len());
    let differ: Vec<_> = wide.iter().zip(&bytes).filter(|(a, b)| a != b).collect();
    assert_eq!(differ, [(&0, &1)]);
    assert_eq!(codec::decode::<Reply>(&bytes).unwrap(), narrow);
}

/// One line a message: its encoding in hexadecimal, runs of the same byte as `xx*n`.
fn golden<M: Message + std::fmt::Debug + PartialEq>(messages: &[M]) -> String {
    let line = |message: &M| {
        let body = codec::encode(message).unwrap();
        assert_eq!(&codec::decode::<M>(&body).unwrap(), message, "decode(encode(x)) == x");
        let runs = body.chunk_by(|a, b| a == b).map(|run| match run.len() {
            1..4 => format!("{:02x}", run[0]).repeat(run.len()),
            n => format!("{:02x}*{n}", run[0]),
        });
        runs.collect::<Vec<_>>().join(" ")
    };
    messages.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn requests_keep_their_bytes() {
    insta::assert_snapshot!(golden(&requests()));
}

#[test]
fn replies_keep_their_bytes() {
    insta::assert_snapshot!(golden(&replies()));
}

#[test]
fn notices_keep_their_bytes() {
    insta::assert_snapshot!(golden(&notices()));
}

#[test]
fn enrolment_keeps_its_bytes() {
    let (request, replies) = enrolments();
    insta::assert_snapshot!(format!("{}\n{}", golden(&[request]), golden(&replies)));
}

#[test]
fn refusal_codes_keep_their_numbers_and_names() {
    let number = |code: &RefusalCode| codec::encode(&Reply::Refused(Refusal::new(*code, ""))).unwrap()[1];
    let lines: Vec<_> = RefusalCode::ALL.iter().map(|code| format!("{} {code}", number(code))).collect();
    insta::assert_snapshot!(lines.join("\n"));
    for code in RefusalCode::ALL {
        assert_eq!(RefusalCode::from_code(code.code()), Some(*code), "names are unique");
    }
}

/// Every variant of an enum must be in its golden list: the first byte of a body is the variant's number.
#[test]
fn every_variant_has_golden_bytes() {
    fn numbers<M: Message>(messages: &[M]) -> Vec<u8> {
        let mut numbers: Vec<u8> = messages.iter().map(|m| codec::encode(m).unwrap()[0]).collect();
        numbers.dedup();
        numbers
    }
    fn next_is_unknown<M: Message>(count: usize) {
        let mut body = vec![0; 512];
        body[0] = count as u8;
        let error = codec::decode::<M>(&body).err().unwrap();
        assert!(error.to_string().contains("UnexpectedVariant"), "{}: variant {count}: {error}", M::NAME);
    }
    let (requests, replies, notices) = (numbers(&requests()), numbers(&replies()), numbers(&notices()));
    for list in [&requests, &replies, &notices] {
        assert_eq!(*list, (0..list.len() as u8).collect::<Vec<_>>());
    }
    next_is_unknown::<Request>(requests.len());
    next_is_unknown::<Reply>(replies.len());
    next_is_unknown::<Notice>(notices.len());
    next_is_unknown::<EnrollReply>(2);
}

#[test]
fn bytes_after_a_message_are_refused() {
    let mut body = codec::encode(&Reply::Done).unwrap();
    body.push(0);
    let error = codec::decode::<Reply>(&body).unwrap_err();
    assert_eq!(error, CodecError::Trailing { name: "reply", left: 1 });
}

#[test]
fn a_message_beyond_its_limit_is_neither_sent_nor_read() {
    let csr_der = vec![0; 20_000];
    let large = EnrollRequest { token: EnrollToken([0; 32]), csr_der, signing_key: [0; 32] };
    assert!(matches!(codec::encode(&large), Err(CodecError::TooLarge { limit: 16_384, .. })));
    let body = vec![0; 16_385];
    assert!(matches!(codec::decode::<EnrollRequest>(&body), Err(CodecError::TooLarge { got: 16_385, .. })));
}

#[test]
fn an_announced_length_beyond_the_limit_allocates_nothing() {
    // `Study` with 2^40 bytes to come: the limit refuses it before any memory is taken.
    let mut body = vec![3, 253];
    body.extend_from_slice(&(1u64 << 40).to_le_bytes());
    let error = codec::decode::<Reply>(&body).unwrap_err();
    assert!(error.to_string().contains("LimitExceeded"), "{error}");
}

#[test]
fn a_manifest_is_believed_only_when_it_is_a_layout() {
    assert!(ArtifactManifest::try_from(manifest()).is_ok());
    let mut twice = manifest();
    twice.tensors.push(twice.tensors[0].clone());
    assert_eq!(ArtifactManifest::try_from(twice), Err(LayoutError::Order { index: 1 }));
    let short = Manifest { chunks: vec![], ..manifest() };
    assert_eq!(ArtifactManifest::try_from(short), Err(LayoutError::Chunks { expected: 1, got: 0 }));
}

#[test]
fn the_largest_artifact_fits_its_messages() {
    let shape = vec![1, 1, 1, 1, 1, 512 * 1024 - 1];
    let spec = |k| TensorSpec { name: format!("{k:0>200}"), dtype: Dtype::F32, shape: shape.clone() };
    let tensors: Vec<TensorSpec> = (0..MAX_TENSORS).map(spec).collect();
    let chunks = TensorLayout::new(tensors.clone()).unwrap().spans().len();
    let manifest = Manifest { tensors, chunks: vec![ChunkHash(digest(1)); chunks] };
    let reply = Reply::Artifact { manifest: manifest.clone() };
    assert_eq!(codec::decode::<Reply>(&codec::encode(&reply).unwrap()), Ok(reply));
    assert!(ArtifactManifest::try_from(manifest).is_ok());
    let request = Request::GetChunks { artifact: model(), indices: (0..chunks as u32).collect() };
    assert_eq!(codec::decode::<Request>(&codec::encode(&request).unwrap()), Ok(request));
}

#[test]
fn words_cannot_move_a_terminal() {
    assert_eq!(Words::new("a\x1b[2Jb\nc").as_str(), "a [2Jb c");
    assert_eq!(Words::new("é".repeat(400)).as_str().len(), Words::MAX_BYTES);
    let body = codec::encode(&Reply::Refused(Refusal::new(RefusalCode::Internal, "ab"))).unwrap();
    let mut hostile = body.clone();
    *hostile.last_mut().unwrap() = 0x1b;
    assert!(codec::decode::<Reply>(&body).is_ok());
    assert!(matches!(codec::decode::<Reply>(&hostile), Err(CodecError::Malformed { .. })));
}

#[test]
fn of_what_a_site_can_unknown_names_say_nothing() {
    let says = |names: &[&str]| Hello {
        minor_min: 0,
        minor_max: 1,
        agent_version: "0.1.0".into(),
        capabilities: names.iter().map(|name| Words::new(*name)).collect(),
    };
    assert!(says(&["resume", "return-artifacts"]).can(Hello::RETURNS_ARTIFACTS));
    assert!(!says(&["return-artifact", ""]).can(Hello::RETURNS_ARTIFACTS) && !says(&[]).can(""));
}

#[test]
fn the_highest_common_minor_version_is_agreed() {
    assert_eq!(agree_minor((0, 3), (2, 9)), Some(3));
    assert_eq!(agree_minor((0, 1), (2, 9)), None);
    assert_eq!(agree_minor((4, 5), (0, 4)), Some(4));
}

/// Decodes as every type. What decodes must encode to the same bytes again or be a longer form of the same value; no
/// input may panic.
fn decode_as_all(bytes: &[u8]) {
    fn try_one<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
        if let Ok(message) = codec::decode::<M>(bytes) {
            let again = codec::encode(&message).expect("what was decoded fits its limit");
            assert!(again.len() <= bytes.len());
        }
    }
    try_one::<Request>(bytes);
    try_one::<Reply>(bytes);
    try_one::<Notice>(bytes);
    try_one::<ChunkHeader>(bytes);
    try_one::<EnrollRequest>(bytes);
    try_one::<EnrollReply>(bytes);
    if let Ok(Reply::Artifact { manifest }) = codec::decode(bytes) {
        let _ = ArtifactManifest::try_from(manifest);
    }
}

fn all_bodies() -> Vec<Vec<u8>> {
    fn bodies<M: Message>(messages: &[M]) -> impl Iterator<Item = Vec<u8>> {
        messages.iter().map(|message| codec::encode(message).unwrap())
    }
    let (request, replies_) = enrolments();
    let mut all: Vec<Vec<u8>> =
        bodies(&requests()).chain(bodies(&replies())).chain(bodies(&notices())).collect();
    all.extend(bodies(&[request]).chain(bodies(&replies_)));
    all
}

#[test]
fn no_flipped_bit_and_no_cut_of_a_message_panics() {
    for body in all_bodies() {
        for cut in 0..body.len() {
            decode_as_all(&body[..cut]);
        }
        for bit in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            decode_as_all(&flipped);
        }
    }
}

proptest! {
    #[test]
    fn no_random_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        decode_as_all(&bytes);
    }
}
