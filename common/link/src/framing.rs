//! Frames over any byte stream: a `u32` little-endian length, then a message of [`common::wire`]; raw bytes between.
//!
//! Reading is *not* cancel-safe: a read dropped half-way has taken bytes off the stream. Read in one task and hand the
//! messages on; a timeout is fine when the stream is given up after it, which is what [`FrameReader::read_within`] is
//! for.

use std::time::Duration;

use common::wire::{CodecError, Message, codec};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::LinkError;

/// Bytes read at most before memory for them is taken: what a peer only announces costs nothing here.
const READ_STEP: usize = 64 << 10;

/// Bytes of a body from which on [`FrameReader::read_with_room`] asks for room.
pub const SMALL_BODY: usize = 64 << 10;

/// Bytes written at a time. QUIC keeps a copy of each write until it is acknowledged: pieces of one size, which also fit where
/// packets were, leave fewer holes in memory than whole chunks.
const WRITE_STEP: usize = 64 << 10;

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream }
    }

    /// What is read from.
    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// The next message.
    ///
    /// # Errors
    /// [`LinkError::CutOff`] at the end of the stream, [`LinkError::Codec`] for what is no such message.
    pub async fn read<M: Message>(&mut self) -> Result<M, LinkError> {
        self.read_or_end().await?.ok_or(LinkError::CutOff { what: M::NAME })
    }

    /// The next message, or `None` when the stream ended before it.
    ///
    /// # Errors
    /// As [`FrameReader::read`], the end inside a message included.
    pub async fn read_or_end<M: Message>(&mut self) -> Result<Option<M>, LinkError> {
        let Some(len) = self.read_length::<M>().await? else { return Ok(None) };
        Ok(Some(self.read_body(len).await?))
    }

    /// The next message, if it comes within `limit`. After [`LinkError::TooSlow`] the stream is of no more use.
    ///
    /// # Errors
    /// As [`FrameReader::read`].
    pub async fn read_within<M: Message>(&mut self, limit: Duration) -> Result<M, LinkError> {
        within(limit, M::NAME, self.read()).await
    }

    /// As [`FrameReader::read_within`], with `room` waited for before a body of more than [`SMALL_BODY`] bytes is read, within the
    /// same limit. What it gives is the caller's, to be held as long as the message.
    ///
    /// # Errors
    /// As [`FrameReader::read`].
    pub async fn read_with_room<M: Message, P>(
        &mut self,
        limit: Duration,
        room: impl Future<Output = P>,
    ) -> Result<(M, Option<P>), LinkError> {
        let read = async {
            let len = self.read_length::<M>().await?.ok_or(LinkError::CutOff { what: M::NAME })?;
            let room = if len > SMALL_BODY { Some(room.await) } else { None };
            Ok((self.read_body(len).await?, room))
        };
        within(limit, M::NAME, read).await
    }

    /// Exactly `len` raw bytes into `buffer`, which is emptied first. The caller has checked `len` against a manifest.
    ///
    /// # Errors
    /// [`LinkError::CutOff`] when the stream ends before.
    pub async fn read_raw(
        &mut self,
        len: usize,
        buffer: &mut Vec<u8>,
        what: &'static str,
    ) -> Result<(), LinkError> {
        buffer.clear();
        while buffer.len() < len {
            // What the buffer has room for is paid already.
            let step = READ_STEP.max(buffer.capacity() - buffer.len()).min(len - buffer.len());
            buffer.reserve(step);
            if (&mut self.stream).take(step as u64).read_buf(buffer).await? == 0 {
                return Err(LinkError::CutOff { what });
            }
        }
        Ok(())
    }

    /// Bytes of the next message's body; `None` when the stream ended before it.
    async fn read_length<M: Message>(&mut self) -> Result<Option<usize>, LinkError> {
        let mut prefix = [0; 4];
        let mut filled = 0;
        while filled < prefix.len() {
            match self.stream.read(&mut prefix[filled..]).await? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(LinkError::CutOff { what: M::NAME }),
                read => filled += read,
            }
        }
        let (got, limit) = (u32::from_le_bytes(prefix) as usize, M::SIZE.limit());
        if got > limit {
            return Err(CodecError::TooLarge { name: M::NAME, limit, got }.into());
        }
        Ok(Some(got))
    }

    async fn read_body<M: Message>(&mut self, len: usize) -> Result<M, LinkError> {
        let mut body = Vec::new();
        self.read_raw(len, &mut body, M::NAME).await?;
        Ok(codec::decode(&body)?)
    }
}

/// Writes frames. A site may hold one only in its egress.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream }
    }

    /// What is written to.
    pub(crate) fn stream(&self) -> &W {
        &self.stream
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`LinkError::Codec`] when it is beyond its limit; else what the stream says.
    pub async fn write<M: Message>(&mut self, message: &M) -> Result<(), LinkError> {
        let body = codec::encode(message)?;
        let mut frame = Vec::with_capacity(4 + body.len());
        // A body is at most 4 MiB (`SizeClass`), which `encode` checked.
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body);
        self.send(&frame).await
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn write_raw(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.send(bytes).await
    }

    /// TLS over TCP keeps what the socket does not take at once; the other side waits for it.
    async fn send(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        for piece in bytes.chunks(WRITE_STEP) {
            self.stream.write_all(piece).await?;
        }
        Ok(self.stream.flush().await?)
    }

    /// Says that nothing more will come. Not a delivery: wait for the other side's reply.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        Ok(self.stream.shutdown().await?)
    }
}

/// The outcome of `work`, if it comes within `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(LinkError::TooSlow { what, limit }))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use common::ids::{Digest, StudyDigest};
    use common::wire::{Request, SignedBytes};
    use tokio::io::duplex;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn manifest(bytes: usize) -> Request {
        let manifest = SignedBytes { bytes: vec![7; bytes], signature: [0; 64] };
        Request::RegisterManifest { study: StudyDigest(Digest::of(b"study")), manifest }
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_is_read_when_there_is_room_for_it() {
        let (small, large) = (manifest(60 << 10), manifest(1 << 20));
        let (near, far) = duplex(4 << 20);
        let (mut reader, mut writer) = (FrameReader::new(near), FrameWriter::new(far));
        for request in [&small, &large, &large] {
            writer.write(request).await.unwrap();
        }
        let (read, room) = reader.read_with_room::<Request, ()>(LIMIT, pending()).await.unwrap();
        assert_eq!((read, room), (small, None));
        let (read, room) = reader.read_with_room::<Request, _>(LIMIT, ready("room")).await.unwrap();
        assert_eq!((read, room), (large, Some("room")));
        let late = reader.read_with_room::<Request, ()>(LIMIT, pending()).await;
        assert!(matches!(late, Err(LinkError::TooSlow { what: "request", .. })), "{late:?}");
        let mut rest = Vec::new();
        reader.read_raw(1 << 20, &mut rest, "body").await.unwrap();
    }
}
