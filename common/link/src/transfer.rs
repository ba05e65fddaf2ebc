//! Artifacts on an exchange: asked for, sent, checked and resumed chunk by chunk.
//!
//! What a side has, it knows itself ([`ChunkSink::missing`]); so after a cut, asking again fetches only what is
//! missing. No chunk reaches a sink before its content has the hash that the manifest names.

use std::future::Future;
use std::io;
use std::time::Duration;

use common::artifact::ArtifactManifest;
use common::ids::{ArtifactHash, AttemptId};
use common::wire::{ChunkError, ChunkHeader, Reply, Request, chunk};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::LinkError;
use crate::framing::{FrameReader, FrameWriter, within};

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

/// Site: fetches what `sink` misses of the artifact with this manifest. `patience` bounds the wait for each chunk, not
/// for all of them. Returns how many chunks came.
///
/// # Errors
/// [`LinkError::Chunk`] when a chunk is not what the manifest names: what came before it is kept.
pub async fn fetch_chunks<R, W, S>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    manifest: &ArtifactManifest,
    sink: &mut S,
    patience: Duration,
) -> Result<u32, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: ChunkSink,
{
    let indices = sink.missing();
    writer.write(&Request::GetChunks { artifact: manifest.hash(), indices: indices.clone() }).await?;
    writer.finish().await?;
    let mut buffer = Vec::new();
    let mut fetched = 0;
    for &index in &indices {
        let Reply::Chunk(header) = read_reply(reader, patience).await? else {
            return Err(LinkError::Unexpected { expected: "a chunk", got: "another reply" });
        };
        if header.index != index {
            return Err(LinkError::Unexpected { expected: "the next chunk asked for", got: "another chunk" });
        }
        receive_body(reader, manifest, header, &mut buffer, patience).await?;
        chunk::check_chunk(manifest, index, &buffer)?;
        sink.keep_chunk(index, &buffer).await?;
        fetched += 1;
    }
    expect_done(read_reply(reader, patience).await?)?;
    Ok(fetched)
}

/// Coordinator: answers `GetChunks`. Indices that the artifact does not have are an error before the first byte.
///
/// # Errors
/// [`LinkError::Chunk`] for an index beyond the artifact: answer with a refusal; [`LinkError::Io`] from the source.
pub async fn serve_chunks<W, S>(
    writer: &mut FrameWriter<W>,
    manifest: &ArtifactManifest,
    indices: &[u32],
    source: &mut S,
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
    let mut buffer = Vec::new();
    for &index in indices {
        let header = read_source(source, manifest, index, &mut buffer).await?;
        writer.write(&Reply::Chunk(header)).await?;
        writer.write_raw(&buffer).await?;
    }
    writer.write(&Reply::Done).await?;
    writer.finish().await
}

/// Site's egress: sends these chunks of an offered update, and waits until the coordinator has kept them.
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
    patience: Duration,
) -> Result<u32, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: ChunkSource,
{
    let sent = send_all(writer, attempt, manifest, indices, source).await;
    match (sent, read_reply(reader, patience).await) {
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
) -> Result<(), LinkError>
where
    W: AsyncWrite + Unpin,
    S: ChunkSource,
{
    // At most 12,288 chunks in an artifact.
    let count = u32::try_from(indices.len()).unwrap_or(u32::MAX);
    writer.write(&Request::PutChunks { attempt, count }).await?;
    let mut buffer = Vec::new();
    for &index in indices {
        let header = read_source(source, manifest, index, &mut buffer).await?;
        writer.write(&header).await?;
        writer.write_raw(&buffer).await?;
    }
    writer.finish().await
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
