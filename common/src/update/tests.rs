//! Offers, chunks and whole updates, good and bad.

use proptest::prelude::*;

use super::*;
use crate::artifact::{ArtifactManifest, CHUNK_BYTES, Dtype, TensorLayout, TensorSpec};
use crate::bfloat16;
use crate::ids::{ArtifactHash, AttemptId, Digest, RoundId, StudyDigest};
use crate::wire::{ChunkError, OfferedUpdate};

/// Numbers of a full chunk.
const CHUNK: usize = CHUNK_BYTES as usize / 4;

fn layout(tensors: &[(&str, usize)]) -> TensorLayout {
    let spec = |&(name, len): &(&str, usize)| TensorSpec {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: vec![len as u32],
    };
    TensorLayout::new(tensors.iter().map(spec).collect()).unwrap()
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn expectation(layout: &TensorLayout) -> UpdateExpectation {
    UpdateExpectation {
        site: "north".parse().unwrap(),
        study: StudyDigest(Digest::of(b"study")),
        round: RoundId(3),
        base: ArtifactHash(Digest::of(b"base")),
        layout: layout.clone(),
        max_norm: None,
    }
}

fn offer(layout: &TensorLayout, data: &[u8]) -> UpdateOffer {
    let UpdateExpectation { study, round, base, .. } = expectation(layout);
    let manifest = ArtifactManifest::of(layout.clone(), data);
    UpdateOffer { study, round, base, attempt: AttemptId::from_bytes([7; 16]), steps: 10, manifest }
}

fn chunk<'a>(layout: &TensorLayout, data: &'a [u8], index: u32) -> &'a [u8] {
    let span = layout.spans()[index as usize];
    &data[span.offset as usize..span.offset as usize + span.len as usize]
}

fn verify(
    layout: &TensorLayout,
    numbers: &[f32],
    order: &[u32],
    max_norm: Option<f64>,
) -> Result<VerifiedUpdate, Rejection> {
    let data = bytes(numbers);
    let expectation = UpdateExpectation { max_norm, ..expectation(layout) };
    let mut verifier = UpdateVerifier::new(expectation, offer(layout, &data))?;
    for &index in order {
        verifier.push_chunk(index, chunk(layout, &data, index))?;
    }
    verifier.finish()
}

#[test]
fn a_good_update_is_believed_with_its_norm() {
    let update = verify(&layout(&[("a", 2), ("b", 1)]), &[3.0, 0.0, -4.0], &[1, 0], None).unwrap();
    assert_eq!((update.norm(), update.steps(), update.round()), (5.0, 10, RoundId(3)));
    assert_eq!(update.site().as_str(), "north");
}

#[test]
fn a_chunk_that_came_twice_counts_once() {
    let update = verify(&layout(&[("a", 2)]), &[3.0, 4.0], &[0, 0], Some(5.0)).unwrap();
    assert_eq!(update.norm(), 5.0);
}

#[test]
fn a_missing_chunk_is_named_and_may_still_come() {
    let layout = layout(&[("a", 1), ("b", 1)]);
    let data = bytes(&[1.0, 2.0]);
    let mut verifier = UpdateVerifier::new(expectation(&layout), offer(&layout, &data)).unwrap();
    verifier.push_chunk(1, chunk(&layout, &data, 1)).unwrap();
    assert_eq!(verifier.missing(), [0]);
    assert_eq!(verifier.finish().unwrap_err(), Rejection::Incomplete { missing: 1, chunks: 2 });
}

#[test]
fn other_bytes_than_the_manifest_names_are_rejected() {
    let layout = layout(&[("a", 2)]);
    let data = bytes(&[1.0, 2.0]);
    let mut verifier = UpdateVerifier::new(expectation(&layout), offer(&layout, &data)).unwrap();
    let wrong = [
        (0, bytes(&[1.0, 3.0]), ChunkError::Hash { index: 0 }),
        (0, bytes(&[1.0]), ChunkError::Length { index: 0, expected: 8, got: 4 }),
        (1, data.clone(), ChunkError::Unknown { index: 1, chunks: 1 }),
    ];
    for (index, bytes, error) in wrong {
        assert_eq!(verifier.push_chunk(index, &bytes), Err(Rejection::Chunk(error)));
    }
    assert_eq!(verifier.missing(), [0]);
    verifier.push_chunk(0, &data).unwrap();
    assert!(verifier.finish().is_ok());
}

#[test]
fn a_chunk_that_was_checked_for_another_update_does_not_count() {
    let layout = layout(&[("a", 1), ("b", 1)]);
    let (ours, theirs) = (bytes(&[1.0, 2.0]), bytes(&[3.0, 2.0]));
    let other = ArtifactManifest::of(layout.clone(), &theirs);
    let mut verifier = UpdateVerifier::new(expectation(&layout), offer(&layout, &ours)).unwrap();
    let foreign = CheckedChunk::check(&other, 0, chunk(&layout, &theirs, 0)).unwrap();
    assert_eq!(verifier.count(&foreign), Err(Rejection::Chunk(ChunkError::Hash { index: 0 })));
    // The second is the same in both: that is all that content-addressing asks.
    let shared = CheckedChunk::check(&other, 1, chunk(&layout, &theirs, 1)).unwrap();
    assert_eq!((verifier.count(&shared), verifier.count(&shared)), (Ok(true), Ok(false)));
    assert_eq!(verifier.missing(), [0]);
}

#[test]
fn chunks_of_zeros_are_known_by_their_hash() {
    let layout = layout(&[("a", CHUNK + 3), ("b", 2), ("c", 2)]);
    let mut numbers = vec![0.0; CHUNK + 7];
    numbers[CHUNK + 5] = 1.0;
    let manifest = offer(&layout, &bytes(&numbers)).manifest;
    let mut zeros = ZeroChunks::default();
    let lengths: Vec<_> = (0..5).map(|i| zeros.content(&manifest, i).map(<[u8]>::len)).collect();
    assert_eq!(lengths, [Some(4 * CHUNK), Some(12), Some(8), None, None]);
    // Minus zero is another number to a hash, and travels.
    let minus = offer(&layout, &bytes(&vec![-0.0; CHUNK + 7])).manifest;
    assert_eq!(zeros.content(&minus, 0), None);
}

#[test]
fn a_number_that_is_not_finite_is_named() {
    let layout = layout(&[("a", 3), ("b", CHUNK + 4)]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut numbers = vec![0.0; 3 + CHUNK + 4];
        numbers[3 + CHUNK + 2] = bad;
        let error = verify(&layout, &numbers, &[0, 1, 2], None).unwrap_err();
        assert_eq!(error, Rejection::NotFinite { tensor: "b".to_owned(), element: CHUNK as u64 + 2 });
        assert_eq!(error.code(), "not-finite");
    }
}

#[test]
fn the_largest_numbers_do_not_overflow_the_norm() {
    let update = verify(&layout(&[("a", 2)]), &[f32::MAX, f32::MIN], &[0], None).unwrap();
    assert!(update.norm().is_finite());
}

#[test]
fn a_norm_above_the_limit_is_rejected() {
    let error = verify(&layout(&[("a", 2)]), &[3.0, 4.0], &[0], Some(4.9)).unwrap_err();
    assert_eq!(error, Rejection::NormExceeded { limit: 4.9, got: 5.0 });
}

#[test]
fn an_offer_of_something_else_is_rejected_before_any_byte() {
    let layout_ = layout(&[("a", 2)]);
    let good = offer(&layout_, &[0; 8]);
    let code = |offer: UpdateOffer| UpdateVerifier::new(expectation(&layout_), offer).unwrap_err().code();
    assert_eq!(code(UpdateOffer { round: RoundId(2), ..good.clone() }), "round-closed");
    let other = Digest::of(b"other");
    assert_eq!(code(UpdateOffer { base: ArtifactHash(other), ..good.clone() }), "wrong-base");
    assert_eq!(code(UpdateOffer { study: StudyDigest(other), ..good.clone() }), "wrong-study");
    for tensors in [&[("a", 3)][..], &[("b", 2)], &[("a", 2), ("b", 2)]] {
        let layout = layout(tensors);
        let manifest = ArtifactManifest::of(layout.clone(), &vec![0; layout.bytes() as usize]);
        assert_eq!(code(UpdateOffer { manifest, ..good.clone() }), "wrong-layout");
    }
}

/// The layout with each tensor in bfloat16, and data of it.
fn narrow(layout: &TensorLayout, numbers: &[f32]) -> (TensorLayout, Vec<u8>) {
    (layout.in_dtype(Dtype::BF16), numbers.iter().flat_map(|&number| bfloat16::round(number)).collect())
}

fn verify_narrow(layout: &TensorLayout, data: &[u8]) -> Result<VerifiedUpdate, Rejection> {
    let mut verifier = UpdateVerifier::new(expectation(layout), offer(layout, data))?;
    for index in verifier.missing() {
        verifier.push_chunk(index, chunk(layout, data, index))?;
    }
    verifier.finish()
}

#[test]
fn an_update_has_the_format_that_the_study_names_and_no_other() {
    let wide = layout(&[("a", 2)]);
    let (half, data) = narrow(&wide, &[3.0, -4.0]);
    let offered = UpdateVerifier::new(expectation(&wide), offer(&half, &data)).unwrap_err();
    let words = "the update's tensors differ from the model's: a: in bf16, the study's updates are in f32";
    assert_eq!((offered.code(), offered.to_string().as_str()), ("wrong-layout", words));
    let offered = UpdateVerifier::new(expectation(&half), offer(&wide, &[0; 8])).unwrap_err();
    let words = "the update's tensors differ from the model's: a: in f32, the study's updates are in bf16";
    assert_eq!((offered.code(), offered.to_string().as_str()), ("wrong-layout", words));
    assert_eq!(verify_narrow(&half, &data).unwrap().norm(), 5.0);
}

#[test]
fn an_update_in_bfloat16_has_the_norm_of_the_same_numbers_in_f32() {
    let layout = layout(&[("a", CHUNK + 5), ("b", 3)]);
    let numbers: Vec<f32> =
        (0..CHUNK + 8).map(|k| bfloat16::widen(bfloat16::round(k as f32 / 7.0))).collect();
    let (half, data) = narrow(&layout, &numbers);
    let (narrow, wide) =
        (verify_narrow(&half, &data).unwrap(), verify(&layout, &numbers, &[0, 1, 2], None).unwrap());
    assert_eq!(narrow.norm().to_bits(), wide.norm().to_bits());
}

#[test]
fn a_bfloat16_that_is_not_finite_is_named() {
    let tensors = layout(&[("a", 3), ("b", CHUNK + 4)]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut numbers = vec![0.0; 3 + CHUNK + 4];
        numbers[3 + CHUNK + 2] = bad;
        let (half, data) = narrow(&tensors, &numbers);
        let expected = Rejection::NotFinite { tensor: "b".to_owned(), element: CHUNK as u64 + 2 };
        assert_eq!(verify_narrow(&half, &data).unwrap_err(), expected);
    }
    // What a site rounds is at most the largest number; what it would have been otherwise is refused.
    let (half, data) = narrow(&layout(&[("a", 1)]), &[f32::MAX]);
    assert!(verify_narrow(&half, &data).is_ok());
    assert_eq!(verify_narrow(&half, &[0x80, 0x7f]).unwrap_err().code(), "not-finite");
}

#[test]
fn an_offer_travels_and_comes_back() {
    let offer = offer(&layout(&[("a", 2)]), &[0; 8]);
    assert_eq!(UpdateOffer::try_from(OfferedUpdate::from(&offer)), Ok(offer.clone()));
    let mut broken = OfferedUpdate::from(&offer);
    broken.manifest.chunks.clear();
    assert!(matches!(UpdateOffer::try_from(broken), Err(Rejection::Manifest(_))));
}

#[test]
fn what_was_found_is_believed_of_the_same_content_alone() {
    let layout = layout(&[("a", 2)]);
    let (data, other) = (bytes(&[3.0, 4.0]), bytes(&[3.0, 5.0]));
    let found = verify(&layout, &[3.0, 4.0], &[0], None).unwrap().verification();
    let verifier = |data: &[u8], max_norm| {
        let expectation = UpdateExpectation { max_norm, ..expectation(&layout) };
        UpdateVerifier::new(expectation, offer(&layout, data)).unwrap()
    };
    let mut same = verifier(&data, None);
    assert!(same.recall(&found));
    assert_eq!(same.missing(), [0u32; 0]);
    assert_eq!(same.finish().unwrap().norm(), 5.0);

    let mut changed = verifier(&other, None);
    assert!(!changed.recall(&found));
    assert_eq!(changed.finish().unwrap_err(), Rejection::Incomplete { missing: 1, chunks: 1 });

    let mut bounded = verifier(&data, Some(4.0));
    assert!(bounded.recall(&found));
    assert_eq!(bounded.finish().unwrap_err(), Rejection::NormExceeded { limit: 4.0, got: 5.0 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_order_of_chunks_does_not_change_the_norm(
        values in proptest::collection::vec(-1e20f32..1e20, 8),
        order in Just((0u32..8).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let layout = layout(&names.map(|name| (name, 1)));
        let sorted: Vec<u32> = (0..8).collect();
        let one = verify(&layout, &values, &sorted, None).unwrap().norm();
        let other = verify(&layout, &values, &order, None).unwrap().norm();
        prop_assert_eq!(one.to_bits(), other.to_bits());
    }
}
