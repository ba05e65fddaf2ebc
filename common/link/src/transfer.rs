//! Artifacts on an exchange: asked for, sent, checked and resumed chunk by chunk.
//!
//! What a side has, it knows itself ([`ChunkSink::missing`]); so after a cut, asking again fetches only what is
//! missing. No chunk reaches a sink before its content has the hash that the manifest names.
//!
//! Chunks may be [`share`]d out over up to [`MAX_STREAMS`] exchanges. A side that sends reads the next chunk while one is
//! on the wire.

use std::convert::identity;
use std::future::Future;
use std::io;
use std::time::Duration;

use common::artifact::ArtifactManifest;
use common::ids::{ArtifactHash, AttemptId};
use common::wire::{ChunkError, ChunkHeader, Message, Reply, Request, chunk};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffers::ChunkBuffer;
use crate::error::LinkError;
use crate::framing::{FrameReader, FrameWriter, within};

/// Most exchanges that move chunks of one artifact in one direction at once. A coordinator reads so many beside each other:
/// one more would fill the connection's window with bytes that nobody reads.
pub const MAX_STREAMS: usize = 4;

/// Deals `indices` to so many streams, in turn: each gets ascending ones, none of them nothing.
pub fn share(indices: &[u32], streams: usize) -> Vec<Vec<u32>> {
    let streams = streams.clamp(1, MAX_STREAMS).min(indices.len());
    let deal = |first| -> Vec<u32> { indices.iter().copied().skip(first).step_by(streams).collect() };
    (0..streams).map(deal).collect()
}

/// How long a site waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For its turn: the coordinator serves some transfers at a time, the others queue. A coordinator that is gone is
    /// noticed by the connection, long before.
    pub turn: Duration,
    /// For each chunk, once they come.
    pub chunk: Duration,
}

/// Where chunks are read from.
pub trait ChunkSource {
    /// Reads chunk `index` of the artifact into `buffer`, which is emptied first.
    fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>)
    -> impl Future<Output = io::Result<()>> + Send;
}

/// Where chunks are kept.
pub trait ChunkSink {
    /// Indices of the chunks that are not kept yet, ascending.
    fn missing(&self) -> Vec<u32>;

    /// Keeps chunk `index`, whose content was checked.
    fn keep_chunk(&mut self, index: u32, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// Site: asks for the manifest of `artifact`, and believes it only when it hashes to that name.
///
/// # Errors
/// [`LinkError::WrongManifest`] or [`LinkError::Manifest`] when the coordinator errs; [`LinkError::Refused`].
pub async fn fetch_manifest<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    artifact: ArtifactHash,
    patience: Duration,
) -> Result<ArtifactManifest, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    writer.write(&Request::GetArtifact { artifact }).await?;
    writer.finish().await?;
    let Reply::Artifact { manifest } = read_reply(reader, patience).await? else {
        return Err(LinkError::Unexpected { expected: "a manifest", got: "another reply" });
    };
    let manifest = ArtifactManifest::try_from(manifest)?;
    if manifest.hash() != artifact {
        return Err(LinkError::WrongManifest);
    }
    Ok(manifest)
}

/// Site: fetches chunks `indices` of the artifact with this manifest into `sink`. Returns how many came.
///
/// # Errors
/// [`LinkError::Chunk`] when a chunk is not what the manifest names: what came before it is kept.
pub async fn fetch_chunks<R, W, S>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    manifest: &ArtifactManifest,
    indices: &[u32],
    sink: &mut S,
    patience: Patience,
) -> Result<u32, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: ChunkSink,
{
    writer.write(&Request::GetChunks { artifact: manifest.hash(), indices: indices.to_vec() }).await?;
    writer.finish().await?;
    let mut buffer = Vec::new();
    let mut fetched = 0;
    for &index in indices {
        let wait = if fetched == 0 { patience.turn } else { patience.chunk };
        let Reply::Chunk(header) = read_reply(reader, wait).await? else {
            return Err(LinkError::Unexpected { expected: "a chunk", got: "another reply" });
        };
        if header.index != index {
            return Err(LinkError::Unexpected { expected: "the next chunk asked for", got: "another chunk" });
        }
        receive_body(reader, manifest, header, &mut buffer, patience.chunk).await?;
        chunk::check_chunk(manifest, index, &buffer)?;
        sink.keep_chunk(index, &buffer).await?;
        fetched += 1;
    }
    expect_done(read_reply(reader, patience.chunk).await?)?;
    Ok(fetched)
}

/// Coordinator: answers `GetChunks`. Indices that the artifact does not have are an error before the first byte. A site
/// that takes none of a chunk within `patience` is given up.
///
/// # Errors
/// [`LinkError::Chunk`] for an index beyond the artifact: answer with a refusal; [`LinkError::Io`] from the source.
pub async fn serve_chunks<W, S>(
    writer: &mut FrameWriter<W>,
    manifest: &ArtifactManifest,
    indices: &[u32],
    source: &mut S,
    patience: Duration,
) -> Result<(), LinkError>
where
    W: AsyncWrite + Unpin,
    S: ChunkSource,
{
    let chunks = manifest.chunks().len();
    let unknown = indices.iter().find(|&&index| usize::try_from(index).map_or(true, |index| index >= chunks));
    if let Some(&index) = unknown {
        return Err(ChunkError::Unknown { index, chunks }.into());
    }
    send_chunks(writer, manifest, indices, source, Reply::Chunk, patience).await?;
    writer.write(&Reply::Done).await?;
    writer.finish().await
}

/// Site's egress: sends these chunks of an offered update, and waits until the coordinator has kept them. It may have to
/// wait for its turn, with the wire full or after the last byte of a short update.
///
/// # Errors
/// [`LinkError::Refused`] when the coordinator rejects a chunk; the error of the stream otherwise.
pub async fn put_chunks<R, W, S>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    attempt: AttemptId,
    manifest: &ArtifactManifest,
    indices: &[u32],
    source: &mut S,
    patience: Patience,
) -> Result<u32, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: ChunkSource,
{
    let sent = send_all(writer, attempt, manifest, indices, source, patience).await;
    let wait = if sent.is_ok() { patience.turn } else { patience.chunk };
    match (sent, read_reply(reader, wait).await) {
        (Ok(()), Ok(Reply::Stored { chunks })) => Ok(chunks),
        (Ok(()), Ok(_)) => Err(LinkError::Unexpected { expected: "stored", got: "another reply" }),
        // A coordinator that refuses stops reading: its refusal says more than the broken stream.
        (_, Err(refused @ LinkError::Refused(_))) => Err(refused),
        (Err(broken), _) | (Ok(()), Err(broken)) => Err(broken),
    }
}

/// Coordinator: the next chunk of `PutChunks` into `buffer`; its index. The length is checked before the first byte is
/// read; the content is for [`common::update::UpdateVerifier::push_chunk`].
///
/// # Errors
/// [`LinkError::Chunk`] when header and manifest disagree, [`LinkError::TooSlow`], or the error of the stream.
pub async fn receive_chunk<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    manifest: &ArtifactManifest,
    buffer: &mut Vec<u8>,
    patience: Duration,
) -> Result<u32, LinkError> {
    let header: ChunkHeader = reader.read_within(patience).await?;
    receive_body(reader, manifest, header, buffer, patience).await?;
    Ok(header.index)
}

/// The next reply; a refusal is an error.
///
/// # Errors
/// [`LinkError::Refused`], [`LinkError::TooSlow`], or the error of the stream.
pub async fn read_reply<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    patience: Duration,
) -> Result<Reply, LinkError> {
    match reader.read_within(patience).await? {
        Reply::Refused(refusal) => Err(LinkError::Refused(refusal)),
        reply => Ok(reply),
    }
}

fn expect_done(reply: Reply) -> Result<(), LinkError> {
    match reply {
        Reply::Done => Ok(()),
        _ => Err(LinkError::Unexpected { expected: "done", got: "another reply" }),
    }
}

async fn receive_body<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    manifest: &ArtifactManifest,
    header: ChunkHeader,
    buffer: &mut Vec<u8>,
    patience: Duration,
) -> Result<(), LinkError> {
    chunk::check_length(manifest, header.index, u64::from(header.len))?;
    // At most `CHUNK_BYTES`: the layout says so, and the header agrees with the layout.
    within(patience, "chunk", reader.read_raw(header.len as usize, buffer, "chunk")).await
}

async fn send_all<W, S>(
    writer: &mut FrameWriter<W>,
    attempt: AttemptId,
    manifest: &ArtifactManifest,
    indices: &[u32],
    source: &mut S,
    patience: Patience,
) -> Result<(), LinkError>
where
    W: AsyncWrite + Unpin,
    S: ChunkSource,
{
    // At most 12,288 chunks in an artifact.
    let count = u32::try_from(indices.len()).unwrap_or(u32::MAX);
    writer.write(&Request::PutChunks { attempt, count }).await?;
    send_chunks(writer, manifest, indices, source, identity, patience.turn).await?;
    writer.finish().await
}

/// Sends chunks, each announced; the next is read meanwhile.
async fn send_chunks<W, S, M>(
    writer: &mut FrameWriter<W>,
    manifest: &ArtifactManifest,
    indices: &[u32],
    source: &mut S,
    announce: fn(ChunkHeader) -> M,
    patience: Duration,
) -> Result<(), LinkError>
where
    W: AsyncWrite + Unpin,
    S: ChunkSource,
    M: Message,
{
    let mut indices = indices.iter().copied();
    let (mut bytes, mut spare) = (ChunkBuffer::take(), ChunkBuffer::take());
    let mut header = read_next(source, manifest, indices.next(), &mut bytes).await?;
    while let Some(announced) = header {
        let send = async {
            writer.write(&announce(announced)).await?;
            writer.write_raw(&bytes).await
        };
        let read = read_next(source, manifest, indices.next(), &mut spare);
        // A chunk that cannot be read does not cut the one before: a refusal may follow that.
        let (sent, next) = tokio::join!(within(patience, "room for a chunk", send), read);
        sent?;
        header = next?;
        std::mem::swap(&mut bytes, &mut spare);
    }
    Ok(())
}

async fn read_next<S: ChunkSource>(
    source: &mut S,
    manifest: &ArtifactManifest,
    index: Option<u32>,
    buffer: &mut Vec<u8>,
) -> Result<Option<ChunkHeader>, LinkError> {
    match index {
        Some(index) => read_source(source, manifest, index, buffer).await.map(Some),
        None => Ok(None),
    }
}

/// Reads a chunk of ours. A disk may lie: what does not have the manifest's length is not sent.
async fn read_source<S: ChunkSource>(
    source: &mut S,
    manifest: &ArtifactManifest,
    index: u32,
    buffer: &mut Vec<u8>,
) -> Result<ChunkHeader, LinkError> {
    source.read_chunk(index, buffer).await?;
    chunk::check_length(manifest, index, buffer.len() as u64)?;
    Ok(ChunkHeader { index, len: buffer.len() as u32 })
}
