//! Frames and chunks: limits, corruption, cuts and resumption.

use common::artifact::CHUNK_BYTES;
use common::ids::{ArtifactHash, AttemptId, Digest};
use common::wire::{ChunkError, ChunkHeader, CodecError, Manifest, Refusal, RefusalCode};

use super::pki::PATIENCE;
use super::store::Store;
use super::*;
use crate::CloseCode;
use crate::framing::{FrameReader, FrameWriter};
use crate::quic::Exchange;
use crate::transfer::{
    ChunkSink, Patience, fetch_chunks, fetch_manifest, put_chunks, read_reply, receive_chunk, serve_chunks,
};

const WAITS: Patience = Patience { turn: PATIENCE, chunk: PATIENCE };

/// Three full chunks, a short one, and a tensor of one number.
fn full() -> Store {
    let chunk = CHUNK_BYTES as u32 / 4;
    Store::full(&[("a", 3 * chunk + 5), ("b", 1)])
}

/// Coordinator: takes the next exchange and its request.
async fn next_request(pair: &Pair) -> (Exchange, Request) {
    let mut exchange = pair.coordinator.accept().await.unwrap();
    let request = exchange.reader.read().await.unwrap();
    (exchange, request)
}

/// Coordinator: serves the next `GetChunks`; the indices asked for.
async fn serve(pair: &Pair, source: &mut Store) -> Vec<u32> {
    let (mut exchange, request) = next_request(pair).await;
    let Request::GetChunks { artifact, indices } = request else { panic!("{request:?}") };
    assert_eq!(artifact, source.manifest.hash());
    let manifest = source.manifest.clone();
    // The site may give up half-way; that is its business.
    let _ = serve_chunks(&mut exchange.writer, &manifest, &indices, source, PATIENCE).await;
    indices
}

/// Site: fetches what `sink` misses.
async fn fetch(pair: &Pair, sink: &mut Store) -> Result<u32, LinkError> {
    let Exchange { mut reader, mut writer } = pair.site.open().await?;
    let manifest = sink.manifest.clone();
    fetch_chunks(&mut reader, &mut writer, &manifest, &sink.missing(), sink, WAITS).await
}

#[tokio::test]
async fn an_artifact_is_fetched_whole() {
    let pair = pair().await;
    let mut source = full();
    let mut sink = Store::empty(&source.manifest);
    let (asked, fetched) = tokio::join!(serve(&pair, &mut source), fetch(&pair, &mut sink));
    assert_eq!((asked.len(), fetched.unwrap()), (5, 5));
    assert_eq!(sink.chunks, source.chunks);
    assert!(pair.site.traffic().received > source.manifest.layout().bytes());
}

#[tokio::test]
async fn a_chunk_that_cannot_be_read_is_refused_after_the_ones_before_it() {
    let pair = pair().await;
    let mut source = full();
    let mut sink = Store::empty(&source.manifest);
    source.chunks[2] = None;
    let refuse = async {
        let (mut exchange, _) = next_request(&pair).await;
        let (manifest, indices) = (source.manifest.clone(), [0, 1, 2, 3, 4]);
        let served = serve_chunks(&mut exchange.writer, &manifest, &indices, &mut source, PATIENCE).await;
        assert!(matches!(served, Err(LinkError::Io(_))), "{served:?}");
        let refusal = Refusal::new(RefusalCode::Internal, "corrupt");
        exchange.writer.write(&Reply::Refused(refusal)).await.unwrap();
        exchange.writer.finish().await.unwrap();
    };
    let ((), fetched) = tokio::join!(refuse, fetch(&pair, &mut sink));
    let refused = fetched.unwrap_err();
    assert!(
        matches!(&refused, LinkError::Refused(refusal) if refusal.code == RefusalCode::Internal),
        "{refused:?}"
    );
    assert_eq!(sink.missing(), [2, 3, 4]);
}

#[tokio::test]
async fn after_a_cut_only_the_missing_chunks_are_fetched() {
    let mut source = full();
    let mut sink = Store::empty(&source.manifest);
    let first = pair().await;
    let kept = sink.kept.clone();
    // The coordinator dies after two chunks have arrived.
    let die = async {
        let (mut exchange, _) = next_request(&first).await;
        for index in [0, 1] {
            let bytes = source.chunks[index as usize].clone().unwrap();
            let header = ChunkHeader { index, len: bytes.len() as u32 };
            exchange.writer.write(&Reply::Chunk(header)).await.unwrap();
            exchange.writer.write_raw(&bytes).await.unwrap();
            kept.notified().await;
        }
        // Half of the third is under way when it happens.
        let header = ChunkHeader { index: 2, len: CHUNK_BYTES as u32 };
        exchange.writer.write(&Reply::Chunk(header)).await.unwrap();
        exchange.writer.write_raw(&[0; 1000]).await.unwrap();
        first.coordinator.close(CloseCode::Stopping, &"".into());
    };
    let ((), cut) = tokio::join!(die, fetch(&first, &mut sink));
    let cut = cut.unwrap_err();
    assert!(
        matches!(cut, LinkError::Closed { code: CloseCode::Stopping, .. }) && cut.is_transient(),
        "{cut:?}"
    );
    assert_eq!(sink.missing(), [2, 3, 4]);

    let second = pair().await;
    let (asked, fetched) = tokio::join!(serve(&second, &mut source), fetch(&second, &mut sink));
    assert_eq!((asked, fetched.unwrap()), (vec![2, 3, 4], 3));
    assert_eq!(sink.chunks, source.chunks);
}

#[tokio::test]
async fn a_corrupt_chunk_is_not_kept() {
    let pair = pair().await;
    let mut source = full();
    source.chunks[1].as_mut().unwrap()[77] ^= 1;
    let mut sink = Store::empty(&source.manifest);
    let (_, fetched) = tokio::join!(serve(&pair, &mut source), fetch(&pair, &mut sink));
    assert!(matches!(fetched, Err(LinkError::Chunk(ChunkError::Hash { index: 1 }))), "{fetched:?}");
    assert_eq!(sink.missing(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_chunk_of_another_length_is_refused_before_it_is_read() {
    let pair = pair().await;
    let mut sink = Store::empty(&full().manifest);
    let lie = async {
        let (mut exchange, _) = next_request(&pair).await;
        let header = ChunkHeader { index: 0, len: u32::MAX };
        exchange.writer.write(&Reply::Chunk(header)).await.unwrap();
        exchange
    };
    let (_kept_open, fetched) = tokio::join!(lie, fetch(&pair, &mut sink));
    assert!(matches!(fetched, Err(LinkError::Chunk(ChunkError::Length { index: 0, .. }))), "{fetched:?}");
}

#[tokio::test]
async fn an_index_beyond_the_artifact_is_refused_before_a_byte_is_sent() {
    let mut source = full();
    let manifest = source.manifest.clone();
    let (mut near, far) = tokio::io::duplex(1024);
    let served = serve_chunks(&mut FrameWriter::new(far), &manifest, &[0, 5], &mut source, PATIENCE).await;
    assert!(matches!(served, Err(LinkError::Chunk(ChunkError::Unknown { index: 5, chunks: 5 }))));
    let mut sent = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut near, &mut sent).await.unwrap();
    assert_eq!(sent, [0u8; 0]);
}

#[tokio::test]
async fn a_manifest_is_taken_only_under_its_own_name() {
    let pair = pair().await;
    let manifest = full().manifest;
    for (asked, good) in [(manifest.hash(), true), (ArtifactHash(Digest::of(b"other")), false)] {
        let answer = async {
            let (mut exchange, _) = next_request(&pair).await;
            exchange.writer.write(&Reply::Artifact { manifest: Manifest::from(&manifest) }).await.unwrap();
            exchange.writer.finish().await.unwrap();
        };
        let ask = async {
            let Exchange { mut reader, mut writer } = pair.site.open().await?;
            fetch_manifest(&mut reader, &mut writer, asked, PATIENCE).await
        };
        match tokio::join!(answer, ask).1 {
            Ok(got) => assert!(good && got == manifest),
            Err(error) => assert!(!good && matches!(error, LinkError::WrongManifest), "{error:?}"),
        }
    }
}

const ATTEMPT: AttemptId = AttemptId::from_bytes([9; 16]);

/// Site: sends these chunks.
async fn put(pair: &Pair, source: &mut Store, indices: &[u32]) -> Result<u32, LinkError> {
    let Exchange { mut reader, mut writer } = pair.site.open().await?;
    let manifest = source.manifest.clone();
    put_chunks(&mut reader, &mut writer, ATTEMPT, &manifest, indices, source, WAITS).await
}

#[tokio::test]
async fn an_update_is_sent_and_acknowledged() {
    let pair = pair().await;
    let mut source = full();
    let manifest = source.manifest.clone();
    let take = async {
        let (Exchange { mut reader, mut writer }, request) = next_request(&pair).await;
        assert_eq!(request, Request::PutChunks { attempt: ATTEMPT, count: 3 });
        let (mut buffer, mut got) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            got.push(receive_chunk(&mut reader, &manifest, &mut buffer, PATIENCE).await.unwrap());
        }
        writer.write(&Reply::Stored { chunks: 3 }).await.unwrap();
        writer.finish().await.unwrap();
        got
    };
    let (got, stored) = tokio::join!(take, put(&pair, &mut source, &[1, 3, 4]));
    assert_eq!((got, stored.unwrap()), (vec![1, 3, 4], 3));
}

#[tokio::test]
async fn a_window_can_be_raised_for_a_transfer_and_lowered_after_it() {
    let pair = pair().await;
    let settings = QuicSettings::coordinator();
    let mut source = full();
    let manifest = source.manifest.clone();
    assert!(manifest.layout().bytes() > u64::from(settings.receive_window), "it does not fit a small window");
    for _ in 0..3 {
        let take = async {
            let (Exchange { mut reader, mut writer }, _) = next_request(&pair).await;
            pair.coordinator.grant_receiving(settings.granted_window);
            for index in 0..5 {
                let got = receive_chunk(&mut reader, &manifest, &mut Vec::new(), PATIENCE).await.unwrap();
                assert_eq!(got, index);
                pair.coordinator.grant_receiving(settings.receive_window);
            }
            writer.write(&Reply::Stored { chunks: 5 }).await.unwrap();
            writer.finish().await.unwrap();
        };
        let ((), stored) = tokio::join!(take, put(&pair, &mut source, &[0, 1, 2, 3, 4]));
        assert_eq!(stored.unwrap(), 5);
        let (asked, fetched) = {
            pair.coordinator.grant_sending(settings.granted_window);
            let mut sink = Store::empty(&manifest);
            tokio::join!(serve(&pair, &mut source), fetch(&pair, &mut sink))
        };
        pair.coordinator.grant_sending(settings.send_window);
        assert_eq!((asked.len(), fetched.unwrap()), (5, 5));
    }
}

#[tokio::test]
async fn a_refusal_in_mid_upload_reaches_the_site() {
    let pair = pair().await;
    let mut source = full();
    let manifest = source.manifest.clone();
    let refuse = async {
        let (Exchange { mut reader, mut writer }, _) = next_request(&pair).await;
        receive_chunk(&mut reader, &manifest, &mut Vec::new(), PATIENCE).await.unwrap();
        let refusal = Refusal::new(RefusalCode::NotFinite, "tensor a");
        writer.write(&Reply::Refused(refusal)).await.unwrap();
        writer.finish().await.unwrap();
        // `reader` is dropped: the rest is not wanted.
    };
    let ((), stored) = tokio::join!(refuse, put(&pair, &mut source, &[0, 1, 2, 3, 4]));
    let error = stored.unwrap_err();
    assert_eq!((error.code(), error.is_transient()), ("not-finite", false));
    assert!(error.hint().is_some_and(|hint| hint.contains("diverged")));
}

#[tokio::test]
async fn an_oversized_frame_is_refused_by_its_length() {
    let pair = pair().await;
    let mut exchange = pair.site.open().await.unwrap();
    let announced = (4u32 << 20) + 1;
    exchange.writer.write_raw(&announced.to_le_bytes()).await.unwrap();
    let mut accepted = pair.coordinator.accept().await.unwrap();
    let error = accepted.reader.read::<Request>().await.unwrap_err();
    assert!(matches!(error, LinkError::Codec(CodecError::TooLarge { got: 4_194_305, .. })), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_cut_off() {
    let bytes = |bytes: &'static [u8]| FrameReader::new(bytes);
    assert!(bytes(&[]).read_or_end::<Reply>().await.unwrap().is_none());
    for part in [&[1, 0][..], &[1, 0, 0, 0], &[9, 0, 0, 0, 1, 1]] {
        let error = bytes(part).read_or_end::<Reply>().await.unwrap_err();
        assert!(matches!(error, LinkError::CutOff { what: "reply" }), "{error:?}");
    }
    assert_eq!(bytes(&[1, 0, 0, 0, 1]).read::<Reply>().await.unwrap(), Reply::Done);
}

#[tokio::test]
async fn frames_follow_each_other_however_the_stream_is_cut_up() {
    // A pipe of three bytes hands over no frame whole.
    let (near, far) = tokio::io::duplex(3);
    let replies = [Reply::Done, Reply::Stored { chunks: 70_000 }, Reply::Study { bytes: vec![7; 500] }];
    let write = async {
        let mut writer = FrameWriter::new(far);
        for reply in &replies {
            writer.write(reply).await.unwrap();
        }
        writer.finish().await.unwrap();
    };
    let read = async {
        let (mut reader, mut got) = (FrameReader::new(near), Vec::new());
        while let Some(reply) = reader.read_or_end::<Reply>().await.unwrap() {
            got.push(reply);
        }
        got
    };
    assert_eq!(tokio::join!(write, read).1, replies);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let (near, _far) = tokio::io::duplex(64);
    let error = read_reply(&mut FrameReader::new(near), PATIENCE).await.unwrap_err();
    assert!(matches!(error, LinkError::TooSlow { what: "reply", limit: PATIENCE }) && error.is_transient());
}
