//! The exchanges that carry chunks: an artifact on its way to a site, an update or a lost artifact on its way from one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::ids::{ArtifactHash, AttemptId, ModelHash, Role};
use common::wire::{ChunkError, Refusal, RefusalCode, Reply};
use link::LinkError;
use link::buffers::ChunkBuffer;
use link::quic::Exchange;
use link::transfer::{self, ChunkSource};

use super::credit::Stream;
use super::pace::Moved;
use super::requests::{internal, refusal};
use super::rotten;
use super::session::Session;
use super::upload::Intake;
use crate::driver::position;
use crate::store::{ArtifactFile, StoreError};

/// How long a chunk may take.
const CHUNK_PATIENCE: Duration = Duration::from_secs(60);

/// The artifact that a site asks for, if it may have it.
pub(super) async fn open_artifact(
    session: &Session,
    artifact: ModelHash,
) -> Result<Arc<ArtifactFile>, Refusal> {
    if session.identity.role == Role::Evaluator {
        session.context.driver.may_fetch(session.identity.site.clone(), artifact).await?;
    }
    let context = session.context.clone();
    let read = move || context.shelf.read(context.store.artifacts(), &artifact);
    let opened = tokio::task::spawn_blocking(read).await;
    match opened.map_err(|e| internal(StoreError::corrupt("artifact", e)))? {
        Ok(Some(opened)) => Ok(opened),
        Ok(None) => Err(rotten::missing(session, artifact).await),
        Err(error) => Err(rotten::refuse(session, artifact, None, &error).await),
    }
}

/// Sends these chunks of an artifact.
pub(super) async fn serve_chunks(
    session: &Session,
    artifact: ArtifactHash,
    indices: &[u32],
    exchange: &mut Exchange,
) -> Result<(), LinkError> {
    let file = open_artifact(session, artifact).await.map_err(LinkError::Refused)?;
    if !indices.is_sorted_by(|a, b| a < b) {
        return Err(LinkError::Refused(refusal(
            RefusalCode::BadRequest,
            "chunks are asked for once, ascending",
        )));
    }
    // Before it waits for its turn: the list is in our memory meanwhile.
    let chunks = file.manifest().chunks().len();
    if let Some(&index) = indices.last().filter(|&&last| position(last) >= chunks) {
        let words = ChunkError::Unknown { index, chunks }.to_string();
        return Err(LinkError::Refused(refusal(RefusalCode::UnknownChunk, words)));
    }
    let bytes = file.manifest().layout().bytes();
    let joining = session.sending.join(&session.context.budget, &session.connection, bytes);
    let _stream = while_there(exchange, joining).await?;
    let moved = Arc::new(Moved::default());
    let mut source = OnDisk { file: file.clone(), moved: moved.clone(), failed: None };
    let serving = async {
        let writer = &mut exchange.writer;
        transfer::serve_chunks(writer, file.manifest(), indices, &mut source, CHUNK_PATIENCE).await?;
        // What was not acknowledged is still in our memory: it counts as under way.
        exchange.delivered().await;
        Ok::<(), LinkError>(())
    };
    let result = moved.watch("artifact", serving).await;
    match result {
        Ok(()) => {
            rotten::served(session, artifact, indices).await;
            Ok(())
        }
        Err(LinkError::Chunk(error)) => {
            Err(LinkError::Refused(refusal(RefusalCode::UnknownChunk, error.to_string())))
        }
        Err(LinkError::Io(error)) => match error.get_ref().and_then(|e| e.downcast_ref::<StoreError>()) {
            Some(found) => {
                Err(LinkError::Refused(rotten::refuse(session, artifact, source.failed, found).await))
            }
            None => Err(LinkError::Io(error)),
        },
        Err(other) => {
            // It may have hung up because a chunk was wrong that was right when it was read first: all are looked at anew.
            session.context.shelf.forget(&artifact);
            Err(other)
        }
    }
}

/// Waits for a turn no longer than there is somebody to use it: over TCP an exchange may end and its connection go on.
async fn while_there<T>(
    exchange: &Exchange,
    joining: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::select! {
        joined = joining => joined,
        () = exchange.gone() => Err(LinkError::Reset),
    }
}

/// An artifact's chunks, read off the async threads.
struct OnDisk {
    file: Arc<ArtifactFile>,
    moved: Arc<Moved>,
    /// The chunk that could not be read.
    failed: Option<u32>,
}

impl ChunkSource for OnDisk {
    async fn read_chunk(&mut self, index: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
        let (file, mut bytes) = (self.file.clone(), std::mem::take(buffer));
        let read = tokio::task::spawn_blocking(move || {
            let read = file.read_into(position(index), &mut bytes);
            read.map(|()| bytes)
        });
        let read = read.await?;
        if read.is_err() {
            self.failed = Some(index);
        }
        *buffer = read.map_err(io::Error::other)?;
        self.moved.add(buffer.len() as u64);
        Ok(())
    }
}

/// Takes so many chunks of what arrives under this attempt.
pub(super) async fn take_chunks(
    session: &Session,
    attempt: AttemptId,
    count: u32,
    exchange: &mut Exchange,
) -> Result<Reply, LinkError> {
    let arriving = session.upload.lock().await.map_err(LinkError::Refused)?.of(attempt).cloned();
    let upload = arriving.ok_or_else(|| {
        LinkError::Refused(refusal(RefusalCode::UnknownAttempt, "no update is offered under this attempt"))
    })?;
    if position(count) > upload.manifest().chunks().len() {
        return Err(LinkError::Refused(refusal(RefusalCode::BadRequest, "more chunks than the update has")));
    }
    let left = upload.left();
    let joining = session.receiving.join(&session.context.budget, &session.connection, left);
    let stream = while_there(exchange, joining).await?;
    let mut intake = Intake::new(upload);
    let moved = Moved::default();
    let taken = moved.watch("update", take_each(&mut intake, count, &stream, &moved, exchange)).await;
    // What came whole stays, whatever became of the rest: the site offers again and sends what is missing.
    let settled = intake.settle().await;
    taken?;
    settled.map_err(LinkError::Refused)?;
    Ok(Reply::Stored { chunks: count })
}

async fn take_each(
    intake: &mut Intake,
    count: u32,
    stream: &Stream<'_>,
    moved: &Moved,
    exchange: &mut Exchange,
) -> Result<(), LinkError> {
    let mut buffer = ChunkBuffer::take();
    for _ in 0..count {
        let manifest = intake.upload().manifest();
        let received =
            transfer::receive_chunk(&mut exchange.reader, manifest, &mut buffer, CHUNK_PATIENCE).await;
        let index = received.map_err(|error| match error {
            LinkError::Chunk(error) => LinkError::Refused(refusal(RefusalCode::BadChunk, error.to_string())),
            other => other,
        })?;
        let bytes = buffer.len() as u64;
        moved.add(bytes);
        stream.came(bytes, intake.upload().came(bytes));
        buffer = intake.take(index, buffer).await.map_err(LinkError::Refused)?;
    }
    Ok(())
}
