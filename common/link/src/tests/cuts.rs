//! A stream that is cut at any byte costs the chunk in flight and no other. Every offset is tried.

use common::ids::AttemptId;
use common::wire::{Reply, Request, codec};

use super::pki::PATIENCE;
use super::store::Store;
use crate::framing::{FrameReader, FrameWriter};
use crate::transfer::{
    ChunkSink, MAX_STREAMS, Patience, fetch_chunks, put_chunks, receive_chunk, serve_chunks, share,
};

const WAITS: Patience = Patience { turn: PATIENCE, chunk: PATIENCE };
const ATTEMPT: AttemptId = AttemptId::from_bytes([9; 16]);

/// Five small chunks.
fn full() -> Store {
    Store::full(&[("a", 3), ("b", 1), ("c", 7), ("d", 2), ("e", 5)])
}

/// What the coordinator sends for these indices.
async fn served(indices: &[u32]) -> Vec<u8> {
    let mut source = full();
    let mut sent = Vec::new();
    let manifest = source.manifest.clone();
    serve_chunks(&mut FrameWriter::new(&mut sent), &manifest, indices, &mut source, PATIENCE).await.unwrap();
    sent
}

/// What the site sends for these indices.
async fn put(indices: &[u32]) -> Vec<u8> {
    let mut source = full();
    let mut sent = Vec::new();
    let manifest = source.manifest.clone();
    let stored = codec::encode(&Reply::Stored { chunks: indices.len() as u32 }).unwrap();
    let reply = [&(stored.len() as u32).to_le_bytes()[..], &stored].concat();
    let (mut reader, mut writer) = (FrameReader::new(&reply[..]), FrameWriter::new(&mut sent));
    let kept = put_chunks(&mut reader, &mut writer, ATTEMPT, &manifest, indices, &mut source, WAITS).await;
    assert_eq!(kept.unwrap() as usize, indices.len());
    sent
}

async fn fetch(sink: &mut Store, sent: &[u8]) -> Result<u32, crate::LinkError> {
    let (mut reader, mut writer) = (FrameReader::new(sent), FrameWriter::new(tokio::io::sink()));
    let manifest = sink.manifest.clone();
    fetch_chunks(&mut reader, &mut writer, &manifest, &sink.missing(), sink, WAITS).await
}

/// How long the stream is when each chunk has just come.
async fn ends_of_served() -> Vec<usize> {
    let done = served(&[]).await.len();
    let mut ends = Vec::new();
    for chunks in 1..=5u32 {
        ends.push(served(&(0..chunks).collect::<Vec<_>>()).await.len() - done);
    }
    ends
}

#[tokio::test]
async fn a_download_cut_at_any_byte_keeps_every_chunk_that_came_whole() {
    let (sent, ends) = (served(&[0, 1, 2, 3, 4]).await, ends_of_served().await);
    for cut in 0..sent.len() {
        let mut sink = Store::empty(&full().manifest);
        let error = fetch(&mut sink, &sent[..cut]).await.unwrap_err();
        assert!(error.is_transient(), "cut at {cut}: {error:?}");
        let whole = ends.iter().filter(|&&end| end <= cut).count() as u32;
        let missing: Vec<u32> = (whole..5).collect();
        assert_eq!(sink.missing(), missing, "cut at {cut}");

        let rest = served(&missing).await;
        assert_eq!(fetch(&mut sink, &rest).await.unwrap(), 5 - whole, "cut at {cut}");
        assert_eq!(sink.chunks, full().chunks);
    }
}

/// The chunks that come whole out of a stream.
async fn taken(sent: &[u8]) -> Vec<u32> {
    let manifest = full().manifest;
    let mut reader = FrameReader::new(sent);
    let Ok(Request::PutChunks { attempt, count }) = reader.read().await else { return Vec::new() };
    assert_eq!(attempt, ATTEMPT);
    let (mut buffer, mut taken) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let Ok(index) = receive_chunk(&mut reader, &manifest, &mut buffer, PATIENCE).await else { break };
        assert_eq!(Some(&buffer), full().chunks[index as usize].as_ref());
        taken.push(index);
    }
    taken
}

#[tokio::test]
async fn an_upload_cut_at_any_byte_gives_every_chunk_that_came_whole() {
    let sent = put(&[0, 2, 3]).await;
    let ends: Vec<usize> = {
        let opening = put(&[]).await.len();
        let mut ends = Vec::new();
        for indices in [&[0][..], &[0, 2], &[0, 2, 3]] {
            ends.push(put(indices).await.len());
        }
        assert!(ends[0] > opening);
        ends
    };
    for cut in 0..=sent.len() {
        let whole = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!(taken(&sent[..cut]).await, [0, 2, 3][..whole], "cut at {cut}");
    }
}

#[test]
fn chunks_are_dealt_to_streams_once_each_and_in_order() {
    assert_eq!(share(&[], 2), [[0u32; 0]; 0]);
    assert_eq!(share(&[3], 4), [[3]]);
    assert_eq!(share(&[1, 2, 5, 7, 9], 2), [vec![1, 5, 9], vec![2, 7]]);
    assert_eq!(share(&[1, 2], 0), [[1, 2]], "at least one");
    let many: Vec<u32> = (0..100).collect();
    assert_eq!(share(&many, 50).len(), MAX_STREAMS, "a coordinator reads no more at once");
    let mut all = share(&many, MAX_STREAMS).concat();
    all.sort_unstable();
    assert_eq!(all, many);
}
